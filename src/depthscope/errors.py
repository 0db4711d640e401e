"""The exception tree. Every error a user can cause states what was expected, what was found, and where.

A broken internal invariant is an `assert`, never one of these.
"""

from collections.abc import Mapping

PANIC = "PanicException"
"""Name of the class that libraries written in Rust raise for a broken assumption, such as a pattern that takes too many steps.

It cannot be imported, and is no Exception."""


class DepthscopeError(Exception):
    """Root of all errors a user can cause. The command line prints its message without a traceback and exits with 2."""


class RouteError(DepthscopeError):
    """A route or an edit that cannot be read or applied."""


class ModelError(DepthscopeError):
    """A model that cannot be found, loaded or trusted."""


class UnsupportedError(ModelError):
    """The model lacks what one experiment needs: that experiment cannot be run on it, the others can."""


class VerificationError(ModelError):
    """Replay does not reproduce the model's logits, so no measurement would be about this model."""


class DataError(DepthscopeError):
    """Text or token ids that cannot be used."""


class NumericError(DepthscopeError):
    """NaN or infinity where a number was expected."""


class MemoryShortError(DepthscopeError):
    """Not enough memory for even the smallest piece of work."""


class RunError(DepthscopeError):
    """A run directory that cannot be used as requested."""


class DamagedError(RunError):
    """A file of a run is not what was written there: changed, cut, or put in another's place."""


class DamageWarning(UserWarning):
    """Something stored was damaged or lost, and is computed or written again."""


class RemoteWarning(UserWarning):
    """Results that were to be at a URL are not all there: some are on this machine only."""


class RunMismatchError(RunError):
    """The run directory was made with other settings; `differences` maps each to (stored value, requested value).

    `advice` says what to do.
    """

    def __init__(
        self,
        directory: str,
        differences: Mapping[str, tuple[object, object]],
        advice: str = "Use the same settings to resume it, or give another --out.",
    ) -> None:
        self.differences = differences
        lines = "\n".join(
            f"  {key}: {there!r} stored, {asked!r} requested" for key, (there, asked) in differences.items()
        )
        super().__init__(f"{directory} holds a run made with other settings:\n{lines}\n{advice}")
