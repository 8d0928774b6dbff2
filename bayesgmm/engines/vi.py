r"""Variational inference by NumPyro's SVI on the target density, started at its Laplace approximation.

The ELBO schedule of `elbo` decides where it stops: the step size falls to a quarter, twice in all, whenever the ELBO
has settled, and the fit is done when it has at the last one. The parameters of the guide are then the mean over the
last steps, which is free of most of the noise of any of them (Polyak & Juditsky 1992).

Source: Kucukelbir et al. (2017), automatic differentiation variational inference; Yao et al. (2018) for k-hat.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.optim import Adam

from bayesgmm.engines.draws import fit_of_approximation, make_run
from bayesgmm.engines.elbo import (
    ALL_ROWS_UP_TO,
    BATCH_SIZE,
    STEP_SIZES,
    Elbo,
    ElboSchedule,
    Program,
    Tangent,
    log_densities,
    tangent_at,
)
from bayesgmm.engines.fit import Fit, ResultCode, report_failure
from bayesgmm.engines.guides import (
    Approximation,
    Units,
    approximation_by,
    check_guide,
    check_sites,
    coordinates,
    parameters_at_start,
    units_of,
)
from bayesgmm.engines.modes import starts_of
from bayesgmm.engines.registry import CheckpointOption, Count, OnFailure, ProgressOption, Rule, engine
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import unweighted_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import even_size, map_in_batches
from bayesgmm.numerics.keys import like_key, split_key, written_out
from bayesgmm.numerics.precision import AnyArray, ArrayLike, KeyLike, RandomKey, matching_precision
from bayesgmm.numerics.thresholds import MIN_DRAWS
from bayesgmm.numerics.validation import short_repr, whole_number
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.runtime.chains import Run, run_in_stretches
from bayesgmm.runtime.programs import compile_ahead, compiled_once
from bayesgmm.target.laplace import NormalApproximation, approximate
from bayesgmm.target.numpyro_model import mixture_of_sites
from bayesgmm.target.problem import Problem, make_problem
from bayesgmm.target.unconstrained import Energy, Target, make_target, mixtures_at

Parameters = dict[str, Any]
"""Parameters of a guide, by name."""

_AT_ONCE = 2**22  # responsibilities of all particles together, 32 MB; beyond, one particle after another
_DRAWS_AT_ONCE = 2**18  # responsibilities of draws whose log-densities are computed together


def _together(guide: object, rank: int | None, window: int, max_steps: int) -> None:
    if rank is not None and guide != "low_rank":
        raise InputError(f"rank={rank} belongs to guide='low_rank', and this is guide={short_repr(guide)}; drop it")
    if max_steps < 2 * window:
        raise InputError(f"max_steps={max_steps} must be at least two windows of {window} steps; raise it")


@engine(
    "vi",
    label="VI",
    method="Variational inference",
    gives="approximation",
    trace="ELBO",
    variants="guide",
    streams=(1, 2, 6),
    together=_together,
    ahead=lambda *arguments: _compile_ahead(*arguments),
)
def fit_vi(
    x: ArrayLike,
    num_components: Count,
    *,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    key: KeyLike,
    start: Mixture | None = None,
    guide: Annotated[Any, Rule(check_guide)] = "full_rank",
    rank: Count | None = None,
    batch_size: Count | None = None,
    num_draws: Annotated[int, Rule(lambda name, value: whole_number(name, value, int(MIN_DRAWS)))] = 2000,
    num_particles: Count = 8,
    window: Count = 500,
    max_steps: Count = 20_000,
    progress: ProgressOption = None,
    checkpoint: CheckpointOption = False,
    on_failure: OnFailure = "warn",
) -> Fit:
    """Approximate the posterior by a distribution of a tractable family, the guide.

    Args:
        x: rows (n, d).
        num_components: k.
        family: covariance family.
        prior: numbers of the prior, by default `default_prior(x, num_components)`.
        key: `jax.random.key(seed)`.
        start: where to start, and whose labels to keep; by default a fit by EM.
        guide: "normal" (mean-field), "full_rank" or "low_rank", normal distributions of the unconstrained sites. Or a
            class of `numpyro.infer.autoguide`, or a function that makes a guide of the model, such as
            `functools.partial(AutoBNAFNormal, num_flows=2)`: it is given the model in units of the posterior, so that 0
            is the start. Or a user-supplied guide: a function of (x, num_components, family, prior) that samples the
            sites of `bayesgmm.model`, or an instance made with that model; it chooses its own starting point.
        rank: rank of "low_rank", by default the root of the number of coordinates.
        batch_size: rows in the estimate of the ELBO at every step; by default all of up to 100,000, and 4,096 of more.
        num_draws: draws taken from the fitted approximation.
        num_particles: draws in the estimate of the ELBO at every step.
        window: length of the windows of the stopping rule, in steps.
        max_steps: limit on steps in all.
        progress: True for a bar, which notebooks have by default after two seconds, False for none, or a function
            called with a sentence after every window.
        checkpoint: the file where a run is saved once a minute, and on Ctrl-C; the same call resumes from there, to
            the same draws. True for one in the user's cache folder, and none for a user-supplied guide, which a file
            cannot tell from another. By default nowhere.
        on_failure: "warn", "raise" or "ignore" when the ELBO did not settle, or Ctrl-C came.

    Returns:
        A `Fit` with draws of shape (1, num_draws) and the ELBO of every step as its trace. Its `sample_stats` hold the
        log-densities of every draw under the posterior (`log_p`, of all rows, up to the evidence) and under the
        approximation (`log_q`), its `summary` the Pareto k-hat of their ratios and the mean ELBO of the last window.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
        KeyboardInterrupt: for Ctrl-C before the first window has ended.
    """
    problem = make_problem(unweighted_rows(x), num_components, family, prior, key)
    named = isinstance(guide, str)
    if not named:
        check_sites(guide, problem)
    settings = _Settings(guide, rank, batch_size or 0, num_draws, num_particles, window).of_rows(len(problem.rows))
    meanwhile = functools.partial(_compile_ahead, problem, settings._asdict())
    (start,) = starts_of(problem, None if start is None else [start], 1, key=key, meanwhile=meanwhile)
    plain = settings if named else settings._replace(guide=getattr(guide, "__qualname__", type(guide).__qualname__))
    run = make_run(
        f"vi ({guide.replace('_', ' ')})" if named else "vi",
        problem,
        (start, key, tuple(plain), max_steps),
        num_warmup=0,
        num_draws=max_steps - max_steps % window,
        room=window,
        even=True,
        progress=progress,
        checkpoint=checkpoint if named or checkpoint is not True else False,
    )
    return report_failure(_fit(problem, start, key, settings, run), on_failure)


class _Settings(NamedTuple):
    guide: str | Program
    rank: int | None
    batch_size: int
    num_draws: int
    num_particles: int
    window: int

    def of_rows(self, num_rows: int) -> "_Settings":
        """The settings with the size of a batch of so many rows."""
        size = self.batch_size or (num_rows if num_rows <= ALL_ROWS_UP_TO else BATCH_SIZE)
        return self._replace(batch_size=min(size, num_rows))


@matching_precision
def _compile_ahead(problem: Problem, arguments: Mapping[str, Any]) -> None:
    settings = _Settings._make(arguments[name] for name in _Settings._fields).of_rows(len(problem.rows))
    if not isinstance(settings.guide, str) or settings.batch_size < len(problem.rows):
        return
    target, plan = make_target(problem, problem.any_mixture()), _plan_of(problem, settings)
    units, given = _begin_at(NormalApproximation.standard(target.size), plan, target)
    state = jax.eval_shape(functools.partial(_begin, plan=plan), jax.random.key(0), target, units, given)
    size = jnp.zeros((), target.rows.dtype)
    compile_ahead(_advance, state, size, target, units, None, plan, settings.window, 0)


def _plan_of(problem: Problem, settings: _Settings) -> "_Plan":
    one_by_one = settings.batch_size * problem.num_components * settings.num_particles > _AT_ONCE
    guide = settings.guide if isinstance(settings.guide, str) else _Supplied(settings.guide)
    return _Plan(guide, settings.rank, settings.num_particles, one_by_one)


def _begin_at(around: NormalApproximation, plan: "_Plan", target: Target) -> tuple[Units, Parameters | None]:
    units = units_of(around, target.rows.dtype)
    guide = plan.guide
    return units, parameters_at_start(guide, plan.rank, around, units) if isinstance(guide, str) else None


@matching_precision
def _fit(problem: Problem, start: Mixture, key: RandomKey, settings: _Settings, run: Run) -> Fit:
    rows, batch_size = problem.rows, settings.batch_size
    # A user-supplied guide sees the rows, and a batch is drawn from them.
    in_steps = isinstance(settings.guide, str) and batch_size == len(rows)
    target, start = make_target(problem, start, in_steps=in_steps), jax.tree.map(jnp.asarray, start)
    begin_key, draw_key = split_key(key)
    plan = _plan_of(problem, settings)
    units, given = _begin_at(approximate(target, start), plan, target)
    tangent = tangent_at(start, target.rows) if batch_size < len(rows) else None
    constant = 0.0 if tangent is None else float(tangent.log_likelihood)
    batch_size = 0 if tangent is None else batch_size
    schedule = ElboSchedule(settings.window, run.num_draws)

    def advance(state: _State, first: int, count: int) -> tuple[_State, np.ndarray]:
        size = jnp.asarray(schedule.step_size, rows.dtype)
        after, elbo = _advance(state, size, target, units, tangent, plan, count, batch_size)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.mean)):
            after = after._replace(mean=state.mean)  # draws are of the last approximation that is one
        return after, constant + np.asarray(elbo, np.float64)[None]

    def watch(elbo: np.ndarray) -> str:
        schedule.add(elbo[0])
        return f"ELBO {schedule.last.mean():.2f}, step size {schedule.taken:g}"

    state = _begin(begin_key, target, units, given, plan=plan)
    found = run_in_stretches(advance, state, run, watch, lambda: schedule.step_size is not None)
    result = ResultCode.successful if schedule.settled else ResultCode.max_steps_reached
    result = ResultCode.interrupted if found.interrupted else ResultCode.nonfinite if schedule.failed else result
    return fit_of_approximation(
        "vi",
        problem,
        _draw(found.state.mean, draw_key, target, units, plan, settings.num_draws),
        elbo=float(schedule.last.mean()),
        result=result,
        num_steps=len(schedule.trace),
        trace=jnp.asarray(schedule.trace, rows.dtype),
        pivot=start,
    )


@dataclass(frozen=True, eq=False)
class _Supplied:
    """A user-supplied guide, which need not be hashable: a program is compiled for each."""

    guide: Program


class _State(NamedTuple):
    """Where the ascent stands, and the guide's parameters in the mean over the last window."""

    svi: SVIState
    mean: Parameters


