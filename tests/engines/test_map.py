"""MAP: the mode of the model's own log-density, the point that AutoDelta finds, to a gradient tolerance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONJUGATE, DATA, at_length, each_representation, target_of
from numpyro.handlers import reparam
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import log_density, potential_energy
from numpyro.optim import Adam
from scipy.optimize import minimize

import bayesgmm
from bayesgmm.engines import map as map_engine
from bayesgmm.engines import modes
from bayesgmm.likelihood.expectation import expected_moments
from bayesgmm.target.numpyro_model import sites_of_mixture
from bayesgmm.target.unconstrained import Energy, in_column_units

standardised_model = reparam(bayesgmm.model, config=in_column_units)


def _log_density(mixture, x, family, prior):
    sites = sites_of_mixture(mixture, family)
    return float(log_density(bayesgmm.model, (x, mixture.num_components, family, prior), {}, sites)[0])


@at_length(bayesgmm.FAMILIES)
def test_converges_where_autodelta_does(family, key, x64):
    """AutoDelta by a long Adam run with a falling step size, from elsewhere, ends at the same mixture."""
    x = jnp.asarray(DATA["faithful"] / DATA["faithful"].std(0))
    fit = bayesgmm.fit_map(x, 2, family=family, key=key)
    assert fit.code is bayesgmm.ResultCode.successful
    prior = bayesgmm.default_prior(x, 2)

    start = bayesgmm.fit_em(x, 2, family=family, key=key).mixture
    values = {name: 1.05 * value for name, value in sites_of_mixture(start, family).items()}
    values["weights"] = jnp.array([0.4, 0.6])
    if "correlation_cholesky" in values:
        values["correlation_cholesky"] = jnp.broadcast_to(jnp.eye(2), values["correlation_cholesky"].shape)
    guide = AutoDelta(bayesgmm.model, init_loc_fn=init_to_value(values=values))
    svi = SVI(bayesgmm.model, guide, Adam(lambda step: 0.02 * 0.5 ** (step / 1000)), Trace_ELBO())
    result = svi.run(key, 12_000, x, 2, family, prior, progress_bar=False)
    found = guide.median(result.params)
    np.testing.assert_allclose(fit.mixture.weights, found["weights"], atol=2e-5)
    np.testing.assert_allclose(fit.mixture.means, found["means"], atol=2e-4)
    np.testing.assert_allclose(fit.trace[-1], -result.losses[-1], atol=1e-6)


@at_length(bayesgmm.FAMILIES)
@pytest.mark.parametrize(
    ("name", "num_components"),
    [
        ("faithful", 3),
        pytest.param("galaxies", 4, marks=pytest.mark.slow),
        pytest.param("iris", 2, marks=pytest.mark.slow),
    ],
)
def test_reaches_its_gradient_tolerance_and_improves_on_em(family, name, num_components, key, x64):
    x = DATA[name]
    em = bayesgmm.fit_em(x, num_components, family=family, key=key, on_failure="ignore")
    fit = bayesgmm.fit_map(x, num_components, family=family, key=key, start=em.mixture)
    assert fit.code is bayesgmm.ResultCode.successful
    prior = bayesgmm.default_prior(x, num_components)
    assert fit.trace[-1] == pytest.approx(_log_density(fit.mixture, x, family, prior), abs=1e-8)
    assert fit.trace[-1] >= _log_density(em.mixture, x, family, prior) - 1e-9
    assert float(fit.log_likelihood) == pytest.approx(float(bayesgmm.log_likelihood(fit.mixture, x)))
    # Labels of the start are kept: every component is nearest to its own.
    order = bayesgmm.match_labels(fit.mixture, em.mixture)
    np.testing.assert_array_equal(order, np.arange(num_components))


QUICK = [("full", 2), ("diag", 2)]


def _map_em(start, x, family, prior, num_steps=3000):
    """Where MAP-EM ends."""

    def step(_, mixture):
        return bayesgmm.maximise_posterior(expected_moments(mixture, x), family, prior)

    return jax.jit(lambda start: jax.lax.fori_loop(0, num_steps, step, start))(jax.tree.map(jnp.asarray, start))


def _two_clusters(rng):
    """Two overlapping clusters of 120 and 80 rows, on scales of 1 and 10."""
    first = rng.normal(size=(120, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]]) + np.array([1.5, 0.0])
    second = rng.normal(size=(80, 2)) * np.array([0.5, 1.5]) + np.array([-1.5, 1.0])
    return np.concatenate([first, second]) * np.array([1.0, 10.0]) + np.array([5.0, 100.0])


@pytest.mark.parametrize(
    ("family", "num_components"),
    [
        pytest.param(family, k, id=f"{name}-{k}", marks=[] if (name, k) in QUICK else [pytest.mark.slow])
        for name, family in CONJUGATE.items()
        for k in (2, 3)
    ],
)
def test_conjugate_mode_is_where_map_em_ends(family, num_components, key, x64):
    """Two ways to one point: Newton steps on the NumPyro model, and EM whose M-step has the prior added."""
    x = jnp.asarray(_two_clusters(np.random.default_rng(2)))
    prior = bayesgmm.conjugate_prior(x, num_components, family, concentration=1.5)
    start = bayesgmm.fit_em(x, num_components, family=family, key=key, on_failure="ignore").mixture
    by_em = _map_em(start, x, family, prior)
    fit = bayesgmm.fit_map(x, num_components, family=family, prior=prior, key=key, start=by_em)
    assert fit.code is bayesgmm.ResultCode.successful
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(fit.mixture, name), getattr(by_em, name), rtol=1e-8, atol=1e-7)
    # Started where EM ended, Newton might sit still for want of a slope that it ought to see; so from elsewhere too.
    nearby = dataclasses.replace(by_em, means=by_em.means + 0.02 * jnp.asarray(x).std(0))
    again = bayesgmm.fit_map(x, num_components, family=family, prior=prior, key=key, start=nearby)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(again.mixture, name), getattr(by_em, name), rtol=1e-7, atol=1e-6)
    density = bayesgmm.log_likelihood(by_em, x) + bayesgmm.log_prior(by_em, family, prior)
    assert fit.trace[-1] == pytest.approx(float(density), abs=1e-8)

    target = target_of(x, num_components, family, prior, by_em)
    _, gradient = Energy(target, jacobian=0.0)(np.asarray(target.vector_of(by_em))[None])
    assert np.abs(gradient).max() < 1e-8 * len(x)


@each_representation
def test_ends_of_em_lead_to_the_mode_of_map_em(family, x64):
    """Without a start: EM by maximum likelihood and then L-BFGS end where EM with the prior in its M-step does."""
    x, key = jnp.asarray(DATA["faithful"]), jax.random.key(0)
    prior = bayesgmm.conjugate_prior(x, 2, family, concentration=2.0)
    by_em = bayesgmm.fit_em(x, 2, family=family, key=key, prior=prior, tol=1e-14, max_steps=10_000)
    fit = bayesgmm.fit_map(x, 2, family=family, prior=prior, key=key)
    assert fit.code is bayesgmm.ResultCode.successful
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(fit.mixture, name), getattr(by_em.mixture, name), rtol=1e-5, atol=1e-6)
    assert fit.trace[-1] == pytest.approx(float(by_em.steps[-1]), abs=1e-6)
    assert len(fit.summary["log_posteriors"]) == 4
    assert fit.trace[-1] == max(fit.summary["log_posteriors"])


def _three_clusters():
    """On a line, the outer two at unequal distances from the middle one: two components pair it with either."""
    rng = np.random.default_rng(7)
    return np.concatenate([rng.normal(loc, 0.5, 100) for loc in (-4.0, 0.0, 5.0)])[:, None]


def test_best_of_several_modes_is_kept(key):
    x = _three_clusters()
    near, far = (
        bayesgmm.Mixture.from_covariances(weights, np.array(means)[:, None], np.ones((2, 1, 1)) * 4.0)
        for weights, means in (([2 / 3, 1 / 3], [-2.0, 5.0]), ([1 / 3, 2 / 3], [-4.0, 2.5]))
    )
    alone = [bayesgmm.fit_map(x, 2, key=key, start=start) for start in (far, near)]
    assert [fit.code for fit in alone] == [bayesgmm.ResultCode.successful] * 2
    worse, better = (fit.trace[-1] for fit in alone)
    assert better > worse + 5
    assert [fit.summary["num_modes"] for fit in alone] == [1, 1]
    fit = bayesgmm.fit_map(x, 2, key=key, start=[far, near, far])
    np.testing.assert_allclose(fit.summary["log_posteriors"], [worse, better, worse], rtol=1e-9)
    assert fit.summary["num_modes"] == 2
    assert fit.summary["num_best"] == 1
    assert fit.trace[-1] == pytest.approx(better)
    np.testing.assert_allclose(np.sort(fit.mixture.means[:, 0]), np.sort(alone[1].mixture.means[:, 0]), rtol=1e-6)
    # From EM's own ends, whatever the key: those that are the same are climbed from once.
    found = bayesgmm.fit_map(x, 2, key=key, num_starts=8)
    assert found.trace[-1] == pytest.approx(better)
    assert 1 <= found.summary["num_best"] <= len(found.summary["log_posteriors"]) == 8


def test_a_saddle_is_left(key, monkeypatch):
    """Two components that are the same have no slope to climb, and yet are no mode."""
    monkeypatch.setattr(modes, "off_saddle", lambda start: start)  # the door moves such a start: runs may end there too
    x = DATA["faithful"]
    mean, covariance = x.mean(0), np.cov(x.T)
    same = bayesgmm.Mixture.from_covariances([0.5, 0.5], np.stack([mean, mean]), np.stack([covariance, covariance]))
    left = bayesgmm.fit_map(x, 2, key=key, start=same, gtol=1e-6)
    assert left.code is bayesgmm.ResultCode.successful
    assert left.trace[-1] == pytest.approx(bayesgmm.fit_map(x, 2, key=key).trace[-1], abs=1e-3)
    monkeypatch.setattr(map_engine, "_MOST_SADDLES", 0)
    stuck = bayesgmm.fit_map(x, 2, key=key, start=same, gtol=1e-6, on_failure="ignore")
    assert stuck.code is bayesgmm.ResultCode.max_steps_reached
    assert stuck.summary["num_modes"] == 0
    assert stuck.trace[-1] < left.trace[-1] - 50


def test_what_is_not_finite_is_not_converged(key):
    x = DATA["faithful"]
    start = bayesgmm.fit_em(x, 2, key=key).mixture
    lost = dataclasses.replace(start, means=np.full_like(start.means, np.nan))
    fit = bayesgmm.fit_map(x, 2, key=key, start=lost, on_failure="ignore")
    assert fit.code is bayesgmm.ResultCode.nonfinite
    # Of several, the one that got somewhere is kept.
    fit = bayesgmm.fit_map(x, 2, key=key, start=[lost, start])
    assert fit.code is bayesgmm.ResultCode.successful
    assert fit.summary["num_best"] == 1
    assert fit.summary["num_modes"] == 1


def test_mode_in_the_unconstrained_space_is_another(key, x64):
    """The centre of a Laplace approximation, which has the Jacobian of the transforms in its density."""
    family, x = bayesgmm.FAMILIES["full"], jnp.asarray(DATA["galaxies"])
    prior = jax.tree.map(jnp.asarray, bayesgmm.default_prior(x, 3))
    fit = bayesgmm.fit_map(x, 3, key=key)
    target = target_of(x, 3, family, prior, fit.mixture)
    point = target.vector_of(fit.mixture)

    @jax.jit
    def potential(point):
        return potential_energy(standardised_model, (x, 3, family, prior), {}, target.split(point))

    slope = np.asarray(jax.grad(potential)(point))
    assert np.abs(slope).max() > 0.1
    laplace = minimize(potential, point, jac=jax.jit(jax.grad(potential)), method="BFGS", options={"gtol": 1e-6})
    centre = target.mixture_at(jnp.asarray(laplace.x))
    assert np.abs(centre.scales / fit.mixture.scales - 1).max() > 0.01
    assert _log_density(centre, x, family, prior) < fit.trace[-1] - 0.01


def test_hierarchical_scales_have_a_mode(key):
    x = DATA["faithful"]
    fit = bayesgmm.fit_map(x, 2, prior=bayesgmm.default_prior(x, 2, scale_prior="hierarchical"), key=key)
    assert fit.code is bayesgmm.ResultCode.successful


def test_conjugate_mode_is_autodeltas(key, x64):
    """AutoDelta, by itself, on the plain model, with matrices."""
    family = bayesgmm.FAMILIES["full"]
    x = jnp.asarray(DATA["faithful"] / DATA["faithful"].std(0))
    prior = bayesgmm.conjugate_prior(x, 2, family)
    start = bayesgmm.fit_em(x, 2, key=key).mixture
    by_em = _map_em(start, x, family, prior, 500)
    values = sites_of_mixture(start, family, prior) | {"weights": jnp.array([0.4, 0.6])}
    values["covariances"] = 1.2 * values["covariances"]
    guide = AutoDelta(bayesgmm.model, init_loc_fn=init_to_value(values=values))
    svi = SVI(bayesgmm.model, guide, Adam(lambda step: 0.02 * 0.5 ** (step / 400)), Trace_ELBO())
    result = svi.run(key, 6000, x, 2, family, prior, progress_bar=False)
    found = guide.median(result.params)
    np.testing.assert_allclose(found["weights"], by_em.weights, atol=1e-5)
    np.testing.assert_allclose(found["means"], by_em.means, atol=1e-5)
    np.testing.assert_allclose(found["covariances"], by_em.covariances, atol=1e-5)


def test_conjugate_prior_in_float32_and_of_another_family(key):
    x = DATA["faithful"].astype(np.float32)
    prior = bayesgmm.conjugate_prior(x, 2)
    start = bayesgmm.Mixture.from_covariances(
        *(np.asarray(part, np.float32) for part in ([0.4, 0.6], [[2.0, 55.0], [4.3, 80.0]], [np.diag([0.2, 40.0])] * 2))
    )
    fit = bayesgmm.fit_map(x, 2, key=key, prior=prior, start=start)
    assert fit.code is bayesgmm.ResultCode.successful
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(fit.mixture)} == {np.dtype(np.float32)}
    with pytest.raises(bayesgmm.InputError, match=r"prior has a scale of shape \(2, 2\), not \(2,\).*family='diag'"):
        bayesgmm.fit_map(x, 2, family="diag", key=key, prior=prior)
    with pytest.raises(
        bayesgmm.InputError, match=r"prior is for k=2 components of 2 .*conjugate_prior\(x, 3, 'full'\)"
    ):
        bayesgmm.fit_map(x, 3, key=key, prior=prior)


def test_flat_data_prior_limit_is_em(key):
    """With a prior that hardly says anything, the mode is the maximum of the likelihood."""
    x = DATA["faithful"]
    em = bayesgmm.fit_em(x, 2, key=key, tol=1e-12, reg_covar=0.0)
    vague = bayesgmm.default_prior(
        x, 2, concentration=1.0, mean_scale=1e6, scale_sigma=1e4, correlation_concentration=1.0
    )
    fit = bayesgmm.fit_map(x, 2, key=key, start=em.mixture, prior=vague)
    # What is left of the prior: one over each scale, and LKJ's Jacobian; both are of relative order 1 / n.
    np.testing.assert_allclose(fit.mixture.means, em.mixture.means, rtol=2e-3)
    assert float(em.log_likelihood) - float(fit.log_likelihood) < 0.1


def test_step_limit_is_reported(key):
    with pytest.warns(bayesgmm.FitWarning, match="step limit"):
        fit = bayesgmm.fit_map(DATA["faithful"], 3, key=key, max_steps=1, gtol=1e-14)
    assert fit.code is bayesgmm.ResultCode.max_steps_reached


def test_float32_and_arguments(key):
    fit = bayesgmm.fit_map(DATA["faithful"].astype(np.float32), 2, key=key)
    assert fit.code is bayesgmm.ResultCode.successful
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(fit.mixture)} == {np.dtype(np.float32)}
    with pytest.raises(bayesgmm.InputError, match="gtol=-1"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, gtol=-1.0)
    with pytest.raises(bayesgmm.InputError, match=r"key=7 is not a random key; pass key=jax.random.key\(7\)"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=7)
    with pytest.raises(bayesgmm.InputError, match=r"prior is for k=3 components of 2 features.*default_prior\(x, 2\)"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, prior=bayesgmm.default_prior(DATA["faithful"], 3))
    with pytest.raises(bayesgmm.InputError, match="num_starts=0 must be a whole number of at least 1"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, num_starts=0)
    with pytest.raises(bayesgmm.InputError, match="start is an empty sequence; give at least one Mixture"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, start=[])
    half_normal = bayesgmm.default_prior(DATA["faithful"], 2, scale_prior="half_normal")
    with pytest.raises(bayesgmm.InputError, match=r'half_normal.*no mode; use scale_prior="lognormal".*fit_nuts'):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, prior=half_normal)
    start = bayesgmm.fit_em(DATA["faithful"], 2, family="diag", key=key).mixture
    with pytest.raises(bayesgmm.InputError, match=r"diagonal factor.*fit_em"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, start=start)
