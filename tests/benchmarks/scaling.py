"""How cost grows: with rows, with restarts, and when restarts differ in the number of steps they need.

Growth is the slope of log seconds over log size: 1 is linear, and overheads at the small end make it smaller. That
finished restarts stop costing shows where some restarts need many more steps than others: a fit with r restarts should
cost about what r fits with one restart cost, not r times the slowest of them.
"""

import itertools
import statistics
from collections.abc import Iterator

import numpy as np

from tests.benchmarks import subjects
from tests.benchmarks.data import simulate
from tests.benchmarks.iterations import our_steps
from tests.benchmarks.rows import Row, Target
from tests.benchmarks.timing import seconds_of

SECTION = "scaling"
NUM_ROWS = (10_000, 31_623, 100_000, 316_228, 1_000_000, 3_162_278, 10_000_000)
NUM_RESTARTS = (1, 2, 5, 10, 20, 50)
STEEPEST = 1.1
MOST_OVER_SUM = 1.2


def run(quick: bool) -> Iterator[Row]:
    yield from over_rows(NUM_ROWS[:4] if quick else NUM_ROWS, repeats=2 if quick else 5)
    problem = simulate(2_000 if quick else 20_000, 4, 6, spread=1.5)
    yield from over_restarts(problem, NUM_RESTARTS[:4] if quick else NUM_RESTARTS, num_steps=20)
    yield finished_restarts(problem, num_restarts=10 if quick else 20, num_fits=2 if quick else 3)


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def over_rows(sizes: tuple[int, ...], repeats: int) -> Iterator[Row]:
    seconds = []
    for num_rows in sizes:
        problem = simulate(num_rows, 4, 4)
        x = subjects.place(problem.x, "float32")
        # Short steps are told apart from the rest of a fit only by taking many.
        num_steps = int(np.clip(4_000_000 // num_rows, 6, 100))
        ours = our_steps(x, subjects.mixture_of(problem.start, "full", "float32"), "full", 1, num_steps)
        compile_seconds, fit = ours.warm_up()
        for _ in range(repeats):
            ours.measure()
        seconds.append(ours.seconds)
        yield Row(
            section=SECTION,
            what="EM iteration",
            dtype="float32",
            family="full",
            shape=problem.shape,
            seconds=ours.seconds,
            steps=int(fit.num_steps),
            log_likelihood=float(fit.log_likelihood),
            result=subjects.sentence(fit),
            compile_seconds=compile_seconds,
            note=f"{1e9 * ours.seconds / num_rows:.3g} ns a row",
        )
    steps = [
        slope(pair, times) for pair, times in zip(itertools.pairwise(sizes), itertools.pairwise(seconds), strict=True)
    ]
    yield Row(
        section=SECTION,
        what="growth with rows (slope)",
        dtype="float32",
        ratio=slope(sizes, seconds),
        target=Target("ratio", at_most=STEEPEST),
        note="from size to size: " + ", ".join(f"{step:.2f}" for step in steps),
    )


def over_restarts(problem, counts: tuple[int, ...], num_steps: int) -> Iterator[Row]:
    x = subjects.place(problem.x, "float64")
    options = {"tol": 0.0, "max_steps": num_steps}
    seconds = []
    for num_restarts in counts:

        def fit(num_restarts=num_restarts):
            return subjects.fit(x, problem.shape[2], seed=0, num_restarts=num_restarts, **options)

        first, found = seconds_of(fit)
        seconds.append(statistics.median(seconds_of(fit)[0] for _ in range(3)))
        yield Row(
            section=SECTION,
            what=f"{num_restarts} restarts of {num_steps} steps",
            dtype="float64",
            family="full",
            shape=problem.shape,
            seconds=seconds[-1],
            steps=int(found.num_steps),
            log_likelihood=float(found.log_likelihood),
            result=subjects.sentence(found),
            compile_seconds=max(0.0, first - seconds[-1]),
            note=f"{1e3 * seconds[-1] / num_restarts:.3g} ms a restart",
        )
    yield Row(
        section=SECTION,
        what="growth with restarts (slope)",
        dtype="float64",
        ratio=slope(counts, seconds),
        target=Target("ratio", at_most=STEEPEST),
    )


def finished_restarts(problem, *, num_restarts: int, num_fits: int) -> Row:
    """Restarts that stop when they have converged, together and one by one."""
    x = subjects.place(problem.x, "float64")
    options = {"tol": 1e-5, "max_steps": 1000}

    def fit(seed, num_restarts):
        return lambda: subjects.fit(x, problem.shape[2], seed=seed, num_restarts=num_restarts, **options)

    first, found = seconds_of(fit(0, num_restarts))
    seconds_of(fit(0, 1))
    together, alone, steps = [], [], []
    for seed in range(num_fits):
        together.append(seconds_of(fit(seed, num_restarts))[0])
        for single in range(num_restarts):
            elapsed, one = seconds_of(fit(1000 + seed * num_restarts + single, 1))
            alone.append(elapsed)
            steps.append(int(one.num_steps))
    seconds, expected = statistics.mean(together), num_restarts * statistics.mean(alone)
    return Row(
        section=SECTION,
        what=f"{num_restarts} restarts that converge",
        peer="as many fits of one",
        dtype="float64",
        family="full",
        shape=problem.shape,
        seconds=seconds,
        peer_seconds=expected,
        ratio=seconds / expected,
        target=Target("ratio", at_most=MOST_OVER_SUM),
        steps=int(found.num_steps),
        log_likelihood=float(found.log_likelihood),
        result=subjects.sentence(found),
        compile_seconds=max(0.0, first - seconds),
        note=f"single fits took {statistics.mean(steps):.0f} steps on average, {max(steps)} at most: "
        f"at the price of the slowest the ratio were {max(steps) / statistics.mean(steps):.3g}",
    )
