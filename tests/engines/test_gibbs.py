"""Gibbs sampling: the exact conditional of the allocations, and the posterior of NUTS under the same prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import NUTS
from helpers import CONJUGATE, DATA, at_length, each_conjugate_family, each_factor_shape, random_case, to_float32
from scipy import stats

import bayesgmm
from bayesgmm import InputError, conjugate_prior, fit_gibbs, fit_nuts
from bayesgmm.engines.gibbs import allocated_moments
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.mixtures.mixture import drawn_shares
from bayesgmm.posterior.chain_agreement import invariants

OPTIONS = {"on_failure": "ignore", "checkpoint": False}


def functionals(fit, x):
    """What the two samplers are compared by: labelled parameters, and quantities without labels."""
    found = dict(invariants(fit.draws, x))
    for name in ("weights", "means", "scales"):
        values = np.asarray(getattr(fit.draws, name))
        for index in np.ndindex(values.shape[2:]):
            found[f"{name}{index}"] = values[(..., *index)]
    if not fit.draws.is_diagonal:
        found["correlated"] = np.asarray(fit.draws.covariances)[..., 0, 0, 1]
    return found


def mean_and_error(values):
    from arviz_stats.base.array import array_stats

    return values.mean(), values.std() / np.sqrt(float(array_stats.ess(values[None], chain_axis=1, draw_axis=2)[0]))


@at_length(CONJUGATE)
def test_same_posterior_as_nuts(family, key):
    x = DATA["faithful"]
    prior = conjugate_prior(x, 2, family, concentration=2.0)
    start = bayesgmm.fit_em(x, 2, family=family, key=key).mixture
    shared = {"family": family, "prior": prior, "key": key, "start": start, **OPTIONS}
    gibbs = fit_gibbs(x, 2, num_draws=1500, **shared)
    nuts = fit_nuts(x, 2, **shared | NUTS | {"num_draws": 1400})
    assert gibbs.summary["r_hat"] < 1.02
    assert nuts.summary["r_hat"] < 1.02
    ours, theirs = functionals(gibbs, x), functionals(nuts, x)
    for name, values in ours.items():
        for moment in (1, 2):
            centre = theirs[name].mean()
            (one, error), (other, other_error) = (
                mean_and_error(values if moment == 1 else np.square(values - centre))
                for values in (values, theirs[name])
            )
            assert abs(one - other) < 5 * np.hypot(error, other_error), (name, moment)


@each_conjugate_family
def test_one_component_against_the_closed_form(family, key):
    x = DATA["iris"][:40, :3]
    prior = conjugate_prior(x, 1, family, shrinkage=0.5, dof=6.0)
    fit = fit_gibbs(x, 1, family=family, prior=prior, key=key, num_draws=2000, **OPTIONS)
    exact = bayesgmm.fit_cavi(x, 1, family=family, prior=prior, key=key, num_draws=4000)
    for name in ("means", "scales"):
        ours, theirs = (np.asarray(getattr(one.draws, name)).reshape(-1, 3) for one in (fit, exact))
        for column in range(3):
            assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4


def test_allocations_have_the_probabilities_of_the_responsibilities(rng, key):
    joint = rng.normal(size=(4, 3)) - 800.0  # far below what exp can show
    shares = np.exp(joint - joint.max(0))
    shares /= shares.sum(0)
    uniform = jax.random.uniform(key, (20_000, 3))
    densities = jax.numpy.asarray(joint, np.float32)
    drawn = jax.vmap(lambda row: drawn_shares(densities, jax.numpy.ones(3), row).shares)(uniform)
    assert (np.asarray(drawn).sum(1) == 1).all()
    error = np.sqrt(shares * (1 - shares) / 20_000)
    assert (np.abs(np.asarray(drawn).mean(0) - shares) < 5 * error + 1e-3).all()


@each_factor_shape
def test_moments_are_those_of_some_allocation(family, rng, key):
    """Counts are whole numbers that add up to the rows, and moments add up to those of all rows."""
    case = random_case(family, 3, 2, rng)
    x = case.rows(5000, rng)
    found = bayesgmm_moments(case.mixture, x, key, family)
    assert np.allclose(found.count, np.round(found.count))
    assert np.sum(found.count) == 5000
    total = (np.asarray(found.first) + np.asarray(found.count)[:, None] * np.asarray(found.origin)).sum(0)
    np.testing.assert_allclose(total, x.sum(0), rtol=1e-9)
    np.testing.assert_allclose(found.log_likelihood, case.mixture.log_prob(x).sum(), rtol=1e-11)


def bayesgmm_moments(mixture, x, key, family):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, allocated_moments(mixture, as_rows(jax.numpy.asarray(x)), family, key=key))


def test_draws_are_the_same_by_every_chain_method(key):
    x = DATA["galaxies"]
    start = bayesgmm.fit_em(x, 2, family="diag", key=key).mixture
    options = {"family": "diag", "key": key, "start": start, "num_warmup": 20, "num_draws": 30, **OPTIONS}
    one, two, three = (
        fit_gibbs(x, 2, chain_method=name, **options) for name in ("parallel", "sequential", "vectorized")
    )
    np.testing.assert_allclose(one.draws.means, two.draws.means, rtol=1e-6)
    np.testing.assert_allclose(one.draws.means, three.draws.means, rtol=1e-6)


def test_float32_stays_float32(key):
    fit = fit_gibbs(DATA["faithful"].astype(np.float32), 2, key=key, num_warmup=50, num_draws=50, **OPTIONS)
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves((fit.mixture, fit.draws))} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_draws": 3}, "num_draws=3 is too few for R-hat; draw at least 4 a chain"),
        ({"num_draws": 7, "num_chains": 1}, "draw at least 8 a chain"),
        ({"num_chains": 0}, "num_chains=0 must be"),
        ({"chain_method": "quantum"}, "chain_method='quantum' is not known"),
        ({"start": "k-means++"}, "start='k-means\\+\\+' must be a Mixture"),
        ({"prior": bayesgmm.default_prior(DATA["faithful"], 2)}, "takes a conjugate prior"),
    ],
)
def test_bad_arguments(settings, message, key):
    with pytest.raises(InputError, match=message):
        fit_gibbs(DATA["faithful"], 2, key=key, **settings)


def test_a_uniform_number_of_zero_allocates_to_no_impossible_component():
    joint = jnp.array([[-200.0], [0.0]], jnp.float32)
    chosen = drawn_shares(joint, jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32)).shares
    assert chosen[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("fit", [fit_gibbs, fit_nuts, bayesgmm.fit_map])
def test_fewer_rows_than_features_under_a_prior_that_bounds(fit, key):
    """The likelihood has no maximum to start at; the posterior is proper."""
    x = np.random.default_rng(0).normal(size=(4, 6))
    prior = conjugate_prior(x, 2, concentration=2.0)
    few = {} if fit is bayesgmm.fit_map else {"num_warmup": 20, "num_draws": 20, "num_chains": 2}
    found = fit(x, 2, prior=prior, key=key, on_failure="ignore", **few)
    assert np.isfinite(found.log_likelihood)


def test_draws_that_are_not_finite_end_as_such(key):
    x = DATA["faithful"].astype(np.float32)
    covariances = np.full((2, 1, 1), 1e-36) * np.eye(2)  # whose densities overflow in float32
    start = bayesgmm.Mixture.from_covariances(*to_float32((np.full(2, 0.5), x[:2], covariances)))
    fit = fit_gibbs(x, 2, key=key, start=start, num_warmup=50, num_draws=50, **OPTIONS)
    assert fit.code is bayesgmm.ResultCode.nonfinite
    np.testing.assert_allclose(fit.mixture.means, start.means)  # the point is the start where there is no draw
    assert bayesgmm.diagnose(fit, x).causes == ("not finite",)
