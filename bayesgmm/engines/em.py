r"""Maximum likelihood by expectation-maximisation, as one compiled loop.

A step is the M-step of the moments in hand, then one pass over the rows that gives the new mixture's log-likelihood and
its moments; so the log-likelihood reported always belongs to the mixture reported.

Source: Dempster, Laird & Rubin (1977); McLachlan & Peel (2000), section 3.2.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesgmm.checks import as_key, as_row_weights, as_rows, enough_rows
from bayesgmm.errors import InputError
from bayesgmm.families import Family, get_family
from bayesgmm.mixture import Mixture
from bayesgmm.moments import Moments, expected_moments, maximise
from bayesgmm.precision import matching_precision
from bayesgmm.results import Fit, ResultCode, announce, check_on_failure
from bayesgmm.starts import column_moments, start_at_seeds

_RUNNING = -1
_COLLAPSED_WIDTH = 10.0  # a component is a point once its variance is within this factor of the ridge


class _State(NamedTuple):
    mixture: Mixture
    moments: Moments
    num_steps: Array
    result: Array
    trace: Array


def fit_em(
    x: Any,
    num_components: Any,
    *,
    family: str | Family = "full",
    key: Any = None,
    num_restarts: int = 10,
    start: Mixture | None = None,
    row_weights: Any = None,
    tol: Any = 1e-6,
    max_steps: int = 1000,
    reg_covar: Any = None,
    on_failure: str = "warn",
) -> Fit:
    """Fit a Gaussian mixture by maximum likelihood.

    Runs EM from `num_restarts` k-means++ starts in one vectorised program and keeps the highest log-likelihood; or from
    `start`. Usable inside the caller's `jit` and `vmap`, where arguments are not checked and a failure is only a result
    code.

    Args:
        x: rows (n, d); NumPy, JAX, pandas. The fit is computed in its precision (integers in float64).
        num_components: k.
        family: covariance family, a name or a record of `bayesgmm.FAMILIES`.
        key: `jax.random.key(seed)`; needed unless `start` is given.
        num_restarts: number of starts.
        start: a mixture to start from, in place of random starts; its components keep their order.
        row_weights: weight of every row (n); weight 2 is the row twice.
        tol: stop when the mean log-likelihood per row changes by less than this.
        max_steps: step limit.
        reg_covar: ridge added to the variances, in squared units of the data: a number or one for each feature. By
            default a tiny fraction of each column's variance (1e-10 in float64, 1e-5 in float32); 0 switches it off.
        on_failure: "warn", "raise" or "ignore" when the best run did not converge.

    Returns:
        A `Fit`; components of random starts are sorted by their means, first feature first.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
    """
    check_on_failure(on_failure)
    family = get_family(family)
    x = as_rows(x)
    enough_rows(x, num_components, family)
    weights = as_row_weights(row_weights, x)
    key = as_key(key) if start is None else key
    if start is not None and start.means.shape != (num_components, x.shape[1]):
        raise InputError(
            f"start has means of shape {start.means.shape}, but num_components={num_components} and x has "
            f"{x.shape[1]} features"
        )
    if num_restarts < 1 or max_steps < 1:
        raise InputError(f"num_restarts={num_restarts} and max_steps={max_steps} must both be at least 1")
    fit = _fit(x, weights, num_components, family, key, num_restarts, start, tol, max_steps, reg_covar)
    return announce(fit, on_failure)


@matching_precision
def _fit(
    x: Any,
    weights: Any,
    num_components: int,
    family: Family,
    key: Any,
    num_restarts: int,
    start: Mixture | None,
    tol: Any,
    max_steps: int,
    reg_covar: Any,
) -> Fit:
    x, weights = jnp.asarray(x), jnp.asarray(weights)
    ridge = default_ridge(x, weights) if reg_covar is None else jnp.asarray(reg_covar, x.dtype)
    ridge = jnp.broadcast_to(ridge, x.shape[1:])
    tol = jnp.asarray(tol, x.dtype)
    if start is not None:
        start = jax.tree.map(lambda field: jnp.asarray(field, x.dtype), start)
        return run_em(start, x, weights, ridge, tol, family=family, max_steps=max_steps)
    return _best_of_restarts(
        jax.random.split(key, num_restarts),
        x,
        weights,
        ridge,
        tol,
        num_components=num_components,
        family=family,
        max_steps=max_steps,
    )


def default_ridge(x: Float[Array, "n d"], row_weights: Float[Array, " n"]) -> Float[Array, " d"]:
    """A fraction of each column's variance, small beside any component worth finding, large beside rounding."""
    return column_moments(x, row_weights)[1] * (1e-10 if x.dtype == jnp.float64 else 1e-5)


@functools.partial(jax.jit, static_argnames=("num_components", "family", "max_steps"))
def _best_of_restarts(
    keys: Array,
    x: Array,
    row_weights: Array,
    ridge: Array,
    tol: Array,
    *,
    num_components: int,
    family: Family,
    max_steps: int,
) -> Fit:
    def one(key: Array) -> Fit:
        start = start_at_seeds(x, num_components, row_weights, family, ridge, key=key)
        return run_em(start, x, row_weights, ridge, tol, family=family, max_steps=max_steps)

    fits = jax.vmap(one)(keys)
    finite = jnp.isfinite(fits.log_likelihood) & (fits.result != ResultCode.nonfinite)
    proper = finite & (fits.result != ResultCode.collapsed)
    # A collapsed run climbs a spike of unbounded likelihood: it may win only where every run collapsed.
    eligible = jnp.where(proper.any(), proper, finite)
    best = jnp.argmax(jnp.where(eligible, fits.log_likelihood, -jnp.inf))
    fit = jax.tree.map(lambda field: field[best], fits)
    order = jnp.lexsort(fit.mixture.means.T[::-1])
    return dataclasses.replace(fit, mixture=fit.mixture.permute(order))


