"""From draws of the model's sites to a `Fit`: mixtures with matched labels, their mean, and its log-likelihood."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesgmm.conjugate import AnyPrior
from bayesgmm.engines import space
from bayesgmm.families import Family
from bayesgmm.labels import relabel
from bayesgmm.likelihood import log_likelihood
from bayesgmm.mixture import Mixture, factor_of_covariances
from bayesgmm.results import Fit, ResultCode


def posterior_fit(
    engine: str,
    sites: space.Sites,
    x: Array,
    family: Family,
    prior: AnyPrior,
    reference: Mixture,
    *,
    result: ResultCode,
    num_steps: int,
    trace: Array,
    sample_stats: dict[str, Any],
    summary: dict[str, Any],
) -> Fit:
    """The fit made of draws of the standardised model's sites, arrays with leading axes (chain, draw)."""
    draws = relabel(_mixtures_of(sites, family, prior), reference)
    mixture = mean_mixture(draws)
    total = log_likelihood(mixture, x)
    if not np.isfinite(total):
        result = ResultCode.nonfinite
    return Fit(
        engine=engine,
        family=family.name,
        mixture=mixture,
        log_likelihood=total,
        result=np.int32(result),
        num_steps=np.int32(num_steps),
        trace=trace,
        draws=draws,
        sample_stats=sample_stats,
        summary=summary,
    )


@functools.partial(jax.jit, static_argnames="family")
def _mixtures_of(sites: space.Sites, family: Family, prior: AnyPrior) -> Mixture:
    return jax.vmap(jax.vmap(lambda one: space.mixture_of(one, family, prior)))(sites)


@jax.jit
def mean_mixture(draws: Mixture) -> Mixture:
    """The mixture of posterior means of weights, means and covariances; draws must have matched labels.

    Averages of covariances stay inside every family whose covariances are closed under averaging, as are all four.
    """
    axes = tuple(range(len(draws.draw_shape)))
    covariances = draws.covariances
    num_factors = draws.precision_factor.shape[len(axes)]
    covariances = jnp.mean(covariances, axis=axes)[:num_factors]
    if draws.is_diagonal:
        covariances = jnp.diagonal(covariances, axis1=-2, axis2=-1)
    return Mixture(
        jnp.log(jnp.mean(draws.weights, axis=axes)),
        jnp.mean(draws.means, axis=axes),
        factor_of_covariances(covariances, draws.is_diagonal),
    )
