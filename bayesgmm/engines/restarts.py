"""The best of several runs of EM: which starts are made, which runs are carried on, which one is kept.

Many short runs, of which the best are carried on (Biernacki, Celeux & Govaert 2003): most starts that will lose show it
early. Of many rows, each start and its short run see a sample of their own, and a further sample judges them all.

Starts are made by NumPy. Few rows are fitted by one program of all runs, whose shapes are rounded up: rows have weight
zero, runs no step, components no weight where a fit has fewer of them than its program. So fits of another size, number
of components or limit compile nothing. The same functions make one program inside the caller's `jit` and `vmap`, where
shapes are as they are.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bayesgmm.engines.ascent import Ascent, Problem, StopRule, run_em
from bayesgmm.engines.best import best_end, best_run
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.optima import as_spurious
from bayesgmm.likelihood.moments import default_ridge_fraction
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture, with_room
from bayesgmm.numerics.batches import even_size, map_in_batches, part_of, stacked
from bayesgmm.numerics.keys import in_numpy, number_key
from bayesgmm.numerics.precision import AnyArray, RandomKey, is_traced, namespace
from bayesgmm.priors.conjugate import ConjugatePrior
from bayesgmm.runtime import devices
from bayesgmm.runtime.lanes import run_all
from bayesgmm.runtime.programs import ROOM, SMALL, compile_ahead, has_room, room_of_steps
from bayesgmm.runtime.progress import Progress
from bayesgmm.starts.named import name_of_restart, start_from, starts_together
from bayesgmm.starts.sampling import column_moments, sample_rows, sample_size, sampling_masses

_SHORT_STEPS = 10
_SHORT_TOL = 1e-4
_STARTS_AT_ONCE = 8  # each holds responsibilities of all rows
_RUNS_AT_ONCE = 10  # in one program of few rows, however many restarts there are
_RESTARTS_OF_FEW_ROWS, _RESTARTS_OF_MANY_ROWS = 40, 10
_SMALL_ONE_OF, _LARGE_ONE_OF = 2, 5  # short runs for each that is carried on
_KEY_OF_SAMPLE = 1  # numbered apart from that of the starts


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a program is compiled for; `max_steps` is the room that a trace has."""

    num_components: int
    family: Family
    num_restarts: int
    max_steps: int
    accelerate: bool

    @property
    def limits(self) -> "Limits":
        """Limits that use all of it."""
        return Limits(np.int32(self.max_steps), None)

    def in_steps(self, rows: Rows, prior: ConjugatePrior | None) -> "tuple[Settings, Limits]":
        """The settings rounded up, so that they serve other fits too, and the limits of this one."""
        k, limits = self.num_components, self.limits
        if prior is None and has_room(k, rows.values.size):  # absent components cost their arithmetic
            limits, k = limits._replace(active=np.arange(ROOM) < k), ROOM
        at_once = _RUNS_AT_ONCE if self.num_restarts > 1 else 1
        room = room_of_steps(self.max_steps)
        return dataclasses.replace(self, num_components=k, num_restarts=at_once, max_steps=room), limits


class Limits(NamedTuple):
    """What one fit uses of what its program was compiled for: numbers, and which components there are."""

    max_steps: AnyArray
    active: AnyArray | None


def default_num_restarts(size: int) -> int:
    """The number of random starts that are made by default, where n k d is `size`.

    Of few rows a start costs little, and one of eight finds the best three components of Old Faithful.
    """
    return _RESTARTS_OF_FEW_ROWS if size < SMALL else _RESTARTS_OF_MANY_ROWS


