"""Checks of what methods of a mixture are given: fields that belong together, orders and columns that are there."""

from typing import Any

import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.numerics.precision import AnyArray, ArrayLike, is_traced
from bayesgmm.numerics.validation import real_array, short_repr, whole_number


def check_fields(weights: AnyArray, means: AnyArray, covariances: AnyArray) -> None:
    """Refuse weights, means and covariances of different mixtures."""
    *draws, k, d = means.shape if means.ndim > 1 else (0, 0)
    expected = [(*draws, e, *shape) for e in (k, 1) for shape in ((d, d), (d,))]
    if means.ndim < 2 or weights.shape != means.shape[:-1] or covariances.shape not in expected:
        raise InputError(
            "weights, means and covariances must have shapes (k,), (k, d), and (e, d, d) or (e, d) with e = 1 or k, "
            f"after leading axes that they share; got {weights.shape}, {means.shape} and {covariances.shape}"
        )


def check_order(order: ArrayLike, shape: tuple[int, ...]) -> AnyArray:
    """An order of the components, (k), or one for each of the draws."""
    array = real_array(order, "order")
    k = shape[-1]
    fits = array.dtype.kind in "iu" and array.ndim > 0 and array.shape in (shape, (k,))
    if not fits or not (is_traced(array) or (np.sort(array, axis=-1) == np.arange(k)).all()):
        raise InputError(f"order={short_repr(order)} must have each of the components 0 to {k - 1} once, shape {shape}")
    return array


def check_columns(columns: Any, num_features: int) -> tuple[int, ...]:
    """Numbers of columns, one or several, in the order given."""
    several = np.ravel(columns).tolist() if isinstance(columns, np.ndarray | np.integer | int) else columns
    try:
        checked = tuple(whole_number("columns", column, least=0) for column in several)
    except TypeError:
        raise InputError(f"columns={short_repr(columns)} must be numbers of columns, counted from 0") from None
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
    array = real_array(values, "values")
    if array.ndim not in (1, 2) or array.shape[-1] != len(columns):
        raise InputError(
            f"values must have shape ({len(columns)},) or (rows, {len(columns)}), a value for each of "
            f"columns={columns}; got {array.shape}"
        )
    if not is_traced(array) and not np.isfinite(np.asarray(array)).all():
        raise InputError("values has NaN or infinite entries; give finite ones, and leave out the columns of others")
    return array
