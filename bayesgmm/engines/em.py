"""Maximum likelihood, or the posterior mode under a conjugate prior, by expectation-maximisation from several starts.

Many short runs, of which the best are carried on (Biernacki, Celeux & Govaert 2003): most starts that will lose
show it early. Large data sets make the short runs on a sample of their rows, and share the rows of the long ones out
over the processor's cores where JAX has a device for each.
"""

import dataclasses
import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bayesgmm.engines.ascent import Ascent, Problem, run_em
from bayesgmm.engines.fit import Fit, ResultCode, report_failure
from bayesgmm.engines.registry import Count, CountOrZero, Flag, Number, OnFailure, Rule, engine
from bayesgmm.engines.streaming import column_variances, run_em_streamed
from bayesgmm.likelihood.rows import Rows, as_rows, enough_rows, sample_on_host, sample_rows, sample_size
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import even_size, map_in_batches
from bayesgmm.numerics.precision import (
    AnyArray,
    ArrayLike,
    KeyLike,
    RandomKey,
    in_precision,
    is_traced,
    matching_precision,
)
from bayesgmm.numerics.validation import as_key, nonnegative
from bayesgmm.priors.checks import check_has_mode
from bayesgmm.priors.conjugate import ConjugatePrior, check_conjugate_prior
from bayesgmm.runtime import devices
from bayesgmm.runtime.lanes import run_all
from bayesgmm.starts.given import StartLike, mixture_from_start
from bayesgmm.starts.kmeans import column_moments
from bayesgmm.starts.named import Start, check_named_start, get_start, start_from

_SHORT_STEPS = 10
_SHORT_TOL = 1e-4
_STARTS_AT_ONCE = 8  # each holds responsibilities of all rows


def _reg_covar(name: str, value: ArrayLike) -> ArrayLike:
    """A ridge, or one for each of however many features."""
    nonnegative(name, value, np.shape(value)[:1])
    return value


