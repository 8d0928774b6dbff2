"""EM over rows that stay on the host: NumPy arrays and memory maps too large to be copied, passed over in chunks.

The steps are those of `ascent.py`, taken one at a time from Python. A pass sends the rows to the devices chunk by chunk
and adds up on the host, in float64, what comes back; so memory is that of a few chunks, however many rows there are.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesgmm.engines.ascent import Ascent, Problem
from bayesgmm.engines.fit import Fit
from bayesgmm.likelihood import natural
from bayesgmm.likelihood.expectation import (
    Moments,
    NaturalSums,
    Prepared,
    amplitude_limit,
    centred_sums,
    keeps_variances,
    moments_of_sums,
    natural_sums,
    pooled_second,
    wanted,
)
from bayesgmm.likelihood.moments import positive_count
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.priors.conjugate import ConjugatePrior

_CHUNK_BYTES = 2**23
_IN_FLIGHT = 2  # chunks on their way, for each device
_FRAME_ROWS = 1024


def run_em_streamed(
    start: Mixture,
    x: Float[np.ndarray, "n d"],
    row_weights: Float[np.ndarray, " n"],
    ridge: Array,
    tol: Array,
    prior: ConjugatePrior | None,
    ascent: Ascent,
    devices: list[Any],
) -> Fit:
    """`run_em` over rows on the host, shared out to the devices in chunks."""
    lightest = row_weights.min(initial=np.inf, where=row_weights > 0)
    total_weight = row_weights.sum(dtype=np.float64)
    x_type = x.dtype
    problem = Problem(
        start,
        jnp.asarray(x[:1]),
        jnp.asarray([lightest], x_type),
        ridge,
        tol,
        prior,
        jnp.asarray(ascent.max_steps, jnp.int32),
        jnp.asarray(total_weight, x_type),
    )
    passes = _Passes(problem.start, x, row_weights, ascent, devices)
    state = ascent.begin(problem)
    while bool(ascent.unfinished(problem, state)):
        mixture, stride = _propose(ascent, problem, state)
        state = _judge(ascent, problem, state, mixture, stride, passes.moments(mixture))
    return ascent.end(problem, state)


def column_variances(x: Float[np.ndarray, "n d"], row_weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
    """Weighted variance of every column, in float64, a chunk at a time."""
    total, mean, squares = row_weights.sum(dtype=np.float64), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for rows, weights in _slices(x, row_weights):
        mean += (weights.astype(np.float64) @ rows) / total
    for rows, weights in _slices(x, row_weights):
        squares += weights.astype(np.float64) @ np.square(rows - mean) / total
    return squares


def rows_at(x: np.ndarray, row_weights: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Those rows; a row of weight 0 may hold anything, and another one stands in for it."""
    return np.where(row_weights[index, None] > 0, x[index], x[np.argmax(row_weights > 0)])


