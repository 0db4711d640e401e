"""Where the command line prints. Names of models and files may hold what rich would take for an emoji: hf:a:b."""

from rich.console import Console

console = Console(emoji=False)
errors_console = Console(stderr=True, emoji=False)
