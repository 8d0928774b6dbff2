"""The queue of many independent loops: every task gets its own result, whichever way it is run."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesgmm.runtime.lanes import batchable, run_all

pytestmark = pytest.mark.usefixtures("strict")


class Problem(NamedTuple):
    start: jax.Array
    factor: jax.Array


class State(NamedTuple):
    value: jax.Array
    num_steps: jax.Array


@dataclasses.dataclass(frozen=True)
class Doubling:
    """Multiplies by a factor until 1000 is passed; ten to a thousand steps for factors near 1."""

    large: int

    def cost(self, problem):
        return 1

    def begin(self, problem):
        return State(problem.start, jnp.zeros((), jnp.int32))

    def unfinished(self, problem, state):
        return state.value < 1000.0

    def step(self, problem, state, running):
        value = jnp.where(running, state.value * problem.factor, state.value)
        return State(value, state.num_steps + running.astype(jnp.int32))

    def end(self, problem, state):
        return state

    def run(self, problem):
        return jax.lax.while_loop(
            lambda state: self.unfinished(problem, state),
            lambda state: self.step(problem, state, jnp.asarray(True)),
            self.begin(problem),
        )


IN_LANES, IN_TURN = Doubling(large=2), Doubling(large=1)
each_way = pytest.mark.parametrize("program", [IN_LANES, IN_TURN], ids=["in lanes", "in turn"])


def steps_needed(start, factor):
    start, factor = np.asarray(start), np.asarray(factor)
    return np.ceil(np.log(1000.0 / start) / np.log(factor)).astype(int)


@each_way
def test_every_task_of_a_vmap_ends_where_it_would_alone(program, rng):
    starts = jnp.asarray(rng.uniform(1, 10, size=70), jnp.float32)
    factors = jnp.asarray(rng.uniform(1.01, 3, size=70), jnp.float32)
    found = jax.vmap(batchable(program))(Problem(starts, factors))
    np.testing.assert_array_equal(found.num_steps, steps_needed(starts, factors))


@each_way
def test_a_vmap_of_a_vmap_is_one_queue_in_which_some_things_are_shared(program, rng):
    starts = jnp.asarray(rng.uniform(1, 10, size=7), jnp.float32)
    factors = jnp.asarray(rng.uniform(1.05, 3, size=11), jnp.float32)
    over_factors = jax.vmap(lambda start, factor: batchable(program)(Problem(start, factor)), in_axes=(None, 0))
    found = jax.vmap(over_factors, in_axes=(0, None))(starts, factors)
    np.testing.assert_array_equal(found.num_steps, steps_needed(starts[:, None], factors[None]))


@each_way
def test_a_few_problems_end_where_each_would_alone(program, rng):
    starts = jnp.asarray(rng.uniform(1, 10, size=6), jnp.float32)
    found = run_all(program, Problem(starts, jnp.float32(1.5)), Problem(True, False), jnp.ones(6, bool))
    np.testing.assert_array_equal(found.num_steps, steps_needed(starts, 1.5))


def test_large_problems_that_are_not_wanted_are_not_run(rng):
    starts = jnp.asarray(rng.uniform(1, 10, size=6), jnp.float32)
    wanted = jnp.arange(6) < 2
    found = run_all(IN_TURN, Problem(starts, jnp.float32(1.5)), Problem(True, False), wanted)
    np.testing.assert_array_equal(found.num_steps, np.where(wanted, steps_needed(starts, 1.5), 0))


@each_way
def test_under_vmap_a_few_problems_each_go_into_one_queue(program, rng):
    starts = jnp.asarray(rng.uniform(1, 10, size=(9, 6)), jnp.float32)
    factors = jnp.asarray(rng.uniform(1.05, 3, size=9), jnp.float32)

    def all_of(*each):
        return run_all(program, Problem(*each), Problem(True, False), jnp.ones(6, bool))

    found = jax.vmap(all_of)(starts, factors)
    np.testing.assert_array_equal(found.num_steps, steps_needed(starts, factors[:, None]))
