"""The consoles of the command line: everything a command prints goes through them.

Text is text. Nothing in it is markup, an emoji code or a link, and characters that act on a terminal are written as escapes
(see printable), also where they come in a table or a progress bar. Line breaks are kept, as they lay out what is printed:
names and other text from outside are put into a line with `printable`, and get a style with `styled`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from depthscope.printable import ACTING, printable

LONGEST_LINE = 4000
"""Characters of a line of an error message that are shown."""


class PlainConsole(Console):
    """A console for which text has no meaning beyond itself."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed; those of text without characters that act on a terminal."""
        for segment in super().render(renderable, options):
            if segment.control or not ACTING.search(segment.text):
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)

    def on_broken_pipe(self) -> None:
        """Print nothing any more: a reader that has gone ends no command."""
        self.quiet = True


console = PlainConsole()
errors_console = PlainConsole(stderr=True)


def styled(text: object, style: str) -> Text:
    """Text from anywhere in a style, such as `bold`."""
    return Text(printable(text), style)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show on a terminal that something is being done."""
    with errors_console.status(Text(printable(what))):
        yield


def print_note(message: object) -> None:
    """Print, apart from the results, what a user may want to know about them."""
    errors_console.print(Text.assemble(("note:", "bold yellow"), " ", printable(message)), soft_wrap=True)


def print_error(message: object, given: Sequence[str] = (), label: str = "error") -> None:
    """Print an error message, whose first line says what is wrong.

    Line breaks in what was `given` on the command line are written as escapes, and further lines are indented, so that nothing
    in a name can look like a message of its own.
    """
    text = str(message)
    for name in given:
        text = text.replace(name, printable(name)) if ACTING.search(name) else text
    first, *rest = (line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in text.split("\n"))
    errors_console.print(Text.assemble((f"{label}:", "bold red"), " ", printable(first)), soft_wrap=True)
    for line in rest:
        errors_console.print("  " + printable(line).removeprefix("  "), soft_wrap=True)