@engine("em", label="EM", method="EM", gives="point", prior="none", trace="log-likelihood", streams=(8,))
def fit_em(
    x: ArrayLike | Rows,
    num_components: Count,
    *,
    family: str | Family = "full",
    key: KeyLike | None = None,
    num_restarts: Count = 10,
    start: Annotated[Any, Rule(check_named_start)] = "k-means++",
    row_weights: ArrayLike | None = None,
    prior: ConjugatePrior | None = None,
    accelerate: Flag = False,
    tol: Number = 1e-6,
    max_steps: CountOrZero = 1000,
    reg_covar: Annotated[Any, Rule(_reg_covar)] | None = None,
    on_failure: OnFailure = "warn",
) -> Fit:
    """Fit a Gaussian mixture by maximum likelihood, or by its posterior mode where a prior is given.

    Makes `num_restarts` short runs of EM from random starts, carries on with the best of them and keeps the highest
    log-likelihood; or runs from a start that is given. Where n k d is above a million, starts and short runs see an
    evenly spaced sample of the rows, of 8,192 at least. Rows in NumPy of 256 MB or more, memory maps included, are not
    copied on a CPU, but passed over in chunks (user-supplied starts other than a mixture copy them once).

    Usable inside the caller's `jit` and `vmap`, where shapes are checked but values are not, and a failure is only a
    result code.

    Args:
        x: rows (n, d); NumPy, JAX, pandas. The fit is computed in its precision (integers in float64).
        num_components: k.
        family: covariance family, a name or a record of `bayesgmm.FAMILIES`.
        key: `jax.random.key(seed)`; needed for starts that are random.
        num_restarts: number of random starts.
        start: the name of a start ("k-means++", "kmeans", "random_responsibilities", "random_rows", "hierarchical");
            or a start of one's own, whose components keep their order: a mixture, a mapping with means and, where
            wanted, weights and covariances or precisions, responsibilities (n, k) or labels (n).
        row_weights: weight of every row (n); weight 2 is the row twice.
        prior: a `conjugate_prior`; then the fit is its posterior mode (MAP-EM) and the trace that of the log posterior.
        accelerate: extrapolate every second step where that does not lower the objective (SQUAREM); several times
            fewer passes over the rows where components overlap and EM is slow.
        tol: stop when a step changes the mean objective per row by less than this; 0 runs `max_steps`.
        max_steps: step limit of a run; 0 gives the start itself, with its log-likelihood.
        reg_covar: ridge added to the variances, in squared units of the data: a number or one for each feature. By
            default a tiny fraction of each column's variance (1e-10 in float64, 1e-7 in float32), and 0 where a prior
            is given; 0 switches it off. Under a user-supplied ridge, columns may be constant and rows may repeat.
        on_failure: "warn", "raise" or "ignore" when the best run did not converge.

    Returns:
        A `Fit`; its steps are those of the best run after its short one. Components of random starts are sorted by
        their means, first feature first.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    family = get_family(family)
    rows = as_rows(x, row_weights)
    num_features, dtype = rows.num_features, rows.dtype
    settings = _Settings(num_components, family, num_restarts, max_steps, accelerate)
    tol = in_precision(tol, dtype)
    reg_covar = None if reg_covar is None else nonnegative("reg_covar", reg_covar, (num_features,), dtype)
    ridged = reg_covar is not None and (is_traced(reg_covar) or bool((reg_covar > 0).all()))
    enough_rows(rows, settings.num_components, family, bounded=prior is not None, ridged=ridged)
    streamed = rows.is_streamed and not is_traced((rows, start, key, prior, tol, reg_covar))
    rows = rows if streamed else rows.of_positive_weight()
    if prior is not None:
        prior = check_conjugate_prior(prior, settings.num_components, num_features, family)
        check_has_mode(prior)
        prior = in_precision(prior, dtype)
    # NaN stands for the default, so that no program is compiled for it alone.
    ridge = np.asarray(np.nan, dtype) if reg_covar is None else reg_covar
    ridge = (jnp if is_traced(ridge) else np).broadcast_to(ridge, num_features)
    if isinstance(start, str):
        start = get_start(start)
        key = as_key(key) if start.random or key is not None else None
    fit = _fit_streamed if streamed else _fit
    return report_failure(fit(rows, settings, start, key, prior, tol, ridge), on_failure)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a program is compiled for."""

    num_components: int
    family: Family
    num_restarts: int
    max_steps: int
    accelerate: bool

    @property
    def num_carried(self) -> int:
        """How many of the short runs are carried on."""
        return min(max(2, self.num_restarts // 5), self.num_restarts)


@matching_precision
def _fit(
    rows: Rows,
    settings: _Settings,
    start: Start | StartLike,
    key: RandomKey | None,
    prior: ConjugatePrior | None,
    tol: AnyArray,
    reg_covar: AnyArray,
) -> Fit:
    traced = is_traced((rows, start, key, prior, tol, reg_covar))
    mesh = None if traced else devices.row_mesh(rows.values.size * settings.num_components)
    placed = rows if mesh is None else rows.split(mesh)
    if isinstance(start, Start) and start.random:
        options = {"settings": settings, "start": start.name, "mesh": mesh}
        fit = _best_of_restarts(key, placed, reg_covar, tol, prior, **options)
    else:
        start_ridge, ridge = _ridges(placed, reg_covar, prior)
        given = given_start(start, rows, settings.num_components, settings.family, start_ridge, key)
        fit = _run(given, placed, ridge, tol, prior, settings=settings, mesh=mesh)
    return fit if mesh is None else devices.off_mesh(fit)


@matching_precision
def _fit_streamed(
    rows: Rows,
    settings: _Settings,
    start: Start | StartLike,
    key: RandomKey | None,
    prior: ConjugatePrior | None,
    tol: AnyArray,
    reg_covar: AnyArray,
) -> Fit:
    k, family = settings.num_components, settings.family
    by_default = np.isnan(reg_covar)
    default = column_variances(rows) * ridge_fraction(rows.dtype) if by_default.any() else 0.0
    start_ridge = jnp.asarray(np.where(by_default, default, reg_covar), rows.dtype)
    ridge = start_ridge if prior is None else jnp.where(by_default, 0.0, start_ridge)
    tol = jnp.asarray(tol, rows.dtype)
    ascent = Ascent(family, settings.max_steps, accelerate=settings.accelerate)
    local = jax.local_devices()[: devices.num_cores()]

    def run(start: Mixture) -> Fit:
        return run_em_streamed(start, rows, ridge, tol, prior, ascent, local)

    if not (isinstance(start, Start) and start.random):
        used = rows if isinstance(start, Mixture) else rows.of_positive_weight()
        return run(given_start(start, used, k, family, start_ridge, key))
    assert key is not None
    keys = jax.random.split(key, settings.num_restarts)
    sample = sample_on_host(rows, sample_size(rows, k, family), key=jax.random.fold_in(keys[0], 1))
    options = {"settings": settings, "start": start.name}
    starts = _promising_starts(keys, sample, start_ridge, ridge, tol, prior, **options)
    fits = [run(jax.tree.map(lambda leaf, i=i: leaf[i], starts)) for i in range(len(starts.means))]
    fit = _best(jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits))
    return sorted_components(fit)


def given_start(
    start: Start | StartLike, rows: Rows, num_components: int, family: Family, ridge: Array, key: RandomKey | None
) -> Mixture:
    """The mixture of a named start that is not random, or of a user-supplied one."""
    if isinstance(start, Start):
        given = start_from(rows, num_components, family, ridge, start=start.name, key=key)
    else:
        given = mixture_from_start(start, rows, num_components, family, ridge)
    return jax.tree.map(lambda field: jnp.asarray(field, rows.dtype), given)


@jax.jit
def default_ridge(rows: Rows) -> Float[Array, " d"]:
    """A fraction of each column's variance, small beside any component worth finding, large beside rounding."""
    return column_moments(rows)[1] * ridge_fraction(rows.dtype)


def ridge_fraction(dtype: DTypeLike) -> float:
    """The default ridge over the variance of a column."""
    return 1e-10 if dtype == jnp.float64 else 1e-7


def _ridges(rows: Rows, reg_covar: AnyArray, prior: ConjugatePrior | None) -> tuple[Array, Array]:
    """The ridges of starts and of steps; a start has no prior that would hold its components, and so always one."""
    reg_covar = jnp.asarray(reg_covar, rows.dtype)
    by_default = jnp.isnan(reg_covar)
    ridge = jnp.where(by_default, default_ridge(rows), reg_covar)
    return ridge, ridge if prior is None else jnp.where(by_default, 0.0, ridge)


@functools.partial(jax.jit, static_argnames=("settings", "mesh"))
def _run(
    start: Mixture,
    rows: Rows,
    ridge: Array,
    tol: Array,
    prior: ConjugatePrior | None,
    *,
    settings: _Settings,
    mesh: Mesh | None,
) -> Fit:
    run = functools.partial(
        run_em, family=settings.family, max_steps=settings.max_steps, accelerate=settings.accelerate
    )
    return devices.shard(run, mesh, start, rows, ridge, tol, prior)


@functools.partial(jax.jit, static_argnames=("settings", "start", "mesh"))
def _best_of_restarts(
    key: RandomKey,
    rows: Rows,
    reg_covar: AnyArray,
    tol: Array,
    prior: ConjugatePrior | None,
    *,
    settings: _Settings,
    start: str,
    mesh: Mesh | None,
) -> Fit:
    num_components, family = settings.num_components, settings.family
    keys = jax.random.split(key, settings.num_restarts)
    start_ridge, ridge = _ridges(rows, reg_covar, prior)
    large = rows.values.size * num_components >= devices.LARGE
    sample = rows
    if large:
        # Named apart from the keys of the starts.
        sample = sample_rows(rows, sample_size(rows, num_components, family), key=jax.random.fold_in(keys[0], 1))

    def from_key(key: Array) -> Mixture:
        return start_from(sample, num_components, family, start_ridge, start=start, key=key)

    def long(start: Mixture) -> Fit:
        return _run(start, rows, ridge, tol, prior, settings=settings, mesh=mesh)

    if settings.num_restarts == 1:
        fit = long(from_key(keys[0]))
    elif large:
        starts = _promising_starts(keys, sample, start_ridge, ridge, tol, prior, settings=settings, start=start)
        fit = _best(jax.lax.map(long, starts))
    else:
        # Short and long runs share one compiled loop, in which those that are not carried on take no pass.
        starts = map_in_batches(from_key, even_size(len(keys), _STARTS_AT_ONCE), keys)
        ascent = Ascent(family, settings.max_steps, accelerate=settings.accelerate)
        long_limits = jnp.where(jnp.arange(len(keys)) < settings.num_carried, settings.max_steps, -1)
        varies = Problem._make(name in ("start", "step_limit") for name in Problem._fields)

        def phase(starts: Mixture, last: Array) -> tuple[Mixture, Fit]:
            limits = jnp.where(last, long_limits, min(_SHORT_STEPS, settings.max_steps))
            tol_now = jnp.where(last, tol, _short_tol(tol))
            problems = Problem(starts, rows, ridge, tol_now, prior, limits, rows.total_weight)
            fits = run_all(ascent, problems, varies, limits >= 0)
            return _best(fits, len(keys)).mixture, fits

        fits = jax.lax.scan(phase, starts, jnp.asarray([False, True]))[1]
        fit = _best(jax.tree.map(lambda leaf: leaf[1, : settings.num_carried], fits))
    return sorted_components(fit)


@functools.partial(jax.jit, static_argnames=("settings", "start"))
def _promising_starts(
    keys: Array,
    sample: Rows,
    start_ridge: Array,
    ridge: Array,
    tol: Array,
    prior: ConjugatePrior | None,
    *,
    settings: _Settings,
    start: str,
) -> Mixture:
    """The best short runs on a sample of the rows, made one after the other."""
    k, family = settings.num_components, settings.family
    steps = min(_SHORT_STEPS, settings.max_steps)

    def short(key: Array) -> Fit:
        given = start_from(sample, k, family, start_ridge, start=start, key=key)
        return run_em(given, sample, ridge, _short_tol(tol), prior, family=family, max_steps=steps)

    return _best(jax.lax.map(short, keys), settings.num_carried).mixture


def _short_tol(tol: Array) -> Array:
    return jnp.maximum(tol, jnp.asarray(_SHORT_TOL, tol.dtype))


def sorted_components(fit: Fit) -> Fit:
    """The fit with its components in the order of their means, first feature first."""
    return dataclasses.replace(fit, mixture=fit.mixture.permute(jnp.lexsort(fit.mixture.means.T[::-1])))


def _best(fits: Fit, count: int | None = None) -> Fit:
    """The best of the runs, or so many of them."""
    which = jnp.argmax(_merit(fits)) if count is None else jax.lax.top_k(_merit(fits), count)[1]
    return jax.tree.map(lambda field: field[which], fits)


def _merit(fits: Fit) -> Float[Array, " restarts"]:
    """The objective that each run ended with, by which runs are chosen.

    A collapsed run climbs a spike of unbounded likelihood: it is eligible only where every run collapsed.
    """
    objective = jnp.take_along_axis(fits.trace, fits.num_steps[:, None], axis=1)[:, 0]
    finite = jnp.isfinite(objective) & (fits.result != ResultCode.nonfinite)
    proper = finite & (fits.result != ResultCode.collapsed)
    eligible = jnp.where(proper.any(), proper, finite)
    return jnp.where(eligible, objective, -jnp.inf)
