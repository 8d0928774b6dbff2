"""A loop over many independent tasks side by side, in which no lane waits for the slowest of its neighbours.

A vmapped `while_loop` computes every task until the last one ends. Here a fixed number of lanes works through a queue:
tasks that have ended leave their lanes to the next ones, so that the price is that of the steps that are needed, and
the working set that of the lanes. Large tasks run one after the other, each with the whole processor.

`batchable` gives a program this rule for `vmap`, and for a `vmap` of a `vmap`, whose tasks go into one queue.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bayesgmm.numerics.precision import AnyArray

_MAX_LANES = 32


@runtime_checkable
class Program(Protocol):
    """A loop over one problem, hashable; `step` leaves a state as it is where `running` is false."""

    @property
    def large(self) -> int:
        """The cost from which tasks run one after the other."""
        ...

    def cost(self, problem: PyTree) -> int:
        """The size of a step, in numbers."""
        ...

    def begin(self, problem: PyTree) -> PyTree:
        """The first state."""
        ...

    def unfinished(self, problem: PyTree, state: PyTree) -> Array:
        """Whether another step is due."""
        ...

    def step(self, problem: PyTree, state: PyTree, running: Array) -> PyTree:
        """The next state."""
        ...

    def end(self, problem: PyTree, state: PyTree) -> PyTree:
        """The result."""
        ...

    def run(self, problem: PyTree) -> PyTree:
        """The result of the whole loop, of a problem on its own."""
        ...


@functools.cache
def batchable(program: Program) -> Callable[[PyTree], PyTree]:
    """`program.run`, with a rule of its own under `vmap`."""
    run = jax.custom_batching.custom_vmap(program.run)

    @run.def_vmap
    def run_batch(size: int, batched: list[PyTree], problem: PyTree) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(problem)
        places = tuple((1, size) if vary else None for vary in jax.tree.leaves(batched[0]))
        results = _queue(program, structure, places, size)(leaves)
        return results, jax.tree.map(lambda _: True, results)

    return run


def run_all(program: Program, problems: PyTree, varies: PyTree, wanted: Array) -> PyTree:
    """Results of a few problems, stacked, of which those leaves are stacked that `varies` marks as true.

    Small ones run side by side until the last one ends, large ones one after the other, with zeros for those that are
    not `wanted`, which have no step due. Under `vmap` there may be many, which go into one queue.
    """
    leaves, structure = jax.tree.flatten(problems)
    stacked = jax.tree.leaves(jax.tree.broadcast(varies, problems))
    axes = structure.unflatten(0 if vary else None for vary in stacked)
    in_lanes = functools.partial(jax.vmap, in_axes=(axes, 0))

    def side_by_side(problems: PyTree) -> PyTree:
        def running(states: PyTree) -> Array:
            return in_lanes(program.unfinished)(problems, states)

        def step(states: PyTree) -> PyTree:
            return jax.vmap(program.step, in_axes=(axes, 0, 0))(problems, states, running(states))

        first = jax.vmap(program.begin, in_axes=(axes,))(problems)
        states = jax.lax.while_loop(lambda states: running(states).any(), step, first)
        return in_lanes(program.end)(problems, states)

    @jax.custom_batching.custom_vmap
    def run(leaves: list[Array], wanted: Array) -> PyTree:
        def load(index: Array) -> PyTree:
            return structure.unflatten(
                leaf[index] if vary else leaf for leaf, vary in zip(leaves, stacked, strict=True)
            )

        def alone(index: Array) -> PyTree:
            problem = load(index)
            # Those of a run, without tracing its steps once more.
            shapes = jax.eval_shape(lambda problem: program.end(problem, program.begin(problem)), problem)
            return jax.lax.cond(
                wanted[index],
                lambda: program.run(problem),
                lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
            )

        if program.cost(jax.eval_shape(load, jnp.asarray(0))) < program.large:
            return side_by_side(structure.unflatten(leaves))
        return jax.lax.map(alone, jnp.arange(len(wanted), dtype=jnp.int32))

    @run.def_vmap
    def run_batch(_: int, batched: list[PyTree], leaves: list[Array], wanted: Array) -> tuple[PyTree, PyTree]:
        each = jax.vmap(batchable(program), in_axes=(axes,))
        outer = [0 if vary else None for vary in batched[0]]
        results = jax.vmap(lambda leaves: each(structure.unflatten(leaves)), in_axes=(outer,))(leaves)
        return results, jax.tree.map(lambda _: True, results)

    return run(leaves, wanted)


# Where a leaf of problem number i is found: everywhere the same (None), or at (i // stride) % length.
_Place = tuple[int, int] | None


@functools.cache
def _queue(
    program: Program, structure: PyTree, places: tuple[_Place, ...], size: int
) -> Callable[[list[Array]], PyTree]:
    """The runs of `size` problems."""

    def load(leaves: list[Array], index: Array) -> PyTree:
        return structure.unflatten(
            leaf if place is None else leaf[(index // place[0]) % place[1]]
            for leaf, place in zip(leaves, places, strict=True)
        )

    @jax.custom_batching.custom_vmap
    def run(leaves: list[AnyArray]) -> PyTree:
        axes = structure.unflatten(None if place is None else 0 for place in places)
        one = jax.eval_shape(lambda leaves: load(leaves, jnp.asarray(0)), leaves)
        if program.cost(one) >= program.large:
            return jax.lax.map(lambda index: program.run(load(leaves, index)), jnp.arange(size, dtype=jnp.int32))
        return _run_in_lanes(program, lambda index: load(leaves, index), axes, size, min(_MAX_LANES, size))

    @run.def_vmap
    def run_batch(outer: int, batched: list[PyTree], leaves: list[AnyArray]) -> tuple[PyTree, PyTree]:
        more, more_places = [], []
        for leaf, place, vary in zip(leaves, places, batched[0], strict=True):
            if vary and place is not None:
                stride, length = place
                if stride * length < size:  # the same ones come round again
                    leaf, stride, length = leaf[:, (jnp.arange(size) // stride) % length], 1, size
                leaf = leaf.reshape(outer * length, *leaf.shape[2:])
                more_places.append((stride, outer * length))
            else:
                more_places.append((size, outer) if vary else place)
            more.append(leaf)
        results = _queue(program, structure, tuple(more_places), outer * size)(more)
        results = jax.tree.map(lambda leaf: leaf.reshape(outer, size, *leaf.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    return run


class _Lanes(NamedTuple):
    tasks: Array
    active: Array
    problems: PyTree
    states: PyTree
    following: Array
    results: PyTree


def _run_in_lanes(program: Program, load: Callable[[Array], PyTree], axes: PyTree, size: int, num_lanes: int) -> PyTree:
    # Lanes are filled several at a time: to load a problem costs something for every lane.
    few = max(1, num_lanes // 4)
    in_lanes = functools.partial(jax.vmap, in_axes=(axes, 0))

    def load_lanes(tasks: Array) -> PyTree:
        return jax.vmap(load, out_axes=axes)(jnp.minimum(tasks, size - 1))

    def choose(mask: Array, new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)

    def running(lanes: _Lanes) -> Array:
        return lanes.active & in_lanes(program.unfinished)(lanes.problems, lanes.states)

    def work(lanes: _Lanes) -> _Lanes:
        tolerated = jnp.where(lanes.following < size, few, num_lanes)

        def busy(states: PyTree) -> Array:
            num_running = running(lanes._replace(states=states)).sum()
            return (num_running > 0) & (num_lanes - num_running < tolerated)

        def step(states: PyTree) -> PyTree:
            now = running(lanes._replace(states=states))
            return jax.vmap(program.step, in_axes=(axes, 0, 0))(lanes.problems, states, now)

        lanes = lanes._replace(states=jax.lax.while_loop(busy, step, lanes.states))
        ended = lanes.active & ~running(lanes)
        found = in_lanes(program.end)(lanes.problems, lanes.states)
        target = jnp.where(ended, lanes.tasks, size)
        results = jax.tree.map(lambda whole, part: whole.at[target].set(part, mode="drop"), lanes.results, found)
        candidates = lanes.following + jnp.cumsum(ended, dtype=jnp.int32) - 1
        filled = ended & (candidates < size)
        index = jnp.where(filled, candidates, lanes.tasks)
        problems = load_lanes(index)
        states = choose(filled, jax.vmap(program.begin, in_axes=(axes,))(problems), lanes.states)
        following = lanes.following + ended.sum(dtype=jnp.int32)
        return _Lanes(index, jnp.where(ended, filled, lanes.active), problems, states, following, results)

    index = jnp.arange(num_lanes, dtype=jnp.int32)
    problems = load_lanes(index)
    states = jax.vmap(program.begin, in_axes=(axes,))(problems)
    shapes = jax.eval_shape(in_lanes(program.end), problems, states)
    results = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype), shapes)
    first = _Lanes(index, index < size, problems, states, jnp.asarray(num_lanes, jnp.int32), results)
    return jax.lax.while_loop(lambda lanes: lanes.active.any(), work, first).results