def _num_carried(num_restarts: int, one_of: int) -> int:
    """How many short runs are carried on: one of so many, but two at least."""
    return min(max(2, num_restarts // one_of), num_restarts)


class Task(NamedTuple):
    """What runs from all starts have in common."""

    rows: Rows
    ridge: AnyArray
    stop: StopRule
    prior: ConjugatePrior | None


def default_ridge(rows: Rows, variances: AnyArray | None = None) -> Float[AnyArray, " d"]:
    """The default ridge of every column, whose variances (d) may be known."""
    known = column_moments(rows)[1] if variances is None else variances
    return (known * default_ridge_fraction(rows.dtype)).astype(rows.dtype)


def ridge_of_starts(rows: Rows, reg_covar: AnyArray, variances: AnyArray | None = None) -> AnyArray:
    """By default, where `reg_covar` is NaN, a fraction of the variance of each column: starts have no prior."""
    xp = namespace(rows.values, rows.weights, reg_covar)
    by_default = xp.isnan(reg_covar)
    default = default_ridge(rows, variances) if xp is jnp or by_default.any() else reg_covar
    return xp.where(by_default, default, xp.asarray(reg_covar, rows.dtype))


def ridge_of_steps(reg_covar: AnyArray, prior: ConjugatePrior | None) -> AnyArray:
    """By default NaN, for a fraction of the variances of each component; under a prior none."""
    xp = namespace(reg_covar)
    return reg_covar if prior is None else xp.where(xp.isnan(reg_covar), xp.zeros_like(reg_covar), reg_covar)


@functools.partial(jax.jit, static_argnames=("settings", "mesh"))
def run_one(
    start: Mixture,
    task: Task,
    step_limit: AnyArray,
    active: AnyArray | None,
    *,
    settings: Settings,
    mesh: Mesh | None = None,
) -> Fit:
    """The run from one start, over the devices of a mesh where there is one."""
    run = functools.partial(
        run_em, family=settings.family, max_steps=settings.max_steps, accelerate=settings.accelerate
    )
    return devices.shard(run, mesh, start, *task, step_limit, active)


def run_from(
    start: Mixture,
    task: Task,
    limits: Limits,
    *,
    settings: Settings,
    mesh: Mesh | None = None,
) -> Fit:
    """The run from one start, outside of other programs: where steps turn out slow, the rest of it accelerated.

    That takes a second program, which fits whose steps are not slow never wait for.
    """
    first = _first_limit(limits, task.stop, settings)
    fit = run_one(start, task, first, limits.active, settings=settings, mesh=mesh)
    return carry_on(fit, task, limits, settings=settings, mesh=mesh)


def _first_limit(limits: Limits, stop: StopRule, settings: Settings) -> AnyArray:
    patience = stop.patience if stop.patience > 0 and not settings.accelerate else limits.max_steps
    return np.asarray(np.minimum(limits.max_steps, patience), np.int32)


def carry_on(
    fit: Fit,
    task: Task,
    limits: Limits,
    *,
    settings: Settings,
    mesh: Mesh | None = None,
) -> Fit:
    """The fit, or if it only ran out of patience, the rest of it."""
    taken = int(fit.num_steps)
    if fit.code is not ResultCode.max_steps_reached or taken >= limits.max_steps:
        return fit
    settings = dataclasses.replace(settings, accelerate=True)
    task = task._replace(stop=task.stop._replace(patience=np.zeros((), np.int32)))
    left = np.asarray(limits.max_steps - taken, np.int32)
    end = run_one(fit.mixture, task, left, limits.active, settings=settings, mesh=mesh)
    trace, more = np.array(fit.trace), np.asarray(end.trace)[1 : int(end.num_steps) + 1]
    trace[taken + 1 : taken + 1 + len(more)] = more
    return dataclasses.replace(end, trace=trace, num_steps=np.asarray(taken + len(more), np.int32))


@functools.partial(jax.jit, static_argnames="settings")
def _run_each(
    starts: Mixture,
    task: Task,
    step_limits: AnyArray,
    active: AnyArray | None,
    *,
    settings: Settings,
) -> Fit:
    """Runs from several starts; those of a negative limit take no pass over the rows."""
    ascent = Ascent(settings.family, settings.max_steps, accelerate=settings.accelerate)
    varies = Problem._make(name in ("start", "step_limit") for name in Problem._fields)
    problems = Problem(starts, *task, step_limits, task.rows.total_weight, active)
    wanted = step_limits >= 0
    fits = run_all(ascent, problems, varies, wanted)
    return dataclasses.replace(fits, result=jnp.where(wanted, fits.result, int(ResultCode.nonfinite)))


def _make_starts(key: RandomKey, rows: Rows, ridge: AnyArray, *, settings: Settings, start: str) -> Mixture:
    """A start for every restart: by NumPy, or inside a program."""
    names = [name_of_restart(start, number) for number in range(settings.num_restarts)]
    xp = jnp if is_traced((key, rows, ridge)) else np
    key = in_numpy(key)

    def some(name: str) -> tuple[np.ndarray, Mixture]:
        numbers = np.asarray([number for number, other in enumerate(names) if other == name], np.int32)
        if xp is np:
            ways = {"start": name, "keys": number_key(key, numbers)}
            return numbers, starts_together(rows, settings.num_components, settings.family, ridge, **ways)
        make = functools.partial(_make_start, key, rows, ridge, settings, name)
        return numbers, map_in_batches(make, even_size(len(numbers), _STARTS_AT_ONCE), jnp.asarray(numbers))

    places, made = zip(*(some(name) for name in dict.fromkeys(names)), strict=True)
    order = np.argsort(np.concatenate(places))
    return jax.tree.map(lambda *parts: xp.concatenate(parts)[order], *made)


def _make_start(
    key: RandomKey, rows: Rows, ridge: AnyArray, settings: Settings, name: str, number: int | Array
) -> Mixture:
    """The start of one restart."""
    own_key = number_key(key, number)
    return start_from(rows, settings.num_components, settings.family, ridge, start=name, key=own_key)


@functools.cache
def _compile_runs_ahead(settings: Settings, shape: tuple[int, int], dtype: np.dtype, roomy: bool) -> None:
    """Compile the runs while starts are made."""
    numbers = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
    num, k, family = settings.num_restarts, settings.num_components, settings.family
    whole = jax.ShapeDtypeStruct((), np.int32)
    stop = StopRule(numbers(()), jax.ShapeDtypeStruct((), np.bool), whole)
    task = Task(Rows(numbers(shape), numbers(shape[:1])), numbers(shape[1:]), stop, None)
    factor = family.representation.shape(shape[1])
    starts = Mixture(numbers((num, k)), numbers((num, k, shape[1])), numbers((num, family.num_factors(k), *factor)))
    active = jax.ShapeDtypeStruct((k,), np.bool) if roomy else None
    limits = jax.ShapeDtypeStruct((num,), np.int32)
    compile_ahead(_run_each, starts, task, limits, active, settings=settings)


def best_on_host(
    key: RandomKey,
    rows: Rows,
    start_ridge: AnyArray,
    task: Task,
    limits: Limits,
    *,
    settings: Settings,
    compiled: Settings,
    start: str,
) -> Fit:
    """The best of random starts of few rows, by one program that serves many fits; the task has its rows padded."""
    if settings.num_restarts > 1 and task.prior is None:
        _compile_runs_ahead(compiled, task.rows.values.shape, rows.dtype, limits.active is not None)
    made = _make_starts(key, rows, start_ridge, settings=settings, start=start)
    if limits.active is not None:
        made = with_room(made, len(limits.active), shared=settings.family.shared)
    if settings.num_restarts == 1:
        fit = run_from(part_of(made, 0), task, limits, settings=compiled)
        return sorted_components(jax.tree.map(np.asarray, fit), limits.active)
    runs = functools.partial(_runs_in_batches, active=limits.active, settings=compiled)
    room, num_runs = int(limits.max_steps), settings.num_restarts
    short = task._replace(stop=_stop_of_short(task.stop, np))
    batches = runs(made, short, np.full(num_runs, min(room, _SHORT_STEPS), np.int32))
    tried = best_run(jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches), num_runs, xp=np)
    num_carried = _num_carried(num_runs, _SMALL_ONE_OF)

    def ends() -> Iterator[Fit]:
        for part in (slice(num_carried), slice(num_carried, None)):
            begun = part_of(tried, part)
            left = limits._replace(max_steps=(room - begun.num_steps).astype(np.int32))
            fits = runs(begun.mixture, task, _first_limit(left, task.stop, compiled))
            ended = (part_of(batch, number) for batch in fits for number in range(len(batch.num_steps)))
            for number, fit in enumerate(ended):
                rest = left._replace(max_steps=left.max_steps[number])
                yield carry_on(fit, task, rest, settings=compiled)

    number, best = best_end(ends(), num_carried, rows, settings.family, task.prior)
    best = joined(part_of(tried, number), jax.tree.map(np.asarray, best))
    return sorted_components(best, limits.active)


def joined(begun: Fit, end: Fit) -> Fit:
    """The whole run: how it began, and what it was carried on to; traces have the same room."""
    xp = namespace(begun.trace, end.trace)
    step, taken = np.arange(end.trace.shape[-1], dtype=np.int32), xp.asarray(begun.num_steps)
    trace = xp.where(step < taken, begun.trace, xp.asarray(end.trace)[xp.maximum(step - taken, 0)])
    return dataclasses.replace(end, trace=trace, num_steps=(taken + end.num_steps).astype(np.int32))


def _runs_in_batches(
    starts: Mixture, task: Task, max_steps: np.ndarray, active: AnyArray | None, *, settings: Settings
) -> Iterator[Fit]:
    """The runs from several starts, as many at once as the program has room for; where they are fewer, no more."""
    at_once = np.arange(settings.num_restarts)
    for first in range(0, len(max_steps), len(at_once)):
        numbers = first + at_once
        counts = numbers < len(max_steps)
        limits = np.where(counts, np.resize(max_steps[first:], len(at_once)), np.int32(-1))
        fits = _run_each(part_of(starts, np.where(counts, numbers, first)), task, limits, active, settings=settings)
        yield part_of(jax.tree.map(np.asarray, fits), counts)


def best_of_samples(
    key: RandomKey,
    moments: tuple[np.ndarray, np.ndarray],
    start_ridge: AnyArray,
    task: Task,
    run: Callable[[Mixture], Fit],
    *,
    settings: Settings,
    start: str,
) -> Fit:
    """The best of random starts of very many rows: those carried on `run` over all of them, one after the other.

    What a restart has gained on the rows of its own sample by narrowing on a few of them, it loses on those of the
    sample that judges. The columns have these means and variances.
    """
    rows, num_restarts, key = task.rows, settings.num_restarts, in_numpy(key)
    size = sample_size(rows, settings.num_components, settings.family)
    masses = sampling_masses(rows, moments) if len(rows) > size else None

    def sample(number: int) -> Rows:
        own_key = number_key(number_key(key, number), _KEY_OF_SAMPLE)
        return sample_rows(rows, masses, size, key=own_key) if masses is not None else rows

    def start_of(number: int, seen: Rows) -> Mixture:
        ways = {"start": name_of_restart(start, number), "keys": number_key(key, np.array([number]))}
        return part_of(starts_together(seen, settings.num_components, settings.family, start_ridge, **ways), 0)

    if num_restarts == 1:
        return sorted_components(run(start_of(0, sample(0))))
    short = functools.partial(
        run_one, active=None, settings=dataclasses.replace(settings, max_steps=_SHORT_STEPS, accelerate=False)
    )
    limit, judges = np.int32(min(_SHORT_STEPS, settings.max_steps)), sample(num_restarts)
    task = task._replace(stop=_stop_of_short(task.stop, np))

    def short_run(number: int) -> Fit:
        seen = sample(number)
        fit = short(start_of(number, seen), task._replace(rows=seen), limit)
        if masses is not None:
            fit = short(fit.mixture, task._replace(rows=judges), np.int32(0))
        return jax.tree.map(np.asarray, fit)

    num_carried = _num_carried(num_restarts, _LARGE_ONE_OF)
    with Progress("EM", None) as display:

        def counted[T](make: Callable[[int], T], done: int, what: str) -> Iterator[T]:
            for number in range(num_restarts):
                display.tell(min(done + number, num_restarts + num_carried), num_restarts + num_carried, what)
                yield make(number)

        tried = stacked(counted(short_run, 0, "short runs"))
        carried = best_run(tried, num_restarts, xp=np).mixture
        ends = counted(lambda number: run(carried[number]), num_restarts, "the best carried on")
        return sorted_components(best_end(ends, num_carried, rows, settings.family, task.prior)[1])


def _stop_of_short(stop: StopRule, xp: ModuleType) -> StopRule:
    """Short runs end by their changes, which need not be small: how far they would get is not asked."""
    tol = xp.maximum(stop.tol, xp.asarray(_SHORT_TOL, stop.tol.dtype))
    return StopRule(tol, xp.asarray(True), xp.asarray(stop.patience))


def _phase(begun: Fit, last: AnyArray, *, task: Task, settings: Settings) -> tuple[Fit, None]:
    """Short runs from all starts, or the last runs from those carried on: the fits, best first.

    Both by the same compiled loop, in which those that are not carried on take no pass.
    """
    number = jnp.arange(settings.num_restarts)
    num_carried = _num_carried(settings.num_restarts, _SMALL_ONE_OF)
    long = jnp.where(number < num_carried, settings.max_steps - begun.num_steps, -1)
    step_limits = jnp.where(last, long, min(settings.max_steps, _SHORT_STEPS)).astype(jnp.int32)
    stop = jax.tree.map(lambda long, short: jnp.where(last, long, short), task.stop, _stop_of_short(task.stop, jnp))
    fits = _run_each(begun.mixture, task._replace(stop=stop), step_limits, None, settings=settings)
    return best_run(jax.vmap(joined)(begun, fits), settings.num_restarts), None


def _unbegun(starts: Mixture, settings: Settings, prior: ConjugatePrior | None) -> Fit:
    """Runs of no steps from these starts."""
    num_restarts = settings.num_restarts
    none, dtype = jnp.zeros(num_restarts, jnp.int32), starts.means.dtype
    trace = jnp.full((num_restarts, settings.max_steps + 1), jnp.nan, dtype)
    return Fit(
        "em",
        settings.family.name,
        starts,
        jnp.zeros(num_restarts, dtype),
        none,
        none,
        trace,
        prior_given=prior is not None,
    )


@functools.partial(jax.jit, static_argnames=("settings", "start"))
def best_of_restarts(
    key: RandomKey,
    rows: Rows,
    reg_covar: AnyArray,
    stop: StopRule,
    prior: ConjugatePrior | None,
    *,
    settings: Settings,
    start: str,
) -> Fit:
    """The best of random starts, as a part of the caller's own program."""
    rows = jax.tree.map(jnp.asarray, rows)
    reg_covar = jnp.asarray(reg_covar, rows.dtype)
    start_ridge = ridge_of_starts(rows, reg_covar)
    task = Task(rows, ridge_of_steps(reg_covar, prior), stop, prior)
    large = rows.values.size * settings.num_components >= devices.LARGE

    def long(start: Mixture) -> Fit:
        return judged(run_one(start, task, np.int32(settings.max_steps), None, settings=settings))

    def judged(fit: Fit) -> Fit:
        return as_spurious(fit, rows, settings.family, prior)

    if not large:
        starts = _make_starts(key, rows, start_ridge, settings=settings, start=start)
        if settings.num_restarts == 1:
            return sorted_components(long(jax.tree.map(lambda leaf: leaf[0], starts)))
        phase = functools.partial(_phase, task=task, settings=settings)
        fits, _ = jax.lax.scan(phase, _unbegun(starts, settings, prior), jnp.asarray([False, True]))
        return sorted_components(best_run(jax.vmap(judged)(fits)))
    size = sample_size(rows, settings.num_components, settings.family)
    seen = rows
    if len(rows) > size:
        seen = sample_rows(rows, sampling_masses(rows), size, key=number_key(key, settings.num_restarts))
    starts = _make_starts(key, seen, start_ridge, settings=settings, start=start)
    if settings.num_restarts > 1:
        steps, short_stop = min(_SHORT_STEPS, settings.max_steps), _stop_of_short(stop, jnp)
        options = {"ridge": task.ridge, "tol": short_stop, "prior": prior}
        short = functools.partial(run_em, rows=seen, **options, family=settings.family, max_steps=steps)
        starts = best_run(jax.lax.map(short, starts), _num_carried(settings.num_restarts, _LARGE_ONE_OF)).mixture
    return sorted_components(best_run(jax.lax.map(long, starts)))


def sorted_components(fit: Fit, active: np.ndarray | None = None) -> Fit:
    """The fit with its components in the order of their means, first feature first, and absent ones last."""
    xp = np if isinstance(fit.mixture.means, np.ndarray) else jnp
    columns = tuple(fit.mixture.means.T[::-1])
    order = xp.lexsort(columns if active is None else (*columns, ~active))
    mixture = jax.tree.map(lambda field: field[order] if len(field) > 1 else field, fit.mixture)
    return dataclasses.replace(fit, mixture=mixture)
