"""The best of several runs of EM: which starts are made, which runs are carried on, which one is kept.

Many short runs, of which the best are carried on (Biernacki, Celeux & Govaert 2003): most starts that will lose show it
early. Of many rows, starts and short runs see a sample.

Few rows are fitted by two programs, of all starts and of all runs, whose shapes are rounded up: rows have weight zero,
runs no step, components no weight where a fit has fewer of them than its program. What comes between is done by NumPy,
so that fits of another size, number of components or limit compile nothing. The same functions make one program inside
the caller's `jit` and `vmap`, where shapes are as they are.
"""

import dataclasses
import functools
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bayesgmm.engines.ascent import Ascent, Problem, run_em
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.likelihood.rows import Rows, sample_rows, sample_size
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture, without_absent
from bayesgmm.numerics.batches import even_size, map_in_batches
from bayesgmm.numerics.precision import AnyArray, RandomKey
from bayesgmm.priors.conjugate import ConjugatePrior
from bayesgmm.runtime import devices
from bayesgmm.runtime.lanes import run_all
from bayesgmm.runtime.programs import ROOM, compile_ahead, compiled_once, has_room
from bayesgmm.starts.kmeans import column_moments
from bayesgmm.starts.named import start_from

_SHORT_STEPS = 10
_SHORT_TOL = 1e-4
_STARTS_AT_ONCE = 8  # each holds responsibilities of all rows
_TRACE_ROOM = 1000  # steps, at least


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
        return Limits(np.int32(self.max_steps), np.int32(self.num_restarts), _num_carried(self.num_restarts), None)

    def in_steps(self, rows: Rows, prior: ConjugatePrior | None) -> "tuple[Settings, Limits]":
        """The settings rounded up, so that they serve other fits too, and the limits of this one."""
        k, limits = self.num_components, self.limits
        # Absent components cost their arithmetic, and would count in the length of a stride.
        if prior is None and not self.accelerate and has_room(k, rows.values.size):
            limits, k = limits._replace(active=np.arange(ROOM) < k), ROOM
        num_restarts = 10 * -(-self.num_restarts // 10) if self.num_restarts > 1 else 1
        room = _TRACE_ROOM if self.max_steps <= _TRACE_ROOM else 2 ** (self.max_steps - 1).bit_length()
        return dataclasses.replace(self, num_components=k, num_restarts=num_restarts, max_steps=room), limits


class Limits(NamedTuple):
    """What one fit uses of what its program was compiled for: numbers, and which components there are."""

    max_steps: AnyArray
    num_restarts: AnyArray
    num_carried: AnyArray  # how many of the short runs are carried on
    active: AnyArray | None


def _num_carried(num_restarts: int) -> np.int32:
    return np.int32(min(max(2, num_restarts // 5), num_restarts))


@jax.jit
def default_ridge(rows: Rows) -> Float[Array, " d"]:
    """A fraction of each column's variance, small beside any component worth finding, large beside rounding."""
    return column_moments(rows)[1] * ridge_fraction(rows.dtype)


def ridge_fraction(dtype: DTypeLike) -> float:
    """The default ridge over the variance of a column."""
    return 1e-10 if dtype == jnp.float64 else 1e-7


@jax.jit
def ridges(rows: Rows, reg_covar: AnyArray, prior: ConjugatePrior | None) -> tuple[Array, Array]:
    """The ridges of starts and of steps; a start has no prior that would hold its components, and so always one."""
    reg_covar = jnp.asarray(reg_covar, rows.dtype)
    by_default = jnp.isnan(reg_covar)
    ridge = jnp.where(by_default, default_ridge(rows), reg_covar)
    return ridge, ridge if prior is None else jnp.where(by_default, 0.0, ridge)


@functools.partial(jax.jit, static_argnames=("settings", "mesh"))
def run_one(
    start: Mixture,
    rows: Rows,
    ridge: Array,
    tol: Array,
    prior: ConjugatePrior | None,
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
    return devices.shard(run, mesh, start, rows, ridge, tol, prior, step_limit, active)


@functools.partial(jax.jit, static_argnames="settings")
def _run_each(
    starts: Mixture,
    rows: Rows,
    ridge: Array,
    tol: Array,
    prior: ConjugatePrior | None,
    step_limits: AnyArray,
    active: AnyArray | None,
    *,
    settings: Settings,
) -> Fit:
    """Runs from several starts; those of a negative limit take no pass over the rows."""
    ascent = Ascent(settings.family, settings.max_steps, accelerate=settings.accelerate)
    varies = Problem._make(name in ("start", "step_limit") for name in Problem._fields)
    problems = Problem(starts, rows, ridge, tol, prior, step_limits, rows.total_weight, active)
    wanted = step_limits >= 0
    fits = run_all(ascent, problems, varies, wanted)
    return dataclasses.replace(fits, result=jnp.where(wanted, fits.result, int(ResultCode.nonfinite)))


def _make_starts(
    key: RandomKey,
    rows: Rows,
    reg_covar: AnyArray,
    prior: ConjugatePrior | None,
    active: AnyArray | None,
    *,
    settings: Settings,
    start: str,
) -> tuple[Mixture, Array]:
    """All starts, and the ridge of the runs from them."""
    start_ridge, ridge = ridges(rows, reg_covar, prior)
    num_wanted = None if active is None else active.sum(dtype=np.int32)

    def from_key(key: Array) -> Mixture:
        k, family = settings.num_components, settings.family
        made = start_from(rows, k, family, start_ridge, start=start, key=key, num_wanted=num_wanted)
        return made if active is None else without_absent(made, active)

    keys = jax.random.split(key, settings.num_restarts)
    return map_in_batches(from_key, even_size(len(keys), _STARTS_AT_ONCE), keys), ridge


@functools.cache
def _compile_runs_ahead(settings: Settings, shape: tuple[int, int], dtype: np.dtype, roomy: bool) -> None:
    """Compile the runs while the starts are."""
    numbers = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
    rows, active = Rows(numbers(shape), numbers(shape[:1])), None
    if roomy:
        active = jax.ShapeDtypeStruct((settings.num_components,), np.bool)
    num, k, family = settings.num_restarts, settings.num_components, settings.family
    factor = family.representation.shape(shape[1])
    starts = Mixture(numbers((num, k)), numbers((num, k, shape[1])), numbers((num, family.num_factors(k), *factor)))
    limits = jax.ShapeDtypeStruct((num,), np.int32)
    compile_ahead(_run_each, starts, rows, numbers(shape[1:]), numbers(()), None, limits, active, settings=settings)


_make_starts_once = compiled_once(_make_starts, static_argnames=("settings", "start"))


def best_on_host(
    key: RandomKey,
    rows: Rows,
    reg_covar: AnyArray,
    tol: AnyArray,
    prior: ConjugatePrior | None,
    limits: Limits,
    *,
    settings: Settings,
    start: str,
) -> Fit:
    """The best of random starts of few rows, by two small programs that serve many fits, and NumPy between them."""
    if settings.num_restarts > 1 and prior is None:
        _compile_runs_ahead(settings, rows.values.shape, rows.dtype, limits.active is not None)
    starts, ridge = _make_starts_once(key, rows, reg_covar, prior, limits.active, settings=settings, start=start)
    if settings.num_restarts == 1:
        only = jax.tree.map(lambda leaf: np.asarray(leaf)[0], starts)
        fit = run_one(only, rows, ridge, tol, prior, limits.max_steps, limits.active, settings=settings)
        return sorted_components(jax.tree.map(np.asarray, fit), limits.active)

    def phase(starts: Mixture, last: np.ndarray) -> tuple[Mixture, Fit]:
        return _phase(starts, last, rows, ridge, tol, prior, limits, settings=settings, xp=np)

    carried, _ = phase(starts, np.asarray(False))
    return sorted_components(best_run(phase(carried, np.asarray(True))[1], xp=np), limits.active)


def _phase(
    starts: Mixture,
    last: AnyArray,
    rows: Rows,
    ridge: Array,
    tol: AnyArray,
    prior: ConjugatePrior | None,
    limits: Limits,
    *,
    settings: Settings,
    xp: ModuleType,
) -> tuple[Mixture, Fit]:
    """Short runs from all starts, or the last runs from those carried on: where they ended, best first, and the fits.

    Both by the same compiled loop, in which those that are not carried on take no pass.
    """
    number = np.arange(settings.num_restarts, dtype=np.int32)
    short, none = xp.minimum(limits.max_steps, np.int32(_SHORT_STEPS)), np.int32(-1)
    steps, wanted = xp.where(last, limits.max_steps, short), xp.where(last, limits.num_carried, limits.num_restarts)
    step_limits = xp.where(number < wanted, steps, none)
    tol_now = xp.where(last, tol, xp.maximum(tol, np.asarray(_SHORT_TOL, tol.dtype)))
    fits = _run_each(starts, rows, ridge, tol_now, prior, step_limits, limits.active, settings=settings)
    fits = jax.tree.map(xp.asarray, fits)
    return best_run(fits, len(number), xp=xp).mixture, fits


@functools.partial(jax.jit, static_argnames=("settings", "start", "mesh"))
def best_of_restarts(
    key: RandomKey,
    rows: Rows,
    reg_covar: AnyArray,
    tol: Array,
    prior: ConjugatePrior | None,
    limits: Limits,
    *,
    settings: Settings,
    start: str,
    mesh: Mesh | None,
) -> Fit:
    """The best of random starts, in one program: of many rows, or within the caller's own."""
    num_components, family = settings.num_components, settings.family
    if settings.num_restarts > 1 and rows.values.size * num_components < devices.LARGE:
        starts, ridge = _make_starts(key, rows, reg_covar, prior, None, settings=settings, start=start)
        phase = functools.partial(
            _phase, rows=rows, ridge=ridge, tol=tol, prior=prior, limits=limits, settings=settings, xp=jnp
        )
        fits = jax.lax.scan(phase, starts, jnp.asarray([False, True]))[1]
        return sorted_components(best_run(jax.tree.map(lambda leaf: leaf[1], fits)))
    keys = jax.random.split(key, settings.num_restarts)
    start_ridge, ridge = ridges(rows, reg_covar, prior)
    sample = rows
    if rows.values.size * num_components >= devices.LARGE:
        # Named apart from the keys of the starts.
        sample = sample_rows(rows, sample_size(rows, num_components, family), key=jax.random.fold_in(keys[0], 1))

    def long(start: Mixture) -> Fit:
        return run_one(start, rows, ridge, tol, prior, limits.max_steps, None, settings=settings, mesh=mesh)

    if settings.num_restarts == 1:
        fit = long(start_from(sample, num_components, family, start_ridge, start=start, key=keys[0]))
    else:
        starts = promising_starts(keys, sample, start_ridge, ridge, tol, prior, settings=settings, start=start)
        fit = best_run(jax.lax.map(long, starts))
    return sorted_components(fit)


@functools.partial(jax.jit, static_argnames=("settings", "start"))
def promising_starts(
    keys: Array,
    sample: Rows,
    start_ridge: Array,
    ridge: Array,
    tol: Array,
    prior: ConjugatePrior | None,
    *,
    settings: Settings,
    start: str,
) -> Mixture:
    """The best short runs on a sample of the rows, made one after the other."""
    k, family = settings.num_components, settings.family
    steps = min(_SHORT_STEPS, settings.max_steps)

    def short(key: Array) -> Fit:
        given = start_from(sample, k, family, start_ridge, start=start, key=key)
        short_tol = jnp.maximum(tol, jnp.asarray(_SHORT_TOL, tol.dtype))
        return run_em(given, sample, ridge, short_tol, prior, family=family, max_steps=steps)

    return best_run(jax.lax.map(short, keys), int(_num_carried(settings.num_restarts))).mixture


def sorted_components(fit: Fit, active: np.ndarray | None = None) -> Fit:
    """The fit with its components in the order of their means, first feature first, and absent ones last."""
    xp = np if isinstance(fit.mixture.means, np.ndarray) else jnp
    columns = tuple(fit.mixture.means.T[::-1])
    order = xp.lexsort(columns if active is None else (*columns, ~active))
    mixture = jax.tree.map(lambda field: field[order] if len(field) > 1 else field, fit.mixture)
    return dataclasses.replace(fit, mixture=mixture)


def best_run(fits: Fit, count: int | None = None, xp: ModuleType = jnp) -> Fit:
    """The best of the runs, or so many of them."""
    merit = _merit(fits, xp)
    which = xp.argmax(merit) if count is None else xp.argsort(-merit, stable=True)[:count]
    return jax.tree.map(lambda field: field[which], fits)


def _merit(fits: Fit, xp: ModuleType) -> Float[AnyArray, " restarts"]:
    """The objective that each run ended with, by which runs are chosen.

    A collapsed run climbs a spike of unbounded likelihood: it is eligible only where every run collapsed.
    """
    objective = xp.take_along_axis(fits.trace, fits.num_steps[:, None], axis=1)[:, 0]
    finite = xp.isfinite(objective) & (fits.result != int(ResultCode.nonfinite))
    proper = finite & (fits.result != int(ResultCode.collapsed))
    eligible = xp.where(proper.any(), proper, finite)
    return xp.where(eligible, objective, -xp.inf)
