"""Checks of arguments, made before anything is compiled: one line with the argument, the value and the cure.

Values that are being traced by the caller's own `jit`, `vmap` or `grad` have a shape and a dtype, which are checked,
but no contents to look at.
"""

import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.numerics.precision import AnyArray, ArrayLike, DTypeLike, RandomKey, in_precision, is_traced
from bayesgmm.numerics.words import counted


def real_array(value: Any, name: str) -> AnyArray:
    """An array of truth values, whole or floating-point numbers, of any shape; arrays of JAX stay such.

    Raises:
        InputError: for what is no rectangular array, is masked, or holds text, complex numbers or Python objects; of a
            DataFrame the column is named.
    """
    refuse_masks(value, name)
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
        found = f"dtype {array.dtype}" if array.ndim else short_repr(value)
        raise InputError(f"{name} must hold real numbers; got {found}. Convert it, or drop what is no number")
    return in_native_dtype(array)


def in_native_dtype(array: AnyArray) -> AnyArray:
    """An array as JAX takes it: in the byte order of this machine, and no more than float64."""
    if isinstance(array, jax.Array):
        return array
    wider = array.dtype.kind == "f" and array.dtype.itemsize > 8
    with np.errstate(over="ignore"):  # to infinity, which is refused where it matters
        return array.astype(np.float64 if wider else array.dtype.newbyteorder("="), copy=False)


def exact_in_float64(array: AnyArray, name: str) -> AnyArray:
    """Numbers that become float64, as they are.

    Raises:
        InputError: for whole numbers that are rounded by that.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and not is_traced(array) and array.size:
        values = np.asarray(array)
        if (most := max(int(values.max()), -int(values.min()))) > 2**53:
            raise InputError(
                f"{name} has whole numbers up to {most}, beyond 2**53, whose last digits float64 rounds; subtract "
                "their mean first, or leave out what is an identifier"
            )
    return array


def refuse_masks(value: object, name: str) -> None:
    """Refuse masked values, in an array or in a list of arrays: NumPy would drop the mask and count what is under it.

    Raises:
        InputError: with their number.
    """
    if number := _num_masked(value):
        kind = "a masked array" if isinstance(value, np.ndarray) else f"a {type(value).__name__} of masked arrays"
        raise InputError(
            f"{name} is {kind} with {counted(number, 'masked value')} and would count without its mask; drop those "
            "rows, or fill them with .filled(value)"
        )


def _num_masked(value: object) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_num_masked, value))
    return int(np.ma.count_masked(value)) if isinstance(value, np.ma.MaskedArray) else 0


def _is_real(dtype: np.dtype) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _real_column(column: Any, name: str) -> np.ndarray:
    """A column of pandas in float64, a missing value as NaN."""
    if column.dtype.kind not in "biuf":
        raise InputError(
            f"{name} must hold real numbers; column {column.name!r} has dtype {column.dtype}. Convert or drop it"
        )
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def short_repr(value: object) -> str:
    """A value in a message: on one line, and of a long one its beginning."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}... ({type(value).__name__})"


def as_matrix(x: ArrayLike, name: str = "x") -> AnyArray:
    """Rows as a floating-point array (n, d): integers become float64, one-dimensional data one column.

    Integers that are being traced become the default precision of JAX.

    Raises:
        InputError: for other shapes, for types that are not real numbers, for NaN or infinite entries, for no rows.
    """
    array = exact_in_float64(real_array(x, name), name)
    if array.dtype not in (np.float32, np.float64):
        narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
        array = in_precision(array, np.float32 if narrow else np.float64)
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


def name_features(
    feature_names: Iterable[object] | None, num_features: int, *known: object, default: str = "x{}"
) -> tuple[str, ...]:
    """Names of all features: those given, else those that something knows (`names_of`), else numbered ones.

    Raises:
        InputError: for another number of names than features.
    """
    names = next(filter(None, map(names_of, known)), None) if feature_names is None else feature_names
    if names is None:
        return tuple(default.format(index) for index in range(num_features))
    names = (names,) if isinstance(names, str) else tuple(str(name) for name in names)
    if len(names) != num_features:
        raise InputError(f"feature_names has {len(names)} names for {num_features} features; give one each")
    return names


def names_of(table: object) -> tuple[str, ...]:
    """Names of the columns of a data frame, or of what was made of one; none of anything else."""
    names = getattr(table, "columns", None)
    names = getattr(table, "feature_names", ()) if names is None else names
    return tuple(str(name) for name in names) if isinstance(names, Iterable) else ()


def as_key(key: object) -> RandomKey:
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
    raise InputError(f"key={short_repr(key)} is not a random key; pass key=jax.random.key({seed})")


