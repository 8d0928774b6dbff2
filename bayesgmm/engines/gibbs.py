r"""Posterior draws by blocked Gibbs sampling, under the conjugate prior.

A sweep draws the allocation of every row to a component given the mixture, with the responsibilities as probabilities,
then weights, means and covariances given the allocations, from their conjugate distribution. Both steps need one pass
over the rows; nothing is tuned and nothing is rejected. The allocations are not kept: those of a mixture that was drawn
are its responsibilities.

Source: Diebolt & Robert (1994); Frühwirth-Schnatter (2006), section 3.5.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesgmm.engines.draws import fit_of_draws, with_convergence
from bayesgmm.engines.fit import Fit, ResultCode, report_failure
from bayesgmm.engines.modes import NUM_STARTS, em_optima
from bayesgmm.engines.registry import ChainMethod, CheckpointOption, Count, OnFailure, ProgressOption, engine
from bayesgmm.likelihood.expectation import Centred, expected_moments, pass_over
from bayesgmm.likelihood.moments import Moments, moment_kind
from bayesgmm.likelihood.rows import Rows, enough_rows, unweighted_rows
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike, KeyLike, RandomKey, matching_precision
from bayesgmm.numerics.validation import as_key
from bayesgmm.priors.conjugate import (
    ConjugatePrior,
    PriorLike,
    check_conjugate_prior,
    conjugate_prior,
    distribution_of_prior,
)
from bayesgmm.priors.normal_inverse_wishart import log_prob_of_mixture, sample_mixture, update
from bayesgmm.runtime.chains import (
    Checkpoint,
    best_chain_method,
    check_draws,
    checkpoint_of,
    map_chains,
    run_chains,
    stretch,
)
from bayesgmm.runtime.progress import Progress
from bayesgmm.starts.given import StartLike, check_starts

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
        progress: True for a bar, or a function called with a sentence about once a second.
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
    family = get_family(family)
    rows = unweighted_rows(x)
    values = rows.values
    method = chain_method or best_chain_method(num_chains)
    enough_rows(rows, num_components, family, bounded=True)
    key = as_key(key)
    if prior is None:
        prior = conjugate_prior(rows, num_components, family)
    prior = check_conjugate_prior(prior, num_components, values.shape[1], family)
    if start is None:
        starts = em_optima(values, num_components, family, num_starts, key=key, prior=prior)
    else:
        starts = check_starts(start, num_components, values.shape[1], family)
    counts = (num_chains, num_warmup, num_draws)
    identity = ("gibbs", values, prior, starts, jax.random.key_data(key), counts, method, num_components, family.name)
    saved = checkpoint_of(checkpoint, identity)
    with Progress(f"gibbs, k = {num_components}", progress) as shown:
        fit = _fit(values, family, prior, starts, key, counts, method, shown, saved)
    return report_failure(fit, on_failure)


@matching_precision
def _fit(
    x: ArrayLike,
    family: Family,
    prior: ConjugatePrior,
    starts: list[Mixture],
    key: Array,
    counts: tuple[int, int, int],
    chain_method: str,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> Fit:
    num_chains, num_warmup, num_draws = counts
    x = jnp.asarray(x)
    prior, starts = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), (prior, starts))
    start_key, run_key = jax.random.split(key)
    options = {
        "family": family,
        "num_chains": num_chains,
        "chain_method": chain_method,
        "room": min(_ROOM, max(num_warmup, num_draws)),
    }
    begun = [
        _begin(starts[chain % len(starts)], x, prior, each, family=family)
        for chain, each in enumerate(jax.random.split(start_key, num_chains))
    ]
    state = (jax.random.split(run_key, num_chains), jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun))

    def advance(state: PyTree, first: int, count: int) -> tuple[Any, Any]:
        return _advance(state, x, prior, jnp.asarray(first), jnp.asarray(count), **options)

    found = run_chains(
        advance,
        state,
        num_warmup=num_warmup,
        num_draws=num_draws,
        room=options["room"],
        progress=progress,
        checkpoint=checkpoint,
    )
    draws, lp, total = found.draws
    fit = fit_of_draws(
        "gibbs",
        jax.tree.map(jnp.asarray, draws),
        x,
        family,
        result=ResultCode.interrupted if found.interrupted else ResultCode.successful,
        num_steps=found.num_steps,
        trace=jnp.asarray(lp),
        sample_stats={"lp": lp},
        summary={},
        pivot=starts[0],
    )
    return with_convergence(fit, x, log_likelihoods=total)


@functools.partial(jax.jit, static_argnames="family")
def _begin(start: Mixture, x: Array, prior: ConjugatePrior, key: Array, *, family: Family) -> Mixture:
    """A mixture drawn around a start, as if a part of the rows had been seen."""
    moments = expected_moments(start, x, jnp.full(len(x), _START_SHARE, x.dtype), family=family)
    distribution = update(distribution_of_prior(prior, family, start.num_components), moments, family)
    return sample_mixture(distribution, key=key)


@functools.partial(jax.jit, static_argnames=("family", "num_chains", "chain_method", "room"))
def _advance(
    state: PyTree,
    x: Array,
    prior: ConjugatePrior,
    first: Array,
    count: Array,
    *,
    family: Family,
    num_chains: int,
    chain_method: str,
    room: int,
) -> tuple[Any, Any]:
    def one(state: PyTree, x: Array, prior: ConjugatePrior, first: Array, count: Array) -> PyTree:
        chain_key, mixture = state
        of_prior = distribution_of_prior(prior, family, mixture.num_components)

        def step(mixture: Mixture, index: Array) -> tuple[Mixture, tuple[Mixture, Array, Array]]:
            row_key, parameter_key = jax.random.split(jax.random.fold_in(chain_key, index))
            moments = allocated_moments(mixture, x, family, key=row_key)
            lp = moments.log_likelihood + log_prob_of_mixture(of_prior, mixture)
            following = sample_mixture(update(of_prior, moments, family), key=parameter_key)
            return following, (mixture, lp, moments.log_likelihood)

        mixture, drawn = stretch(step, mixture, first, count, room)
        return (chain_key, mixture), drawn

    return map_chains(one, num_chains, chain_method)(state, x, prior, first, count)


def allocated_moments(
    mixture: Mixture, x: Float[Array, "n d"], family: Family | None = None, *, key: RandomKey
) -> Moments:
    """Moments of components to which each row is allocated at random, by its responsibilities.

    About the means of the mixture; with the log-likelihood of the rows, which the same densities give.
    """
    uniform = jax.random.uniform(key, (len(x),), x.dtype)
    form = Centred(mixture, mixture.means, moment_kind(mixture, family))
    return form.moments(pass_over(form, Rows(x, jnp.ones(len(x), x.dtype)), uniform=uniform)[0])[0]
