"""Seconds per leapfrog step, against the same model written with NumPyro's `MixtureSameFamily`.

Both models have the same priors and the same coordinates, and NumPyro's potential of both is the same function, which
is checked. It is timed by itself, value and gradient a hundred times in one loop, and where it is used: in NUTS with a
step so small that every tree is complete, as the time of a run of many draws less that of a run of few, over the
difference in leapfrogs. The peer solves triangular systems by OpenBLAS, on one and on two threads in turn, and the
faster count is taken.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from tests.benchmarks import bayesian_peers, bayesian_subjects, subjects
from tests.benchmarks.data import simulate
from tests.benchmarks.iterations import PerStep
from tests.benchmarks.peers import THREADS
from tests.benchmarks.rows import Row, Target
from tests.benchmarks.timing import medians, seconds_of, take_turns

SECTION = "leapfrogs"
SHAPE = (4096, 5, 4)
DTYPES = ("float64", "float32")
LEAST_SPEEDUP = 3.0
EVALUATIONS = 100
TREE_DEPTH, STEP_SIZE = 6, 1e-5  # 63 leapfrogs that turn nowhere
AGREEMENT = {"float64": 1e-9, "float32": 1e-4}  # relative difference of potentials and of their gradients
PEER = "MixtureSameFamily"

Model = tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]


def run(quick: bool) -> Iterator[Row]:
    problem = simulate(*SHAPE)
    for dtype in DTYPES:
        x = subjects.place(problem.x, dtype)
        ours = bayesian_subjects.model_and_start(x, problem.start)
        numbers = bayesian_peers.numbers_of(problem.x.astype(dtype), SHAPE[2])
        theirs = (bayesian_peers.standardised_mixture_same_family(), (x, numbers), ours[2])
        yield potentials(ours, theirs, dtype, 2 if quick else 7)
        yield within_nuts(ours, theirs, dtype, 1 if quick else 3, 30 if quick else 100)


def evaluations(model: Model, dtype: str) -> Callable[[], Any]:
    """Value and gradient of the potential at one point after another; the points hardly differ."""
    from numpyro.infer.util import potential_energy

    function, (x, *others), point = model

    @jax.jit
    def evaluate(point: Any, x: jax.Array) -> Any:
        def potential(point: Any) -> jax.Array:
            return potential_energy(function, (x, *others), {}, point)

        def step(point: Any, _: None) -> Any:
            value, gradient = jax.value_and_grad(potential)(point)
            return jax.tree.map(lambda at, slope: at - 1e-12 * slope, point, gradient), (value, gradient)

        values, gradients = jax.lax.scan(step, point, length=EVALUATIONS)[1]
        return values[0], jax.tree.map(lambda leaf: leaf[0], gradients)

    return functools.partial(_in_precision, dtype, evaluate, point, x)


def _in_precision(dtype: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with subjects.precision(dtype):
        return function(*args, **options)


def on_threads(threads: int, function: Callable[[], Any]) -> Any:
    """The result when it is there, with so many threads of OpenBLAS."""
    with threadpool_limits(threads, "blas"):
        return jax.block_until_ready(function())


def potentials(ours: Model, theirs: Model, dtype: str, repeats: int) -> Row:
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


def nuts(model: Model, dtype: str, num_draws: int) -> Callable[[], Any]:
    """A chain without adaptation, ready to be run again and again; it is compiled when it is first run."""
    from numpyro.infer import MCMC, NUTS

    function, args, point = model
    kernel = NUTS(
        function, step_size=STEP_SIZE, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=TREE_DEPTH
    )
    chain = MCMC(kernel, num_warmup=0, num_samples=num_draws, progress_bar=False)

    def draw() -> Any:
        chain.run(jax.random.key(0), *args, init_params=point, extra_fields=("num_steps",))
        return chain.get_extra_fields()["num_steps"]

    return functools.partial(_in_precision, dtype, draw)


def within_nuts(ours: Model, theirs: Model, dtype: str, repeats: int, num_draws: int) -> Row:
    leapfrogs = 2**TREE_DEPTH - 1

    def of(model: Model, threads: int | None) -> PerStep:
        runs = (nuts(model, dtype, count) for count in (2 * num_draws, num_draws))
        if threads is not None:
            runs = (functools.partial(on_threads, threads, run) for run in runs)
        return PerStep(*runs, num_draws * leapfrogs, [])

    mine, others = of(ours, None), {threads: of(theirs, threads) for threads in THREADS}
    compile_seconds, steps = mine.warm_up()
    peer_steps = [other.warm_up()[1] for other in others.values()]
    for _ in range(repeats):
        for subject in (mine, *others.values()):
            subject.measure()
    complete = all((np.asarray(taken) == leapfrogs).all() for taken in (steps, *peer_steps))
    return _row(
        "leapfrog step within NUTS",
        dtype,
        mine.seconds,
        {threads: other.seconds for threads, other in others.items()},
        agrees=complete,
        compile_seconds=compile_seconds,
        steps=int(np.asarray(steps).sum()),
        note="" if complete else "a tree turned: the leapfrogs are not as many as supposed",
    )


def _row(what: str, dtype: str, seconds: float, peer_seconds: dict[int, float], **others: Any) -> Row:
    threads = min(peer_seconds, key=peer_seconds.__getitem__)
    note = f"its best on {threads} thread{'s' * (threads > 1)}"
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
        note="; ".join(part for part in (note, others.pop("note", "")) if part),
        **others,
    )
