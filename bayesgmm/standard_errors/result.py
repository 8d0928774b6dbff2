"""What standard errors come as: `Uncertainty`, its intervals, its table, and the codes that say what is wrong."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bayesgmm.engines.fit import ResultCode
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.mixtures.quantities import entries
from bayesgmm.numerics.validation import shown
from bayesgmm.standard_errors.findings import UncertaintyCode
from bayesgmm.standard_errors.intervals import (
    INTERVALS,
    LOG,
    bca_interval,
    normal_interval,
    percentile_interval,
    scale_of,
)
from bayesgmm.standard_errors.replicates import is_failure

if TYPE_CHECKING:
    import pandas as pd

BY_THEORY = ("observed", "sandwich")
BY_DRAWING = ("bootstrap", "weighted", "parametric")
METHODS = (*BY_THEORY, *BY_DRAWING, "jackknife")


@dataclass(frozen=True)
class Uncertainty:
    """Standard errors of a maximum-likelihood fit, and what they were made of.

    Quantities are held by name: "weights" (k), "means" (k, d), "covariances" (k, d, d), "standard_deviations" (k, d),
    "correlations" (k, d, d), and the functions that were asked for.

    Attributes:
        method: how the errors were found.
        family: name of the covariance family.
        mixture: the fit's mixture, whose labels all replicates have.
        estimates: quantities of that mixture.
        standard_errors: of the same shapes; NaN where `code` is not `sound` and the method is by theory.
        acceleration: Efron's a of every quantity, for BCa intervals; NaN where `code` is not `sound`.
        code: an `UncertaintyCode`, of several troubles the worst.
        message: what is wrong and what to try; empty where nothing is.
        replicates: quantities of every replicate, with a leading axis r, None for methods by theory. Replicates that
            failed are among them, and are left out of all that is made of them.
        replicate_results: a `ResultCode` of every replicate, (r).
        replicate_weights: how often each replicate counts: in a jackknife the weight of the row left out, else 1, (r).
    """

    method: str
    family: str
    mixture: Mixture
    estimates: dict[str, np.ndarray]
    standard_errors: dict[str, np.ndarray]
    acceleration: dict[str, np.ndarray]
    code: UncertaintyCode
    message: str
    replicates: dict[str, np.ndarray] | None = None
    replicate_results: np.ndarray | None = None
    replicate_weights: np.ndarray | None = None

    @property
    def num_replicates(self) -> int:
        """How many replicates were fitted."""
        return 0 if self.replicate_results is None else len(self.replicate_results)

    @property
    def num_failed(self) -> int:
        """How many of them are no fits, and were left out."""
        return int((~self._kept).sum())

    @property
    def num_unconverged(self) -> int:
        """How many were still moving at the step limit; they are counted in."""
        return (
            0 if self.replicate_results is None else int((self.replicate_results == ResultCode.max_steps_reached).sum())
        )

    @property
    def _kept(self) -> np.ndarray:
        if self.replicate_results is None:
            return np.zeros(0, bool)
        return ~is_failure(self.replicate_results)

    def intervals(self, level: float = 0.95, kind: str | None = None) -> dict[str, np.ndarray]:
        """Confidence limits of every quantity, on the last axis of its own shape.

        Args:
            level: probability that the interval is to cover the truth.
            kind: "normal", by default where there are no random replicates; "percentile", by default where there are;
                or "bca", bias-corrected and accelerated (1,000 replicates or more are advisable).

        Raises:
            InputError: for an unknown kind, one that needs replicates drawn at random, or a level outside (0, 1).
        """
        drawn = self.method in BY_DRAWING
        kind = ("percentile" if drawn else "normal") if kind is None else kind
        if kind not in INTERVALS:
            raise InputError(f"kind={kind!r} is not known; choose one of {', '.join(INTERVALS)}")
        if not isinstance(level, float) or not 0.0 < level < 1.0:
            raise InputError(f"level={shown(level)} must lie between 0 and 1, such as 0.95")
        if kind != "normal" and not drawn:
            raise InputError(
                f"kind={kind!r} needs replicates drawn at random, which method={self.method!r} has not; use "
                f"kind='normal', or one of the methods {', '.join(BY_DRAWING)}"
            )
        return {name: self._interval(name, level, kind) for name in self.estimates}

    def _interval(self, name: str, level: float, kind: str) -> np.ndarray:
        estimate, error = self.estimates[name], self.standard_errors[name]
        if kind == "normal":
            limits = normal_interval(estimate, error, level, scale_of(name))
            if name == "covariances":
                diagonal = np.eye(estimate.shape[-1], dtype=bool)[None, :, :, None]
                limits = np.where(diagonal, normal_interval(estimate, error, level, LOG), limits)
            return limits.astype(estimate.dtype)
        assert self.replicates is not None
        replicates = self.replicates[name][self._kept]
        if len(replicates) < 2:
            return np.full((*estimate.shape, 2), np.nan, estimate.dtype)
        if kind == "percentile":
            return percentile_interval(replicates, level).astype(estimate.dtype)
        return bca_interval(replicates, estimate, self.acceleration[name], level).astype(estimate.dtype)

    def to_frame(
        self, level: float = 0.95, kind: str | None = None, feature_names: Iterable[str] | None = None
    ) -> "pd.DataFrame":
        """A line for every free number: cluster, quantity, estimate, standard error, lower and upper limit.

        What all components share is under the cluster "all", functions of the user under none.

        Raises:
            InputError: as `intervals`, and for another number of names than features.
        """
        import pandas as pd

        names = name_features(feature_names, self.mixture.num_features)
        limits = self.intervals(level, kind)
        shapes = {name: value.shape for name, value in self.estimates.items()}
        return pd.DataFrame(
            [
                {
                    "cluster": entry.cluster,
                    "quantity": entry.label,
                    "estimate": self.estimates[entry.name][entry.place],
                    "standard_error": self.standard_errors[entry.name][entry.place],
                    "lower": limits[entry.name][entry.place][0],
                    "upper": limits[entry.name][entry.place][1],
                }
                for entry in entries(shapes, get_family(self.family), names)
            ]
        )


def name_features(feature_names: Iterable[str] | None, num_features: int) -> tuple[str, ...]:
    """Names of the features, x0, x1, ... by default.

    Raises:
        InputError: for another number of them.
    """
    if feature_names is None:
        return tuple(f"x{index}" for index in range(num_features))
    names = tuple(str(name) for name in feature_names)
    if len(names) != num_features:
        raise InputError(f"feature_names has {len(names)} names for {num_features} features; give one each")
    return names
