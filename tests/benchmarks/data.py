"""Rows to fit, mixtures to start from, and a log-likelihood in plain NumPy that belongs to none of the subjects."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp


@dataclass(frozen=True)
class Parameters:
    """A mixture as plain float64 arrays: weights (k), means (k, d), dense covariances (k, d, d)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def log_likelihood(self, x: np.ndarray, rows_at_once: int = 65536) -> float:
        """Total log-likelihood of the rows in float64: the judge of every subject."""
        lower = np.linalg.cholesky(self.covariances)
        constants = np.log(self.weights) - np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
        constants = constants - 0.5 * x.shape[1] * np.log(2 * np.pi)
        total = 0.0
        for first in range(0, len(x), rows_at_once):
            rows = np.asarray(x[first : first + rows_at_once], np.float64)
            joint = [
                constant - 0.5 * np.square(solve_triangular(factor, (rows - mean).T, lower=True)).sum(0)
                for constant, mean, factor in zip(constants, self.means, lower, strict=True)
            ]
            total += logsumexp(joint, axis=0).sum()
        return float(total)

    def narrowest(self, x: np.ndarray) -> float:
        """The smallest variance of a component in any direction, on columns of variance one."""
        scale = x.std(0, dtype=np.float64)
        return float(np.linalg.eigvalsh(self.covariances / np.outer(scale, scale)).min())


@dataclass(frozen=True)
class Problem:
    """Rows of a simulated mixture in float64, and a start near the truth that every covariance family can take."""

    x: np.ndarray
    start: Parameters

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.x.shape, len(self.start.weights))


def simulate(num_rows: int, num_features: int, num_components: int, *, seed: int = 0, spread: float = 2.0) -> Problem:
    """Correlated clusters of unequal weight whose means are `spread` apart in every feature, so that they overlap.

    The start has equal weights, displaced means and unit covariances: EM still moves after dozens of steps.
    """
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(num_components, 5.0))
    means = spread * rng.normal(size=(num_components, num_features)) / max(1.0, num_features / 4) ** 0.5
    mixing = rng.normal(size=(num_components, num_features, num_features)) / np.sqrt(8 * num_features)
    factors = np.eye(num_features) * rng.uniform(0.5, 1.0, size=(num_components, 1, 1)) + mixing
    counts = rng.multinomial(num_rows, weights)
    x = np.concatenate(
        [
            mean + rng.standard_normal((count, num_features)) @ factor.T
            for mean, factor, count in zip(means, factors, counts, strict=True)
        ]
    )
    # Rounded to float32, so that both precisions fit the very same numbers.
    x = rng.permutation(x).astype(np.float32).astype(np.float64)
    start = Parameters(
        np.full(num_components, 1 / num_components),
        means + 0.3 * rng.normal(size=means.shape),
        np.broadcast_to(np.eye(num_features), (num_components, num_features, num_features)),
    )
    return Problem(x, start)


def covariances_of_family(start: Parameters, family: str) -> np.ndarray:
    """Covariances of a start in the layout that scikit-learn's family of that name uses; exact for unit covariances."""
    diagonals = np.diagonal(start.covariances, axis1=1, axis2=2)
    return {
        "full": start.covariances,
        "tied": start.covariances[0],
        "diag": diagonals,
        "spherical": diagonals.mean(1),
    }[family]


def dense_covariances(covariances: np.ndarray, family: str, num_components: int, num_features: int) -> np.ndarray:
    """The way back: any family's covariances as (k, d, d)."""
    covariances = np.asarray(covariances, np.float64)
    identity = np.eye(num_features)
    if family == "tied":
        return np.broadcast_to(covariances, (num_components, num_features, num_features))
    if family == "diag":
        return covariances[:, :, None] * identity
    return covariances[:, None, None] * identity if family == "spherical" else covariances
