r"""Posterior similarity: the probability that two rows share a component, which does not depend on labels.

$$ \pi_{ii'} = \frac1s \sum_{t=1}^{s} \sum_{j=1}^{k} r^{(t)}_{ij} r^{(t)}_{i'j}, \qquad \pi_{ii} = 1, $$

an average over draws t of the probability given the draw, in which rows are allocated independently. Allocations need
not be drawn for it (Rao-Blackwell), so that it has less Monte Carlo error than the frequency of a common component
among drawn allocations, which is offered beside it.

Sources: Binder (1978), Bayesian cluster analysis; Fritsch & Ickstadt (2009), Improved criteria for clustering based on
the posterior similarity matrix.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, RandomKey
from bayesgmm.numerics.validation import one_of, whole_number
from bayesgmm.posterior.allocations import (
    flat_draws,
    hard_allocations,
    responsibility_blocks,
    rows_of_draws,
    sampled_allocations,
)

ALLOCATIONS = ("soft", "sampled", "hard")

MAX_ROWS = 5000
"""Rows of which a similarity matrix is made unless more are asked for: 200 MB."""

_FEATURE_BYTES = 2**25  # of the shares of a block of draws, as one matrix


def similarity_matrix(
    draws: Mixture, x: ArrayLike, *, allocations: str = "soft", key: RandomKey | None = None, max_rows: int = MAX_ROWS
) -> Float[np.ndarray, "n n"]:
    """Estimate the posterior probability that two rows share a component, in float64; labels do not matter.

    Args:
        draws: a mixture with leading axes, such as (chain, draw).
        x: rows (n, d).
        allocations: `soft` averages probabilities; `sampled` counts in allocations drawn from them, one for each draw;
            `hard` in which every row has its most probable component, which overstates certainty.
        key: random key, for `sampled`.
        max_rows: what n may be: the matrix takes 8 n² bytes.

    Raises:
        InputError: for more rows than `max_rows`, unknown allocations, a missing key, draws without leading axes or
            that are not finite, rows that cannot be used.
    """
    one_of("allocations", allocations, ALLOCATIONS)
    flat, rows = flat_draws(draws), rows_of_draws(draws, x)
    check_num_rows(rows, max_rows)
    if allocations == "soft":
        return similarity_of_shares(responsibility_blocks(flat, rows), len(rows))
    if allocations == "hard":
        return similarity_of_partitions(hard_allocations(flat, rows))
    return similarity_of_partitions(sampled_allocations(flat, rows, key=key))


def check_num_rows(x: AnyArray, max_rows: int) -> None:
    """Check that a similarity matrix of the rows is not too large.

    Raises:
        InputError: saying what memory the matrix would take.
    """
    if len(x) > whole_number("max_rows", max_rows):
        every = -(-len(x) // max_rows)
        raise InputError(
            f"x has {len(x)} rows, whose similarity matrix takes {8e-9 * len(x) ** 2:.1f} GB; give a part of them, "
            f"such as x[::{every}], or max_rows={len(x)}"
        )


def similarity_of_partitions(partitions: Int[np.ndarray, "s n"]) -> Float[np.ndarray, "n n"]:
    """Share of the partitions in which two rows have the same label."""
    num_labels = int(partitions.max()) + 1
    size = max(1, _FEATURE_BYTES // (4 * num_labels * partitions.shape[1]))
    blocks = (partitions[start : start + size] for start in range(0, len(partitions), size))
    # Counts are exact in float32.
    shares = ((block[..., None] == np.arange(num_labels)).astype(np.float32) for block in blocks)
    return similarity_of_shares(shares, partitions.shape[1])


def similarity_of_shares(blocks: Iterable[Float[np.ndarray, "block n k"]], num_rows: int) -> Float[np.ndarray, "n n"]:
    """Mean over draws of the products of rows' shares, from blocks of draws."""
    total, num_draws = np.zeros((num_rows, num_rows)), 0
    for block in blocks:
        shares = np.swapaxes(block, 0, 1).reshape(num_rows, -1)
        total += shares @ shares.T
        num_draws += len(block)
    total /= num_draws
    np.fill_diagonal(total, 1.0)
    return np.clip(total, 0.0, 1.0, out=total)
