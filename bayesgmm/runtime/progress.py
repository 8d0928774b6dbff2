"""How far a long run has come: a bar for people, or a sentence for the caller's own display."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import shown

Listener = Callable[[str], None]


def check_progress(progress: Any) -> Any:
    """Check the argument of that name.

    Raises:
        InputError: for anything but True, False, None and functions.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise InputError(f"progress={shown(progress)} must be True for a bar, or a function of a sentence")
    return progress


class Progress:
    """Told how many steps of how many are done; shows a bar, calls a function, or does nothing."""

    def __init__(self, what: str, progress: bool | Listener | None) -> None:
        self._what = what
        self._listener = progress if callable(progress) else None
        self._wanted = progress is True
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Shows the bar, where one is wanted."""
        if self._wanted:
            from rich import progress

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[remark]}"),
            )
            from rich.console import Console

            self._bar = progress.Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self._what, total=None, remark="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Takes the bar down, whatever happened."""
        if self._bar is not None:
            self._bar.stop()

    def tell(self, done: int, total: int, remark: str = "") -> None:
        """So many steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, remark=remark)
        if self._listener is not None:
            self._listener(f"{self._what}: {done} of {total}" + (f", {remark}" if remark else ""))
