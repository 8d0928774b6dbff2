"""From posterior draws of mixtures to a `Fit`: their mean, its log-likelihood, and what can be said of them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.likelihood.log_likelihood import log_likelihood
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.posterior.convergence import convergence
from bayesgmm.posterior.relabelling import relabel_draws
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution

_ROUNDINGS = 8  # of log p that its differences must exceed, to be more than noise
MIN_DRAWS = 25  # of which the largest fifth, the tail that k-hat is fitted to, has five


def fit_of_draws(
    engine: str,
    draws: Mixture,
    x: Array | Rows,
    family: Family,
    *,
    result: ResultCode,
    num_steps: int,
    trace: Array,
    sample_stats: dict[str, Any],
    summary: dict[str, Any],
    pivot: Mixture | None = None,
    approximation: ConjugateDistribution | None = None,
) -> Fit:
    """The fit made of draws, a mixture with leading axes (chain, draw), their labels matched to a pivot if given."""
    if pivot is not None:
        relabelled = relabel_draws(draws, pivot=pivot)
        draws, summary = relabelled.draws, {**summary, "num_relabelled": relabelled.num_relabelled}
    mixture = mean_mixture(draws, family)
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
        approximation=approximation,
    )


@functools.partial(jax.jit, static_argnames="family")
def mean_mixture(draws: Mixture, family: Family) -> Mixture:
    """The mixture of the family closest to posterior means of weights, means and covariances.

    Draws must have matched labels.
    """
    axes = tuple(range(len(draws.draw_shape)))
    factor = draws.factor.from_covariances(jnp.mean(draws.factor.covariances(), axis=axes))
    weights, means = jnp.mean(draws.weights, axis=axes), jnp.mean(draws.means, axis=axes)
    return family.project(Mixture(jnp.log(weights), means, factor.array))


def pareto_khat(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """Pareto shape of importance weights from the approximation q to the posterior p; below 0.7 it can be trusted.

    Weights that are all the same, because the approximation is exact, have no tail: 0. Where they differ by little more
    than the rounding of log p, as in float32 of many rows, there is nothing to be told: NaN.

    Source: Yao et al. (2018), Yes, but did it work?, section 3; Vehtari et al. (2024) for the smoothing, by ArviZ.
    """
    from arviz_stats.base.array import array_stats

    log_weights = np.asarray(log_p, np.float64) - np.asarray(log_q, np.float64)
    if not np.isfinite(log_weights).all():
        return float("inf")
    if (
        np.dtype(log_p.dtype) == np.float32
        and log_weights.std() <= _ROUNDINGS * np.finfo(np.float32).eps * np.abs(log_p).max()
    ):
        return float("nan")
    if np.ptp(log_weights) <= 1e-9 * max(1.0, np.abs(log_weights).max()):
        return 0.0
    # ArviZ takes log-likelihoods, whose negatives are the log-weights of leave-one-out.
    return float(array_stats.psislw(-log_weights)[1])


def with_convergence(fit: Fit, x: ArrayLike, *, log_likelihoods: ArrayLike | None = None) -> Fit:
    """The fit of a sampler with its result code and what tells how well its chains have mixed.

    `log_likelihoods` of the draws (chain, draw) need not be computed again where the sampler knows them.
    """
    assert fit.draws is not None
    known = {} if log_likelihoods is None else {"log_likelihood": log_likelihoods}
    found = convergence(fit.draws, x, extra={"lp": fit.sample_stats["lp"], **known})
    summary = {**fit.summary, **found.summary}
    code = fit.code
    if "diverging" in fit.sample_stats:
        summary["divergences"] = int(fit.sample_stats["diverging"].sum())
    if code is ResultCode.successful and not found.successful:
        code = ResultCode.not_mixed
    elif code is ResultCode.successful and summary.get("divergences"):
        code = ResultCode.divergent
    return dataclasses.replace(fit, result=np.int32(code), summary=summary)
