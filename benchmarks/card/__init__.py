"""What `benchmarks/accelerator.py` runs on a card: is it right, what sizes suit it, how fast is it."""