@functools.partial(jax.jit, static_argnames=("family", "max_steps"))
def run_em(
    start: Mixture,
    x: Float[Array, "n d"],
    row_weights: Float[Array, " n"],
    ridge: Float[Array, " d"],
    tol: Float[Array, ""],
    *,
    family: Family,
    max_steps: int,
) -> Fit:
    """EM from one start: the compiled core of `fit_em`, for use inside other JAX programs. Never raises."""
    total_weight = row_weights.sum()
    variances = column_moments(x, row_weights)[1]
    moments = expected_moments(start, x, row_weights)
    trace = jnp.full(max_steps + 1, jnp.nan, x.dtype).at[0].set(moments.log_likelihood)
    usable = jnp.isfinite(moments.log_likelihood)
    result = jnp.where(usable, _RUNNING, _failure(start))
    state = _State(start, moments, jnp.asarray(0, jnp.int32), result.astype(jnp.int32), trace)
    # Rounding of a sum of n log-densities, with room: a fall beyond it is a fall.
    rounding = 1e3 * jnp.finfo(x.dtype).eps

    def unfinished(state: _State) -> Array:
        return (state.result == _RUNNING) & (state.num_steps < max_steps)

    def step(state: _State) -> _State:
        mixture = maximise(state.moments, family, ridge)
        moments = expected_moments(mixture, x, row_weights)
        old, new = state.moments.log_likelihood, moments.log_likelihood
        change = (new - old) / total_weight
        usable = _finite(mixture) & jnp.isfinite(new)
        slack = rounding * jnp.maximum(1.0, jnp.abs(old) / total_weight) + _ridge_penalty(mixture, ridge)
        fallen = change < -slack
        result = jnp.where(
            fallen, ResultCode.decreased, jnp.where(jnp.abs(change) < tol, ResultCode.successful, _RUNNING)
        )
        result = jnp.where(usable, result, _failure(mixture)).astype(jnp.int32)
        # An unusable step is not taken: the last good mixture stays, with its own log-likelihood.
        kept = usable & ~fallen
        mixture, moments = jax.tree.map(
            lambda new, old: jnp.where(kept, new, old), (mixture, moments), (state.mixture, state.moments)
        )
        num_steps = state.num_steps + jnp.where(kept, 1, 0).astype(jnp.int32)
        trace = state.trace.at[num_steps].set(moments.log_likelihood)
        return _State(mixture, moments, num_steps, result, trace)

    state = jax.lax.while_loop(unfinished, step, state)
    result = jnp.where(state.result == _RUNNING, ResultCode.max_steps_reached, state.result)
    shrunk = _collapsed(state.mixture, state.moments.count, ridge, variances, x.shape[0])
    result = jnp.where(shrunk & (result != ResultCode.nonfinite), ResultCode.collapsed, result)
    return Fit(
        engine="em",
        family=family.name,
        mixture=state.mixture,
        log_likelihood=state.moments.log_likelihood,
        result=result.astype(jnp.int32),
        num_steps=state.num_steps,
        trace=state.trace,
    )


def _ridge_penalty(mixture: Mixture, ridge: Array) -> Array:
    r"""$\tfrac12 \sum_j w_j \operatorname{tr}(\Sigma_j^{-1} \operatorname{diag} \rho)$: what the ridge takes, per row.

    With a ridge the M-step maximises a penalised objective, so the log-likelihood itself may fall by this much.
    """
    squares = jnp.square(mixture.precision_factor)
    leverage = squares if mixture.is_diagonal else squares.sum(-2)
    return 0.5 * (jnp.exp(mixture.log_weights)[:, None] * leverage * ridge[None]).sum()


def _finite(tree: Any) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _failure(mixture: Mixture) -> Array:
    """Why a mixture cannot be used: finite means with a factor that is not finite come from a singular covariance."""
    singular = _finite(mixture.means) & ~_finite(mixture.precision_factor)
    return jnp.where(singular, ResultCode.collapsed, ResultCode.nonfinite)


def _collapsed(mixture: Mixture, count: Array, ridge: Array, variances: Array, num_rows: int) -> Array:
    """Whether a component is empty, or has a variance that is the ridge's or rounding's and not the data's."""
    factor = mixture.precision_factor
    floor = jnp.maximum(_COLLAPSED_WIDTH * ridge, 100 * jnp.finfo(factor.dtype).eps * variances)
    empty = count < 0.5 * count.sum() / num_rows
    # In units of the floor the narrowest direction, along the axes or not, gives the factor a row longer than one.
    squares = jnp.square(factor) * floor.reshape(*(1,) * (factor.ndim - 1), -1)
    longest = squares.max() if mixture.is_diagonal else squares.sum(-1).max()
    return empty.any() | (longest > 1.0)
