"""Bars of long runs: what is asked for, and what a notebook has by itself."""

import threading

import jax
import pytest
from helpers import DATA

import bayesgmm
from bayesgmm.comparison import comparing
from bayesgmm.engines.registry import ENGINES
from bayesgmm.runtime import progress
from bayesgmm.runtime.progress import NotebookDisplay, Progress, Steps, in_notebook, steps_in


@pytest.fixture
def cell(monkeypatch):
    """What a notebook shows below a cell, and a clock that stands until it is moved."""
    import IPython.display

    class Cell:
        now, shown = 50.0, None

        def display(self, content, *, raw, display_id):
            assert display_id
            self.update(content, raw=raw)
            return self

        def update(self, content, *, raw):
            assert raw
            assert content["text/plain"] == ""
            self.shown = content["text/html"]

    found = Cell()
    monkeypatch.setattr(IPython.display, "display", found.display)
    monkeypatch.setattr(progress.time, "monotonic", lambda: found.now)
    return found


def test_steps_are_read_from_the_sentence_of_a_listener():
    told = []
    with Progress("nuts, k = 2", told.append) as display:
        display.tell(300, 1300, "no divergences")
        display.tell(1300, 1300)
    assert list(map(steps_in, told)) == [Steps(300, 1300, "no divergences"), Steps(1300, 1300, "")]
    assert steps_in("further EM optima, k = 2") is None


def test_a_notebook_shows_nothing_for_two_seconds_then_a_bar_which_goes(cell):
    with NotebookDisplay() as display:
        display.stage("nuts, k = 2 < 3")
        display.step("nuts: 1 of 10")
        assert cell.shown is None
        cell.now += 3.4
        display.step("nuts: 4 of 10, 2 divergences")
        assert "nuts, k = 2 &lt; 3 <progress" in cell.shown
        assert 'value="4" max="10"' in cell.shown
        assert "4 of 10, 2 divergences, 3 s" in cell.shown
        display.stage("diagnoses")
        assert "diagnoses <progress style" in cell.shown  # which has no value, and moves
        assert cell.shown.endswith("3 s</span>")
    assert cell.shown == ""


@pytest.mark.parametrize(("wanted", "seen"), [(None, True), (True, True), (False, False)])
def test_a_sampler_in_a_notebook_has_a_bar_unless_it_is_not_wanted(wanted, seen, cell, monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    with Progress("gibbs, k = 2", wanted) as display:
        cell.now += 5.0
        display.tell(3, 10)
        assert (cell.shown is not None) == seen
    assert cell.shown == ("" if seen else None)


def test_a_comparison_in_a_notebook_shows_its_stages(cell, monkeypatch):
    monkeypatch.setattr(comparing, "in_notebook", lambda: True)
    seen = []
    monkeypatch.setattr(NotebookDisplay, "stage", lambda self, sentence: seen.append(sentence))
    bayesgmm.compare(DATA["galaxies"], 2, engines=["em"], key=jax.random.key(0))
    assert seen[0] == "EM, k = 2"
    assert not in_notebook()
    told = []
    bayesgmm.compare(DATA["galaxies"], 2, engines=["em"], key=jax.random.key(0), on_progress=told.append)
    assert told == seen


def test_what_tells_nothing_has_a_bar_that_moves_and_what_it_calls_has_no_other(cell, monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "_EVERY", 0.01)
    shown = threading.Event()
    show = NotebookDisplay._show
    monkeypatch.setattr(NotebookDisplay, "_show", lambda self, content: (show(self, content), shown.set()))
    with progress.waiting("MAP, k = 3"):
        cell.now += 4.2
        assert shown.wait(10.0)
        assert "MAP, k = 3 <progress style" in cell.shown
        with progress.waiting("diagnosis"), Progress("nuts, k = 3", None) as inner:
            inner.tell(2, 5)
            assert 'MAP, k = 3 <progress value="2" max="5"' in cell.shown
        assert cell.shown != ""
    assert cell.shown == ""
    with progress.waiting("MAP, k = 3", progress=False):
        assert progress._SHOWN.get() is None


@pytest.mark.parametrize(
    ("name", "options"),
    [("em", {}), ("map", {}), ("cavi", {"num_draws": 0}), ("kmeans", {})],
)
def test_every_engine_shows_that_it_runs(name, options, cell, monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    stages = []
    monkeypatch.setattr(NotebookDisplay, "stage", lambda self, sentence: stages.append(sentence))
    engine = ENGINES[name]
    fit = engine.fit(DATA["galaxies"], 2, key=jax.random.key(0), **options)
    if name == "em":
        bayesgmm.uncertainty(fit, DATA["galaxies"])
        bayesgmm.diagnose(fit, DATA["galaxies"])
    assert stages == [f"{engine.label}, k = 2"] + ["standard errors", "diagnosis"] * (name == "em")
    assert progress._SHOWN.get() is None


def test_em_of_many_rows_counts_its_starts(cell, monkeypatch, rng):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    told = []
    monkeypatch.setattr(NotebookDisplay, "step", lambda self, sentence: told.append(steps_in(sentence)))
    bayesgmm.fit_em(rng.normal(size=(40_000, 2)), 2, key=jax.random.key(0), num_restarts=3)
    assert [steps.done for steps in told] == [0, 1, 2, 3, 4]
    assert {steps.total for steps in told} == {5}
