"""Wall time: warmed up first, subjects taking turns, medians; and the machine that it was measured on."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call until its result is there, and the result."""
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - began, result


def rest() -> None:
    """Until the threads that the last subject left spinning have gone to sleep: OpenBLAS lets them wait for work."""
    time.sleep(0.1)


def take_turns(subjects: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Wall times of every subject, A B A B: what slows the machine for a while then slows them all."""
    times = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, function in subjects.items():
            rest()
            times[name].append(seconds_of(function)[0])
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """What the times depend on; nothing that names the host."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ("bayesgmm", "jax", "jaxlib", "numpyro", "numpy", "scipy", "scikit-learn", "gmmx", "pymc", "nutpie")
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "jax_devices": jax.device_count(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # a peer that is not installed is not measured either
        return None
