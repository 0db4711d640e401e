"""The findings page: the paper's claims against runs of several models, rendered from tables kept in the repository."""