class _Plan(NamedTuple):
    """What a compiled program is made for, beside shapes: all fits of equal plans share one."""

    guide: str | _Supplied
    rank: int | None
    num_particles: int
    one_by_one: bool

    @property
    def approximation(self) -> Approximation:
        return approximation_by(self.guide.guide if isinstance(self.guide, _Supplied) else self.guide, self.rank)

    def svi(self, approximation: Approximation, step_size: float | Array, target: Target, units: Units) -> SVI:
        """NumPyro's SVI, ready for updates inside a program."""
        loss = Elbo(self.num_particles, vectorize_particles=not self.one_by_one)
        svi = SVI(approximation.model, approximation.guide, Adam(step_size), loss)
        # The guide and the parameters' constraints are looked at once; unused values are not computed.
        looked = SVI(lambda *_: None, approximation.guide, Adam(step_size), loss)
        looked.init(jax.random.key(0), target, units)
        svi.constrain_fn = looked.constrain_fn
        return svi


@functools.partial(compiled_once, static_argnames="plan")
def _begin(key: RandomKey, target: Target, units: Units, given: Parameters | None, *, plan: _Plan) -> _State:
    # The parameters are the guide's alone, so the model is spared.
    svi = SVI(lambda *_: None, plan.approximation.guide, Adam(STEP_SIZES[0]), Elbo())
    state = svi.init(written_out(key), target, units, init_params=given)
    return _State(_with_key(state, like_key(state.rng_key, key)), svi.get_params(state))


