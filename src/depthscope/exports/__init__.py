"""A route as a checkpoint of its own: written, checked, described in a model card, timed."""
