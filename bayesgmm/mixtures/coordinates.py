r"""Mixtures as points of a space without constraints and without units.

Two layers. As a tree: log-weights, means in units of a scale of every feature, and the precision factor's logarithmic
diagonal and the entries below it; any such values are a mixture. As a vector: only what the family leaves free, so that
there are as many coordinates as free parameters, and derivatives of the log-likelihood have no directions that do
nothing.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Inexact

from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, namespace


class Coordinates(NamedTuple):
    """A mixture as a tree of unconstrained values; `below` are the entries below the diagonal, none of diagonals."""

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    log_diagonal: Float[Array, "e d"]
    below: Float[Array, "e b"]


def mean_precision_scale(mixture: Mixture, active: Bool[AnyArray, " k"] | None = None) -> Float[AnyArray, " d"]:
    """The precision factor's diagonal, averaged over components: its reciprocals are units of the features.

    Over those that are `active`, where not all are.
    """
    scales = mixture.factor.diagonal()
    if active is None or len(scales) == 1:
        return scales.mean(0)
    return namespace(scales, active).where(active[:, None], scales, namespace(scales).zeros_like(scales)).sum(
        0
    ) / active.sum(dtype=scales.dtype)


def to_coordinates(mixture: Mixture, unit: Float[Array, " d"]) -> Coordinates:
    """Coordinates of a mixture, with features measured in `unit`."""
    return Coordinates(mixture.log_weights, mixture.means / unit[None], *mixture.factor.scaled(unit).logarithms())


def from_coordinates(coordinates: Coordinates, unit: Float[Array, " d"], family: Family) -> Mixture:
    """The mixture of the family with these coordinates, or the closest one; weights are normalised."""
    factor = family.representation.from_logarithms(coordinates.log_diagonal, coordinates.below).scaled(1.0 / unit)
    log_weights = normalise(coordinates.log_weights)
    return family.project(Mixture(log_weights, coordinates.means * unit[None], factor.array))


def to_vector(mixture: Mixture, unit: Float[AnyArray, " d"], family: Family) -> Float[AnyArray, " p"]:
    """The free coordinates of a mixture of the family, p = `family.num_parameters(k, d)`.

    Log-weights are those over the last one.
    """
    log_ratios = mixture.log_weights[:-1] - mixture.log_weights[-1:]
    parts = [log_ratios, (mixture.means / unit[None]).ravel(), family.to_free(mixture.factor, unit)]
    return namespace(*parts).concatenate(parts)


def from_vector(
    vector: Inexact[AnyArray, " p"], unit: Float[AnyArray, " d"], family: Family, num_components: int
) -> Mixture:
    """The mixture of the family with these free coordinates: the inverse of `to_vector`."""
    k, d, xp = num_components, len(unit), namespace(vector, unit)
    log_ratios, means, covariances = xp.split(vector, [k - 1, k - 1 + k * d])
    log_weights = normalise(xp.pad(log_ratios, (0, 1)))
    return Mixture(log_weights, means.reshape(k, d) * unit[None], family.from_free(covariances, unit, k).array)


def normalise(log_weights: Inexact[AnyArray, " k"]) -> Inexact[AnyArray, " k"]:
    """Log-weights of which the exponentials sum to one."""
    xp, relative = namespace(log_weights), log_weights - log_weights.real.max()
    return relative - xp.log(xp.exp(relative).sum())


def names_of_coordinates(family: Family, num_components: int, num_features: int) -> list[str]:
    """What each coordinate of `to_vector` is about, in words."""
    k, d = num_components, num_features
    num_factors, width = family.scale_shape(k, d)
    owners = ["shared covariance"] if family.shared else [f"covariance of component {j}" for j in range(k)]
    num_below = family.num_covariance_parameters(k, d) // num_factors - width
    names = [f"weight of component {j}" for j in range(k - 1)]
    names += [f"mean of component {j}" for j in range(k) for _ in range(d)]
    return names + [owner for times in (width, num_below) for owner in owners for _ in range(times)]
