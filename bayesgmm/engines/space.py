"""The space in which the Bayesian engines move: the model's sites without constraints and without units.

Every site is mapped to the whole real space by NumPyro's own transforms, and the component means are measured in the
columns' standard deviations from the columns' means, so that one step size suits all coordinates.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import reparam, seed, trace
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import log_density

from bayesgmm.checks import as_key, as_rows, enough_rows
from bayesgmm.engines.em import fit_em
from bayesgmm.engines.model import floor_weights, mixture_of_sites, model, sites_of_mixture
from bayesgmm.errors import InputError
from bayesgmm.families import Family, get_family
from bayesgmm.mixture import Mixture
from bayesgmm.precision import AnyArray
from bayesgmm.priors import Prior, default_prior

Sites = dict[str, Array]

standardised_model = reparam(model, config={"means": TransformReparam()})
"""The same model with site `means_base` = (means - column mean) / column scale in place of `means`."""


def prepare(
    x: Any,
    num_components: int,
    family: str | Family,
    prior: Prior | None,
    start: Mixture | None,
    key: Any,
) -> tuple[AnyArray, Family, Prior, Mixture]:
    """Checked arguments of a Bayesian engine, with the default prior and an EM fit as the start where none is given.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    family = get_family(family)
    x = as_rows(x)
    enough_rows(x, num_components, family)
    key = as_key(key)
    prior = default_prior(x, num_components) if prior is None else prior
    if prior.concentration.shape != (num_components,) or prior.mean_loc.shape != x.shape[1:]:
        raise InputError(
            f"prior is for k={prior.concentration.shape[0]} components of {prior.mean_loc.shape[0]} features, but "
            f"num_components={num_components} and x has {x.shape[1]} features; make it with default_prior(x, "
            f"{num_components})"
        )
    if start is None:
        start = fit_em(x, num_components, family=family, key=key, on_failure="ignore").mixture
    if start.means.shape != (num_components, x.shape[1]) or start.is_diagonal != family.diagonal:
        raise InputError(
            f"start has means of shape {start.means.shape} and a {'diagonal' if start.is_diagonal else 'triangular'} "
            f"factor; num_components={num_components} and family={family.name!r} need another. Start from a fit_em "
            "result of the same family"
        )
    return x, family, prior, start


@functools.cache
def _supports(num_components: int, num_features: int, family: Family) -> dict[str, Any]:
    """Support of every free site of the standardised model, from a trace of it on dummy rows."""
    rows = jnp.arange(4.0 * num_features).reshape(-1, num_features)
    prior = default_prior(rows + jnp.square(rows), num_components)
    with numpyro.validation_enabled(False):
        sites = trace(seed(standardised_model, jax.random.key(0))).get_trace(rows, num_components, family, prior)
    return {
        name: site["fn"].support for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]
    }


@functools.partial(jax.jit, static_argnames="family")
def to_unconstrained(mixture: Mixture, family: Family, prior: Prior) -> Sites:
    """Unconstrained coordinates of a mixture."""
    supports = _supports(mixture.num_components, mixture.num_features, family)
    sites = sites_of_mixture(floor_weights(mixture), family)
    sites["means_base"] = (sites.pop("means") - prior.column_mean[None]) / prior.column_scale[None]
    return {name: biject_to(support).inv(sites[name]) for name, support in supports.items()}


def to_sites(unconstrained: Sites, family: Family, num_components: int, num_features: int) -> Sites:
    """Values of the standardised model's sites at unconstrained coordinates (one point)."""
    supports = _supports(num_components, num_features, family)
    return {name: biject_to(support)(unconstrained[name]) for name, support in supports.items()}


def mixture_of(sites: Sites, family: Family, prior: Prior) -> Mixture:
    """The mixture with these values of the standardised model's sites (one point)."""
    means = prior.column_mean[None] + prior.column_scale[None] * sites["means_base"]
    return mixture_of_sites({**sites, "means": means}, family)


def constrained_log_density(
    unconstrained: Sites, x: Float[Array, "n d"], num_components: int, family: Family, prior: Prior
) -> Float[Array, ""]:
    """Log posterior density, up to the evidence, *of the constrained sites*: no Jacobian of the transforms.

    Its maximum is the mode in the space in which the prior is stated, which is what `AutoDelta` finds; the mode in the
    unconstrained space is another point.
    """
    sites = to_sites(unconstrained, family, num_components, x.shape[1])
    density, _ = log_density(standardised_model, (x, num_components, family, prior), {}, sites)
    # The density of the means, not of the standardised means.
    return jnp.asarray(density) - num_components * jnp.log(prior.column_scale).sum()
