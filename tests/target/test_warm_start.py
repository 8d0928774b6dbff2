"""The target density, and where chains start: its mode and curvature, and points that have a density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, each_family_and, target_of
from numpyro.handlers import reparam
from numpyro.infer.util import potential_energy

import bayesgmm
from bayesgmm.target import laplace
from bayesgmm.target.laplace import NormalApproximation
from bayesgmm.target.unconstrained import Energy, in_column_units

standardised_model = reparam(bayesgmm.model, config=in_column_units)
pytestmark = pytest.mark.usefixtures("x64")


def problem(family, key, x, num_components=2, conjugate=False):
    em = bayesgmm.fit_em(x, num_components, family=family, key=key).mixture
    make = (lambda x, k: bayesgmm.conjugate_prior(x, k, family)) if conjugate else bayesgmm.default_prior
    return jax.tree.map(jnp.asarray, (em, x, make(x, num_components)))


@each_family_and("name", "faithful", ["simulated"])
@pytest.mark.parametrize("conjugate", [False, True])
def test_energy_is_that_of_the_numpyro_model(family, conjugate, name, key, rng):
    """Of few rows, and of rows that are prepared for many passes (the natural form)."""
    em, x, prior = problem(family, key, DATA[name], conjugate=conjugate)
    target = target_of(x, 2, family, prior, em)
    point = target.vector_of(em)
    point = np.asarray(point) + 0.05 * rng.normal(size=point.shape)
    assert (target.prepared is None) == (name == "faithful")

    def theirs(point):
        return potential_energy(standardised_model, (x, 2, family, prior), {}, target.split(point))

    value, gradient = Energy(target)(point[None])
    expected, expected_gradient = jax.jit(jax.value_and_grad(theirs))(point)
    np.testing.assert_allclose(value[0], expected, rtol=1e-12)
    np.testing.assert_allclose(gradient[0], expected_gradient, atol=1e-8 * np.abs(expected_gradient).max())


def test_approximation_is_the_mode_and_the_inverse_curvature(key):
    em, x, prior = problem(bayesgmm.FAMILIES["full"], key, DATA["faithful"])
    target = target_of(x, 2, bayesgmm.FAMILIES["full"], prior, em)
    found = laplace.approximate(target, em)
    curvature = np.asarray(jax.jit(jax.hessian(target.energy))(jnp.asarray(found.mode)))
    np.testing.assert_allclose(found.covariance @ curvature, np.eye(len(curvature)), atol=1e-5)
    # The Newton step that is left is a small part of the posterior's width.
    step = np.linalg.solve(curvature, np.asarray(jax.grad(target.energy)(jnp.asarray(found.mode))))
    assert np.sqrt(step @ curvature @ step) < 0.05
    assert found.energy == pytest.approx(float(target.energy(jnp.asarray(found.mode))), abs=1e-6)


def test_many_coordinates_have_a_diagonal(key, monkeypatch):
    monkeypatch.setattr(laplace, "MAX_DENSE", 5)
    family = bayesgmm.FAMILIES["diag"]
    em, x, prior = problem(family, key, DATA["faithful"])
    target = target_of(x, 2, family, prior, em)
    found = laplace.approximate(target, em)
    monkeypatch.undo()
    exact = laplace.approximate(target, em)
    assert found.covariance.ndim == 1
    np.testing.assert_allclose(found.covariance, 1 / np.diag(np.linalg.inv(exact.covariance)), rtol=0.5)


def test_only_distinct_modes_near_the_best_are_kept():
    made = [NormalApproximation(np.zeros(2), np.eye(2), energy) for energy in (3.0, 1.0, 1.001, 20.0, np.nan)]
    assert [one.energy for one in laplace.distinct(made, 7.0)] == [1.0, 3.0]


def test_starts_without_density_come_nearer_to_their_mode():
    """A posterior that ends at 1, whose approximation does not."""
    mode = NormalApproximation(np.zeros(1), np.eye(1), 0.0)

    def evaluate(points):
        inside = np.abs(points[:, 0]) < 1
        return np.where(inside, 0.5 * points[:, 0] ** 2, np.inf), np.where(inside[:, None], points, np.nan)

    points, energies, gradients = laplace.draw_starts([mode, mode], np.array([[0.5], [6.0]]), evaluate)
    np.testing.assert_allclose(points, [[0.5], [0.75]])
    assert np.isfinite(energies).all()
    assert np.isfinite(gradients).all()


def test_chains_start_apart_around_several_modes(key):
    """Galaxies, k = 3: more than one end of EM, and no two chains from one point."""
    x = DATA["galaxies"]
    options = {"family": "diag", "key": key, "num_warmup": 1, "num_draws": 4, "on_failure": "ignore"}
    fit = bayesgmm.fit_nuts(x, 3, checkpoint=False, **options)
    assert fit.summary["num_modes"] == 1
    assert fit.summary["max_tree_depth"] == 10
    firsts = np.asarray(fit.draws.means)[:, 0, :, 0]
    assert len(np.unique(firsts[:, 0])) == 4


def test_chains_start_around_the_modes_that_several_starts_lead_to(key):
    """Two clusters in the middle that may be one, at nearly equal heights: chains from both starts see both modes."""
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.normal(loc, 0.5, 25) for loc in (-4.0, 0.0, 4.2)])[:, None]
    near, far = (
        bayesgmm.Mixture.from_covariances(weights, np.array(means)[:, None], np.ones((2, 1, 1)) * 4.0)
        for weights, means in (([2 / 3, 1 / 3], [-2.0, 4.2]), ([1 / 3, 2 / 3], [-4.0, 2.1]))
    )
    options = {"key": key, "num_chains": 2, "num_warmup": 40, "num_draws": 40, "on_failure": "ignore"}
    fit = bayesgmm.fit_nuts(x, 2, start=[near, far], **options)
    assert fit.summary["num_modes"] == 2
    assert sorted(np.asarray(fit.draws.means).mean((1, 3)).min(1) < -3.0) == [False, True]
    assert bayesgmm.fit_nuts(x, 2, start=[near], **options).summary["num_modes"] == 1
    with pytest.raises(bayesgmm.InputError, match="start is an empty sequence"):
        bayesgmm.fit_nuts(x, 2, start=[], **options)
    with pytest.raises(bayesgmm.InputError, match=r"start has means of shape \(3, 1\)"):
        bayesgmm.fit_gibbs(x, 2, start=[near, bayesgmm.fit_em(x, 3, key=key).mixture], key=key)
