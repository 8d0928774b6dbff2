"""From draws of the model's sites to a `Fit`: mixtures with matched labels, their mean, and its log-likelihood."""

import functools
from typing import Any

import jax
from jaxtyping import Array

from bayesgmm.engines.draws import fit_of_draws
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.posterior.relabelling import relabel_draws
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.target import unconstrained as space


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
    relabelled = relabel_draws(_mixtures_of(sites, family, prior), pivot=reference)
    return fit_of_draws(
        engine,
        relabelled.draws,
        x,
        family,
        result=result,
        num_steps=num_steps,
        trace=trace,
        sample_stats=sample_stats,
        summary={**summary, "num_relabelled": relabelled.num_relabelled},
    )


@functools.partial(jax.jit, static_argnames="family")
def _mixtures_of(sites: space.Sites, family: Family, prior: AnyPrior) -> Mixture:
    return jax.vmap(jax.vmap(lambda one: space.mixture_of(one, family, prior)))(sites)
