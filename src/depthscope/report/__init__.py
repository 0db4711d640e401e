"""Figures and the page of a run, made from its directory alone. Imports no torch."""
