"""Maximum likelihood, or the posterior mode under a conjugate prior, by expectation-maximisation from several starts.

Few rows are fitted by programs that serve other fits too (`restarts.py`). Many rows are shared out over the processor's
cores where JAX has a device for each, and those that do not fit into memory are passed over in chunks.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bayesgmm.engines.ascent import Ascent, StopRule
from bayesgmm.engines.best import objective_of
from bayesgmm.engines.fit import Fit, report_failure
from bayesgmm.engines.optima import apart, as_spurious, coincident
from bayesgmm.engines.registry import Count, CountOrZero, Flag, Number, OnFailure, Rule, choice_of, engine
from bayesgmm.engines.restarts import (
    Settings,
    Task,
    best_of_restarts,
    best_of_samples,
    best_on_host,
    default_num_restarts,
    ridge_of_starts,
    ridge_of_steps,
    run_from,
    run_one,
)
from bayesgmm.engines.streaming import column_moments_in_chunks, run_em_streamed
from bayesgmm.likelihood.rows import Rows, as_rows, enough_rows
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture, with_room
from bayesgmm.numerics.precision import (
    AnyArray,
    ArrayLike,
    KeyLike,
    RandomKey,
    in_precision,
    is_traced,
    matching_precision,
    on_device,
)
from bayesgmm.numerics.validation import as_key, nonnegative
from bayesgmm.priors.checks import check_has_mode
from bayesgmm.priors.conjugate import ConjugatePrior, check_conjugate_prior
from bayesgmm.runtime import devices
from bayesgmm.runtime.programs import SMALL
from bayesgmm.starts.given import StartLike, mixture_from_start
from bayesgmm.starts.named import Start, check_named_start, get_start, start_from
from bayesgmm.starts.sampling import column_moments

_PATIENCE = 50  # plain steps, after which EM counts as slow


def _reg_covar(name: str, value: ArrayLike) -> ArrayLike:
    """A ridge, or one for each of however many features."""
    nonnegative(name, value, np.shape(value)[:1])
    return value


@engine(
    "em", label="EM", method="EM", gives="point", prior="none", trace="log-likelihood", streams=(8,), inside_jit=True
)
def fit_em(
    x: ArrayLike | Rows,
    num_components: Count,
    *,
    family: str | Family = "full",
    key: KeyLike | None = None,
    num_restarts: Count | None = None,
    start: Annotated[Any, Rule(check_named_start)] = "k-means++",
    row_weights: ArrayLike | None = None,
    prior: ConjugatePrior | None = None,
    accelerate: Flag | None = None,
    tol: Number = 1e-7,
    stop_rule: Annotated[Literal["gain_left", "change"], choice_of("gain_left", "change")] = "gain_left",
    max_steps: CountOrZero = 1000,
    reg_covar: Annotated[Any, Rule(_reg_covar)] | None = None,
    on_failure: OnFailure = "warn",
) -> Fit:
    """Fit a Gaussian mixture by maximum likelihood, or by its posterior mode where a prior is given.

    Makes `num_restarts` short runs of EM from random starts, carries on with the best of them and keeps the highest
    log-likelihood; or runs from a start that is given. Where n k d is 131,072 or more, each start and its short run
    see a random sample of the rows, of 4,096 at least. Rows in NumPy of 256 MB or more, memory maps included, are not
    copied on a CPU, but passed over in chunks (user-supplied starts other than a mixture copy them once).

    Usable inside the caller's `jit` and `vmap`, where shapes are checked but values are not, and a failure is only a
    result code.

    Args:
        x: rows (n, d); NumPy, JAX, pandas. The fit is computed in its precision (integers in float64).
        num_components: k.
        family: covariance family, a name or a record of `bayesgmm.FAMILIES`.
        key: `jax.random.key(seed)`; needed for starts that are random.
        num_restarts: number of random starts; by default 40 where n k d is below 131,072, else 10.
        start: the name of a start ("k-means++", "drawn_rows", "distant_rows", "kmeans",
            "random_responsibilities", "random_rows", "hierarchical");
            or a start of one's own, whose components keep their order: a mixture, a mapping with means and, where
            wanted, weights and covariances or precisions, responsibilities (n, k) or labels (n).
        row_weights: weight of every row (n); weight 2 is the row twice.
        prior: a `conjugate_prior`; then the fit is its posterior mode (MAP-EM) and the trace that of the log posterior.
        accelerate: extrapolate every second step where that does not lower the objective (SQUAREM); several times
            fewer passes over the rows where components overlap and EM is slow. By default after 50 plain steps.
        tol: stop when less than this is left to gain in the mean objective per row, as the changes of the last steps
            tell (Aitken); 0 runs `max_steps`.
        stop_rule: "gain_left", or "change" to stop when a step changes the objective by less than `tol`, as
            scikit-learn does: that can be far from the maximum.
        max_steps: step limit of a run; 0 gives the start itself, with its log-likelihood.
        reg_covar: ridge added to the variances, in squared units of the data: a number or one for each feature. By
            default a tiny fraction of each component's own variances (1e-10 in float64, 1e-7 in float32), and 0 where
            a prior is given; 0 switches it off. Under a user-supplied ridge, columns may be constant and rows repeat.
        on_failure: "warn", "raise" or "ignore" when the best run did not converge.

    Returns:
        A `Fit`; its steps are those of the best run, of many rows without its short one. Components of random starts
        are sorted by their means, first feature first.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    family = get_family(family)
    rows = as_rows(x, row_weights)
    num_features, dtype = rows.num_features, rows.dtype
    num_starts = default_num_restarts(rows.values.size * num_components) if num_restarts is None else num_restarts
    settings = Settings(num_components, family, num_starts, max_steps, bool(accelerate))
    patience = _PATIENCE if accelerate is None else 0
    stop = StopRule(in_precision(tol, dtype), np.asarray(stop_rule == "change"), np.asarray(patience, np.int32))
    reg_covar = None if reg_covar is None else nonnegative("reg_covar", reg_covar, (num_features,), dtype)
    ridged = reg_covar is not None and (is_traced(reg_covar) or bool((reg_covar > 0).all()))
    enough_rows(rows, settings.num_components, family, bounded=prior is not None, ridged=ridged)
    streamed = rows.is_streamed and not is_traced((rows, start, key, prior, stop, reg_covar))
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
    found = on_device(fit(rows, settings, start, key, prior, stop, ridge), dtype)
    return report_failure(found, on_failure, None if streamed else rows.values)


