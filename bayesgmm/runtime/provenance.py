"""Versions, device and time: what a reader needs to run something again."""

import datetime
import importlib.metadata
import platform
from typing import TypedDict

import jax

_PACKAGES = ("bayesgmm", "jax", "numpyro", "arviz", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


class Provenance(TypedDict):
    """Versions of packages, the first device and how many there are, the kind of machine, and the time in UTC."""

    versions: dict[str, str]
    device: dict[str, str | int]
    machine: str
    time: str


def provenance() -> Provenance:
    """Of this process."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": platform.machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