def _chunk_rows(x: np.ndarray) -> int:
    return min(len(x), max(1, _CHUNK_BYTES // (x.shape[1] * x.itemsize)))


def _slices(x: np.ndarray, row_weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and weights in chunks of one size, the last filled up with rows of weight 0."""
    size, stand_in = _chunk_rows(x), x[np.argmax(row_weights > 0)]
    for first in range(0, len(x), size):
        rows, weights = x[first : first + size], row_weights[first : first + size]
        missing = size - len(rows)
        if missing:
            rows = np.concatenate([rows, np.broadcast_to(rows[-1:], (missing, x.shape[1]))])
            weights = np.concatenate([weights, np.zeros(missing, weights.dtype)])
        if not (weights[: len(rows) - missing] > 0).all():
            rows = np.where(weights[:, None] > 0, rows, stand_in)
        yield rows, weights


class _Passes:
    """Passes over the rows: the moments of one mixture after another."""

    def __init__(
        self, mixture: Mixture, x: np.ndarray, row_weights: np.ndarray, ascent: Ascent, devices: list[Any]
    ) -> None:
        self.x, self.row_weights, self.devices = x, row_weights, devices
        self.pooled, isotropic = wanted(ascent.family)
        self.kind = natural.kind_of(mixture, pooled=self.pooled, isotropic=isotropic)
        sample = rows_at(x, row_weights, np.linspace(0, len(x) - 1, min(len(x), _FRAME_ROWS)).astype(int))
        frame = natural.frame_of(jnp.asarray(sample), self.kind)
        second = self._sum(_second_of_chunk, mixture, frame) if self.kind == "pooled" else None
        self.prepared = Prepared(frame, None, second)

    def moments(self, mixture: Mixture) -> Moments:
        """By the natural form or the centred one, after the rule of `moments_of_arrays`."""
        form, amplitude = _natural_form(mixture, self.prepared.frame, kind=self.kind)
        if float(amplitude) <= amplitude_limit(self.x.dtype):
            sums = self._sum(functools.partial(_natural_of_chunk, kind=self.kind), mixture, form.theta, self.prepared)
            moments, accurate = _of_natural(
                mixture, form.precision, sums, self.prepared, kind=self.kind, pooled=self.pooled
            )
        else:
            moments, accurate = self._centred(mixture, mixture.means)
        if not bool(accurate):
            found = moments.origin + moments.first / positive_count(moments.count)[:, None]
            moments, _ = self._centred(mixture, found)
        return moments

    def _centred(self, mixture: Mixture, origin: Array) -> tuple[Moments, Array]:
        sums = self._sum(functools.partial(_centred_of_chunk, pooled=self.pooled), mixture, origin)
        moments = Moments(origin, *sums)
        return moments, keeps_variances(moments.count, moments.first, moments.second)

    def _sum(self, function: Callable[..., Any], *shared: Any) -> Any:
        """Sum of `function(rows, row_weights, *shared)` over the chunks; chunks take turns on the devices."""
        shared_of = [jax.device_put(shared, device) for device in self.devices]
        pending: deque[Any] = deque()
        total = None

        def collect(total: Any) -> Any:
            terms = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pending.popleft())
            return terms if total is None else jax.tree.map(np.add, total, terms)

        for index, (rows, weights) in enumerate(_slices(self.x, self.row_weights)):
            turn = index % len(self.devices)
            if len(pending) == _IN_FLIGHT * len(self.devices):
                total = collect(total)
            chunk = jax.device_put((rows, weights), self.devices[turn])
            pending.append(function(*chunk, *shared_of[turn]))
        while pending:
            total = collect(total)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.x.dtype), total)


@functools.partial(jax.jit, static_argnums=0)
def _propose(ascent: Ascent, problem: Problem, state: Any) -> tuple[Mixture, Array]:
    return ascent.propose(problem, state)


@functools.partial(jax.jit, static_argnums=0)
def _judge(ascent: Ascent, problem: Problem, state: Any, mixture: Mixture, stride: Array, moments: Moments) -> Any:
    return ascent.judge(problem, state, mixture, stride, moments, jnp.asarray(True))


@functools.partial(jax.jit, static_argnames="kind")
def _natural_form(mixture: Mixture, frame: natural.Frame, *, kind: natural.Kind) -> tuple[natural.NaturalForm, Array]:
    return natural.natural_form(mixture, frame, kind)


@jax.jit
def _second_of_chunk(x: Array, row_weights: Array, mixture: Mixture, frame: natural.Frame) -> Array:
    return pooled_second(mixture, x, row_weights, frame)


@functools.partial(jax.jit, static_argnames="kind")
def _natural_of_chunk(
    x: Array, row_weights: Array, mixture: Mixture, theta: Array, prepared: Prepared, *, kind: natural.Kind
) -> NaturalSums:
    return natural_sums(mixture, theta, x, row_weights, prepared, kind)


@functools.partial(jax.jit, static_argnames="pooled")
def _centred_of_chunk(
    x: Array, row_weights: Array, mixture: Mixture, origin: Array, *, pooled: bool
) -> tuple[Array, ...]:
    return centred_sums(mixture, x, row_weights, origin, pooled=pooled)


_of_natural = jax.jit(moments_of_sums, static_argnames=("kind", "pooled"))
