r"""The same density as one matrix product: a mixture's natural parameters, and the features of rows they multiply.

With rows standardised to $z = ((x - o) / s, 1)$ every joint log-density is a quadratic form $z^\top G_j z$, so that for
a block of rows all of them are one product $\Theta T$ of parameters (k, P) and features (P, rows), and the moments of
the block are one product $T R^\top$ with its responsibilities. That is half the arithmetic of the centred form, in
the shape that processors like best.

It has a price: a component that is narrow beside its distance from the origin is a small difference of large
terms. The amplitude estimates how many digits that costs, and `moments` takes this form only where enough are left.

Which monomials of z are features depends on the representation of the covariances:

* own triangular factors: all products $z_a z_b$, each once, so $P = (d+1)(d+2)/2$;
* own diagonal factors: squares and z itself, $P = 2d + 1$;
* own diagonal factors with one variance each: the sum of squares and z itself, $P = d + 2$;
* one factor for all components: z itself, $P = d + 1$; the quadratic part, common to all, is left to the totals.
"""

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from bayesgmm.likelihood.moments import (
    MomentKind,
    Moments,
    Sums,
    keeps_variances,
    move_second,
    of_precision,
    positive_count,
)
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.mixture import Assigned, Mixture, joint_of_rows

FRAME_ROWS = 1024  # that a frame is made from
# Sizes of a block, each measured to slow it down where it is more: what its features and its responsibilities take
# falls out of the caches, or is cut up for other threads.
_MOST_FEATURES, _MOST_JOINT_BYTES, _MOST_ROWS, _LEAST_ROWS = 50_000, 120_000, 2048, 256
_LOG_PROB_TOLERANCE = (1e-9, 1e-4)  # errors allowed in float64 and float32, as a fraction of the log-density of a row
_LOG_PROB_ROUNDING = 2.0  # multiple of the machine's epsilon below which rounding errors were measured


class Frame(NamedTuple):
    """Where rows are standardised to: origin (d) in the units of the data, and the reciprocal of the scale (d)."""

    origin: Array
    inverse_scale: Array

    def standardise(self, x: Float[Array, "n d"]) -> Float[Array, "d n"]:
        """$(x - o) / s$ with rows as the fastest axis; only the subtraction rounds, for s are powers of two."""
        return (x.T - self.origin[:, None]) * self.inverse_scale[:, None]

    def coordinates(self, x: Float[Array, "n d"], kind: MomentKind) -> Float[Array, "c n"]:
        """(z, 1), with sums of squares if need be: what `features` of a block are made of, and much smaller."""
        z = self.standardise(x)
        ones = jnp.ones((1, z.shape[1]), z.dtype)
        if kind.features == "sum of squares":
            return jnp.concatenate([z, ones, jnp.square(z).sum(0, keepdims=True)])
        return jnp.concatenate([z, ones])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Natural:
    """The formulation by natural parameters: a mixture in a frame.

    Attributes:
        mixture: the mixture.
        frame: where rows are standardised to.
        theta: parameters (k, P); with linear features without the quadratic part, which all components share.
        precision: precisions in the frame, (e, d, d) or (e, d).
        second: second moment of all rows in the frame, where features are linear and it is known.
        kind: the moments that are made.
    """

    mixture: Mixture
    frame: Frame
    theta: Array
    precision: Array
    second: Array | None
    kind: MomentKind = field(metadata={"static": True})

    def block_size(self, rows: Rows) -> int:
        """Rows in a block."""
        return block_size(rows, self.mixture.num_components, self.kind)

    def view(self, values: Float[Array, "n d"]) -> Float[Array, "c n"]:
        """What joint log-densities and moments are taken of: coordinates of the rows."""
        return self.frame.coordinates(values, self.kind)

    def joint(self, coordinates: Float[Array, "c n"]) -> Float[Array, "k n"]:
        """Joint log-densities; with linear features without the part that all components share."""
        return jnp.matmul(self.theta, features(coordinates, self.kind), precision="highest")

    def terms(
        self, coordinates: Float[Array, "c n"], weights: Float[Array, " n"], shares: Float[Array, "k n"]
    ) -> tuple[Float[Array, "p m"], Array | None]:
        """Sums of features times shares, and what pooled second moments need."""
        # Products are fastest with components in eights; a few more cost less than a remainder.
        num_more = -len(shares) % 8 if -len(shares) % 8 < len(shares) else 0
        shares = jnp.pad(shares, ((0, num_more), (0, 0)))
        products = jax.lax.dot_general(
            features(coordinates, self.kind), shares, (((1,), (1,)), ((), ())), precision="highest"
        )
        if self.kind.features == "linear" and self.second is None:
            return products, second_moment(coordinates[:-1], weights, self.kind)
        return products, None

    def in_order[T](self, terms: T, assigned: Assigned) -> tuple[T, Assigned]:
        """One after the other: XLA would hand what is independent to other threads, which have blocks of their own."""
        return jax.lax.optimization_barrier((terms, assigned))

    def moments(self, sums: Sums) -> tuple[Moments, Array]:
        """Moments about the means in the units of the data, and whether they are accurate."""
        products, second_of_rows = sums.terms
        kind, d, log_likelihood = self.kind, self.mixture.num_features, sums.log_likelihood
        count, first, second = unpack(products[:, : self.mixture.num_components], d, kind)
        if second is None:
            second = second_of_rows if self.second is None else self.second
            log_likelihood = log_likelihood - 0.5 * (self.precision * second).sum()
        # The amplitude once more, for the rows that each component turned out to have.
        squares = kind.representation.diagonal_of(second)
        spread = squares / (count.sum() if kind.features == "linear" else positive_count(count)[:, None])
        accurate = amplitude(self.precision, jnp.broadcast_to(spread, first.shape), kind) <= amplitude_limit(
            count.dtype
        )
        if kind.pooled and kind.features != "linear":
            second = second.sum(0, keepdims=True)
        accurate = accurate & keeps_variances(count, first, second, kind)
        first, second = about_means(self.mixture, self.frame, count, first, second, kind)
        # Once more about the means of the mixture: rows far from them leave the M-step little of a variance.
        accurate = accurate & keeps_variances(count, first, second, kind)
        return Moments(self.mixture.means, count, first, second, log_likelihood), accurate


