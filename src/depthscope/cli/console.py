"""The consoles of the command line. Emoji codes are off: names of models and files may contain them, as in hf:a:b."""

from rich.console import Console

console = Console(emoji=False)
errors_console = Console(stderr=True, emoji=False)
