"""A fit prints as a person reads it, in a terminal and in a notebook; inside a program it prints as what it is."""

import dataclasses

import fits
import jax
import numpy as np
import pytest

import bayesgmm
from bayesgmm.errors import InputError


def test_a_point_prints_with_how_it_ended_and_its_parameters():
    fit = fits.em("faithful", 2)
    first, *lines = str(fit).splitlines()
    assert first.startswith("EM, 2 components of family full; log-likelihood -1130.26; ")
    assert first.endswith("steps, converged")
    assert lines[0].startswith("  cluster 0: weight 0.3559, mean x0 2.036")
    assert len(lines) == 2
    page = fit._repr_html_()
    assert "<th>cluster 1</th>" in page
    assert "weight 0.6441" in page


def test_draws_print_with_their_spread():
    fit = fits.nuts("faithful", 2)
    assert "R-hat 1.0" in str(fit)
    assert "± 0.0" in str(fit)
    table = fit.summary_table(["eruptions", "waiting"]).set_index(["cluster", "quantity"])
    draws = fit.draws.means[..., 0, 1].ravel()
    line = table.loc["0", "mean waiting"]
    assert line["value"] == pytest.approx(draws.mean())
    assert line["sd"] == pytest.approx(draws.std(ddof=1))
    assert (line["low"], line["high"]) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    with pytest.raises(InputError, match="feature_names"):
        fit.summary_table(["eruptions"])


def test_what_is_certain_has_no_spread_of_rounding():
    """The weight of the only component, whose draws differ from 1 by rounding."""
    fit, rng = fits.em("faithful", 2), np.random.default_rng(0)
    one = bayesgmm.Mixture(np.zeros(1), *(np.asarray(leaf)[:1] for leaf in jax.tree.leaves(fit.mixture)[1:]))
    draws = bayesgmm.Mixture(
        1e-16 * rng.normal(size=(1, 50, 1)),
        one.means + 0.01 * rng.normal(size=(1, 50, 1, 2)),
        np.broadcast_to(one.precision_factor, (1, 50, 1, 2, 2)),
    )
    fit = dataclasses.replace(fit, mixture=one, draws=draws)
    assert "weight 1, mean" in str(fit)
    assert fit.summary_table()["sd"][0] == 0


def test_many_components_are_cut_short():
    weights = np.full(30, 1 / 30)
    mixture = bayesgmm.Mixture.from_covariances(weights, np.arange(30.0)[:, None], np.ones((30, 1, 1)))
    fit = dataclasses.replace(fits.em("faithful", 2), mixture=mixture)
    assert str(fit).splitlines()[-1] == "  ...: and 6 more"


def test_inside_a_program_and_of_several_fits_it_prints_as_it_is():
    fit = fits.em("faithful", 2)
    told = []

    @jax.jit
    def look(number):
        one = dataclasses.replace(fit, result=number)
        told.append((str(one), one._repr_html_()))
        return number

    look(np.int32(0))
    assert told[0][0].startswith("Fit(")
    assert told[0][1].startswith("<pre>Fit(")
    several = dataclasses.replace(fit, result=np.zeros(3, np.int32))
    assert str(several).startswith("Fit(")
    with pytest.raises(InputError, match="3 fits"):
        several.summary_table()
