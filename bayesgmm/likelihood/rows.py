"""What is known of the rows, as one object: made by `as_rows`, cut into blocks and chunks, split over devices, sampled.

Whatever a user knows of rows beside their values belongs here and into the pass over the rows (`expectation.py`), so
that no engine has to know of it. A row of weight zero counts nothing, which is how rows are padded.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.blocks import blocks_in_groups, sum_of_blocks
from bayesgmm.numerics.precision import AnyArray, ArrayLike, is_traced, namespace
from bayesgmm.numerics.validation import as_matrix, column_ranges, no_constant_column, real_array, whole_number
from bayesgmm.runtime.programs import SMALL, room_of_rows

STREAMED_BYTES = 2**28  # of rows in NumPy, from which no copy of them is made
_CHUNK_BYTES = 2**23
_MOST_SORTED_ROWS = 800_000


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Rows and what is known of them.

    Attributes:
        values: shape (n, d).
        weights: how often each row counts, shape (n).
    """

    values: Shaped[AnyArray, "n d"]
    weights: Shaped[AnyArray, " n"]

    def __len__(self) -> int:
        """n."""
        return self.values.shape[0]

    @property
    def num_features(self) -> int:
        """d."""
        return self.values.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Floating-point type of the values and the weights."""
        return self.values.dtype

    @property
    def total_weight(self) -> AnyArray:
        """Sum of the weights, ()."""
        return namespace(self.weights).asarray(self.weights.sum())

    @property
    def is_streamed(self) -> bool:
        """Whether there are so many that they stay in NumPy, a memory map perhaps, and are passed over in chunks."""
        return (
            isinstance(self.values, np.ndarray)
            and self.values.nbytes >= STREAMED_BYTES
            and jax.default_backend() == "cpu"
        )

    def of_positive_weight(self) -> "Rows":
        """The rows, with one that counts in place of each of weight 0, whose values then cannot spoil a sum."""
        if is_traced(self) or (used := np.asarray(self.weights) > 0).all():
            return self
        values = np.asarray(self.values)
        return dataclasses.replace(self, values=np.where(used[:, None], values, values[used.argmax()]))

    def at(self, index: Int[AnyArray, " m"]) -> "Rows":
        """The rows of these numbers."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def padded(self, num_more: int) -> "Rows":
        """The rows and so many of weight 0 after them, in NumPy."""
        if not num_more:
            return self
        padded = jax.tree.map(
            lambda leaf: np.concatenate([leaf, np.broadcast_to(leaf[-1:], (num_more, *leaf.shape[1:]))]), self
        )
        return dataclasses.replace(padded, weights=np.concatenate([self.weights, np.zeros(num_more, self.dtype)]))

    def in_steps(self) -> "Rows":
        """The rows padded to the next of the sizes that programs are compiled for; many rows as they are."""
        if self.values.size >= SMALL:
            return self
        return jax.tree.map(np.asarray, self).padded(room_of_rows(len(self)) - len(self))

    def chunks(self) -> Iterator["Rows"]:
        """The rows in chunks of one size, the last one padded."""
        size = min(len(self), max(1, _CHUNK_BYTES // (self.num_features * self.dtype.itemsize)))
        stand_in = self.values[np.argmax(np.asarray(self.weights) > 0)]
        for first in range(0, len(self), size):
            chunk = jax.tree.map(lambda leaf, first=first: leaf[first : first + size], self)
            chunk = chunk.padded(size - len(chunk))
            if not (used := chunk.weights > 0).all():
                chunk = dataclasses.replace(chunk, values=np.where(used[:, None], chunk.values, stand_in))
            yield chunk

    def split(self, mesh: Mesh) -> "Rows":
        """The rows in equal parts on the devices of a mesh of one axis."""
        padded = jax.tree.map(np.asarray, self).padded(-len(self) % mesh.size)
        return jax.device_put(padded, NamedSharding(mesh, PartitionSpec(*mesh.axis_names)))


def as_rows(x: ArrayLike | Rows, row_weights: ArrayLike | None = None) -> Rows:
    """The door: rows x (n, d) and their weights (n), by default ones, checked once; `Rows` pass as they are.

    Raises:
        InputError: for values or weights that cannot be used.
    """
    if isinstance(x, Rows):
        return x if row_weights is None else Rows(x.values, as_row_weights(row_weights, x.values))
    values = as_matrix(x)
    return Rows(values, as_row_weights(row_weights, values))


def unweighted_rows(x: ArrayLike | Rows) -> Rows:
    """`as_rows` for what counts every row once.

    Raises:
        InputError: for values that cannot be used, and for rows of other weights than 1.
    """
    rows = as_rows(x)
    if not is_traced(rows.weights) and (np.asarray(rows.weights) != 1).any():
        raise InputError(
            "x has rows of weights other than 1; give unweighted rows, or fit by fit_em, fit_cavi or fit_kmeans"
        )
    return rows


def as_row_weights(row_weights: ArrayLike | None, x: AnyArray) -> AnyArray:
    """Row weights (n) in the precision of the rows, ones by default.

    Raises:
        InputError: for a wrong length, for weights that are no numbers, negative, not finite or all zero, and for a sum
            beyond what sums of squares can be taken of.
    """
    num_rows = x.shape[0]
    if row_weights is None:
        return np.broadcast_to(np.ones((), x.dtype), (num_rows,))  # takes no memory
    weights = real_array(row_weights, "row_weights")
    if weights.shape != (num_rows,):
        raise InputError(f"row_weights must have shape ({num_rows},), one for each row; got {weights.shape}")
    if is_traced(weights):
        return jnp.asarray(weights, jax.dtypes.canonicalize_dtype(x.dtype))
    weights = np.asarray(weights)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise InputError(f"row_weights[{bad[0]}]={weights[bad[0]]} must be finite and not negative")
    if not weights.any():
        raise InputError("row_weights are all zero: no row counts. Give at least one positive weight")
    with np.errstate(over="ignore"):
        total = weights.sum(dtype=np.float64)
    limits = jnp.finfo(x.dtype)
    least, most = float(limits.tiny) ** 0.5, float(limits.max) ** 0.5
    if not least <= total <= most:
        raise InputError(
            f"row_weights add up to {total:g}, and {x.dtype} can compute with sums from {least:.0e} to {most:.0e}; "
            "multiply them by a constant"
        )
    return weights.astype(x.dtype)


def enough_rows(
    rows: Rows,
    num_components: int,
    family: Family,
    *,
    bounded: bool = False,
    ridged: bool = False,
    takes_prior: bool = True,
) -> None:
    """Refuse what no engine can fit. Rows of weight 0 do not count.

    With `bounded`, a prior bounds the likelihood, and a covariance needs no rows of its own. With `ridged`, every
    variance has a user-supplied ridge, and rows need not differ. Where the caller takes no prior, none is advised.

    Raises:
        InputError: for k < 1, k beyond the number of distinct rows, fewer rows than a component needs, a constant
            column, or one whose squares overflow.
    """
    num_components = whole_number("num_components", num_components)
    counted, used = "", None
    num_rows, num_features = rows.values.shape
    if not is_traced(rows.weights) and not (positive := np.asarray(rows.weights) > 0).all():
        counted, used, num_rows = " of positive weight", positive, int(positive.sum())
    needed = max(num_components, 2 if bounded or ridged else family.min_rows(num_features))
    if num_rows < needed:
        if num_rows < num_components:
            ways = ["fewer components"]
        else:
            ways = ["a diagonal family"] * (not family.diagonal) + ["a conjugate_prior"] * takes_prior
        cure = f", or choose {' or '.join(ways)}" if ways else ""
        raise InputError(
            f"num_components={num_components} with family={family.name!r} needs at least {needed} rows{counted}, of "
            f"{num_features} features each; got {num_rows}. Give more rows{cure}"
        )
    if is_traced(rows.values):
        return
    values = np.asarray(rows.values)
    if ridged:
        column_ranges(values, used)
        return
    no_constant_column(values, used)
    if num_components > 1 and (distinct := _num_distinct(values, used, num_components)) < num_components:
        raise InputError(
            f"num_components={num_components} needs at least {num_components} distinct rows{counted}; got {distinct}"
        )


def has_enough_rows(rows: Rows, num_components: int, family: Family, *, bounded: bool = False) -> bool:
    """Whether there are rows enough for a likelihood with a maximum, or for a posterior that a prior has `bounded`."""
    try:
        enough_rows(rows, num_components, family, bounded=bounded)
    except InputError:
        return False
    return True


def _num_distinct(rows: np.ndarray, used: np.ndarray | None, enough: int) -> int:
    """The number of distinct rows, or any number from `enough` on: most tables show that in their first few rows.

    Of very many rows only a part is sorted, which costs no more than the fit; where few of those differ the rows are no
    data for a mixture of Gaussians, and counted as enough.
    """
    size, distinct = 4 * enough, 0
    num_rows = len(rows) if used is None else int(used.sum())
    while distinct < enough and size < 8 * num_rows:
        if size > _MOST_SORTED_ROWS:
            return enough
        distinct = len(np.unique(rows[:size] if used is None else rows[np.flatnonzero(used)[:size]], axis=0))
        size *= 8
    return distinct


def over_blocks[S, R](
    function: Callable[..., tuple[S, R]], size: int, rows: Rows, *others: Float[AnyArray, "n ..."]
) -> tuple[S, R]:
    """`function(rows, *others)` of blocks of `size` rows: its first results added up, its second ones put together.

    The last block reaches back over rows of the block before, with weight zero, so that rows need not be padded and
    every block has the same compiled code; so does any block past the last one. Results of each row, in arrays (rows,
    ...), are put together in the order of the rows.
    """
    if size == len(rows):
        return function(rows, *others)
    num_blocks = -(-len(rows) // size)

    def of_block(index: Array) -> tuple[S, R]:
        return function(*_block(index, size, rows, *others))

    sums, parts = sum_of_blocks(of_block, num_blocks, rows.dtype)

    def join(part: Array) -> Array:
        whole = part[: num_blocks - 1].reshape(-1, *part.shape[2:])
        return jnp.concatenate([whole, part[num_blocks - 1, size - (len(rows) - len(whole)) :]])

    return sums, jax.tree.map(join, parts)


def stack_of_blocks(function: Callable[[Rows], Any], size: int, rows: Rows) -> Any:
    """`function(rows)` of every block, stacked for passes to come."""
    indices = jnp.arange(blocks_in_groups(-(-len(rows) // size), rows.dtype), dtype=jnp.int32)
    return jax.lax.map(lambda index: function(*_block(index, size, rows)), indices)


def _block(index: Array, size: int, rows: Rows, *others: Array) -> tuple[Any, ...]:
    start = jnp.minimum(index * size, len(rows) - size)
    block, *parts = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), (rows, *others))
    counted = start + jnp.arange(size, dtype=start.dtype) < index * size
    weights = jnp.where(counted, jnp.zeros_like(block.weights), block.weights)
    return dataclasses.replace(block, weights=weights), *parts
