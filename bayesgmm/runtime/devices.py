"""Rows where they are computed: many, on several CPU devices, are shared out among them."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LARGE = 2**20  # rows x features x components from which fits run one by one, and over several devices


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def place_rows(x: Any, weights: Any, num_components: int) -> tuple[Any, Any, Mesh | None]:
    """Rows and their weights, dealt out over a mesh of CPU devices where they are many; else as they are."""
    devices = jax.local_devices()[: num_cores()] if x.size * num_components >= LARGE else []
    if len(devices) < 2 or devices[0].platform != "cpu":
        return x, weights, None
    x, weights = np.asarray(x), np.asarray(weights)
    missing = -len(x) % len(devices)
    if missing:
        x = np.concatenate([x, np.broadcast_to(x[-1:], (missing, x.shape[1]))])
        weights = np.concatenate([weights, np.zeros(missing, weights.dtype)])
    mesh = Mesh(np.array(devices), ("rows",))
    sharding = NamedSharding(mesh, PartitionSpec("rows"))
    return jax.device_put(x, sharding), jax.device_put(weights, sharding), mesh


def over_mesh(run: Callable[..., Any], mesh: Mesh, start: Any, x: Any, row_weights: Any, *settings: Any) -> Any:
    """`run(start, x, row_weights, *settings)` with the rows of each device; its sums go over the axis "rows"."""
    whole, rows = PartitionSpec(), PartitionSpec("rows")
    specs = (whole, rows, rows, *(whole for _ in settings))
    sharded = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
    return sharded(start, x, row_weights, *settings)


def off_mesh(fit: Any) -> Any:
    """Results on one device again, to be used with rows on one device."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), fit)
