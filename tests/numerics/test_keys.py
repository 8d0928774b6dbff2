"""Keys give JAX's own numbers, whoever computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesgmm.numerics.draws import draw_rows, uniform_numbers
from bayesgmm.numerics.keys import in_numpy, like_key, number_key, split_key, written_out
from bayesgmm.numerics.precision import RandomKey

KEYS = {
    "new": jax.random.key(5),
    "of a large seed": jax.random.key(2**31 - 1),
    "old": jax.random.PRNGKey(7),
    "of another kind": jax.random.key(3, impl="rbg"),
}


def data(key: RandomKey | np.ndarray) -> np.ndarray:
    return np.asarray(jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key)


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_keys_are_those_of_jax(kind: str) -> None:
    key = KEYS[kind]
    for num in (1, 2, 5):
        ours, theirs = split_key(key, num), list(jax.random.split(key, num))
        np.testing.assert_array_equal(list(map(data, ours)), list(map(data, theirs)))
        assert [(own.shape, own.dtype) for own in ours] == [(own.shape, own.dtype) for own in theirs]
    for number in (0, 1, 77, 2**31, np.int64(3), jnp.asarray(4)):
        np.testing.assert_array_equal(data(number_key(key, number)), data(jax.random.fold_in(key, number)))
    numbers = np.array([0, 5, 2**31])
    several = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    np.testing.assert_array_equal(data(number_key(key, numbers)), data(several))
    np.testing.assert_array_equal(data(number_key(in_numpy(key), numbers)), data(several))
    each = [jax.random.uniform(one, (4, 2), np.float32) for one in several]
    np.testing.assert_array_equal(
        uniform_numbers(number_key(in_numpy(key), numbers), (4, 2), np.ones(1, np.float32)), each
    )
    traced = jax.jit(lambda key: (jnp.stack([*map(_raw, split_key(key, 3))]), _raw(number_key(key, 2))))(key)
    np.testing.assert_array_equal(traced[0], list(map(data, jax.random.split(key, 3))))
    np.testing.assert_array_equal(traced[1], data(jax.random.fold_in(key, 2)))


def _raw(key: RandomKey) -> jax.Array:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _drawn(key: RandomKey) -> list[jax.Array]:
    return [
        jax.random.normal(key, (4, 3)),
        jax.random.uniform(key, ()),
        jax.random.randint(key, (5,), 0, 100),
        jax.random.bits(key, (5,), "uint8"),
        jax.random.bits(key, (5,), "uint16"),
        jax.random.bits(key, (0,)),
        jax.random.normal(jax.random.fold_in(key, 3), (2,)),
        jax.vmap(lambda key: jax.random.normal(key, (2,)))(jax.random.split(key, 3)),
        jax.random.uniform(jax.random.split(key, (2, 3))[1, 2], (2,)),
    ]


@pytest.mark.parametrize(("kind", "x64"), [("new", False), ("new", True), ("old", True), ("of another kind", True)])
def test_a_hash_written_out_gives_the_same_numbers(kind: str, x64: bool) -> None:
    key = KEYS[kind]
    with jax.enable_x64(x64):
        theirs, ours = jax.jit(_drawn)(key), jax.jit(lambda key: _drawn(written_out(key)))(key)
    # Bits are the same; what is made of them is fused otherwise, and may round otherwise.
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=8 * float(jnp.finfo(jnp.float64 if x64 else jnp.float32).eps))


@pytest.mark.parametrize("kind", KEYS)
def test_a_program_gives_back_the_kind_of_key_that_it_was_given(kind: str) -> None:
    key = KEYS[kind]
    found = jax.jit(lambda key: like_key(jax.random.split(written_out(key))[0], key))(key)
    np.testing.assert_array_equal(data(found), data(jax.random.split(key)[0]))
    assert found.dtype == key.dtype


def test_written_out_hashes_are_few_kernels() -> None:
    def drawn(key: RandomKey) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], (11,)))(jax.random.split(key, 8))

    key = jax.random.key(0)
    ours, theirs = (
        jax.jit(function).lower(key).compile().as_text() for function in (lambda key: drawn(written_out(key)), drawn)
    )
    assert " while(" not in ours
    assert ours.count(" fusion(") * 2 < theirs.count(" fusion(") + theirs.count(" while(") * 4


def test_rows_drawn_from_several_masses_are_those_drawn_from_each(rng: np.random.Generator) -> None:
    masses, uniform = rng.random((3, 200)) * (rng.random((3, 200)) < 0.4), rng.random((3, 50, 2))
    drawn = draw_rows(masses, uniform)
    np.testing.assert_array_equal(drawn, [draw_rows(*one) for one in zip(masses, uniform, strict=True)])
    assert (np.take_along_axis(masses, drawn, -1) > 0).all()
