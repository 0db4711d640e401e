"""The stages of inference: signals over layers, the paper's signatures, and finding the boundaries."""
