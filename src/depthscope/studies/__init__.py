"""A study: which experiments, with which settings, how much text, in one run directory."""
