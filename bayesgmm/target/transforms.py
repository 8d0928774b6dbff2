r"""Maps from the real space to the supports of sites: NumPyro's, of which those with products are computed in logs.

Pieces of a stick are shares $z_j$ of what earlier ones have left, and a row of a Cholesky factor of a correlation
matrix is broken off a stick of length 1 in the same way, by squares of partial correlations $t_{il} = \tanh x_{il}$.
With $\log(1 - z)$ and $\log(1 - t^2) = -2 \log \cosh x$ known, products are sums, the log-determinants are weighted
sums of the same numbers, and no digit is lost where $z$ or $t$ are near 1. And the places of entries are known
beforehand: NumPyro's maps look for them when they run, by thirty kernels that each program has to compile.

Source: Lewandowski, Kurowicka & Joe (2009), section 3; Stan reference manual, transforms of simplexes and correlations.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import (
    CorrCholeskyTransform,
    IndependentTransform,
    StickBreakingTransform,
    Transform,
    biject_to,
)

from bayesgmm.numerics.triangular import UNROLLED


def transform_to(support: constraints.Constraint) -> Transform:
    """The map from the real space to a support."""
    if isinstance(support, constraints.independent):
        base = transform_to(support.base_constraint)
        return IndependentTransform(base, support.reinterpreted_batch_ndims)
    if support is constraints.simplex:
        return _ToSimplex()
    if support is constraints.corr_cholesky:
        return _ToCorrelations()
    return biject_to(support)


def _sums_before(values: Float[Array, "*batch m"], count: int) -> Float[Array, "*batch count"]:
    """Sum of all values before each of so many places, of which the values have one for each but perhaps the last."""
    if count > UNROLLED:
        first = jnp.zeros((*values.shape[:-1], 1), values.dtype)
        return jnp.concatenate([first, jnp.cumsum(values, -1)], -1)[..., :count]
    # Of few all pairs are one kernel, and so is their gradient.
    before = np.arange(values.shape[-1])[:, None] < np.arange(count)
    return jnp.where(before, values[..., :, None], 0.0).sum(-2)


class _ToSimplex(StickBreakingTransform):
    r"""$\log y_j = \log z_j + \sum_{l<j} \log(1 - z_l)$ with $z_j = 1 / (1 + e^{-x_j} (k - j))$, the last $z = 1$."""

    def __call__(self, x: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The weights."""
        taken, left = self._logarithms(x)
        of_last = jnp.zeros((*x.shape[:-1], 1), x.dtype)
        return jnp.exp(jnp.concatenate([taken, of_last], -1) + _sums_before(left, x.shape[-1] + 1))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Logarithm of the ratio of volumes, without the logarithm of a weight that may be 0."""
        taken, left = self._logarithms(x)
        # What is left is a factor of this entry and of all later ones but the last.
        times = (1.0 + np.arange(x.shape[-1])[::-1]).astype(x.dtype)
        return (taken + times * left).sum(-1)

    def _logarithms(self, x: Array) -> tuple[Array, Array]:
        """Of z and of 1 - z."""
        shifted = x - np.log(x.shape[-1] - np.arange(x.shape[-1])).astype(x.dtype)
        left = -jax.nn.softplus(shifted)
        return shifted + left, left


class _ToCorrelations(CorrCholeskyTransform):
    r"""$y_{ij} = t_{ij} \prod_{l<j} \cosh^{-1} x_{il}$ below the diagonal, and without $t$ on it."""

    def __call__(self, x: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The Cholesky factors."""
        size = self.forward_shape(x.shape)[-1]
        lower, diagonal = np.tri(size, k=-1, dtype=bool), np.eye(size, dtype=x.dtype)
        partial = jnp.where(lower, jnp.tanh(values_in_rows(x, size)), diagonal)
        log_cosh = jnp.where(lower, values_in_rows(_log_cosh(x), size), 0.0)
        return jnp.asarray(partial) * jnp.exp(-_sums_before(log_cosh, size))

    def _inverse(self, y: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = y.shape[-1]
        rows, columns = np.tril_indices(size, -1)
        left = jnp.sqrt(1.0 - _sums_before(jnp.square(y), size))
        return jnp.arctanh(jnp.asarray(y / left)[..., rows, columns])

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Logarithm of the ratio of volumes, in the entries below the diagonal."""
        rows, columns = np.tril_indices(self.forward_shape(x.shape)[-1], -1)
        # Twice for the entry itself, once for each later one of its row.
        times = (rows - columns + 1.0).astype(x.dtype)
        return -jnp.sum(times * _log_cosh(x), -1)


def values_in_rows(values: Float[Array, "*batch m"], size: int) -> Float[Array, "*batch size size"]:
    """Values at their places below the diagonal, row by row, and any elsewhere."""
    place = np.zeros((size, size), int)
    place[np.tril_indices(size, -1)] = np.arange(values.shape[-1])
    if size == 2:
        return values[..., None]  # one value; a place for each would be a gather, and a scatter for its gradient
    return values.at[..., place].get(mode="promise_in_bounds")


def _log_cosh(x: Array) -> Array:
    return x + jax.nn.softplus(-2.0 * x) - math.log(2.0)  # smooth at 0, as it would not be from |x|
