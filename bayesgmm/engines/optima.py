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
import numpy as np
from jaxtyping import Bool, Float, Int

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import ABSENT, Mixture, expected_shares, joint_of_rows
from bayesgmm.priors.conjugate import ConjugatePrior

_NEAR = (
    0.1  # standard deviations between means, and relative difference of covariances, below which components coincide
)
_APART = 0.5  # standard deviations to either side
_NARROW = 0.1
_LIKELY = math.log(0.05)


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


def by_chance(mixture: Mixture, total_weight: float, family: Family) -> Bool[np.ndarray, " k"]:
    """Which components are of so few rows, or so narrow for them, that chance makes such (k)."""
    mixture = _in_float64(mixture)
    k, placed = mixture.num_components, family.min_rows(mixture.num_features)
    if k == 1 or family.shared:
        return np.zeros(k, bool)
    weights, (whitening, covariances) = np.asarray(mixture.weights), _dense(mixture)
    rows = total_weight * weights
    found = rows < placed + 0.5
    places = math.lgamma(total_weight + 1) - math.lgamma(placed + 1) - math.lgamma(max(total_weight - placed, 0) + 1)
    for index in np.flatnonzero(~found):
        others = np.delete(np.arange(k), index)
        pooled = np.average(covariances[others], axis=0, weights=weights[others])
        if np.linalg.eigvalsh(whitening[index] @ pooled @ whitening[index].T)[-1] < _NARROW**-2:
            continue
        without = Mixture(*(field[others] for field in jax.tree.leaves(mixture)))
        log_expected = math.log(total_weight) + _log_density(without, mixture.means[index])
        log_expected += _log_volume(covariances[index])
        beyond, expected = rows[index] - placed, math.exp(min(log_expected, 700.0))
        bound = 0.0 if beyond <= expected else beyond - expected - beyond * (math.log(beyond) - log_expected)
        found[index] = places + bound > _LIKELY
    return found


def as_spurious(fit: Fit, rows: Rows, family: Family, prior: ConjugatePrior | None) -> Fit:
    """The fit, with a code that says so where it converged to a maximum that chance makes."""
    if prior is not None or not fit.successful:
        return fit
    present = jax.tree.map(
        lambda field: np.asarray(field)[np.asarray(fit.mixture.log_weights) > ABSENT] if len(field) > 1 else field,
        fit.mixture,
    )
    found = by_chance(present, effective_rows(rows), family).any()
    return dataclasses.replace(fit, result=np.asarray(ResultCode.spurious, np.int32)) if found else fit


def effective_rows(rows: Rows) -> float:
    """How many rows there are: the sum of whole weights, else the number of equal ones of their sum and squares."""
    weights = np.asarray(rows.weights, np.float64)
    total = weights.sum()
    return float(total if (weights == np.round(weights)).all() else total**2 / np.square(weights).sum())


def _log_density(mixture: Mixture, point: np.ndarray) -> float:
    return float(expected_shares(joint_of_rows(mixture, point[None]), np.ones(1)).log_prob[0])


def _log_volume(covariance: np.ndarray) -> float:
    """Of the ellipsoid on which rows spread evenly would have this covariance."""
    d = len(covariance)
    return 0.5 * d * math.log(math.pi * (d + 2)) - math.lgamma(0.5 * d + 1) + 0.5 * np.linalg.slogdet(covariance)[1]


def _in_float64(mixture: Mixture) -> Mixture:
    return jax.tree.map(lambda field: np.asarray(field, np.float64), mixture)


def _dense(mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Precision factors and covariances of all components, (k, d, d)."""
    factor = mixture.factor.for_each(mixture.num_components)
    return factor.dense(factor.array), factor.dense(factor.covariances())
