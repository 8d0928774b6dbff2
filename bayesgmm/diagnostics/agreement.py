"""How far partitions of the same rows agree: with each other, and with classes that are known."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import ArrayLike

from bayesgmm.engines.kmeans import KMeansFit, inertia_of
from bayesgmm.errors import InputError


def check_labels(labels: ArrayLike | None, num_rows: int) -> Shaped[np.ndarray, " n"] | None:
    """Known classes of the rows, numbers or text, or None; None, NaN, masks and empty text stand for one not known.

    Raises:
        InputError: for another number of them than rows, and where none is known.
    """
    if labels is None:
        return None
    labels = _with_gaps(labels)
    if labels.shape != (num_rows,):
        raise InputError(f"labels must have shape ({num_rows},), one for each row; got {labels.shape}")
    if not known(labels).any():
        raise InputError("labels are all missing, so they tell nothing; leave them out")
    return labels


def _with_gaps(labels: ArrayLike) -> Shaped[np.ndarray, "..."]:
    """Labels as an array, with None where they are masked."""
    if isinstance(labels, list | tuple):
        return np.asarray([None if label is np.ma.masked else label for label in labels])
    if not isinstance(labels, np.ma.MaskedArray):
        return np.asarray(labels)
    found = np.array(labels.data, object if np.ma.is_masked(labels) else None)
    found[np.ma.getmaskarray(labels)] = None
    return found


def known(labels: Shaped[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each class is known."""
    import pandas as pd

    return ~(np.asarray(pd.isna(labels)) | (labels.astype(str) == ""))


def adjusted_rand_index(labels: ArrayLike, other: ArrayLike) -> float:
    """Agreement of two partitions beyond chance: 1 for the same, about 0 for unrelated ones. No labels are matched.

    Rows whose class is missing (None, NaN, masked, empty text) in either are left out.

    Source: Hubert & Arabie (1985), by scikit-learn.

    Raises:
        InputError: for partitions of different numbers of rows.
    """
    from sklearn.metrics import adjusted_rand_score  # on first use: it takes a second to import

    labels, other = _with_gaps(labels), _with_gaps(other)
    if labels.ndim != 1 or labels.shape != other.shape:
        raise InputError(f"labels and other must have one shape (n,); got {labels.shape} and {other.shape}")
    both = known(labels) & known(other)
    # Text and numbers in one array of objects would not sort; their numbers do.
    codes = [np.unique(one[both].astype(str), return_inverse=True)[1] for one in (labels, other)]
    return float(adjusted_rand_score(*codes))


def agreement_columns(
    x: Float[np.ndarray, "n d"],
    assignments: Mapping[str, Int[np.ndarray, " n"]],
    partitions: Mapping[str, KMeansFit],
    labels: Shaped[np.ndarray, " n"] | None,
) -> dict[str, list[float]]:
    """Columns of a comparison's table, one number for each of its rows' hard assignments.

    `inertia`, the sum of squares within clusters in the units of k-means; for each of the partitions `ari_NAME`, and
    `ari_labels`: adjusted Rand indices with it and with known classes, NaN where there are none.
    """
    scale = next((partition.column_scale for partition in partitions.values()), 1.0)
    references = {name: partition.labels for name, partition in partitions.items()} | {"labels": labels}
    rows = assignments.values()
    columns = {"inertia": [inertia_of(x, row, scale) for row in rows]}
    for name, other in references.items():
        columns[f"ari_{name}"] = [np.nan if other is None else adjusted_rand_index(row, other) for row in rows]
    return columns
