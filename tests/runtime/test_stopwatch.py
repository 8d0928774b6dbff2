"""Seconds of a run: what it waited for compilation, and the remainder."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from bayesgmm.runtime import stopwatch
from bayesgmm.runtime.stopwatch import Seconds, Stopwatch, ahead_for, with_owner

COMPILE = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved, and events at its time."""

    class Clock:
        now = 100.0

        def event(self, end, seconds, name=COMPILE):
            self.now = 100.0 + end
            stopwatch._listen(name, seconds, fun_name="f")

    found = Clock()
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: found.now)
    return found


def test_the_sum_is_the_wall_time_and_no_moment_counts_twice(clock):
    with Stopwatch("em") as watch:
        clock.event(2.0, 1.0)
        clock.event(2.5, 2.0)  # which another thread, or an inner function, shares with the first
        clock.event(3.0, 0.25, name="/jax/core/compile/jaxpr_trace_duration")
        clock.event(9.0, 5.0, name="/jax/another/duration")
        clock.now = 110.0
    clock.event(12.0, 12.0)  # after its end
    assert watch.seconds == Seconds(computing=10.0 - 2.25, compiling=2.25)


def test_nothing_before_the_start_counts(clock):
    with Stopwatch("em") as watch:
        clock.event(1.0, 4.0)
        assert watch.seconds == Seconds(0.0, 1.0)
        watch.restart()
        clock.event(2.0, 1.5)
        clock.now = 104.0
    assert watch.seconds == Seconds(2.0, 1.0)


def test_what_is_compiled_ahead_counts_for_its_own_run_alone(clock):
    with ahead_for("nuts"):
        compile_ahead = with_owner(lambda: clock.event(3.0, 2.0))
    for name, seconds in {"vi": Seconds(3.0, 0.0), "nuts": Seconds(1.0, 2.0)}.items():
        clock.now = 100.0
        with Stopwatch(name) as watch:
            thread = threading.Thread(target=compile_ahead)
            thread.start()
            thread.join()
        assert watch.seconds == seconds


def test_compilation_of_a_program_is_most_of_its_first_call():
    program = jax.jit(lambda x: jnp.linalg.eigh(x @ x.T + 42.0)[0].sum())
    x = jnp.ones((7, 7))
    began = time.perf_counter()
    with Stopwatch("first") as first:
        program(x).block_until_ready()
    wall = time.perf_counter() - began
    assert 0 < first.seconds.compiling < wall
    assert sum(first.seconds) == pytest.approx(wall, abs=0.01)
    with Stopwatch("second") as second:
        program(x).block_until_ready()
    assert second.seconds.compiling == 0
