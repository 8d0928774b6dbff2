"""Runs that draw from a posterior, and the `Fit` made of the draws: their mean, its log-likelihood, diagnostics."""

import dataclasses
import functools
import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.likelihood.scores import log_likelihood
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike
from bayesgmm.posterior.allocations import are_finite
from bayesgmm.posterior.chain_agreement import convergence
from bayesgmm.posterior.matching import match_labels
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution
from bayesgmm.runtime.chains import Chains, Drawn, Run, checkpoint_of, fewest_draws
from bayesgmm.runtime.progress import Listener, Progress
from bayesgmm.target.problem import Problem

_ROUNDINGS = 8  # of log p that its differences must exceed, to be more than noise


def make_run(
    engine: str,
    problem: Problem,
    arguments: PyTree,
    *,
    progress: bool | Listener | None,
    checkpoint: str | Path | bool,
    **steps: Any,
) -> Run:
    """A run of an engine, which its problem and its other arguments identify; `steps` are those of `Run`."""
    family = problem.family.name
    version = importlib.metadata.version("bayesgmm")  # another one may draw otherwise
    identity = (version, engine, problem.rows, problem.prior, problem.num_components, family, arguments)
    display = Progress(f"{engine}, k = {problem.num_components}", progress)
    return Run(progress=display, checkpoint=checkpoint_of(checkpoint, identity), **steps)


def make_chain_run(
    engine: str,
    problem: Problem,
    arguments: PyTree,
    chains: Chains,
    num_steps: tuple[int, int],
    longest: int,
    progress: bool | Listener | None,
    checkpoint: str | Path | bool,
) -> Run:
    """The run of a sampler: so many steps of warm-up and draws of each chain, in stretches up to the longest."""
    return make_run(
        engine,
        problem,
        (chains, arguments),
        num_warmup=num_steps[0],
        num_draws=num_steps[1],
        room=min(longest, max(num_steps)),
        fewest=fewest_draws(chains.number),
        progress=progress,
        checkpoint=checkpoint,
    )


def fit_of_draws(
    engine: str,
    problem: Problem,
    draws: Mixture,
    *,
    result: ResultCode,
    num_steps: int,
    trace: Array,
    sample_stats: dict[str, Any],
    summary: dict[str, Any],
    pivot: Mixture | None = None,
    approximation: ConjugateDistribution | None = None,
) -> Fit:
    """The fit made of draws, a mixture with leading axes (chain, draw), their labels matched to a pivot if given.

    Draws that are not finite are kept, and counted by the result code; the point is the mean of the others, or the
    pivot where there are none.
    """
    finite = are_finite(draws)
    if pivot is not None:
        orders = np.where(finite[..., None], match_labels(draws, pivot), np.arange(draws.num_components))
        num_relabelled = int((orders != np.arange(draws.num_components)).any(-1).sum())
        draws, summary = draws.permute(orders), {**summary, "num_relabelled": num_relabelled}
    if finite.any() or pivot is None:
        mixture = mean_mixture(draws if finite.all() or not finite.any() else draws[finite], problem.family)
    else:
        mixture = pivot
    total = log_likelihood(mixture, problem.rows)
    if not finite.all() or not np.isfinite(total):
        result = ResultCode.nonfinite
    return Fit(
        engine=engine,
        family=problem.family.name,
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


def fit_of_chains(
    engine: str,
    problem: Problem,
    found: Drawn,
    draws: Mixture,
    stats: dict[str, Any],
    *,
    pivot: Mixture,
    summary: dict[str, Any],
    log_likelihoods: ArrayLike | None = None,
) -> Fit:
    """The fit made of the draws of chains and their statistics, `lp` among them, with its convergence diagnosed."""
    fit = fit_of_draws(
        engine,
        problem,
        draws,
        result=ResultCode.interrupted if found.interrupted else ResultCode.successful,
        num_steps=found.num_steps,
        trace=jnp.asarray(stats["lp"]),
        sample_stats=stats,
        summary=summary,
        pivot=pivot,
    )
    return with_convergence(fit, problem.rows.values, log_likelihoods=log_likelihoods)


def fit_of_approximation(
    engine: str, problem: Problem, drawn: tuple[Mixture, AnyArray, AnyArray], *, elbo: float, **others: Any
) -> Fit:
    """The fit made of independent draws from an approximation, with their log-densities under posterior and it.

    `others` are further arguments of `fit_of_draws`.
    """
    draws, log_p, log_q = jax.tree.map(lambda leaf: leaf[None], drawn)
    summary = {"khat": pareto_khat(np.asarray(log_p[0]), np.asarray(log_q[0])), "elbo": elbo}
    return fit_of_draws(
        engine, problem, draws, sample_stats={"log_p": log_p, "log_q": log_q}, summary=summary, **others
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
