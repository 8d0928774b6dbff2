"""Value and gradient of the log-likelihood in the parameters of the mixture, against one EM iteration."""

from collections.abc import Iterator

from tests.benchmarks import subjects
from tests.benchmarks.data import simulate
from tests.benchmarks.rows import Row, Target
from tests.benchmarks.timing import medians, seconds_of, take_turns

SECTION = "gradients"
SHAPES = ((65536, 10, 10), (65536, 32, 16))
QUICK_SHAPES = ((4096, 10, 10),)
MOST_ITERATIONS = 1.3


def run(quick: bool) -> Iterator[Row]:
    for shape in QUICK_SHAPES if quick else SHAPES:
        problem = simulate(*shape)
        for dtype in ("float64", "float32"):
            x = subjects.place(problem.x, dtype)
            mixture = subjects.mixture_of(problem.start, "full", dtype)
            programs = {
                "gradient": subjects.value_and_gradient(x, mixture),
                "iteration": subjects.one_iteration(x, mixture, "full"),
            }
            first, (value, _) = seconds_of(programs["gradient"])
            seconds_of(programs["iteration"])
            times = medians(take_turns(programs, 5 if quick else 15))
            yield Row(
                section=SECTION,
                what="value and gradient",
                peer="one EM iteration",
                dtype=dtype,
                family="full",
                shape=shape,
                seconds=times["gradient"],
                peer_seconds=times["iteration"],
                ratio=times["gradient"] / times["iteration"],
                target=Target("ratio", at_most=MOST_ITERATIONS),
                agrees=abs(float(value) / problem.start.log_likelihood(problem.x) - 1) <= 1e-6,
                log_likelihood=float(value),
                peer_log_likelihood=problem.start.log_likelihood(problem.x),
                compile_seconds=max(0.0, first - times["gradient"]),
            )
