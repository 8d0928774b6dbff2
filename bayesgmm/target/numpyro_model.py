"""The NumPyro model of the mixture. Its likelihood is the density of `bayesgmm.mixtures.mixture`, and no other.

`model` can be used by itself under any NumPyro inference; the engines of this package are ways to its mode, its
approximation or its draws.

Under a `WeaklyInformativePrior` its sites are weights, means, scales and, where a family has them, Cholesky factors of
correlations, and under hierarchical scales their common rate; under a `ConjugatePrior` weights, means and covariances,
or variances for diagonal families: those in which the density of that prior is stated, and therefore its mode.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform, PowerTransform, Transform
from numpyro.handlers import substitute, trace

from bayesgmm.errors import InputError
from bayesgmm.likelihood.scores import row_log_prob
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture, as_mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior
from bayesgmm.priors.mixing_weights import log_prob_of_weights, sample_log_weights
from bayesgmm.priors.scales import HalfNormalScales, HierarchicalScales, LogNormalScales, Scales
from bayesgmm.priors.weakly_informative import default_prior


class MixtureDistribution(dist.Distribution):
    """A single `Mixture` as a NumPyro distribution over rows: its `log_prob` is the package's density."""

    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    pytree_data_fields = ("mixture",)

    def __init__(self, mixture: Mixture, *, validate_args: bool | None = None) -> None:
        if as_mixture(mixture).draw_shape:
            raise InputError(
                f"mixture has leading axes {mixture.draw_shape}; index it down to a single one, such as "
                f"mixture[{', '.join('0' for _ in mixture.draw_shape)}]"
            )
        self.mixture = mixture
        super().__init__(batch_shape=(), event_shape=(mixture.num_features,), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent rows, shape (*sample_shape, d)."""
        rows = self.mixture.sample(math.prod(sample_shape), key=key)
        return jnp.reshape(jnp.asarray(rows), (*sample_shape, *self.event_shape))

    @property
    def mean(self) -> Array:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Mean of a row, shape (d)."""
        return jnp.asarray(self.mixture.mean)

    @property
    def variance(self) -> Array:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Variance of a row along every feature, shape (d)."""
        return jnp.diagonal(jnp.asarray(self.mixture.covariance))

    def log_prob(self, value: Any, intermediates: PyTree = None) -> Array:
        """Log-density of rows (..., d), shape (...)."""
        rows = jnp.reshape(value, (-1, *self.event_shape))
        return jnp.reshape(row_log_prob(self.mixture, rows), value.shape[:-1])


def model(
    x: ArrayLike,
    num_components: int,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    *,
    num_rows: int | None = None,
) -> None:
    """The Bayesian mixture: sites `weights`, `means`, `scales`, `correlation_cholesky` and the observed rows `x`.

    Under hierarchical scales there is also the site `scale_rate`, one rate for each scale of a component. Under a
    `ConjugatePrior` the sites `covariances` or `variances` take the place of scales and correlations.

    Args:
        x: rows (n, d); None to sample rows from the prior predictive, which needs `prior` and `num_rows`.
        num_components: k.
        family: covariance family; it decides which scales are free and whether there are correlations.
        prior: numbers of the prior, of `default_prior(x, num_components)`, used by default, or `conjugate_prior`.
        num_rows: number of rows to sample when x is None.

    Raises:
        InputError: when x is None and `prior` or `num_rows` is missing.
    """
    family = get_family(family)
    if x is not None:
        x = jnp.asarray(x)
        num_rows = x.shape[0]
        prior = default_prior(x, num_components) if prior is None else prior
    if prior is None or num_rows is None:
        raise InputError("x=None samples from the prior predictive and needs both prior and num_rows")
    mixture = mixture_of_sites(sample_sites(num_components, family, prior), family)
    with numpyro.plate("rows", num_rows):
        numpyro.sample("x", MixtureDistribution(mixture), obs=x)


def sample_sites(
    num_components: int, family: Family, prior: AnyPrior, *, validate: bool | None = None
) -> dict[str, Array]:
    """The latent part of the model: draws every free site from its prior.

    With `validate` False, NumPyro does not check values that cannot be outside the support of their site.
    """
    if isinstance(prior, ConjugatePrior):
        return _sample_conjugate_sites(num_components, family, prior, validate)
    num_features = prior.mean_loc.shape[0]
    shape = family.scale_shape(num_components, num_features)
    loc, scale = (prior.mean_loc - prior.column_mean) / prior.column_scale, prior.mean_scale / prior.column_scale
    sites = {
        "weights": dist.Dirichlet(jnp.asarray(prior.concentration), validate_args=validate),
        "means": _in_data_units(dist.Normal(loc, scale).expand([num_components, num_features]).to_event(2), prior),
        "scales": _scales_distribution(prior.scales, shape),
    }
    if family.has_correlations(num_features):
        sites["correlation_cholesky"] = (
            dist.LKJCholesky(num_features, prior.correlation_concentration, validate_args=validate)
            .expand(shape[:1])
            .to_event(1)
        )
    return {name: jnp.asarray(numpyro.sample(name, fn)) for name, fn in sites.items()}


def _scales_distribution(scales: Scales, shape: tuple[int, int]) -> dist.Distribution:
    """Prior of the scales (e, d) or (e, 1). Hierarchical ones are given their rate, which is drawn here."""
    if isinstance(scales, LogNormalScales):
        by_feature = dist.LogNormal(_log_for_each(scales.median, shape), scales.sigma)
    elif isinstance(scales, HalfNormalScales):
        by_feature = dist.HalfNormal(jnp.exp(_log_for_each(scales.sd, shape)))
    else:
        # The rate has the shape of one component's scales.
        hyperprior = dist.Gamma(scales.rate_shape, jnp.exp(_log_for_each(scales.rate_rate, shape))).to_event(1)
        rate = jnp.asarray(numpyro.sample("scale_rate", hyperprior))
        precisions = dist.Gamma(scales.precision_shape, rate).expand(shape).to_event(2)
        return dist.TransformedDistribution(precisions, PowerTransform(-0.5))
    return by_feature.expand(shape).to_event(2)


def _log_for_each(values: AnyArray, shape: tuple[int, ...]) -> Array:
    """Logarithms of numbers of the features (d); their mean where one scale serves all features."""
    logarithms = jnp.log(values)
    return logarithms.mean(keepdims=True) if shape[1] == 1 else logarithms


def rate_given_scales(scales: Array, prior: HierarchicalScales) -> dist.Gamma:
    r"""Distribution of the rate of hierarchical scales given the scales (e, d) or (e, 1), whatever the rows are.

    $$ \beta_l \mid \sigma \sim \mathrm{Gamma}(g + e a, h_l + \sum_j \sigma_{jl}^{-2}). $$

    Source: Richardson & Green (1997).
    """
    own_rate = jnp.exp(_log_for_each(prior.rate_rate, scales.shape))
    return dist.Gamma(prior.rate_shape + scales.shape[0] * prior.precision_shape, own_rate + (scales**-2.0).sum(0))


def log_prior_of_sites(
    sites: dict[str, Array], num_components: int, family: Family, prior: AnyPrior
) -> dict[str, Array]:
    """Log prior density of every site at its value, constants included, in the units of the data."""
    found = trace(substitute(sample_sites, data=sites)).get_trace(num_components, family, prior, validate=False)
    return {name: jnp.asarray(site["fn"].log_prob(site["value"])) for name, site in found.items()}


def _sample_conjugate_sites(
    num_components: int, family: Family, prior: ConjugatePrior, validate: bool | None
) -> dict[str, Array]:
    """Covariances first, because the spread of a component's mean follows its own covariance."""
    num_features = prior.mean.shape[0]
    shape = family.scale_shape(num_components, num_features)
    scale, unit = jnp.asarray(prior.scale), jnp.asarray(prior.column_scale)
    loc = (prior.mean - prior.column_mean) / unit
    to_means = 1.0 / jnp.sqrt(prior.shrinkage)  # from the scales of a component to those of its mean
    concentration = jnp.asarray(prior.concentration)
    of_weights = StickBreakingWeights if prior.stick_breaking else dist.Dirichlet
    sites = {"weights": numpyro.sample("weights", of_weights(concentration, validate_args=validate))}
    if family.conjugate == "inverse-gamma":
        variances = dist.InverseGamma(0.5 * prior.dof, 0.5 * scale).expand(shape).to_event(2)
        sites["variances"] = numpyro.sample("variances", variances)
        normal = dist.Normal(loc, jnp.sqrt(sites["variances"]) / unit * to_means)
        normal = normal.expand([num_components, num_features]).to_event(2)
    else:
        root = jnp.linalg.cholesky(scale) / unit[:, None]
        standardised = dist.InverseWishart(
            jnp.full(shape[:1], prior.dof), scale_tril=root[None], validate_args=validate
        ).to_event(1)
        sites["covariances"] = numpyro.sample(
            "covariances", dist.TransformedDistribution(standardised, CovarianceUnits(unit))
        )
        lower = jnp.linalg.cholesky(sites["covariances"]) / unit[:, None] * to_means
        normal = (
            dist.MultivariateNormal(loc, scale_tril=lower, validate_args=validate).expand([num_components]).to_event(1)
        )
    sites["means"] = numpyro.sample("means", _in_data_units(normal, prior))
    return {name: jnp.asarray(value) for name, value in sites.items()}


class StickBreakingWeights(dist.Distribution):
    """Weights of a Dirichlet process, truncated to as many components as there are concentrations."""

    arg_constraints = {"concentration": constraints.positive}  # noqa: RUF012  # NumPyro declares it so
    support = constraints.simplex  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    pytree_data_fields = ("concentration",)

    def __init__(self, concentration: Array, *, validate_args: bool | None = None) -> None:
        self.concentration = concentration
        super().__init__(batch_shape=(), event_shape=concentration.shape, validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent weights, shape (*sample_shape, k)."""
        ones = jnp.ones_like(self.concentration)
        keys = jax.random.split(key, math.prod(sample_shape))
        drawn = jax.vmap(lambda key: sample_log_weights(ones, self.concentration, key=key))(keys)
        return jnp.exp(drawn).reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Any, intermediates: PyTree = None) -> Array:
        """Log-density of weights (..., k), shape (...)."""
        ones = jnp.ones_like(self.concentration)
        rows = jnp.log(jnp.reshape(value, (-1, *self.event_shape)))
        found = jax.vmap(lambda row: log_prob_of_weights(ones, self.concentration, row))(rows)
        return jnp.reshape(found, value.shape[:-1])


def _in_data_units(standardised: dist.Distribution, prior: AnyPrior) -> dist.Distribution:
    """The distribution of means, from that of means measured in columns' standard deviations from columns' means.

    As an affine map, so that engines can move in the latter (NumPyro's `TransformReparam`).
    """
    return dist.TransformedDistribution(standardised, AffineTransform(prior.column_mean, prior.column_scale))


class CovarianceUnits(Transform):
    r"""Covariances (e, d, d) in the units of the data from those in units of their own: $\Sigma = D B D$, D diagonal.

    As a map of symmetric matrices it multiplies volumes by $|D|^{d+1}$.
    """

    domain = constraints.independent(constraints.positive_definite, 1)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    codomain = domain  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, unit: Array) -> None:
        self.unit = unit

    def __call__(self, x: Array) -> Array:
        """Covariances in the units of the data."""
        return self.unit[:, None] * x * self.unit

    def _inverse(self, y: Array) -> Array:
        return y / self.unit[:, None] / self.unit

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: PyTree = None) -> Array:
        """Logarithm of the ratio of volumes, in the free entries of all e matrices."""
        num_covariances, num_features, _ = x.shape[-3:]
        return num_covariances * (num_features + 1) * jnp.log(self.unit).sum()

    def tree_flatten(self) -> Any:
        """Units are traced values, as they are in the prior."""
        return (self.unit,), (("unit",), {})


def mixture_of_sites(sites: dict[str, Array], family: Family) -> Mixture:
    """The mixture with these values of the model's sites."""
    means = sites["means"]
    return Mixture(jnp.log(sites["weights"]), means, family.from_sites(sites, means.shape[-1]).array)


def sites_of_mixture(mixture: Mixture, family: Family, prior: AnyPrior | None = None) -> dict[str, Array]:
    """Values of the model's sites under this prior that give this mixture: the inverse of `mixture_of_sites`.

    A mixture does not determine the rate of hierarchical scales, which gets its mean given the scales.
    """
    mixture = jax.tree.map(jnp.asarray, mixture)
    sites = {"weights": jnp.exp(mixture.log_weights), "means": mixture.means}
    if isinstance(prior, ConjugatePrior):
        return sites | family.to_sites(mixture.factor, conjugate=True)
    sites |= family.to_sites(mixture.factor, conjugate=False)
    if prior is not None and isinstance(prior.scales, HierarchicalScales):
        sites["scale_rate"] = jnp.asarray(rate_given_scales(sites["scales"], prior.scales).mean)
    return sites


def floor_weights(mixture: Mixture, smallest: float = 1e-4) -> Mixture:
    """The mixture with every weight at least about `smallest`, so that it lies inside the simplex."""
    weights = jnp.maximum(jnp.exp(mixture.log_weights), smallest)
    return Mixture(jnp.log(weights / weights.sum(-1, keepdims=True)), mixture.means, mixture.precision_factor)
