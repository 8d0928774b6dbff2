"""The maps to the supports of sites are NumPyro's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from bayesgmm.target.transforms import transform_to

SUPPORTS = {
    "two weights": (constraints.simplex, (1,)),
    "four weights": (constraints.simplex, (4,)),
    "correlations of two features": (constraints.independent(constraints.corr_cholesky, 1), (3, 1)),
    "correlations of four features": (constraints.independent(constraints.corr_cholesky, 1), (3, 6)),
    "correlations of ten features": (constraints.corr_cholesky, (45,)),
    "scales": (constraints.independent(constraints.positive, 2), (3, 2)),
    "covariances": (constraints.independent(constraints.positive_definite, 1), (2, 3)),
}


def mapped(transform: Transform) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = transform(x)
        return y, jnp.asarray(transform.log_abs_det_jacobian(x, y))

    return both


@pytest.mark.parametrize("what", SUPPORTS)
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_values_determinants_and_derivatives_are_those_of_numpyro(what: str, spread: float) -> None:
    support, shape = SUPPORTS[what]
    ours, theirs = transform_to(support), biject_to(support)
    with jax.enable_x64(True):
        x = jnp.asarray(spread * np.random.default_rng(0).normal(size=shape))
        found, expected = (jax.jit(mapped(transform))(x) for transform in (ours, theirs))
        # Theirs subtract squares from 1, which far out leaves no digits.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)
        slopes, expected_slopes = (jax.jit(jax.jacobian(mapped(transform)))(x) for transform in (ours, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), slopes, expected_slopes)
        np.testing.assert_allclose(ours.inv(found[0]), x, rtol=1e-6, atol=1e-9)
        assert ours.inverse_shape(found[0].shape) == x.shape


def test_weights_and_correlations_keep_their_digits_far_out() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray([30.0])
        weights, _ = mapped(transform_to(constraints.simplex))(x)
        np.testing.assert_allclose(weights[1], np.exp(-30.0), rtol=1e-12)
        factor, log_determinant = mapped(transform_to(constraints.corr_cholesky))(x)
        np.testing.assert_allclose(factor[1, 1], 2 * np.exp(-30.0), rtol=1e-12)
        np.testing.assert_allclose(log_determinant, -2 * (30.0 - np.log(2.0)), rtol=1e-12)


@pytest.mark.parametrize("what", ["four weights", "correlations of four features"])
def test_float32_stays_float32(what: str) -> None:
    support, shape = SUPPORTS[what]
    y, log_determinant = mapped(transform_to(support))(jnp.full(shape, 0.3, jnp.float32))
    assert y.dtype == log_determinant.dtype == jnp.float32


def test_curvature_at_no_correlation_is_there() -> None:
    def log_determinant(x: jax.Array) -> jax.Array:
        return mapped(transform_to(constraints.corr_cholesky))(x)[1]

    np.testing.assert_allclose(jax.hessian(log_determinant)(jnp.zeros(1, jnp.float32)), [[-2.0]], rtol=1e-5)
