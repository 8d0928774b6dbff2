"""Partitions of rows by distance (k-means++ seeds, k-means) on comparable columns, and the mixture of a partition."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesgmm.likelihood.expectation import moments_of_partition
from bayesgmm.likelihood.moments import maximise
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, IntLike, RandomKey, is_traced, matching_precision
from bayesgmm.numerics.triangular import cholesky, inverse_of_lower
from bayesgmm.runtime.programs import ROOM, SMALL, has_room

Weights = Float[Array, " n"]
Labels = Int[Array, " n"]
Columns = Float[Array, "d n"]
Wanted = Int[Array, ""] | None

MAX_LLOYD_STEPS = 100
_DRAWN_FROM = 256  # rows of a block


def standardise(rows: Rows) -> Float[Array, "n d"]:
    """Columns with weighted mean 0 and variance 1; a constant column stays at 0, up to rounding."""
    centre, scale = centre_and_scale(rows)
    return (rows.values - centre[None]) / scale[None]


def centre_and_scale(rows: Rows) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Weighted mean and standard deviation of every column, 1 where it is no more than rounding of the mean."""
    mean, variance = column_moments(rows)
    scale = jnp.sqrt(variance)
    return mean, jnp.where(scale > 10 * jnp.finfo(rows.dtype).eps * jnp.abs(mean), scale, 1.0)


