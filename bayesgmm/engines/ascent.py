r"""The compiled loop of expectation-maximisation: from one start to the end of its ascent.

A step is the M-step of the moments in hand, then one pass over the rows that gives the new mixture's log-likelihood and
its moments; so the log-likelihood reported always belongs to the mixture reported. Under a conjugate prior the M-step
is that of the posterior and the objective is log-likelihood plus log prior density.

Source: Dempster, Laird & Rubin (1977); McLachlan & Peel (2000), section 3.2.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesgmm.conjugate import ConjugatePrior, log_prior, maximise_posterior
from bayesgmm.families import Family
from bayesgmm.mixture import Mixture
from bayesgmm.moments import Moments, expected_moments, maximise
from bayesgmm.results import Fit, ResultCode

_RUNNING = -1
_COLLAPSED_WIDTH = 10.0  # a component is a point once its variance is within this factor of the ridge
_LONGEST_FIRST_STRIDE, _STRIDE_GROWTH = 1e4, 4.0
_ACCELERATED_TOL = 0.1  # of tol: extrapolation comes to a point of small steps from elsewhere, often earlier on the way


class _State(NamedTuple):
    mixture: Mixture
    moments: Moments
    objective: Array
    previous: Mixture  # the mixture one plain step ago, where the next step may extrapolate
    extrapolate: Array
    longest_stride: Array
    num_steps: Array
    result: Array
    trace: Array


@functools.partial(jax.jit, static_argnames=("family", "max_steps", "accelerate", "axis_name"))
def run_em(
    start: Mixture,
    x: Float[Array, "n d"],
    row_weights: Float[Array, " n"],
    ridge: Float[Array, " d"],
    tol: Float[Array, ""],
    *,
    family: Family,
    max_steps: int,
    prior: ConjugatePrior | None = None,
    step_limit: Any = None,
    accelerate: bool = False,
    axis_name: str | None = None,
) -> Fit:
    r"""EM from one start: the compiled core of `fit_em`, for use inside other JAX programs. Never raises.

    With `accelerate`, every second step may go further along the path of the last two: from $\theta_0$ and its plain
    steps $\theta_1, \theta_2$, to $\theta_0 + 2 \alpha r + \alpha^2 v$ with $r = \theta_1 - \theta_0$,
    $v = \theta_2 - \theta_1 - r$ and $\alpha = \lVert r \rVert / \lVert v \rVert$, in log-weights, means and
    log-Cholesky factors. It is taken only where the objective does not fall below that of $\theta_1$; only plain
    steps can end the run. (SQUAREM: Varadhan & Roland 2008, scheme S3 of section 6.)

    `step_limit` is a limit known only at run time, below `max_steps`, for which the trace has room.

    With `axis_name`, rows are those of one device inside `jax.shard_map`, and moments are summed over that axis.
    """
    step_limit = max_steps if step_limit is None else step_limit
    total_weight = row_weights.sum()
    if axis_name is not None:
        total_weight = jax.lax.psum(total_weight, axis_name)

    def evaluate(mixture: Mixture) -> tuple[Moments, Array]:
        moments = expected_moments(mixture, x, row_weights, pooled=family.shared, axis_name=axis_name)
        if prior is None:
            return moments, moments.log_likelihood
        return moments, moments.log_likelihood + log_prior(mixture, family, prior)

    def plain_step(moments: Moments) -> Mixture:
        if prior is None:
            return maximise(moments, family, ridge)
        return maximise_posterior(moments, family, prior, ridge)

    moments, objective = evaluate(start)
    trace = jnp.full(max_steps + 1, jnp.nan, x.dtype).at[0].set(objective)
    result = jnp.where(jnp.isfinite(objective), _RUNNING, _failure(start)).astype(jnp.int32)
    state = _State(
        mixture=start,
        moments=moments,
        objective=objective,
        previous=start,
        extrapolate=jnp.asarray(False),
        longest_stride=jnp.asarray(_LONGEST_FIRST_STRIDE, x.dtype),
        num_steps=jnp.asarray(0, jnp.int32),
        result=result,
        trace=trace,
    )
    if accelerate:
        tol = _ACCELERATED_TOL * tol
    # Rounding of a sum of n log-densities, with room: a fall beyond it is a fall.
    rounding = 1e3 * jnp.finfo(x.dtype).eps

    def unfinished(state: _State) -> Array:
        return (state.result == _RUNNING) & (state.num_steps < step_limit)

    def step(state: _State) -> _State:
        mixture, far = plain_step(state.moments), state.extrapolate
        previous, longest_stride = state.previous, state.longest_stride
        stride = longest_stride
        if accelerate:
            mixture, stride = _further(state, mixture)
        moments, objective = evaluate(mixture)
        change = (objective - state.objective) / total_weight
        usable = _finite(mixture) & jnp.isfinite(objective)
        slack = rounding * jnp.maximum(1.0, jnp.abs(state.objective) / total_weight) + _ridge_penalty(mixture, ridge)
        fallen = change < jnp.where(far, 0.0, -slack)
        # An unusable step is not taken: the last good mixture stays, with its own log-likelihood.
        kept = usable & ~fallen
        result = jnp.where(
            fallen, ResultCode.decreased, jnp.where(jnp.abs(change) < tol, ResultCode.successful, _RUNNING)
        )
        result = jnp.where(usable, result, _failure(mixture))
        result = jnp.where(far, _RUNNING, result).astype(jnp.int32)
        if accelerate:
            previous = state.mixture
            grown = jnp.where(stride >= longest_stride, _STRIDE_GROWTH * longest_stride, longest_stride)
            shrunk = jnp.maximum(longest_stride / _STRIDE_GROWTH, 1.0 + 1e-3)
            longest_stride = jnp.where(far, jnp.where(kept, grown, shrunk), longest_stride)
        mixture, moments, objective = jax.tree.map(
            lambda new, old: jnp.where(kept, new, old),
            (mixture, moments, objective),
            (state.mixture, state.moments, state.objective),
        )
        # A pass over the rows is a step, whether it was kept or not; only a run that ends on it leaves it out.
        num_steps = state.num_steps + (kept | far).astype(jnp.int32)
        return _State(
            mixture=mixture,
            moments=moments,
            objective=objective,
            previous=previous,
            extrapolate=jnp.asarray(accelerate) & ~far,
            longest_stride=longest_stride,
            num_steps=num_steps,
            result=result,
            trace=state.trace.at[num_steps].set(objective),
        )

    state = jax.lax.while_loop(unfinished, step, state)
    result = jnp.where(state.result == _RUNNING, ResultCode.max_steps_reached, state.result)
    shrunk = _collapsed(state.mixture, state.moments.count, ridge, total_weight / _num_rows(x, axis_name), prior)
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


def _further(state: _State, plain: Mixture) -> tuple[Mixture, Array]:
    """The extrapolated mixture where it is its turn, else the plain step; and the length of the stride."""
    scale = 1.0 / _mean_precision_scale(plain)
    old, now, new = (_coordinates(mixture, scale) for mixture in (state.previous, state.mixture, plain))
    r = jax.tree.map(jnp.subtract, now, old)
    v = jax.tree.map(lambda new, now, r: new - now - r, new, now, r)
    stride = jnp.clip(_norm(r) / jnp.maximum(_norm(v), jnp.finfo(scale.dtype).tiny), 1.0, state.longest_stride)
    far = jax.tree.map(lambda old, r, v: old + 2.0 * stride * r + jnp.square(stride) * v, old, r, v)
    far = _from_coordinates(far, scale, plain)
    turn = state.extrapolate & _finite(far)
    return jax.tree.map(lambda far, plain: jnp.where(turn, far, plain), far, plain), stride


def _mean_precision_scale(mixture: Mixture) -> Float[Array, " d"]:
    factor = mixture.precision_factor
    return (factor if mixture.is_diagonal else jnp.diagonal(factor, axis1=1, axis2=2)).mean(0)


def _coordinates(mixture: Mixture, scale: Array) -> tuple[Array, Array, Array, Array]:
    """Log-weights, means, and the factor's logarithmic diagonal and rest, free of units and of constraints."""
    factor = mixture.precision_factor * scale
    if mixture.is_diagonal:
        return mixture.log_weights, mixture.means / scale[None], jnp.log(factor), jnp.zeros((), scale.dtype)
    diagonal = jnp.diagonal(factor, axis1=1, axis2=2)
    return mixture.log_weights, mixture.means / scale[None], jnp.log(diagonal), jnp.tril(factor, -1)


