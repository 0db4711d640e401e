"""What `--precision` costs: variance of the KL by document, window and position, coverage at the stop, and seconds."""
