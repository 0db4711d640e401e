"""Measures: per-token divergences over the vocabulary in slices, and estimates with intervals over documents."""
