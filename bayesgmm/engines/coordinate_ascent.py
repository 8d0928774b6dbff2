r"""The compiled loop of coordinate ascent: from one start to a maximum of the evidence lower bound.

The approximation is $q(z)\, q(w) \prod_j q(\mu_j, \Sigma_j)$ with the conjugate form of `ConjugateDistribution`. A step
takes the best $q(z)$ for the numbers in hand, which is the pass over the rows under the expected mixture, then the best
numbers for that $q(z)$, which is their conjugate update. Both are exact maxima, so the bound cannot fall. The pieces of
a stick are also put in the order that gives the highest bound.

Source: Bishop (2006), section 10.2; Attias (2000).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from bayesgmm.engines.fit import ResultCode
from bayesgmm.engines.loop import RUNNING, Loop
from bayesgmm.likelihood.expectation import Prepared, moments_of_rows, psum
from bayesgmm.likelihood.moments import Moments, expected_complete_log_prob, moment_kind
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.batches import part_of
from bayesgmm.numerics.precision import AnyArray
from bayesgmm.priors.conjugate import ConjugatePrior, distribution_of_prior
from bayesgmm.priors.mixing_weights import log_constant_of_weights, update_weights
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution, expected_mixture, log_evidence, update
from bayesgmm.runtime import devices
from bayesgmm.runtime.lanes import run_all
from bayesgmm.runtime.programs import SMALL, room_of_steps

_TOGETHER = 10  # ascents of few rows in one program, however many there are


class Problem(NamedTuple):
    """One approximation: the mixture whose responsibilities it starts from, its rows and what it is stopped by."""

    start: Mixture
    rows: Rows
    tol: Array
    prior: ConjugatePrior
    step_limit: Array
    total_weight: Array


class State(NamedTuple):
    """Where the ascent stands."""

    approximation: ConjugateDistribution
    expected: Mixture  # the mixture of the next pass
    elbo: Array
    num_steps: Array  # -1 before the first pass, which takes the responsibilities of the start
    result: Array
    trace: Array


class CoordinateAscent(Loop):
    """The loop of coordinate ascent."""

    def begin(self, problem: Problem) -> State:
        """The state before the first pass."""
        dtype = problem.rows.dtype
        num_components = problem.start.num_components
        return State(
            approximation=distribution_of_prior(problem.prior, self.family, num_components),
            expected=problem.start,
            elbo=jnp.asarray(-jnp.inf, dtype),
            num_steps=jnp.asarray(-1, jnp.int32),
            result=jnp.asarray(RUNNING, jnp.int32),
            trace=jnp.full(self.max_steps + 1, jnp.nan, dtype),
        )

    def step(self, problem: Problem, state: State, running: Array, prepared: Prepared | None = None) -> State:
        """A pass and the update that follows; of a state that is not running, the state itself."""
        kind = moment_kind(state.expected, self.family)
        moments = moments_of_rows(state.expected, problem.rows, prepared, kind=kind, axis_name=self.axis_name)
        expected, prior = state.expected, distribution_of_prior(problem.prior, self.family, len(moments.count))
        if problem.prior.stick_breaking:
            expected, moments = in_order((expected, moments), _best_order(moments.count, prior))
        approximation = update(prior, moments, self.family)
        elbo = lower_bound(expected, moments, approximation, prior, problem.total_weight)
        change = (elbo - state.elbo) / problem.total_weight
        resolution = float(jnp.finfo(elbo.dtype).eps) * jnp.maximum(1.0, jnp.abs(elbo) / problem.total_weight)
        settled = jnp.abs(change) < jnp.where(problem.tol > 0, jnp.maximum(problem.tol, 2.0 * resolution), 0.0)
        usable = jnp.isfinite(elbo)
        # The first bound is that of the allocations under the start, which may be too narrow for an exact one.
        fallen = usable & (change < -1e3 * resolution) & (state.num_steps > 0)
        result = jnp.where(fallen, ResultCode.decreased, jnp.where(settled, ResultCode.successful, RUNNING))
        result = jnp.where(usable, result, ResultCode.nonfinite).astype(jnp.int32)
        kept = running & usable & ~fallen
        approximation, elbo = jax.tree.map(
            lambda new, old: jnp.where(kept, new, old), (approximation, elbo), (state.approximation, state.elbo)
        )
        expected = jax.tree.map(
            lambda new, old: jnp.where(kept, new, old), expected_mixture(approximation), state.expected
        )
        num_steps = state.num_steps + kept.astype(jnp.int32)
        # Written nowhere where the state stays: traces are too long to be copied in every step.
        place = jnp.where(kept, num_steps, len(state.trace))
        return State(
            approximation=approximation,
            expected=expected,
            elbo=elbo,
            num_steps=num_steps,
            result=jnp.where(running, result, state.result),
            trace=state.trace.at[place].set(elbo, mode="drop"),
        )


def in_order[T](tree: T, order: Array) -> T:
    """Components (k, ...) in this order; what they share stays."""
    return jax.tree.map(lambda leaf: leaf[order] if leaf.ndim and len(leaf) == len(order) else leaf, tree)


def _best_order(count: Array, prior: ConjugateDistribution) -> Int[Array, " k"]:
    """The order of components with so many rows each in which the pieces of a stick give the highest bound.

    Of two pieces that follow each other the longer one comes first; only the last, which is all that the others leave,
    may be any. (Kurihara, Welling & Vlassis 2007, "Collapsed variational Dirichlet process mixture models".)
    """
    k = len(count)
    places = np.array([[j for j in range(k) if j != last] + [last] for last in range(k)])
    orders = jnp.concatenate([np.arange(k)[None], jnp.argsort(-count)[places]])  # as they are first, for ties

    def height(order: Array) -> Array:
        return log_constant_of_weights(*update_weights(*prior.weight_parameters, count[order]))

    return orders[jnp.argmax(jax.vmap(height)(orders))]


def lower_bound(
    expected: Mixture,
    moments: Moments,
    approximation: ConjugateDistribution,
    prior: ConjugateDistribution,
    total_weight: Array,
) -> Array:
    r"""The evidence lower bound, constants included, of the allocations under `expected` and of their best numbers.

    For the best numbers, $q \propto p(\theta) \exp \mathrm E_z \log p(x, z \mid \theta)$, the bound is the entropy of
    the allocations plus the logarithm of that density's integral. The pass gives the entropy: the log-likelihood
    $\sum_i \log \sum_j \rho_{ij}$ under the expected mixture less $\sum_{ij} r_{ij} \log \rho_{ij}$.
    """
    entropy = moments.log_likelihood - expected_complete_log_prob(expected, moments).sum()
    return entropy + log_evidence(approximation, prior, total_weight)


@functools.partial(jax.jit, static_argnames=("family", "max_steps", "axis_name"))
def run_coordinate_ascent(
    start: Mixture,
    rows: Rows,
    tol: Array,
    prior: ConjugatePrior,
    step_limit: Int[AnyArray, ""] | None = None,
    *,
    family: Family,
    max_steps: int,
    axis_name: str | None = None,
) -> State:
    """Coordinate ascent from one start, for use inside other JAX programs; never raises.

    Under `vmap`, small fits share lanes that refill as fits end (`lanes.py`); large ones run one after the other. With
    `axis_name`, rows are those of one device inside `jax.shard_map`. Where a `step_limit` is given, `max_steps` is only
    the room that the trace has.
    """
    limit = jnp.asarray(max_steps if step_limit is None else step_limit, jnp.int32)
    problem = Problem(start, rows, tol, prior, limit, psum(rows.total_weight, axis_name))
    return CoordinateAscent(family, max_steps, axis_name)(problem)


class Task(NamedTuple):
    """What ascents from all starts have in common."""

    rows: Rows
    tol: Array
    prior: ConjugatePrior


def best_ascent(starts: Mixture, task: Task, max_steps: int, *, family: Family, mesh: Mesh | None = None) -> State:
    """The ascent to the highest bound, from starts with a first axis; over the devices of a mesh where there is one.

    Of few rows by programs of a fixed number of ascents side by side, else one after the other; programs have room for
    more steps than these, so that other limits and numbers of starts compile nothing.
    """
    num_starts, room = len(starts.means), room_of_steps(max_steps)
    together = num_starts > 1 and task.rows.values.size * starts.num_components < SMALL
    ways = {"family": family, "room": room}
    best = None
    for first in range(0, num_starts, _TOGETHER if together else 1):
        if together:
            numbers = first + np.arange(_TOGETHER)
            counts = numbers < num_starts
            some = part_of(starts, np.where(counts, numbers, first))
            state = _ascend_together(some, task, np.where(counts, np.int32(max_steps), np.int32(-1)), **ways)
        else:
            state = _ascend_alone(part_of(starts, first), task, np.int32(max_steps), mesh=mesh, **ways)
            state = state if mesh is None else devices.off_mesh(state)
        if best is None or float(state.elbo) > float(best.elbo) or np.isnan(best.elbo):
            best = state
    assert best is not None
    return best._replace(trace=jax.device_put(np.asarray(best.trace)[: max_steps + 1]))


@functools.partial(jax.jit, static_argnames=("family", "room", "mesh"))
def _ascend_alone(
    start: Mixture, task: Task, step_limit: Array, *, family: Family, room: int, mesh: Mesh | None
) -> State:
    run = functools.partial(run_coordinate_ascent, family=family, max_steps=room)
    return devices.shard(run, mesh, start, *task, step_limit)


@functools.partial(jax.jit, static_argnames=("family", "room"))
def _ascend_together(starts: Mixture, task: Task, step_limits: Array, *, family: Family, room: int) -> State:
    """The best of several ascents; those of a negative limit take no pass over the rows."""
    varies = Problem._make(name in ("start", "step_limit") for name in Problem._fields)
    problems = Problem(starts, *task, step_limits, task.rows.total_weight)
    wanted = step_limits >= 0
    states = run_all(CoordinateAscent(family, room), problems, varies, wanted)
    best = jnp.argmax(jnp.where(wanted & jnp.isfinite(states.elbo), states.elbo, -jnp.inf))
    return part_of(states, best)
