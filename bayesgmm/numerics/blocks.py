"""Rows in blocks: sums and maps over them that copy no rows and lose no digits.

A block is small enough for its working set to stay in a core's cache. The last block reaches back over rows that were
counted already, with weight zero, so that rows need not be padded and every block has the same compiled code; so does
any block past the last one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

_BLOCK_BYTES = 2**18  # of a block's largest working array, of which there are a few: a core's second-level cache
_MIN_BLOCK, _MAX_BLOCK = 256, 4096
_GROUP = 32  # blocks of float32 that are added up before their sum is


def block_size(num_rows: int, row_bytes: int) -> int:
    """Rows in a block whose largest working array takes `row_bytes` for each row."""
    return min(num_rows, max(_MIN_BLOCK, min(_MAX_BLOCK, _BLOCK_BYTES // row_bytes)))


def sum_over_blocks(function: Callable[..., Any], size: int, row_weights: Array, *rows: Array) -> Any:
    """Sum of `function(row_weights, *rows)` over blocks of `size` rows."""
    if size == len(row_weights):
        return function(row_weights, *rows)
    groups, each = _groups(-(-len(row_weights) // size), row_weights.dtype)
    return _sum(lambda index: function(*_block(index, size, row_weights, *rows)), groups, each)


def stack_of_blocks(function: Callable[..., Any], size: int, row_weights: Array, *rows: Array) -> Any:
    """`function(row_weights, *rows)` of every block, stacked for `sum_over_stack`."""
    groups, each = _groups(-(-len(row_weights) // size), row_weights.dtype)
    indices = jnp.arange(groups * each, dtype=jnp.int32)
    return jax.lax.map(lambda index: function(*_block(index, size, row_weights, *rows)), indices)


def sum_over_stack(function: Callable[..., Any], stack: Any) -> Any:
    """Sum of `function(*blocks)` over what `stack_of_blocks` has made."""
    first = jax.tree.leaves(stack)[0]
    groups, each = _groups(len(first), first.dtype)

    def of_block(index: Array) -> Any:
        return function(*jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stack))

    return _sum(of_block, groups, each)


def map_over_blocks(function: Callable[[Array], Any], size: int, x: Array) -> Any:
    """`function(x)` for blocks of `size` rows, its outputs (rows, ...) put together again."""
    num_rows = len(x)
    if size == num_rows:
        return function(x)
    starts = jnp.minimum(jnp.arange(-(-num_rows // size), dtype=jnp.int32) * size, num_rows - size)
    parts = jax.lax.map(lambda start: function(jax.lax.dynamic_slice_in_dim(x, start, size)), starts)

    def join(part: Array) -> Array:
        whole = part[:-1].reshape(-1, *part.shape[2:])
        return jnp.concatenate([whole, part[-1, size - (num_rows - len(whole)) :]])

    return jax.tree.map(join, parts)


def _block(index: Array, size: int, row_weights: Array, *rows: Array) -> tuple[Array, ...]:
    """Weights and rows of a block; rows that belong to an earlier one have weight zero."""
    start = jnp.minimum(index * size, len(row_weights) - size)
    weights, *others = (jax.lax.dynamic_slice_in_dim(array, start, size) for array in (row_weights, *rows))
    counted = start + jnp.arange(size, dtype=start.dtype) < index * size
    return jnp.where(counted, jnp.zeros_like(weights), weights), *others


def _groups(num_blocks: int, dtype: Any) -> tuple[int, int]:
    """How many groups of how many blocks each. In float64 one: its sums have digits to spare."""
    groups = 1 if dtype == jnp.float64 else -(-num_blocks // _GROUP)
    return groups, -(-num_blocks // groups)


def _sum(function: Callable[[Array], Any], groups: int, each: int) -> Any:
    """The sum of a function of the number of a block.

    Sums over groups carry what rounding took from them (Knuth's two-sum), so that in float32 too the number of blocks
    costs no digits.
    """
    indices = jnp.arange(each, dtype=jnp.int32)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, indices[0]))

    def of_group(group: Array) -> Any:
        def add(total: Any, index: Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(index)), None

        return jax.lax.scan(add, zeros, group * each + indices)[0]

    if groups == 1:
        return of_group(jnp.zeros((), jnp.int32))

    def add_group(state: tuple[Any, Any], group: Array) -> tuple[tuple[Any, Any], None]:
        terms = of_group(group)
        sums = jax.tree.map(jnp.add, state[0], terms)
        lost = jax.tree.map(_two_sum_error, state[0], terms, sums)
        return (sums, jax.tree.map(jnp.add, state[1], lost)), None

    (sums, lost), _ = jax.lax.scan(add_group, (zeros, zeros), jnp.arange(groups, dtype=jnp.int32))
    return jax.tree.map(lambda total, rest: jnp.where(jnp.isfinite(rest), total + rest, total), sums, lost)


def _two_sum_error(a: Array, b: Array, total: Array) -> Array:
    taken = total - a
    return (a - (total - taken)) + (b - taken)