@matching_precision
def _fit(
    rows: Rows,
    settings: Settings,
    start: Start | StartLike,
    key: RandomKey | None,
    prior: ConjugatePrior | None,
    stop: StopRule,
    reg_covar: AnyArray,
) -> Fit:
    traced = is_traced((rows, start, key, prior, stop, reg_covar))
    if traced and stop.patience > 0:
        settings = dataclasses.replace(settings, accelerate=True)
    k, size = settings.num_components, rows.values.size * settings.num_components
    mesh = None if traced else devices.row_mesh(size)
    in_steps = not traced and size < SMALL
    random = start if isinstance(start, Start) and start.random else None
    padded, compiled, limits = rows, settings, settings.limits
    if in_steps:
        padded = rows.in_steps()
        compiled, limits = settings.in_steps(padded, prior)
    elif mesh is not None:
        padded = rows.split(mesh)
    if not traced:
        rows = jax.tree.map(np.asarray, rows)

    task = Task(padded, ridge_of_steps(reg_covar, prior), stop, prior)

    def run(start: Mixture) -> Fit:
        start = start if limits.active is None else with_room(start, len(limits.active), shared=settings.family.shared)
        if traced:
            return run_one(start, task, limits.max_steps, None, settings=compiled)
        fit = run_from(start, task, limits, settings=compiled, mesh=mesh)
        return fit if mesh is None else devices.off_mesh(fit)

    if random is None or key is None:
        start_ridge = task.ridge if isinstance(start, Mixture) else ridge_of_starts(rows, reg_covar)
        fit = run(given_start(start, rows, k, settings.family, start_ridge, key))
    elif traced:
        fit = best_of_restarts(key, rows, reg_covar, stop, prior, settings=settings, start=random.name)
    else:
        moments = column_moments(rows)
        start_ridge = ridge_of_starts(rows, reg_covar, moments[1])
        if in_steps:
            ways = {"settings": settings, "compiled": compiled, "start": random.name}
            fit = best_on_host(key, rows, start_ridge, task, limits, **ways)
        else:
            whole = task._replace(rows=rows)
            fit = best_of_samples(key, moments, start_ridge, whole, run, settings=settings, start=random.name)
    if traced:
        return fit if random is not None else as_spurious(fit, rows, settings.family, prior)
    fit = as_spurious(_off_saddle(fit, run, settings), rows, settings.family, prior)
    return _cut(fit, settings) if in_steps else fit


