"""One density: shift it by a constant and every public score moves by exactly as much.

The shift is put into the one function that forms Gaussian log-densities. A score that kept a density of its own would
stay behind.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, each_representation, target_of
from numpyro.infer import log_likelihood as numpyro_log_likelihood
from numpyro.infer.util import log_density

import bayesgmm
from bayesgmm.engines.ascent import run_em
from bayesgmm.engines.coordinate_ascent import run_coordinate_ascent
from bayesgmm.engines.gibbs import fit_gibbs
from bayesgmm.likelihood.rows import Rows
from bayesgmm.likelihood.scores import row_log_prob, row_summaries
from bayesgmm.mixtures import mixture as mixture_module
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.priors.conjugate import conjugate_prior
from bayesgmm.target.numpyro_model import sites_of_mixture

SHIFT = 0.75


def _scores(family, x, start):
    """Every public score of one mixture on rows x, with how often the shift is in it."""
    num_rows = len(x)
    prior = bayesgmm.default_prior(x, 2)
    sites = sites_of_mixture(start, family)
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], start)
    walk = run_em(
        start, Rows(x, jnp.ones(num_rows)), jnp.zeros(x.shape[1]), jnp.asarray(0.0), family=family, max_steps=2
    )
    fit = bayesgmm.Fit("em", family.name, start, jnp.nan, np.int32(0), np.int32(0), jnp.zeros(1))
    criteria = bayesgmm.information_criteria(fit, x)
    target = target_of(x, 2, family, prior, start)
    point = target.vector_of(start)
    return {
        "energy": (target.energy(point), -num_rows),
        "joint_log_prob": (start.joint_log_prob(x), 1),
        "log_prob": (start.log_prob(x), 1),
        "log_likelihood": (bayesgmm.log_likelihood(start, x), num_rows),
        "log_likelihood with weights": (bayesgmm.log_likelihood(start, x, 2 * jnp.ones(num_rows)), 2 * num_rows),
        "value and gradient": (jax.value_and_grad(bayesgmm.log_likelihood)(start, x)[0], num_rows),
        "moments": (bayesgmm.expected_moments(start, x).log_likelihood, num_rows),
        "row_log_prob": (row_log_prob(start, x), 1),
        "row_summaries": (row_summaries(start, x)[0], 1),
        "pointwise_log_likelihood": (bayesgmm.pointwise_log_likelihood(stacked, x), 1),
        "EM": (walk.log_likelihood, num_rows),
        "EM's trace": (walk.trace, num_rows),
        "NumPyro's log_density": (log_density(bayesgmm.model, (x, 2, family), {}, sites)[0], num_rows),
        "MAP's objective": (target.energy(point, jacobian=0.0), -num_rows),
        "NumPyro's log_likelihood": (
            numpyro_log_likelihood(bayesgmm.model, jax.tree.map(lambda leaf: leaf[None], sites), x, 2, family)["x"],
            1,
        ),
        "the criteria's log-likelihood": (criteria.log_likelihood, num_rows),
        "BIC": (criteria.bic, -2 * num_rows),
        "AIC": (criteria.aic, -2 * num_rows),
        "ICL": (criteria.icl, -2 * num_rows),
    }


@pytest.fixture
def shifted(monkeypatch):
    """Shift the one density; compiled functions forget the unshifted one before, and the shifted one after."""

    def shift():
        original = mixture_module.joint_of_whitened
        monkeypatch.setattr(
            mixture_module, "joint_of_whitened", lambda mixture, whitened: original(mixture, whitened) + SHIFT
        )
        jax.clear_caches()

    yield shift
    monkeypatch.undo()
    jax.clear_caches()


@each_representation
def test_every_public_score_moves_with_the_density(family, shifted, key, x64):
    x = jnp.asarray(DATA["faithful"])
    start = bayesgmm.fit_em(x, 2, family=family, key=key, max_steps=3, on_failure="ignore").mixture
    before = _scores(family, x, start)
    shifted()
    after = _scores(family, x, start)
    for name, (value, times) in after.items():
        expected = np.asarray(before[name][0]) + SHIFT * times
        np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-11, err_msg=name)
    # What depends on ratios of densities alone stays where it was.
    unmoved = start.responsibilities(x)
    np.testing.assert_allclose(unmoved.sum(1), 1.0, rtol=1e-12)


def _scores_of_conjugate_engines(family, x, start):
    conjugate = conjugate_prior(x, 2, family)
    draw = {"num_chains": 1, "num_warmup": 1, "num_draws": 8, "key": jax.random.key(0), "checkpoint": False}
    gibbs = fit_gibbs(x, 2, family=family, prior=conjugate, start=start, on_failure="ignore", **draw)
    rows, tol = Rows(x, jnp.ones(len(x))), jnp.asarray(0.0)
    cavi = run_coordinate_ascent(start, rows, tol, conjugate, family=family, max_steps=2)
    return {"Gibbs": gibbs.sample_stats["lp"][0, 0], "CAVI": cavi.trace[:3]}


def test_scores_of_the_conjugate_engines_move_with_the_density(shifted, key, x64):
    x, family = jnp.asarray(DATA["faithful"]), FAMILIES["full"]
    start = bayesgmm.fit_em(x, 2, family=family, key=key, max_steps=3, on_failure="ignore").mixture
    before = _scores_of_conjugate_engines(family, x, start)
    shifted()
    after = _scores_of_conjugate_engines(family, x, start)
    for name, value in after.items():
        np.testing.assert_allclose(value, np.asarray(before[name]) + SHIFT * len(x), rtol=1e-11, err_msg=name)


def test_elpd_moves_with_the_density(shifted, key, rng):
    x = DATA["galaxies"]
    em = bayesgmm.fit_em(x, 2, key=key)
    jitter = 0.02 * rng.normal(size=(1, 200, 2, 1))
    draws = bayesgmm.Mixture(
        np.broadcast_to(em.mixture.log_weights, (1, 200, 2)),
        em.mixture.means + jitter,
        np.broadcast_to(em.mixture.precision_factor, (1, 200, *em.mixture.precision_factor.shape)),
    )
    fit = bayesgmm.Fit("nuts", "full", em.mixture, em.log_likelihood, np.int32(0), np.int32(200), np.zeros(1), draws)
    prior = bayesgmm.default_prior(x, 2)
    before = bayesgmm.loo(bayesgmm.to_datatree(fit, x, prior=prior, key=key))
    shifted()
    after = bayesgmm.loo(bayesgmm.to_datatree(fit, x, prior=prior, key=key))
    assert after.elpd - before.elpd == pytest.approx(SHIFT * len(x), rel=1e-9)
    assert after.se == pytest.approx(before.se, rel=1e-9)
