"""One sampler in a process of its own: `sample` starts it and judges its draws, `main` is what runs in it.

The clock starts when NumPy and, for samplers that use it, JAX are imported and stops when the draws are NumPy arrays:
it covers importing the sampler, making the model, compiling and drawing. JAX says itself how long it traced and
compiled, nutpie compiles apart, and both are told apart from drawing. OpenBLAS has one thread.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401  it brings the OpenBLAS that JAX and Numba call
from threadpoolctl import threadpool_limits

from tests.benchmarks.posteriors import Draws, Judged
from tests.benchmarks.processes import run_python

PEERS = {"MixtureSameFamily": "NumPyroSampler", "nutpie": "NutpieSampler"}


@dataclass(frozen=True)
class Job:
    """What a process is to draw.

    Attributes:
        sampler: "nuts", "gibbs", "MixtureSameFamily" or "nutpie".
        num_components: k.
        num_devices: CPU devices of JAX: four chains run side by side on four, one after the other on one.
        num_runs: how often it draws, each time from another seed; the first may have to compile.
        settings: options of the sampler that are not its defaults.
        seed: that of the first run.
    """

    sampler: str
    num_components: int
    num_devices: int = 1
    num_runs: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """One run, judged.

    Attributes:
        seconds: warm-up and draws, without compilation.
        compile_seconds: what compiling took, in this run or, for nutpie, before it.
        total_seconds: everything since the clock started.
        warmup_share: part of the seconds that warm-up took, where that is not known a lower bound.
        ess: smallest bulk effective number of draws.
        r_hat: worst R-hat.
    """

    seconds: float
    compile_seconds: float
    total_seconds: float
    warmup_share: float
    judged: Judged
    ess: float
    r_hat: float

    @property
    def num_draws(self) -> int:
        return self.judged.log_likelihood.shape[1]

    @property
    def seconds_per_draw(self) -> float:
        """Seconds per effective draw, warm-up included."""
        return self.seconds / self.ess

    def lengthened(self, factor: float) -> "Run":
        """What so many times as many draws after the same warm-up would have taken and given."""
        share = self.warmup_share
        more = self.seconds * (1 - share) * (factor - 1)
        return dataclasses.replace(
            self, seconds=self.seconds + more, total_seconds=self.total_seconds + more, ess=self.ess * factor
        )


def sample(job: Job, x: np.ndarray) -> list[Run]:
    """The runs of a job on rows x, drawn in a fresh process and judged in this one."""
    from tests.benchmarks.bayesian_subjects import judge

    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "x.npy"), x)
        printed = run_python("-m", "tests.benchmarks.sampler", json.dumps(dataclasses.asdict(job)), folder)
        times = json.loads(printed.splitlines()[-1])
        runs = []
        for index, numbers in enumerate(times):
            with np.load(Path(folder, f"{index}.npz")) as parts:
                judged = judge(Draws(**parts), x)
            runs.append(Run(**numbers, judged=judged, ess=judged.ess, r_hat=judged.r_hat))
    return runs


class CompileClock:
    """Seconds that JAX spent tracing, lowering and compiling, by its own account; its spans nest, so their union."""

    def __init__(self) -> None:
        import jax

        self.spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self.spans.append((now - seconds, now))

    def since(self, began: float) -> float:
        total, reached = 0.0, began
        for start, end in sorted(self.spans):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total


def main() -> None:
    job, folder = Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
    if job.sampler == "nutpie":
        # What PyTensor has compiled before is no part of a fresh start.
        os.environ["PYTENSOR_FLAGS"] = f"base_compiledir={folder / 'pytensor'}"
        os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba")
    else:
        import jax

        jax.config.update("jax_num_cpu_devices", job.num_devices)
        jax.config.update("jax_enable_compilation_cache", False)
    # OpenBLAS solves the small triangular systems of the peers on all cores and lets its threads spin, on the cores
    # that their other chains need: left alone, it made MixtureSameFamily forty times as slow with four chains on two
    # cores.
    threadpool_limits(1, "blas")
    x = np.load(folder / "x.npy")
    began = time.perf_counter()
    clock = None if job.sampler == "nutpie" else CompileClock()
    made = sampler_of(job, x)
    made_seconds = time.perf_counter() - began
    times = []
    for index in range(job.num_runs):
        start = time.perf_counter()
        drawn = made.draw(job.seed + index)
        draws = made.draws(drawn)
        end = time.perf_counter()
        compiling = made_seconds if clock is None else clock.since(start)
        times.append(
            {
                "seconds": end - start - (0.0 if clock is None else compiling),
                "compile_seconds": compiling,
                "total_seconds": end - began,
                "warmup_share": made.warmup_share,
            }
        )
        np.savez(folder / f"{index}.npz", **draws.parts)
    print(json.dumps(times), flush=True)
    os._exit(0)  # before the interpreter tears down, which may take seconds and is not what a user waits for


def sampler_of(job: Job, x: np.ndarray) -> Any:
    if job.sampler in PEERS:
        from tests.benchmarks import bayesian_peers

        return getattr(bayesian_peers, PEERS[job.sampler])(x, job.num_components, job.settings)
    from tests.benchmarks.bayesian_subjects import SAMPLERS

    return SAMPLERS[job.sampler](x, job.num_components, job.settings)


if __name__ == "__main__":
    main()
