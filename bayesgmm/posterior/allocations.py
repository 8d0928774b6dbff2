r"""Rows under the draws of a mixture: responsibilities in blocks of draws, and allocations of rows to components.

Given a draw, rows are allocated independently, row $i$ to component $j$ with probability $r_{ij}$. A posterior of s
draws holds s × n × k of these numbers, often more than memory; so they are made for a block of draws at a time, and
every use of them here and in the modules below is a sum over draws.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.mixtures.mixture import Mixture, as_mixture, rows_of_mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, RandomKey
from bayesgmm.numerics.validation import as_key

_BLOCK_BYTES = 2**25  # of the largest array of a block of draws: rows, components and features
_KEPT_BYTES = 2**29  # of responsibilities that are kept for passes to come


def flat_draws(draws: Mixture) -> Mixture:
    """Put all leading axes of draws on one axis (s).

    Raises:
        InputError: for a single mixture, for no draws, and for draws with parameters that are not finite.
    """
    num_leading = len(as_mixture(draws, "draws").draw_shape)
    if not num_leading:
        raise InputError(
            f"draws with means {draws.means.shape} are a single mixture; give the draws of a posterior, with leading "
            "axes such as (chain, draw)"
        )
    if 0 in draws.draw_shape:
        raise InputError(f"draws have leading axes {draws.draw_shape}: there are none. Give at least one draw")
    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[num_leading:]), draws)
    if (bad := np.flatnonzero(~are_finite(flat))).size:
        where = tuple(int(index) for index in np.unravel_index(bad[0], draws.draw_shape))
        raise InputError(
            f"{bad.size} of {len(flat.means)} draws are not finite, the first draws{list(where)}; drop them"
        )
    return flat


def are_finite(points: Mixture) -> Bool[np.ndarray, "*draws"]:
    """Whether a mixture, or each of its draws, is finite; a weight may be 0."""
    fields = (np.exp(np.asarray(points.log_weights)), np.asarray(points.means), np.asarray(points.precision_factor))
    each = [np.isfinite(field).reshape(*points.draw_shape, -1).all(-1) for field in fields]
    return np.asarray(np.logical_and.reduce(each))


def rows_of_draws(draws: Mixture, x: ArrayLike) -> Float[np.ndarray, "n d"]:
    """Check rows (n, d): finite, with as many features as the draws."""
    return np.asarray(rows_of_mixture(draws, as_rows(x).values))


def responsibility_blocks(draws: Mixture, x: AnyArray) -> Iterator[Float[np.ndarray, "block n k"]]:
    """Yield the responsibilities of draws (s) for rows (n, d), a block of draws at a time.

    Blocks are of one size, so that there is one shape to compile for: the last one reaches back.
    """
    num_draws, k, d = draws.means.shape
    size = min(num_draws, max(1, _BLOCK_BYTES // (len(x) * k * d * draws.means.dtype.itemsize)))
    for start in range(0, num_draws, size):
        first = min(start, num_draws - size)
        yield np.asarray(draws[first : first + size].responsibilities(x))[start - first :]


def mean_responsibilities(draws: Mixture, x: AnyArray) -> Float[np.ndarray, "n k"]:
    """Average the responsibilities of draws (s) for rows (n, d); those of a single mixture are as they are."""
    if not draws.draw_shape:
        return np.asarray(draws.responsibilities(x))
    zero = np.zeros((), draws.means.dtype)
    return sum((block.sum(0) for block in responsibility_blocks(draws, x)), zero) / len(draws.means)


def pooled_draws(draws: Mixture) -> Mixture:
    r"""The mixture of all components of draws (s): its density is the mean of theirs, $\frac1s \sum_t p_t(x)$."""
    if not draws.draw_shape:
        return draws
    log_weights, means, factor = (np.asarray(leaf) for leaf in jax.tree.leaves(draws))
    factor = np.broadcast_to(factor, (*log_weights.shape, *factor.shape[2:]))
    shares = log_weights - np.log(len(means)).astype(means.dtype)
    return Mixture(*(leaf.reshape(-1, *leaf.shape[2:]) for leaf in (shares, means, factor)))


def passes_over_draws(
    make_block: Callable[[np.ndarray], np.ndarray], draws: Mixture, x: AnyArray
) -> Callable[[], Iterable[np.ndarray]]:
    """Return a function that gives `make_block` of the blocks of responsibilities: kept if few, else made again."""

    def one_pass() -> Iterator[np.ndarray]:
        return (make_block(block) for block in responsibility_blocks(draws, x))

    if draws.log_weights.size * len(x) * draws.means.dtype.itemsize > _KEPT_BYTES:
        return one_pass
    kept = list(one_pass())
    return lambda: kept


def hard_allocations(draws: Mixture, x: AnyArray) -> Int[np.ndarray, "s n"]:
    """Find the component of largest responsibility, for every draw (s) and row."""
    dtype = np.min_scalar_type(-draws.num_components)
    return np.concatenate([block.argmax(-1).astype(dtype) for block in responsibility_blocks(draws, x)])


def sampled_allocations(draws: Mixture, x: AnyArray, *, key: RandomKey | None) -> Int[np.ndarray, "s n"]:
    """Draw one allocation of every row from every draw (s): together a sample of the posterior of allocations.

    By inversion along each row's components in descending order of responsibility, so that the same key gives the same
    partitions of the rows however the components of the draws are numbered.

    Raises:
        InputError: for a missing key.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))))
    dtype = np.min_scalar_type(-draws.num_components)
    parts = []
    for block in responsibility_blocks(draws, x):
        descending = np.argsort(-block, axis=-1, kind="stable")
        cumulative = np.take_along_axis(block, descending, -1).cumsum(-1)
        beyond = cumulative[..., :-1] <= rng.random(block.shape[:2])[..., None] * cumulative[..., -1:]
        parts.append(np.take_along_axis(descending, beyond.sum(-1)[..., None], -1)[..., 0].astype(dtype))
    return np.concatenate(parts)