def amplitude_limit(dtype: DTypeLike) -> float:
    """How large an amplitude the tolerance of log-densities allows."""
    return of_precision(dtype, _LOG_PROB_TOLERANCE) / (_LOG_PROB_ROUNDING * float(jnp.finfo(dtype).eps))


def block_size(rows: Rows, num_components: int, kind: MomentKind) -> int:
    """Rows in a block: a few thousand of few features, fewer of many."""
    d = rows.num_features  # and the numbers of features that are made of them
    sizes = {"products": len(_pairs(d)[0]), "squares": 2 * d + 1, "sum of squares": d + 2, "linear": d + 1}
    size = min(
        _MOST_FEATURES // sizes[kind.features],
        _MOST_JOINT_BYTES // (num_components * rows.dtype.itemsize),
        _MOST_ROWS,
    )
    return min(len(rows), max(_LEAST_ROWS, size // 64 * 64))


def frame_of(x: Float[Array, "n d"], kind: MomentKind, axis_name: str | None = None) -> Frame:
    """A frame near the centre of the rows, in about their spread; a thousand rows determine it well enough.

    Isotropic components stay isotropic: they have one scale for all features. All devices have the same frame.
    """

    def mean(rows: Array) -> Array:
        return rows.mean(0) if axis_name is None else jax.lax.pmean(rows.mean(0), axis_name)

    sample = x[:: max(1, len(x) // FRAME_ROWS)]
    origin = mean(sample)
    spread = jnp.sqrt(mean(jnp.square(sample - origin[None])))
    usable = (spread > 0) & jnp.isfinite(spread)
    if kind.features == "sum of squares":
        largest = jnp.where(usable, spread, 0.0).max()
        spread, usable = jnp.broadcast_to(largest, spread.shape), largest > 0
    _, exponent = jnp.frexp(jnp.where(usable, spread, 1.0))
    return Frame(origin, jnp.ldexp(jnp.ones_like(spread), -exponent))


@functools.partial(jax.jit, static_argnames="kind")
def natural_form(mixture: Mixture, frame: Frame, second: Array | None, *, kind: MomentKind) -> tuple[Natural, Array]:
    r"""The mixture in a frame, and its amplitude: how far this form amplifies the rounding of its terms.

    The amplitude is the largest $(\sum_{ab} (\Lambda_{ab} \rho_a \rho_b)^2)^{1/2}$ over the components, with the
    precision $\Lambda$ and $\rho_a^2 = m_a^2 + \max(1, 1 / \Lambda_{aa})$ from the mean m, all in the frame: the root
    of the summed squares of the terms whose sum is the log-density of a typical row. Independent roundings add up so.
    Those of an isotropic component are one term, the sum over a; it is infinite where the variances of one differ.
    """
    means = (mixture.means - frame.origin[None]) * frame.inverse_scale[None]
    factor = mixture.factor.scaled(1.0 / frame.inverse_scale)
    precision = factor.precisions()
    if kind.features != "linear":
        precision = jnp.broadcast_to(precision, (mixture.num_components, *precision.shape[1:]))
    size = jnp.square(means) + jnp.maximum(1.0, 1.0 / factor.diagonal_of(precision))
    linear = factor.times(precision, means)
    constant = joint_of_rows(mixture, frame.origin[None])
    if kind.features == "linear":
        theta = jnp.concatenate([linear, constant], 1)
    elif kind.features == "sum of squares":
        theta = jnp.concatenate([linear, constant, -0.5 * precision[:, :1]], 1)
    elif kind.features == "squares":
        theta = jnp.concatenate([-0.5 * precision, linear, constant], 1)
    else:
        half = 0.5 * linear[:, :, None]
        upper = jnp.concatenate([-0.5 * precision, half], 2)
        form = jnp.concatenate([upper, jnp.concatenate([jnp.swapaxes(half, 1, 2), constant[:, :, None]], 2)], 1)
        rows, columns, coefficients = _pairs(mixture.num_features)
        theta = form[:, rows, columns] * coefficients.astype(form.dtype)[None]
    return Natural(mixture, frame, theta, precision, second, kind), amplitude(precision, size, kind)


def amplitude(precision: Array, size: Float[Array, "k d"], kind: MomentKind) -> Float[Array, ""]:
    """The amplitude of precisions (e, d, d) or (e, d) for rows of this mean square size in the frame."""
    if kind.features == "sum of squares":
        same = (precision == precision[:, :1]).all()
        return jnp.where(same, (precision * size).sum(1).max(), jnp.inf)
    energy = (kind.representation.times(jnp.square(precision), size) * size).sum(1)
    return jnp.sqrt(energy.max())


def features(coordinates: Float[Array, "c n"], kind: MomentKind) -> Float[Array, "p n"]:
    """The monomials of standardised rows that `theta` multiplies, (P, n), from `Frame.coordinates`."""
    if kind.features == "products":
        rows, columns, _ = _pairs(len(coordinates) - 1)
        return coordinates[rows] * coordinates[columns]
    if kind.features == "squares":
        return jnp.concatenate([jnp.square(coordinates[:-1]), coordinates])
    return coordinates


def unpack(sums: Float[Array, "p k"], num_features: int, kind: MomentKind) -> tuple[Array, Array, Array | None]:
    """Counts (k), first (k, d) and second moments in the frame, from products of features.

    Second moments are (k, d, d) or (k, d), where they are averaged d times the same; none where features are linear.
    """
    sums, d = sums.T, num_features
    if kind.features == "linear":
        return sums[:, d], sums[:, :d], None
    if kind.features == "sum of squares":
        return sums[:, d], sums[:, :d], jnp.broadcast_to(sums[:, d + 1 :] / d, (len(sums), d))
    if kind.features == "squares":
        return sums[:, -1], sums[:, d : 2 * d], sums[:, :d]
    dense = sums[:, _positions(d)]
    return sums[:, _positions(d)[d, d]], dense[:, d, :d], dense[:, :d, :d]


def second_moment(z: Float[Array, "d n"], row_weights: Float[Array, " n"], kind: MomentKind) -> Array:
    """Weighted sum of products of standardised rows, whatever their component: (1, d, d), or of squares (1, d)."""
    return kind.representation.outer_sums((z * row_weights[None])[None], z[None])


def about_means(
    mixture: Mixture,
    frame: Frame,
    count: Float[Array, " k"],
    first: Float[Array, "k d"],
    second: Array,
    kind: MomentKind,
) -> tuple[Array, Array]:
    """First and second moments in the frame, moved to the means of the mixture and to the units of the data."""
    means = (mixture.means - frame.origin[None]) * frame.inverse_scale[None]
    centred, unit = first - count[:, None] * means, 1.0 / frame.inverse_scale
    moved = move_second(kind.representation, second, means, first, centred)
    if kind.features == "sum of squares":  # whose frame has one scale
        moved = jnp.broadcast_to(moved.mean(1, keepdims=True), moved.shape)
    return centred * unit[None], moved * kind.representation.outer(unit, unit)[None]


def _pairs(num_features: int) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Every unordered pair of the d + 1 coordinates, and how often the quadratic form counts it.

    Pairs go along cyclic diagonals: one index counts up and the other runs a fixed shift ahead, so both gathers copy
    contiguous rows. For an odd d the last diagonal holds its pairs twice, each at half the weight.
    """
    size = num_features + 1
    shifts = size // 2 + 1
    rows = np.tile(np.arange(size), shifts)
    shift = np.repeat(np.arange(shifts), size)
    coefficients = np.where((shift == 0) | (2 * shift == size), 1.0, 2.0)
    return rows, (rows + shift) % size, coefficients


def _positions(num_features: int) -> Int[np.ndarray, "c c"]:
    """Where each pair of coordinates, (d + 1, d + 1), stands among the features."""
    rows, columns, _ = _pairs(num_features)
    positions = np.zeros((num_features + 1, num_features + 1), np.int32)
    positions[rows, columns] = positions[columns, rows] = np.arange(len(rows))
    return positions
