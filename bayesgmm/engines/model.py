"""The NumPyro model of the mixture. Its likelihood is the density of `bayesgmm.mixture`, and no other.

`model` can be used by itself under any NumPyro inference; the engines of this package are ways to its mode, its
approximation or its draws.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform

from bayesgmm.errors import InputError
from bayesgmm.families import Family, get_family
from bayesgmm.mixture import Mixture, covariance_factor
from bayesgmm.moments import row_log_prob
from bayesgmm.priors import Prior, default_prior


class MixtureDistribution(dist.Distribution):
    """A `Mixture` as a NumPyro distribution over rows: its `log_prob` is the package's density."""

    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    pytree_data_fields = ("mixture",)

    def __init__(self, mixture: Mixture, *, validate_args: bool | None = None) -> None:
        self.mixture = mixture
        super().__init__(batch_shape=(), event_shape=(mixture.num_features,), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent rows, shape (*sample_shape, d)."""
        rows = self.mixture.sample(math.prod(sample_shape), key=key)
        return jnp.reshape(jnp.asarray(rows), (*sample_shape, *self.event_shape))

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """Log-density of rows (..., d), shape (...)."""
        rows = jnp.reshape(value, (-1, *self.event_shape))
        return jnp.reshape(row_log_prob(self.mixture, rows), value.shape[:-1])


def model(
    x: Any,
    num_components: int,
    family: str | Family = "full",
    prior: Prior | None = None,
    *,
    num_rows: int | None = None,
) -> None:
    """The Bayesian mixture: sites `weights`, `means`, `scales`, `correlation_cholesky` and the observed rows `x`.

    Args:
        x: rows (n, d); None to sample rows from the prior predictive, which needs `prior` and `num_rows`.
        num_components: k.
        family: covariance family; it decides which scales are free and whether there are correlations.
        prior: numbers of the prior, by default `default_prior(x, num_components)`.
        num_rows: number of rows to sample when x is None.

    Raises:
        InputError: when x is None and `prior` or `num_rows` is missing.
    """
    family = get_family(family)
    if x is None and (prior is None or num_rows is None):
        raise InputError("x=None samples from the prior predictive and needs both prior and num_rows")
    if x is not None:
        x = jnp.asarray(x)
        num_rows = x.shape[0]
    prior = default_prior(x, num_components) if prior is None else prior
    mixture = mixture_of_sites(sample_sites(num_components, family, prior), family)
    assert num_rows is not None
    with numpyro.plate("rows", num_rows):
        numpyro.sample("x", MixtureDistribution(mixture), obs=x)


def sample_sites(num_components: int, family: Family, prior: Prior) -> dict[str, Array]:
    """The latent part of the model: draws every free site from its prior."""
    num_features = prior.mean_loc.shape[0]
    shape = family.scale_shape(num_components, num_features)
    log_median = jnp.log(prior.scale_median)
    if shape[1] == 1:
        log_median = log_median.mean(keepdims=True)
    sites = {
        "weights": dist.Dirichlet(jnp.asarray(prior.concentration)),
        "means": _means(num_components, num_features, prior),
        "scales": dist.LogNormal(log_median, prior.scale_sigma).expand(shape).to_event(2),
    }
    if family.has_correlations(num_features):
        sites["correlation_cholesky"] = (
            dist.LKJCholesky(num_features, prior.correlation_concentration).expand(shape[:1]).to_event(1)
        )
    return {name: jnp.asarray(numpyro.sample(name, fn)) for name, fn in sites.items()}


def _means(num_components: int, num_features: int, prior: Prior) -> dist.Distribution:
    """Normal(mean_loc, mean_scale) for every component, written in the units of the data.

    As an affine map of standardised means, so that engines can move in those (NumPyro's `TransformReparam`).
    """
    base = dist.Normal((prior.mean_loc - prior.column_mean) / prior.column_scale, prior.mean_scale / prior.column_scale)
    to_data = AffineTransform(prior.column_mean, prior.column_scale)
    return dist.TransformedDistribution(base.expand([num_components, num_features]).to_event(2), to_data)


def mixture_of_sites(sites: dict[str, Array], family: Family) -> Mixture:
    """The mixture with these values of the model's sites."""
    scales, means = sites["scales"], sites["means"]
    if family.diagonal:
        factor = jnp.broadcast_to(1.0 / scales, means.shape)
    elif "correlation_cholesky" in sites:
        # The precision factor of L = diag(s) C is the inverse of C, its columns divided by the scales.
        correlation = sites["correlation_cholesky"]
        identity = jnp.broadcast_to(jnp.eye(correlation.shape[-1], dtype=correlation.dtype), correlation.shape)
        factor = solve_triangular(correlation, identity, lower=True) / scales[..., None, :]
    else:
        factor = 1.0 / scales[..., None]
    return Mixture(jnp.log(sites["weights"]), means, factor)


def sites_of_mixture(mixture: Mixture, family: Family) -> dict[str, Array]:
    """Values of the model's sites that give this mixture: the inverse of `mixture_of_sites`."""
    num_components, num_features = mixture.means.shape
    factor = jnp.asarray(mixture.precision_factor)
    sites = {"weights": jnp.exp(mixture.log_weights), "means": jnp.asarray(mixture.means)}
    if family.diagonal:
        scales = 1.0 / factor
        sites["scales"] = scales[:, : family.scale_shape(num_components, num_features)[1]]
        return sites
    lower = covariance_factor(factor)
    scales = jnp.sqrt(jnp.square(lower).sum(-1))
    sites["scales"] = scales
    if family.has_correlations(num_features):
        sites["correlation_cholesky"] = lower / scales[..., None]
    return sites


def floor_weights(mixture: Mixture, smallest: float = 1e-4) -> Mixture:
    """The mixture with every weight at least about `smallest`, so that it lies inside the simplex."""
    weights = jnp.maximum(jnp.exp(mixture.log_weights), smallest)
    return Mixture(jnp.log(weights / weights.sum(-1, keepdims=True)), mixture.means, mixture.precision_factor)
