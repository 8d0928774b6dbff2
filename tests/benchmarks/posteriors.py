"""Posterior draws as plain arrays, whoever drew them, and the one judge of all: effective draws, R-hat, agreement."""

import dataclasses
from dataclasses import dataclass

import numpy as np

MIXED = 1.05  # R-hat above it: chains sit in different modes
STANDARD_ERRORS = 5.0  # by which two means over draws may differ


@dataclass(frozen=True)
class Draws:
    """Mixtures drawn by several chains: weights (c, s, k), means (c, s, k, d), covariances (c, s, k, d, d)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @property
    def parts(self) -> dict[str, np.ndarray]:
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}

    def __getitem__(self, chains: np.ndarray) -> "Draws":
        return Draws(self.weights[chains], self.means[chains], self.covariances[chains])

    def permute(self, order: np.ndarray) -> "Draws":
        """With the components of every draw in the order (c, s, k) given."""
        return Draws(
            np.take_along_axis(self.weights, order, 2),
            np.take_along_axis(self.means, order[..., None], 2),
            np.take_along_axis(self.covariances, order[..., None, None], 2),
        )


@dataclass(frozen=True)
class Judged:
    """Draws with common labels and the log-likelihood of each, (c, s), judged by ArviZ."""

    draws: Draws
    log_likelihood: np.ndarray

    @property
    def quantities(self) -> np.ndarray:
        """What effective draws are counted of, (c, s, q): weights, means, covariances, log-likelihood.

        Bulk effective draws are those of ranks, so that covariances on the diagonal stand for scales too.
        """
        draws = self.draws
        upper = np.triu_indices(draws.means.shape[-1])
        parts = (draws.weights, draws.means, draws.covariances[..., *upper], self.log_likelihood)
        return np.concatenate([part.reshape(*self.log_likelihood.shape, -1) for part in parts], -1)

    @property
    def ess(self) -> float:
        """The smallest bulk effective number of draws of any quantity."""
        return float(np.nanmin(_arviz().ess(self.quantities, chain_axis=0, draw_axis=1)))

    @property
    def r_hat(self) -> float:
        """The worst R-hat; of a single chain that of its two halves."""
        values = self.quantities
        if len(values) == 1:
            half = values.shape[1] // 2
            values = np.concatenate([values[:, :half], values[:, half : 2 * half]])
        return float(np.nanmax(_arviz().rhat(values, chain_axis=0, draw_axis=1)))

    def chains_with(self, reference: "Judged") -> "Judged":
        """The chains that draw from the mode of a reference that has mixed.

        They are those whose mean log-likelihood is within five standard deviations of the reference's draws: chains in
        another mode are off by far more.
        """
        center, spread = reference.log_likelihood.mean(), reference.log_likelihood.std()
        same = np.abs(self.log_likelihood.mean(1) - center) <= 5 * spread
        return Judged(self.draws[same], self.log_likelihood[same])

    @property
    def num_chains(self) -> int:
        return len(self.log_likelihood)


def difference(one: Judged, other: Judged) -> float:
    """The largest difference between means over draws of the two, in standard errors of that difference."""
    means, errors = [], []
    for judged in (one, other):
        values = judged.quantities
        effective = _arviz().ess(values, chain_axis=0, draw_axis=1, method="mean")
        means.append(values.mean((0, 1)))
        errors.append(values.std((0, 1)) / np.sqrt(effective))
    return float(np.nanmax(np.abs(means[0] - means[1]) / np.hypot(*errors)))


def _arviz() -> object:
    from arviz_stats.base.array import array_stats

    return array_stats
