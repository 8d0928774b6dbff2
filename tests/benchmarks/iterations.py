"""Seconds per EM iteration, against scikit-learn and gmmx from the same start over the same rows.

Ours is the time of a fit of many steps less that of a fit of few, over the difference: whatever a fit pays for each
step is in it. gmmx is timed in the same way; of scikit-learn only the E- and M-step are timed, on one and on two
threads in turn, and the faster count is taken. All have the same number of steps behind them when their
log-likelihoods are compared, by the same NumPy function in float64; ours in float32 with our own in float64.
"""

import functools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.benchmarks import peers, subjects
from tests.benchmarks.data import Problem, simulate
from tests.benchmarks.rows import Row, Target
from tests.benchmarks.timing import rest, seconds_of

SECTION = "iterations"
SHAPES = ((131072, 2, 5), (65536, 10, 10), (65536, 32, 16), (16384, 64, 16), (1048576, 4, 8))
QUICK_SHAPES = ((8192, 2, 5), (4096, 10, 10))
DTYPES = ("float64", "float32")
MEAN_SPEEDUP, LEAST_SPEEDUP, SPEEDUP_OVER_GMMX = 25.0, 8.0, 5.0
MORE_WORK = 2**31  # rows x features x components of the steps that a long fit has more: a second, beside which the
# milliseconds in which threads wake up do not show
AGREEMENT = 1e-6  # relative difference of log-likelihoods


@dataclass(frozen=True)
class PerStep:
    """Seconds per step from pairs of fits, one long and one short."""

    long: Callable[[], Any]
    short: Callable[[], Any]
    num_more: int  # steps that the long fit takes and the short one does not
    differences: list[float]

    def warm_up(self) -> tuple[float, Any]:
        """Seconds spent compiling both fits, and the result of the short one."""
        first, _ = seconds_of(self.long)
        first_short, result = seconds_of(self.short)
        again, again_short = seconds_of(self.long)[0], seconds_of(self.short)[0]
        return max(0.0, first + first_short - again - again_short), result

    def measure(self) -> None:
        rest()
        long, short = seconds_of(self.long)[0], seconds_of(self.short)[0]
        self.differences.append((long - short) / self.num_more)

    @property
    def seconds(self) -> float:
        return max(statistics.median(self.differences), 1e-9)


def our_steps(x: Any, start: Any, family: str, few: int, more: int) -> PerStep:
    long, short = (functools.partial(subjects.steps_from, x, start, family, steps) for steps in (few + more, few))
    return PerStep(long, short, more, [])


def gmmx_steps(x: Any, problem: Problem, few: int, more: int) -> PerStep:
    long, short = (functools.partial(peers.gmmx_fit, x, problem.start, steps) for steps in (few + more, few))
    return PerStep(long, short, more, [])


def run(quick: bool) -> Iterator[Row]:
    """A row for every shape, family and precision, then the geometric mean over them."""
    shapes = QUICK_SHAPES if quick else SHAPES
    repeats, rows = (2 if quick else 3), []
    for index, shape in enumerate(shapes):
        problem = simulate(*shape)
        for family in ("full", "tied", "diag", "spherical") if index in (1, 2) else ("full",):
            in_float64 = None
            for dtype in DTYPES[:1] if quick and family != "full" else DTYPES:
                with_gmmx = index in (1, 2) and family == "full" and dtype == "float32"
                for row in compare(problem, family, dtype, repeats, with_gmmx, in_float64):
                    in_float64 = row.log_likelihood if dtype == "float64" else in_float64
                    rows.append(row)
                    yield row
    speedups = [row.ratio for row in rows if row.peer.startswith("scikit-learn")]
    yield Row(
        section=SECTION,
        what="geometric mean of the speed-ups",
        peer="scikit-learn",
        ratio=statistics.geometric_mean(speedups),
        target=Target("ratio", at_least=MEAN_SPEEDUP),
        note=f"least {min(speedups):.3g}, greatest {max(speedups):.3g} of {len(speedups)}",
    )


def compare(
    problem: Problem, family: str, dtype: str, repeats: int, with_gmmx: bool, in_float64: float | None
) -> Iterator[Row]:
    """One cell of the table: a row against scikit-learn, and one against gmmx where that is asked for."""
    x = problem.x.astype(dtype)
    num_steps = 2 * len(peers.THREADS) * repeats
    placed, start = subjects.place(x, dtype), subjects.mixture_of(problem.start, family, dtype)
    ours = our_steps(placed, start, family, num_steps, MORE_WORK // math.prod(problem.shape))
    compile_seconds, fit = ours.warm_up()
    sklearn = peers.SklearnSteps(x, problem.start, family)
    rival = gmmx_steps(placed, problem, num_steps, num_steps) if with_gmmx else None
    rival_fit = rival.warm_up()[1] if rival else None
    for _ in range(repeats):
        for threads in peers.THREADS * 2:
            sklearn.step(threads)
        ours.measure()
        if rival:
            rival.measure()
    reached = subjects.parameters_of(fit.mixture).log_likelihood(problem.x)
    common = {
        "section": SECTION,
        "what": "EM iteration",
        "dtype": dtype,
        "family": family,
        "shape": problem.shape,
        "seconds": ours.seconds,
        "steps": int(fit.num_steps),
        "log_likelihood": reached,
        "result": subjects.sentence(fit),
        "compile_seconds": compile_seconds,
    }

    def against(peer: str, seconds: float, log_likelihood: float, least: float, note: str, **extra: Any) -> Row:
        truth = log_likelihood if in_float64 is None else in_float64
        apart, theirs_apart = (abs(value - truth) / abs(truth) for value in (reached, log_likelihood))
        own = abs(float(fit.log_likelihood) - reached) / abs(reached)
        if theirs_apart > AGREEMENT:
            note = f"{note}; {peer} is off by {theirs_apart:.1g}".lstrip("; ")
        return Row(
            **common,
            peer=peer,
            peer_seconds=seconds,
            ratio=seconds / ours.seconds,
            target=Target("ratio", at_least=least),
            agrees=apart <= AGREEMENT and int(fit.num_steps) == num_steps,
            peer_log_likelihood=log_likelihood,
            note=note,
            extra={"relative_difference": apart, "relative_error_of_reported": own, "peer's": theirs_apart, **extra},
        )

    seconds, threads = sklearn.best
    yield against(
        "scikit-learn",
        seconds,
        sklearn.parameters.log_likelihood(problem.x),
        LEAST_SPEEDUP,
        f"its best on {threads} thread{'s' * (threads > 1)}",
        peer_threads=threads,
        peer_seconds_by_threads={str(count): times for count, times in sklearn.seconds.items()},
    )
    if rival:
        theirs = peers.gmmx_parameters(rival_fit).log_likelihood(problem.x)
        yield against("gmmx", rival.seconds, theirs, SPEEDUP_OVER_GMMX, "")
