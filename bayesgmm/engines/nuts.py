"""Posterior draws by NUTS, on the target density, with chains started around the modes to which EM optima lead.

Chains start at draws from the Laplace approximation at each of the distinct best modes, and its covariance is their
first mass matrix: warm-up has little left to find. They are not started at one point, which would blind R-hat.

Source: Hoffman & Gelman (2014), as implemented in NumPyro; R-hat and effective sample size by rank normalisation,
Vehtari et al. (2021), as implemented in ArviZ.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import NUTS
from numpyro.infer.hmc import HMCState
from numpyro.infer.util import ParamInfo

from bayesgmm.engines.draws import fit_of_chains, make_chain_run
from bayesgmm.engines.fit import Fit, report_failure
from bayesgmm.engines.modes import NUM_STARTS, starts_of
from bayesgmm.engines.registry import (
    ChainMethod,
    CheckpointOption,
    Count,
    Number,
    OnFailure,
    ProgressOption,
    Rule,
    engine,
)
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import unweighted_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.draws import normal_numbers
from bayesgmm.numerics.keys import like_key, split_key, written_out
from bayesgmm.numerics.precision import ArrayLike, KeyLike, RandomKey, matching_precision
from bayesgmm.numerics.validation import nonnegative
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.runtime.chains import Chains, Run, advance_each, check_draws, make_chains, run_in_stretches, stretch
from bayesgmm.runtime.programs import compile_ahead, compiled_once
from bayesgmm.target.laplace import NormalApproximation, approximate, distinct, draw_starts
from bayesgmm.target.problem import Problem, make_problem
from bayesgmm.target.unconstrained import Energy, Target, make_target, mixtures_at

_ROOM = 250  # steps that a stretch may have
_ADAPTED_FROM = 10  # warm-up steps for each coordinate from which draws tell more of the posterior's shape
_MODES_WITHIN = 7.0  # of the largest logarithmic mass: lesser modes hold less than a thousandth of it


def _target_accept(name: str, value: ArrayLike) -> float:
    accept = float(nonnegative(name, value))
    if not 0 < accept < 1:
        raise InputError(f"{name}={value} must lie between 0 and 1; 0.8 is usual, 0.95 is careful")
    return accept


@engine(
    "nuts",
    label="NUTS",
    method="NUTS",
    gives="draws",
    trace="log posterior density",
    streams=(3,),
    together=check_draws,
    ahead=lambda *arguments: _compile_ahead(*arguments),
)
def fit_nuts(
    x: ArrayLike,
    num_components: Count,
    *,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    key: KeyLike,
    start: Mixture | Sequence[Mixture] | None = None,
    num_chains: Count = 4,
    num_warmup: Count = 300,
    num_draws: Count = 1000,
    target_accept: Annotated[float, Rule(_target_accept)] = 0.8,
    jitter: Number = 1.0,
    num_starts: Count = NUM_STARTS,
    max_tree_depth: Count = 10,
    chain_method: ChainMethod | None = None,
    progress: ProgressOption = None,
    checkpoint: CheckpointOption = False,
    on_failure: OnFailure = "warn",
) -> Fit:
    """Draw from the posterior by NUTS.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family.
        prior: numbers of the prior, by default `default_prior(x, num_components)`; or a `conjugate_prior`.
        key: `jax.random.key(seed)`.
        start: the mixture around which all chains start, or several: then chains start around the distinct best of
            the modes that they lead to, in turns. Labels of the first are kept. By default the ends of `num_starts`
            fits by EM, the best one first.
        num_chains: number of chains.
        num_warmup: draws of every chain spent on adaptation.
        num_draws: draws kept of every chain.
        target_accept: acceptance rate that the step size is adapted to, between 0 and 1.
        jitter: how far chains start from a mode, in standard deviations of the normal approximation there.
        num_starts: fits by EM that look for modes when no start is given.
        max_tree_depth: limit on the doublings of a trajectory, 2^depth leapfrog steps.
        chain_method: "parallel" (side by side on as many devices as divide the chains evenly), "sequential" or
            "vectorized". By default parallel where several devices share the chains evenly, else sequential on a CPU
            and vectorized on an accelerator.
        progress: True for a bar, which notebooks have by default after two seconds, False for none, or a function
            called with a sentence about once a second.
        checkpoint: the file where a run is saved once a minute, and on Ctrl-C; the same call resumes from there, to
            the same draws. True for one in the user's cache folder. By default nowhere.
        on_failure: "warn", "raise" or "ignore" when there are divergences, the chains disagree, or Ctrl-C came.

    Returns:
        A `Fit` with draws of shape (num_chains, num_draws), fewer after Ctrl-C; its `summary` holds the worst R-hat
        (`r_hat`, and that of what has no labels, `r_hat_invariant`), the smallest effective sample sizes (`ess_bulk`,
        `ess_tail`), the number of divergences, how many draws were relabelled (`num_relabelled`) and around how many
        modes chains started (`num_modes`), and `max_tree_depth`. The log posterior density `lp` in its `sample_stats`
        is that of the unconstrained coordinates, up to the evidence: not that of `fit_gibbs`.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
        KeyboardInterrupt: for Ctrl-C before there are enough draws for R-hat: 4 of each chain, 8 of a single one.
    """
    problem = make_problem(unweighted_rows(x), num_components, family, prior, key)
    length = {"num_warmup": num_warmup, "num_draws": num_draws, "max_tree_depth": max_tree_depth}
    chosen = {"num_chains": num_chains, "chain_method": chain_method, **length}
    starts = starts_of(
        problem, start, num_starts, key=key, meanwhile=functools.partial(_compile_ahead, problem, chosen)
    )
    chains = make_chains(num_chains, chain_method)
    settings = (target_accept, float(jitter), max_tree_depth)
    steps = (num_warmup, num_draws)
    run = make_chain_run("nuts", problem, (starts, key, settings), chains, steps, _ROOM, progress, checkpoint)
    return report_failure(_fit(problem, starts, key, chains, settings, run), on_failure)


@matching_precision
def _compile_ahead(problem: Problem, arguments: Mapping[str, Any]) -> None:
    target = make_target(problem, problem.any_mixture())
    chains = make_chains(arguments["num_chains"], arguments["chain_method"]).together
    num_warmup, num_draws = arguments["num_warmup"], arguments["num_draws"]
    kernel = _kernel_of(target.size, num_warmup, arguments["max_tree_depth"], chains)
    modes = [NormalApproximation.standard(target.size)] * chains.number
    zeros = np.zeros((chains.number, target.size))
    own = _own(jax.random.key(0), modes, (zeros, zeros[:, 0], zeros), target.rows.dtype)
    shared = (target, jnp.zeros((), target.rows.dtype))
    state = chains.placed(jax.eval_shape(functools.partial(_begin, kernel=kernel), own, *shared))
    place, room = jnp.asarray(0), min(_ROOM, max(num_warmup, num_draws))
    compile_ahead(_advance, state, *shared, place, place, kernel=kernel, room=room)


def _kernel_of(size: int, num_warmup: int, max_tree_depth: int, chains: Chains) -> "_Kernel":
    return _Kernel(num_warmup, max_tree_depth, adapt_mass=num_warmup >= _ADAPTED_FROM * size, chains=chains)


def _own(
    key: RandomKey, modes: Sequence[NormalApproximation], points: tuple[np.ndarray, ...], dtype: np.dtype
) -> tuple[Array, ParamInfo, Array]:
    """What every chain begins with: a key, a point with its energy and gradient, and the shape around its mode."""
    point = ParamInfo(*(jnp.asarray(part, dtype) for part in points))
    keys = jnp.stack([jax.random.key_data(own) for own in split_key(key, len(modes))])
    return like_key(keys, key), point, jnp.asarray(np.stack([mode.covariance for mode in modes]), dtype)


@matching_precision
def _fit(
    problem: Problem,
    starts: Sequence[Mixture],
    key: RandomKey,
    chains: Chains,
    settings: tuple[float, float, int],
    run: Run,
) -> Fit:
    target_accept, jitter, max_tree_depth = settings
    target = make_target(problem, starts[0])
    starts, dtype = jax.tree.map(jnp.asarray, list(starts)), target.rows.dtype
    modes = distinct([approximate(target, start) for start in starts], _MODES_WITHIN)
    if not modes:
        raise InputError("x has no finite posterior density at any start; rescale its columns, or set the prior")
    size = modes[0].mode.size
    kernel = _kernel_of(size, run.num_warmup, max_tree_depth, chains.together)
    start_key, run_key = split_key(key)
    noise = np.asarray(normal_numbers(start_key, shape=(chains.number, size)), np.float64)
    chain_modes = [modes[chain % len(modes)] for chain in range(chains.number)]
    own = _own(run_key, chain_modes, draw_starts(chain_modes, jitter * noise, Energy(target)), dtype)
    shared = (target, jnp.asarray(target_accept, dtype))

    def advance(states: list[HMCState], first: int, count: int) -> tuple[list[HMCState], dict[str, np.ndarray]]:
        program = functools.partial(_advance, kernel=kernel, room=run.room)
        states, drawn = advance_each(program, states, *shared, jnp.asarray(first), jnp.asarray(count))
        return states, _parts(drawn, size)

    def remark(drawn: dict[str, Any]) -> str:
        return f"{int(np.sum(drawn['diverging']))} divergences, {np.mean(drawn['n_steps']):.0f} leapfrog steps a draw"

    states = [_begin(part, *shared, kernel=kernel) for part in chains.apart(own)]
    found = run_in_stretches(advance, states, run, remark)
    stats = dict(found.draws)
    draws = mixtures_at(target, stats.pop("unconstrained"))
    # NumPyro counts leapfrog steps; a tree of depth t takes 2^t - 1 of them.
    stats["tree_depth"] = np.ceil(np.log2(stats["n_steps"] + 1.0)).astype(np.int64)
    summary = {"num_modes": min(len(modes), chains.number), "max_tree_depth": max_tree_depth}
    return fit_of_chains("nuts", problem, found, draws, stats, pivot=starts[0], summary=summary)


class _Kernel(NamedTuple):
    """What NumPyro's kernel is compiled for."""

    num_warmup: int
    max_tree_depth: int
    adapt_mass: bool
    chains: Chains

    def nuts(self, target: Target, accept: Array, mass: Array) -> NUTS:
        """The kernel with a first mass matrix."""
        return NUTS(
            potential_fn=target.energy,
            inverse_mass_matrix=mass,
            dense_mass=mass.ndim == 2,
            adapt_mass_matrix=self.adapt_mass,
            target_accept_prob=accept,  # pyright: ignore[reportArgumentType]
            max_tree_depth=self.max_tree_depth,
        )


