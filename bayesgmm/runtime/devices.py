"""A mesh of CPU devices, over which the rows of large fits are split."""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

LARGE = 2**20  # rows x features x components from which fits run one by one, and over several devices


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def row_mesh(size: int) -> Mesh | None:
    """The mesh over which rows of a fit of this size (rows x features x components) are split; None for small ones."""
    devices = jax.local_devices()[: num_cores()] if size >= LARGE else []
    if len(devices) < 2 or devices[0].platform != "cpu":
        return None
    return Mesh(np.array(devices), ("rows",))


def shard[R](run: Callable[..., R], mesh: Mesh | None, start: PyTree, rows: PyTree, *settings: PyTree) -> R:
    """`run(start, rows, *settings, axis_name="rows")` on each device with its rows; without a mesh on all of them."""
    if mesh is None:
        return run(start, rows, *settings)
    whole, parts = PartitionSpec(), PartitionSpec("rows")
    specs = (whole, parts, *(whole for _ in settings))
    sharded = jax.shard_map(
        lambda *arguments: run(*arguments, axis_name="rows"),
        mesh=mesh,
        in_specs=specs,
        out_specs=whole,
        check_vma=False,
    )
    return sharded(start, rows, *settings)


def off_mesh[R](results: R) -> R:
    """Results on one device again, to be used with rows on one device."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), results)
