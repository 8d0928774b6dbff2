"""EM over rows that stay on the host: NumPy arrays and memory maps too large to be copied, passed over in chunks.

The steps are those of `ascent.py`, taken one at a time from Python. A pass sends the rows to the devices chunk by chunk
and adds up on the host, in float64, what comes back; so memory is that of a few chunks, however many rows there are.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bayesgmm.engines.ascent import Ascent, Problem, State, StopRule
from bayesgmm.engines.fit import Fit
from bayesgmm.likelihood import natural
from bayesgmm.likelihood.expectation import Centred, moments_by_rule, pass_over, second_moment_of_rows
from bayesgmm.likelihood.moments import MomentKind, Moments, Sums, moment_kind
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray
from bayesgmm.priors.conjugate import ConjugatePrior

_IN_FLIGHT = 2  # chunks on their way, for each device


def run_em_streamed(
    start: Mixture,
    rows: Rows,
    ridge: AnyArray,
    stop: StopRule,
    prior: ConjugatePrior | None,
    ascent: Ascent,
    devices: Sequence[Any],
) -> Fit:
    """`run_em` over rows on the host, of which the devices get chunks in turn."""
    weights = np.asarray(rows.weights)
    lightest = weights.min(initial=np.inf, where=weights > 0)
    problem = Problem(
        start=start,
        rows=Rows(jnp.asarray(rows.values[:1]), jnp.asarray([lightest], rows.dtype)),
        ridge=ridge,
        stop=stop,
        prior=prior,
        step_limit=jnp.asarray(ascent.max_steps, jnp.int32),
        total_weight=jnp.asarray(weights.sum(dtype=np.float64), rows.dtype),
    )
    kind = moment_kind(start, ascent.family)
    num_sampled = min(len(rows), natural.FRAME_ROWS)
    sample = rows.at(np.linspace(0, len(rows) - 1, num_sampled).astype(int))
    stand_in = rows.values[np.argmax(weights > 0)]
    frame = natural.frame_of(jnp.asarray(np.where(sample.weights[:, None] > 0, sample.values, stand_in)), kind)
    total = functools.partial(_sum_over_chunks, rows, devices)
    size = natural.block_size(rows, start.num_components, kind)
    second = total(_second_of_chunk, frame, size=size, kind=kind) if kind.features == "linear" else None

    def moments(mixture: Mixture) -> Moments:
        return moments_by_rule(mixture, frame, second, kind, lambda form: total(_pass_over_chunk, form), _at_once)

    state = ascent.begin(problem)
    while bool(ascent.unfinished(problem, state)):
        mixture, stride = _propose(ascent, problem, state)
        state = _judge(ascent, problem, state, mixture, stride, moments(mixture))
    return ascent.end(problem, state)


def column_moments_in_chunks(rows: Rows) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Weighted mean and variance of every column, in float64, a chunk at a time."""
    weights = np.asarray(rows.weights)
    total = weights.sum(dtype=np.float64)
    mean, squares = np.zeros(rows.num_features), np.zeros(rows.num_features)
    for chunk in rows.chunks():
        mean += chunk.weights.astype(np.float64) @ chunk.values / total
    for chunk in rows.chunks():
        squares += chunk.weights.astype(np.float64) @ np.square(chunk.values - mean) / total
    return mean, squares


def _at_once[R](which: Array, if_true: Callable[[], R], if_false: Callable[[], R]) -> R:
    """`jax.lax.cond` outside of JAX programs."""
    return if_true() if bool(which) else if_false()


def _sum_over_chunks[R](
    rows: Rows, devices: Sequence[Any], function: Callable[..., R], shared: PyTree, **options: Any
) -> R:
    """Sum of `function(rows, shared)` over the chunks; chunks take turns on the devices."""
    shared_of = [jax.device_put(shared, device) for device in devices]
    pending: deque[R] = deque()
    total = None

    def collect(total: R | None) -> R:
        terms = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pending.popleft())
        return terms if total is None else jax.tree.map(np.add, total, terms)

    for index, chunk in enumerate(rows.chunks()):
        turn = index % len(devices)
        if len(pending) == _IN_FLIGHT * len(devices):
            total = collect(total)
        pending.append(function(jax.device_put(chunk, devices[turn]), shared_of[turn], **options))
    while pending:
        total = collect(total)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, rows.dtype), total)


@functools.partial(jax.jit, static_argnums=0)
def _propose(ascent: Ascent, problem: Problem, state: State) -> tuple[Mixture, Array]:
    return ascent.propose(problem, state)


@functools.partial(jax.jit, static_argnums=0)
def _judge(ascent: Ascent, problem: Problem, state: State, mixture: Mixture, stride: Array, moments: Moments) -> State:
    return ascent.judge(problem, state, mixture, stride, moments, jnp.asarray(True))


@functools.partial(jax.jit, static_argnames=("size", "kind"))
def _second_of_chunk(rows: Rows, frame: natural.Frame, *, size: int, kind: MomentKind) -> Array:
    return second_moment_of_rows(rows, frame, min(size, len(rows)), kind)


@jax.jit
def _pass_over_chunk(rows: Rows, form: Centred | natural.Natural) -> Sums:
    return pass_over(form, rows)[0]
