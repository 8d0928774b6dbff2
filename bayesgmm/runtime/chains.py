"""Runs of several chains in short stretches: progress is reported, Ctrl-C keeps what was drawn, runs can be resumed.

A stretch is one call of a compiled program, of as many steps as take about a second. What a step draws depends on the
state of its chain and on its number alone, not on how the steps were divided.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from bayesgmm.errors import InputError
from bayesgmm.numerics.paths import as_path
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
    """What was drawn: leaves (chain, draw, ...), the last state, whether someone stopped it, and the steps taken."""

    draws: PyTree
    state: PyTree
    interrupted: bool
    num_steps: int


@dataclass(frozen=True)
class Chains:
    """So many chains, and how they are computed.

    Parallel: on as many local devices as divide the chains evenly, side by side; vectorized: one program computes all;
    sequential: one after the other, by one program.
    """

    number: int
    method: str

    def map(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(own, *shared)` of a chain, for all chains: the first argument and the results have a chain axis."""
        if self.method == "vectorized":
            return lambda own, *shared: jax.vmap(lambda own: function(own, *shared))(own)
        if self.method == "sequential" and self.number == 1:
            return lambda own, *shared: _alone(function, own, *shared)
        if self.method == "sequential":
            return lambda own, *shared: jax.lax.map(lambda own: function(own, *shared), own)
        mesh = self._mesh

        def on_mesh(own: PyTree, *shared: PyTree) -> PyTree:
            def some(own: PyTree, *shared: PyTree) -> PyTree:
                if mesh.size == self.number:
                    return _alone(function, own, *shared)
                return jax.lax.map(lambda own: function(own, *shared), own)

            chains, whole = PartitionSpec("chains"), PartitionSpec()
            specs = (chains, *(whole for _ in shared))
            return jax.shard_map(some, mesh=mesh, in_specs=specs, out_specs=chains, check_vma=False)(own, *shared)

        return on_mesh

    @property
    def together(self) -> "Chains":
        """The chains that a program computes: one of those that come one after the other, else all of them."""
        return Chains(1, self.method) if self.method == "sequential" else self

    def apart(self, own: PyTree) -> list[PyTree]:
        """What has a chain axis, for each call of a program that maps over the chains that it computes `together`.

        A loop over chains inside the program would have kernels to cut and to join every leaf of their states.
        """
        if self.together == self:
            return [own]
        leaves, structure = jax.tree.flatten(own)
        plain = _plain(leaves)

        def part(chain: int) -> PyTree:
            parts = (value[chain : chain + 1] for value in plain)
            return structure.unflatten(_like(value, like) for value, like in zip(parts, leaves, strict=True))

        return [part(chain) for chain in range(self.number)]

    @property
    def _mesh(self) -> Mesh:
        """The devices that share parallel chains."""
        return Mesh(np.array(jax.local_devices()[: _devices_for(self.number)]), ("chains",))

    def placed(self, state: PyTree) -> PyTree:
        """Leaves with a chain axis, or their shapes, on the devices that hold what `map` returns."""
        if self.method != "parallel":
            return state
        place = NamedSharding(self._mesh, PartitionSpec("chains"))

        def put(leaf: PyTree) -> PyTree:
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
            return jax.device_put(leaf, place)

        return jax.tree.map(put, state)


def advance_each(
    program: Callable[..., tuple[PyTree, PyTree]], states: list[PyTree], *shared: PyTree
) -> tuple[list[PyTree], PyTree]:
    """The next states of chains kept `apart`, and what all of them drew as NumPy arrays."""
    found = [program(state, *shared) for state in states]
    drawn = [jax.tree.map(np.asarray, drawn) for _, drawn in found]
    return [state for state, _ in found], jax.tree.map(lambda *parts: np.concatenate(parts), *drawn)


def _alone[R](function: Callable[..., R], own: PyTree, *shared: PyTree) -> R:
    """`function` of the one chain that there is."""
    one = jax.tree.map(lambda leaf: leaf[0], own)
    return jax.tree.map(lambda leaf: leaf[None], function(one, *shared))


def make_chains(num_chains: int, chain_method: str | None) -> Chains:
    """Chains by a method; by default parallel where several devices can share them evenly."""
    if chain_method is None and num_chains > 1 and _devices_for(num_chains) > 1:
        chain_method = "parallel"
    return Chains(num_chains, chain_method or ("sequential" if jax.default_backend() == "cpu" else "vectorized"))


def _devices_for(num_chains: int) -> int:
    """The most local devices that take the same number of chains each."""
    available = jax.local_device_count()
    return max(size for size in range(1, min(num_chains, available) + 1) if num_chains % size == 0)


