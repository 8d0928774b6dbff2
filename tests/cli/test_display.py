"""What a terminal shows while a comparison runs."""

import time

import pytest
from rich.console import Console

from bayesgmm.cli.display import Display
from bayesgmm.runtime import stopwatch

LOWERED, COMPILED = (f"/jax/core/compile/{name}_duration" for name in ("jaxpr_to_mlir_module", "backend_compile"))


@pytest.fixture
def terminal():
    display = Display(time.perf_counter())
    display._console = Console(stderr=True, force_terminal=True, width=120)
    display._bars.live.console = display._console
    return display


def shown(display):
    with display._console.capture() as capture:
        display._console.print(display._bars.get_renderable())
    return capture.get()


def test_a_stage_has_no_bar_and_steps_have_one(terminal):
    terminal.stage("nuts, k = 2")
    assert "nuts, k = 2" in shown(terminal)
    assert "/" not in shown(terminal)
    terminal.step("nuts: 300 of 1300, 2 divergences")
    text = shown(terminal)
    assert "nuts, k = 2, 2 divergences" in text
    assert "300/1300" in text
    terminal.stage("vi (normal), k = 2")
    assert "1300" not in shown(terminal)
    terminal.step("a sentence [of its own]")
    assert "a sentence [of its own]" in shown(terminal)


def test_without_a_terminal_each_stage_is_a_line(capsys):
    with Display(time.perf_counter()) as display:
        display.stage("EM, k = 1")
        display.step("nuts: 300 of 1300")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.strip().endswith("s] EM, k = 1")


def test_nothing_is_shown_where_that_is_wanted(capsys):
    with Display(time.perf_counter(), quiet=True) as display:
        display.stage("EM, k = 1")
    assert capsys.readouterr().err == ""


def test_what_is_being_compiled_is_shown_until_it_is(terminal):
    with terminal:
        terminal.stage("nuts, k = 2")
        stopwatch._listen(LOWERED, 0.1, fun_name="jit(_run_each)")
        assert "nuts, k = 2, compiling run each" in shown(terminal)
        stopwatch._listen(COMPILED, 0.1, fun_name="jit(_run_each)")
        assert "compiling" not in shown(terminal)
    stopwatch._listen(LOWERED, 0.1, fun_name="jit(f)")  # nobody is told any more
    assert "compiling" not in shown(terminal)
