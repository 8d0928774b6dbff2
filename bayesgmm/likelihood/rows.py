"""What is known of the rows: their weights, and whether they are enough for a mixture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.precision import AnyArray, is_traced
from bayesgmm.numerics.validation import no_constant_column, real_array, whole_number

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
    needed = max(num_components, 2 if bounded or ridged else family.min_rows(num_features))
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
