"""Models whose blocks stay on disk and are read when they run."""
