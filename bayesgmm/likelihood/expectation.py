r"""The one pass over the rows: expected sufficient statistics and the log-likelihood, block by block.

Rows are taken in blocks small enough that a block's working set stays in cache. Of each block the pass keeps only sums:
the log-likelihood and, for every component, its expected count, first and second moments

$$ N_j = \sum_i v_i r_{ij}, \quad a_j = \sum_i v_i r_{ij} (x_i - o_j), \quad
   S_j = \sum_i v_i r_{ij} (x_i - o_j)(x_i - o_j)^\top, $$

with row weights $v_i$, responsibilities $r_{ij}$ and an origin $o_j$, the component's current mean (sums about the mean
keep the digits that sums about zero cancel). Sums add, so blocks, and later devices, only have to be added.

`pass_over` is that pass, whatever is asked of it: moments, scores of rows, with allocations that are expected, drawn or
given, of rows in memory, in chunks or on devices.

Two formulations give the same sums. The centred one whitens the difference of each row from each mean. The natural one
(`natural.py`) is two matrix products, several times faster, and loses digits where a component is narrow beside its
distance from the middle of the data. Fits, and large single passes, take the natural one where the rule of
`moments_by_rule` finds that it keeps a log-density to 1e-9 (float64) or 1e-4 (float32) of its size and covariances to
1e-7 or 1e-3; else the centred one.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bayesgmm.errors import InputError
from bayesgmm.likelihood import natural
from bayesgmm.likelihood.moments import MomentKind, Moments, Sums, keeps_variances, moment_kind, positive_count
from bayesgmm.likelihood.rows import Rows, over_blocks, stack_of_blocks
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import (
    Assigned,
    Mixture,
    as_mixture,
    drawn_shares,
    expected_shares,
    joint_of_rows,
    rows_of_mixture,
)
from bayesgmm.numerics.blocks import block_size, sum_of_blocks
from bayesgmm.numerics.precision import (
    AnyArray,
    ArrayLike,
    in_wider_precision,
    matching_precision,
    matmul,
    namespace,
)
from bayesgmm.numerics.validation import real_array

LARGE_PASS = 2**19  # rows x features x components from which the natural form is worth its compilation
LARGE_FIT = 2**11  # for a fit of many passes, which share what they prepare
_PREPARED_BYTES = 2**27  # standardised rows are kept from pass to pass where they take no more, over all devices


@matching_precision
def expected_moments(
    mixture: Mixture,
    x: ArrayLike | Rows,
    row_weights: ArrayLike | None = None,
    *,
    family: str | Family | None = None,
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
    mixture, rows = in_one_precision(mixture, x, row_weights)
    kind = moment_kind(mixture, None if family is None else get_family(family))
    return moments_of_rows(mixture, rows, prepared, kind=kind, axis_name=axis_name)


def in_one_precision(
    mixture: Mixture, x: ArrayLike | Rows, row_weights: ArrayLike | None = None
) -> tuple[Mixture, Rows]:
    """The mixture and the rows in one precision: that of the mixture, or float64 where the rows have it."""
    if as_mixture(mixture).draw_shape:
        raise InputError(f"mixture has leading axes {mixture.draw_shape}; index it down to a single one, or use vmap")
    if isinstance(x, Rows) and row_weights is None:
        x, row_weights = x.values, x.weights
    values = rows_of_mixture(mixture, x.values if isinstance(x, Rows) else x)
    mixture, values = in_wider_precision(mixture, mixture.means.dtype, values)
    dtype = values.dtype
    weights = jnp.ones(values.shape[:1], dtype) if row_weights is None else real_array(row_weights, "row_weights")
    if weights.shape != values.shape[:1]:
        raise InputError(f"row_weights must have shape {values.shape[:1]}, one for each row; got {weights.shape}")
    mixture = jax.tree.map(lambda field: jnp.asarray(field, dtype), mixture)
    return mixture, Rows(jnp.asarray(values, dtype), jnp.asarray(weights, dtype))


def moments_of_partition(rows: Rows, responsibilities: Float[AnyArray, "n k"], family: Family) -> Moments:
    """Moments of given responsibilities, about the weighted means they imply; used to start an engine.

    Means come first, so that a component much narrower than the data loses no digits; what they are rounded by is left
    to the first moments. There is no mixture yet, hence no log-likelihood: that field is NaN.
    """
    count = matmul(rows.weights, responsibilities)
    total = matmul(responsibilities.T, rows.values * rows.weights[:, None])
    kind = MomentKind(family.representation, pooled=False, averaged=False, shared=False)
    form = Centred(None, total / positive_count(count)[:, None], kind)
    moments, _ = form.moments(pass_over(form, rows, responsibilities=responsibilities)[0])
    return dataclasses.replace(moments, log_likelihood=namespace(rows.values).full((), np.nan, rows.dtype))


def pass_over[R](
    form: "Centred | natural.Natural",
    rows: Rows | tuple[Array, Array],
    *,
    uniform: Float[Array, " n"] | None = None,
    responsibilities: Float[AnyArray, "n k"] | None = None,
    score: Callable[[Assigned], R] = lambda _: None,
    with_sums: bool = True,
) -> tuple[Sums, R]:
    """The one pass over the rows: the sums that moments are made of, and scores of the rows, arrays (n, ...).

    Responsibilities are those of the formulation's mixture; with `uniform` numbers each row is allocated to a component
    drawn by them; or they are given. Rows may be given as the blocks of `Prepared`.
    """

    def block(view: AnyArray, weights: AnyArray, *given: AnyArray) -> tuple[Sums, R]:
        if responsibilities is not None:
            assigned = _given_shares(weights, *given)
        elif uniform is not None:
            assigned = drawn_shares(form.joint(view), weights, *given)
        else:
            assigned = expected_shares(form.joint(view), weights)
        scores = score(assigned)
        if not with_sums:
            return Sums((), jnp.zeros((), weights.dtype)), scores
        terms, assigned = form.in_order(form.terms(view, weights, assigned.shares), assigned)
        return Sums(terms, assigned.log_likelihood(weights)), scores

    if not isinstance(rows, Rows):
        weights, views = rows

        def block_of_stack(index: Array) -> tuple[Sums, R]:
            at_index = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
            return block(at_index(views), at_index(weights))

        return sum_of_blocks(block_of_stack, len(weights), weights.dtype)
    given = [array for array in (uniform, responsibilities) if array is not None]
    size = len(rows) if namespace(rows.values) is np else form.block_size(rows)
    return over_blocks(lambda rows, *given: block(form.view(rows.values), rows.weights, *given), size, rows, *given)


def _given_shares(row_weights: Float[AnyArray, " n"], responsibilities: Float[AnyArray, "n k"]) -> Assigned:
    """Given responsibilities as shares; there are no densities, and marginal log-densities are 0."""
    shares, xp = (responsibilities * row_weights[:, None]).T, namespace(row_weights)
    return Assigned(shares, xp.zeros_like(row_weights), xp.ones_like(row_weights))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Centred:
    """The formulation that whitens differences from the means, and takes moments about an origin (k, d)."""

    mixture: Mixture | None
    origin: AnyArray
    kind: MomentKind = field(metadata={"static": True})

    def block_size(self, rows: Rows) -> int:
        """Rows in a block."""
        return block_size(len(rows), rows.dtype.itemsize * self.origin.size)

    def view(self, values: Float[AnyArray, "n d"]) -> Float[AnyArray, "n d"]:
        """What joint log-densities and moments are taken of: the values."""
        return values

    def joint(self, values: Float[Array, "n d"]) -> Float[Array, "k n"]:
        """Joint log-densities."""
        assert self.mixture is not None
        return joint_of_rows(self.mixture, values)

    def terms(
        self, values: Float[AnyArray, "n d"], weights: AnyArray, shares: Float[AnyArray, "k n"]
    ) -> tuple[AnyArray, ...]:
        """Counts, first and second moments."""
        centred = values.T[None] - self.origin[:, :, None]
        weighted = shares[:, None, :] * centred
        second = self.kind.representation.outer_sums(weighted, centred)
        return shares.sum(1), weighted.sum(2), second.sum(0, keepdims=True) if self.kind.pooled else second

    def in_order[T](self, terms: T, assigned: Assigned) -> tuple[T, Assigned]:
        """Both, in whatever order they are computed."""
        return terms, assigned

    def moments(self, sums: Sums) -> tuple[Moments, AnyArray]:
        """Moments, and whether they are accurate."""
        count, first, second = sums.terms
        accurate = keeps_variances(count, first, second, self.kind)
        return Moments(self.origin, count, first, second, sums.log_likelihood), accurate


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
    mixture: Mixture, rows: Rows, family: Family | None = None, *, axis_name: str | None = None
) -> Prepared | None:
    """What the passes of a fit can share, for mixtures of the same representation; nothing for small problems."""
    return prepare_kind(mixture, rows, moment_kind(mixture, family), axis_name=axis_name)


def prepare_kind(mixture: Mixture, rows: Rows, kind: MomentKind, *, axis_name: str | None = None) -> Prepared | None:
    """`prepare` for moments of this kind."""
    if mixture.num_components * rows.values.size < LARGE_FIT:
        return None
    frame = natural.frame_of(rows.values, kind, axis_name)
    size = natural.block_size(rows, mixture.num_components, kind)
    num_shares = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    blocks = None
    if rows.dtype.itemsize * len(rows) * (rows.num_features + 3) <= _PREPARED_BYTES // num_shares:
        blocks = stack_of_blocks(lambda rows: (rows.weights, frame.coordinates(rows.values, kind)), size, rows)
    second = None
    if kind.features == "linear":
        second = psum(second_moment_of_rows(rows, frame, size, kind), axis_name)
    return Prepared(frame, blocks, second)


def second_moment_of_rows(rows: Rows, frame: natural.Frame, size: int, kind: MomentKind) -> Array:
    """Sum over rows of products about the origin of a frame, (1, d, d), or of squares, (1, d), in blocks of `size`."""

    return over_blocks(
        lambda rows: (natural.second_moment(frame.standardise(rows.values), rows.weights, kind), None), size, rows
    )[0]


def psum[T](terms: T, axis_name: str | None) -> T:
    """Sums over the devices of a mesh axis, all in one message; on one device the terms themselves."""
    if axis_name is None:
        return terms
    flat, unflatten = ravel_pytree(terms)
    return unflatten(jax.lax.psum(flat, axis_name))


@functools.partial(jax.jit, static_argnames=("kind", "axis_name"))
def moments_of_rows(
    mixture: Mixture, rows: Rows, prepared: Prepared | None = None, *, kind: MomentKind, axis_name: str | None = None
) -> Moments:
    """Moments in memory: by the rule where the problem is large, or prepared; else centred.

    In small problems, which may be lanes of a vmap, moments are taken once.
    """

    def run(form: Centred | natural.Natural) -> Sums:
        blocks = prepared.blocks if prepared is not None and isinstance(form, natural.Natural) else None
        return psum(pass_over(form, rows if blocks is None else blocks)[0], axis_name)

    if prepared is None and mixture.num_components * rows.values.size < LARGE_PASS:
        centred = Centred(mixture, mixture.means, kind)
        return centred.moments(run(centred))[0]
    frame = natural.frame_of(rows.values, kind, axis_name) if prepared is None else prepared.frame
    return moments_by_rule(mixture, frame, None if prepared is None else prepared.second, kind, run, jax.lax.cond)


def moments_by_rule(
    mixture: Mixture,
    frame: natural.Frame,
    second: Array | None,
    kind: MomentKind,
    run: Callable[[Centred | natural.Natural], Sums],
    choose: Callable[[Array, Callable[[], Any], Callable[[], Any]], Any],
) -> Moments:
    """The rule: moments by the natural form where its amplitude allows that, else by the centred one.

    Afterwards the moments may turn out to come from rows further out, or to imply variances much narrower, than those
    of the mixture. Then they are taken again by the centred form, about the means just found. All devices take the
    same way: they have the same mixture, the same frame and the same sums.
    """

    def by(form: Centred | natural.Natural) -> tuple[Moments, Array]:
        return form.moments(run(form))

    form, amplitude = natural.natural_form(mixture, frame, second, kind=kind)
    moments, accurate = choose(
        amplitude <= natural.amplitude_limit(mixture.means.dtype),
        lambda: by(form),
        lambda: by(Centred(mixture, mixture.means, kind)),
    )
    found = moments.origin + moments.first / positive_count(moments.count)[:, None]
    return choose(accurate, lambda: moments, lambda: by(Centred(mixture, found, kind))[0])
