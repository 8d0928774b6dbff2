"""Peak memory of a fit above the data themselves, each measured in a process of its own.

The process makes the rows in NumPy, imports and runs the subject once on few rows, and only then marks its resident
memory; a few EM steps from a given start follow. Peak less mark is what the fit needed beyond rows and libraries; its
compilation counts.
"""

import argparse
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.processes import run_python
from tests.benchmarks.rows import Row, Target

SECTION = "memory"
SHAPE, QUICK_SHAPE = (5_000_000, 16, 16), (200_000, 16, 16)
MOST_MEGABYTES = 200.0
STEPS = 3
PEER_FRACTION = 5  # scikit-learn needs arrays of n x k, so that a part of the rows tells; all of them take minutes


def run(quick: bool) -> Iterator[Row]:
    shape = QUICK_SHAPE if quick else SHAPE
    for dtype in ("float64", "float32"):
        ours = probe_in_process("bayesgmm", dtype, shape)
        fewer = (shape[0] // PEER_FRACTION, *shape[1:])
        theirs = probe_in_process("scikit-learn", dtype, fewer)
        peer_megabytes = PEER_FRACTION * theirs["megabytes"]
        yield Row(
            section=SECTION,
            what="peak above the data",
            peer="scikit-learn",
            dtype=dtype,
            family="full",
            shape=shape,
            megabytes=ours["megabytes"],
            peer_megabytes=peer_megabytes,
            ratio=peer_megabytes / max(ours["megabytes"], 1e-9),
            target=Target("megabytes", at_most=MOST_MEGABYTES),
            steps=ours["steps"],
            log_likelihood=ours["log_likelihood"],
            result=ours["result"],
            note=f"data: {ours['data_megabytes']:.0f} MB in NumPy; scikit-learn: a step, scaled from {fewer[0]} rows",
            extra={"seconds": ours["seconds"], "peer_seconds_on_fewer_rows": theirs["seconds"]},
        )


def probe_in_process(subject: str, dtype: str, shape: tuple[int, int, int]) -> dict:
    printed = run_python("-m", "tests.benchmarks.memory", subject, dtype, *map(str, shape))
    return json.loads(printed.splitlines()[-1])


def probe(subject: str, dtype: str, shape: tuple[int, int, int]) -> dict:
    """What the process measures of itself."""
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    import numpy as np

    from tests.benchmarks.timing import seconds_of

    num_rows, num_features, num_components = shape
    rng = np.random.default_rng(0)
    means = 3.0 * rng.normal(size=(num_components, num_features)).astype(dtype)
    x = np.empty((num_rows, num_features), dtype)
    for first in range(0, num_rows, 65536):
        block = x[first : first + 65536]
        block[:] = rng.standard_normal(block.shape, np.float32) + means[rng.integers(num_components, size=len(block))]
    fit = (_bayesgmm if subject == "bayesgmm" else _sklearn)(means)
    fit(x[:2000])
    mark = _mark()
    seconds, (steps, log_likelihood, result) = seconds_of(lambda: fit(x))
    return {
        "megabytes": (_peak() - mark) / 1e6,
        "data_megabytes": x.nbytes / 1e6,
        "seconds": seconds,
        "steps": steps,
        "log_likelihood": log_likelihood,
        "result": result,
    }


def _bayesgmm(means):
    import numpy as np

    from tests.benchmarks import subjects
    from tests.benchmarks.data import Parameters

    num_components, num_features = means.shape
    covariances = np.broadcast_to(np.eye(num_features), (num_components, num_features, num_features))
    start = Parameters(np.full(num_components, 1 / num_components), means, covariances)
    start = subjects.mixture_of(start, "full", str(means.dtype))

    def fit(x):
        found = subjects.steps_from(x, start, "full", STEPS)
        return int(found.num_steps), float(found.log_likelihood), subjects.sentence(found)

    return fit


def _sklearn(means):
    import numpy as np

    from tests.benchmarks import peers

    num_components, num_features = means.shape
    identities = np.broadcast_to(np.eye(num_features), (num_components, num_features, num_features))
    start = {
        "weights_init": np.full(num_components, 1 / num_components, means.dtype),
        "means_init": means,
        "precisions_init": identities.astype(means.dtype),
    }

    def fit(x):
        # Its start by "random_from_data" is the cheapest, and is replaced by the one given.
        found = peers.sklearn_fit(
            x, num_components, threads=2, max_iter=1, reg_covar=0.0, init_params="random_from_data", **start
        )
        return found.n_iter_, float(found.lower_bound_ * len(x)), "one step"

    return fit


def _mark() -> float:
    """Resident bytes now; the kernel's record of the peak starts again from here where it can be reset."""
    status = _status()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return max(status["VmHWM"], status["VmRSS"])
    return status["VmRSS"]


def _peak() -> float:
    return _status()["VmHWM"]


def _status() -> dict[str, float]:
    path = Path("/proc/self/status")
    if not path.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"VmHWM": peak, "VmRSS": peak}
    fields = (line.split() for line in path.read_text().splitlines())
    return {words[0][:-1]: 1024.0 * int(words[1]) for words in fields if words[0] in ("VmHWM:", "VmRSS:")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("subject", choices=("bayesgmm", "scikit-learn"))
    parser.add_argument("dtype")
    parser.add_argument("shape", type=int, nargs=3)
    arguments = parser.parse_args()
    print(json.dumps(probe(arguments.subject, arguments.dtype, tuple(arguments.shape))))
