"""Seconds per iteration of coordinate-ascent variational inference, against scikit-learn's BayesianGaussianMixture.

Ours is the time of a fit of many steps less that of a fit of few, over the difference; of scikit-learn only the E- and
M-step are timed, not its bound, which ours computes at every step, on one and on two threads in turn, and the faster
count is taken. Both have the same prior and the same responsibilities to start from, so that after as many steps
weights, means, degrees of freedom and scales of the two have to be the same numbers.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.benchmarks import bayesian_peers, bayesian_subjects, peers, subjects
from tests.benchmarks.data import Problem, simulate
from tests.benchmarks.iterations import PerStep
from tests.benchmarks.rows import Row, Target

SECTION = "variational"
SHAPES, QUICK_SHAPES = ((65536, 10, 10),), ((4096, 10, 10),)
LEAST_SPEEDUP = 10.0
AGREEMENT = 1e-6  # relative difference of the numbers of the two approximations
MORE_STEPS = 40  # of a long fit


def run(quick: bool) -> Iterator[Row]:
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield compare(simulate(*shape), 2 if quick else 3)


def compare(problem: Problem, repeats: int) -> Row:
    x = subjects.place(problem.x, "float64")
    # Ours counts what follows the first bound; that bound takes a pass and an update too.
    few = 2 * len(peers.THREADS) * repeats - 1
    responsibilities = nearest_means(problem)
    prior = bayesian_subjects.conjugate_prior_of(problem.x, problem.shape[2])
    long, short = (
        functools.partial(bayesian_subjects.ascent, x, responsibilities, steps, prior)
        for steps in (few + MORE_STEPS, few)
    )
    ours = PerStep(long, short, MORE_STEPS, [])
    compile_seconds, fit = ours.warm_up()
    sklearn = bayesian_peers.sklearn_variational_steps(problem.x, responsibilities, prior)
    for _ in range(repeats):
        for threads in peers.THREADS * 2:
            sklearn.step(threads)
        ours.measure()
    seconds, threads = sklearn.best
    apart = difference(fit.approximation, sklearn.estimator)
    return Row(
        section=SECTION,
        what="iteration of CAVI",
        peer="scikit-learn",
        dtype="float64",
        family="full",
        shape=problem.shape,
        seconds=ours.seconds,
        peer_seconds=seconds,
        ratio=seconds / ours.seconds,
        target=Target("ratio", at_least=LEAST_SPEEDUP),
        agrees=apart <= AGREEMENT and int(fit.num_steps) == few,
        steps=int(fit.num_steps),
        result=subjects.sentence(fit),
        compile_seconds=compile_seconds,
        note=f"its best on {threads} thread{'s' * (threads > 1)}",
        extra={
            "relative_difference": apart,
            "peer_threads": threads,
            "peer_seconds_by_threads": {str(count): times for count, times in sklearn.seconds.items()},
        },
    )


def nearest_means(problem: Problem) -> np.ndarray:
    """Every row given to the nearest mean of the start, (n, k)."""
    distances = np.square(problem.x[:, None] - problem.start.means).sum(-1)
    return np.eye(problem.shape[2])[distances.argmin(1)]


def difference(approximation: Any, estimator: Any) -> float:
    """The largest difference of the two approximations' numbers, in units of the largest of each kind.

    scikit-learn's covariances are the scales over the degrees of freedom. Components are put in the order of the first
    entry of their means.
    """
    ours = [getattr(approximation, name) for name in ("mean", "concentration", "shrinkage", "dof", "scale")]
    names = ("means_", "weight_concentration_", "mean_precision_", "degrees_of_freedom_")
    theirs = [getattr(estimator, name) for name in names]
    theirs.append(estimator.covariances_ * estimator.degrees_of_freedom_[:, None, None])
    pairs = zip(in_order(ours), in_order(theirs), strict=True)
    return float(max(np.abs(one - other).max() / np.abs(other).max() for one, other in pairs))


def in_order(parts: list[Any]) -> list[np.ndarray]:
    order = np.argsort(np.asarray(parts[0])[:, 0])
    return [np.asarray(part)[order] for part in parts]
