"""A sample of very many rows, on which starts and short runs are made."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.precision import RandomKey

_ROWS = 8192  # at least; and so many for each free parameter:
_ROWS_PER_PARAMETER = 20


def sample_size(x: Any, num_components: int, family: Family) -> int:
    """Rows of a sample that is large enough for these parameters."""
    return max(_ROWS, _ROWS_PER_PARAMETER * family.num_parameters(num_components, x.shape[1]))


def sample_rows(key: Array, x: Array, row_weights: Array, size: int) -> tuple[Array, Array]:
    """Rows for starts and short runs: all, or of very many an equally spaced sample along the cumulative weight."""
    num_rows = len(x)
    if num_rows < 2 * size:
        return x, row_weights
    # In parts, so that float32 counts them: which part, then which row of the part.
    part = -(-num_rows // size)
    padded = jnp.concatenate([row_weights, jnp.zeros(part * size - num_rows, x.dtype)]).reshape(size, part)
    totals = jnp.cumsum(padded.sum(1))
    offsets = (jnp.arange(size, dtype=x.dtype) + jax.random.uniform(key, (), x.dtype)) * (totals[-1] / size)
    parts = jnp.minimum(jnp.searchsorted(totals, offsets, side="right"), size - 1)
    within = jnp.cumsum(padded[parts], axis=1)
    rest = offsets - (totals[parts] - within[:, -1])
    rows = jnp.minimum((within <= rest[:, None]).sum(1), part - 1)
    # Where rounding points past the last row that counts, the heaviest of the part stands in for it.
    rows = jnp.where(jnp.take_along_axis(padded[parts], rows[:, None], 1)[:, 0] > 0, rows, padded[parts].argmax(1))
    return x[jnp.minimum(parts * part + rows, num_rows - 1)], jnp.full(size, totals[-1] / size)


def sample_on_host(key: RandomKey, row_weights: Float[np.ndarray, " n"], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for starts, and their weights: equally spaced along the cumulative weight; all rows where they are few."""
    if len(row_weights) < 2 * size:
        return np.arange(len(row_weights)), np.asarray(row_weights)
    cumulative = np.cumsum(row_weights, dtype=np.float64)
    offset = float(jax.random.uniform(key, (), np.float32))
    at = (np.arange(size) + offset) * (cumulative[-1] / size)
    # No row of weight 0 ends beyond the one before it.
    index = np.minimum(np.searchsorted(cumulative, at, side="right"), np.argmax(cumulative == cumulative[-1]))
    return index, np.full(size, cumulative[-1] / size, row_weights.dtype)