@functools.partial(jax.jit, static_argnames=("plan", "num_steps", "batch_size"))
def _advance(
    state: _State,
    step_size: Array,
    target: Target,
    units: Units,
    tangent: Tangent | None,
    plan: _Plan,
    num_steps: int,
    batch_size: int,
) -> tuple[_State, Array]:
    """So many steps: the state after them, and the ELBO of each."""
    svi = plan.svi(plan.approximation, step_size, target, units)

    def step(carry: tuple[SVIState, Parameters], _: None) -> tuple[tuple[SVIState, Parameters], Array]:
        state, total = carry
        seen = target
        if tangent is not None:
            chosen = jax.random.randint(jax.random.fold_in(state.rng_key, 1), (batch_size,), 0, len(target.rows))
            batch = jax.tree.map(lambda leaf: leaf[chosen], target.rows)
            seen = dataclasses.replace(target, rows=batch, prepared=None)
        state, loss = svi.update(state, seen, units, tangent)
        return (state, jax.tree.map(jnp.add, total, svi.optim.get_params(state.optim_state))), -loss

    given = state.svi.rng_key
    first = _with_key(state.svi, written_out(given))
    zeros = jax.tree.map(jnp.zeros_like, svi.optim.get_params(first.optim_state))
    (last, total), elbo = jax.lax.scan(step, (first, zeros), length=num_steps)
    last = _with_key(last, like_key(last.rng_key, given))
    assert svi.constrain_fn is not None
    return _State(last, svi.constrain_fn(jax.tree.map(lambda leaf: leaf / num_steps, total))), elbo


