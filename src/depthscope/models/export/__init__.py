"""What exporting a route takes of transformers: the configuration of the rebuilt model, its tensors, and loading it again."""
