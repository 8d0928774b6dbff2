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

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.mixtures.named import NOT_OF_JAX, Named
from bayesgmm.numerics.precision import AnyArray, ArrayLike, is_traced
from bayesgmm.numerics.validation import name_features, names_of, no_constant_column, whole_number
from bayesgmm.numerics.words import counted
from bayesgmm.priors.description import Row, as_interval, as_lines, as_table, describe_intervals, describe_weights
from bayesgmm.priors.scales import SCALE_PRIORS, HalfNormalScales, Scales, prior_number, scales_from_arguments
from bayesgmm.runtime.files import storable, stored_as
from bayesgmm.runtime.printing import Lines, Printable


@storable
@functools.partial(jax.tree_util.register_dataclass, drop_fields=NOT_OF_JAX)
@dataclass(frozen=True)
class WeaklyInformativePrior(Named, Printable):
    r"""Numbers of the weakly informative prior; a pytree, so another number is not another compilation.

    Attributes:
        concentration: Dirichlet parameter of the weights, one for each component, shape (k).
        mean_loc: prior mean of the component means, in the units of the data, shape (d).
        mean_scale: prior standard deviation of the component means, in the units of the data, shape (d).
        scales: prior of the scales: `LogNormalScales`, `HalfNormalScales` or `HierarchicalScales`.
        correlation_concentration: LKJ concentration; 1 is uniform over correlation matrices, larger favours none, ().
        column_mean: where the data lie, shape (d): the origin from which engines measure component means.
        column_scale: how wide the data are, shape (d): the unit in which engines measure them. Both are coordinates,
            no part of what the prior assumes: step sizes fit the data however vague the prior is.
    """

    concentration: Float[AnyArray, " k"]
    mean_loc: Float[AnyArray, " d"]
    mean_scale: Float[AnyArray, " d"]
    scales: Scales
    correlation_concentration: Float[AnyArray, ""]
    column_mean: Float[AnyArray, " d"]
    column_scale: Float[AnyArray, " d"]

    def describe(self, feature_names: Sequence[str] | None = None) -> str:
        """What the prior assumes, in words and numbers, with the intervals that hold 95% of it.

        Raises:
            InputError: for another number of names than features.
        """
        text, num_features = as_table(self._rows(feature_names)), len(self.mean_loc)
        if num_features > 1:
            text += "\nOne scale for all features, where a family has it: the geometric mean of these over features."
        if isinstance(self.scales, HalfNormalScales):
            text += "\nHalf-normal scales are not kept from zero: the posterior can be drawn from, but has no mode."
        return text

    def shown(self) -> tuple[str, Lines] | None:
        """How many components and features it is for, and its rows."""
        if is_traced(self):
            return None
        k, d = len(self.concentration), len(self.mean_loc)
        title = f"Weakly informative prior of {counted(k, 'component')} of {counted(d, 'feature')}"
        return title, as_lines(self._rows(None))

    def _rows(self, feature_names: Sequence[str] | None) -> list[Row]:
        from scipy import stats

        num_features = len(self.mean_loc)
        names = name_features(feature_names, num_features, self)
        rows = describe_weights(self.concentration)
        locs, sds = np.asarray(self.mean_loc), np.asarray(self.mean_scale)
        named = zip(names, locs, sds, strict=True)
        assumed = [f"Normal, {name}: mean {loc:.4g}, sd {sd:.4g}" for name, loc, sd in named]
        rows += describe_intervals("means", assumed, stats.norm(locs, sds).interval(0.95))
        rows += self.scales.describe(names)
        if num_features > 1:
            eta = float(self.correlation_concentration)
            # Every correlation of the LKJ distribution has this margin (Lewandowski, Kurowicka & Joe 2009).
            edge = 2.0 * stats.beta(*[eta - 1.0 + 0.5 * num_features] * 2).ppf(0.975) - 1.0
            rows.append(("correlations", f"LKJ({eta:g}), where a family has them", as_interval(-edge, edge)))
        return rows


@stored_as("Prior")
def _upgrade(*, scale_prior: str, **fields: AnyArray | None) -> WeaklyInformativePrior:
    """The prior that files of versions with the numbers of all priors of scales in one record hold."""
    record = SCALE_PRIORS[scale_prior]
    numbers = {field: fields[argument] for argument, field in record.arguments.items()}
    kept = {field.name for field in dataclasses.fields(WeaklyInformativePrior)} & fields.keys()
    others: dict[str, Any] = {name: fields[name] for name in kept}
    return WeaklyInformativePrior(scales=record(**numbers), **others)


def default_prior(
    x: ArrayLike | Rows,
    num_components: int,
    *,
    concentration: ArrayLike = 2.0,
    mean_loc: ArrayLike | None = None,
    mean_scale: ArrayLike | None = None,
    scale_prior: str = "lognormal",
    scale_median: ArrayLike | None = None,
    scale_sigma: ArrayLike | None = None,
    scale_sd: ArrayLike | None = None,
    precision_shape: ArrayLike | None = None,
    rate_shape: ArrayLike | None = None,
    rate_rate: ArrayLike | None = None,
    correlation_concentration: ArrayLike | None = None,
) -> WeaklyInformativePrior:
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
    rows = as_rows(x).values
    num_features = rows.shape[1]
    num_components = whole_number("num_components", num_components)
    if not is_traced(rows):
        no_constant_column(np.asarray(rows))
    given = (scale_median, scale_sigma, scale_sd, precision_shape, rate_shape, rate_rate)
    scales = scales_from_arguments(scale_prior, given, rows, num_components)
    loc, sd, by_feature = rows.mean(0), rows.std(0), (num_features,)
    center = loc if mean_loc is None else mean_loc
    if correlation_concentration is None:
        correlation_concentration = max(2.0, 1.0 + num_features / 2)
    prior = WeaklyInformativePrior(
        concentration=prior_number("concentration", concentration, (num_components,), rows.dtype),
        mean_loc=prior_number("mean_loc", center, by_feature, rows.dtype, positive=False),
        mean_scale=prior_number("mean_scale", 2.0 * sd if mean_scale is None else mean_scale, by_feature, rows.dtype),
        scales=scales,
        correlation_concentration=prior_number("correlation_concentration", correlation_concentration, (), rows.dtype),
        column_mean=loc,
        column_scale=sd,
    )
    return jax.tree.map(jnp.asarray if is_traced(rows) else np.asarray, prior).named(names_of(x))
