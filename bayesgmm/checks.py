"""Checks of arguments, made before anything is compiled: one line with the argument, the value and the cure.

Values that are being traced by the caller's own `jit`, `vmap` or `grad` have no contents to look at; they pass.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.families import Family
from bayesgmm.precision import AnyArray, RandomKey, is_traced


def as_rows(x: Any, name: str = "x") -> AnyArray:
    """Rows as a floating-point array (n, d): integers become float64, one-dimensional data one column.

    Raises:
        InputError: for other shapes, for types that are not real numbers, for NaN or infinite entries, for no rows.
    """
    if is_traced(x):
        return x[:, None] if x.ndim == 1 else x
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    if array.dtype.kind in "iub":
        array = np.asarray(array, np.float64)
    if array.dtype not in (np.float32, np.float64):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(f"{name} must hold real numbers; got dtype {array.dtype}. Convert or drop such columns")
        array = np.asarray(array, np.float32 if array.dtype.itemsize < 4 else np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise InputError(f"{name} must have shape (rows, features); got {array.shape}")
    if 0 in array.shape:
        raise InputError(
            f"{name} has shape {array.shape}: there is nothing to fit. Give at least one row and one column"
        )
    rows_of = np.asarray(array)
    with np.errstate(all="ignore"):
        total = rows_of.sum()  # copies nothing; NaN and infinity survive it, and overflow is looked into
    if not np.isfinite(total) and (bad := ~np.isfinite(rows_of)).any():
        rows, columns = np.nonzero(bad)
        raise InputError(
            f"{name} has NaN or infinite values in {len(set(rows.tolist()))} of {len(array)} rows, the first in row "
            f"{rows[0]}, column {columns[0]} (counted from 0); drop or impute those rows"
        )
    return array


def as_key(key: Any) -> RandomKey:
    """A random key.

    Raises:
        InputError: for None, a seed or anything else that is not a key.
    """
    if isinstance(key, jax.Array) and (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or (key.dtype == jnp.uint32 and key.shape[-1:] == (2,))
    ):
        return key
    seed = key if isinstance(key, int) else 0
    raise InputError(f"key={key!r} is not a random key; pass key=jax.random.key({seed})")


def enough_rows(x: AnyArray, num_components: int, family: Family) -> None:
    """Refuse what no engine can fit.

    Raises:
        InputError: for k < 1, k beyond the number of distinct rows, fewer rows than a component needs, or a constant
            column.
    """
    if not isinstance(num_components, int | np.integer) or isinstance(num_components, bool) or num_components < 1:
        raise InputError(f"num_components={num_components!r} must be a whole number of at least 1")
    if is_traced(x):
        return
    rows = np.asarray(x)
    num_rows, num_features = rows.shape
    needed = max(num_components, num_features + 1 if not family.diagonal else 2)
    if num_rows < needed:
        raise InputError(
            f"num_components={num_components} with family={family.name!r} needs at least {needed} rows of "
            f"{num_features} features; got {num_rows}. Give more rows, or choose a diagonal family or fewer components"
        )
    constant = np.flatnonzero(np.ptp(rows, axis=0) == 0)
    if constant.size:
        raise InputError(
            f"column {constant[0]} of x is constant ({rows[0, constant[0]]:g}), so its variance is zero; drop that "
            "column"
        )
    # Sorting many rows costs more than the fit, and so many that few differ are no data for a mixture of Gaussians.
    if num_rows <= 100_000 and num_components > 1:
        distinct = len(np.unique(rows, axis=0))
        if num_components > distinct:
            raise InputError(
                f"num_components={num_components} needs at least {num_components} distinct rows; got {distinct}"
            )


def as_row_weights(row_weights: Any, x: AnyArray) -> AnyArray:
    """Row weights (n) in the precision of the rows, ones by default.

    Raises:
        InputError: for a wrong length, or weights that are negative, not finite, or all zero.
    """
    num_rows = x.shape[0]
    if row_weights is None:
        return np.ones(num_rows, x.dtype)
    if is_traced(row_weights):
        return row_weights
    weights = np.asarray(row_weights)
    if weights.shape != (num_rows,):
        raise InputError(f"row_weights must have shape ({num_rows},), one for each row; got {weights.shape}")
    weights = weights.astype(x.dtype)
    if not np.isfinite(weights).all() or (weights < 0).any():
        first = int(np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))[0])
        raise InputError(f"row_weights[{first}]={weights[first]} must be finite and not negative")
    if not weights.any():
        raise InputError("row_weights are all zero: no row counts. Give at least one positive weight")
    return weights
