r"""The same density as one matrix product: a mixture's natural parameters, and the features of rows they multiply.

With rows standardised to $z = ((x - o) / s, 1)$ every joint log-density is a quadratic form $z^\top G_j z$, so that for
a block of rows all of them are one product $\Theta T$ of parameters (k, P) and features (P, rows), and the moments of
the block are one product $T R^\top$ with its responsibilities. That is half the arithmetic of the centred form, in
the shape that processors like best.

It has a price: a component that is narrow beside its distance from the origin is a small difference of large
terms. The amplitude foretells how many digits that costs, and `moments` takes this form only where enough are left.

Which monomials of z are features depends on the representation of the covariances:

* own triangular factors: all products $z_a z_b$, each once, so $P = (d+1)(d+2)/2$;
* own diagonal factors: squares and z itself, $P = 2d + 1$;
* own diagonal factors with one variance each: the sum of squares and z itself, $P = d + 2$;
* one factor for all components: z itself, $P = d + 1$; the quadratic part, common to all, is left to the totals.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesgmm.mixtures.mixture import Mixture, joint_of_rows

_FRAME_ROWS = 1024

Kind = Literal["dense", "diagonal", "isotropic", "pooled"]


class Frame(NamedTuple):
    """Where rows are standardised to: origin (d) in the units of the data, and the reciprocal of the scale (d)."""

    origin: Array
    inverse_scale: Array

    def standardise(self, x: Float[Array, "n d"]) -> Float[Array, "d n"]:
        """$(x - o) / s$ with rows as the fastest axis; only the subtraction rounds, for s are powers of two."""
        return (x.T - self.origin[:, None]) * self.inverse_scale[:, None]

    def coordinates(self, x: Float[Array, "n d"], kind: Kind) -> Float[Array, "c n"]:
        """(z, 1), with sums of squares if need be: what `features` of a block are made of, and much smaller."""
        z = self.standardise(x)
        ones = jnp.ones((1, z.shape[1]), z.dtype)
        if kind == "isotropic":
            return jnp.concatenate([z, ones, jnp.square(z).sum(0, keepdims=True)])
        return jnp.concatenate([z, ones])


class NaturalForm(NamedTuple):
    """A mixture in a frame: `theta` (k, P), and precisions (e, d, d) or (e, d).

    In a pooled form theta leaves out the quadratic part, which is common to all components.
    """

    theta: Array
    precision: Array


def kind_of(mixture: Mixture, *, pooled: bool, isotropic: bool) -> Kind:
    """Which features a mixture needs, where second moments are wanted pooled, or averaged over the features."""
    if pooled and len(mixture.precision_factor) == 1:
        return "pooled"
    if mixture.is_diagonal:
        return "isotropic" if isotropic else "diagonal"
    return "dense"


def num_products(num_features: int, kind: Kind) -> int:
    """P, the features of a row, as they are laid out here."""
    d = num_features
    return {"dense": len(_pairs(d)[0]), "diagonal": 2 * d + 1, "isotropic": d + 2, "pooled": d + 1}[kind]


def frame_of(x: Float[Array, "n d"], kind: Kind, axis_name: str | None = None) -> Frame:
    """A frame near the centre of the rows, in about their spread; a thousand rows say enough for that.

    Isotropic components stay isotropic: they have one scale for all features. All devices have the same frame.
    """

    def mean(rows: Array) -> Array:
        return rows.mean(0) if axis_name is None else jax.lax.pmean(rows.mean(0), axis_name)

    sample = x[:: max(1, len(x) // _FRAME_ROWS)]
    origin = mean(sample)
    spread = jnp.sqrt(mean(jnp.square(sample - origin[None])))
    usable = (spread > 0) & jnp.isfinite(spread)
    if kind == "isotropic":
        largest = jnp.where(usable, spread, 0.0).max()
        spread, usable = jnp.broadcast_to(largest, spread.shape), largest > 0
    _, exponent = jnp.frexp(jnp.where(usable, spread, 1.0))
    return Frame(origin, jnp.ldexp(jnp.ones_like(spread), -exponent))


def natural_form(mixture: Mixture, frame: Frame, kind: Kind) -> tuple[NaturalForm, Array]:
    r"""The mixture in a frame, and its amplitude: how far this form amplifies the rounding of its terms.

    The amplitude is the largest $(\sum_{ab} (\Lambda_{ab} \rho_a \rho_b)^2)^{1/2}$ over the components, with the
    precision $\Lambda$ and $\rho_a^2 = m_a^2 + \max(1, 1 / \Lambda_{aa})$ from the mean m, all in the frame: the root
    of the summed squares of the terms whose sum is the log-density of a typical row. Independent roundings add up so.
    Those of an isotropic component are one term, the sum over a; it is infinite where the variances of one differ.
    """
    means = (mixture.means - frame.origin[None]) * frame.inverse_scale[None]
    precision = _precision(mixture, frame)
    diagonal = precision if mixture.is_diagonal else jnp.diagonal(precision, axis1=1, axis2=2)
    size = jnp.square(means) + jnp.maximum(1.0, 1.0 / diagonal)
    if mixture.is_diagonal:
        linear = precision * means
    else:
        dense = jnp.broadcast_to(precision, (mixture.num_components, *precision.shape[1:]))
        linear = (dense * means[:, None, :]).sum(2)
    constant = joint_of_rows(mixture, frame.origin[None])
    if kind == "pooled":
        return NaturalForm(jnp.concatenate([linear, constant], 1), precision), amplitude(precision, size, kind)
    if kind == "isotropic":
        theta = jnp.concatenate([linear, constant, -0.5 * precision[:, :1]], 1)
        return NaturalForm(theta, precision), amplitude(precision, size, kind)
    precision = jnp.broadcast_to(precision, (mixture.num_components, *precision.shape[1:]))
    if mixture.is_diagonal:
        theta = jnp.concatenate([-0.5 * precision, linear, constant], 1)
        return NaturalForm(theta, precision), amplitude(precision, size, kind)
    half = 0.5 * linear[:, :, None]
    upper = jnp.concatenate([-0.5 * precision, half], 2)
    form = jnp.concatenate([upper, jnp.concatenate([jnp.swapaxes(half, 1, 2), constant[:, :, None]], 2)], 1)
    rows, columns, coefficients = _pairs(mixture.num_features)
    theta = form[:, rows, columns] * coefficients.astype(form.dtype)[None]
    return NaturalForm(theta, precision), amplitude(precision, size, kind)


def amplitude(precision: Array, size: Float[Array, "k d"], kind: Kind) -> Float[Array, ""]:
    """The amplitude of precisions (e, d, d) or (e, d) for rows of this mean square size in the frame."""
    if kind == "isotropic":
        same = (precision == precision[:, :1]).all()
        return jnp.where(same, (precision * size).sum(1).max(), jnp.inf)
    squares = jnp.square(precision)
    if precision.ndim == 2:
        energy = (squares * jnp.square(size)).sum(1)
    else:
        energy = ((squares * size[:, None, :]).sum(2) * size).sum(1)
    return jnp.sqrt(energy.max())


def features(coordinates: Float[Array, "c n"], kind: Kind) -> Float[Array, "p n"]:
    """The monomials of standardised rows that `theta` multiplies, (P, n), from `Frame.coordinates`."""
    if kind == "dense":
        rows, columns, _ = _pairs(len(coordinates) - 1)
        return coordinates[rows] * coordinates[columns]
    if kind == "diagonal":
        return jnp.concatenate([jnp.square(coordinates[:-1]), coordinates])
    return coordinates


def unpack(sums: Float[Array, "p k"], num_features: int, kind: Kind) -> tuple[Array, Array, Array | None]:
    """Counts (k), first (k, d) and second moments in the frame, from products of features.

    Second moments are (k, d, d), (k, d) or, averaged over the features, (k, 1); none where they are pooled.
    """
    sums, d = sums.T, num_features
    if kind == "pooled":
        return sums[:, d], sums[:, :d], None
    if kind == "isotropic":
        return sums[:, d], sums[:, :d], sums[:, d + 1 :] / d
    if kind == "diagonal":
        return sums[:, -1], sums[:, d : 2 * d], sums[:, :d]
    dense = sums[:, _positions(d)]
    return sums[:, _positions(d)[d, d]], dense[:, d, :d], dense[:, :d, :d]


def second_moment(z: Float[Array, "d n"], row_weights: Float[Array, " n"], *, diagonal: bool) -> Array:
    """Weighted sum of products of standardised rows, whatever their component: (1, d, d), or of squares (1, d)."""
    weighted = z * row_weights[None]
    if diagonal:
        return (weighted * z).sum(1)[None]
    return jnp.matmul(weighted, z.T, precision="highest")[None]


def about_means(
    mixture: Mixture, frame: Frame, count: Float[Array, " k"], first: Float[Array, "k d"], second: Array
) -> tuple[Array, Array]:
    """First and second moments in the frame, moved to the means of the mixture and to the units of the data.

    Second moments may be pooled (1, ...), or averaged over the features (k, 1).
    """
    means = (mixture.means - frame.origin[None]) * frame.inverse_scale[None]
    centred = first - count[:, None] * means
    unit = 1.0 / frame.inverse_scale
    if second.ndim == 2:
        taken, units = means * (first + centred), jnp.square(unit)[None]
        if second.shape[1] < first.shape[1]:
            taken, units = taken.mean(1, keepdims=True), units[:, :1]  # such a frame has one scale
    else:
        taken = means[:, :, None] * first[:, None, :] + centred[:, :, None] * means[:, None, :]
        units = (unit[:, None] * unit[None, :])[None]
    if len(second) < len(count):
        taken = taken.sum(0, keepdims=True)
    return centred * unit[None], (second - taken) * units


def _pairs(num_features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _positions(num_features: int) -> np.ndarray:
    """Where each pair of coordinates, (d + 1, d + 1), stands among the features."""
    rows, columns, _ = _pairs(num_features)
    positions = np.zeros((num_features + 1, num_features + 1), np.int32)
    positions[rows, columns] = positions[columns, rows] = np.arange(len(rows))
    return positions


def _precision(mixture: Mixture, frame: Frame) -> Array:
    """Precision in the frame, (e, d, d) or (e, d)."""
    if mixture.is_diagonal:
        return jnp.square(mixture.precision_factor / frame.inverse_scale[None])
    factor = jnp.tril(mixture.precision_factor) / frame.inverse_scale[None, None]
    return jnp.matmul(jnp.swapaxes(factor, 1, 2), factor, precision="highest")
