"""Protocols: which of the two is followed where the paper's text and its published script differ."""

from depthscope.errors import DepthscopeError
from depthscope.schema.declaration import Option

TEXT, LAD2024 = "text", "lad2024"
PROTOCOLS = {
    TEXT: "the paper's text",
    LAD2024: "the script published with the paper's first version, errors included",
}


def check_protocol(name: str) -> None:
    """Raise DepthscopeError for an unknown protocol."""
    if name not in PROTOCOLS:
        raise DepthscopeError(f"unknown protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")


PROTOCOL = Option(
    name="protocol",
    type=str,
    default=TEXT,
    help="What to follow where the paper's text and its first script differ: text, or lad2024 (the script, for comparison).",
    check=check_protocol,
)
