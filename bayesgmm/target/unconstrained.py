"""The space in which the Bayesian engines move: the model's sites without constraints and without units.

Every site is mapped to the whole real space by NumPyro's own transforms, and the component means are measured in the
columns' standard deviations from the columns' means, and covariance matrices in those standard deviations too, so that
one step size suits all coordinates.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import reparam, seed, trace
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import log_density

from bayesgmm.likelihood.rows import enough_rows
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray
from bayesgmm.numerics.validation import as_key, as_rows
from bayesgmm.priors.checks import check_prior
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior, conjugate_prior
from bayesgmm.priors.weakly_informative import default_prior
from bayesgmm.target.numpyro_model import (
    CovarianceUnits,
    floor_weights,
    mixture_of_sites,
    model,
    sample_sites,
    sites_of_mixture,
)

Sites = dict[str, Array]


def _by_units(site: Any) -> TransformReparam | None:
    return TransformReparam() if site["name"] in ("means", "covariances") else None


standardised_model = reparam(model, config=_by_units)
"""The same model with site `means_base` = (means - column mean) / column scale in place of `means`.

Under a conjugate prior also `covariances_base`, covariances in units of the column scales, in place of `covariances`.
"""

standardised_prior = reparam(sample_sites, config=_by_units)
"""Its part without rows."""


def prepare_problem(
    x: Any, num_components: int, family: str | Family, prior: AnyPrior | None, key: Any
) -> tuple[AnyArray, Family, AnyPrior]:
    """Checked rows, family and prior of a Bayesian engine, with the default prior where none is given.

    Raises:
        InputError: for arguments that cannot be fitted.
    """
    family = get_family(family)
    x = as_rows(x)
    # A conjugate prior bounds the likelihood; the others do not where rows are fewer than features.
    enough_rows(x, num_components, family, bounded=isinstance(prior, ConjugatePrior))
    as_key(key)
    prior = default_prior(x, num_components) if prior is None else prior
    return x, family, check_prior(prior, num_components, x.shape[1], family)


@functools.cache
def _supports(num_components: int, num_features: int, family: Family, kind: str) -> dict[str, Any]:
    """Support of every free site of the standardised model, from a trace of it on dummy rows.

    `kind` is "conjugate", or the prior of the scales.
    """
    rows = np.random.default_rng(0).normal(size=(2 * num_features + 2, num_features)).astype(np.float32)
    if kind == "conjugate":
        prior = conjugate_prior(rows, num_components, family)
    else:
        prior = default_prior(rows, num_components, scale_prior=kind)
    rows, prior = jax.tree.map(jnp.asarray, (rows, prior))
    with numpyro.validation_enabled(False):
        sites = trace(seed(standardised_model, jax.random.key(0))).get_trace(rows, num_components, family, prior)
    return {
        name: site["fn"].support for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]
    }


@functools.partial(jax.jit, static_argnames="family")
def to_unconstrained(mixture: Mixture, family: Family, prior: AnyPrior) -> Sites:
    """Unconstrained coordinates of a mixture."""
    kind = "conjugate" if isinstance(prior, ConjugatePrior) else prior.scales.name
    supports = _supports(mixture.num_components, mixture.num_features, family, kind)
    sites = sites_of_mixture(floor_weights(mixture), family, prior)
    sites["means_base"] = (sites.pop("means") - prior.column_mean[None]) / prior.column_scale[None]
    if "covariances" in sites:
        units = CovarianceUnits(prior.column_scale)
        sites["covariances_base"] = jnp.asarray(units.inv(sites.pop("covariances")))
    return {name: biject_to(support).inv(sites[name]) for name, support in supports.items()}


def to_sites(unconstrained: Sites, family: Family, num_components: int, num_features: int) -> Sites:
    """Values of the standardised model's sites at unconstrained coordinates (one point)."""
    if {"covariances_base", "variances"} & set(unconstrained):
        kind = "conjugate"
    else:  # scales have one support, whether log-normal or half-normal
        kind = "hierarchical" if "scale_rate" in unconstrained else "lognormal"
    supports = _supports(num_components, num_features, family, kind)
    return {name: biject_to(support)(unconstrained[name]) for name, support in supports.items()}


def mixture_of(sites: Sites, family: Family, prior: AnyPrior) -> Mixture:
    """The mixture with these values of the standardised model's sites (one point)."""
    means = prior.column_mean[None] + prior.column_scale[None] * sites["means_base"]
    sites = {**sites, "means": means}
    if "covariances_base" in sites:
        sites["covariances"] = CovarianceUnits(prior.column_scale)(sites["covariances_base"])
    return mixture_of_sites(sites, family)


def constrained_log_density(
    unconstrained: Sites, x: Float[Array, "n d"], num_components: int, family: Family, prior: AnyPrior
) -> Float[Array, ""]:
    """Log posterior density, up to the evidence, *of the constrained sites*: no Jacobian of the transforms.

    Its maximum is the mode in the space in which the prior is stated, which is what `AutoDelta` finds; the mode in the
    unconstrained space is another point.
    """
    sites = to_sites(unconstrained, family, num_components, x.shape[1])
    density, _ = log_density(standardised_model, (x, num_components, family, prior), {}, sites)
    # The density of the means and covariances, not of the standardised ones.
    density = jnp.asarray(density) - num_components * jnp.log(prior.column_scale).sum()
    if "covariances_base" in sites:
        standardised = sites["covariances_base"]
        density = density - CovarianceUnits(prior.column_scale).log_abs_det_jacobian(standardised, standardised)
    return density
