"""Every limit that a diagnosis is made by, with its unit, reason and source: a table that the documentation prints."""

import math
import tomllib
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Bool, Float

_OWN = "a choice of this package"


class Threshold(float):
    """A number to compare with, and where it comes from.

    Attributes:
        unit: what the number counts or measures.
        reason: what it tells apart.
        source: a paper, or this package.
    """

    unit: str
    reason: str
    source: str

    def __new__(cls, value: float, unit: str, reason: str, source: str = _OWN) -> Self:
        """The number, with its documentation."""
        self = super().__new__(cls, value)
        self.unit, self.reason, self.source = unit, reason, source
        return self


_TABLE = {
    name: Threshold(**row)
    for name, row in tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8")).items()
}


def thresholds() -> dict[str, Threshold]:
    """All of them by name."""
    return dict(_TABLE)


def __getattr__(name: str) -> Threshold:
    """Each is a name of this module."""
    if name not in _TABLE:
        raise AttributeError(name)
    return _TABLE[name]


def vary(draws: Float[np.ndarray, "..."], axis: int | None = None) -> Bool[np.ndarray, "..."] | np.bool:
    """Whether draws differ by more than rounding, as the weight of the only component does not; NaN and infinity do."""
    with np.errstate(invalid="ignore"):
        return ~(np.ptp(draws, axis) <= _TABLE["MIN_RANGE"] * np.abs(draws).max(axis)) | ~np.isfinite(draws).all(axis)


def pareto_k_limit(num_draws: int) -> float:
    """The largest Pareto k with which so many draws give reliable importance weights.

    Source: Vehtari et al. (2024), section 3.2.4.
    """
    return min(1 - 1 / math.log10(num_draws), float(_TABLE["MAX_PARETO_K"])) if num_draws > 10 else 0.0
