"""From the arguments of a command to its exit status: whatever happens between ends as one message, without a traceback.

0: done. 1: a check failed, or an error that is a bug. 2: something a user can put right. 128 + N: stopped by signal N.
`--debug` shows the traceback of any error.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from depthscope.cli.console import errors_console, print_error, print_note
from depthscope.cli.signals import INTERRUPTED, received
from depthscope.cli.streams import guarded_output
from depthscope.errors import DamageWarning, DepthscopeError, RemoteWarning
from depthscope.printable import first_line

DEBUG = "--debug"
PLUGINS = "depthscope"
"""The entry point group loaded before the commands are built: installed packages register experiments through it."""
BUG, REFUSED = 1, 2
UsageError: Any = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException")
"""What typer raises for arguments that it cannot read. It comes from click, or from a copy of it in newer versions of typer."""


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status. Raises what went wrong only with --debug, and KeyboardInterrupt."""
    debug = DEBUG in arguments
    warnings.showwarning = _showing_results(warnings.showwarning)
    with guarded_output():
        try:
            return _command([argument for argument in arguments if argument != DEBUG])
        except UsageError as error:
            return _refuse_usage(error, arguments)
        except BaseException as error:
            # Whatever was interrupted may have made another error of it.
            if (stopped := received()) is not None and isinstance(error, Exception):
                return stopped
            if debug or not (isinstance(error, Exception) or _is_panic(error)):
                raise
            with suppress(OSError):  # nothing more can be said where standard error cannot be written
                return _explain(error, arguments)
            return BUG


def _command(arguments: Sequence[str]) -> int:
    from depthscope.cli.commands import build_app

    for plugin in entry_points(group=PLUGINS):
        _load(plugin)
    found = build_app()(list(arguments), standalone_mode=False, prog_name="depthscope")
    sys.stdout.flush()
    status = found if isinstance(found, int) else 0
    return received() or status if status == INTERRUPTED else status


def _load(plugin: EntryPoint) -> None:
    try:
        plugin.load()
    except DepthscopeError:
        raise
    except Exception as error:
        raise DepthscopeError(
            f"the plugin {plugin.name} ({plugin.value}) cannot be loaded: {type(error).__name__}: {first_line(error)}. "
            "Update it, or uninstall its package"
        ) from error


def _refuse_usage(error: Exception, arguments: Sequence[str]) -> int:
    """Say which argument cannot be read, as typer words it."""
    context, message = getattr(error, "ctx", None), getattr(error, "format_message", lambda: str(error))()
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, which has been printed if it is empty
        if message:
            errors_console.print(message)
        return REFUSED
    if context is not None:
        errors_console.print(context.get_usage(), soft_wrap=True)
        errors_console.print(f"Try '{context.command_path} --help' for help.", soft_wrap=True)
    print_error(message, _names(arguments))
    return REFUSED


def _names(arguments: Sequence[str]) -> list[str]:
    """What was given on the command line, of `--option=value` the value too."""
    return [part for argument in arguments for part in (argument, argument.partition("=")[2]) if part]


def _explain(error: BaseException, arguments: Sequence[str]) -> int:
    given = _names(arguments)
    if isinstance(error, DepthscopeError):
        print_error(error, given)
        return REFUSED
    if _short_of_memory(error):
        from depthscope.models.memory import available_memory, in_units

        left = available_memory()
        available = "" if left is None else f", {in_units(left)} are available"
        print_error(
            f"not enough memory to start{available}. Raise the limit (ulimit -v, or that of the container), or choose a "
            "smaller model, --window or --tokens"
        )
        return REFUSED
    if isinstance(error, OSError):  # of a disk, a file or a network, not of this program
        where = f"{error.filename}: " if error.filename else ""
        print_error(f"{where}{error.strerror or first_line(error)}", given)
        return REFUSED
    print_error(
        f"{type(error).__name__}: {first_line(error)}\nThis is a bug in depthscope or a plugin. Run the same command with "
        f"{DEBUG} to see where, and report it with that",
        given,
        label="unexpected error",
    )
    return BUG


def _short_of_memory(error: BaseException) -> bool:
    from depthscope.models.memory import short_of_memory

    return short_of_memory(error)


def _showing_results(others: Callable[..., None]) -> Callable[..., None]:
    """How warnings are shown: of results in one line, without the place in the code; `others` shows the rest."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DamageWarning | RemoteWarning):
            print_note(message)
        else:
            others(message, category, *place, **more)

    return show


def _is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has given up. That is no Exception to Python, and yet no reason to say nothing."""
    return type(error).__name__ == "PanicException"
