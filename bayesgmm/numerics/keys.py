"""Random keys: JAX's own numbers for every key, from programs that are small enough to be compiled for each fit.

Threefry is a hash of twenty rounds. JAX compiles it for CPUs as a loop with ten kernels around it, each time that a key
is split or numbers are drawn, and half of a sampler's program is such loops. Written out, the rounds are one kernel,
compiled in a third of the time. What keys outside of programs need is a few hashes, which NumPy computes at once.

Source: Salmon, Moraes, Dror & Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt, UInt32

from bayesgmm.numerics.precision import AnyArray, IntLike, RandomKey, is_traced

_THREEFRY = "threefry2x32"
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.array([0x1BD11BDA], np.uint32)

Word = UInt32[AnyArray, "..."]
Keys = Key[Array, "..."] | UInt32[AnyArray, "..."]
"""A key or several; words (..., 2) of NumPy are those of threefry."""


def _hash(key: UInt32[AnyArray, "... 2"], high: Word, low: Word) -> tuple[Word, Word]:
    """Threefry 2x32 of counters, for NumPy and for JAX. They have an axis: NumPy warns of scalars that wrap.

    One key hashes all of them; several, in NumPy, hash each a row of their own.
    """
    first, second = key[..., :1], key[..., 1:]
    schedule = (first, second, first ^ second ^ _PARITY)
    if key.ndim == 1:
        schedule = tuple(part.reshape((1,) * low.ndim) for part in schedule)
    high, low = high + schedule[0], low + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            high = high + low
            low = high ^ ((low << np.uint32(rotation)) | (low >> np.uint32(32 - rotation)))
        high = high + schedule[(block + 1) % 3]
        low = low + schedule[(block + 2) % 3] + np.uint32(block + 1)
    return high, low


def _hash_counters(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> tuple[Word, Word]:
    low = jax.lax.iota(np.uint32, math.prod(shape))
    high, low = _hash(key, jnp.zeros_like(low), low)
    return high.reshape(shape), low.reshape(shape)


def _paired(high: Word, low: Word) -> UInt32[Array, "... 2"]:
    """Both along a last axis; not stacked, for each part of a stack is computed apart."""
    last = jax.lax.broadcasted_iota(np.uint32, (*low.shape, 2), low.ndim)
    return jnp.where(last == 0, high[..., None], low[..., None])


# Behind barriers, for else every use of a number would be compiled with the hashes of all keys that led to it.
def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "... 2"]:
    return jax.lax.optimization_barrier(_paired(*_hash_counters(key, shape)))


def _fold_in(key: UInt32[Array, "2"], number: IntLike) -> UInt32[Array, "2"]:
    low = jnp.asarray(number, np.uint32).reshape(1)
    return jax.lax.optimization_barrier(_paired(*_hash(key, jnp.zeros_like(low), low))[0])


def _bits(key: UInt32[Array, "2"], width: int, shape: tuple[int, ...]) -> UInt[Array, "..."]:
    if math.prod(shape) >= 2**32:
        from jax.extend.random import threefry_prng_impl

        return threefry_prng_impl.random_bits(key, width, shape)
    high, low = _hash_counters(key, shape)
    if width == 64:
        high, low = high.astype(np.uint64), low.astype(np.uint64)
        return jax.lax.optimization_barrier((high << np.uint64(32)) | low)
    return jax.lax.optimization_barrier((high ^ low).astype(np.dtype(f"uint{width}")))


@functools.cache
def _implementation() -> Any:
    from jax.extend.random import define_prng_impl, threefry_prng_impl  # which imports Pallas

    return define_prng_impl(
        key_shape=(2,),
        seed=threefry_prng_impl.seed,
        split=_split,
        random_bits=_bits,
        fold_in=_fold_in,
        name="threefry2x32_written_out",
        tag="fryw",
    )


def _is_threefry(key: Keys) -> bool:
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        return False  # another numbering of the counters, of earlier versions of JAX
    return str(jax.random.key_impl(key)) == _THREEFRY


def written_out(key: Keys) -> Keys:
    """The key, or keys, for use inside a program: with the same numbers, of fewer kernels; others stay as they are."""
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_implementation()) if _is_threefry(key) else key


def like_key(key: Keys, like: Keys) -> Keys:
    """The key, or keys, as a program hands them back: of the kind that one has which it was given."""
    data = jax.random.key_data(key)
    if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


def in_numpy(key: Keys) -> Keys:
    """The words of a key, in NumPy, to be hashed without JAX; a key that JAX has to be asked as it is."""
    words = _words(key)
    return key if words is None else words


def _words(key: Keys) -> UInt32[np.ndarray, "... 2"] | None:
    if isinstance(key, np.ndarray):
        return key
    return None if is_traced(key) or not _is_threefry(key) else np.asarray(jax.random.key_data(key))


def are_several(keys: Keys) -> bool:
    """Whether these are several keys."""
    return keys.ndim > (0 if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else 1)


def uniform_bits(key: Keys, width: int, count: int) -> np.ndarray | None:
    """So many numbers of 32 or 64 random bits, of each key where they are several, by NumPy.

    None for a key that JAX has to be asked.
    """
    words = _words(key)
    if words is None or count >= 2**32:
        return None
    low = np.arange(count, dtype=np.uint32)
    high, low = _hash(words, np.zeros_like(low), low)
    return high ^ low if width == 32 else (high.astype(np.uint64) << np.uint64(32)) | low


def split_key(key: RandomKey, num: int = 2) -> list[RandomKey]:
    """`jax.random.split`, without a program for every number of keys."""
    words = _words(key)
    if words is None:
        return list(jax.random.split(key, num))
    pairs = _hash_pairs(words, np.arange(num, dtype=np.uint32))
    return [like_key(jnp.asarray(pair), key) for pair in pairs]


def number_key(key: Keys, number: IntLike | AnyArray) -> Keys:
    """`jax.random.fold_in`, without a program; of several numbers (r) several keys."""
    words = None if is_traced(number) else _words(key)
    if words is None:
        return (
            jax.vmap(jax.random.fold_in, (None, 0))(key, number) if np.ndim(number) else jax.random.fold_in(key, number)
        )
    pairs = _hash_pairs(words, np.atleast_1d(number).astype(np.uint32))
    pairs = pairs if np.ndim(number) else pairs[0]
    return pairs if words is key else like_key(jnp.asarray(pairs), key)


def _hash_pairs(words: UInt32[np.ndarray, "2"], low: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, "n 2"]:
    return np.stack(_hash(words, np.zeros_like(low), low), -1)
