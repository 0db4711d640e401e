"""Runs: one directory per study, with a manifest, atomic shards, and tables made from the shards. Resumable."""
