"""Progress of a long run: a bar for people, or a sentence for the caller's own display.

In a notebook whatever takes more than two seconds has a bar without being asked.
"""

import html
import re
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import short_repr

if TYPE_CHECKING:
    import rich.progress
    from IPython.display import DisplayHandle

Listener = Callable[[str], None]

_STEPS = re.compile(r": (\d+) of (\d+)(?:, (.*))?$")
_PATIENCE = 2.0  # seconds after which a notebook has a bar


def check_progress(progress: object) -> bool | Listener | None:
    """Check the argument `progress`.

    Raises:
        InputError: for anything but True, False, None and functions.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise InputError(f"progress={short_repr(progress)} must be True for a bar, or a function of a sentence")
    return cast("bool | Listener | None", progress)


def in_notebook() -> bool:
    """Whether this process is a notebook's, which IPython's shell tells."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class Steps(NamedTuple):
    """Steps that a sentence counts, such as "nuts: 300 of 1300, no divergences"."""

    done: int
    total: int
    remark: str


def steps_in(sentence: str) -> Steps | None:
    """The steps that a sentence counts, if it does."""
    if (found := _STEPS.search(sentence)) is None:
        return None
    done, total, remark = found.groups()
    return Steps(int(done), int(total), remark or "")


class NotebookDisplay:
    """A line and a bar below the cell of a notebook, from two seconds on; at the end they are gone."""

    def __init__(self) -> None:
        self._began, self._stage = time.monotonic(), ""
        self._handle: DisplayHandle | None = None

    def __enter__(self) -> Self:
        """Begin to wait."""
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take it away, whatever happened."""
        if self._handle is not None:
            self._show("")

    def stage(self, sentence: str) -> None:
        """Say what begins now."""
        self._stage = sentence
        self._tell(sentence, None)

    def step(self, sentence: str) -> None:
        """Say how far the stage has got."""
        steps = steps_in(sentence)
        self._tell((self._stage or sentence) if steps else sentence, steps)

    def _tell(self, words: str, steps: Steps | None) -> None:
        elapsed = time.monotonic() - self._began
        if elapsed < _PATIENCE:
            return
        line = f"{html.escape(words)}, {elapsed:.0f} s"
        if steps is not None:
            counted = f"{steps.done} of {steps.total}" + (f", {html.escape(steps.remark)}" if steps.remark else "")
            bar = f'<progress value="{steps.done}" max="{steps.total}" style="vertical-align: middle"></progress>'
            line = f"{html.escape(words.partition(':')[0])} {bar} {counted}, {elapsed:.0f} s"
        self._show(f'<span style="font-family: sans-serif; font-size: 90%">{line}</span>')

    def _show(self, content: str) -> None:
        from IPython.display import display

        shown = {"text/html": content, "text/plain": ""}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


class Progress:
    """A display of steps done: a bar, calls of a function with a sentence, or nothing."""

    def __init__(self, what: str, progress: bool | Listener | None) -> None:
        self._what = what
        self._listener = progress if callable(progress) else None
        self._notebook = NotebookDisplay() if progress in (True, None) and in_notebook() else None
        self._wanted = progress is True and self._notebook is None
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        """Show the bar, where one was asked for."""
        if self._notebook is not None:
            self._notebook.__enter__()
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
        if self._notebook is not None:
            self._notebook.__exit__(kind, error, traceback)
        if self._bar is not None:
            self._bar.stop()

    def tell(self, done: int, total: int, remark: str = "") -> None:
        """Report that so many steps are done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, remark=remark)
        sentence = f"{self._what}: {done} of {total}" + (f", {remark}" if remark else "")
        for listener in (self._listener, None if self._notebook is None else self._notebook.step):
            if listener is not None:
                listener(sentence)
