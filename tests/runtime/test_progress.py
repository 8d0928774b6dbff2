"""Bars of long runs: what is asked for, and what a notebook has by itself."""

import jax
import pytest
from helpers import DATA

import bayesgmm
from bayesgmm.comparison import comparing
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
        assert "progress" not in cell.shown
        assert "diagnoses, 3 s" in cell.shown
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
