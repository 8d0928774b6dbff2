"""Seconds per leapfrog step, against the same model written with NumPyro's `MixtureSameFamily`.

Both have the same priors and the same coordinates, and the potential in which `fit_nuts` moves is the same function as
NumPyro's of the peer, which is checked. It is timed by itself, value and gradient a hundred times in one loop, and
where it is used: in NumPyro's NUTS, without adaptation and with a step so small that every tree is complete, as
seconds per leapfrog of so many draws. The peer solves triangular systems by OpenBLAS, on one and on two threads in
turn, and the faster count is taken.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from tests.benchmarks import bayesian_peers, bayesian_subjects, subjects
from tests.benchmarks.data import simulate
from tests.benchmarks.peers import THREADS
from tests.benchmarks.rows import Row, Target, duration
from tests.benchmarks.timing import medians, seconds_of, take_turns

SECTION = "leapfrogs"
SHAPE = (4096, 5, 4)
DTYPES = ("float64", "float32")
LEAST_SPEEDUP = 3.0
EVALUATIONS = 100
TREE_DEPTH, STEP_SIZE = 6, 1e-5  # 63 leapfrogs that turn nowhere
AGREEMENT = {"float64": 1e-9, "float32": 1e-4}  # relative difference of potentials and of their gradients
PEER = "MixtureSameFamily"

Potential = tuple[Callable[[Any, Any], jax.Array], Any, dict[str, Any]]
"""The potential as a function of a point and of data, the data, and a point."""


def run(quick: bool) -> Iterator[Row]:
    problem = simulate(*SHAPE)
    for dtype in DTYPES:
        x = subjects.place(problem.x, dtype)
        ours = bayesian_subjects.potential_and_start(x, problem.start, apart=0.1)
        numbers = bayesian_peers.numbers_of(problem.x.astype(dtype), SHAPE[2])
        theirs = (_potential_of(bayesian_peers.standardised_mixture_same_family(), numbers), x, ours[2])
        yield potentials(ours, theirs, dtype, 2 if quick else 7)
        yield within_nuts(ours, theirs, dtype, 2 if quick else 7, 10 if quick else 50)


def _potential_of(model: Callable[..., None], numbers: Any) -> Callable[[Any, Any], jax.Array]:
    """NumPyro's own, of a model with these numbers of its prior."""
    from numpyro.infer.util import potential_energy

    return lambda point, x: potential_energy(model, (x, numbers), {}, point)


def evaluations(potential: Potential, dtype: str) -> Callable[[], Any]:
    """Value and gradient of the potential at one point after another; the points hardly differ."""
    function, data, point = potential

    @jax.jit
    def evaluate(point: Any, data: Any) -> Any:
        def step(point: Any, _: None) -> Any:
            value, gradient = jax.value_and_grad(function)(point, data)
            return jax.tree.map(lambda at, slope: at - 1e-12 * slope, point, gradient), (value, gradient)

        values, gradients = jax.lax.scan(step, point, length=EVALUATIONS)[1]
        return values[0], jax.tree.map(lambda leaf: leaf[0], gradients)

    return functools.partial(_in_precision, dtype, evaluate, point, data)


def _in_precision(dtype: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with subjects.precision(dtype):
        return function(*args, **options)


def on_threads(threads: int, function: Callable[[], Any]) -> Any:
    """The result when it is there, with so many threads of OpenBLAS."""
    with threadpool_limits(threads, "blas"):
        return jax.block_until_ready(function())


def potentials(ours: Potential, theirs: Potential, dtype: str, repeats: int) -> Row:
    peer = evaluations(theirs, dtype)
    programs = {"ours": evaluations(ours, dtype)}
    programs |= {threads: functools.partial(on_threads, threads, peer) for threads in THREADS}
    first, (value, gradient) = seconds_of(programs["ours"])
    _, (peer_value, peer_gradient) = seconds_of(programs[1])
    times = {name: seconds / EVALUATIONS for name, seconds in medians(take_turns(programs, repeats)).items()}
    scale = max(float(np.abs(leaf).max()) for leaf in peer_gradient.values())
    apart = max(
        abs(float(value) / float(peer_value) - 1),
        *(float(np.abs(gradient[name] - peer_gradient[name]).max()) / scale for name in peer_gradient),
    )
    return _row(
        "value and gradient of the potential",
        dtype,
        times["ours"],
        {threads: times[threads] for threads in THREADS},
        agrees=apart <= AGREEMENT[dtype],
        compile_seconds=max(0.0, first - EVALUATIONS * times["ours"]),
        extra={"relative_difference": apart, "potential": float(value), "peer_potential": float(peer_value)},
    )


def trees(potential: Potential, dtype: str, num_draws: int) -> Callable[[], Any]:
    """So many draws of NumPyro's NUTS without adaptation, compiled together; the leapfrogs of each draw."""
    from numpyro.infer import NUTS

    function, data, point = potential

    @jax.jit
    def draws(point: Any, data: Any) -> Any:
        kernel = NUTS(
            potential_fn=lambda point: function(point, data),
            step_size=STEP_SIZE,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            max_tree_depth=TREE_DEPTH,
        )
        state = kernel.init(jax.random.key(0), 0, point, (), {})

        def draw(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = kernel.sample(state, (), {})
            return state, state.num_steps

        return jax.lax.scan(draw, state, length=num_draws)[1]

    return functools.partial(_in_precision, dtype, draws, point, data)


def within_nuts(ours: Potential, theirs: Potential, dtype: str, repeats: int, num_draws: int) -> Row:
    peer = trees(theirs, dtype, num_draws)
    programs = {"ours": trees(ours, dtype, num_draws)}
    programs |= {threads: functools.partial(on_threads, threads, peer) for threads in THREADS}
    first, steps = seconds_of(programs["ours"])
    _, peer_steps = seconds_of(programs[1])
    complete = all((np.asarray(taken) == 2**TREE_DEPTH - 1).all() for taken in (steps, peer_steps))
    total = int(np.asarray(steps).sum())
    times = {name: seconds / total for name, seconds in medians(take_turns(programs, repeats)).items()}
    return _row(
        "leapfrog step within NUTS",
        dtype,
        times["ours"],
        {threads: times[threads] for threads in THREADS},
        agrees=complete,
        compile_seconds=max(0.0, first - total * times["ours"]),
        steps=total,
        note="" if complete else "a tree turned: the leapfrogs are not as many as supposed",
    )


def _row(what: str, dtype: str, seconds: float, peer_seconds: dict[int, float], **others: Any) -> Row:
    threads = min(peer_seconds, key=peer_seconds.__getitem__)
    each = ", ".join(f"{duration(value)} on {count} thread{'s' * (count > 1)}" for count, value in peer_seconds.items())
    by_threads = {str(count): value for count, value in peer_seconds.items()}
    return Row(
        section=SECTION,
        what=what,
        peer=PEER,
        dtype=dtype,
        family="full",
        shape=SHAPE,
        seconds=seconds,
        peer_seconds=peer_seconds[threads],
        ratio=peer_seconds[threads] / seconds,
        target=Target("ratio", at_least=LEAST_SPEEDUP),
        note="; ".join(part for part in (f"the peer {each}", others.pop("note", "")) if part),
        extra={"peer_seconds_by_threads": by_threads, **others.pop("extra", {})},
        **others,
    )
