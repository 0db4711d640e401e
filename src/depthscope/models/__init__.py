"""Models: loading, replay of their blocks and unembedding, and the checks that replay is the model itself.

The one place that knows transformers' classes.
"""
