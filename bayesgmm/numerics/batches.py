"""Batches of one size, the last one filled up with entries that came before: one program serves all of them."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bayesgmm.numerics.precision import AnyArray


def even_size(count: int, most: int) -> int:
    """The size of batches of at most `most` entries that hold so many entries with the least to fill up."""
    return -(-count // max(1, -(-count // max(1, most))))


def in_batches[T](function: Callable[..., T], size: int, *arrays: np.ndarray | Array, axis: int = 0) -> T:
    """`function` of arrays with a common first axis, a batch at a time: results with that axis, as NumPy arrays.

    The results have it at the place `axis`.
    """
    count, found = len(arrays[0]), []
    for first in range(0, count, size):
        chosen = np.arange(first, first + size)
        batch = (array[first : first + size] if first + size <= count else array[chosen % count] for array in arrays)
        found.append(jax.tree.map(np.asarray, function(*batch)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis)[(*[slice(None)] * axis, slice(count))], *found)


def stacked[T: PyTree](trees: Iterable[T]) -> T:
    """Trees as one of arrays with a first axis, in NumPy."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def map_in_batches[T](function: Callable[[Array], T], size: int, inputs: PyTree[Array]) -> T:
    """`function` of every entry of the inputs, a vectorised batch at a time, inside a program."""
    count = len(jax.tree.leaves(inputs)[0])
    chosen = np.arange(-(-count // size) * size).reshape(-1, size) % count
    found = jax.lax.map(jax.vmap(function), jax.tree.map(lambda leaf: leaf[chosen], inputs))
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, *leaf.shape[2:]))[:count], found)


def part_of[T](tree: T, which: int | slice | AnyArray) -> T:
    """Some entries of a tree of arrays with a first axis, or one of them without it."""
    return jax.tree.map(lambda leaf: leaf[which], tree)
