r"""Mixtures of one feature: distribution function, quantiles, and the exact level of highest-density regions.

$$ F(x) = \sum_j w_j \, \Phi\!\left(\frac{x - \mu_j}{\sigma_j}\right). $$

Tails keep their digits: beyond the median everything is computed from $1 - F$, which is a sum of the same kind.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture, as_mixture, joint_of_rows, sum_over_components, vmap_draws, whiten
from bayesgmm.numerics.precision import AnyArray, ArrayLike, is_traced, matching_precision
from bayesgmm.numerics.validation import exact_in_float64, real_array, short_repr

_REACH = 9.0  # standard deviations around every component that are searched for modes
_POINTS = 109  # six for every standard deviation


def cdf(mixture: Mixture, x: ArrayLike) -> Float[AnyArray, "..."]:
    r"""Distribution function $F(x)$ of a mixture of one feature.

    Args:
        mixture: one mixture of one feature, or draws of them; `mixture.marginal(column)` is one.
        x: a number, or numbers (n) or (n, 1), in the units of the data.

    Returns:
        Probabilities of the shape of x, after the leading axes of the mixture; (n) for (n, 1).

    Raises:
        InputError: for several features, and for x of another shape or no real numbers.
    """
    check_univariate(mixture)
    return _at_each(_below, mixture, _numbers(x, "x"))


def quantile(mixture: Mixture, probability: ArrayLike) -> Float[AnyArray, "..."]:
    r"""The number below which a mixture of one feature has this probability: $F^{-1}$, by bisection.

    It has derivatives, by the rule for an inverse: $\dot x = (\dot p - \dot F(x)) / p(x)$.

    Args:
        mixture: one mixture of one feature, or draws of them.
        probability: a number from 0 to 1, or several, (n).

    Returns:
        Numbers in the units of the data, of the shape of `probability` after the leading axes of the mixture.

    Raises:
        InputError: for several features, and for what is no probability.
    """
    check_univariate(mixture)
    return _at_each(_inverse, mixture, check_probability(probability, closed=True))


def check_univariate(mixture: Mixture) -> None:
    """Refuse mixtures of several features.

    Raises:
        InputError: naming their number.
    """
    if as_mixture(mixture).num_features != 1:
        raise InputError(
            f"mixture has {mixture.num_features} features, and this is of one; take one of them by mixture.marginal(0)"
        )


def check_probability(probability: ArrayLike, *, closed: bool) -> AnyArray:
    """A probability or several, (n): from 0 to 1, or without these two.

    Raises:
        InputError: for other numbers, shapes and types.
    """
    found = _numbers(probability, "probability")
    if not is_traced(found):
        given = np.asarray(found)
        if not ((given >= 0) & (given <= 1) if closed else (given > 0) & (given < 1)).all():
            ends = "from 0 to 1" if closed else "between 0 and 1, without these"
            raise InputError(f"probability={short_repr(probability)} must lie {ends}")
    return found


def _numbers(value: object, name: str) -> AnyArray:
    array = exact_in_float64(real_array(value, name), name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim > 1:
        raise InputError(f"{name} must be a number or numbers of shape (n,); got {array.shape}")
    return array


@matching_precision
@functools.partial(jax.jit, static_argnums=0)
def _at_each(function: Callable[[Mixture, Array], Array], mixture: Mixture, numbers: ArrayLike) -> Array:
    """`function` of one mixture and numbers (n), for every draw of the mixture and numbers of any shape."""
    numbers = jnp.asarray(numbers, jax.dtypes.canonicalize_dtype(mixture.means.dtype))
    found = vmap_draws(lambda one: function(one, numbers.ravel()), mixture)(mixture)
    return found.reshape(*mixture.draw_shape, *numbers.shape)


def _below(mixture: Mixture, x: Float[Array, " n"]) -> Float[Array, " n"]:
    return _tails(mixture, x)[0]


def _tails(mixture: Mixture, x: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """F and 1 - F."""
    whitened = whiten(mixture, x[:, None])[:, 0]
    weights = jnp.exp(mixture.log_weights)[:, None]
    return (weights * ndtr(whitened)).sum(0), (weights * ndtr(-whitened)).sum(0)


def _log_density(mixture: Mixture, x: Float[Array, " n"]) -> Float[Array, " n"]:
    return sum_over_components(joint_of_rows(mixture, x[:, None]))


def _bisect(is_before: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where a condition ceases to hold between two ends, for every pair of them; one of the ends if it never changes.

    Halved is not the distance but the number of floating-point numbers between the ends, which are ordered like the
    integers that their bits stand for. So as many halvings as there are bits end at neighbours, also next to 0 and for
    ends that are many orders of magnitude farther apart than what lies between them is wide.
    """
    bits = jnp.finfo(low.dtype).bits
    whole = jnp.int64 if bits == 64 else jnp.int32

    def ordered(values: Array) -> Array:
        return jnp.where(values < 0, values ^ jnp.iinfo(whole).max, values)  # its own inverse

    def halve(_: Array | int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        before = is_before(jax.lax.bitcast_convert_type(ordered(middle), number))
        return jnp.where(before, middle, low), jnp.where(before, high, middle)

    number = low.dtype
    ends = tuple(ordered(jax.lax.bitcast_convert_type(end, whole)) for end in (low, jnp.maximum(low, high)))
    return jax.lax.bitcast_convert_type(ordered(jax.lax.fori_loop(0, bits, halve, ends)[1]), number)


@jax.custom_jvp
def _inverse(mixture: Mixture, probability: Float[Array, " n"]) -> Float[Array, " n"]:
    """The mixture's quantile lies between the smallest and the largest of its components' quantiles."""
    factor = mixture.precision_factor.reshape(-1, 1)
    of_components = mixture.means + ndtri(probability)[None] / factor
    used = jnp.isfinite(mixture.log_weights)[:, None]
    low = jnp.where(used, of_components, jnp.inf).min(0)
    high = jnp.where(used, of_components, -jnp.inf).max(0)

    def is_before(x: Array) -> Array:
        below, above = _tails(mixture, x)
        return jnp.where(probability > 0.5, above > 1 - probability, below < probability)

    return _bisect(is_before, low, high)


@_inverse.defjvp
def _inverse_jvp(primals: tuple[Mixture, Array], tangents: tuple[Mixture, Array]) -> tuple[Array, Array]:
    (mixture, probability), (change, step) = primals, tangents
    x = _inverse(mixture, probability)
    (_, _), (below, above) = jax.jvp(lambda one: _tails(one, x), (mixture,), (change,))
    moved = jnp.where(probability > 0.5, -above, below)
    # In a gap without density the derivative is infinite; one that overflows would be NaN for what does not move.
    density = jnp.maximum(jnp.exp(_log_density(mixture, x)), jnp.finfo(x.dtype).tiny)
    return x, (step - moved) / density


def exact_log_level(mixture: Mixture, probability: Float[Array, " p"]) -> Float[Array, " p"]:
    """Log-densities above which a mixture of one feature has these probabilities: by bisection, between its extrema.

    Extrema are sought at steps of a sixth of every component's standard deviation, up to nine of them away from its
    mean; a bump that is narrower counts as none.
    """
    ends = _extrema(mixture)
    heights = _log_density(mixture, ends)
    below, above = _tails(mixture, ends)
    rising = heights[1:] > heights[:-1]

    def masses(level: Array) -> tuple[Array, Array]:
        """The probability where the density is above the level, and where it is below."""

        # Where the whole of a segment is above or below the level, the cut is one of its ends.
        cut = _bisect(lambda x: (_log_density(mixture, x) < level) == rising, ends[:-1], ends[1:])
        below_cut, above_cut = _tails(mixture, cut)
        left = jnp.where(below_cut > 0.5, above[:-1] - above_cut, below_cut - below[:-1])
        right = jnp.where(below_cut > 0.5, above_cut - above[1:], below[1:] - below_cut)
        inside = jnp.where(rising, right, left).sum()
        return inside, jnp.where(rising, left, right).sum() + below[0] + above[-1]

    def of_one(probability: Array) -> Array:
        def is_low(level: Array) -> Array:
            inside, outside = masses(level)
            return jnp.where(probability > 0.5, outside < 1 - probability, inside > probability)

        return _bisect(is_low, heights.min(), heights.max())

    return jax.lax.map(of_one, probability)


def _extrema(mixture: Mixture) -> Float[Array, " points"]:
    """Modes and antimodes in order, between the ends of what is searched, which are repeated to a fixed number."""
    steps = jnp.linspace(-_REACH, _REACH, _POINTS, dtype=mixture.means.dtype)
    grid = jnp.sort((mixture.means + steps[None] / mixture.precision_factor.reshape(-1, 1)).ravel())

    def slope(x: Array) -> Array:
        return jax.jvp(lambda x: _log_density(mixture, x), (x,), (jnp.ones_like(x),))[1]

    positive = slope(grid) > 0
    (turns,) = jnp.nonzero(positive[1:] != positive[:-1], size=4 * mixture.num_components, fill_value=len(grid) - 1)

    after = grid[jnp.minimum(turns + 1, len(grid) - 1)]
    found = _bisect(lambda x: (slope(x) > 0) == positive[turns], grid[turns], after)
    return jnp.concatenate([grid[:1], found, grid[-1:]])
