"""Where the command line prints."""

from rich.console import Console

console = Console()
errors_console = Console(stderr=True)
