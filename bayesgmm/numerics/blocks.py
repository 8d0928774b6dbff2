"""Sums over blocks of rows that lose no digits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

_BLOCK_BYTES = 2**18  # of a block's largest working array, of which there are a few: a core's second-level cache
_MIN_BLOCK, _MAX_BLOCK = 256, 4096
_GROUP = 32  # blocks of float32 that are added up before their sum is


def block_size(num_rows: int, row_bytes: int) -> int:
    """Rows in a block whose largest working array takes `row_bytes` for each row."""
    return min(num_rows, max(_MIN_BLOCK, min(_MAX_BLOCK, _BLOCK_BYTES // row_bytes)))


def blocks_in_groups(num_blocks: int, dtype: DTypeLike) -> int:
    """The number of blocks with those past the last one that make all groups equal."""
    groups, each = _groups(num_blocks, dtype)
    return groups * each


def sum_of_blocks[S, R](function: Callable[[Array], tuple[S, R]], num_blocks: int, dtype: DTypeLike) -> tuple[S, R]:
    """The sum of the first results of `function(index)` over blocks, and the stack of the second ones.

    In float32 sums are of groups of blocks, and what rounding takes from their total is carried along (Knuth's
    two-sum), so that the number of blocks costs no digits. The function is also called for the blocks past the last one
    that fill up the last group; there it must add nothing.
    """
    groups, each = _groups(num_blocks, dtype)
    indices = jnp.arange(each, dtype=jnp.int32)
    shapes, _ = jax.eval_shape(function, indices[0])
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def of_group(group: Array) -> tuple[S, R]:
        def add(total: S, index: Array) -> tuple[S, R]:
            terms, parts = function(index)
            return jax.tree.map(jnp.add, total, terms), parts

        return jax.lax.scan(add, zeros, group * each + indices)

    if groups == 1:
        return of_group(jnp.zeros((), jnp.int32))

    def add_group(state: tuple[S, S], group: Array) -> tuple[tuple[S, S], R]:
        terms, parts = of_group(group)
        sums = jax.tree.map(jnp.add, state[0], terms)
        lost = jax.tree.map(_two_sum_error, state[0], terms, sums)
        return (sums, jax.tree.map(jnp.add, state[1], lost)), parts

    (sums, lost), parts = jax.lax.scan(add_group, (zeros, zeros), jnp.arange(groups, dtype=jnp.int32))
    sums = jax.tree.map(lambda total, extra: jnp.where(jnp.isfinite(extra), total + extra, total), sums, lost)
    return sums, jax.tree.map(lambda part: part.reshape(groups * each, *part.shape[2:]), parts)


def _groups(num_blocks: int, dtype: DTypeLike) -> tuple[int, int]:
    """How many groups of how many blocks each. In float64 one: its sums have digits to spare."""
    groups = 1 if dtype == jnp.float64 else -(-num_blocks // _GROUP)
    return groups, -(-num_blocks // groups)


def _two_sum_error(a: Array, b: Array, total: Array) -> Array:
    taken = total - a
    return (a - (total - taken)) + (b - taken)
