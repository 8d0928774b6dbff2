r"""Mixtures as points of a space without constraints and without units.

Two layers. As a tree: log-weights, means in units of a scale of every feature, and the precision factor's logarithmic
diagonal and the rest of it; any such values are a mixture. As a vector: only what the family leaves free, so that there
are as many coordinates as free parameters, and derivatives of the log-likelihood have no directions that do nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture


class Coordinates(NamedTuple):
    """A mixture as a tree of unconstrained values; `off_diagonal` is strictly lower triangular, () for diagonals."""

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    log_diagonal: Float[Array, "e d"]
    off_diagonal: Float[Array, "e d d"] | Float[Array, ""]


def mean_precision_scale(mixture: Mixture) -> Float[Array, " d"]:
    """The precision factor's diagonal, averaged over components: its reciprocals are units of the features."""
    factor = mixture.precision_factor
    return (factor if mixture.is_diagonal else jnp.diagonal(factor, axis1=1, axis2=2)).mean(0)


def to_coordinates(mixture: Mixture, unit: Float[Array, " d"]) -> Coordinates:
    """Coordinates of a mixture, with features measured in `unit`."""
    factor = mixture.precision_factor
    factor = factor * jnp.expand_dims(unit, range(factor.ndim - 1))
    if mixture.is_diagonal:
        return Coordinates(mixture.log_weights, mixture.means / unit[None], jnp.log(factor), jnp.zeros((), unit.dtype))
    diagonal = jnp.diagonal(factor, axis1=1, axis2=2)
    return Coordinates(mixture.log_weights, mixture.means / unit[None], jnp.log(diagonal), jnp.tril(factor, -1))


def from_coordinates(coordinates: Coordinates, unit: Float[Array, " d"]) -> Mixture:
    """The mixture with these coordinates; weights are normalised."""
    factor = jnp.exp(coordinates.log_diagonal)
    if coordinates.off_diagonal.ndim:
        factor = coordinates.off_diagonal + factor[:, :, None] * jnp.eye(len(unit), dtype=unit.dtype)[None]
    factor = factor / jnp.expand_dims(unit, range(factor.ndim - 1))
    return Mixture(jax.nn.log_softmax(coordinates.log_weights), coordinates.means * unit[None], factor)


def to_vector(mixture: Mixture, unit: Float[Array, " d"], family: Family) -> Float[Array, " p"]:
    """The free coordinates of a mixture of the family, p = `family.num_parameters(k, d)`.

    Log-weights are those over the last one. Of a variance that all features share there is one.
    """
    tree = to_coordinates(mixture, unit)
    k, d = mixture.means.shape
    parts = [tree.log_weights[:-1] - tree.log_weights[-1:], tree.means.ravel()]
    # The one number of an isotropic component goes by the first feature: the unit of the others is known.
    parts.append(tree.log_diagonal[:, : family.scale_shape(k, d)[1]].ravel())
    if tree.off_diagonal.ndim:
        rows, columns = jnp.tril_indices(d, -1)
        parts.append(tree.off_diagonal[:, rows, columns].ravel())
    return jnp.concatenate(parts)


def from_vector(vector: Float[Array, " p"], unit: Float[Array, " d"], family: Family, num_components: int) -> Mixture:
    """The mixture of the family with these free coordinates: the inverse of `to_vector`."""
    k, d = num_components, len(unit)
    num_scales, width = family.scale_shape(k, d)
    sizes = [k - 1, k * d, num_scales * width]
    log_ratios, means, log_diagonal, lower = jnp.split(vector, [sum(sizes[: index + 1]) for index in range(3)])
    log_weights = jnp.concatenate([log_ratios, jnp.zeros(1, vector.dtype)])
    log_diagonal = log_diagonal.reshape(num_scales, width)
    if width < d:
        # In the units of the data they are equal, and so in their own units they are not.
        log_diagonal = log_diagonal + jnp.log(unit / unit[0])[None]
    off_diagonal = jnp.zeros((), vector.dtype)
    if not family.diagonal:
        rows, columns = jnp.tril_indices(d, -1)
        off_diagonal = jnp.zeros((num_scales, d, d), vector.dtype)
        off_diagonal = off_diagonal.at[:, rows, columns].set(lower.reshape(num_scales, -1))
    return from_coordinates(Coordinates(log_weights, means.reshape(k, d), log_diagonal, off_diagonal), unit)


def names_of_coordinates(family: Family, num_components: int, num_features: int) -> list[str]:
    """What each coordinate of `to_vector` is about, in words."""
    k, d = num_components, num_features
    num_scales, width = family.scale_shape(k, d)
    owners = ["shared covariance"] if family.shared else [f"covariance of component {j}" for j in range(num_scales)]
    names = [f"weight of component {j}" for j in range(k - 1)]
    names += [f"mean of component {j}" for j in range(k) for _ in range(d)]
    names += [owner for owner in owners for _ in range(width)]
    return names + ([] if family.diagonal else [owner for owner in owners for _ in range(d * (d - 1) // 2)])
