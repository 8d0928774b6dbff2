"""Progress of a long run: a bar for people, or a sentence for the caller's own display.

In a notebook whatever takes more than two seconds has a bar without being asked: one that counts where steps can be
counted, else one that moves.
"""

import contextlib
import contextvars
import functools
import html
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
_EVERY = 1.0  # seconds after which it shows the time anew, whatever is told

_SHOWN: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("shown", default=None)  # of what is there


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
    """A line and a bar below the cell of a notebook, from two seconds on; at the end they are gone.

    A thread keeps them moving while nothing is told: one program may take long.
    """

    def __init__(self) -> None:
        self._began, self._stage = time.monotonic(), ""
        self._words, self._steps = "", Steps(0, 0, "")
        self._handle: DisplayHandle | None = None
        self._over, self._showing = threading.Event(), threading.Lock()
        self._outer: contextvars.Token[Listener | None] | None = None

    def __enter__(self) -> Self:
        """Begin to wait."""
        self._began = time.monotonic()
        self._outer = _SHOWN.set(self.step)
        threading.Thread(target=self._keep_moving, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take it away, whatever happened."""
        if self._outer is not None:
            _SHOWN.reset(self._outer)
        with self._showing:
            self._over.set()
            if self._handle is not None:
                self._show("")

    def stage(self, sentence: str) -> None:
        """Say what begins now."""
        self._stage = sentence
        self._tell(sentence, Steps(0, 0, ""))

    def step(self, sentence: str) -> None:
        """Say how far the stage has got."""
        steps = steps_in(sentence)
        words = sentence if steps is None else self._stage or sentence.partition(":")[0]
        self._tell(words, steps or Steps(0, 0, ""))

    def _tell(self, words: str, steps: Steps) -> None:
        self._words, self._steps = words, steps
        self._renew()

    def _keep_moving(self) -> None:
        while not self._over.wait(_EVERY):
            self._renew()

    def _renew(self) -> None:
        with self._showing:
            elapsed = time.monotonic() - self._began
            if elapsed < _PATIENCE or self._over.is_set():
                return
            steps, known, counted = self._steps, "", ""
            if steps.total:
                known = f'value="{steps.done}" max="{steps.total}" '
                counted = f"{steps.done} of {steps.total}, "
            remark = f"{html.escape(steps.remark)}, " if steps.remark else ""
            bar = f'<progress {known}style="vertical-align: middle"></progress>'
            line = f"{html.escape(self._words)} {bar} {counted}{remark}{elapsed:.0f} s"
            self._show(f'<span style="font-family: sans-serif; font-size: 90%">{line}</span>')

    def _show(self, content: str) -> None:
        from IPython.display import display

        shown = {"text/html": content, "text/plain": ""}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def _own_display(progress: object) -> NotebookDisplay | None:
    """A display for what begins now: in a notebook, where none is there and neither "no" nor a function is given."""
    wanted = progress in (True, None) and _SHOWN.get() is None and in_notebook()
    return NotebookDisplay() if wanted else None


@contextlib.contextmanager
def shown_by(listener: Listener | None) -> Iterator[None]:
    """What counts steps in the block, and has no listener of its own, tells them this one."""
    token = _SHOWN.set(listener)
    try:
        yield
    finally:
        _SHOWN.reset(token)


@contextlib.contextmanager
def waiting(what: str, progress: object = None) -> Iterator[None]:
    """In a notebook a bar for the block, unless there is one already."""
    if (display := _own_display(progress)) is None:
        yield
        return
    with display:
        display.stage(what)
        yield


def waited_for[**P, R](what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that may take long: in a notebook it has a bar of this name."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def with_bar(*args: P.args, **keywords: P.kwargs) -> R:
            with waiting(what):
                return function(*args, **keywords)

        return with_bar

    return decorate


class Progress:
    """A display of steps done: a bar, calls of a function with a sentence, or nothing."""

    def __init__(self, what: str, progress: bool | Listener | None) -> None:
        self._what = what
        self._own = _own_display(progress)
        self._listener = progress if callable(progress) else None
        if progress in (True, None):
            self._listener = _SHOWN.get() if self._own is None else self._own.step
        self._wanted = progress is True and self._listener is None
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        """Show the bar, where one was asked for."""
        if self._own is not None:
            self._own.__enter__()
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
        if self._own is not None:
            self._own.__exit__(kind, error, traceback)
        if self._bar is not None:
            self._bar.stop()

    def tell(self, done: int, total: int, remark: str = "") -> None:
        """Report that so many steps are done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, remark=remark)
        if self._listener is not None:
            self._listener(f"{self._what}: {done} of {total}" + (f", {remark}" if remark else ""))