def column_moments(rows: Rows) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Weighted mean and variance of every column, by reductions that XLA fuses, so that no copy of the rows is made."""
    x, shares = rows.values, (rows.weights / rows.total_weight)[:, None]
    near = x[0]  # differences from a row keep the digits that a mean far from zero would cost
    mean = near + (shares * (x - near[None])).sum(0)
    return mean, (shares * jnp.square(x - mean[None])).sum(0)


def whitened_rows(rows: Rows) -> Float[Array, "d n"]:
    r"""$L^{-1} z_i$ for standardised rows $z_i$ with correlation $L L^\top$: uncorrelated features of variance 1.

    Features, not rows, come first, so that arithmetic over rows vectorises. The correlation gets a ridge of the size of
    its rounding, so that a direction in which the rows do not vary stays near 0.
    """
    standard = standardise(rows).T
    num_features = len(standard)
    shared_out = standard * (rows.weights / rows.total_weight)[None]
    correlation = jnp.matmul(shared_out, standard.T, precision="highest")
    ridge = 100 * num_features * float(jnp.finfo(rows.dtype).eps)
    lower = cholesky(correlation + ridge * jnp.eye(num_features, dtype=rows.dtype))
    # The inverse once, then a product: cheaper than a triangular solve with every row.
    return jnp.matmul(inverse_of_lower(lower), standard, precision="highest")


def draw_row(masses: Float[Array, " n"], *, key: RandomKey) -> Int[Array, ""]:
    r"""A row drawn with probability proportional to its mass; never one of mass 0, unless all are.

    By inversion on two levels, first a block of rows and then a row of it: two uniform numbers in place of n, and sums
    short enough to keep their digits in float32. Rows of mass 0 after the last one change no draw.
    """
    size = _DRAWN_FROM
    blocks = jnp.pad(masses, (0, -masses.shape[0] % size)).reshape(-1, size)
    for_block, for_row = jax.random.uniform(key, (2,), masses.dtype)
    block = _invert(blocks.sum(1), for_block)
    return block * size + _invert(blocks[block], for_row)


def _invert(masses: Array, uniform: Array) -> Array:
    cumulative = jnp.cumsum(masses)
    beyond = (cumulative > uniform * cumulative[-1]) & (masses > 0)
    # Rounding can leave the target at the very total; the largest mass is as good an answer as any.
    return jnp.where(beyond.any(), beyond.argmax(), masses.argmax()).astype(jnp.int32)


def kmeans_plus_plus(
    x: Float[Array, "n d"], num_components: int, row_weights: Weights, num_wanted: Wanted = None, *, key: RandomKey
) -> Labels:
    """A partition of the rows around seeds drawn by k-means++: each row belongs to its nearest seed.

    Seeds are rows, the first drawn by weight, each next one with probability proportional to its squared distance
    from the seeds already drawn. Distances are in the units given. Of the seeds only the first `num_wanted` count.

    Source: Arthur & Vassilvitskii (2007), section 2.2.
    """
    return partition_around_seeds(x.T, num_components, row_weights, lambda nearest: nearest, key, num_wanted)


def partition_around_seeds(
    x: Columns,
    num_components: int,
    row_weights: Weights,
    attraction: Callable[[Array], Array],
    key: RandomKey,
    num_wanted: Wanted = None,
) -> Labels:
    """Labels of the nearest seeds; `attraction` is what a row's chance is proportional to, given its distances² (n)."""

    def distances_to(index: Array) -> Array:
        return jnp.square(x - jax.lax.dynamic_slice_in_dim(x, index, 1, axis=1)).sum(0)

    keys = jax.random.split(key, num_components)

    def add_seed(label: IntLike, state: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest, labels = state
        masses = jnp.where(label == 0, row_weights, row_weights * attraction(nearest))
        distances = distances_to(draw_row(masses, key=keys[label]))
        return jnp.minimum(nearest, distances), jnp.where(distances < nearest, label, labels)

    # The first seed is drawn inside the loop too, so that all distances are rounded alike and equal rows are at 0.
    state = (jnp.full(x.shape[1], jnp.inf, x.dtype), jnp.zeros(x.shape[1], jnp.int32))
    num_seeds = jnp.asarray(num_components if num_wanted is None else num_wanted, jnp.int32)
    return jax.lax.fori_loop(jnp.zeros_like(num_seeds), num_seeds, add_seed, state)[1]


def lloyd(x: Columns, labels: Labels, num_components: int, row_weights: Weights, num_wanted: Wanted = None) -> Labels:
    r"""k-means from a first partition: means of the clusters and nearest means in turn, until no row moves.

    Lowers $\sum_i v_i \lVert x_i - m_{l(i)} \rVert^2$ at every step. A cluster that has lost all its rows is put on the
    row farthest from its own mean, if it is one of the first `num_wanted`. Columns, here the rows of x, should be
    centred: distances come from products.

    Source: Lloyd (1982).
    """
    clusters = jnp.arange(num_components, dtype=labels.dtype)

    def nearest_mean(labels: Array, distances: Array) -> tuple[Array, Array]:
        shares = jnp.where(labels[None] == clusters[:, None], row_weights[None], 0.0)
        count = shares.sum(1)
        means = jnp.matmul(shares, x.T, precision="highest") / jnp.where(count > 0, count, 1.0)[:, None]
        farthest = jnp.where(row_weights > 0, distances, -jnp.inf).argmax()
        lost = (count == 0) & (jnp.cumsum(count == 0) == 1)  # one at a time, lest two land on the same row
        lost = lost if num_wanted is None else lost & (clusters < num_wanted)
        means = jnp.where(lost[:, None], x[:, farthest][None], means)
        scores = 0.5 * jnp.square(means).sum(1)[:, None] - jnp.matmul(means, x, precision="highest")
        scores = jnp.where(((count > 0) | lost)[:, None], scores, jnp.inf)
        return scores.argmin(0).astype(labels.dtype), jnp.square(x).sum(0) + 2 * scores.min(0)

    def unfinished(state: tuple[Array, ...]) -> Array:
        return state[2] & (state[3] < MAX_LLOYD_STEPS)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        labels, distances = nearest_mean(state[0], state[1])
        return labels, distances, (labels != state[0]).any(), state[3] + 1

    state = (labels, jnp.square(x).sum(0), jnp.asarray(True), jnp.asarray(0, jnp.int32))
    return jax.lax.while_loop(unfinished, step, state)[0]


@matching_precision
def mixture_of_partition(
    rows: Rows, responsibilities: Float[AnyArray, "n k"], family: Family, reg_covar: ArrayLike
) -> Mixture:
    """The M-step from given responsibilities, with one ridge for all features or one for each (d)."""
    k, size = responsibilities.shape[1], rows.values.size
    if is_traced((rows, responsibilities, reg_covar)) or size * k >= SMALL:
        return _mixture_of_partition(rows, responsibilities, family, reg_covar)
    padded = rows.in_steps()
    room = ROOM if has_room(k, padded.values.size) else k
    shares = np.zeros((len(padded), room), rows.dtype)
    shares[: len(rows), :k] = responsibilities
    found = _mixture_of_partition(padded, shares, family, np.broadcast_to(reg_covar, rows.num_features))
    return jax.device_put(jax.tree.map(lambda field: np.asarray(field)[:k], found))


@functools.partial(jax.jit, static_argnames="family")
def _mixture_of_partition(
    rows: Rows, responsibilities: Float[AnyArray, "n k"], family: Family, reg_covar: ArrayLike
) -> Mixture:
    rows = jax.tree.map(jnp.asarray, rows)
    responsibilities, ridge = (jnp.asarray(value, rows.dtype) for value in (responsibilities, reg_covar))
    moments = moments_of_partition(rows, responsibilities, family)
    return maximise(moments, family, jnp.broadcast_to(ridge, rows.num_features))
