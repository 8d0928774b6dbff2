r"""Variational inference by NumPyro's SVI on the target density, started at its Laplace approximation.

The ELBO schedule of `elbo` decides where it stops: the step size falls to a quarter, twice in all, whenever the ELBO
has settled, and the fit is done when it has at the last one. The parameters of the guide are then the mean over the
last steps, which is free of most of the noise of any of them (Polyak & Juditsky 1992).

Source: Kucukelbir et al. (2017), automatic differentiation variational inference; Yao et al. (2018) for k-hat.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.optim import Adam

from bayesgmm.engines.draws import MIN_DRAWS, fit_of_draws, pareto_khat
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
    parameters_at_start,
    units_of,
)
from bayesgmm.engines.modes import em_optima
from bayesgmm.engines.registry import CheckpointOption, Count, OnFailure, ProgressOption, Rule, engine
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import even_size, map_in_batches
from bayesgmm.numerics.precision import AnyArray, ArrayLike, KeyLike, RandomKey, matching_precision
from bayesgmm.numerics.validation import short_repr, whole_number
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.runtime.chains import Checkpoint, checkpoint_of
from bayesgmm.runtime.progress import Progress
from bayesgmm.starts.given import check_start
from bayesgmm.target.laplace import approximate
from bayesgmm.target.unconstrained import Target, make_target, prepare_problem

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
    num_draws: Annotated[int, Rule(lambda name, value: whole_number(name, value, MIN_DRAWS))] = 2000,
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
        progress: True for a bar, or a function called with a sentence after every window.
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
    values, family, prior = prepare_problem(x, num_components, family, prior, key)
    if not isinstance(guide, str):
        check_sites(guide, values, num_components, family, prior)
    if start is None:
        (start,) = em_optima(values, num_components, family, 1, key=key, prior=prior)
    else:
        start = check_start(start, num_components, values.shape[1], family)
    if batch_size is None:
        batch_size = values.shape[0] if values.shape[0] <= ALL_ROWS_UP_TO else BATCH_SIZE
    settings = _Settings(guide, rank, min(batch_size, values.shape[0]), num_draws, num_particles, window, max_steps)
    named = isinstance(guide, str)
    plain = settings if named else settings._replace(guide=getattr(guide, "__qualname__", type(guide).__qualname__))
    identity = ("vi", values, prior, start, jax.random.key_data(key), tuple(plain), num_components, family.name)
    saved = checkpoint_of(checkpoint if named or checkpoint is not True else False, identity)
    what = f"vi ({guide.replace('_', ' ')})" if named else "vi"
    with Progress(f"{what}, k = {num_components}", progress) as shown:
        fit = _fit(values, num_components, family, prior, start, key, settings, shown, saved)
    return report_failure(fit, on_failure)


class _Settings(NamedTuple):
    guide: str | Program
    rank: int | None
    batch_size: int
    num_draws: int
    num_particles: int
    window: int
    max_steps: int


@matching_precision
def _fit(
    x: AnyArray,
    num_components: int,
    family: Family,
    prior: AnyPrior,
    start: Mixture,
    key: Array,
    settings: _Settings,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> Fit:
    target = make_target(x, num_components, family, prior, start)
    x, start = target.x, jax.tree.map(jnp.asarray, start)
    begin_key, draw_key = jax.random.split(key)
    one_by_one = settings.batch_size * num_components * settings.num_particles > _AT_ONCE
    guide = settings.guide if isinstance(settings.guide, str) else _Supplied(settings.guide)
    plan = _Plan(guide, settings.rank, settings.num_particles, one_by_one)
    around = approximate(target, start)
    units = units_of(around, x.dtype)
    given = parameters_at_start(guide, settings.rank, around, units) if isinstance(guide, str) else None
    tangent = tangent_at(start, x) if settings.batch_size < x.shape[0] else None
    state = _begin(begin_key, target, units, given, plan)
    constant = 0.0 if tangent is None else float(tangent.log_likelihood)

    def advance(state: SVIState, step_size: float) -> tuple[SVIState, Parameters, np.ndarray]:
        size = jnp.asarray(step_size, x.dtype)
        state, mean, elbo = _advance(state, size, target, units, tangent, plan, settings.window, settings.batch_size)
        return state, mean, constant + np.asarray(elbo, np.float64)

    schedule = ElboSchedule(settings.window, settings.max_steps)
    mean, interrupted = _ascend(advance, state, schedule, settings.max_steps, progress, checkpoint)
    result = ResultCode.successful if schedule.settled else ResultCode.max_steps_reached
    result = ResultCode.interrupted if interrupted else ResultCode.nonfinite if schedule.failed else result
    draws, log_p, log_q = _draw(mean, draw_key, target, units, plan, settings.num_draws)
    return fit_of_draws(
        "vi",
        jax.tree.map(lambda leaf: leaf[None], draws),
        x,
        family,
        result=result,
        num_steps=len(schedule.trace),
        trace=jnp.asarray(schedule.trace, x.dtype),
        sample_stats={"log_p": log_p[None], "log_q": log_q[None]},
        summary={"khat": pareto_khat(np.asarray(log_p), np.asarray(log_q)), "elbo": float(schedule.last.mean())},
        pivot=start,
    )


def _ascend(
    advance: Callable[[SVIState, float], tuple[SVIState, Parameters, np.ndarray]],
    state: SVIState,
    schedule: ElboSchedule,
    max_steps: int,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> tuple[Parameters, bool]:
    """Windows of steps until the schedule ends or Ctrl-C comes: the guide's mean parameters, and whether it came."""
    mean: Parameters | None = None
    if checkpoint is not None and (found := checkpoint.load(state)) is not None:
        state, (trace,), _ = found
        schedule.resume(trace[0])
        progress.tell(len(schedule.trace), max_steps, "resumed")
    saved, whole = time.monotonic(), (state, schedule.trace)  # what belongs together, whenever someone stops it
    try:
        while (step_size := schedule.step_size) is not None:
            state, mean, elbo = advance(state, step_size)
            schedule.add(elbo)
            whole = (state, schedule.trace)
            remark = f"ELBO {schedule.last.mean():.2f}, step size {step_size:g}"
            progress.tell(len(schedule.trace), max_steps, remark)
            going_on = schedule.step_size is not None
            if checkpoint is not None and going_on and time.monotonic() - saved > checkpoint.seconds:
                checkpoint.save(state, [[schedule.trace[None]]], len(schedule.trace))
                saved = time.monotonic()
    except KeyboardInterrupt:
        state, trace = whole
        going_on = schedule.step_size is not None or len(trace) < len(schedule.trace)
        if checkpoint is not None and going_on and len(trace):
            checkpoint.save(state, [[trace[None]]], len(trace))
        if mean is None:
            raise
        if going_on:  # else nothing is missing
            return mean, True
    if checkpoint is not None:
        checkpoint.remove()
    assert mean is not None
    return mean, False


