"""Progress of a long run: a bar for people, or a sentence for the caller's own display."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import short_repr

if TYPE_CHECKING:
    import rich.progress

Listener = Callable[[str], None]


def check_progress(progress: object) -> bool | Listener | None:
    """Check the argument `progress`.

    Raises:
        InputError: for anything but True, False, None and functions.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise InputError(f"progress={short_repr(progress)} must be True for a bar, or a function of a sentence")
    return cast("bool | Listener | None", progress)


class Progress:
    """A display of steps done: a bar, calls of a function with a sentence, or nothing."""

    def __init__(self, what: str, progress: bool | Listener | None) -> None:
        self._what = what
        self._listener = progress if callable(progress) else None
        self._wanted = progress is True
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        """Show the bar, where one was asked for."""
        if self._wanted:
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[remark]}"),
            )
            self._bar = progress.Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self._what, total=None, remark="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the bar down, whatever happened."""
        if self._bar is not None:
            self._bar.stop()

    def tell(self, done: int, total: int, remark: str = "") -> None:
        """Report that so many steps are done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, remark=remark)
        if self._listener is not None:
            self._listener(f"{self._what}: {done} of {total}" + (f", {remark}" if remark else ""))
