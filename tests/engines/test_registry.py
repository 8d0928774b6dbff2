"""The table of engines: what a signature says once holds everywhere, and a new engine touches no other file."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import fits
import jax
import numpy as np
import pytest
from helpers import DATA

import bayesgmm
from bayesgmm.comparison.tables import engine_table
from bayesgmm.engines import registry
from bayesgmm.engines.em import fit_em
from bayesgmm.engines.fit import warn_or_raise
from bayesgmm.engines.registry import ENGINES, Count, OnFailure, engine
from bayesgmm.plots import plot_traces


@pytest.fixture
def toy():
    """An engine in ten lines: EM from where it starts, for as many steps as it is told."""

    @engine("toy", label="Toy", method="A toy", gives="point", prior="none", trace="toy objective")
    def fit_toy(
        x: Any, num_components: Count, *, family: Any = "full", start: Any, num_toys: Count = 3, on_failure: OnFailure
    ):
        """Fit for a test.

        Args:
            num_toys: steps that it takes.
        """
        fit = fit_em(x, num_components, family=family, start=start, max_steps=num_toys, tol=0.0, on_failure="ignore")
        return dataclasses.replace(fit, engine="toy")

    yield fit_toy
    del registry._RECORDS["toy"]


def test_a_new_engine_runs_through_a_comparison(toy, key):
    x = DATA["galaxies"]
    found = bayesgmm.compare(x, 2, engines=["em", "toy"], key=key, settings={"toy": {"num_toys": 2}})
    assert list(found.fits) == list(found.table["engine"]) == list(found.diagnoses) == ["em", "toy"]
    assert int(found.fits["toy"].num_steps) == 2
    assert np.isfinite(found.table["bic"]).all()
    assert list(engine_table(found)["engine"]) == ["em", "toy"]
    panels = plot_traces(found.fits)
    assert (panels[1].get_title(), panels[1].get_ylabel()) == ("A toy", "toy objective")
    for settings in ({"num_toys": 0}, {"num_toys": 1.5}):
        with pytest.raises(bayesgmm.InputError, match=r"num_toys=.* must be a whole number of at least 1"):
            bayesgmm.compare(x, 2, engines=["toy"], key=key, settings={"toy": settings})
        with pytest.raises(bayesgmm.InputError, match=r"num_toys=.* must be a whole number of at least 1"):
            toy(x, 2, start=found.fits["em"].mixture, on_failure="warn", **settings)
        with pytest.raises(ValueError, match=r"num_toys=.* must be a whole number of at least 1"):
            ENGINES["toy"].settings(**settings)
    field = ENGINES["toy"].settings.model_fields["num_toys"]
    assert (field.default, field.description) == (3, "steps that it takes")


def test_it_leaves_no_trace():
    assert "toy" not in ENGINES
    assert list(ENGINES) == ["em", "map", "vi", "cavi", "gibbs", "nuts", "kmeans"]


def test_a_fit_by_an_engine_that_is_not_registered():
    """Read from a file, say, in a session that has not imported the engine."""
    fit = dataclasses.replace(fits.em("galaxies", 2), engine="toy")
    for use in (bayesgmm.uncertainty, lambda fit, _: plot_traces({"toy": fit})):
        with pytest.raises(bayesgmm.InputError, match=r"engine='toy' is not known; .*import the module that registers"):
            use(fit, DATA["galaxies"])


@pytest.mark.parametrize("name", ["em", "map", "vi", "cavi", "gibbs", "nuts", "kmeans"])
def test_settings_are_those_of_the_function(name):
    record = ENGINES[name]
    assert record.fit is getattr(bayesgmm, f"fit_{name}")
    parameters = inspect.signature(record.fit).parameters
    fields = record.settings.model_fields
    assert fields
    for setting, field in fields.items():
        assert field.default == parameters[setting].default
        assert field.description, f"{setting} is not in the docstring of fit_{name}"
    defaults = record.settings().model_dump()
    assert record.check(defaults) == defaults
    shared = {"x", "num_components", "family", "prior", "key", "start", "row_weights", "progress", "checkpoint"}
    assert not set(fields) & set(record.start_settings)
    assert set(parameters) - set(fields) <= shared | {"on_failure", *record.start_settings}


def test_no_setting_of_an_engine_that_is_not_run(key):
    with pytest.raises(bayesgmm.InputError, match="settings has 'vi', which is none of the engines em, map; drop it"):
        bayesgmm.compare(DATA["galaxies"], 2, engines=["map"], key=key, settings={"vi": {}})


def test_a_warning_points_to_the_line_that_called_the_package():
    """However deep in the package it arises: standard errors of a comparison are warned about as a fit is."""
    inside = Path(bayesgmm.__file__).with_name("anything.py")
    names = {"warn": inspect.unwrap(warn_or_raise)}
    exec(compile("def within():\n    warn('something', 'warn')", inside, "exec"), names)
    with pytest.warns(bayesgmm.FitWarning, match="something") as caught:
        names["within"]()
    assert caught[0].filename == __file__
    with pytest.raises(RuntimeError, match="something"):
        warn_or_raise("something", "raise")
    warn_or_raise("something", "ignore")
    assert "stacklevel" not in inspect.getsource(inspect.unwrap(bayesgmm.uncertainty))


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "em"])
def test_an_engine_that_cannot_be_traced_says_so_at_once(name):
    """In one line, before anything is computed."""
    record = ENGINES[name]

    def fit(x):
        return record.fit(x, 2, key=jax.random.key(0))

    for transformation in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(bayesgmm.InputError, match=rf"fit_{name} cannot run inside jit, vmap or grad; .*fit_em"):
            transformation(fit)(DATA["galaxies"])
