"""Runs of several chains in short stretches: progress is reported, Ctrl-C keeps what was drawn, runs can be resumed.

A stretch is one call of a compiled program, of as many steps as take about a second. What a step draws depends on the
state of its chain and on its number alone, not on how the steps were divided.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from bayesgmm.errors import InputError
from bayesgmm.numerics.validation import short_repr
from bayesgmm.runtime.files import load_value, save_value
from bayesgmm.runtime.progress import Progress

CHAIN_METHODS = ("parallel", "sequential", "vectorized")
_FIRST_STRETCH = 10  # steps, to see how long they take
_STRETCH_SECONDS = 1.0
_CHECKPOINT_SECONDS = 60.0
_KIND = "checkpoint"


def fewest_draws(num_chains: int) -> int:
    """Draws of a chain without which there is no R-hat: two halves of two, and of a single chain twice as many."""
    return 8 if num_chains == 1 else 4


def check_draws(num_chains: int, num_draws: int) -> None:
    """Refuse too few draws for R-hat.

    Raises:
        InputError: saying how many are needed.
    """
    needed = fewest_draws(num_chains)
    if num_draws < needed:
        raise InputError(f"num_draws={num_draws} is too few for R-hat; draw at least {needed} a chain")


class Drawn(NamedTuple):
    """What was drawn: leaves (chain, draw, ...), whether someone stopped it, and the steps that were taken."""

    draws: PyTree
    interrupted: bool
    num_steps: int


def best_chain_method(num_chains: int) -> str:
    """The best method here: parallel where several devices can share the chains evenly."""
    if num_chains > 1 and _devices_for(num_chains) > 1:
        return "parallel"
    return "sequential" if jax.default_backend() == "cpu" else "vectorized"


def _devices_for(num_chains: int) -> int:
    """The most local devices that take the same number of chains each."""
    available = jax.local_device_count()
    return max(size for size in range(1, min(num_chains, available) + 1) if num_chains % size == 0)


def map_chains(function: Callable[..., Any], num_chains: int, chain_method: str) -> Callable[..., Any]:
    """`function(own, *shared)` of one chain, for all chains: the first argument and the results have a chain axis.

    Parallel: on as many local devices as divide the chains evenly, side by side; vectorized: one program computes all;
    sequential: one after the other.
    """
    if chain_method == "vectorized":
        return lambda own, *shared: jax.vmap(lambda own: function(own, *shared))(own)
    if chain_method == "sequential":
        return lambda own, *shared: jax.lax.map(lambda own: function(own, *shared), own)
    available = jax.local_devices()
    num_devices = _devices_for(num_chains)
    mesh = Mesh(np.array(available[:num_devices]), ("chains",))
    chains, whole = PartitionSpec("chains"), PartitionSpec()

    def on_mesh(own: PyTree, *shared: PyTree) -> PyTree:
        def some(own: PyTree, *shared: PyTree) -> PyTree:
            if num_devices == num_chains:
                one = jax.tree.map(lambda leaf: leaf[0], own)
                return jax.tree.map(lambda leaf: leaf[None], function(one, *shared))
            return jax.lax.map(lambda own: function(own, *shared), own)

        specs = (chains, *(whole for _ in shared))
        return jax.shard_map(some, mesh=mesh, in_specs=specs, out_specs=chains, check_vma=False)(own, *shared)

    return on_mesh


def stretch(
    step: Callable[[PyTree, Array], tuple[PyTree, PyTree]], state: PyTree, first: Array, count: Array, room: int
) -> PyTree:
    """`count` steps of a chain from number `first` on: the new state, and what they drew, of which `room` steps fit."""
    shapes = jax.eval_shape(step, state, first)[1]
    drawn = jax.tree.map(lambda leaf: jnp.zeros((room, *leaf.shape), leaf.dtype), shapes)

    def one(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, drawn = carry
        state, draw = step(state, first + index)
        return state, jax.tree.map(lambda whole, part: whole.at[index].set(part), drawn, draw)

    return jax.lax.fori_loop(0, count, one, (state, drawn))


def run_chains(
    advance: Callable[[Any, int, int], tuple[Any, Any]],
    state: PyTree,
    *,
    num_warmup: int,
    num_draws: int,
    room: int,
    progress: Progress,
    tell: Callable[[Any], str] | None = None,
    checkpoint: "Checkpoint | None" = None,
) -> Drawn:
    """Warm up and draw, stretch by stretch.

    Args:
        advance: `(state, first, count) -> (state, drawn)`, drawn with leaves (chain, room, ...).
        state: where the chains start.
        num_warmup: steps that are not kept.
        num_draws: steps that are.
        room: the longest stretch.
        progress: reports after every stretch.
        tell: a remark on what a stretch has drawn.
        checkpoint: where the run is saved once a minute and on Ctrl-C, and found again.

    Raises:
        KeyboardInterrupt: where too few draws of a chain were made before it for R-hat.
    """
    total, done, kept, structure = num_warmup + num_draws, 0, [], None
    if checkpoint is not None and (found := checkpoint.load(state)) is not None:
        state, drawn_before, done = found
        kept = [drawn_before] if drawn_before else []
        progress.tell(done, total, "resumed")
    size, saved, interrupted = min(_FIRST_STRETCH, room), time.monotonic(), False
    whole = (state, len(kept), done)  # what belongs together, whenever someone stops it
    try:
        while done < total:
            # Warm-up and draws are not mixed in a stretch.
            count = min(size, room, (num_warmup if done < num_warmup else total) - done)
            began = time.monotonic()
            state, drawn = advance(state, done, count)
            leaves, structure = jax.tree.flatten(drawn)
            leaves = [np.asarray(leaf)[:, :count] for leaf in leaves]
            took = time.monotonic() - began
            if done > 0:  # the first call is mostly compilation
                size = max(1, int(count * min(4.0, _STRETCH_SECONDS / max(took, 1e-3))))
            if done >= num_warmup:
                kept.append(leaves)
            done += count
            whole = (state, len(kept), done)
            progress.tell(done, total, "" if tell is None else tell(structure.unflatten(leaves)))
            if checkpoint is not None and done < total and time.monotonic() - saved > checkpoint.seconds:
                checkpoint.save(state, kept, done)
                saved = time.monotonic()
    except KeyboardInterrupt:
        state, num_kept, done = whole
        kept, interrupted = kept[:num_kept], done < total  # at the very end nothing is missing
        if checkpoint is not None and interrupted and done:
            checkpoint.save(state, kept, done)
        if not kept or sum(part[0].shape[1] for part in kept) < fewest_draws(len(kept[0][0])):
            raise
    if checkpoint is not None and not interrupted:
        checkpoint.remove()
    if structure is None:  # all draws were found on file
        structure = jax.tree.structure(jax.eval_shape(lambda state: advance(state, 0, 1)[1], state))
    draws = structure.unflatten(np.concatenate(parts, 1) for parts in zip(*kept, strict=True))
    return Drawn(draws, interrupted, done)


class Checkpoint:
    """A run on file: the state of the chains and their draws, for the same run to resume from.

    What identifies the run is its engine, arguments and rows; a file of another run is not taken for it.
    """

    def __init__(self, path: Path, identity: PyTree, seconds: float = _CHECKPOINT_SECONDS) -> None:
        self.path = path
        self.seconds = seconds
        self.identity = fingerprint(identity)

    def save(self, state: PyTree, kept: list[list[np.ndarray]], done: int) -> None:
        """Write the state of the chains and their draws so far."""
        draws = [np.concatenate(parts, 1) for parts in zip(*kept, strict=True)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        saved = {"identity": self.identity, "done": done, "state": _plain(jax.tree.leaves(state)), "draws": draws}
        save_value(saved, self.path, _KIND)

    def load(self, state: PyTree) -> tuple[Any, list[np.ndarray], int] | None:
        """State, draws and steps of the saved run, or None where there is none.

        Raises:
            InputError: for a file that is of another run, or is no checkpoint.
        """
        if not self.path.exists():
            return None
        cure = "delete it, or give another checkpoint"
        try:
            saved = load_value(self.path, dict, _KIND)
        except InputError:
            raise InputError(f"checkpoint={str(self.path)!r} is no checkpoint of a run; {cure}") from None
        if saved["identity"] != self.identity:
            raise InputError(f"checkpoint={str(self.path)!r} is of a run with other data or settings; {cure}")
        own, structure = jax.tree.flatten(state)
        state = structure.unflatten(_like(value, like) for value, like in zip(saved["state"], own, strict=True))
        return state, saved["draws"], saved["done"]

    def remove(self) -> None:
        """Of a run that has ended."""
        self.path.unlink(missing_ok=True)


def check_checkpoint(checkpoint: object) -> str | Path | bool:
    """Check the argument of that name.

    Raises:
        InputError: for anything but a path, True and False.
    """
    if not isinstance(checkpoint, str | Path | bool):
        raise InputError(f"checkpoint={short_repr(checkpoint)} must be the path of a file, True or False")
    return checkpoint


def checkpoint_of(checkpoint: str | Path | bool, identity: PyTree) -> Checkpoint | None:
    """Where a run is saved: a path that was given, or a file in the user's cache folder named by its identity."""
    if checkpoint is False:
        return None
    if checkpoint is True:
        from platformdirs import user_cache_path

        path = user_cache_path("bayesgmm") / "runs" / f"{fingerprint(identity)}.npz"
    else:
        path = Path(checkpoint)
    return Checkpoint(path, identity)


def fingerprint(identity: PyTree) -> str:
    """A hash of everything in a tree of arrays and plain values."""
    digest = hashlib.sha256()
    leaves, structure = jax.tree.flatten(identity)
    digest.update(str(structure).encode())
    for leaf in _plain(leaves):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(str(leaf).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _plain(leaves: list[Any]) -> list[Any]:
    return [np.asarray(jax.random.key_data(leaf)) if _is_key(leaf) else np.asarray(leaf) for leaf in leaves]


def _is_key(leaf: PyTree) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _like(value: np.ndarray, like: PyTree) -> PyTree:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(like))
    return jnp.asarray(value, like.dtype)
