"""Checks of arguments, made before anything is compiled: one line with the argument, the value and the cure.

Values that are being traced by the caller's own `jit`, `vmap` or `grad` have a shape and a dtype, which are checked,
but no contents to look at.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.families import Family
from bayesgmm.precision import AnyArray, RandomKey, is_traced


def real_array(value: Any, name: str) -> AnyArray:
    """An array of truth values, whole or floating-point numbers, of any shape; arrays of JAX stay such.

    Raises:
        InputError: for what is no rectangular array, is masked, or holds text, complex numbers or Python objects; of a
            DataFrame the column is named.
    """
    if np.ma.is_masked(value):
        raise InputError(
            f"{name} is a masked array with {np.ma.count_masked(value)} masked values, which would count as they are; "
            "drop those rows, or fill them with .filled(value)"
        )
    try:
        array = value if isinstance(value, jax.Array) else (jnp if is_traced(value) else np).asarray(value)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} ({type(value).__name__}) is no rectangular array of numbers; give all of its rows the same length"
        ) from None
    table: Any = value
    if not _is_real(array.dtype) and (pandas := sys.modules.get("pandas")) is not None:
        if isinstance(value, pandas.DataFrame):
            return np.stack([_real_column(column, name) for _, column in table.items()], axis=1)
        if isinstance(value, pandas.Series):
            return _real_column(table, name)
    if not _is_real(array.dtype):
        found = f"dtype {array.dtype}" if array.ndim else shown(value)
        raise InputError(f"{name} must hold real numbers; got {found}. Convert it, or drop what is no number")
    return array


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _real_column(column: Any, name: str) -> np.ndarray:
    """A column of pandas in float64, a missing value as NaN."""
    if column.dtype.kind not in "biuf":
        raise InputError(
            f"{name} must hold real numbers; column {column.name!r} has dtype {column.dtype}. Convert or drop it"
        )
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def shown(value: Any) -> str:
    """A value in a message: on one line, and of a long one its beginning."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}... ({type(value).__name__})"


