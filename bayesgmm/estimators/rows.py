"""Functions of rows in blocks of few sizes, and draws of labelled rows: little memory, and little to compile."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import in_batches

_BLOCK_NUMBERS = 2**22  # of the largest array of a block: rows x components x features
_SMALLEST_BLOCK = 16


def over_rows(function: Callable[[np.ndarray], Any], x: np.ndarray, width: int) -> np.ndarray:
    """`function` of rows (n, d), whose results have rows as the first axis, a block at a time.

    Blocks are filled up to a power of two with rows that came before, so that a table of any length finds its program
    compiled. `width` is how many numbers a row takes.
    """
    most = _power_of_two(max(_SMALLEST_BLOCK, _BLOCK_NUMBERS // max(width, 1)))
    return in_batches(lambda rows: np.asarray(function(rows)), min(most, _power_of_two(len(x))), x)


def sample_labelled(mixture: Mixture, num_rows: int, rng: np.random.RandomState, *, key: jax.Array) -> Any:
    """Rows of one mixture and their components, in the order of these, as scikit-learn gives them."""
    weights = np.asarray(mixture.weights, np.float64)
    counts = rng.multinomial(num_rows, weights / weights.sum())
    size = _power_of_two(int(counts.max()))
    parts = []
    for component, count in enumerate(counts):
        drawn = _component(mixture, component).sample(size, key=jax.random.fold_in(key, component))
        parts.append(np.asarray(drawn)[:count])
    return np.concatenate(parts), np.repeat(np.arange(len(counts)), counts)


def sample_of_draws(draws: Mixture, num_rows: int, rng: np.random.RandomState, *, key: jax.Array) -> Any:
    """Rows of a posterior predictive distribution, each of a draw (s) of its own, and the components they are from."""
    index = rng.randint(len(draws.means), size=_power_of_two(num_rows))
    cumulative = np.asarray(draws.weights, np.float64)[index].cumsum(1)
    labels = (cumulative < rng.uniform(size=(len(index), 1)) * cumulative[:, -1:]).sum(1)
    factor = np.asarray(draws.precision_factor)
    factor = factor[index, labels if factor.shape[1] > 1 else 0][:, None]
    means = np.asarray(draws.means)[index, labels][:, None]
    rows = np.asarray(Mixture(np.zeros((len(index), 1), means.dtype), means, factor).sample(1, key=key))[:num_rows, 0]
    order = np.argsort(labels[:num_rows], kind="stable")
    return rows[order], labels[order]


def _component(mixture: Mixture, component: int) -> Mixture:
    factor = np.asarray(mixture.precision_factor)
    which = component if len(factor) > 1 else 0
    means = np.asarray(mixture.means)
    return Mixture(np.zeros(1, means.dtype), means[component : component + 1], factor[which : which + 1])


def _power_of_two(number: int) -> int:
    return max(_SMALLEST_BLOCK, 1 << (number - 1).bit_length())
