"""How long a run lasts, apart from what it waits for programs to be compiled, as JAX's own events report."""

import contextvars
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, Self

import jax

_COMPILING = {
    f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
}
_LOWERED, _COMPILED = (f"/jax/core/compile/{name}_duration" for name in ("jaxpr_to_mlir_module", "backend_compile"))
_OWNER: contextvars.ContextVar[str | None] = contextvars.ContextVar("owner", default=None)
_running: list["Stopwatch"] = []
_watching: list[Callable[[str], None]] = []
_lock = threading.Lock()


class Seconds(NamedTuple):
    """What a run took; the sum is its wall time."""

    computing: float
    compiling: float


class Stopwatch:
    """Seconds of the run of this name from its start, or the last `restart`, to the end of the block.

    A moment counts as compiling if a program was traced, lowered or compiled in it, in whatever thread: once, however
    many were. What is compiled ahead for another run does not count (`ahead_for`); what is for this one counts from the
    run's start, and a little of it may have overlapped with work on the host.
    """

    def __init__(self, name: str) -> None:
        self._name, self._intervals = name, list[tuple[float, float]]()
        self._began, self._ended = 0.0, float("inf")

    def __enter__(self) -> Self:
        _listen_once()
        with _lock:
            _running.append(self)
        self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = time.perf_counter()
        with _lock:
            _running.remove(self)

    def restart(self) -> None:
        """Forget what was before."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> Seconds:
        """So far, or up to the end of the block."""
        ended = min(self._ended, time.perf_counter())
        compiling, reached = 0.0, self._began
        for begun, end in sorted(self._intervals):
            compiling += max(0.0, min(end, ended) - max(begun, reached))
            reached = max(reached, end)
        return Seconds(ended - self._began - compiling, compiling)

    def add(self, seconds: float, owner: str | None) -> None:
        """Count an event that has ended just now."""
        if owner in (None, self._name):
            end = time.perf_counter()
            self._intervals.append((end - seconds, end))


@contextmanager
def telling_what_compiles(tell: Callable[[str], None]) -> Iterator[None]:
    """Call a function with the name of each program when its compilation begins, and with "" when it has ended."""
    _listen_once()
    with _lock:
        _watching.append(tell)
    try:
        yield
    finally:
        with _lock:
            _watching.remove(tell)


@contextmanager
def ahead_for(name: str) -> Iterator[None]:
    """What is compiled ahead inside the block is for the run of this name."""
    token = _OWNER.set(name)
    try:
        yield
    finally:
        _OWNER.reset(token)


def with_owner(function: Callable[[], None]) -> Callable[[], None]:
    """The function, for a thread: what it compiles is for whom the caller compiles."""
    return functools.partial(contextvars.copy_context().run, function)


@functools.cache
def _listen_once() -> None:
    """Register the listener, which stays: JAX has no public way to remove one."""
    jax.monitoring.register_event_duration_secs_listener(_listen)


def _listen(event: str, duration_secs: float, **about: str | int) -> None:
    if event in _COMPILING:
        with _lock:
            for stopwatch in _running:
                stopwatch.add(duration_secs, _OWNER.get())
            told = list(_watching) if event in (_LOWERED, _COMPILED) else []
        for tell in told:
            tell(_in_words(str(about.get("fun_name", ""))) if event == _LOWERED else "")


def _in_words(fun_name: str) -> str:
    """The name of a program, such as "jit(_run_each)", as a person reads it."""
    return fun_name.removeprefix("jit(").removesuffix(")").strip("_").replace("_", " ") or "a program"
