"""The contents of a run's files: metrics with their units, table and shard columns. Imports no torch.

One module per experiment. Tests freeze these names, because users' notebooks read them.
"""
