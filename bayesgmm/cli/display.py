"""What a terminal shows while a comparison runs: the stage, a bar where steps can be counted, and the time left."""

import contextlib
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

from bayesgmm.runtime.progress import steps_in
from bayesgmm.runtime.stopwatch import telling_what_compiles


class _Counted(ProgressColumn):
    """A column of tasks whose steps are counted; of others nothing."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        """The column, or nothing."""
        return self._column(task) if task.total else Text()


class Display:
    """Stages and steps on the error stream: a line that is renewed in a terminal, else a line for each stage."""

    def __init__(self, began: float, *, quiet: bool = False) -> None:
        self._began, self._stage, self._remark = began, "", ""
        self._compiling = contextlib.ExitStack()
        self._swapping = threading.Lock()  # programs are compiled in a thread too, and its messages come at any time
        self._console = Console(stderr=True, quiet=quiet)
        counted = (BarColumn(24), MofNCompleteColumn(), Remaining())
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *map(_Counted, counted), Elapsed())
        self._bars = Progress(*columns, console=self._console, transient=True, disable=quiet)
        self._task = self._bars.add_task("starting", total=None)

    def __enter__(self) -> Self:
        """Show it, in a terminal."""
        if self._console.is_terminal:
            self._bars.start()
            self._compiling.enter_context(telling_what_compiles(self._compile))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take it down, whatever happened."""
        self._compiling.close()
        self._bars.stop()

    def stage(self, sentence: str) -> None:
        """Say what begins now; its steps, if it has any, are counted anew."""
        self._stage, self._remark = sentence, ""
        with self._swapping:
            self._bars.remove_task(self._task)
            self._task = self._bars.add_task(sentence, total=None)
        if not self._console.is_terminal:
            elapsed = time.perf_counter() - self._began
            self._console.print(f"[{elapsed:5.1f} s] {sentence}", markup=False, highlight=False)

    def step(self, sentence: str) -> None:
        """Say how far the stage has got; a sentence such as "nuts: 300 of 1300, no divergences" moves the bar."""
        if (steps := steps_in(sentence)) is None:
            self._bars.update(self._task, description=sentence)
            return
        self._remark = f", {steps.remark}" if steps.remark else ""
        words = f"{self._stage}{self._remark}"
        self._bars.update(self._task, completed=steps.done, total=steps.total, description=words)

    def _compile(self, program: str) -> None:
        """Say which program is being compiled, for this stage or ahead; "" once it is."""
        compiling = f", compiling {program}" if program else ""
        with self._swapping:
            self._bars.update(self._task, description=f"{self._stage or 'starting'}{self._remark}{compiling}")
