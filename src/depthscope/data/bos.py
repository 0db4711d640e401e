"""What goes before each window: the policies for the tokenizer's BOS token. Imports no torch."""

from depthscope.errors import DataError

AUTO, NONE, WINDOW = "auto", "none", "window"
"""As the tokenizer does by itself; never; always."""
POLICIES = (AUTO, NONE, WINDOW)


def check_bos(policy: str) -> None:
    """Raise DataError for an unknown policy."""
    if policy not in POLICIES:
        raise DataError(f"unknown BOS policy {policy!r}: expected auto, none or window")
