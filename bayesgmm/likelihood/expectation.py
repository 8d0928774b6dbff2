r"""The one pass over the rows: expected sufficient statistics and the log-likelihood, block by block.

Rows are taken in blocks small enough that a block's working set stays in cache. Of each block the pass keeps only sums:
the log-likelihood and, for every component, its expected count, first and second moments

$$ N_j = \sum_i v_i r_{ij}, \quad a_j = \sum_i v_i r_{ij} (x_i - o_j), \quad
   S_j = \sum_i v_i r_{ij} (x_i - o_j)(x_i - o_j)^\top, $$

with row weights $v_i$, responsibilities $r_{ij}$ and an origin $o_j$, the component's current mean (sums about the mean
keep the digits that sums about zero cancel). Sums add, so blocks, and later devices, only have to be added.

Two formulations give the same sums. The centred one whitens the difference of each row from each mean. The natural one
(`natural.py`) is two matrix products, several times faster, and loses digits where a component is narrow beside its
distance from the middle of the data. Fits, and large single passes, take the natural one where the rule of
`moments_of_arrays` finds that it keeps a log-density to 1e-9 (float64) or 1e-4 (float32) of its size and covariances to
1e-7 or 1e-3; else the centred one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from bayesgmm.errors import InputError
from bayesgmm.likelihood import natural
from bayesgmm.likelihood.moments import Moments, expected_complete_log_prob, maximise, positive_count
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import (
    Mixture,
    joint_of_rows,
    rows_of_mixture,
    shares_and_marginal_parts,
    weighted_marginal,
)
from bayesgmm.numerics.blocks import block_size, stack_of_blocks, sum_over_blocks, sum_over_stack
from bayesgmm.numerics.precision import matching_precision
from bayesgmm.numerics.triangular import UNROLLED
from bayesgmm.numerics.validation import real_array

__all__ = [
    "Moments",
    "expected_complete_log_prob",
    "expected_moments",
    "maximise",
    "moments_of_partition",
    "prepare",
]

LARGE_PASS = 2**19  # rows x features x components from which the natural form is worth its compilation
LARGE_FIT = 2**11  # for a fit of many passes, which share what they prepare
_PREPARED_BYTES = 2**27  # standardised rows are kept from pass to pass where they take no more, over all devices
# Sizes of a natural block, each measured to slow it down where it is more: what its features and its responsibilities
# take falls out of the caches, or is cut up for other threads.
_MOST_FEATURES, _MOST_JOINT_BYTES, _MOST_ROWS, _LEAST_ROWS = 50_000, 120_000, 2048, 256


@matching_precision
def expected_moments(
    mixture: Mixture,
    x: Any,
    row_weights: Any = None,
    *,
    family: Family | None = None,
    prepared: "Prepared | None" = None,
    axis_name: str | None = None,
) -> Moments:
    """Expected moments of rows x (n, d) under the mixture, about its means, and the log-likelihood of the rows.

    With a `family` they are only what its M-step needs, and cheaper: second moments summed over the components for a
    shared covariance; for one variance in each component they are right on average over the features. `prepared` is
    what several passes over the same rows can share. Inside `jax.shard_map` over rows, `axis_name` is the mesh axis to
    sum over.

    Raises:
        InputError: for shapes that do not match, and types that are not real numbers; values are not looked at.
    """
    mixture, x, row_weights = as_arguments(mixture, x, row_weights)
    pooled, isotropic = wanted(family)
    return moments_of_arrays(
        mixture, x, row_weights, pooled=pooled, isotropic=isotropic, prepared=prepared, axis_name=axis_name
    )


def moments_of_partition(
    x: Float[Array, "n d"], responsibilities: Float[Array, "n k"], row_weights: Float[Array, " n"], *, diagonal: bool
) -> Moments:
    """Moments of given responsibilities, about the weighted means they imply; used to start an engine.

    Two passes, means first, so that a component much narrower than the data loses no digits. There is no mixture yet,
    hence no log-likelihood: that field is NaN.
    """

    size = centred_block(x, responsibilities.shape[1])

    def means_of_block(v: Array, x: Array, r: Array) -> tuple[Array, Array]:
        shares = r * v[:, None]
        return shares.sum(0), jnp.matmul(shares.T, x, precision="highest")

    count, total = sum_over_blocks(means_of_block, size, row_weights, x, responsibilities)
    origin = total / jnp.maximum(count, jnp.finfo(x.dtype).tiny)[:, None]

    def sums_of_block(v: Array, x: Array, r: Array) -> tuple[Array, Array]:
        return weighted_sums((r * v[:, None]).T, x.T[None] - origin[:, :, None], diagonal)

    first, second = sum_over_blocks(sums_of_block, size, row_weights, x, responsibilities)
    return Moments(origin, count, first, second, jnp.asarray(jnp.nan, x.dtype))


def as_arguments(mixture: Mixture, x: Any, row_weights: Any) -> tuple[Mixture, Array, Array]:
    """All three in one precision: that of the mixture, or float64 where the rows have it."""
    if mixture.draw_shape:
        raise InputError(f"mixture has leading axes {mixture.draw_shape}; index it down to a single one, or use vmap")
    x = rows_of_mixture(mixture, x)
    dtype = jax.dtypes.canonicalize_dtype(np.float64 if x.dtype == np.float64 else mixture.means.dtype)
    mixture = jax.tree.map(lambda field: jnp.asarray(field, dtype), mixture)
    x = jnp.asarray(x, dtype)
    if row_weights is None:
        return mixture, x, jnp.ones(x.shape[:1], dtype)
    row_weights = real_array(row_weights, "row_weights")
    if row_weights.shape != x.shape[:1]:
        raise InputError(f"row_weights must have shape {x.shape[:1]}, one for each row; got {row_weights.shape}")
    return mixture, x, jnp.asarray(row_weights, dtype)


def wanted(family: Family | None) -> tuple[bool, bool]:
    """Whether second moments are wanted pooled over components, and averaged over features."""
    return (False, False) if family is None else (family.shared, family.isotropic)


def _natural_block(mixture: Mixture, x: Array, kind: natural.Kind) -> int:
    """Rows in a block: a few thousand of few features, fewer of many."""
    rows = min(
        _MOST_FEATURES // natural.num_products(x.shape[1], kind),
        _MOST_JOINT_BYTES // (mixture.num_components * x.dtype.itemsize),
        _MOST_ROWS,
    )
    return min(len(x), max(_LEAST_ROWS, rows // 64 * 64))


def centred_block(x: Array, num_components: int) -> int:
    return block_size(len(x), x.dtype.itemsize * num_components * x.shape[1])


def weighted_sums(shares: Float[Array, "k n"], centred: Float[Array, "k d n"], diagonal: bool) -> tuple[Array, Array]:
    """First and second moments of centred rows, each row counted with the share its component has in it."""
    shared_out = shares[:, None, :] * centred
    if diagonal:
        return shared_out.sum(2), (shared_out * centred).sum(2)
    num_features = centred.shape[1]
    if num_features <= UNROLLED:
        parts = [[(shared_out[:, a] * centred[:, b]).sum(1) for b in range(a + 1)] for a in range(num_features)]
        second = [[parts[max(a, b)][min(a, b)] for b in range(num_features)] for a in range(num_features)]
        return shared_out.sum(2), jnp.stack([jnp.stack(row, 1) for row in second], 1)
    return shared_out.sum(2), jnp.matmul(shared_out, jnp.swapaxes(centred, 1, 2), precision="highest")


# Errors allowed in float64 and float32, as a fraction of the log-density of a row and of a variance.
_LOG_PROB_TOLERANCE = (1e-9, 1e-4)
_VARIANCE_TOLERANCE = (1e-7, 1e-3)
# Rounding errors were measured below these multiples of the machine's epsilon; sums over a block's rows have more.
_LOG_PROB_ROUNDING, _VARIANCE_ROUNDING = 2.0, 16.0
_POOLED_VARIANCE_ROUNDING = 64.0  # one sum less a sum over components, where the others have one sum each


def amplitude_limit(dtype: Any) -> float:
    """How large an amplitude the tolerance allows."""
    return _tolerance(dtype, _LOG_PROB_TOLERANCE) / (_LOG_PROB_ROUNDING * float(jnp.finfo(dtype).eps))


def _tolerance(dtype: Any, tolerances: tuple[float, float]) -> float:
    return tolerances[0 if dtype == jnp.float64 else 1]


class Prepared(NamedTuple):
    """What the passes over the same rows have in common: made once, by `prepare`, for all of them.

    Attributes:
        frame: where rows are standardised to.
        blocks: row weights (blocks, rows of a block) and coordinates of the rows in blocks (blocks, c, rows of a
            block), where they take little memory.
        second: second moment of the rows about the origin of the frame, where second moments are pooled.
    """

    frame: natural.Frame
    blocks: tuple[Array, Array] | None
    second: Array | None


def prepare(
    mixture: Mixture,
    x: Float[Array, "n d"],
    row_weights: Float[Array, " n"],
    *,
    family: Family | None,
    axis_name: str | None = None,
) -> Prepared | None:
    """What the passes of a fit can share, for mixtures of the same representation; nothing for small problems."""
    pooled, isotropic = wanted(family)
    return prepare_kind(mixture, x, row_weights, pooled=pooled, isotropic=isotropic, axis_name=axis_name)


def prepare_kind(
    mixture: Mixture,
    x: Array,
    row_weights: Array,
    *,
    pooled: bool,
    isotropic: bool = False,
    axis_name: str | None = None,
) -> Prepared | None:
    """`prepare` for moments that are pooled over components, or averaged over features, or neither."""
    if mixture.num_components * x.size < LARGE_FIT:
        return None
    kind = natural.kind_of(mixture, pooled=pooled, isotropic=isotropic)
    frame = natural.frame_of(x, kind, axis_name)
    size = _natural_block(mixture, x, kind)
    num_shares = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    blocks = second = None
    if x.nbytes // x.shape[1] * (x.shape[1] + 3) <= _PREPARED_BYTES // num_shares:
        blocks = stack_of_blocks(lambda v, x: (v, frame.coordinates(x, kind)), size, row_weights, x)
    if kind == "pooled":
        second = over_devices(pooled_second(mixture, x, row_weights, frame), axis_name)
    return Prepared(frame, blocks, second)


def pooled_second(mixture: Mixture, x: Array, row_weights: Array, frame: natural.Frame) -> Array:
    """Second moment of the rows about the origin of a frame, (1, d, d), or of their squares, (1, d)."""

    def block(v: Array, x: Array) -> Array:
        return natural.second_moment(frame.standardise(x), v, diagonal=mixture.is_diagonal)

    return sum_over_blocks(block, _natural_block(mixture, x, "pooled"), row_weights, x)


def over_devices(terms: Any, axis_name: str | None) -> Any:
    """Sums over the devices of a mesh axis, all in one message; on one device the terms themselves."""
    if axis_name is None:
        return terms
    flat, unflatten = ravel_pytree(terms)
    return unflatten(jax.lax.psum(flat, axis_name))


@functools.partial(jax.jit, static_argnames=("pooled", "isotropic", "axis_name"))
def moments_of_arrays(
    mixture: Mixture,
    x: Array,
    row_weights: Array,
    *,
    pooled: bool,
    isotropic: bool = False,
    prepared: Prepared | None = None,
    axis_name: str | None = None,
) -> Moments:
    """By the natural form where the problem is large, or prepared, and its amplitude allows that; else centred.

    Afterwards the moments may turn out to come from rows further out, or to imply variances much narrower, than those
    of the mixture. Then they are taken again by the centred form, about the means just found; in small problems, which
    may be lanes of a vmap, they are not.
    """

    def centred(origin: Array) -> Moments:
        sums = centred_sums(mixture, x, row_weights, origin, pooled=pooled)
        return Moments(origin, *over_devices(sums, axis_name))

    if prepared is None and mixture.num_components * x.size < LARGE_PASS:
        return centred(mixture.means)

    def first_centred() -> tuple[Moments, Array]:
        moments = centred(mixture.means)
        return moments, keeps_variances(moments.count, moments.first, moments.second)

    kind = natural.kind_of(mixture, pooled=pooled, isotropic=isotropic)
    if prepared is None:
        prepared = Prepared(natural.frame_of(x, kind, axis_name), None, None)
    form, amplitude = natural.natural_form(mixture, prepared.frame, kind)

    def first_natural() -> tuple[Moments, Array]:
        sums = natural_sums(mixture, form.theta, x, row_weights, prepared, kind)
        return moments_of_sums(mixture, form.precision, over_devices(sums, axis_name), prepared, kind, pooled=pooled)

    # All devices take the same way: they have the same mixture, the same frame and the same sums.
    moments, accurate = jax.lax.cond(amplitude <= amplitude_limit(x.dtype), first_natural, first_centred)
    found = moments.origin + moments.first / positive_count(moments.count)[:, None]
    return jax.lax.cond(accurate, lambda: moments, lambda: centred(found))


def keeps_variances(count: Array, first: Array, second: Array) -> Bool[Array, ""]:
    """Whether the variances that moments imply are large enough beside the second moments they are taken from."""
    squares = second if second.ndim == 2 else jnp.diagonal(second, axis1=1, axis2=2)
    about_origin = jnp.square(first) / positive_count(count)[:, None]
    rounding = _VARIANCE_ROUNDING
    if squares.shape[1] < first.shape[1]:
        about_origin = about_origin.mean(1, keepdims=True)
    if len(squares) < len(count):
        about_origin, rounding = about_origin.sum(0, keepdims=True), _POOLED_VARIANCE_ROUNDING
    lost = rounding * float(jnp.finfo(count.dtype).eps) / _tolerance(count.dtype, _VARIANCE_TOLERANCE)
    return (squares - about_origin >= lost * squares).all()


def centred_sums(
    mixture: Mixture, x: Array, row_weights: Array, origin: Float[Array, "k d"], *, pooled: bool
) -> tuple[Array, ...]:
    """Counts, first and second moments about the origin, and the log-likelihood."""

    def block(v: Array, x: Array) -> tuple[Array, ...]:
        shares, parts = shares_and_marginal_parts(joint_of_rows(mixture, x), v)
        first, second = weighted_sums(shares, x.T[None] - origin[:, :, None], mixture.is_diagonal)
        if pooled:
            second = second.sum(0, keepdims=True)
        return shares.sum(1), first, second, weighted_marginal(v, *parts)

    return sum_over_blocks(block, centred_block(x, mixture.num_components), row_weights, x)


class NaturalSums(NamedTuple):
    """Sums over rows: features times shares (P, k), marginal log-densities, and what pooled second moments need."""

    products: Array
    marginal: Array
    second: Array | None


def natural_sums(
    mixture: Mixture, theta: Array, x: Array, row_weights: Array, prepared: Prepared, kind: natural.Kind
) -> NaturalSums:
    needs_second = kind == "pooled" and prepared.second is None
    # Products are fastest with components in eights; a few more cost less than a rest.
    num_components = mixture.num_components
    num_more = -num_components % 8 if -num_components % 8 < num_components else 0

    def of_block(v: Array, coordinates: Array) -> NaturalSums:
        features = natural.features(coordinates, kind)
        shares, parts = shares_and_marginal_parts(jnp.matmul(theta, features, precision="highest"), v)
        shares = jnp.pad(shares, ((0, num_more), (0, 0)))
        products = jax.lax.dot_general(features, shares, (((1,), (1,)), ((), ())), precision="highest")
        second = natural.second_moment(coordinates[:-1], v, diagonal=mixture.is_diagonal) if needs_second else None
        # One after the other: XLA would hand what is independent to other threads, which have blocks of their own.
        products, parts = jax.lax.optimization_barrier((products, parts))
        return NaturalSums(products, weighted_marginal(v, *parts), second)

    if prepared.blocks is not None:
        sums = sum_over_stack(of_block, prepared.blocks)
    else:
        size = _natural_block(mixture, x, kind)
        sums = sum_over_blocks(lambda v, x: of_block(v, prepared.frame.coordinates(x, kind)), size, row_weights, x)
    return sums._replace(products=sums.products[:, :num_components])


def moments_of_sums(
    mixture: Mixture, precision: Array, sums: NaturalSums, prepared: Prepared, kind: natural.Kind, *, pooled: bool
) -> tuple[Moments, Array]:
    """Moments about the means in the units of the data, and whether they are accurate."""
    diagonal, d = mixture.is_diagonal, mixture.num_features
    count, first, second = natural.unpack(sums.products, d, kind)
    log_likelihood = sums.marginal
    if second is None:
        second = sums.second if prepared.second is None else prepared.second
        assert second is not None  # one of the two has what the features of a pooled form leave out
        log_likelihood = log_likelihood - 0.5 * (precision * second).sum()
    # The amplitude once more, for the rows that each component turned out to have.
    squares = second if diagonal else jnp.diagonal(second, axis1=1, axis2=2)
    spread = squares / (count.sum() if kind == "pooled" else positive_count(count)[:, None])
    amplitude = natural.amplitude(precision, jnp.broadcast_to(spread, first.shape), kind)
    if pooled and len(second) > 1:
        second = second.sum(0, keepdims=True)
    accurate = (amplitude <= amplitude_limit(count.dtype)) & keeps_variances(count, first, second)
    first, second = natural.about_means(mixture, prepared.frame, count, first, second)
    # Once more about the means of the mixture: rows far from them leave the M-step little of a variance.
    accurate = accurate & keeps_variances(count, first, second)
    if diagonal:
        second = jnp.broadcast_to(second, (len(second), d))
    return Moments(mixture.means, count, first, second, log_likelihood), accurate
