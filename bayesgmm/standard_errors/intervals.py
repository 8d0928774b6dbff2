r"""What standard errors come as: `Uncertainty`, and its intervals: normal, percentile and BCa.

Normal intervals are made on a scale that keeps them in the range of a quantity.

* normal: $h^{-1}(h(\hat g) \pm z \, |h'(\hat g)| \, \mathrm{se})$, with h the logit of a weight, the logarithm of a
  standard deviation or variance, Fisher's z of a correlation, and nothing for what has no bounds;
* percentile: quantiles of the replicates;
* BCa: quantiles at $\Phi(z_0 + (z_0 + z) / (1 - a (z_0 + z)))$, where $\Phi(z_0)$ is the share of replicates below the
  estimate, and a the acceleration.

Sources: Efron & Tibshirani (1993), chapters 13 and 14; Efron (1987).
"""

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from bayesgmm.engines.fit import ResultCode
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.mixtures.presentation import lines_of
from bayesgmm.mixtures.quantities import entries
from bayesgmm.numerics.validation import name_features, one_of, short_repr
from bayesgmm.runtime.printing import Lines, Printable
from bayesgmm.standard_errors.replicates import is_failure

if TYPE_CHECKING:
    import pandas as pd

BY_THEORY = ("observed", "sandwich")
BY_DRAWING = ("bootstrap", "weighted", "parametric")
METHODS = (*BY_THEORY, *BY_DRAWING, "jackknife")
INTERVALS = ("normal", "percentile", "bca")


class UncertaintyCode(enum.IntEnum):
    """What is wrong with standard errors, worst last; `message` of an `Uncertainty` says it in words."""

    successful = 0
    failed_replicates = 1
    away_from_maximum = 2
    no_maximum = 3
    singular = 4
    collapsed = 5

    @property
    def sound(self) -> bool:
        """Whether the curvature of the likelihood gives standard errors all the same."""
        return self < UncertaintyCode.no_maximum


@dataclass(frozen=True)
class Uncertainty(Printable):
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
        code: an `UncertaintyCode`, the most severe of several problems.
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

    def shown(self) -> tuple[str, Lines]:
        """How the errors were found and what is wrong with them; and estimates ± errors by cluster."""
        drawn = f", {self.num_replicates} replicates" if self.num_replicates else ""
        failed = f", {self.num_failed} of which failed" if self.num_failed else ""
        wrong = f"; {self.message}" if self.message else ""
        frame = self.to_frame(kind="normal").rename(columns={"estimate": "value", "standard_error": "sd"})
        shown = frame.loc[~frame["quantity"].str.match("variance|cov ")]
        return f"Standard errors ({self.method}{drawn}{failed}), family {self.family}{wrong}", lines_of(shown)

    @property
    def num_replicates(self) -> int:
        """How many replicates were fitted."""
        return len(self._results)

    @property
    def num_failed(self) -> int:
        """How many of them are no fits, and were left out."""
        return int(is_failure(self._results).sum())

    @property
    def num_unconverged(self) -> int:
        """How many were still moving at the step limit; they are counted in."""
        return int((self._results == ResultCode.max_steps_reached).sum())

    @property
    def _results(self) -> np.ndarray:
        return np.zeros(0, int) if self.replicate_results is None else self.replicate_results

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
        one_of("kind", kind, INTERVALS)
        if not isinstance(level, float) or not 0.0 < level < 1.0:
            raise InputError(f"level={short_repr(level)} must lie between 0 and 1, such as 0.95")
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
        replicates = self.replicates[name][~is_failure(self._results)]
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

        names = name_features(feature_names, self.mixture.num_features, self.mixture)
        limits = self.intervals(level, kind)
        shapes = {name: value.shape for name, value in self.estimates.items()}
        return pd.DataFrame(
            [
                (cluster, label, self.estimates[name][at], self.standard_errors[name][at], *limits[name][at])
                for cluster, label, name, at in entries(shapes, get_family(self.family), names)
            ],
            columns=["cluster", "quantity", "estimate", "standard_error", "lower", "upper"],
        )


Numbers = Float[np.ndarray, "*shape"]
Limits = Float[np.ndarray, "*shape 2"]
Replicates = Float[np.ndarray, "r *shape"]


class Scale(NamedTuple):
    """A scale on which an estimate is more nearly normal: the map, its inverse, its derivative."""

    forward: Callable[..., np.ndarray]
    backward: Callable[..., np.ndarray]
    slope: Callable[..., np.ndarray]


IDENTITY = Scale(np.asarray, np.asarray, np.ones_like)
LOG = Scale(np.log, np.exp, lambda value: 1.0 / value)
LOGIT = Scale(
    lambda value: np.log(value) - np.log1p(-value),
    lambda value: 1.0 / (1.0 + np.exp(-value)),
    lambda value: 1.0 / (value * (1.0 - value)),
)
FISHER = Scale(np.arctanh, np.tanh, lambda value: 1.0 / (1.0 - np.square(value)))


def scale_of(name: str) -> Scale:
    """The scale of a quantity; of covariance matrices it is that of the entries off the diagonal."""
    return {"weights": LOGIT, "standard_deviations": LOG, "correlations": FISHER}.get(name, IDENTITY)


def normal_interval(estimate: Numbers, standard_error: Numbers, level: float, scale: Scale) -> Limits:
    """Normal limits, on the last axis. A quantity without error has an interval of no width."""
    certain = standard_error == 0
    with np.errstate(all="ignore"):
        half = NormalDist().inv_cdf(0.5 + 0.5 * level) * np.abs(scale.slope(estimate)) * standard_error
        centre = scale.forward(estimate)
        limits = scale.backward(np.stack([centre - half, centre + half], -1))
    return np.where(certain[..., None], np.asarray(estimate)[..., None], limits)


def percentile_interval(replicates: Replicates, level: float) -> Limits:
    """Quantiles of the replicates, limits on the last axis."""
    tail = 0.5 - 0.5 * level
    return np.moveaxis(np.quantile(replicates, [tail, 1.0 - tail], axis=0), 0, -1)


def bca_interval(replicates: Replicates, estimate: Numbers, acceleration: Numbers, level: float) -> Limits:
    """Bias-corrected and accelerated limits, on the last axis.

    Replicates equal to the estimate count half. Where all lie on one side of it, the share that is looked up is half a
    replicate: the interval then ends at the outermost ones.
    """
    from scipy.special import ndtr, ndtri  # imported here: half of a first call's time

    num_replicates = len(replicates)
    share = (replicates < estimate).mean(0) + 0.5 * (replicates == estimate).mean(0)
    bias = ndtri(np.clip(share, 0.5 / num_replicates, 1.0 - 0.5 / num_replicates))
    z = ndtri(0.5 + 0.5 * level)
    shares = [ndtr(bias + moved / (1.0 - acceleration * moved)) for moved in (bias - z, bias + z)]
    return np.stack([_quantile_each(replicates, np.asarray(share)) for share in shares], -1)


def _quantile_each(replicates: Replicates, probability: Numbers) -> Numbers:
    """A quantile of its own for every number; NaN where its probability is."""
    each = zip(replicates.reshape(len(replicates), -1).T, probability.ravel(), strict=True)
    found = [np.quantile(values, share) if np.isfinite(share) else np.nan for values, share in each]
    return np.reshape(found, probability.shape)