def _with_key(state: SVIState, key: RandomKey) -> SVIState:
    return state._replace(rng_key=key)  # pyright: ignore[reportAttributeAccessIssue]


def _draw(
    parameters: Parameters, key: RandomKey, target: Target, units: Units, plan: _Plan, num_draws: int
) -> tuple[Mixture, AnyArray, AnyArray]:
    """Draws of mixtures, and their log-densities under the posterior and the guide."""
    if not plan.approximation.in_units:
        return _draw_mixtures(parameters, key, target, units, plan=plan, num_draws=num_draws)
    points, log_q = _draw_points(parameters, key, target, units, plan=plan, num_draws=num_draws)
    energies, _ = Energy(target)(np.asarray(points, np.float64))
    log_p = np.log(np.asarray(units.scale, np.float64)).sum() - energies
    return mixtures_at(target, points), np.asarray(log_p, target.rows.dtype), np.asarray(log_q)


@functools.partial(compiled_once, static_argnames=("plan", "num_draws"))
def _draw_points(
    parameters: Parameters, key: RandomKey, target: Target, units: Units, *, plan: _Plan, num_draws: int
) -> tuple[Array, Array]:
    """Draws of the flat vector from the guide alone."""

    def one(key: RandomKey) -> tuple[Array, Array]:
        guide = plan.approximation.guide
        sites, _, log_q = log_densities(key, coordinates, guide, (target, units), parameters)
        return units.loc + units.scale * sites["vector"], log_q

    return jax.vmap(one)(jax.random.split(written_out(key), num_draws))


@functools.partial(jax.jit, static_argnames=("plan", "num_draws"))
def _draw_mixtures(
    parameters: Parameters, key: RandomKey, target: Target, units: Units, *, plan: _Plan, num_draws: int
) -> tuple[Mixture, Array, Array]:
    """Draws from a user-supplied guide, which samples the sites of the model."""

    def one(key: RandomKey) -> tuple[Mixture, Array, Array]:
        model, guide, _ = plan.approximation
        sites, log_p, log_q = log_densities(key, model, guide, (target, units), parameters)
        return mixture_of_sites(sites, target.family), log_p, log_q

    size = even_size(num_draws, _DRAWS_AT_ONCE // (len(target.rows) * target.num_components))
    return map_in_batches(one, size, jax.random.split(written_out(key), num_draws))
