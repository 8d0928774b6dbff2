r"""Moments of Gaussians, some of their features alone, or given the others: algebra on factors of their precisions.

With features divided into those that are given, b, and the rest, a, and $\Sigma^{-1} = F^\top F$,

* b alone has the covariance $L_b L_b^\top$, with $L_b$ the rows b of $L = F^{-1}$;
* a given b has the precision $F_a^\top F_a$, with $F_a$ the columns a of $F$, and the mean that minimises
  $\lVert F_a (x_a - \mu_a) + F_b (x_b - \mu_b) \rVert^2$.

Both factors are made by a QR decomposition of those rows or columns. No product of a matrix with itself is formed: it
would lose half of the digits where features are nearly collinear.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesgmm.errors import InputError
from bayesgmm.numerics.precision import AnyArray, is_traced
from bayesgmm.numerics.triangular import inverse_of_lower
from bayesgmm.numerics.validation import real_array, shown, whole_number

Columns = tuple[int, ...]
Factor = Float[Array, "*rows e a a"] | Float[Array, "*rows e a"]


def check_columns(columns: Any, num_features: int) -> Columns:
    """Numbers of columns, one or several, in the order given.

    Raises:
        InputError: for none, for what is no whole number, for a column twice and for one that is not there.
    """
    several = np.ravel(columns).tolist() if isinstance(columns, np.ndarray | np.integer | int) else columns
    try:
        checked = tuple(whole_number("columns", column, least=0) for column in several)
    except TypeError:
        raise InputError(f"columns={shown(columns)} must be numbers of columns, counted from 0") from None
    if not checked:
        raise InputError("columns is empty; give at least one number of a column")
    if len(set(checked)) < len(checked):
        raise InputError(f"columns={shown(columns)} has a column more than once; drop the repetition")
    if max(checked) >= num_features:
        raise InputError(
            f"columns={shown(columns)} has {max(checked)}, and the mixture has {num_features} features; choose among "
            "them, counted from 0"
        )
    return checked


def check_values(values: Any, columns: Columns, num_features: int) -> AnyArray:
    """Values to condition on, (b) or (m, b), of these columns.

    Raises:
        InputError: where no feature is left; for values of another shape, no real numbers, or not finite.
    """
    if len(columns) == num_features:
        raise InputError(f"columns={columns} are all {num_features} features, so none is left; leave one out")
    values = real_array(values, "values")
    if values.ndim not in (1, 2) or values.shape[-1] != len(columns):
        raise InputError(
            f"values must have shape ({len(columns)},) or (rows, {len(columns)}), a value for each of "
            f"columns={columns}; got {values.shape}"
        )
    if not is_traced(values) and not np.isfinite(np.asarray(values)).all():
        raise InputError("values has NaN or infinite entries; give finite ones, and leave out the columns of others")
    return values


def dense_covariances(factor: AnyArray, diagonal: bool) -> Float[Array, "*draws e d d"]:
    """Covariances (..., e, d, d) of precision factors."""
    factor = jnp.asarray(factor)
    if diagonal:
        identity = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), (*factor.shape, factor.shape[-1]))
        return jnp.square(1.0 / factor)[..., None] * identity
    lower = inverse_of_lower(factor)
    return jnp.matmul(lower, jnp.swapaxes(lower, -1, -2), precision="highest")


def total_mean(weights: AnyArray, means: AnyArray) -> Float[Array, "*draws d"]:
    r"""$m = \sum_j w_j \mu_j$."""
    return jnp.einsum("...k,...kd->...d", weights, means, precision="highest")


def total_covariance(weights: AnyArray, means: AnyArray, covariances: AnyArray) -> Float[Array, "*draws d d"]:
    r"""$\sum_j w_j (\Sigma_j + (\mu_j - m)(\mu_j - m)^\top)$, the law of total covariance."""
    away = jnp.asarray(means) - total_mean(weights, means)[..., None, :]
    within = jnp.einsum("...k,...kab->...ab", weights, covariances, precision="highest")
    return within + jnp.einsum("...k,...ka,...kb->...ab", weights, away, away, precision="highest")


def marginal_gaussians(
    means: Float[AnyArray, "k d"], factor: AnyArray, columns: Columns
) -> tuple[Float[Array, "k b"], Factor]:
    """Means (k, b) and precision factors (e, b, b), or (e, b) of a diagonal representation, of some features alone."""
    chosen = np.array(columns)
    means, factor = jnp.asarray(means)[:, chosen], jnp.asarray(factor)
    if factor.ndim == means.ndim:
        return means, factor[:, chosen]
    upper = jnp.linalg.qr(jnp.swapaxes(inverse_of_lower(factor)[:, chosen], -1, -2), mode="r")
    return means, inverse_of_lower(jnp.swapaxes(upper * _signs(upper)[..., None], -1, -2))


def conditional_gaussians(
    means: Float[AnyArray, "k d"], factor: AnyArray, columns: Columns, values: Float[AnyArray, "m b"]
) -> tuple[Float[Array, "m k a"], Factor]:
    """Means (m, k, a) and precision factors (m, e, a, a) or (m, e, a) of the other features, for m rows of values."""
    means, factor = jnp.asarray(means), jnp.asarray(factor)
    given, rest = np.array(columns), np.setdiff1d(np.arange(means.shape[1]), columns)
    num_rows, num_components = len(values), len(means)
    expected = jnp.broadcast_to(means[:, rest], (num_rows, num_components, len(rest)))
    if factor.ndim == means.ndim:
        return expected, jnp.broadcast_to(factor[:, rest], (num_rows, len(factor), len(rest)))
    factor = jnp.tril(factor)
    # QR of the columns in reverse order: with the order restored the triangle is a lower one.
    basis, upper = jnp.linalg.qr(factor[:, :, rest[::-1]])
    signs = _signs(upper)
    lower = (upper * signs[..., None])[:, ::-1, ::-1]
    basis = (basis * signs[:, None])[:, :, ::-1]
    projected = jnp.einsum("eda,edb->eab", basis, factor[:, :, given], precision="highest")
    slope = -jnp.matmul(inverse_of_lower(lower), projected, precision="highest")
    slope = jnp.broadcast_to(slope, (num_components, *slope.shape[1:]))
    away = values[:, None] - means[None, :, given]
    expected = expected + jnp.einsum("kab,mkb->mka", slope, away, precision="highest")
    return expected, jnp.broadcast_to(lower, (num_rows, *lower.shape))


def _signs(upper: Float[Array, "e a a"]) -> Float[Array, "e a"]:
    """What the rows of triangular matrices are to be multiplied by to have a positive diagonal."""
    diagonal = jnp.diagonal(upper, axis1=-2, axis2=-1)
    return jnp.where(diagonal < 0, -jnp.ones_like(diagonal), jnp.ones_like(diagonal))