def whole_number(name: str, value: object, least: int = 1) -> int:
    """A count, as an integer of Python.

    Raises:
        InputError: for anything but whole numbers from `least` on.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={short_repr(value)} must be a whole number of at least {least}")
    return int(value)


def nonnegative(name: str, value: object, shape: tuple[int, ...] = (), dtype: DTypeLike = np.float64) -> AnyArray:
    """A number of at least 0, or where a shape is given also an array of them, in the given precision.

    Raises:
        InputError: for other shapes, for types that are not real numbers, for negative, infinite or NaN entries.
    """
    array = real_array(value, name)
    wanted = "a finite number of at least 0" + (f", or {shape[0]} of them, one for each feature" if shape else "")
    if array.shape not in ((), shape):
        raise InputError(f"{name} has shape {array.shape}; it must be {wanted}")
    if array.dtype == bool or not (is_traced(array) or (np.isfinite(array) & (np.asarray(array) >= 0)).all()):
        raise InputError(f"{name}={short_repr(value)} must be {wanted}")
    return in_precision(array, dtype)


def check_bool(name: str, value: object) -> bool:
    """True or False.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name}={short_repr(value)} must be True or False")
    return bool(value)


def one_of(name: str, value: object, known: Iterable[str], more: str = "") -> str:
    """One of the known words.

    Raises:
        InputError: for anything else, with the closest of them, and all of them; `more` is added to these.
    """
    if isinstance(value, str) and value in known:
        return value
    known = tuple(known)
    hint = did_you_mean(value, known)
    raise InputError(f"{name}={short_repr(value)} is not known; {hint}choose one of {', '.join(known)}{more}")


def did_you_mean(value: object, known: Sequence[str]) -> str:
    """A question about the closest of the known words, or nothing where none is close."""
    closest = difflib.get_close_matches(str(value), known, 1)
    return f"did you mean {closest[0]!r}? " if closest else ""


def matrix_fault(matrix: np.ndarray) -> str:
    """What keeps a matrix (d, d) from being a covariance or a precision, in words; nothing where it may be one."""
    if not np.allclose(matrix, matrix.T, rtol=1e-5, atol=1e-6 * np.abs(matrix).max()):
        return "is not symmetric"
    variances = np.diagonal(matrix)
    if (variances > 0).all():
        # In units in which the variances are 1, for those of the features may lie beyond all digits of each other.
        units = np.sqrt(variances)
        if np.linalg.eigvalsh(matrix / units[:, None] / units)[0] > 0:
            return ""
    cure = "give an invertible covariance matrix, or the inverse of one"
    return f"is not positive definite: it has the eigenvalue {np.linalg.eigvalsh(matrix)[0]:g}; {cure}"


def no_constant_column(x: np.ndarray, used: np.ndarray | None = None) -> None:
    """Refuse rows with a column that does not vary, among the rows that are used, or by what has no square.

    Raises:
        InputError: naming that column, and of one that is too wide the row that is farthest away.
    """
    largest, least = column_ranges(x, used)
    constant = np.flatnonzero(largest == least)
    if constant.size:
        first = constant[0]
        raise InputError(
            f"column {first} of x is constant ({largest[first]:g}), so its variance is zero; drop that column"
        )
    limits = np.finfo(x.dtype)
    if (narrow := np.flatnonzero(largest - least < (limits.tiny / limits.eps) ** 0.5)).size:
        first = narrow[0]
        raise InputError(
            f"column {first} of x varies by {largest[first] - least[first]:g} only, whose square is below {x.dtype}; "
            f"rescale the column{'' if x.dtype == np.float64 else ', or give float64'}"
        )


def column_ranges(x: np.ndarray, used: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Largest and smallest entries of the columns, among the rows that are used.

    Raises:
        InputError: for a column whose sum of squares overflows, with the row that is farthest away.
    """
    counted = True if used is None else used[:, None]  # copies nothing
    largest = np.max(x, axis=0, initial=-np.inf, where=counted)
    least = np.min(x, axis=0, initial=np.inf, where=counted)
    with np.errstate(all="ignore"):
        too_wide = np.flatnonzero(np.isinf(len(x) * np.square(largest - least)) & np.isfinite(largest + 0 * least))
    if too_wide.size:
        column = too_wide[0]
        row = int(np.abs(np.where(True if used is None else used, x[:, column], 0)).argmax())
        raise InputError(
            f"column {column} of x has {x[row, column]:g} in row {row} (counted from 0), whose square is beyond "
            f"{x.dtype}; drop that row, or rescale the column{'' if x.dtype == np.float64 else ', or give float64'}"
        )
    return largest, least