def _from_coordinates(coordinates: tuple[Array, Array, Array, Array], scale: Array, like: Mixture) -> Mixture:
    log_weights, means, log_diagonal, rest = coordinates
    factor = jnp.exp(log_diagonal)
    if not like.is_diagonal:
        factor = rest + factor[:, :, None] * jnp.eye(len(scale), dtype=scale.dtype)[None]
    return Mixture(jax.nn.log_softmax(log_weights), means * scale[None], factor / scale)


def _norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def _num_rows(x: Array, axis_name: str | None) -> Any:
    return len(x) if axis_name is None else jax.lax.psum(len(x), axis_name)


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


def _collapsed(
    mixture: Mixture, count: Array, ridge: Array, weight_of_a_row: Array, prior: ConjugatePrior | None
) -> Array:
    """Whether a component is empty, or has a variance that is the ridge's or rounding's and not the data's.

    Under a prior an empty component is no accident: it has the prior's own mode.
    """
    factor = mixture.precision_factor
    floor = jnp.maximum(_COLLAPSED_WIDTH * ridge, 100 * jnp.finfo(factor.dtype).eps * _total_variances(mixture))
    # In units of the floor the narrowest direction, along the axes or not, gives the factor a row longer than one.
    squares = jnp.square(factor) * floor.reshape(*(1,) * (factor.ndim - 1), -1)
    longest = squares.max() if mixture.is_diagonal else squares.sum(-1).max()
    empty = (count < 0.5 * weight_of_a_row).any() if prior is None else False
    return empty | (longest > 1.0)


def _total_variances(mixture: Mixture) -> Float[Array, " d"]:
    """Variance of every feature under the mixture; after an M-step, that of the rows."""
    weights = jnp.exp(mixture.log_weights)
    centred = mixture.means - jnp.matmul(weights, mixture.means, precision="highest")[None]
    return jnp.matmul(weights, jnp.square(mixture.scales) + jnp.square(centred), precision="highest")
