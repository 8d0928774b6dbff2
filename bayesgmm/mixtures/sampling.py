"""Rows drawn from a mixture, in an amount of memory that does not grow with the square of the features."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesgmm.mixtures.factors import Diagonal, Triangular
from bayesgmm.numerics.keys import written_out
from bayesgmm.numerics.precision import AnyArray, RandomKey, is_traced
from bayesgmm.runtime.programs import SMALL, compiled_once, room_of_rows

_MANY_NUMBERS = 2**24  # that are drawn
_GATHERED = 2**20  # entries of factors that are gathered at once, one factor for each row


def sample_rows(
    fields: tuple[AnyArray, ...], key: RandomKey, num_rows: int, draw_shape: tuple[int, ...]
) -> Float[AnyArray, "*draws n d"]:
    """Rows of a mixture with these log-weights, means and factors, or of each of its draws."""
    if is_traced((fields, key)) or num_rows * fields[1].size >= SMALL:
        return _sample(fields, key, num_rows=num_rows, draw_shape=draw_shape)
    # More rows change none of the first ones.
    drawn = _sample(fields, key, num_rows=room_of_rows(num_rows) if num_rows else 0, draw_shape=draw_shape)
    return jax.device_put(np.asarray(drawn)[..., :num_rows, :])


def _are_many(fields: tuple[AnyArray, ...], key: RandomKey, *, num_rows: int, draw_shape: tuple[int, ...]) -> bool:
    return num_rows * fields[1].size > _MANY_NUMBERS


@functools.partial(compiled_once, static_argnames=("num_rows", "draw_shape"), unless=_are_many)
def _sample(
    fields: tuple[AnyArray, ...], key: RandomKey, *, num_rows: int, draw_shape: tuple[int, ...]
) -> Float[Array, "*draws n d"]:
    k, d = fields[1].shape[-2:]
    representation = Diagonal if fields[2].ndim == fields[1].ndim else Triangular
    of_row = d * d if representation is Triangular else d

    def one(own: tuple[Any, ...]) -> Float[Array, "n d"]:
        (log_weights, means, factor), key = own
        label_key, normal_key = jax.random.split(key)
        labels = jax.random.categorical(label_key, log_weights, shape=(num_rows,))
        noise = jax.random.normal(normal_key, (num_rows, d), dtype=means.dtype)
        inverse = representation(factor).for_each(k).inverse()

        def move(label: Array, normal: Array) -> Array:
            return means[label] + representation.times_lower(inverse[label], normal)

        return _map(lambda row: move(*row), (labels, noise), num_rows, of_row)

    key = written_out(key)
    if not draw_shape:
        return one((fields, key))
    keys = jax.random.split(key, draw_shape)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(draw_shape) :]), (fields, keys))
    found = _map(one, flat, math.prod(draw_shape), of_row * num_rows)
    return found.reshape(*draw_shape, num_rows, d)


def _map(function: Callable[[Any], Array], inputs: PyTree, count: int, size: int) -> Array:
    """`function` of every entry, of so many at a time as gather no more than they may; each gathers `size` numbers."""
    if count * size <= _GATHERED:
        return jax.vmap(function)(inputs)
    return jax.lax.map(function, inputs, batch_size=max(1, _GATHERED // max(1, size)))
