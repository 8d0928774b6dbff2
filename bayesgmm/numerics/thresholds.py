"""Every limit that a diagnosis is made by, with its unit, reason and source: a table that the documentation prints."""

import math
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


MAX_R_HAT = Threshold(1.01, "R-hat", "chains agree up to it", "Vehtari et al. (2021)")
HOPELESS_R_HAT = Threshold(
    1.1, "R-hat", "draws are of no use above it: the limit in use before 1.01", "Gelman et al. (2013), chapter 11"
)
MIN_ESS_PER_CHAIN = Threshold(
    100.0,
    "effective draws a chain",
    "bulk and tails are known well enough: 400 of four chains",
    "Vehtari et al. (2021)",
)
MANY_DIVERGENCES = Threshold(0.01, "share of the draws", "more divergences than this are no accident")
MAX_TREE_DEPTH = Threshold(10.0, "doublings", "NumPyro ends a trajectory after so many, by default", "NumPyro")
MIN_E_BFMI = Threshold(
    0.3,
    "energy fraction of missing information",
    "the energy changes too slowly below it",
    "Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo",
)
MIN_ACCEPTANCE = Threshold(0.1, "mean acceptance rate of a chain", "a chain that accepts less is stuck")
MAX_REPEATED = Threshold(0.5, "share of a chain's draws", "a chain that repeats more draws than this is stuck")
MAX_PARETO_K = Threshold(
    0.7,
    "Pareto k",
    "importance weights are unreliable above it, and of S draws above 1 - 1 / log10(S); above 1 they have no mean",
    "Vehtari et al. (2024), Pareto smoothed importance sampling",
)
MAX_TRUNCATED = Threshold(
    0.75, "share of the stick", "a stick of k pieces is no Dirichlet process if the last has more"
)
MAX_RELABELLED = Threshold(0.05, "share of the draws", "label switching is reported from it on")
MIN_MODE_DRAWS = Threshold(10.0, "draws", "a peak of a chain has at least as many")
MIN_MODE_SHARE = Threshold(0.05, "share of a chain's draws", "a peak of a chain has at least as many")
MAX_VALLEY = Threshold(
    1 / 3,
    "draws between two peaks, relative to the lower peak",
    "a chain has two modes below it. Of 4,000 autocorrelated chains of 1,000 draws (normal, uniform, exponential, "
    "Student's t with 3 degrees of freedom) none was called bimodal at 26 effective draws and 6 at 5; two normals in "
    "proportion 3 : 7 are, from 5 standard deviations between them",
)
EMPTY_PROBABILITY = Threshold(0.05, "share of the draws", "components with too few rows are reported from it on")
MIN_WIDTH = Threshold(
    1e-3, "width of a component, relative to the data in the same direction", "a component is a spike below it"
)
MAX_SD_RATIO = Threshold(
    math.sqrt(0.5),
    "posterior standard deviation, relative to the prior's",
    "the data removed less than half of the prior variance above it",
)
MAX_SENSITIVITY = Threshold(
    0.05,
    "change of a parameter with the power of the prior or likelihood",
    "a parameter is sensitive above it",
    "Kallioinen, Paananen, Bürkner & Vehtari (2024)",
)
OVERCONFIDENT = Threshold(0.7, "standard deviation, relative to the sampler's", "an engine is overconfident below it")
UNDERCONFIDENT = Threshold(1.4, "standard deviation, relative to the sampler's", "an engine is underconfident above it")
MIN_COVERAGE = Threshold(
    0.85, "share of the posterior in a 95 % interval", "an interval of maximum likelihood is too narrow below it"
)
MIN_INFORMATION = Threshold(
    1e-7,
    "information, relative to that of known labels",
    "the information is singular below it: rounding in sums over many rows hides less",
)
MAX_DISTANCE = Threshold(
    0.25, "standard errors from the maximum", "a fit is not the maximum whose standard errors are reported above it"
)


MIN_DRAWS = Threshold(25.0, "draws", "k-hat is fitted to the largest fifth of them, which has five")
MIN_RANGE = Threshold(1e-12, "range of draws, relative to the largest", "draws differ by rounding only up to it")


def thresholds() -> dict[str, Threshold]:
    """All of them by name."""
    return {name: value for name, value in globals().items() if isinstance(value, Threshold)}


def vary(draws: Float[np.ndarray, "..."], axis: int | None = None) -> Bool[np.ndarray, "..."] | np.bool:
    """Whether draws differ by more than rounding, as the weight of the only component does not; NaN and infinity do."""
    with np.errstate(invalid="ignore"):
        return ~(np.ptp(draws, axis) <= MIN_RANGE * np.abs(draws).max(axis)) | ~np.isfinite(draws).all(axis)


def pareto_k_limit(num_draws: int) -> float:
    """The largest Pareto k with which so many draws give reliable importance weights.

    Source: Vehtari et al. (2024), section 3.2.4.
    """
    return min(1 - 1 / math.log10(num_draws), float(MAX_PARETO_K)) if num_draws > 10 else 0.0
