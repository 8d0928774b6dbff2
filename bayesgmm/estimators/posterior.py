"""What a posterior says of rows: responsibilities and densities averaged over it, for draws and for approximations."""

from typing import Any

import jax
import numpy as np

from bayesgmm.diagnostics.criteria import pointwise_log_likelihood
from bayesgmm.engines.fit import Fit
from bayesgmm.estimators.rows import sample_labelled, sample_of_draws
from bayesgmm.likelihood.log_likelihood import row_log_prob
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import matching_precision
from bayesgmm.posterior.allocations import flat_draws, responsibility_blocks
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution, expected_mixture, sample_mixture

_DRAWS_AT_ONCE = 4096
_DENSITIES_AT_ONCE = 2**22


def responsibilities(fit: Fit, x: np.ndarray) -> np.ndarray:
    """Probability of every component for every row (n, k), given the rows of the fit.

    Of draws the mean of their responsibilities; of a conjugate approximation the allocation of a row that is best for
    it (Bishop 2006, equation 10.49); of a point its responsibilities.
    """
    if fit.approximation is not None:
        return np.asarray(_expected(fit.approximation).responsibilities(x))
    if fit.draws is None:
        return np.asarray(fit.mixture.responsibilities(x))
    draws = flat_draws(fit.draws)
    total: Any = sum(block.sum(0) for block in responsibility_blocks(draws, x))
    return total / len(draws.means)


def predictive_log_prob(fit: Fit, x: np.ndarray) -> np.ndarray:
    """Log-density of every row (n), given the rows of the fit: the density is averaged over the posterior.

    Of a conjugate approximation in closed form; of a point it is that of its mixture.
    """
    if fit.approximation is not None:
        return np.asarray(fit.approximation.predictive_log_prob(x))
    if fit.draws is None:
        return np.asarray(row_log_prob(fit.mixture, x))
    draws = flat_draws(fit.draws)
    num_draws, size = len(draws.means), max(1, _DENSITIES_AT_ONCE // len(x))
    total = np.full(len(x), -np.inf, draws.means.dtype)
    for first in range(0, num_draws, size):
        log_prob = np.asarray(pointwise_log_likelihood(draws[first : first + size], x))
        total = np.logaddexp(total, np.logaddexp.reduce(log_prob, axis=0))
    return total - np.log(num_draws).astype(total.dtype)


def sample_predictive(fit: Fit, num_rows: int, rng: np.random.RandomState, *, key: jax.Array) -> Any:
    """Rows (n, d) of that density and the components that they are from (n), in the order of these."""
    if fit.approximation is None and fit.draws is None:
        return sample_labelled(fit.mixture, num_rows, rng, key=key)
    if fit.approximation is None:
        return sample_of_draws(flat_draws(fit.draws), num_rows, rng, key=key)  # pyright: ignore[reportArgumentType]
    draw_key, row_key = jax.random.split(key)
    drawn = jax.tree.map(np.asarray, _draw_mixtures(fit.approximation, jax.random.split(draw_key, _DRAWS_AT_ONCE)))
    return sample_of_draws(drawn, num_rows, rng, key=row_key)


@matching_precision
@jax.jit
def _expected(approximation: ConjugateDistribution) -> Mixture:
    return expected_mixture(approximation)


@matching_precision
@jax.jit
def _draw_mixtures(approximation: ConjugateDistribution, keys: jax.Array) -> Mixture:
    return jax.vmap(lambda key: sample_mixture(approximation, key=key))(keys)
