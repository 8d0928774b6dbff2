"""What columns look like: numbers of the rows, classes, or combinations of other columns, which are no measurements.

Nothing is guessed of few rows. A guess is a word to the user, who may know better.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import pandas as pd

_FEWEST_ROWS = 10  # of which anything is guessed
_MOST_CLASSES = 10
_MOST_ROWS = 20_000  # that are looked at for combinations
_IDENTIFIER = re.compile(r"(.*[\W_])?(id|ids|idx|index|rownames|row|rowid|uuid|key|serial|number|no|nr)", re.IGNORECASE)
_CLASS = re.compile(
    r"(.*[\W_])?(class|classes|label|labels|target|species|cluster|group|category|diagnosis)", re.IGNORECASE
)


def doubt_about(name: str, values: Float[np.ndarray, " n"]) -> str:
    """Why a column of numbers is hardly a measurement, in words; nothing where it may be one."""
    if len(values) < _FEWEST_ROWS or not np.isfinite(values).all() or (values != np.round(values)).any():
        return ""
    distinct = len(np.unique(values))
    if (np.abs(np.diff(values)) == 1).all() and distinct == len(values):
        return "its whole numbers count the rows"
    if distinct == len(values) and _IDENTIFIER.fullmatch(name):
        return "its name and its distinct whole numbers are those of an identifier"
    if 1 < distinct <= _most_classes(name, len(values)):
        return f"it has {distinct} distinct whole numbers only, like classes"
    return ""


def _most_classes(name: str, num_rows: int) -> int:
    return num_rows // 2 if _CLASS.fullmatch(name) else min(_MOST_CLASSES, num_rows // 5)


def classes_in(name: str, column: "pd.Series") -> bool:
    """Whether a column that is no feature looks like classes: few words, or few whole numbers."""
    if len(column) < _FEWEST_ROWS or not 1 < column.nunique() <= _most_classes(name, len(column)):
        return False
    return column.dtype.kind not in "iuf" or bool((column.dropna() % 1 == 0).all())


def combined_columns(x: Float[np.ndarray, "n d"], names: Sequence[str]) -> list[str]:
    """Sentences on columns that are linear combinations of others, to rounding: covariances of all are singular."""
    from scipy.linalg import qr, solve_triangular  # on first use: it takes a moment to import

    num_rows, num_features = x.shape
    if num_features < 2 or num_rows <= num_features + 1:
        return []
    rows = np.asarray(x[:: max(1, num_rows // _MOST_ROWS)], np.float64)
    centred = rows - rows.mean(0)
    spread = np.sqrt((centred**2).mean(0))
    if not (np.isfinite(spread) & (spread > 0)).all():
        return []
    # What the numbers were rounded by stays in the difference of a column and a combination.
    rounding = 1e3 * np.finfo(x.dtype).eps * (1 + np.abs(rows).max(0) / spread).max()
    upper, order = map(np.asarray, qr(centred / spread, mode="r", pivoting=True))
    upper = upper[:num_features]
    size = np.abs(np.diagonal(upper))
    rank = int((size > rounding * size[0]).sum())
    coefficients = solve_triangular(upper[:rank, :rank], upper[:rank, rank:])
    sentences = []
    for index, column in enumerate(order[rank:]):
        others = [names[one] for one in sorted(order[:rank][np.abs(coefficients[:, index]) > 1e-6].tolist())]
        shown = ", ".join(repr(other) for other in others[:6]) + (", ..." if len(others) > 6 else "")
        sentences.append(f"column {names[column]!r} is a linear combination of {shown}")
    return sentences
