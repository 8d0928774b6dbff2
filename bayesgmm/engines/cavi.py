r"""Variational inference by coordinate ascent, under the conjugate prior: every step exact, no step size, no sampling.

Source: Bishop (2006), section 10.2. The bound is complete, so that numbers of components can be compared by it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesgmm.engines.coordinate_ascent import State, Task, best_ascent, in_order
from bayesgmm.engines.draws import fit_of_approximation
from bayesgmm.engines.em import given_start
from bayesgmm.engines.fit import Fit, ResultCode, report_failure
from bayesgmm.engines.optima import apart, coincident
from bayesgmm.engines.registry import Count, CountOrZero, Number, OnFailure, Rule, engine
from bayesgmm.errors import InputError
from bayesgmm.likelihood.expectation import moments_of_partition
from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.likelihood.scores import log_likelihood
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.keys import in_numpy, number_key, split_key, written_out
from bayesgmm.numerics.precision import ArrayLike, KeyLike, RandomKey, in_precision, matching_precision
from bayesgmm.numerics.thresholds import MIN_DRAWS
from bayesgmm.numerics.validation import as_key, whole_number
from bayesgmm.posterior.matching import match_labels
from bayesgmm.priors.conjugate import ConjugatePrior, PriorLike
from bayesgmm.priors.mixing_weights import log_mean_weights
from bayesgmm.priors.normal_inverse_wishart import (
    ConjugateDistribution,
    expected_mixture,
    log_prob_of_mixture,
    sample_mixture,
    update,
)
from bayesgmm.runtime import devices
from bayesgmm.starts.given import StartLike, responsibilities_from_start
from bayesgmm.starts.named import Start, check_named_start, get_start, starts_together
from bayesgmm.starts.sampling import column_moments
from bayesgmm.target.problem import Problem, make_problem

_START_RIDGE = 1e-6  # of a column's variance: a start has no prior that would hold its components


def _num_draws(name: str, value: object, least: int = 0) -> int:
    count = whole_number(name, value, least)
    if 0 < count < MIN_DRAWS:
        raise InputError(f"{name}={count} is too few for k-hat; draw at least {MIN_DRAWS:g}, or none")
    return count


@engine(
    "cavi",
    label="CAVI",
    method="Coordinate ascent",
    gives="approximation",
    prior="conjugate",
    trace="ELBO",
    streams=(4,),
    start_settings=("start", "num_restarts"),
)
def fit_cavi(
    x: ArrayLike,
    num_components: Count,
    *,
    family: str | Family = "full",
    prior: PriorLike = None,
    key: KeyLike,
    start: Annotated[StartLike, Rule(check_named_start)] = "k-means++",
    num_restarts: Count = 10,
    row_weights: ArrayLike | None = None,
    tol: Number = 1e-6,
    max_steps: CountOrZero = 1000,
    num_draws: Annotated[int, Rule(_num_draws)] = 1000,
    on_failure: OnFailure = "warn",
) -> Fit:
    """Approximate the posterior by independent conjugate distributions of allocations and of parameters.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family.
        prior: of `conjugate_prior(x, num_components, family)`, by default that.
        key: `jax.random.key(seed)`.
        start: name of a start, as in `fit_em`; or a `Mixture`, a mapping with its parameters, responsibilities (n, k)
            or labels (n), from which one ascent starts, and whose labels are kept, except under a stick-breaking prior,
            which has an order of its own; or the `approximation` of an earlier fit, from which it continues.
        num_restarts: number of random starts, side by side; the highest bound is kept.
        row_weights: weight of every row (n); weight 2 is the row twice.
        tol: stop when a step changes the bound per row by less than this; 0 runs `max_steps`.
        max_steps: step limit of an ascent; 0 takes the best numbers for the responsibilities of the start.
        num_draws: draws taken from the approximation, at least 25 for k-hat; or 0 for none, which saves a pass over the
            rows for each. The point is then the mixture of mean weights, means and the inverses of mean precisions.
        on_failure: "warn", "raise" or "ignore" when the best ascent did not converge.

    Returns:
        A `Fit` with draws of shape (1, num_draws), or None, the evidence lower bound (ELBO) after every step as its
        trace, and the numbers of the approximation as `approximation`, whose `predictive_log_prob` is a mixture of
        Student-t densities. Its `sample_stats` hold the log-densities of every draw under the posterior (`log_p`, up to
        the evidence) and the approximation (`log_q`), its `summary` the Pareto k-hat of their ratios and the ELBO, with
        all its constants: it bounds the log evidence of one labelling from below; add log k! to compare k.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled; a family without a conjugate
            update among them.
    """
    rows = as_rows(x, row_weights).of_positive_weight()
    problem = make_problem(rows, num_components, family, prior, key, conjugate=True)
    found = get_start(start) if isinstance(start, str) else start
    return report_failure(
        _fit(problem, key, found, in_precision(tol, rows.dtype), num_restarts, max_steps, num_draws), on_failure
    )


@matching_precision
def _fit(
    problem: Problem,
    key: RandomKey,
    start: Start | StartLike,
    tol: ArrayLike,
    num_restarts: int,
    max_steps: int,
    num_draws: int,
) -> Fit:
    problem = dataclasses.replace(problem, rows=jax.tree.map(np.asarray, problem.rows))
    rows, k, family = problem.rows, problem.num_components, problem.family
    start_key, draw_key = split_key(key)
    if isinstance(start, Start) and start.random:
        keys = number_key(in_numpy(start_key), np.arange(num_restarts, dtype=np.int32))
        starts = starts_together(rows, k, family, _start_ridge(rows), start=start.name, keys=keys)
    else:
        starts = jax.tree.map(lambda leaf: leaf[None], _given_start(start, problem, start_key))
    mesh = devices.row_mesh(rows.values.size * k)
    placed = problem.in_steps().placed() if mesh is None else dataclasses.replace(problem, rows=rows.split(mesh))
    prior = placed.prior
    assert isinstance(prior, ConjugatePrior)
    task = Task(placed.rows, jnp.asarray(tol), prior)
    ascend = functools.partial(best_ascent, task=task, max_steps=max_steps, family=family, mesh=mesh)
    state = ascend(starts)
    if len(starts.means) == 1 and max_steps > 0:  # of several starts hardly all lead to a saddle
        state = _off_saddle(state, ascend, float(rows.total_weight))
    approximation = state.approximation
    if not prior.stick_breaking:  # whose components are no longer the same in another order
        order = None  # labels of a user-supplied start are kept: steps renumber nothing
        if isinstance(start, Start):
            order = np.lexsort(np.asarray(approximation.mean).T[::-1])
        elif isinstance(start, Mixture):
            order = match_labels(mean_mixture_of(approximation), start)
        if order is not None:
            approximation = _permute(approximation, jnp.asarray(order))
    point = mean_mixture_of(approximation)
    fit = Fit(
        engine="cavi",
        family=problem.family.name,
        mixture=point,
        log_likelihood=log_likelihood(point, rows.in_steps()),
        result=np.where(state.result < 0, ResultCode.max_steps_reached, state.result).astype(np.int32),
        num_steps=state.num_steps,
        trace=state.trace,
        summary={"elbo": float(state.elbo)},
        approximation=approximation,
    )
    return fit if num_draws == 0 else _with_draws(fit, problem, num_draws, draw_key)


def draw_from_approximation(
    fit: Fit,
    x: ArrayLike,
    *,
    num_draws: int,
    key: KeyLike,
    prior: PriorLike = None,
    row_weights: ArrayLike | None = None,
) -> Fit:
    """A fit by `fit_cavi` with draws from its approximation, in place of those that it has or has not.

    Args:
        fit: of `fit_cavi` on these rows, with this prior and these weights.
        x: rows (n, d).
        num_draws: number of draws.
        key: `jax.random.key(seed)`.
        prior: as in `fit_cavi`.
        row_weights: as in `fit_cavi`.

    Raises:
        InputError: for a fit by another engine, and for arguments that do not belong to it.
    """
    if fit.approximation is None:
        raise InputError(f"fit is by {fit.engine}, which has no approximation to draw from; give one by fit_cavi")
    rows = as_rows(x, row_weights).of_positive_weight()
    problem = make_problem(rows, fit.mixture.num_components, fit.family, prior, key, conjugate=True)
    return _with_draws(fit, problem, _num_draws("num_draws", num_draws, least=1), as_key(key))


@matching_precision
def _with_draws(fit: Fit, problem: Problem, num_draws: int, key: RandomKey) -> Fit:
    problem = problem.in_steps().placed()
    approximation = jax.tree.map(jnp.asarray, fit.approximation)
    return fit_of_approximation(
        "cavi",
        problem,
        _draw(approximation, problem, key, num_draws=num_draws),
        elbo=float(fit.summary["elbo"]),
        result=fit.code,
        num_steps=int(fit.num_steps),
        trace=jnp.asarray(fit.trace),
        approximation=fit.approximation,
    )


def _given_start(start: Start | StartLike, problem: Problem, key: RandomKey) -> Mixture:
    """The mixture whose pass over the rows comes first."""
    rows, k, family = problem.rows, problem.num_components, problem.family
    if isinstance(start, ConjugateDistribution):
        return _expected(_check_approximation(start, problem.prior_distribution()))
    if isinstance(start, Start | Mixture | Mapping):
        return given_start(start, rows, k, family, _start_ridge(rows), key)
    # Responsibilities are taken as they are: the first numbers of the approximation are theirs.
    shares, padded = responsibilities_from_start(start, rows, k), problem.in_steps()
    shares = np.pad(np.asarray(shares, rows.dtype), ((0, len(padded.rows) - len(rows)), (0, 0)))
    return _expected_from_shares(padded.placed(), shares)


def _check_approximation(start: ConjugateDistribution, prior: ConjugateDistribution) -> ConjugateDistribution:
    """An approximation to start from, of the shape and in the precision of the prior."""
    if start.mean.shape != prior.mean.shape or start.scale.shape != prior.scale.shape:
        raise InputError(
            f"start is an approximation with means of shape {start.mean.shape} and scales of shape "
            f"{start.scale.shape}; those of num_components, x and family are {prior.mean.shape} and {prior.scale.shape}"
        )
    return jax.tree.map(lambda field: jnp.asarray(field, prior.mean.dtype), start)


_expected = jax.jit(expected_mixture)


@jax.jit
def _expected_from_shares(problem: Problem, shares: Array) -> Mixture:
    moments = moments_of_partition(problem.rows, shares, problem.family)
    return expected_mixture(update(problem.prior_distribution(), moments, problem.family))


def _start_ridge(rows: Rows) -> np.ndarray:
    return (_START_RIDGE * column_moments(rows)[1]).astype(rows.dtype)


def _off_saddle(state: State, ascend: Callable[[Mixture], State], total_weight: float) -> State:
    """The state; where components that have rows coincide and the bound rises as they part, that from them apart."""
    for _ in range(state.expected.num_components - 1):
        mixture = jax.tree.map(np.asarray, mean_mixture_of(state.approximation))
        counts = total_weight * mixture.weights
        groups = [held for group in coincident(mixture) if len(held := group[counts[group] > 1.0]) > 1]
        if not groups:
            break
        again = ascend(jax.tree.map(lambda field: jnp.asarray(field)[None], apart(mixture, groups)))
        if not float(again.elbo) > float(state.elbo) + 1e-9 * abs(float(state.elbo)):
            break
        state = again
    return state


@jax.jit
def mean_mixture_of(approximation: ConjugateDistribution) -> Mixture:
    """The mixture of mean weights and means, with the covariances that the expected precisions have."""
    expected = expected_mixture(approximation)
    log_weights = log_mean_weights(approximation.concentration, approximation.remainder)
    return Mixture(log_weights, expected.means, expected.precision_factor)


_permute = jax.jit(in_order)


@functools.partial(jax.jit, static_argnames="num_draws")
def _draw(
    approximation: ConjugateDistribution, problem: Problem, key: RandomKey, *, num_draws: int
) -> tuple[Mixture, Array, Array]:
    """Draws, and their log-densities under the posterior, up to the evidence, and under the approximation."""
    prior = problem.prior_distribution()
    draws = jax.vmap(lambda key: sample_mixture(approximation, key=key))(jax.random.split(written_out(key), num_draws))

    def log_densities(mixture: Mixture) -> tuple[Array, Array]:
        log_p = log_likelihood(mixture, problem.rows) + log_prob_of_mixture(prior, mixture)
        return log_p, log_prob_of_mixture(approximation, mixture)

    return draws, *jax.lax.map(log_densities, draws)
