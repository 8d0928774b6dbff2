"""EM by other ways to the same end: accelerated, under a prior, from any start, in short runs, over several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, each_conjugate_family, each_representation, some_families

from bayesgmm import conjugate_prior, expected_moments, fit_em, fit_map, log_likelihood
from bayesgmm.engines.fit import ResultCode
from bayesgmm.errors import InputError
from bayesgmm.likelihood.expectation import prepare
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.priors.conjugate import log_prior
from bayesgmm.runtime import devices
from bayesgmm.starts.named import STARTS


def overlapping(num_rows, rng, separation=1.6):
    """Two spherical clusters that EM takes long to tell apart, and where to start."""
    x = rng.normal(size=(num_rows, 2))
    x[: num_rows // 2, 0] += separation
    start = Mixture.from_covariances([0.4, 0.6], [[-1.0, 0.5], [2.0, -0.5]], np.stack([np.eye(2)] * 2))
    return x, start


@pytest.mark.parametrize("seed", range(3))
def test_acceleration_takes_a_third_of_the_passes_and_ends_no_lower(seed):
    x, start = overlapping(3000, np.random.default_rng(seed))
    options = {"start": start, "tol": 1e-9, "max_steps": 20_000, "reg_covar": 0.0}
    plain, fast = (fit_em(x, 2, accelerate=accelerate, **options) for accelerate in (False, True))
    assert plain.successful
    assert fast.successful
    limit = fit_em(x, 2, **{**options, "tol": 1e-15, "accelerate": True}).log_likelihood
    # Both are about as near their limit as they were asked to be, which changes of 1e-9 alone would not say.
    assert min(plain.log_likelihood, fast.log_likelihood) >= limit - 3e-9 * len(x)
    by_change = fit_em(x, 2, accelerate=False, stop_rule="change", **options)
    assert by_change.log_likelihood < limit - 10e-9 * len(x)
    passes = np.argmax(fast.steps >= limit - 3e-9 * len(x))
    assert 0 < 3 * passes <= plain.num_steps
    assert (np.diff(fast.steps) >= -1e-12 * abs(fast.log_likelihood)).all()
    assert fast.log_likelihood == pytest.approx(fast.mixture.log_prob(x).sum(), rel=1e-12)


@each_representation
def test_acceleration_ends_where_em_ends(family):
    x = DATA["iris"]
    options = {"family": family, "key": jax.random.key(1), "tol": 1e-10, "max_steps": 5000}
    plain, fast = (fit_em(x, 2, accelerate=accelerate, **options) for accelerate in (False, True))
    assert fast.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-6)
    np.testing.assert_allclose(fast.mixture.means, plain.mixture.means, rtol=1e-3)


@each_conjugate_family
def test_the_mode_under_a_prior_is_that_of_the_numpyro_model(family):
    x = DATA["faithful"]
    prior = conjugate_prior(x, 2, family, concentration=2.0)
    fit = fit_em(x, 2, family=family, key=jax.random.key(0), prior=prior, tol=1e-13, max_steps=5000)
    assert fit.successful
    objective = fit.log_likelihood + log_prior(fit.mixture, family, prior)
    assert fit.steps[-1] == pytest.approx(objective, rel=1e-12)
    assert (np.diff(fit.steps) >= -1e-11 * abs(objective)).all()
    mode = fit_map(x, 2, family=family, prior=prior, start=fit.mixture, key=jax.random.key(0)).mixture
    np.testing.assert_allclose(fit.mixture.weights, mode.weights, rtol=1e-5)
    np.testing.assert_allclose(fit.mixture.means, mode.means, rtol=1e-5)
    np.testing.assert_allclose(fit.mixture.covariances, mode.covariances, rtol=1e-5, atol=1e-9)


def test_a_prior_holds_what_collapses_without_it(rng):
    x = np.concatenate([np.zeros((20, 2)), rng.normal(size=(100, 2)) + 4])
    options = {"start": np.repeat([0, 1], [20, 100]), "on_failure": "ignore"}
    assert fit_em(x, 2, **options).code is ResultCode.collapsed
    fit = fit_em(x, 2, prior=conjugate_prior(x, 2), **options)
    assert fit.successful
    assert fit.mixture.scales.min() > 0.05


@pytest.mark.parametrize("start", STARTS)
def test_every_start_by_name(start):
    fit = fit_em(DATA["faithful"], 2, start=start, key=jax.random.key(0))
    assert fit.successful
    assert fit.log_likelihood == pytest.approx(-1130.264, abs=1e-2)


def test_starts_of_ones_own():
    x = DATA["faithful"]
    labels = (x[:, 0] > 3).astype(int)
    means = np.stack([x[labels == j].mean(0) for j in (0, 1)])
    for start in (labels, np.eye(2)[labels], {"means": means}, {"means": means, "weights": [0.4, 0.6]}):
        assert fit_em(x, 2, start=start).log_likelihood == pytest.approx(-1130.264, abs=1e-2)
    with pytest.raises(InputError, match="start='kmean' is not known"):
        fit_em(x, 2, start="kmean", key=jax.random.key(0))
    with pytest.raises(InputError, match="start=None is not a start"):
        fit_em(x, 2, start=None)
    with pytest.raises(InputError, match="num_components=2"):
        fit_em(x, 2, key=jax.random.key(0), prior=conjugate_prior(x, 3))


def test_random_responsibilities_leave_the_saddle_however_many_rows(rng):
    """Shares drawn for every row average out, and components that are all alike stay so."""
    x = rng.normal(size=(20_000, 2))
    x[:8000] += 4.0
    random = fit_em(x, 2, start="random_responsibilities", key=jax.random.key(1), on_failure="raise")
    best = fit_em(x, 2, start=(x[:, 0] > 2).astype(int), on_failure="raise")
    assert random.log_likelihood == pytest.approx(best.log_likelihood, abs=0.1)


def many_rows(rng, num_rows=50_001):
    """Enough for the natural form, for runs one by one, and for several devices; no whole number of blocks."""
    means = np.asarray([[0, 0, 0, 0], [3, 0, 1, 0], [0, 3, 0, 1], [2, 2, -2, 0], [-3, 1, 0, 2.0], [0, 0, 4, -2]])
    return means[rng.integers(6, size=num_rows)] + rng.normal(size=(num_rows, 4))


@each_representation
def test_many_rows_on_several_devices_are_fitted_as_on_one(family, rng, monkeypatch):
    x, row_weights = many_rows(rng), rng.integers(0, 3, size=50_001)
    options = {"family": family, "key": jax.random.key(3), "row_weights": row_weights, "num_restarts": 2}
    assert devices.row_mesh(x.size * 6) is not None
    several = fit_em(x, 6, **options)
    monkeypatch.setattr(devices, "row_mesh", lambda size: None)
    one = fit_em(x, 6, **options)
    assert several.successful
    np.testing.assert_allclose(several.log_likelihood, one.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(several.mixture.means, one.mixture.means, atol=1e-4)
    np.testing.assert_allclose(log_likelihood(several.mixture, x, row_weights), several.log_likelihood, rtol=1e-11)


def test_starts_of_ones_own_and_traced_arguments_with_rows_on_several_devices(rng, monkeypatch):
    monkeypatch.setattr(devices, "LARGE", 2**10)
    x = many_rows(rng, 3001).astype(np.float32)
    labels = np.arange(len(x)) % 4
    if len(jax.devices()) > 1 and devices.num_cores() > 1:
        assert devices.row_mesh(x.size * 4) is not None
    options = {"family": "diag", "max_steps": 2, "on_failure": "ignore"}
    expected = fit_em(x, 4, start=labels, **options)
    of_shares = fit_em(x, 4, start=np.eye(4)[labels], **options)
    np.testing.assert_allclose(of_shares.log_likelihood, expected.log_likelihood, rtol=1e-5)
    inside = jax.jit(lambda tol: fit_em(x, 4, start=labels, tol=tol, **options))(1e-6)
    np.testing.assert_allclose(inside.log_likelihood, expected.log_likelihood, rtol=1e-5)
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.vmap(lambda key: fit_em(x, 4, key=key, num_restarts=2, **options))(keys)
    assert np.isfinite(together.log_likelihood).all()


@some_families("full", "tied", "diag", "spherical")  # each with a natural form of its own
def test_both_formulations_give_the_same_moments(family, rng, monkeypatch):
    x, row_weights = many_rows(rng), rng.uniform(size=50_001)
    shared, diagonal = family.shared, family.diagonal
    covariances = np.stack([np.diag(rng.uniform(0.5, 2, size=4))] * (1 if shared else 6))
    covariances = np.diagonal(covariances, axis1=1, axis2=2) if diagonal else covariances + 0.1
    if family.isotropic:
        covariances = np.broadcast_to(covariances[:, :1], covariances.shape)
    mixture = Mixture.from_covariances(np.full(6, 1 / 6), x[:6], covariances)
    with jax.enable_x64(True):
        kept = prepare(mixture, Rows(jnp.asarray(x), jnp.asarray(row_weights)), family)
    assert kept.blocks is not None
    ways = {
        "natural": expected_moments(mixture, x, row_weights, family=family),
        "from blocks that were kept": expected_moments(mixture, x, row_weights, family=family, prepared=kept),
        "from what takes little memory": expected_moments(
            mixture, x, row_weights, family=family, prepared=kept._replace(blocks=None)
        ),
    }
    monkeypatch.setattr("bayesgmm.likelihood.expectation.LARGE_PASS", 10**9)
    jax.clear_caches()
    centred = expected_moments(mixture, x, row_weights, family=family)
    jax.clear_caches()
    for way, natural in ways.items():
        for name in ("origin", "count", "first", "second", "log_likelihood"):
            actual, expected = np.asarray(getattr(natural, name)), np.asarray(getattr(centred, name))
            if name == "second" and family.isotropic:
                actual, expected = actual.mean(1), expected.mean(1)
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max(), err_msg=way)


def test_a_start_that_is_not_of_its_family_is_still_taken_at_its_word(rng):
    """One variance for each component is a shorter form of the density, and not that of unequal variances."""
    x = many_rows(rng)
    variances = rng.uniform(0.5, 2, size=(6, 4))
    mixture = Mixture.from_covariances(np.full(6, 1 / 6), x[:6], variances)
    moments = expected_moments(mixture, x, family=FAMILIES["spherical"])
    np.testing.assert_allclose(moments.log_likelihood, mixture.log_prob(x).sum(), rtol=1e-12)
    one_step = fit_em(x, 6, family="spherical", start=mixture, max_steps=1, on_failure="ignore")
    assert one_step.trace[0] == pytest.approx(float(moments.log_likelihood), rel=1e-12)
