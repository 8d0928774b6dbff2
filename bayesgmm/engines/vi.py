r"""Variational inference by NumPyro's SVI, started at the EM fit.

Where it stops is the business of `settling`: the step size falls to a quarter, twice in all, whenever the ELBO has
settled, and the fit is done when it has at the last one. The parameters of the guide are then the mean over the last
steps, which is free of most of the noise of any of them (Polyak & Juditsky 1992).

Source: Kucukelbir et al. (2017), automatic differentiation variational inference; Yao et al. (2018) for k-hat.
"""

import functools
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.handlers import seed
from numpyro.infer import SVI
from numpyro.optim import Adam

from bayesgmm.engines.draws import MIN_DRAWS, pareto_khat
from bayesgmm.engines.elbo import Elbo, look, one_by_one
from bayesgmm.engines.fit import Fit, ResultCode, announce
from bayesgmm.engines.guides import (
    Neighbourhood,
    Units,
    any_mixture,
    approximation_by,
    check_guide,
    check_sites,
    neighbourhood,
    parameters_at_start,
)
from bayesgmm.engines.minibatches import ALL_ROWS_UP_TO, BATCH_SIZE, Tangent, tangent_at
from bayesgmm.engines.modes import prepare
from bayesgmm.engines.posterior import posterior_fit
from bayesgmm.engines.registry import CheckpointOption, Count, OnFailure, ProgressOption, Rule, engine
from bayesgmm.engines.settling import STEP_SIZES, Schedule
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import matching_precision
from bayesgmm.numerics.validation import as_rows, shown, whole_number
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.runtime.chains import Checkpoint, checkpoint_of
from bayesgmm.runtime.progress import Progress
from bayesgmm.target import unconstrained as space
from bayesgmm.target.numpyro_model import CovarianceUnits

_AT_ONCE = 2**22  # responsibilities of all particles together, 32 MB; more are worked out one particle after another
_DRAWS_AT_ONCE = 2**18  # responsibilities of draws whose log-densities are worked out together


def _together(guide: Any, rank: int | None, window: int, max_steps: int) -> None:
    if rank is not None and guide != "low_rank":
        raise InputError(f"rank={rank} belongs to guide='low_rank', and this is guide={shown(guide)}; drop it")
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
    x: Any,
    num_components: Count,
    *,
    family: str | Family = "full",
    prior: AnyPrior | None = None,
    key: Any,
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
            is the start. Or a guide of your own: a function of (x, num_components, family, prior) that samples the
            sites of `bayesgmm.model`, or an instance made with that model; where it starts is its own affair.
        rank: rank of "low_rank", by default the root of the number of coordinates.
        batch_size: rows in the estimate of the ELBO at every step; by default all of up to 100,000, and 4,096 of more.
        num_draws: draws taken from the fitted approximation.
        num_particles: draws in the estimate of the ELBO at every step.
        window: length of the windows of the stopping rule, in steps.
        max_steps: limit on steps in all.
        progress: True for a bar, or a function called with a sentence after every window.
        checkpoint: the file where a run is saved once a minute, and on Ctrl-C; the same call resumes from there, to
            the same draws. True for one in the user's cache folder, and none for a guide of your own, which a file
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
    if not isinstance(guide, str):
        record, x = get_family(family), as_rows(x)
        some_start = any_mixture(num_components, np.shape(x)[-1], record) if start is None else start
        checked = prepare(x, num_components, record, prior, some_start, key)
        check_sites(guide, checked[0], num_components, *checked[1:3])
    x, family, prior, start = prepare(x, num_components, family, prior, start, key)
    if batch_size is None:
        batch_size = x.shape[0] if x.shape[0] <= ALL_ROWS_UP_TO else BATCH_SIZE
    settings = _Settings(guide, rank, min(batch_size, x.shape[0]), num_draws, num_particles, window, max_steps)
    named = isinstance(guide, str)
    plain = settings if named else settings._replace(guide=getattr(guide, "__qualname__", type(guide).__qualname__))
    identity = ("vi", x, prior, start, jax.random.key_data(key), tuple(plain), num_components, family.name)
    saved = checkpoint_of(checkpoint if named or checkpoint is not True else False, identity)
    what = f"vi ({guide.replace('_', ' ')})" if named else "vi"
    with Progress(f"{what}, k = {num_components}", progress) as shown:
        fit = _fit(x, num_components, family, prior, start, key, settings, shown, saved)
    return announce(fit, on_failure)


