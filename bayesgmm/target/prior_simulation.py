"""Draws from the prior and its predictive distribution: mixtures drawn from it, and data sets drawn from those.

Source: Gabry et al. (2019), Visualization in Bayesian workflow, section 3, on prior predictive checks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.handlers import seed

from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import in_batches
from bayesgmm.numerics.keys import split_key, written_out
from bayesgmm.numerics.precision import AnyArray, IntLike, KeyLike, RandomKey, in_precision, matching_precision
from bayesgmm.numerics.validation import as_key, whole_number
from bayesgmm.priors.checks import check_prior
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior, PriorLike
from bayesgmm.priors.mixing_weights import log_prob_of_weights
from bayesgmm.priors.scales import HierarchicalScales
from bayesgmm.runtime.programs import compile_ahead, compiled_once
from bayesgmm.target.numpyro_model import (
    log_prior_of_sites,
    mixture_of_sites,
    rate_given_scales,
    sample_sites,
    sites_of_mixture,
)

_PRIORS_AT_ONCE = 1000  # draws whose log prior densities are computed together


def prior_draws(
    prior: PriorLike, family: str | Family, num_components: IntLike, num_draws: IntLike, *, key: KeyLike
) -> Mixture:
    """Mixtures drawn from the prior, with leading axes (1, num_draws); their labels carry no meaning.

    Args:
        prior: of `default_prior` or `conjugate_prior`.
        family: covariance family.
        num_components: k.
        num_draws: number of mixtures.
        key: `jax.random.key(seed)`.

    Raises:
        InputError: for a prior of another number of components or another family, for numbers below 1 and no key.
    """
    family, k = get_family(family), whole_number("num_components", num_components)
    checked = check_prior(prior, k, None, family)
    return _draw(checked, family, k, whole_number("num_draws", num_draws), as_key(key))


def prior_predictive(
    prior: PriorLike,
    family: str | Family,
    num_components: IntLike,
    num_rows: IntLike,
    num_draws: IntLike,
    *,
    key: KeyLike,
) -> Float[AnyArray, "1 num_draws num_rows d"]:
    """Data sets of `num_rows` rows each, drawn from the prior: one for each mixture drawn from it.

    Raises:
        InputError: as `prior_draws`.
    """
    num_rows = whole_number("num_rows", num_rows)
    draw_key, row_key = split_key(as_key(key))
    return prior_draws(prior, family, num_components, num_draws, key=draw_key).sample(num_rows, key=row_key)


@matching_precision
def compile_prior_draws(prior: AnyPrior, family: Family, num_components: int, num_draws: int) -> None:
    """Begin to compile what `prior_draws` will need."""
    compile_ahead(_draw_once, prior, family, num_components, num_draws, jax.random.key(0))


@functools.partial(compiled_once, static_argnames=("family", "num_components", "num_draws"))
def _draw_once(prior: AnyPrior, family: Family, num_components: int, num_draws: int, key: RandomKey) -> Mixture:
    def draw(key: RandomKey) -> Mixture:
        with seed(rng_seed=key):
            return mixture_of_sites(sample_sites(num_components, family, prior), family)

    # The draws of NumPyro's `Predictive`, which takes no other kind of key than JAX's own.
    key = written_out(key)
    draws = jax.vmap(draw)(jax.random.split(key, num_draws) if num_draws > 1 else key[None])
    return jax.tree.map(lambda leaf: leaf[None], draws)


_draw = matching_precision(_draw_once)


@matching_precision
@functools.partial(compiled_once, static_argnames="family")
def draw_scale_rates(draws: Mixture, family: Family, prior: HierarchicalScales, *, key: RandomKey) -> AnyArray:
    """Rates of hierarchical scales, shape (chain, draw, d) or (chain, draw, 1), drawn given the scales of each draw.

    Given the scales, the rates are independent of the rows, so that these are draws from the
    posterior if the mixtures are.
    """
    prior = jax.tree.map(lambda leaf: jnp.asarray(leaf, draws.means.dtype), prior)

    def draw(mixture: Mixture, key: Array) -> Array:
        return jnp.asarray(rate_given_scales(sites_of_mixture(mixture, family)["scales"], prior).sample(key))

    return jax.vmap(jax.vmap(draw))(draws, jax.random.split(written_out(key), draws.draw_shape))


@matching_precision
def log_prior_of_draws(
    draws: Mixture, family: Family, prior: AnyPrior, scale_rates: AnyArray | None = None
) -> dict[str, AnyArray]:
    """Log prior density of every draw, shape (chain, draw), for each site of the model under this prior.

    In the space in which the prior is stated: weights, means and scales (of the scales given their rate, and of the
    rate, where scales are hierarchical), Cholesky factors of correlations, or covariances or variances. Draws count
    with the labels that they carry, so where the concentrations of the weights are not all the same, relabelled draws
    have another density than they were drawn with.
    """
    num_leading = len(draws.draw_shape)
    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[num_leading:]), (draws, scale_rates))
    leaves, structure = jax.tree.flatten(flat)
    prior = in_precision(prior, flat[0].means.dtype)

    def of_batch(*leaves: AnyArray) -> dict[str, Array]:
        draws, scale_rates = structure.unflatten(leaves)
        return _log_prior(draws, scale_rates, prior, family=family)

    found = in_batches(of_batch, _PRIORS_AT_ONCE, *leaves)
    return jax.tree.map(lambda leaf: leaf.reshape(*draws.draw_shape, *leaf.shape[1:]), found)


@functools.partial(compiled_once, static_argnames="family")
def _log_prior(draws: Mixture, scale_rates: Array | None, prior: AnyPrior, *, family: Family) -> dict[str, Array]:
    def of_one(mixture: Mixture, rate: Array | None) -> dict[str, Array]:
        sites = sites_of_mixture(mixture, family, prior)
        if rate is not None:
            sites["scale_rate"] = rate
        found = log_prior_of_sites(sites, mixture.num_components, family, prior)
        # Of the logarithms: a weight below the smallest number is 0 among the sites, where the density may be infinite.
        concentration = jnp.asarray(prior.concentration)
        sticks = isinstance(prior, ConjugatePrior) and prior.stick_breaking
        of_weights = (jnp.ones_like(concentration), concentration) if sticks else (concentration, None)
        return found | {"weights": log_prob_of_weights(*of_weights, mixture.log_weights)}

    return jax.vmap(of_one)(draws, scale_rates)
