"""The recipe of the embedded bookshelf models: tokenizer, token map, training, export, evaluation, model card."""