class _Settings(NamedTuple):
    guide: Any
    rank: int | None
    batch_size: int
    num_draws: int
    num_particles: int
    window: int
    max_steps: int


@matching_precision
def _fit(
    x: Any,
    num_components: int,
    family: Family,
    prior: AnyPrior,
    start: Mixture,
    key: Array,
    settings: _Settings,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> Fit:
    x, prior, start = jax.tree.map(jnp.asarray, (x, prior, start))
    begin_key, draw_key = jax.random.split(key)
    by_particle = settings.batch_size * num_components * settings.num_particles > _AT_ONCE
    kind = (num_components, x.shape[1], family, jax.tree.structure(prior), str(x.dtype))
    make = _machine if isinstance(settings.guide, str) else _Machine
    machine = make(settings.guide, settings.rank, settings.num_particles, by_particle, kind)

    around = neighbourhood(start, x, family, prior, settings.guide in ("full_rank", "low_rank"))
    tangent = tangent_at(start, x) if settings.batch_size < x.shape[0] else None
    arguments = (num_components, family, prior, around.units)
    state = machine.begin(begin_key, x, num_components, family, prior, around)
    constant = 0.0 if tangent is None else float(tangent.log_likelihood)

    def advance(state: Any, step_size: float) -> tuple[Any, Any, np.ndarray]:
        state, mean, elbo = machine.advance(
            state, jnp.asarray(step_size, x.dtype), x, *arguments, tangent, settings.window, settings.batch_size
        )
        return state, mean, constant + np.asarray(elbo, np.float64)

    schedule = Schedule(settings.window, settings.max_steps)
    mean, interrupted = _ascend(advance, state, schedule, settings.max_steps, progress, checkpoint)
    result = ResultCode.successful if schedule.settled else ResultCode.max_steps_reached
    result = ResultCode.interrupted if interrupted else ResultCode.nonfinite if schedule.failed else result
    sites, log_p, log_q = machine.draw(mean, draw_key, x, *arguments, settings.num_draws)
    return posterior_fit(
        "vi",
        jax.tree.map(lambda leaf: leaf[None], sites),
        x,
        family,
        prior,
        start,
        result=result,
        num_steps=len(schedule.trace),
        trace=jnp.asarray(schedule.trace, x.dtype),
        sample_stats={"log_p": log_p[None], "log_q": log_q[None]},
        summary={"khat": pareto_khat(np.asarray(log_p), np.asarray(log_q)), "elbo": float(schedule.last.mean())},
    )


def _ascend(
    advance: Callable[[Any, float], tuple[Any, Any, np.ndarray]],
    state: Any,
    schedule: Schedule,
    max_steps: int,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> tuple[Any, bool]:
    """Windows of steps until the schedule ends or Ctrl-C comes: the guide's mean parameters, and whether it came."""
    mean: Any = None
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
    return mean, False


class _Machine:
    """The compiled parts of a fit: compiled once for all step sizes, and for guides with a name once for all fits."""

    def __init__(self, guide: Any, rank: int | None, num_particles: int, by_particle: bool, _kind: Any) -> None:
        self._guide = guide, rank
        self._loss = Elbo(num_particles, one_by_one if by_particle else True)
        self._approximation = approximation_by(guide, rank)
        self._constrain: Any = None
        self.begin = jax.jit(self._begin, static_argnums=(2, 3))
        self.advance = jax.jit(self._advance, static_argnums=(3, 4, 8, 9))
        self.draw = jax.jit(self._draw, static_argnums=(3, 4, 7))

    def _svi(self, step_size: Any) -> SVI:
        svi = SVI(self._approximation.model, self._approximation.guide, Adam(step_size), self._loss)
        svi.constrain_fn = self._constrain
        return svi

    def _begin(
        self, key: Array, x: Array, num_components: int, family: Family, prior: AnyPrior, around: Neighbourhood
    ) -> Any:
        arguments = (x, num_components, family, prior, around.units)
        name, rank = self._guide
        guide, given = self._approximation.guide, None
        if isinstance(name, str):
            # Guides look at the model when they first run. What this one is to find is known and need not be computed.
            jax.eval_shape(lambda: [seed(guide, key)(*arguments)][:0])
            given = parameters_at_start(name, rank, around)
        else:
            # By a guide of its own: guides remember values of the trace in which they first ran.
            guide = approximation_by(name, rank).guide
        # The parameters are the guide's alone, so the model is spared.
        svi = SVI(lambda *_: None, guide, Adam(STEP_SIZES[0]), self._loss)
        state = svi.init(key, *arguments, init_params=given)
        self._constrain = svi.constrain_fn
        return state

    def _advance(
        self,
        state: Any,
        step_size: Array,
        x: Array,
        num_components: int,
        family: Family,
        prior: AnyPrior,
        units: Units,
        tangent: Tangent | None,
        num_steps: int,
        batch_size: int,
    ) -> tuple[Any, Any, Array]:
        """So many steps: the state after them, the guide's parameters in the mean over them, and the ELBO of each."""
        svi = self._svi(step_size)

        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
            state, total = carry
            rows = x
            if tangent is not None:
                rows = x[jax.random.randint(jax.random.fold_in(state.rng_key, 1), (batch_size,), 0, x.shape[0])]
            state, loss = svi.update(state, rows, num_components, family, prior, units, tangent)
            return (state, jax.tree.map(jnp.add, total, svi.optim.get_params(state.optim_state))), -loss

        zeros = jax.tree.map(jnp.zeros_like, svi.optim.get_params(state.optim_state))
        (state, total), elbo = jax.lax.scan(step, (state, zeros), length=num_steps)
        return state, self._constrain(jax.tree.map(lambda leaf: leaf / num_steps, total)), elbo

    def _draw(
        self,
        parameters: Any,
        key: Array,
        x: Array,
        num_components: int,
        family: Family,
        prior: AnyPrior,
        units: Units,
        num_draws: int,
    ) -> tuple[space.Sites, Array, Array]:
        """Draws of the standardised model's sites, and their log-densities under the posterior and the guide."""
        model, guide = self._approximation

        def one(key: Array) -> tuple[space.Sites, Array, Array]:
            arguments = (x, num_components, family, prior, units)
            values, log_p, log_q = look(key, model, guide, arguments, {}, parameters)
            return _standardised(values, prior), log_p, log_q

        num_batches = -(-num_draws // max(1, _DRAWS_AT_ONCE // (x.shape[0] * num_components)))
        size = -(-num_draws // num_batches)
        keys = jax.random.split(key, num_draws)
        # The last batch is filled up with draws that others have too.
        batches = keys[np.arange(num_batches * size).reshape(num_batches, size) % num_draws]
        found = jax.lax.map(jax.vmap(one), batches)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_draws], found)


_machine = functools.lru_cache(maxsize=16)(_Machine)


def _standardised(values: dict[str, Array], prior: AnyPrior) -> space.Sites:
    """Sites of the standardised model, from a trace of it or of the model itself."""
    names = ("weights", "means_base", "scales", "scale_rate", "correlation_cholesky", "covariances_base", "variances")
    if "means_base" not in values:
        values["means_base"] = (values["means"] - prior.column_mean) / prior.column_scale
        if "covariances" in values:
            values["covariances_base"] = jnp.asarray(CovarianceUnits(prior.column_scale).inv(values["covariances"]))
    return {name: values[name] for name in names if name in values}
