"""Variational inference: close to the posterior where that is nearly normal, and honest about its own stopping."""

import jax
import numpy as np
import pytest
from helpers import DATA

import bayesgmm
from bayesgmm.engines.vi import GUIDES, has_settled, pareto_khat


@pytest.mark.parametrize(
    ("family", "guide"),
    [
        pytest.param(
            family,
            guide,
            marks=[] if guide == "full_rank" or name == "full" else [pytest.mark.slow],
            id=f"{name}-{guide}",
        )
        for name, family in bayesgmm.FAMILIES.items()
        for guide in GUIDES
    ],
)
def test_fits_every_family(family, guide, key):
    x = DATA["faithful"]
    fit = bayesgmm.fit_vi(x, 2, family=family, key=key, guide=guide, num_draws=1000)
    assert fit.code is bayesgmm.ResultCode.successful
    assert fit.draws.draw_shape == (1, 1000)
    assert len(fit.trace) == fit.num_steps
    assert np.isfinite(fit.trace).all()
    # The ELBO rises, and its settled part is flat beside its beginning.
    assert fit.trace[-500:].mean() > fit.trace[:50].mean()
    assert fit.summary["khat"] < 0.9
    # The centre of the approximation is at the mode of a posterior of 272 rows, within two of its own deviations.
    mode = bayesgmm.fit_map(x, 2, family=family, key=key)
    deviation = np.asarray(fit.draws.means).std((0, 1))
    assert (np.abs(fit.mixture.means - mode.mixture.means) < 2 * deviation).all()
    assert float(fit.log_likelihood) == pytest.approx(float(bayesgmm.log_likelihood(fit.mixture, x)))


def test_one_component_has_the_known_posterior(key):
    """k = 1 in one dimension: the posterior sd of the mean is s / sqrt(n), that of the log scale 1 / sqrt(2 n)."""
    x = np.random.default_rng(3).normal(2.0, 3.0, size=(2000, 1))
    fit = bayesgmm.fit_vi(x, 1, key=key, num_draws=4000)
    means, scales = np.asarray(fit.draws.means)[0, :, 0, 0], np.asarray(fit.draws.scales)[0, :, 0, 0]
    assert means.mean() == pytest.approx(x.mean(), abs=0.02)
    assert means.std() == pytest.approx(x.std() / np.sqrt(2000), rel=0.15)
    assert np.log(scales).std() == pytest.approx(1 / np.sqrt(4000), rel=0.15)
    assert fit.summary["khat"] < 0.7


def test_log_q_is_the_density_of_the_draws(key):
    """The importance ratios of a nearly normal posterior are nearly constant: their spread is small."""
    fit = bayesgmm.fit_vi(DATA["faithful"], 2, family="diag", key=key)
    ratios = np.asarray(fit.sample_stats["log_p"] - fit.sample_stats["log_q"])
    assert ratios.shape == (1, 2000)
    assert ratios.std() < 1.0
    # Their mean is the ELBO that the optimiser watched, within Monte Carlo error.
    error = ratios.std() / np.sqrt(ratios.size) + fit.trace[-500:].std() / np.sqrt(500)
    assert abs(ratios.mean() - fit.summary["elbo"]) < 6 * error


def test_step_limit_is_reported_and_progress_told(key):
    told = []
    with pytest.warns(bayesgmm.FitWarning, match="step limit"):
        fit = bayesgmm.fit_vi(DATA["faithful"], 2, key=key, window=100, max_steps=200, progress=told.append)
    assert fit.code is bayesgmm.ResultCode.max_steps_reached
    assert "step 200" in told[-1]


def test_stopping_rule():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(200, 2, 500))
    stops = np.mean([has_settled(before, after) for before, after in flat])
    assert stops > 0.95  # one-sided, at two standard errors
    assert not any(has_settled(before, after + 0.25) for before, after in flat[:50])  # four standard errors
    assert has_settled(np.zeros(500) + flat[0, 0] + 5, flat[0, 1])  # falling is not climbing


def test_khat_of_known_ratios():
    """Ratios of a normal target to a narrower normal of variance s^2 have a tail of index 1 - s^2.

    But for a factor of the root of a logarithm, which lifts the estimate from a finite sample by about 0.1.
    """
    draws = np.random.default_rng(1).normal(size=50_000)
    for variance in (0.3, 0.6):
        x = draws * np.sqrt(variance)
        log_ratio = -0.5 * x**2 + 0.5 * x**2 / variance
        assert pareto_khat(log_ratio) == pytest.approx(1 - variance, abs=0.15)
    assert pareto_khat(np.array([0.0, np.nan, 1.0])) == np.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "student"}, "guide='student' is not known; choose one of normal, full_rank"),
        ({"num_draws": 0}, "num_draws=0 must be a whole number of at least 1"),
        ({"max_steps": 10}, "max_steps=10 must be at least two windows of 500 steps"),
    ],
)
def test_bad_arguments(settings, message, key):
    with pytest.raises(bayesgmm.InputError, match=message):
        bayesgmm.fit_vi(DATA["faithful"], 2, key=key, **settings)


def test_float32_stays_float32(key):
    fit = bayesgmm.fit_vi(DATA["faithful"].astype(np.float32), 2, key=key, num_draws=100, on_failure="ignore")
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves((fit.mixture, fit.draws))} == {np.dtype(np.float32)}
