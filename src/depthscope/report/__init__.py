"""Figures and the page of a run, generated from its directory alone, without torch."""
