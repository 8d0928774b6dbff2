r"""Confidence intervals of numbers: normal ones on a scale that keeps them in their range, percentile, and BCa.

* normal: $h^{-1}(h(\hat g) \pm z \, |h'(\hat g)| \, \mathrm{se})$, with h the logit of a weight, the logarithm of a
  standard deviation or variance, Fisher's z of a correlation, and nothing for what has no bounds;
* percentile: quantiles of the replicates;
* BCa: quantiles at $\Phi(z_0 + (z_0 + z) / (1 - a (z_0 + z)))$, where $\Phi(z_0)$ is the share of replicates below the
  estimate, and a the acceleration.

Sources: Efron & Tibshirani (1993), chapters 13 and 14; Efron (1987).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit, ndtr, ndtri

INTERVALS = ("normal", "percentile", "bca")


class Scale(NamedTuple):
    """A scale on which an estimate is more nearly normal: the map, its inverse, its derivative."""

    forward: Callable[..., np.ndarray]
    backward: Callable[..., np.ndarray]
    slope: Callable[..., np.ndarray]


IDENTITY = Scale(np.asarray, np.asarray, np.ones_like)
LOG = Scale(np.log, np.exp, lambda value: 1.0 / value)
LOGIT = Scale(logit, expit, lambda value: 1.0 / (value * (1.0 - value)))
FISHER = Scale(np.arctanh, np.tanh, lambda value: 1.0 / (1.0 - np.square(value)))


def scale_of(name: str) -> Scale:
    """The scale of a quantity; of covariance matrices it is that of the entries off the diagonal."""
    return {"weights": LOGIT, "standard_deviations": LOG, "correlations": FISHER}.get(name, IDENTITY)


def normal_interval(
    estimate: Float[np.ndarray, "..."], standard_error: Float[np.ndarray, "..."], level: float, scale: Scale
) -> Float[np.ndarray, "... 2"]:
    """Normal limits, on the last axis. What has no error, such as a correlation with itself, is its own interval."""
    certain = standard_error == 0
    with np.errstate(all="ignore"):
        half = ndtri(0.5 + 0.5 * level) * np.abs(scale.slope(estimate)) * standard_error
        centre = scale.forward(estimate)
        limits = scale.backward(np.stack([centre - half, centre + half], -1))
    return np.where(certain[..., None], np.asarray(estimate)[..., None], limits)


def percentile_interval(replicates: Float[np.ndarray, "r *shape"], level: float) -> Float[np.ndarray, "*shape 2"]:
    """Quantiles of the replicates, limits on the last axis."""
    tail = 0.5 - 0.5 * level
    return np.moveaxis(np.quantile(replicates, [tail, 1.0 - tail], axis=0), 0, -1)


def bca_interval(
    replicates: Float[np.ndarray, "r *shape"],
    estimate: Float[np.ndarray, "*shape"],
    acceleration: Float[np.ndarray, "*shape"],
    level: float,
) -> Float[np.ndarray, "*shape 2"]:
    """Bias-corrected and accelerated limits, on the last axis.

    Replicates equal to the estimate count half. Where all lie on one side of it, the share that is looked up is half a
    replicate: the interval then ends at the outermost ones.
    """
    num_replicates = len(replicates)
    share = (replicates < estimate).mean(0) + 0.5 * (replicates == estimate).mean(0)
    bias = ndtri(np.clip(share, 0.5 / num_replicates, 1.0 - 0.5 / num_replicates))
    z = ndtri(0.5 + 0.5 * level)
    limits = []
    for moved in (bias - z, bias + z):
        probability = ndtr(bias + moved / (1.0 - acceleration * moved))
        limits.append(_quantile_each(replicates, np.asarray(probability)))
    return np.stack(limits, -1)


def _quantile_each(
    replicates: Float[np.ndarray, "r *shape"], probability: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """A quantile of its own for every number; NaN where its probability is."""
    ordered = np.sort(replicates, axis=0)
    known = np.isfinite(probability)
    place = np.where(known, probability, 0.0) * (len(replicates) - 1)
    below = np.floor(place).astype(np.intp)
    above = np.minimum(below + 1, len(replicates) - 1)
    low, high = (np.take_along_axis(ordered, index[None], axis=0)[0] for index in (below, above))
    return np.where(known, low + (place - below) * (high - low), np.nan)