@dataclass(frozen=True, eq=False)
class _Supplied:
    """A user-supplied guide, which need not be hashable: a program is compiled for each."""

    guide: Program


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


@functools.partial(jax.jit, static_argnames="plan")
def _begin(key: RandomKey, target: Target, units: Units, given: Parameters | None, plan: _Plan) -> SVIState:
    # The parameters are the guide's alone, so the model is spared.
    svi = SVI(lambda *_: None, plan.approximation.guide, Adam(STEP_SIZES[0]), Elbo())
    return svi.init(key, target, units, init_params=given)


@functools.partial(jax.jit, static_argnames=("plan", "num_steps", "batch_size"))
def _advance(
    state: SVIState,
    step_size: Array,
    target: Target,
    units: Units,
    tangent: Tangent | None,
    plan: _Plan,
    num_steps: int,
    batch_size: int,
) -> tuple[SVIState, Parameters, Array]:
    """So many steps: the state after them, the guide's parameters in the mean over them, and the ELBO of each."""
    svi = plan.svi(plan.approximation, step_size, target, units)

    def step(carry: tuple[SVIState, Parameters], _: None) -> tuple[tuple[SVIState, Parameters], Array]:
        state, total = carry
        seen = target
        if tangent is not None:
            chosen = jax.random.randint(jax.random.fold_in(state.rng_key, 1), (batch_size,), 0, target.x.shape[0])
            seen = dataclasses.replace(target, x=target.x[chosen], prepared=None)
        state, loss = svi.update(state, seen, units, tangent)
        return (state, jax.tree.map(jnp.add, total, svi.optim.get_params(state.optim_state))), -loss

    zeros = jax.tree.map(jnp.zeros_like, svi.optim.get_params(state.optim_state))
    (state, total), elbo = jax.lax.scan(step, (state, zeros), length=num_steps)
    assert svi.constrain_fn is not None
    return state, svi.constrain_fn(jax.tree.map(lambda leaf: leaf / num_steps, total)), elbo


@functools.partial(jax.jit, static_argnames=("plan", "num_draws"))
def _draw(
    parameters: Parameters, key: RandomKey, target: Target, units: Units, plan: _Plan, num_draws: int
) -> tuple[Mixture, Array, Array]:
    """Draws of mixtures, and their log-densities under the posterior and the guide."""
    approximation = plan.approximation

    def one(key: RandomKey) -> tuple[Mixture, Array, Array]:
        sites, log_p, log_q = log_densities(key, approximation.model, approximation.guide, (target, units), parameters)
        return approximation.mixture(sites, target, units), log_p, log_q

    size = even_size(num_draws, _DRAWS_AT_ONCE // (target.x.shape[0] * target.num_components))
    return map_in_batches(one, size, jax.random.split(key, num_draws))
