"""Controls of the stage finder: how often it names stages where there are none, and how often it finds planted ones."""