def _off_saddle(fit: Fit, run: Callable[[Mixture], Fit], settings: Settings) -> Fit:
    """The fit; where components coincide and the likelihood rises as they part, that from a start with them apart."""
    for _ in range(settings.num_components - 1 if settings.max_steps > 0 else 0):
        mixture = jax.tree.map(np.asarray, fit.mixture)
        if not (fit.successful and np.isfinite(mixture.means).all() and (groups := coincident(mixture))):
            break
        again = run(apart(mixture, groups))
        gain = objective_of(again) - objective_of(fit)
        if not (again.successful and gain > 1e-9 * abs(objective_of(fit))):
            break
        fit = again
    return fit


def _cut(fit: Fit, settings: Settings) -> Fit:
    """The fit without absent components and without the room that its trace did not need, in NumPy."""

    def present(field: AnyArray) -> np.ndarray:
        return np.asarray(field)[: settings.num_components]

    trace = np.asarray(fit.trace)[: settings.max_steps + 1]
    return dataclasses.replace(fit, mixture=jax.tree.map(present, fit.mixture), trace=trace)


@matching_precision
def _fit_streamed(
    rows: Rows,
    settings: Settings,
    start: Start | StartLike,
    key: RandomKey | None,
    prior: ConjugatePrior | None,
    stop: StopRule,
    reg_covar: AnyArray,
) -> Fit:
    k, family = settings.num_components, settings.family
    task = Task(rows, ridge_of_steps(reg_covar, prior), stop, prior)
    ascent = Ascent(family, settings.max_steps, accelerate=settings.accelerate or bool(stop.patience > 0))
    local = jax.local_devices()[: devices.num_cores()]

    def run(start: Mixture) -> Fit:
        return run_em_streamed(start, *task, ascent, local)

    if isinstance(start, Mixture):
        fit = run(given_start(start, rows, k, family, task.ridge, key))
    else:
        moments = column_moments_in_chunks(rows)
        start_ridge = ridge_of_starts(rows, reg_covar, moments[1])
        if isinstance(start, Start) and start.random:
            assert key is not None
            fit = best_of_samples(key, moments, start_ridge, task, run, settings=settings, start=start.name)
        else:
            fit = run(given_start(start, rows.of_positive_weight(), k, family, start_ridge, key))
    return as_spurious(_off_saddle(fit, run, settings), rows, family, prior)


def given_start(
    start: Start | StartLike,
    rows: Rows,
    num_components: int,
    family: Family,
    ridge: AnyArray,
    key: RandomKey | None,
) -> Mixture:
    """The mixture of a named start that is not random, or of a user-supplied one; a mixture needs no ridge."""
    if isinstance(start, Start):
        given = start_from(rows, num_components, family, ridge, start=start.name, key=key)
    else:
        given = mixture_from_start(start, rows, num_components, family, ridge)
    return jax.tree.map(lambda field: jnp.asarray(field, rows.dtype), given)