def _parts(drawn: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """What `_advance` draws, by names."""
    lp, acceptance_rate, energy, step_size, num_steps, diverging = np.moveaxis(drawn[..., size:], -1, 0)
    return {
        "unconstrained": drawn[..., :size],
        "lp": lp,
        "diverging": diverging != 0.0,
        "acceptance_rate": acceptance_rate,
        "n_steps": num_steps.astype(np.int64),
        "energy": energy,
        "step_size": step_size,
    }


def _with_keys(state: HMCState, change: Callable[[RandomKey], RandomKey]) -> HMCState:
    """The state with another kind of keys."""
    adapt_state = state.adapt_state._replace(rng_key=change(state.adapt_state.rng_key))
    return state._replace(rng_key=change(state.rng_key), adapt_state=adapt_state)


@functools.partial(compiled_once, static_argnames="kernel")
def _begin(own: tuple[Array, ParamInfo, Array], target: Target, accept: Array, *, kernel: _Kernel) -> HMCState:
    def one(own: tuple[Array, ParamInfo, Array], target: Target, accept: Array) -> HMCState:
        key, point, mass = own
        state = kernel.nuts(target, accept, mass).init(written_out(key), kernel.num_warmup, point, (), {})
        return _with_keys(state, lambda own: like_key(own, key))

    return kernel.chains.map(one)(own, target, accept)


@functools.partial(jax.jit, static_argnames=("kernel", "room"))
def _advance(
    state: HMCState, target: Target, accept: Array, first: Array, count: Array, *, kernel: _Kernel, room: int
) -> tuple[HMCState, Array]:
    def one(state: HMCState, target: Target, accept: Array, first: Array, count: Array) -> Any:
        given, state = state.rng_key, _with_keys(state, written_out)
        nuts = kernel.nuts(target, accept, state.adapt_state.inverse_mass_matrix)
        # Only so that the kernel knows its parts; with energy and gradient given it computes nothing.
        known = ParamInfo(state.z, state.potential_energy, state.z_grad)
        nuts.init(state.rng_key, kernel.num_warmup, known, (), {})

        def step(state: HMCState, _: Array) -> tuple[HMCState, Array]:
            state = nuts.sample(state, (), {})
            # In one array: each one of its own would have kernels to make it, to write it and to cut it.
            numbers = (
                -state.potential_energy,
                state.accept_prob,
                state.energy,
                state.adapt_state.step_size,
                state.num_steps,
                state.diverging,
            )
            numbers = jnp.stack([jnp.asarray(number, state.z.dtype) for number in numbers])
            return state, jnp.concatenate([state.z, numbers])

        state, drawn = stretch(step, state, first, count, room)
        return _with_keys(state, lambda own: like_key(own, given)), drawn

    return kernel.chains.map(one)(state, target, accept, first, count)
