"""Floating-point precision: every result has the precision of its input, whatever JAX's global setting.

JAX computes in float32 unless 64-bit types are enabled for the whole process. A library must not change a global
setting, and a density silently rounded to seven digits is a wrong density. So the entry points are decorated with
`matching_precision`: float64 arrays in, float64 arrays out.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key, PyTree, UInt32

RandomKey = Key[jax.Array, ""] | UInt32[jax.Array, "2"]
"""A key of `jax.random.key`, or an old-style one of `jax.random.PRNGKey`, as NumPyro passes them."""

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    BoolLike = bool
    IntLike = int
    KeyLike = RandomKey  # as a caller gives it, before `as_key` has checked it
    AnyArray = Any  # to a type checker JAX and NumPy arrays differ; to the functions here they are alike
else:
    AnyArray = jax.Array | np.ndarray
    BoolLike = IntLike = KeyLike = ArrayLike = DTypeLike = object  # checkers at run time do not understand NumPy's own
"""An array of JAX, or of NumPy where JAX itself is limited to float32."""


def matching_precision[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Compute in float64 when an array argument is float64.

    Where JAX's 64-bit types are switched off, they are switched on for the duration of the call and the result is
    handed back in NumPy arrays, which keep their precision in whatever is done with them next. Everywhere else (64-bit
    types on, float32 input, or inside the caller's own `jit`, `vmap` or `grad`) nothing changes.
    """

    @functools.wraps(function)
    def at_input_precision(*args: P.args, **kwargs: P.kwargs) -> R:
        if jax.config.jax_enable_x64 or is_traced((args, kwargs)):  # pyright: ignore[reportAttributeAccessIssue]
            return function(*args, **kwargs)
        if not any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves((args, kwargs))):
            return function(*args, **kwargs)
        with jax.enable_x64(True):
            return jax.tree.map(_as_numpy, function(*args, **kwargs))

    return at_input_precision


def compiled[**P, R](function: Callable[P, R], *, static_argnums: int | tuple[int, ...] = ()) -> Callable[P, R]:
    """`jax.jit` of a function or method, in float64 when an array argument is float64."""
    return matching_precision(jax.jit(function, static_argnums=static_argnums))


def on_device[T](tree: T, dtype: DTypeLike) -> T:
    """A tree of arrays of this dtype in arrays of JAX, where it can hold them; else as they are, in those of NumPy."""
    return jax.device_put(tree) if jax.dtypes.canonicalize_dtype(dtype) == dtype else tree


def by_value[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """A function of arrays as one that compiles nothing where their values are known: NumPy computes it.

    Its results are arrays of JAX where an argument is.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves = jax.tree.leaves((args, kwargs))
        if is_traced(leaves):
            return function(*args, **kwargs)
        args, kwargs = jax.tree.map(np.asarray, (args, kwargs))
        found = function(*args, **kwargs)
        return jax.device_put(found) if any(isinstance(leaf, jax.Array) for leaf in leaves) else found

    return run


def is_traced(value: PyTree) -> bool:
    """Whether the value is known only to the caller's own `jit`, `vmap` or `grad`: it has a shape but no contents."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def in_precision(values: PyTree, dtype: DTypeLike) -> PyTree:
    """Arrays of a tree in this precision: of NumPy, or of JAX where they are being traced."""

    def cast(leaf: PyTree) -> AnyArray:
        return jnp.asarray(leaf, jax.dtypes.canonicalize_dtype(dtype)) if is_traced(leaf) else np.asarray(leaf, dtype)

    return jax.tree.map(cast, values)


def in_wider_precision[T](value: T, dtype: DTypeLike, rows: AnyArray) -> tuple[T, AnyArray]:
    """A tree of arrays of this dtype, and rows, both in that precision, or in float64 where the rows have it."""
    wider = jax.dtypes.canonicalize_dtype(np.float64 if rows.dtype == np.float64 else dtype)
    return value if dtype == wider else in_precision(value, wider), rows.astype(wider)


def namespace(*arrays: AnyArray | np.generic) -> ModuleType:
    """The module that computes with these arrays: NumPy, which compiles nothing, where all are its own; else JAX's."""
    return np if all(isinstance(array, np.ndarray | np.generic) for array in arrays) else jnp


def matmul(left: AnyArray, right: AnyArray) -> AnyArray:
    """The product of matrices with all digits, on GPUs too."""
    both_of_numpy = namespace(left, right) is np
    return np.asarray(np.matmul(left, right)) if both_of_numpy else jnp.matmul(left, right, precision="highest")


def _as_numpy(leaf: PyTree) -> PyTree:
    if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return np.asarray(leaf)