def stretch(
    step: Callable[[PyTree, Array], tuple[PyTree, PyTree]], state: PyTree, first: Array, count: Array, room: int
) -> PyTree:
    """`count` steps of a chain from number `first` on: the new state, and what they drew, of which `room` steps fit."""
    shapes = jax.eval_shape(step, state, first)[1]
    drawn = jax.tree.map(lambda leaf: jnp.zeros((room, *leaf.shape), leaf.dtype), shapes)

    def one(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, drawn = carry
        state, draw = step(state, first + index)
        return state, jax.tree.map(functools.partial(_write, index=index), drawn, draw)

    return jax.lax.fori_loop(0, count, one, (state, drawn))


def _write(whole: Array, part: Array, *, index: Array) -> Array:
    """The array with an entry, whose index is not looked at again as `at` would do it."""
    return jax.lax.dynamic_update_index_in_dim(whole, part, index, 0)


@dataclass(frozen=True)
class Run:
    """How a long run is made.

    Attributes:
        num_warmup: steps that are not kept.
        num_draws: steps that are, at most.
        room: the longest stretch.
        progress: reports after every stretch.
        checkpoint: where the run is saved once a minute and on Ctrl-C, and found again.
        fewest: kept steps that Ctrl-C must leave.
        even: whether every stretch has all its room, and not as many steps as take about a second.
    """

    num_warmup: int
    num_draws: int
    room: int
    progress: Progress
    checkpoint: "Checkpoint | None" = None
    fewest: int = 1
    even: bool = False


def run_in_stretches(
    advance: Callable[[Any, int, int], tuple[Any, Any]],
    state: PyTree,
    run: Run,
    watch: Callable[[Any], str] = lambda _: "",
    unfinished: Callable[[], bool] = lambda: True,
) -> Drawn:
    """Warm up and draw, stretch by stretch.

    Args:
        advance: `(state, first, count) -> (state, drawn)`, drawn with leaves (chain, room, ...).
        state: where the chains start.
        run: how many steps, and what else is to be done.
        watch: sees what every stretch has drawn; returns a remark.
        unfinished: whether another stretch is due, before all steps are done.

    Raises:
        KeyboardInterrupt: where too few steps were made before it.
    """
    total, done, kept = run.num_warmup + run.num_draws, 0, []
    checkpoint, progress = run.checkpoint, run.progress
    if checkpoint is not None and (found := checkpoint.load(state)) is not None:
        state, kept, done = found
        for drawn in kept:
            watch(drawn)
        progress.tell(done, total, "resumed")
    size, saved, interrupted = run.room if run.even else min(_FIRST_STRETCH, run.room), time.monotonic(), False
    whole = (state, len(kept), done)  # what belongs together, whenever someone stops it

    def due() -> bool:
        return done < total and unfinished()

    try:
        with progress:
            while due():
                # Warm-up and draws are not mixed in a stretch.
                count = min(size, run.room, (run.num_warmup if done < run.num_warmup else total) - done)
                began = time.monotonic()
                state, drawn = advance(state, done, count)
                drawn = _first(count, drawn)
                took = time.monotonic() - began
                if done > 0 and not run.even:  # the first call is mostly compilation
                    size = max(1, int(count * min(4.0, _STRETCH_SECONDS / max(took, 1e-3))))
                if done >= run.num_warmup:
                    kept.append(drawn)
                done += count
                whole = (state, len(kept), done)
                progress.tell(done, total, watch(drawn))
                if checkpoint is not None and due() and time.monotonic() - saved > checkpoint.seconds:
                    checkpoint.save(state, kept, done)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        state, num_kept, done = whole
        kept, interrupted = kept[:num_kept], due()  # at the very end nothing is missing
        if checkpoint is not None and interrupted and done:
            checkpoint.save(state, kept, done)
        if sum(jax.tree.leaves(drawn)[0].shape[1] for drawn in kept) < run.fewest:
            raise
    if checkpoint is not None and not interrupted:
        checkpoint.remove()
    return Drawn(_joined(kept), state, interrupted, done)


def _first(count: int, drawn: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:, :count], drawn)


def _joined(kept: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *parts: np.concatenate(parts, 1), *kept)


class Checkpoint:
    """A run on file: the state of the chains and their draws, for the same run to resume from.

    What identifies the run is its engine, arguments and rows; a file of another run is not taken for it.
    """

    def __init__(self, path: Path, identity: PyTree, seconds: float = _CHECKPOINT_SECONDS) -> None:
        self.path = path
        self.seconds = seconds
        self.identity = fingerprint(identity)

    def save(self, state: PyTree, kept: list[PyTree], done: int) -> None:
        """Write the state of the chains and their draws so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [_joined(kept)] if kept else []
        saved = {"identity": self.identity, "done": done, "state": _plain(jax.tree.leaves(state)), "draws": kept}
        save_value(saved, self.path, _KIND)

    def load(self, state: PyTree) -> tuple[Any, list[PyTree], int] | None:
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
            raise InputError(
                f"checkpoint={str(self.path)!r} is of a run with other data or settings, or by another version; {cure}"
            )
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
    return checkpoint if isinstance(checkpoint, bool) else as_path(checkpoint, "checkpoint")


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
