"""What stands in the files of a run: metrics with their units, table and shard columns. Imports no torch.

One module per experiment. Tests freeze these names: other people's notebooks read them.
"""
