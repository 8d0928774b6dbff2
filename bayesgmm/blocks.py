"""Rows in blocks: sums and maps over them that copy no rows and lose no digits.

A block is small enough for its working set to stay in a core's cache. The last block reaches back over rows that were
counted already, with weight zero, so that rows need not be padded and every block has the same compiled code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

_BLOCK_BYTES = 2**21  # of a block's largest working array: about the size of a core's second-level cache
_MIN_BLOCK, _MAX_BLOCK = 256, 4096


def block_size(num_rows: int, row_bytes: int) -> int:
    """Rows in a block whose largest working array takes `row_bytes` for each row."""
    return min(num_rows, max(_MIN_BLOCK, min(_MAX_BLOCK, _BLOCK_BYTES // row_bytes)))


def sum_over_blocks(
    function: Callable[..., Any], size: int, row_weights: Array, *rows: Array, stacked: Array | None = None
) -> Any:
    """Sum of `function(row_weights, *rows)` over blocks of `size` rows; a stack of blocks has their last argument.

    Sums carry what rounding took from them (Knuth's two-sum), so that in float32 too the number of blocks costs no
    digits.
    """
    num_rows = len(row_weights)
    if size == num_rows:
        return function(row_weights, *rows, *(() if stacked is None else (stacked[0],)))

    def block(index: Array) -> Any:
        start = jnp.minimum(index * size, num_rows - size)
        weights, *others = (jax.lax.dynamic_slice_in_dim(array, start, size) for array in (row_weights, *rows))
        counted = start + jnp.arange(size, dtype=start.dtype) < index * size
        if stacked is not None:
            others.append(jax.lax.dynamic_index_in_dim(stacked, index, keepdims=False))
        return function(jnp.where(counted, jnp.zeros_like(weights), weights), *others)

    def add(state: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], None]:
        terms = block(index)
        sums = jax.tree.map(jnp.add, state[0], terms)
        lost = jax.tree.map(_two_sum_error, state[0], terms, sums)
        return (sums, jax.tree.map(jnp.add, state[1], lost)), None

    indices = jnp.arange(-(-num_rows // size), dtype=jnp.int32)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(block, indices[0]))
    (sums, lost), _ = jax.lax.scan(add, (zeros, zeros), indices)
    return jax.tree.map(lambda total, rest: jnp.where(jnp.isfinite(rest), total + rest, total), sums, lost)


def stack_of_blocks(function: Callable[[Array], Any], size: int, x: Array) -> Any:
    """`function(x)` of every block that `sum_over_blocks` takes, stacked."""
    num_rows = len(x)
    starts = jnp.minimum(jnp.arange(-(-num_rows // size), dtype=jnp.int32) * size, num_rows - size)
    return jax.lax.map(lambda start: function(jax.lax.dynamic_slice_in_dim(x, start, size)), starts)


def map_over_blocks(function: Callable[[Array], Any], size: int, x: Array) -> Any:
    """`function(x)` for blocks of `size` rows, its outputs (rows, ...) put together again."""
    num_rows = len(x)
    if size == num_rows:
        return function(x)
    parts = stack_of_blocks(function, size, x)

    def join(part: Array) -> Array:
        whole = part[:-1].reshape(-1, *part.shape[2:])
        return jnp.concatenate([whole, part[-1, size - (num_rows - len(whole)) :]])

    return jax.tree.map(join, parts)


def _two_sum_error(a: Array, b: Array, total: Array) -> Array:
    taken = total - a
    return (a - (total - taken)) + (b - taken)
