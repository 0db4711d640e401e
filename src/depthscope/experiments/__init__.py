"""Experiments: what is measured at every depth. One module each, with what several of them share."""
