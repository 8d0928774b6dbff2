r"""Optima of the likelihood that are no answers: saddles where components coincide, and maxima that chance makes.

Where components coincide, the likelihood does not change to first order in their difference, and EM stays; a start with
the components apart tells whether the likelihood rises there.

The likelihood also has maxima at which a component is narrow on a few rows that happen to lie near each other, or near
a hyperplane. A component of no more than $d + 1$ rows says nothing. One whose narrowest direction is less than a tenth
as wide as the others are there is chance, if among $n$ rows so many are expected somewhere so close together:

$$ \log \binom{n}{d + 1} + \log \Pr(\mathrm{Poisson}(\lambda_j) \ge n w_j - d - 1) > \log 0.05, $$

where $d + 1$ rows place the ellipsoid in which the component lies, and $\lambda_j$ is the number of rows that the other
components put into it. Of the probability its Chernoff bound is taken.

Sources: McLachlan & Peel (2000), section 8.3; on ratios of widths Hathaway (1985) and García-Escudero, Gordaliza,
Greselin, Ingrassia & Mayo-Iscar (2018), "Eigenvalues and constraints in mixture modeling".
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import ABSENT, Mixture, expected_shares, joint_of_rows, log_normaliser
from bayesgmm.numerics.precision import AnyArray, is_traced, matmul
from bayesgmm.numerics.triangular import cholesky
from bayesgmm.priors.conjugate import ConjugatePrior

_NEAR = (
    0.1  # standard deviations between means, and relative difference of covariances, below which components coincide
)
_APART = 0.5  # standard deviations to either side
_NARROW = 0.1
_LIKELY = math.log(0.05)
_MOST_LOG_ROWS = 80.0  # of whose exponential float32 has a number


def coincident(mixture: Mixture) -> list[Int[np.ndarray, " m"]]:
    """Groups of components that coincide, or nearly so."""
    mixture = _in_float64(mixture)
    whitening, covariances = _dense(mixture)
    left, groups = np.flatnonzero(mixture.log_weights > ABSENT), []
    while len(left) > 1:
        first = left[0]
        moved = whitening[first] @ (mixture.means[left] - mixture.means[first]).T
        excess = whitening[first] @ covariances[left] @ whitening[first].T - np.eye(len(moved))
        near = (np.square(moved).sum(0) < _NEAR**2) & (np.abs(excess).max((1, 2)) < 2 * _NEAR)
        near[0] = True
        if near.sum() > 1:
            groups.append(left[near])
        left = left[~near]
    return groups


def apart(mixture: Mixture, groups: list[Int[np.ndarray, " m"]]) -> Mixture:
    """The mixture with the means of each group in a row along the longest axis of its first component."""
    exact = _in_float64(mixture)
    means, (_, covariances) = exact.means.copy(), _dense(exact)
    for group in groups:
        places = np.linspace(-_APART, _APART, len(group))[:, None]
        means[group] = exact.means[group].mean(0) + places * _longest_axis(covariances[group[0]])
    return dataclasses.replace(mixture, means=means.astype(mixture.means.dtype))


def _longest_axis(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, " d"]:
    """The longest axis of an ellipsoid, of one of its two directions that rounding does not choose."""
    values, vectors = np.linalg.eigh(covariance)
    longest = vectors[:, -1]
    return math.sqrt(values[-1]) * longest * np.sign(longest[np.abs(longest).argmax()])


def off_saddle(mixture: Mixture) -> Mixture:
    """The mixture; of components that coincide, with their means apart."""
    finite = all(np.isfinite(field).all() for field in jax.tree.leaves(mixture))
    groups = coincident(mixture) if finite else []
    return apart(mixture, groups) if groups else mixture


def split(mixture: Mixture, num_components: int, family: Family) -> Mixture:
    """The mixture with more components: the heaviest again and again in two, a step apart."""
    found = jax.tree.map(np.asarray, mixture)
    for last in range(mixture.num_components, num_components):
        heaviest = int(found.log_weights.argmax())
        again = np.append(np.arange(last), heaviest)
        log_weights = found.log_weights[again]
        log_weights[[heaviest, last]] -= math.log(2)
        factor = found.precision_factor if family.shared else found.precision_factor[again]
        found = apart(Mixture(log_weights, found.means[again], factor), [np.array([heaviest, last])])
    return found


def by_chance(mixture: Mixture, total_weight: AnyArray | float, family: Family) -> Bool[AnyArray, " k"]:
    """Which components are of so few rows, or so narrow for them, that chance makes such (k); also inside jit."""
    k, d, placed = mixture.num_components, mixture.num_features, family.min_rows(mixture.num_features)
    if k == 1 or family.shared:
        return np.zeros(k, bool)
    traced = is_traced((mixture, total_weight))
    xp, mixture = (jnp, mixture) if traced else (np, _in_float64(mixture))
    weights, own, total = mixture.weights, np.eye(k, dtype=bool), xp.asarray(total_weight)
    whitening, covariances = _dense(mixture)
    shares = xp.where(own, 0.0, weights[None])
    pooled = matmul(shares / shares.sum(1, keepdims=True), covariances.reshape(k, d * d)).reshape(k, d, d)
    # In no direction is the component less than a tenth as wide as the others, if this is positive definite.
    whitened = matmul(matmul(whitening, pooled), whitening.swapaxes(1, 2))
    room = _NARROW**-2 * np.eye(d, dtype=weights.dtype)[None] - whitened
    with np.errstate(invalid="ignore"):
        narrow = ~(xp.diagonal(cholesky(room), axis1=1, axis2=2) > 0).all(1)
    # How many rows the others put into the ellipsoid on which the rows of the component lie.
    joint = xp.where(own, -np.inf, joint_of_rows(mixture, mixture.means))
    log_density = expected_shares(joint, xp.ones(k, weights.dtype)).log_prob
    log_volume = 0.5 * d * math.log(0.5 * (d + 2)) - math.lgamma(0.5 * d + 1) - log_normaliser(mixture)
    log_expected = xp.log(total) + log_density + log_volume
    beyond = xp.maximum(total * weights - placed, 0.5)
    expected = xp.exp(xp.minimum(log_expected, _MOST_LOG_ROWS))
    bound = beyond - expected - beyond * (xp.log(beyond) - log_expected)
    bound = xp.where(beyond <= expected, 0.0, bound)
    places = xp.log(xp.maximum(total - np.arange(placed, dtype=weights.dtype), 1.0)).sum() - math.lgamma(placed + 1)
    return (total * weights < placed + 0.5) | (narrow & (places + bound > _LIKELY))


def as_spurious(fit: Fit, rows: Rows, family: Family, prior: ConjugatePrior | None) -> Fit:
    """The fit, with a code that says so where it converged to a maximum that chance makes."""
    if prior is not None:
        return fit
    if is_traced((fit, rows)):
        found = (fit.result == ResultCode.successful) & by_chance(fit.mixture, effective_rows(rows), family).any()
        return dataclasses.replace(fit, result=jnp.where(found, jnp.int32(ResultCode.spurious), fit.result))
    if not fit.successful:
        return fit
    present = jax.tree.map(
        lambda field: np.asarray(field)[np.asarray(fit.mixture.log_weights) > ABSENT] if len(field) > 1 else field,
        fit.mixture,
    )
    found = by_chance(present, effective_rows(rows), family).any()
    return dataclasses.replace(fit, result=np.asarray(ResultCode.spurious, np.int32)) if found else fit


def effective_rows(rows: Rows) -> AnyArray:
    """How many rows there are: the sum of whole weights, else the number of equal ones of their sum and squares."""
    xp, weights = (jnp, rows.weights) if is_traced(rows) else (np, np.asarray(rows.weights, np.float64))
    total = weights.sum()
    return xp.where((weights == xp.round(weights)).all(), total, total * (total / (weights * weights).sum()))


def _in_float64(mixture: Mixture) -> Mixture:
    return jax.tree.map(lambda field: np.asarray(field, np.float64), mixture)


def _dense(mixture: Mixture) -> tuple[AnyArray, AnyArray]:
    """Precision factors and covariances of all components, (k, d, d)."""
    factor = mixture.factor.for_each(mixture.num_components)
    return factor.dense(factor.array), factor.dense(factor.covariances())
