"""Checks of mixtures made by hand, and of what their methods are given: orders and columns that are there."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bayesgmm.errors import InputError
from bayesgmm.numerics.precision import AnyArray, ArrayLike, in_precision, is_traced
from bayesgmm.numerics.validation import (
    exact_in_float64,
    matrix_fault,
    one_of,
    real_array,
    refuse_masks,
    short_repr,
    whole_number,
)

_ROUNDING = 1e-4  # of a sum of weights


def as_fields(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> list[AnyArray]:
    """Weights, means and covariances of one mixture, all in the widest precision of those that are floating-point.

    Lists and whole numbers have the precision of the others, and float64 where there are none.

    Raises:
        InputError: for shapes that do not belong together, and for values that no mixture has.
    """
    given: dict[str, Any] = {"weights": weights, "means": means, "covariances": covariances}
    fields = {name: real_array(value, name) for name, value in given.items()}
    _check_shapes(fields)
    of_arrays = [field.dtype for name, field in fields.items() if hasattr(given[name], "dtype")]
    floating = [dtype for dtype in of_arrays if jnp.issubdtype(dtype, jnp.floating)]
    dtype = np.float64 if not floating or np.float64 in floating else np.float32
    known = {name: np.asarray(field) for name, field in fields.items() if not is_traced(field)}
    for name, field in known.items():
        if not np.isfinite(field).all():
            raise InputError(f"{name} has NaN or infinite entries; give finite ones")
    if "weights" in known:
        if (known["weights"] < 0).any():
            raise InputError(f"weights={short_repr(known['weights'].tolist())} must not be negative")
        _check_sum(known["weights"], "weights")
    if "covariances" in known:
        _check_covariances(known["covariances"], diagonal=fields["covariances"].ndim == fields["means"].ndim)
    return [
        field.astype(dtype) if isinstance(field, jax.Array) else in_precision(field, dtype) for field in fields.values()
    ]


def check_mixture(fields: Mapping[str, Any], name: str) -> None:
    """Refuse a mixture whose fields (log-weights, means, precision factor) do not belong together, or are of none.

    NaN passes, for fits that failed have it.
    """
    for field, value in fields.items():
        refuse_masks(value, f"{name}.{field}")
        if getattr(value, "dtype", None) not in (np.float32, np.float64):  # in the byte order of this machine
            found = getattr(value, "dtype", None)
            raise InputError(
                f"{name}.{field}={short_repr(value)} must be an array of floating-point numbers, float32 or "
                f"float64{'' if found is None else f', not {found!s}'}; make mixtures by "
                "Mixture.from_covariances(weights, means, covariances)"
            )
    _check_shapes(fields, f"{name}: ")
    if not all(isinstance(value, np.ndarray | jax.Array) for value in fields.values()) or is_traced(fields):
        return
    log_weights, _, factor = (np.asarray(value) for value in fields.values())
    with np.errstate(over="ignore"):
        _check_sum(np.exp(log_weights), f"{name}: weights, the exponentials of log_weights,")
    dense = factor.ndim > fields["means"].ndim
    if ((np.diagonal(factor, axis1=-2, axis2=-1) if dense else factor) < 0).any():
        raise InputError(f"{name}.precision_factor has a negative entry on its diagonal; reverse the sign of that row")
    # Above the diagonal nothing is read, but an upper triangular factor means something else.
    if dense and np.triu(factor, 1).any() and not np.tril(factor, -1).any():
        raise InputError(
            f"{name}.precision_factor is upper triangular and must be lower triangular; give its transpose, of "
            "scikit-learn's precisions_cholesky_ for one"
        )


def _check_shapes(fields: Mapping[str, AnyArray], where: str = "") -> None:
    weights, means, matrices = fields.values()
    *draws, k, d = means.shape if means.ndim > 1 else (0, 0)
    expected = [(*draws, e, *shape) for e in (k, 1) for shape in ((d, d), (d,))]
    if 0 in (k, d) or weights.shape != means.shape[:-1] or matrices.shape not in expected:
        first, second, third = fields
        raise InputError(
            f"{where}{first}, {second} and {third} must have shapes (k,), (k, d), and (e, d, d) or (e, d) with e = 1 "
            f"or k, after leading axes that they share; got {weights.shape}, {means.shape} and {matrices.shape}"
        )


def _check_sum(weights: np.ndarray, what: str) -> None:
    off = np.abs(weights.sum(-1) - 1) > _ROUNDING
    if off.any():
        raise InputError(f"{what} sum to {weights.sum(-1)[off][0]:g}; they must sum to 1: divide them by their sum")


def _check_covariances(covariances: np.ndarray, *, diagonal: bool) -> None:
    if diagonal:
        if (bad := np.argwhere(covariances <= 0)).size:
            place = tuple(bad[0].tolist())
            raise InputError(f"covariances{list(place)}={covariances[place]:g} is a variance and must be positive")
        return
    matrices = covariances.reshape(-1, *covariances.shape[-2:])
    for index, matrix in zip(np.ndindex(covariances.shape[:-2]), matrices, strict=True):
        if fault := matrix_fault(matrix):
            raise InputError(f"covariances{list(index)} {fault}")


def rows_of_features(num_features: int, x: ArrayLike) -> AnyArray:
    """Rows x (n, d), of one feature also (n,), of any real dtype, with so many features; values are not checked."""
    rows = exact_in_float64(real_array(x, "x"), "x")
    rows = rows[:, None] if rows.ndim == num_features == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != num_features:
        raise InputError(f"x must have shape (rows, {num_features}) like the means; got {rows.shape}")
    return rows


def check_draws(index: PyTree, draw_shape: tuple[int, ...]) -> PyTree:
    """An index of the leading axes alone: one index more would select components, and an ellipsis reach to features.

    Raises:
        IndexError: where there are no such axes, or fewer.
    """
    if not draw_shape:
        raise IndexError("a single mixture has no leading axes to index; use .permute to reorder components")
    if not is_traced(index):
        np.broadcast_to(0, draw_shape)[index]
    parts = index if isinstance(index, tuple) else (index,)
    if not any(part is Ellipsis for part in parts):
        return index
    place = next(number for number, part in enumerate(parts) if part is Ellipsis)
    others = [part for part in (*parts[:place], *parts[place + 1 :]) if part is not None]
    taken = sum(np.ndim(part) if getattr(part, "dtype", None) == np.bool_ else 1 for part in others)
    return (*parts[:place], *[slice(None)] * (len(draw_shape) - taken), *parts[place + 1 :])


def check_order(order: ArrayLike, shape: tuple[int, ...]) -> AnyArray:
    """An order of the components, (k), or one for each of the draws."""
    array = real_array(order, "order")
    k = shape[-1]
    fits = array.dtype.kind in "iu" and array.ndim > 0 and array.shape in (shape, (k,))
    if not fits or not (is_traced(array) or (np.sort(array, axis=-1) == np.arange(k)).all()):
        raise InputError(f"order={short_repr(order)} must have each of the components 0 to {k - 1} once, shape {shape}")
    return array


def check_columns(columns: Any, num_features: int, names: tuple[str, ...] = ()) -> tuple[int, ...]:
    """Numbers of columns, one or several, in the order given; by their names too where they have some."""
    several = np.ravel(columns).tolist() if isinstance(columns, np.ndarray | np.integer | int) else columns
    several = [several] if isinstance(several, str) else several
    kinds = "names or numbers of columns" if names else "numbers of columns"
    try:
        checked = tuple(
            names.index(one_of("columns", column, names))
            if names and isinstance(column, str)
            else whole_number("columns", column, least=0)
            for column in several
        )
    except TypeError:
        raise InputError(f"columns={short_repr(columns)} must be {kinds}, counted from 0") from None
    if not checked:
        raise InputError("columns is empty; give at least one number of a column")
    if len(set(checked)) < len(checked):
        raise InputError(f"columns={short_repr(columns)} has a column more than once; drop the repetition")
    if max(checked) >= num_features:
        raise InputError(
            f"columns={short_repr(columns)} has {max(checked)}, and the mixture has {num_features} features; choose "
            "among them, counted from 0"
        )
    return checked


def check_values(values: ArrayLike, columns: tuple[int, ...], num_features: int) -> AnyArray:
    """Values to condition on, (b) or (m, b), of these columns."""
    if len(columns) == num_features:
        raise InputError(f"columns={columns} are all {num_features} features, so none is left; leave one out")
    array = exact_in_float64(real_array(values, "values"), "values")
    if array.ndim not in (1, 2) or array.shape[-1] != len(columns):
        raise InputError(
            f"values must have shape ({len(columns)},) or (rows, {len(columns)}), a value for each of "
            f"columns={columns}; got {array.shape}"
        )
    if not is_traced(array) and not np.isfinite(np.asarray(array)).all():
        raise InputError("values has NaN or infinite entries; give finite ones, and leave out the columns of others")
    return array
