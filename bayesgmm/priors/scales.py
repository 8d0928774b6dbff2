"""Priors of the scales, a component's standard deviations along the features: three records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bayesgmm.errors import InputError
from bayesgmm.numerics.precision import AnyArray, ArrayLike, DTypeLike, is_traced
from bayesgmm.numerics.validation import one_of, real_array, short_repr
from bayesgmm.priors.description import Row, describe_intervals
from bayesgmm.runtime.files import storable


@storable
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogNormalScales:
    """Scales whose logarithms are normal.

    Attributes:
        median: prior median of a component's standard deviation along each feature, shape (d).
        sigma: standard deviation of its logarithm, ().
    """

    name: ClassVar = "lognormal"
    arguments: ClassVar = {"scale_median": "median", "scale_sigma": "sigma"}
    """Names of the numbers in `default_prior`, and here."""

    median: Float[AnyArray, " d"]
    sigma: Float[AnyArray, ""]

    @staticmethod
    def defaults(sd: AnyArray, spread: AnyArray, num_components: int) -> dict[str, AnyArray]:
        """Numbers for columns of these standard deviations and ranges (d): Fraley & Raftery (2007), section 3."""
        return {"median": sd / num_components ** (1 / len(sd)), "sigma": np.array(1.0)}

    @property
    def log_sd(self) -> float:
        """Standard deviation, under the prior, of the logarithm of a scale."""
        return float(self.sigma)

    def describe(self, names: Sequence[str]) -> list[Row]:
        """Rows of the description, one for each feature."""
        from scipy import stats

        sigma = float(np.asarray(self.sigma))
        medians = np.asarray(self.median)
        named = zip(names, medians, strict=True)
        assumed = [f"LogNormal, {name}: median {median:.4g}, log-sd {sigma:g}" for name, median in named]
        return describe_intervals("scales", assumed, stats.lognorm(sigma, scale=medians).interval(0.95), "sd ")


@storable
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HalfNormalScales:
    """Scales that are normal variables without their sign. The posterior density is unbounded at zero: it has no mode.

    Attributes:
        sd: standard deviation of the normal distribution that is folded at zero, shape (d).
    """

    name: ClassVar = "half_normal"
    arguments: ClassVar = {"scale_sd": "sd"}

    sd: Float[AnyArray, " d"]

    @staticmethod
    def defaults(sd: AnyArray, spread: AnyArray, num_components: int) -> dict[str, AnyArray]:
        """The columns' standard deviations."""
        return {"sd": sd}

    @property
    def log_sd(self) -> float:
        """Standard deviation of a log scale: half the logarithm of a gamma variable of shape 1/2."""
        from scipy.special import polygamma

        return float(np.sqrt(polygamma(1, 0.5)) / 2)

    def describe(self, names: Sequence[str]) -> list[Row]:
        """Rows of the description, one for each feature."""
        from scipy import stats

        sds = np.asarray(self.sd)
        assumed = [f"HalfNormal, {name}: sd {sd:.4g}" for name, sd in zip(names, sds, strict=True)]
        return describe_intervals("scales", assumed, stats.halfnorm(scale=sds).interval(0.95), "sd ")


@storable
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HierarchicalScales:
    r"""Scales whose reciprocal squares are gamma variables with a common rate, itself a gamma variable.

    Attributes:
        precision_shape: shape $a$ of the distribution of the reciprocal variances, ().
        rate_shape: shape $g$ of the distribution of their rate $\beta$, ().
        rate_rate: rate $h$ of that distribution, in reciprocal squared units of the data, (d).
    """

    name: ClassVar = "hierarchical"
    arguments: ClassVar = {key: key for key in ("precision_shape", "rate_shape", "rate_rate")}

    precision_shape: Float[AnyArray, ""]
    rate_shape: Float[AnyArray, ""]
    rate_rate: Float[AnyArray, " d"]

    @staticmethod
    def defaults(sd: AnyArray, spread: AnyArray, num_components: int) -> dict[str, AnyArray]:
        """Numbers of Richardson & Green (1997)."""
        return {"precision_shape": np.array(2.0), "rate_shape": np.array(0.2), "rate_rate": 10.0 / spread**2}

    @property
    def log_sd(self) -> float:
        """Standard deviation of a log scale: half the difference of the logarithms of two gamma variables."""
        from scipy.special import polygamma

        return float(np.sqrt(polygamma(1, np.array([self.precision_shape, self.rate_shape], np.float64)).sum()) / 2)

    def describe(self, names: Sequence[str]) -> list[Row]:
        """Rows of the description: of the scale along each feature, then of the rate of each feature."""
        from scipy import stats

        a, g = float(np.asarray(self.precision_shape)), float(np.asarray(self.rate_shape))
        rates = np.asarray(self.rate_rate)
        # A ratio of gamma variables, rate over reciprocal variance, has an F distribution.
        low, high = (np.sqrt(g / a / rates * limit) for limit in stats.f(2 * g, 2 * a).interval(0.95))
        assumed = [f"{name}: 1 / variance Gamma({a:g}, rate)" for name in names]
        of_rates = [f"{name}: Gamma({g:g}, {h:.4g})" for name, h in zip(names, rates, strict=True)]
        return [
            *describe_intervals("scales", assumed, (low, high), "sd "),
            *describe_intervals("scale rate", of_rates, stats.gamma(g, scale=1.0 / rates).interval(0.95)),
        ]


Scales = LogNormalScales | HalfNormalScales | HierarchicalScales
SCALE_PRIORS: dict[str, type[Scales]] = {
    record.name: record for record in (LogNormalScales, HalfNormalScales, HierarchicalScales)
}
"""The priors of the scales by the names of `default_prior`."""


def scales_from_arguments(
    scale_prior: str, numbers: Sequence[ArrayLike | None], x: AnyArray, num_components: int
) -> Scales:
    """The prior of the scales for rows x (n, d), from the numbers of all priors of `SCALE_PRIORS` and the defaults.

    Raises:
        InputError: for an unknown prior, a number of another one, and a number out of range or of another shape.
    """
    record = SCALE_PRIORS[one_of("prior scale_prior", scale_prior, SCALE_PRIORS)]
    fields = record.defaults(x.std(0), x.max(0) - x.min(0), num_components)
    names = [(owner, name) for owner in SCALE_PRIORS.values() for name in owner.arguments]
    for (owner, name), number in zip(names, numbers, strict=True):
        if owner is not record and number is not None:
            raise InputError(
                f"prior {name} belongs to scale_prior={owner.name!r}, and this is scale_prior={scale_prior!r}, "
                f"whose numbers are {', '.join(record.arguments)}; drop it, or change scale_prior"
            )
        if owner is record:
            default = fields[field := owner.arguments[name]]
            fields[field] = prior_number(name, default if number is None else number, default.shape, x.dtype)
    return record(**fields)


def prior_number(
    name: str, value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike, *, positive: bool = True
) -> AnyArray:
    """A number of a prior, or an array of them, as an array of this shape.

    Raises:
        InputError: for another shape, or values that are not finite or, where they must be, not positive.
    """
    given = real_array(value, f"prior {name}")
    if given.shape not in ((), shape):
        expected = f"one number or an array of shape {shape}" if shape else "one number"
        raise InputError(f"prior {name} has shape {given.shape}; give {expected}")
    if is_traced(given):
        return jnp.broadcast_to(given, shape)
    given = np.asarray(given, dtype)
    if not np.isfinite(given).all() or (positive and (given <= 0).any()):
        raise InputError(f"prior {name}={short_repr(value)} must be finite{' and greater than 0' if positive else ''}")
    return np.broadcast_to(given, shape)
