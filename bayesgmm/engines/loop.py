"""A compiled loop of passes over the rows: what expectation-maximisation and coordinate ascent have in common."""

import abc
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bayesgmm.likelihood.expectation import LARGE_FIT, Prepared, prepare
from bayesgmm.mixtures.families import Family
from bayesgmm.runtime.lanes import batchable

RUNNING = -1
"""The result of a fit that has not ended."""


@dataclass(frozen=True)
class Loop(abc.ABC):
    """The loop, with what it is compiled for; a `Program` of `lanes.py`.

    A problem has a `start`, its `rows` and a `step_limit`; a state has its `num_steps` and its `result`.
    """

    family: Family
    max_steps: int
    axis_name: str | None = None

    @property
    def large(self) -> int:
        """The cost from which a fit runs on its own: its passes share what they prepare."""
        return LARGE_FIT

    def cost(self, problem: PyTree) -> int:
        """Rows x features x components."""
        return problem.start.means.shape[0] * problem.rows.values.size

    def __call__(self, problem: PyTree) -> PyTree:
        """The result. Under `vmap` small problems share lanes, and large ones run one after the other."""
        return self.run(problem) if self.axis_name is not None else batchable(self)(problem)

    def run(self, problem: PyTree) -> PyTree:
        """The whole loop; its passes share what they can."""
        prepared = self.prepare(problem)
        state = jax.lax.while_loop(
            functools.partial(self.unfinished, problem),
            lambda state: self.step(problem, state, jnp.asarray(True), prepared),
            self.begin(problem),
        )
        return self.end(problem, state)

    def prepare(self, problem: PyTree) -> Prepared | None:
        """What passes over the same rows share."""
        return prepare(problem.start, problem.rows, self.family, axis_name=self.axis_name)

    def unfinished(self, problem: PyTree, state: PyTree) -> Array:
        """Whether another step is due."""
        return (state.result == RUNNING) & (state.num_steps < problem.step_limit)

    @abc.abstractmethod
    def begin(self, problem: PyTree) -> PyTree:
        """The state before the first pass, so that one compiled step evaluates the start and all that follows."""

    @abc.abstractmethod
    def step(self, problem: PyTree, state: PyTree, running: Array, prepared: Prepared | None = None) -> PyTree:
        """A pass over the rows and what goes with it; of a state that is not running, the state itself."""

    def end(self, problem: PyTree, state: PyTree) -> PyTree:
        """The result: the last state itself, or what is made of it."""
        return state
