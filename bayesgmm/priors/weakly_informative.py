r"""Priors on the parameters of a mixture.

The weakly informative prior, scaled from the data so that the units of a feature do not matter:

$$ w \sim \mathrm{Dirichlet}(\alpha), \quad \mu_{jl} \sim \mathcal N(m_l, s_l^2), \quad R_j \sim \mathrm{LKJ}(\eta), $$

with $\Sigma_j = \operatorname{diag}(\sigma_j) R_j \operatorname{diag}(\sigma_j)$, and scales of one of three priors:

* `lognormal`: $\log \sigma_{jl} \sim \mathcal N(\log t_l, \tau^2)$, the default. It vanishes at zero faster than any
  power, so a component cannot collapse onto rows: diagonal families have a bounded posterior density. With
  correlations a component can still become flat: the density is bounded where at most $2(\eta - 1)$ rows lie on a
  common hyperplane, on which any d rows lie;
* `half_normal`: $\sigma_{jl} \sim \mathcal N^+(0, t_l^2)$, for published models that have it. It is finite at zero, so
  the posterior density is unbounded where a component shrinks onto a row: there are draws, but there is no mode;
* `hierarchical`: $\sigma_{jl}^{-2} \sim \mathrm{Gamma}(a, \beta_l)$, $\beta_l \sim \mathrm{Gamma}(g, h_l)$, rates: the
  components of a feature are of one order of magnitude, which the data tell (Richardson & Green 1997). With k
  components of their own scales the posterior density is bounded where at most $2 a (k - 1) + 2 g - 3$ rows agree in a
  feature.

Families with one scale for all features take the geometric mean of the numbers of the features.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bayesgmm.errors import InputError
from bayesgmm.numerics.precision import AnyArray, is_traced
from bayesgmm.numerics.validation import as_rows, no_constant_column, real_array, shown, whole_number
from bayesgmm.runtime.files import storable

SCALE_PRIORS = {
    "lognormal": ("scale_median", "scale_sigma"),
    "half_normal": ("scale_sd",),
    "hierarchical": ("precision_shape", "rate_shape", "rate_rate"),
}
"""The priors of the scales, and the numbers that each has."""


@storable
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "concentration",
        "mean_loc",
        "mean_scale",
        "scale_median",
        "scale_sigma",
        "correlation_concentration",
        "column_mean",
        "column_scale",
        "scale_sd",
        "precision_shape",
        "rate_shape",
        "rate_rate",
    ],
    meta_fields=["scale_prior"],
)
@dataclass(frozen=True)
class Prior:
    r"""Numbers of the weakly informative prior; a pytree, so another number is not another compilation.

    Attributes:
        concentration: Dirichlet parameter of the weights, one for each component, shape (k).
        mean_loc: prior mean of the component means, in the units of the data, shape (d).
        mean_scale: prior standard deviation of the component means, in the units of the data, shape (d).
        scale_median: log-normal scales: prior median of a component's standard deviation along each feature, shape (d).
        scale_sigma: log-normal scales: standard deviation of the logarithm of those standard deviations, ().
        correlation_concentration: LKJ concentration; 1 is uniform over correlation matrices, larger favours none, ().
        column_mean: where the data lie, shape (d): the origin from which engines measure component means.
        column_scale: how wide the data are, shape (d): the unit in which engines measure them. Both are coordinates,
            no part of what the prior assumes: step sizes fit the data however vague the prior is.
        scale_sd: half-normal scales: standard deviation of the normal distribution that is folded at zero, shape (d).
        precision_shape: hierarchical scales: shape $a$ of the gamma distribution of the reciprocal variances, ().
        rate_shape: hierarchical scales: shape $g$ of the gamma distribution of its rate $\beta$, ().
        rate_rate: hierarchical scales: rate $h$ of that distribution, in reciprocal squared units of the data, (d).
        scale_prior: "lognormal", "half_normal" or "hierarchical"; the numbers of the other two are None.
    """

    concentration: Float[AnyArray, " k"]
    mean_loc: Float[AnyArray, " d"]
    mean_scale: Float[AnyArray, " d"]
    scale_median: Float[AnyArray, " d"] | None
    scale_sigma: Float[AnyArray, ""] | None
    correlation_concentration: Float[AnyArray, ""]
    column_mean: Float[AnyArray, " d"]
    column_scale: Float[AnyArray, " d"]
    scale_sd: Float[AnyArray, " d"] | None = None
    precision_shape: Float[AnyArray, ""] | None = None
    rate_shape: Float[AnyArray, ""] | None = None
    rate_rate: Float[AnyArray, " d"] | None = None
    scale_prior: str = "lognormal"

    def describe(self, feature_names: Sequence[str] | None = None) -> str:
        """What the prior assumes, in words and numbers, with the intervals that hold 95% of it.

        Raises:
            InputError: for another number of names than features.
        """
        from scipy import stats

        num_features = len(self.mean_loc)
        names = names_of_features(feature_names, num_features)
        rows = rows_of_weights(self.concentration)
        for name, loc, scale in zip(names, np.asarray(self.mean_loc), np.asarray(self.mean_scale), strict=True):
            low, high = stats.norm(loc, scale).interval(0.95)
            rows.append(("means", f"Normal, {name}: mean {loc:.4g}, sd {scale:.4g}", as_interval(low, high)))
        rows += self._rows_of_scales(names)
        if num_features > 1:
            eta = float(self.correlation_concentration)
            # Every correlation of the LKJ distribution has this margin (Lewandowski, Kurowicka & Joe 2009).
            edge = 2.0 * stats.beta(*[eta - 1.0 + 0.5 * num_features] * 2).ppf(0.975) - 1.0
            rows.append(("correlations", f"LKJ({eta:g}), where a family has them", as_interval(-edge, edge)))
        text = as_table(rows)
        if num_features > 1:
            text += "\nOne scale for all features, where a family has it: the geometric mean of these over features."
        if self.scale_prior == "half_normal":
            text += "\nHalf-normal scales are not kept from zero: the posterior can be drawn from, but has no mode."
        return text

    def _rows_of_scales(self, names: Sequence[str]) -> list[tuple[str, str, str]]:
        from scipy import stats

        rows = []
        if self.scale_prior == "half_normal":
            for name, sd in zip(names, np.asarray(self.scale_sd), strict=True):
                low, high = stats.halfnorm(scale=sd).interval(0.95)
                rows.append(("scales", f"HalfNormal, {name}: sd {sd:.4g}", f"sd {as_interval(low, high)}"))
        elif self.scale_prior == "hierarchical":
            a, g = float(np.asarray(self.precision_shape)), float(np.asarray(self.rate_shape))
            for name, h in zip(names, np.asarray(self.rate_rate), strict=True):
                # A ratio of gamma variables, rate over reciprocal variance, has an F distribution.
                low, high = np.sqrt(g / a / h * stats.f(2 * g, 2 * a).ppf([0.025, 0.975]))
                assumed = f"{name}: 1 / variance Gamma({a:g}, rate)"
                rows.append(("scales", assumed, f"sd {as_interval(low, high)}"))
                rows.append(("scale rate", f"{name}: Gamma({g:g}, {h:.4g})", as_interval(*_gamma_interval(g, h))))
            rows.sort(key=lambda row: row[0] == "scale rate")
        else:
            sigma = float(np.asarray(self.scale_sigma))
            for name, median in zip(names, np.asarray(self.scale_median), strict=True):
                low, high = stats.lognorm(sigma, scale=median).interval(0.95)
                assumed = f"LogNormal, {name}: median {median:.4g}, log-sd {sigma:g}"
                rows.append(("scales", assumed, f"sd {as_interval(low, high)}"))
        return rows


def default_prior(
    x: Any,
    num_components: int,
    *,
    concentration: Any = 2.0,
    mean_loc: Any = None,
    mean_scale: Any = None,
    scale_prior: str = "lognormal",
    scale_median: Any = None,
    scale_sigma: Any = None,
    scale_sd: Any = None,
    precision_shape: Any = None,
    rate_shape: Any = None,
    rate_rate: Any = None,
    correlation_concentration: Any = None,
) -> Prior:
    r"""The weakly informative prior for rows x (n, d), with any of its numbers set by the caller.

    Defaults: means are centred on the column means with twice the columns' standard deviations. Log-normal scales have
    as median the column's standard deviation divided by $k^{1/d}$, so that k components of that size fill the volume of
    the data (the choice of Fraley & Raftery 2007, section 3, for their inverse-Wishart scale), and logarithms of
    standard deviation 1. Half-normal scales have the column's standard deviation. Hierarchical ones have $a = 2$,
    $g = 0.2$ and $h = 10 / R^2$ with R the range of the column (Richardson & Green 1997).

    Args:
        x: rows (n, d).
        num_components: k.
        concentration: Dirichlet parameter of the weights, one number or (k). Below 1 the posterior has no mode.
        mean_loc, mean_scale: of the normal prior of the means, one number or (d).
        scale_prior: "lognormal", "half_normal" or "hierarchical". Under a half-normal the posterior density is
            unbounded, so that `fit_map` has nothing to find.
        scale_median, scale_sigma: of log-normal scales, one number or (d), and one number.
        scale_sd: of half-normal scales, one number or (d).
        precision_shape, rate_shape, rate_rate: of hierarchical scales, one number each; the last one also (d).
        correlation_concentration: LKJ parameter of the correlations, by default the larger of 2 and 1 + d/2: from there
            on d rows in general position, which lie on a common hyperplane, leave the posterior density bounded.

    Raises:
        InputError: for a number out of range, of a shape that fits neither k nor d, or of another prior of the scales,
            and for a column that does not vary.
    """
    x = as_rows(x)
    num_features = x.shape[1]
    num_components = whole_number("num_components", num_components)
    if not isinstance(scale_prior, str) or scale_prior not in SCALE_PRIORS:
        raise InputError(
            f"prior scale_prior={shown(scale_prior)} is not known; choose one of {', '.join(SCALE_PRIORS)}"
        )
    given = {
        "scale_median": scale_median,
        "scale_sigma": scale_sigma,
        "scale_sd": scale_sd,
        "precision_shape": precision_shape,
        "rate_shape": rate_shape,
        "rate_rate": rate_rate,
    }
    for owner, names in SCALE_PRIORS.items():
        for name in names:
            if owner != scale_prior and given[name] is not None:
                raise InputError(
                    f"prior {name} belongs to scale_prior={owner!r}, and this is scale_prior={scale_prior!r}, whose "
                    f"numbers are {', '.join(SCALE_PRIORS[scale_prior])}; drop it, or change scale_prior"
                )
    if not is_traced(x):
        no_constant_column(np.asarray(x))
    array = jnp if is_traced(x) else np
    loc, sd = x.mean(0), x.std(0)
    spread = x.max(0) - x.min(0)
    defaults = {
        "scale_median": sd / num_components ** (1 / num_features),
        "scale_sigma": 1.0,
        "scale_sd": sd,
        "precision_shape": 2.0,
        "rate_shape": 0.2,
        "rate_rate": 10.0 / spread**2,
    }

    def number(name: str, value: Any, shape: tuple[int, ...], **kwargs: Any) -> Any:
        return array.asarray(prior_number(name, value, shape, x.dtype, **kwargs))

    by_feature = (num_features,)
    scales = {
        name: number(name, defaults[name] if given[name] is None else given[name], np.shape(defaults[name]))
        for name in SCALE_PRIORS[scale_prior]
    }
    return Prior(
        concentration=number("concentration", concentration, (num_components,)),
        mean_loc=number("mean_loc", loc if mean_loc is None else mean_loc, by_feature, positive=False),
        mean_scale=number("mean_scale", 2.0 * sd if mean_scale is None else mean_scale, by_feature),
        correlation_concentration=number(
            "correlation_concentration",
            max(2.0, 1.0 + num_features / 2) if correlation_concentration is None else correlation_concentration,
            (),
        ),
        column_mean=loc,
        column_scale=sd,
        scale_prior=scale_prior,
        **{"scale_median": None, "scale_sigma": None, **scales},
    )


def check_prior(prior: Prior, num_components: int, num_features: int) -> None:
    """Refuse a weakly informative prior for another number of components or features.

    Raises:
        InputError: saying what it is for.
    """
    if prior.concentration.shape != (num_components,) or prior.mean_loc.shape != (num_features,):
        raise InputError(
            f"prior is for k={prior.concentration.shape[0]} components of {prior.mean_loc.shape[0]} features, but "
            f"num_components={num_components} and x has {num_features} features; make it with default_prior(x, "
            f"{num_components})"
        )


def check_has_mode(prior: Any) -> None:
    """Refuse a prior under which the posterior density is unbounded, so that there is no mode to look for.

    Raises:
        InputError: for half-normal scales, a Dirichlet concentration below 1 and a Dirichlet process.
    """
    if getattr(prior, "stick_breaking", False):
        raise InputError(
            "prior stick_breaking=True has a density that is unbounded where components are empty, and no mode; use "
            "stick_breaking=False, or fit_cavi or a sampler"
        )
    if isinstance(prior, Prior) and prior.scale_prior == "half_normal":
        raise InputError(
            'prior scale_prior="half_normal" is finite at zero, so the posterior density is unbounded and has no mode; '
            'use scale_prior="lognormal" or a conjugate_prior, or draw from the posterior with fit_nuts'
        )
    if not is_traced(prior.concentration) and (smallest := np.min(np.asarray(prior.concentration))) < 1:
        raise InputError(
            f"prior concentration={smallest:g} is below 1, so the posterior density is unbounded where a weight is 0 "
            "and has no mode; use at least 1, or draw from the posterior with fit_nuts"
        )


def prior_number(name: str, value: Any, shape: tuple[int, ...], dtype: Any, *, positive: bool = True) -> Any:
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
        raise InputError(f"prior {name}={shown(value)} must be finite{' and greater than 0' if positive else ''}")
    return np.broadcast_to(given, shape)


def names_of_features(feature_names: Sequence[str] | None, num_features: int) -> list[str]:
    """Names for a description: those given, else numbered ones.

    Raises:
        InputError: for another number of names than features.
    """
    if feature_names is None:
        return [f"x{index}" for index in range(num_features)]
    if len(feature_names) != num_features:
        raise InputError(f"feature_names has {len(feature_names)} names for {num_features} features; give one each")
    return [str(name) for name in feature_names]


def rows_of_weights(concentration: Any) -> list[tuple[str, str, str]]:
    """Rows of the description that are about the weights: of each, and of the smallest, which tells how many count."""
    from scipy import stats

    alpha = np.asarray(concentration, np.float64)
    if len(alpha) == 1:
        return [("weights", "one component, of weight 1", "")]
    is_even = bool((alpha == alpha[0]).all())
    listed = f"{alpha[0]:g} x {len(alpha)}" if is_even and len(alpha) > 6 else ", ".join(f"{a:g}" for a in alpha)
    smallest = np.random.default_rng(0).dirichlet(alpha, size=50_000).min(1)  # has no closed form; two digits of it do
    rows = [("weights", f"Dirichlet({listed}){', each' if is_even else ''}", "")]
    margins = [(stats.beta(a, alpha.sum() - a).interval(0.95)) for a in (alpha[:1] if is_even else alpha)]
    if is_even:
        rows[0] = (*rows[0][:2], as_interval(*margins[0]))
    else:
        rows += [("weights", f"of component {j}", as_interval(*margin)) for j, margin in enumerate(margins)]
    low, high = np.quantile(smallest, [0.025, 0.975])
    return [*rows, ("weights", "the smallest of them", f"{low:.2g} to {high:.2g}")]


def rows_of_sticks(concentration: Any) -> list[tuple[str, str, str]]:
    """Rows of the description that are about the weights of a Dirichlet process, truncated to k components."""
    from scipy import stats

    gamma = np.asarray(concentration, np.float64)
    if len(gamma) == 1:
        return rows_of_weights(gamma)
    is_even = bool((gamma == gamma[0]).all())
    listed = f"{gamma[0]:g}" if is_even else ", ".join(f"{value:g}" for value in gamma[:-1])
    assumed = f"stick-breaking: Beta(1, {listed}) of what earlier components left"
    return [("weights", assumed, ""), ("weights", "of the first", as_interval(*stats.beta(1, gamma[0]).interval(0.95)))]


def as_interval(low: float, high: float) -> str:
    """Two numbers as words."""
    return f"{low:.3g} to {high:.3g}"


def as_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Rows of a description in aligned columns: of what, what is assumed, and where 95% of the prior lies."""
    shown_rows = [("", "assumed", "95% of the prior")]
    for index, (quantity, assumed, interval) in enumerate(rows):
        is_new = index == 0 or rows[index - 1][0] != quantity
        shown_rows.append((quantity if is_new else "", assumed, interval))
    widths = [max(len(row[column]) for row in shown_rows) for column in range(2)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in shown_rows)


def _gamma_interval(shape: float, rate: float) -> tuple[float, float]:
    from scipy import stats

    low, high = stats.gamma(shape, scale=1.0 / rate).interval(0.95)
    return float(low), float(high)