def as_rows(x: Any, name: str = "x") -> AnyArray:
    """Rows as a floating-point array (n, d): integers become float64, one-dimensional data one column.

    Integers that are being traced become the default precision of JAX.

    Raises:
        InputError: for other shapes, for types that are not real numbers, for NaN or infinite entries, for no rows.
    """
    array = real_array(x, name)
    if array.dtype not in (np.float32, np.float64):
        narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
        if is_traced(array):
            array = jnp.asarray(array, np.float32 if narrow else jnp.result_type(float))
        else:
            array = np.asarray(array, np.float32 if narrow else np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise InputError(f"{name} must have shape (rows, features); got {array.shape}")
    if 0 in array.shape:
        raise InputError(
            f"{name} has shape {array.shape}: there is nothing to fit. Give at least one row and one column"
        )
    if is_traced(array):
        return array
    rows_of = np.asarray(array)
    with np.errstate(all="ignore"):
        total = rows_of.sum()  # copies nothing; NaN and infinity survive it, and overflow is looked into
    if not np.isfinite(total) and (bad := ~np.isfinite(rows_of)).any():
        rows, columns = np.nonzero(bad)
        names = getattr(x, "columns", None)
        column = f"column {columns[0]}" if names is None else f"column {columns[0]} {str(names[columns[0]])!r}"
        raise InputError(
            f"{name} has NaN or infinite values in {len(set(rows.tolist()))} of {len(array)} rows, the first in row "
            f"{rows[0]}, {column} (counted from 0); drop or impute those rows"
        )
    return array


def as_key(key: Any) -> RandomKey:
    """A random key.

    Raises:
        InputError: for None, a seed, several keys, or anything else that is not a key.
    """
    if isinstance(key, jax.Array):
        shape = () if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else (2,) if key.dtype == jnp.uint32 else None
        if key.shape == shape:
            return key
        if shape is not None and key.ndim > len(shape) and key.shape[-1:] == (shape or key.shape[-1:]):
            leading = key.shape[: key.ndim - len(shape)]
            raise InputError(f"key has shape {leading}: these are several keys; pass one of them, such as key[0]")
    seed = key if isinstance(key, int) else 0
    raise InputError(f"key={shown(key)} is not a random key; pass key=jax.random.key({seed})")


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A count, as an integer of Python.

    Raises:
        InputError: for anything but whole numbers from `least` on.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={shown(value)} must be a whole number of at least {least}")
    return int(value)


def finite_number(name: str, value: Any, shape: tuple[int, ...] = (), dtype: Any = np.float64) -> AnyArray:
    """A number of at least 0, or where a shape is given also an array of them, in the given precision.

    Raises:
        InputError: for other shapes, for types that are not real numbers, for negative, infinite or NaN entries.
    """
    array = real_array(value, name)
    wanted = "a finite number of at least 0" + (f", or {shape[0]} of them, one for each feature" if shape else "")
    if array.shape not in ((), shape):
        raise InputError(f"{name} has shape {array.shape}; it must be {wanted}")
    if array.dtype == bool or not (is_traced(array) or (np.isfinite(array) & (np.asarray(array) >= 0)).all()):
        raise InputError(f"{name}={shown(value)} must be {wanted}")
    if is_traced(array):
        return jnp.asarray(array, jax.dtypes.canonicalize_dtype(dtype))
    return np.asarray(array, dtype)


def truth_value(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name}={shown(value)} must be True or False")
    return bool(value)


_MOST_SORTED_ROWS = 800_000


def enough_rows(
    x: AnyArray,
    num_components: Any,
    family: Family,
    row_weights: Any = None,
    *,
    bounded: bool = False,
    ridged: bool = False,
) -> None:
    """Refuse what no engine can fit. Rows of weight 0 do not count.

    With `bounded`, a prior bounds the likelihood, and a covariance needs no rows of its own. With `ridged`, every
    variance has a ridge of the caller's own: besides, no column and no component needs rows that differ.

    Raises:
        InputError: for k < 1, k beyond the number of distinct rows, fewer rows than a component needs, or a constant
            column.
    """
    num_components = whole_number("num_components", num_components)
    counted, used = "", None
    num_rows, num_features = x.shape
    if row_weights is not None and not is_traced(row_weights) and not (positive := np.asarray(row_weights) > 0).all():
        counted, used, num_rows = " of positive weight", positive, int(positive.sum())
    needed = max(num_components, 2 if family.diagonal or bounded or ridged else num_features + 1)
    if num_rows < needed:
        raise InputError(
            f"num_components={num_components} with family={family.name!r} needs at least {needed} rows{counted}, of "
            f"{num_features} features each; got {num_rows}. Give more rows, or choose a diagonal family, fewer "
            "components or a conjugate_prior"
        )
    if is_traced(x) or ridged:
        return
    rows = np.asarray(x)
    no_constant_column(rows, used)
    if num_components > 1 and (distinct := _num_distinct(rows, used, num_components)) < num_components:
        raise InputError(
            f"num_components={num_components} needs at least {num_components} distinct rows{counted}; got {distinct}"
        )


def has_enough_rows(x: AnyArray, num_components: int, family: Family) -> bool:
    """Whether there are rows enough for a likelihood with a maximum."""
    try:
        enough_rows(x, num_components, family)
    except InputError:
        return False
    return True


def _num_distinct(rows: np.ndarray, used: np.ndarray | None, enough: int) -> int:
    """The number of distinct rows, or any number from `enough` on: most tables show that in their first few rows.

    Of very many rows only a part is sorted, which costs no more than the fit; where few of those differ the rows are no
    data for a mixture of Gaussians, and counted as enough.
    """
    size, distinct = 4 * enough, 0
    num_rows = len(rows) if used is None else int(used.sum())
    while distinct < enough and size < 8 * num_rows:
        if size > _MOST_SORTED_ROWS:
            return enough
        distinct = len(np.unique(rows[:size] if used is None else rows[np.flatnonzero(used)[:size]], axis=0))
        size *= 8
    return distinct


def no_constant_column(x: np.ndarray, used: np.ndarray | None = None) -> None:
    """Refuse rows with a column that does not vary, among the rows that are used.

    Raises:
        InputError: naming that column.
    """
    counted = True if used is None else used[:, None]  # copies nothing
    largest = np.max(x, axis=0, initial=-np.inf, where=counted)
    constant = np.flatnonzero(largest == np.min(x, axis=0, initial=np.inf, where=counted))
    if constant.size:
        first = constant[0]
        raise InputError(
            f"column {first} of x is constant ({largest[first]:g}), so its variance is zero; drop that column"
        )


def as_row_weights(row_weights: Any, x: AnyArray) -> AnyArray:
    """Row weights (n) in the precision of the rows, ones by default.

    Raises:
        InputError: for a wrong length, for weights that are no numbers, negative, not finite or all zero, and for a sum
            beyond what sums of squares can be taken of.
    """
    num_rows = x.shape[0]
    if row_weights is None:
        return np.broadcast_to(np.ones((), x.dtype), (num_rows,))  # takes no memory
    weights = real_array(row_weights, "row_weights")
    if weights.shape != (num_rows,):
        raise InputError(f"row_weights must have shape ({num_rows},), one for each row; got {weights.shape}")
    if is_traced(weights):
        return jnp.asarray(weights, jax.dtypes.canonicalize_dtype(x.dtype))
    weights = np.asarray(weights)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise InputError(f"row_weights[{bad[0]}]={weights[bad[0]]} must be finite and not negative")
    if not weights.any():
        raise InputError("row_weights are all zero: no row counts. Give at least one positive weight")
    with np.errstate(over="ignore"):
        total = weights.sum(dtype=np.float64)
    limits = jnp.finfo(x.dtype)
    least, most = float(limits.tiny) ** 0.5, float(limits.max) ** 0.5
    if not least <= total <= most:
        raise InputError(
            f"row_weights add up to {total:g}, and {x.dtype} can compute with sums from {least:.0e} to {most:.0e}; "
            "multiply them by a constant"
        )
    return weights.astype(x.dtype)


def rows_that_count(x: AnyArray, row_weights: Any) -> AnyArray:
    """The rows, with one that counts in place of every row of weight 0, whose values then cannot spoil a sum."""
    if is_traced((x, row_weights)) or (used := np.asarray(row_weights) > 0).all():
        return x
    rows = np.asarray(x)
    return np.where(used[:, None], rows, rows[used.argmax()])
