"""Random numbers and loops that are the same whether NumPy runs them at once or JAX compiles them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bayesgmm.numerics.keys import Keys, are_several, uniform_bits, written_out
from bayesgmm.numerics.precision import AnyArray, IntLike, RandomKey, namespace

_TOGETHER = 64  # rows of a block that a draw comes to first
_FEWEST = 1024  # numbers that are drawn together, and powers of two from there: few programs


def uniform_numbers(key: Keys, shape: tuple[int, ...], like: AnyArray) -> Float[AnyArray, "*shape"]:
    """Numbers uniform between 0 and 1, in the precision and the module of an array; for a key the same in both.

    Of several keys, which only NumPy is given, those of each, along a first axis.
    """
    if namespace(like) is jnp:
        return jax.random.uniform(written_out(key), shape, like.dtype)
    count = int(np.prod(shape))
    bits = uniform_bits(key, 8 * like.dtype.itemsize, count)
    if bits is not None:
        # As JAX does it: the digits of a number between 1 and 2.
        kept = np.finfo(like.dtype).nmant
        ones = np.ones(1, like.dtype).view(bits.dtype)
        digits = (bits >> bits.dtype.type(8 * like.dtype.itemsize - kept)) | ones
        return (digits.view(like.dtype) - like.dtype.type(1.0)).reshape(bits.shape[:-1] + shape)
    if are_several(key):
        return np.stack([uniform_numbers(one, shape, like) for one in key])
    size = max(_FEWEST, 1 << (count - 1).bit_length())
    x64 = like.dtype == np.float64 or jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    with jax.enable_x64(x64):
        return np.asarray(_uniform(key, size=size, dtype=like.dtype))[:count].reshape(shape)


@functools.partial(jax.jit, static_argnames=("size", "dtype"))
def _uniform(key: RandomKey, *, size: int, dtype: np.dtype) -> Array:
    return jax.random.uniform(written_out(key), (size,), dtype)


@functools.partial(jax.jit, static_argnames="shape")
def normal_numbers(key: RandomKey, *, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """`jax.random.normal`, by a smaller program."""
    return jax.random.normal(written_out(key), shape)


def draw_rows(masses: Float[AnyArray, "*r n"], uniform: Float[AnyArray, "*m 2"]) -> Int[AnyArray, "*m"]:
    r"""Rows drawn with probability proportional to their masses; never one of mass 0, unless all are.

    Several sets of masses have axes before that of the rows, and the numbers have them too, before that of the draws.

    By inversion on two levels, first a block of rows and then a row of it: two uniform numbers for each draw, and sums
    short enough to keep their digits in float32. Rows of mass 0 after the last one change no draw.
    """
    xp, size = namespace(masses, uniform), _TOGETHER
    lead, num_rows = masses.shape[:-1], masses.shape[-1]
    filled = xp.concatenate([masses, xp.zeros((*lead, -num_rows % size), masses.dtype)], -1)
    blocks = filled.reshape(*lead, -1, size)
    block = _invert(blocks.sum(-1), uniform[..., 0])
    drawn = xp.take_along_axis(blocks, block[..., None], -2) if lead else blocks[block]
    within = xp.cumsum(drawn, -1)
    beyond = (within > uniform[..., 1:] * within[..., -1:]) & (drawn > 0)
    # Rounding can leave the target at the very total; the largest mass is as good an answer as any.
    place = xp.where(beyond.any(-1), beyond.argmax(-1), drawn.argmax(-1))
    return block * np.int32(size) + place.astype(np.int32)


def _invert(masses: AnyArray, uniform: AnyArray) -> AnyArray:
    xp, cumulative = namespace(masses, uniform), namespace(masses).cumsum(masses, -1)
    target = uniform * cumulative[..., -1:]
    if masses.ndim == 1:
        place = xp.searchsorted(cumulative, target, side="right")
    else:
        place = (cumulative[..., None, :] <= target[..., None]).sum(-1)
    place = xp.minimum(place.astype(np.int32), np.int32(masses.shape[-1] - 1))
    there = xp.take_along_axis(masses, place, -1) if masses.ndim > 1 else masses[place]
    return xp.where(there > 0, place, masses.argmax(-1, keepdims=masses.ndim > 1).astype(np.int32))


def repeat[S: PyTree](count: IntLike, step: Callable[[IntLike, S], S], state: S, like: AnyArray) -> S:
    """`step(i, state)` for i from 0 to `count` - 1: a loop of Python for NumPy's arrays, else one that is compiled."""
    if namespace(like) is jnp:
        return jax.lax.fori_loop(0, count, step, state)
    for index in range(count):
        state = step(index, state)
    return state


def repeat_while[S: PyTree](
    unfinished: Callable[[S], AnyArray | np.bool], step: Callable[[S], S], state: S, like: AnyArray
) -> S:
    """`step(state)` as long as it is unfinished, in the same two ways."""
    if namespace(like) is jnp:
        return jax.lax.while_loop(unfinished, step, state)
    while unfinished(state):
        state = step(state)
    return state
