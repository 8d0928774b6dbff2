"""Results have the precision of the input, and the process is left as it was found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesgmm.numerics.precision import is_traced, matching_precision

pytestmark = pytest.mark.usefixtures("strict")


@matching_precision
def add_third(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) + jnp.asarray(1 / 3, leaf.dtype), tree)


def test_float64_numpy_is_computed_and_returned_in_float64():
    result = add_third({"a": np.ones(3)})["a"]
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, np.ones(3) + 1 / 3)


@pytest.mark.parametrize("array", [np.ones(3, np.float32), jnp.ones(3)], ids=["numpy", "jax"])
def test_float32_stays_float32_and_a_jax_array(array):
    result = add_third(array)
    assert isinstance(result, jax.Array)
    assert result.dtype == np.float32


def test_keyword_arguments_are_looked_at_too():
    assert add_third(tree=np.ones(3)).dtype == np.float64


@pytest.mark.usefixtures("x64")
def test_with_64_bit_types_on_jax_arrays_stay_jax_arrays():
    result = add_third(np.ones(3))
    assert isinstance(result, jax.Array)
    assert result.dtype == np.float64


def test_the_global_setting_is_restored_even_after_an_error():
    @matching_precision
    def fail(x):
        assert jnp.asarray(x).dtype == jnp.float64
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(np.ones(1))
    assert jnp.asarray(1.0).dtype == jnp.float32


def test_keys_pass_through_unchanged():
    @matching_precision
    def with_key(x, key):
        return jnp.asarray(x), key

    key = jax.random.key(0)
    array, returned = with_key(np.ones(1), key)
    assert array.dtype == np.float64
    assert jax.random.key_data(returned).tolist() == jax.random.key_data(key).tolist()


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad], ids=["jit", "vmap", "grad"])
def test_nothing_changes_inside_a_transformation_of_the_caller(transform):
    seen = []

    @matching_precision
    def watched(x):
        seen.append((jnp.asarray(1.0).dtype, is_traced(x)))
        return jnp.square(x).sum()

    assert transform(watched)(jnp.ones(2)).dtype == jnp.float32
    assert seen == [(jnp.float32, True)]


def test_concrete_values_are_not_traced():
    assert not is_traced((np.ones(2), jnp.ones(2), 1.0, None))
