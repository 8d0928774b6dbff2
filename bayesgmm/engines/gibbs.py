r"""Posterior draws by blocked Gibbs sampling, under the conjugate prior.

A sweep draws the allocation of every row to a component given the mixture, with the responsibilities as probabilities,
then weights, means and covariances given the allocations, from their conjugate distribution. Both steps need one pass
over the rows; nothing is tuned and nothing is rejected. The allocations are not kept: those of a mixture that was drawn
are its responsibilities.

Source: Diebolt & Robert (1994); Frühwirth-Schnatter (2006), section 3.5.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bayesgmm.engines.draws import fit_of_chains, make_chain_run
from bayesgmm.engines.fit import Fit, report_failure
from bayesgmm.engines.modes import NUM_STARTS, starts_of
from bayesgmm.engines.registry import ChainMethod, CheckpointOption, Count, OnFailure, ProgressOption, engine
from bayesgmm.likelihood.expectation import Centred, expected_moments, pass_over
from bayesgmm.likelihood.moments import Moments, moment_kind
from bayesgmm.likelihood.rows import Rows, unweighted_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.keys import like_key, written_out
from bayesgmm.numerics.precision import ArrayLike, KeyLike, RandomKey, in_precision, matching_precision
from bayesgmm.priors.conjugate import PriorLike
from bayesgmm.priors.normal_inverse_wishart import log_prob_of_mixture, sample_mixture, update
from bayesgmm.runtime.chains import Chains, Run, advance_each, check_draws, make_chains, run_in_stretches, stretch
from bayesgmm.runtime.programs import compile_ahead, compiled_once
from bayesgmm.starts.given import StartLike
from bayesgmm.target.problem import Problem, make_problem

_ROOM = 1000  # sweeps that a stretch may have
_START_SHARE = 0.25  # of what the rows say: chains start twice as far apart as the posterior is wide


@engine(
    "gibbs",
    label="Gibbs",
    method="Gibbs sampling",
    gives="draws",
    prior="conjugate",
    trace="log posterior density",
    streams=(5,),
    together=check_draws,
)
def fit_gibbs(
    x: ArrayLike,
    num_components: Count,
    *,
    family: str | Family = "full",
    prior: PriorLike = None,
    key: KeyLike,
    start: StartLike | None = None,
    num_chains: Count = 4,
    num_warmup: Count = 500,
    num_draws: Count = 2000,
    num_starts: Count = NUM_STARTS,
    chain_method: ChainMethod | None = None,
    progress: ProgressOption = None,
    checkpoint: CheckpointOption = False,
    on_failure: OnFailure = "warn",
) -> Fit:
    """Draw from the posterior by Gibbs sampling.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family, one with a conjugate prior.
        prior: of `conjugate_prior(x, num_components, family)`, by default that.
        key: `jax.random.key(seed)`.
        start: the mixture around which all chains start, or several around which they start in turns. Labels of the
            first are kept. By default the ends of `num_starts` fits by EM, the best one first.
        num_chains: number of chains.
        num_warmup: first sweeps of every chain that are not kept.
        num_draws: sweeps kept of every chain.
        num_starts: fits by EM that chains start around when no start is given.
        chain_method: as in `fit_nuts`.
        progress: True for a bar, which notebooks have by default after two seconds, False for none, or a function
            called with a sentence about once a second.
        checkpoint: as in `fit_nuts`.
        on_failure: "warn", "raise" or "ignore" when the chains disagree, or Ctrl-C came.

    Returns:
        A `Fit` with draws of shape (num_chains, num_draws), fewer after Ctrl-C; its `summary` as that of `fit_nuts`.
        The `lp` in its `sample_stats` is the log posterior density of weights, means and covariances, up to the
        evidence.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled; a family without a conjugate
            update among them.
        KeyboardInterrupt: as in `fit_nuts`.
    """
    problem = make_problem(unweighted_rows(x), num_components, family, prior, key, conjugate=True)
    chains = make_chains(num_chains, chain_method)
    steps = (num_warmup, num_draws)
    meanwhile = functools.partial(_compile_ahead, problem, chains, steps)
    starts = starts_of(problem, start, num_starts, key=key, meanwhile=meanwhile)
    run = make_chain_run("gibbs", problem, (starts, key), chains, steps, _ROOM, progress, checkpoint)
    return report_failure(_fit(problem, starts, key, chains, run), on_failure)


@matching_precision
def _compile_ahead(problem: Problem, chains: Chains, num_steps: tuple[int, int]) -> None:
    padded, key, first = problem.in_steps().placed(), jax.eval_shape(jax.random.key, 0), jnp.asarray(0)
    chains = chains.together
    state = chains.placed(jax.eval_shape(_begin, [problem.any_mixture()] * chains.number, padded, key))
    compile_ahead(_advance, state, padded, first, first, chains=chains, room=min(_ROOM, max(num_steps)))


@matching_precision
def _fit(problem: Problem, starts: list[Mixture], key: RandomKey, chains: Chains, run: Run) -> Fit:
    padded = problem.in_steps().placed()
    starts = in_precision(starts, problem.rows.dtype)
    state = chains.placed(_begin([starts[chain % len(starts)] for chain in range(chains.number)], padded, key))

    def advance(states: list[PyTree], first: int, count: int) -> tuple[list[PyTree], PyTree]:
        program = functools.partial(_advance, chains=chains.together, room=run.room)
        return advance_each(program, states, padded, jnp.asarray(first), jnp.asarray(count))

    found = run_in_stretches(advance, chains.apart(state), run)
    draws, lp, total = found.draws
    draws, stats = jax.tree.map(jnp.asarray, draws), {"lp": lp}
    return fit_of_chains("gibbs", problem, found, draws, stats, pivot=starts[0], summary={}, log_likelihoods=total)


@compiled_once
def _begin(starts: list[Mixture], problem: Problem, key: RandomKey) -> tuple[Array, Mixture]:
    """For every chain a key, and a mixture drawn around its start, as if a part of the rows had been seen."""
    rows, family = problem.rows, problem.family
    part = dataclasses.replace(rows, weights=_START_SHARE * rows.weights)

    def one(start: Mixture, key: RandomKey) -> Mixture:
        moments = expected_moments(start, part, family=family)
        return sample_mixture(update(problem.prior_distribution(), moments, family), key=key)

    start_key, run_key = jax.random.split(written_out(key))
    keys = jax.random.split(start_key, len(starts))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    return like_key(jax.random.split(run_key, len(starts)), key), jax.lax.map(lambda pair: one(*pair), (stacked, keys))


@functools.partial(jax.jit, static_argnames=("chains", "room"))
def _advance(
    state: PyTree, problem: Problem, first: Array, count: Array, *, chains: Chains, room: int
) -> tuple[Any, Any]:
    def one(state: PyTree, problem: Problem, first: Array, count: Array) -> PyTree:
        (own_key, mixture), family = state, problem.family
        chain_key = written_out(own_key)
        prior = problem.prior_distribution()

        def step(mixture: Mixture, index: Array) -> tuple[Mixture, tuple[Mixture, Array, Array]]:
            row_key, parameter_key = jax.random.split(jax.random.fold_in(chain_key, index))
            moments = allocated_moments(mixture, problem.rows, family, key=row_key)
            lp = moments.log_likelihood + log_prob_of_mixture(prior, mixture)
            following = sample_mixture(update(prior, moments, family), key=parameter_key)
            return following, (mixture, lp, moments.log_likelihood)

        mixture, drawn = stretch(step, mixture, first, count, room)
        return (own_key, mixture), drawn

    return chains.map(one)(state, problem, first, count)


def allocated_moments(mixture: Mixture, rows: Rows, family: Family | None = None, *, key: RandomKey) -> Moments:
    """Moments of components to which each row is allocated at random, by its responsibilities.

    About the means of the mixture; with the log-likelihood of the rows, which the same densities give.
    """
    uniform = jax.random.uniform(key, (len(rows),), rows.dtype)
    form = Centred(mixture, mixture.means, moment_kind(mixture, family))
    return form.moments(pass_over(form, rows, uniform=uniform)[0])[0]
