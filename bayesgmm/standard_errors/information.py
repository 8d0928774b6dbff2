r"""First-order theory at a maximum of the likelihood: observed information, sandwich, delta method, influence of rows.

With $\theta$ the free coordinates of a mixture (`coordinates.py`), $\ell$ the shared log-likelihood of rows with
weights $v_i$, and $s_i$ the score of row i, all at the fit,

$$ I = -\nabla^2 \ell, \qquad M = \sum_i v_i s_i s_i^\top, \qquad
   V_{\text{observed}} = I^{-1}, \qquad V_{\text{sandwich}} = I^{-1} M I^{-1}, $$

and a quantity $g(\theta)$ has the variance $\nabla g^\top V \nabla g$. At the maximum this is the same in all
coordinates. Row i moves $g$ by about $l_i = \nabla g^\top I^{-1} s_i$ (its empirical influence).

No second derivative of the density is taken. With $r_{ij}$ the responsibilities and $s_{ij}$ the score that row i would
have if it were known to be of component j, $s_i = \sum_j r_{ij} s_{ij}$ and (Louis 1982)

$$ I = -\nabla^2 Q - \Big( \sum_{ij} v_i r_{ij} s_{ij} s_{ij}^\top - M \Big), $$

where $Q$ is the function that the M-step maximises, of few moments.

Sources: McLachlan & Peel (2000), sections 2.15 and 2.16; Louis (1982); White (1982); Boldea & Magnus (2009).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from bayesgmm.likelihood.moments import Moments, move_second
from bayesgmm.likelihood.rows import Rows, over_blocks
from bayesgmm.mixtures.coordinates import from_vector, mean_precision_scale, to_vector
from bayesgmm.mixtures.factors import Factor
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture, expected_shares, joint_of_whitened, whiten
from bayesgmm.mixtures.quantities import Functions, parameters_of, values_of
from bayesgmm.numerics.blocks import block_size
from bayesgmm.numerics.precision import AnyArray, matching_precision, matmul, namespace
from bayesgmm.runtime.programs import compiled_once

_STEP = 1e-30  # imaginary: nothing is subtracted, so that no step is too small


class Information(NamedTuple):
    r"""First-order theory at a mixture, of quantities by name, those of `quantities_of`.

    Attributes:
        covariance: of the free coordinates, (p, p).
        standard_errors: of each quantity, of its shape.
        acceleration: of each quantity, Efron's $a = \sum_i v_i l_i^3 / (6 (\sum_i v_i l_i^2)^{3/2})$, of its shape.
        shares: of the information that known labels would give, the share that the rows alone give, in the p directions
            in which these are independent, smallest first; 1 less the rates at which EM converges along them, (p).
        flattest: the direction of the smallest, in the free coordinates, by how much each moves in units of its
            error under known labels, (p).
        distance: of the fit from the maximum that Newton's step points to, in standard errors, with the gradient g:
            $\sqrt{g^\top I^{-1} g}$, ().
    """

    covariance: Float[AnyArray, "p p"]
    standard_errors: dict[str, Float[AnyArray, "..."]]
    acceleration: dict[str, Float[AnyArray, "..."]]
    shares: Float[AnyArray, " p"]
    flattest: Float[AnyArray, " p"]
    distance: Float[AnyArray, ""]


def information(
    mixture: Mixture,
    x: Float[AnyArray, "n d"],
    row_weights: Float[AnyArray, " n"],
    *,
    family: Family,
    functions: Functions = (),
    sandwich: bool = False,
) -> Information:
    """Standard errors by first-order theory. Never raises.

    Arrays of NumPy are computed with by NumPy, without compiling anything; others in one program, or inside yours.
    Where the information is singular or the fit no maximum, numbers mean nothing: look at `shares`.
    """
    if namespace(mixture.means, x, row_weights) is jnp:
        return _by_jax(mixture, x, row_weights, family=family, functions=functions, sandwich=sandwich)
    compute = functools.partial(_information, family=family, functions=functions, sandwich=sandwich)
    with np.errstate(all="ignore"):
        try:
            return compute(mixture, x, row_weights)
        except np.linalg.LinAlgError:  # where JAX's own functions give NaN
            shapes = jax.eval_shape(compute, mixture, x, row_weights)
            return jax.tree.map(lambda shape: np.full(shape.shape, np.nan), shapes)


def _information(
    mixture: Mixture,
    x: AnyArray,
    row_weights: AnyArray,
    *,
    family: Family,
    functions: Functions,
    sandwich: bool,
) -> Information:
    xp = namespace(x)
    k, unit = mixture.num_components, 1.0 / mean_precision_scale(mixture)
    at = to_vector(mixture, unit, family)
    # In these units of the features the coordinates are those of the scaled mixture, with units of 1.
    scaled = Mixture(mixture.log_weights, mixture.means / unit[None], mixture.factor.scaled(unit).array)
    rows = Rows(x / unit[None], row_weights)
    ones, places = xp.ones_like(unit), xp.asarray(_places(family, k, len(unit)), at.dtype)

    def curvature(moments: Moments) -> Float[AnyArray, "p p"]:
        """Minus the second derivatives of the M-step's function."""
        return -matmul(places.T, _jacobian(lambda v: _gradient(from_vector(v, ones, family, k), moments).ravel(), at))

    sums = _over_rows(lambda block: _sums_given_labels(scaled, block, places), rows, at.size)
    moments = Moments(scaled.means, *sums.moments, log_likelihood=0.0 * sums.score.sum())
    observed = curvature(moments) - (_information_given_labels(scaled, sums.products, places) - sums.meat)
    # Measured against the information of known labels, curvature has no units, and none at all is seen beside rounding.
    lower = xp.linalg.cholesky(curvature(_moments_of_known_labels(scaled, row_weights)))
    relative = xp.linalg.solve(lower, xp.linalg.solve(lower, observed).T)
    shares, directions = xp.linalg.eigh(0.5 * (relative + relative.T))
    root = xp.linalg.solve(lower.T, directions)
    inverse = matmul(root / shares[None], root.T)

    jacobian = _jacobian_of_parameters(at, unit, family, k)
    if functions:
        of_functions = _jacobian_of_functions(at, unit, family=family, num_components=k, functions=functions)
        jacobian = xp.concatenate([jacobian, xp.asarray(of_functions)])
    towards = matmul(jacobian, inverse)
    squares, cubes = _over_rows(lambda block: _sums_of_influence(scaled, block, places, towards), rows, len(towards))
    covariance = matmul(matmul(inverse, sums.meat), inverse) if sandwich else inverse
    tiny = float(np.finfo(at.dtype).tiny)
    shapes = {name: value.shape for name, value in parameters_of(mixture).items()}
    if functions:
        own = jax.eval_shape(functools.partial(values_of, functions), mixture)
        shapes |= {name: own[name].shape for name, _ in functions}

    def by_name(values: Float[AnyArray, " q"]) -> dict[str, AnyArray]:
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        parts = xp.split(values, ends[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    return Information(
        covariance=covariance,
        standard_errors=by_name(xp.sqrt((matmul(jacobian, covariance) * jacobian).sum(1))),
        acceleration=by_name(xp.where(squares > 0, cubes / (6.0 * xp.maximum(squares, tiny) ** 1.5), 0.0)),
        shares=shares,
        flattest=directions[:, 0],
        distance=xp.sqrt(matmul(root.T, sums.score) ** 2 @ (1.0 / abs(shares))),
    )


_by_jax = compiled_once(_information, static_argnames=("family", "functions", "sandwich"))


class _Sums(NamedTuple):
    """Sums over rows.

    Attributes:
        score: of the scores, (p).
        meat: of products of scores, (p, p).
        products: of products of the own derivatives of each component, by responsibility, (k, b, b).
        moments: counts, and first and second moments of each component about its mean.
    """

    score: AnyArray
    meat: AnyArray
    products: AnyArray
    moments: tuple[AnyArray, AnyArray, AnyArray]


def _sums_given_labels(mixture: Mixture, rows: Rows, places: AnyArray) -> _Sums:
    v, (shares, centred, own) = rows.weights, _own_derivatives(mixture, rows.values)
    scores = _scores(mixture, shares, own, places)
    weighted = (shares * v[None])[..., None]
    products = matmul((weighted * own).swapaxes(1, 2), own)
    scaled = (weighted * centred).swapaxes(1, 2)
    moments = (weighted[..., 0].sum(1), scaled.sum(2), mixture.factor.outer_sums(scaled, centred.swapaxes(1, 2)))
    return _Sums(matmul(v, scores), matmul((scores * v[:, None]).T, scores), products, moments)


def _sums_of_influence(
    mixture: Mixture, rows: Rows, places: AnyArray, towards: Float[AnyArray, "q p"]
) -> tuple[Float[AnyArray, " q"], Float[AnyArray, " q"]]:
    """Of squares and cubes of the rows' influences on the quantities."""
    shares, _, own = _own_derivatives(mixture, rows.values)
    influence = matmul(_scores(mixture, shares, own, places), towards.T)
    squares = influence * influence
    return matmul(rows.weights, squares), matmul(rows.weights, squares * influence)


def _own_derivatives(mixture: Mixture, x: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Responsibilities (k, n), centred rows (k, n, d), and derivatives of each component's own density of each row."""
    xp, factor = namespace(x), mixture.factor
    whitened = whiten(mixture, x)
    shares = expected_shares(joint_of_whitened(mixture, whitened), xp.ones_like(x[:, 0])).shares
    centred, whitened = x[None] - mixture.means[:, None], whitened.swapaxes(1, 2)
    return shares, centred, _of_factor(factor, xp.ones_like(shares), whitened, factor.outer(whitened, centred))


def _scores(mixture: Mixture, shares: AnyArray, own: AnyArray, places: AnyArray) -> Float[AnyArray, "n p"]:
    r"""$s_i = \sum_j r_{ij} s_{ij}$; by log-weights $r_{ij} - w_j$."""
    xp = namespace(shares)
    ratios = shares - xp.exp(mixture.log_weights)[:, None]
    each = xp.concatenate([ratios[..., None], shares[..., None] * own[..., 1:]], -1)
    return matmul(each.swapaxes(0, 1).reshape(shares.shape[1], -1), places)


def _information_given_labels(mixture: Mixture, products: AnyArray, places: AnyArray) -> Float[AnyArray, "p p"]:
    r"""$\sum_{ij} v_i r_{ij} s_{ij} s_{ij}^\top$, from products of each component's own derivatives."""
    xp, k = namespace(products), len(products)
    in_free = places.reshape(k, -1, places.shape[-1])
    of_weights = xp.eye(k, dtype=products.dtype) - xp.exp(mixture.log_weights)[None]
    of_weights = matmul(of_weights, in_free[:, 0])
    in_free = xp.concatenate([of_weights[:, None], in_free[:, 1:]], 1)
    return matmul(matmul(in_free.swapaxes(1, 2), products), in_free).sum(0)


def _of_factor(factor: Factor, count: AnyArray, moved: AnyArray, products: AnyArray) -> Inexact[AnyArray, "k m b"]:
    r"""Derivatives of $N (\log w + \log |F|) - \tfrac12 \operatorname{tr} F S F^\top$, for each component's own values.

    From $N$ (k, m), $F a$ (k, m, d) and $F S$ (k, m, ...): N itself, and derivatives by the mean, by logarithms of the
    factor's diagonal and by what is below.
    """
    diagonal, below = factor.entries(products)
    parts = [
        count[..., None],
        factor.pull_back(moved),
        count[..., None] - factor.diagonal()[:, None] * diagonal,
        -below,
    ]
    return namespace(count).concatenate(parts, -1)


def _gradient(mixture: Mixture, moments: Moments) -> Inexact[AnyArray, "k b"]:
    """Of the function that the M-step maximises, for each component's own values."""
    factor, move = mixture.factor, mixture.means - moments.origin
    first = moments.first - moments.count[:, None] * move
    second = move_second(factor, moments.second, move, moments.first, first)
    moved, products = factor.whiten(first[..., None])[..., 0], factor.products(second)
    own = _of_factor(factor, moments.count[:, None], moved[:, None], products[:, None])[:, 0]
    xp = namespace(own)
    ratios = moments.count - moments.count.sum() * xp.exp(mixture.log_weights)
    return xp.concatenate([ratios[:, None], own[:, 1:]], 1)


@functools.cache
def _places(family: Family, num_components: int, num_features: int) -> Float[np.ndarray, "kb p"]:
    """Which free coordinate each of the components' own derivatives belongs to: 1 there, else 0."""
    k, d = num_components, num_features
    num_factors, width = family.scale_shape(k, d)
    num_below = family.num_covariance_parameters(k, d) // num_factors - width
    places = np.zeros((k, 1 + 2 * d + num_below, family.num_parameters(k, d)))
    for j in range(k):
        owner = 0 if family.shared else j
        means, scales = k - 1 + j * d, k - 1 + k * d + owner * width
        below = k - 1 + k * d + num_factors * width + owner * num_below
        at = [*range(means, means + d), *(scales + (a if width > 1 else 0) for a in range(d))]
        at += range(below, below + num_below)
        places[j, np.arange(1, 1 + len(at)), at] = 1.0
        places[j, 0, j : min(j + 1, k - 1)] = 1.0  # log-weights are over the last one
    return places.reshape(-1, places.shape[-1])


def _moments_of_known_labels(mixture: Mixture, row_weights: AnyArray) -> Moments:
    """What the mixture expects of rows with these weights."""
    xp, total = namespace(mixture.means), row_weights.sum()
    count, factor = total * xp.exp(mixture.log_weights), mixture.factor.for_each(mixture.num_components)
    second = factor.of_each(count) * factor.covariances()
    return Moments(mixture.means, count, xp.zeros_like(mixture.means), second, 0.0 * total)


def _over_rows(function: Callable[[Rows], Any], rows: Rows, row_numbers: int) -> Any:
    """Sums over rows, block by block."""
    size = block_size(len(rows), row_numbers * rows.dtype.itemsize)
    if namespace(rows.values) is jnp:
        return over_blocks(lambda block: (function(block), None), size, rows)[0]
    parts = [function(rows.at(np.arange(len(rows))[first : first + size])) for first in range(0, len(rows), size)]
    return jax.tree.map(lambda *terms: sum(terms), *parts)


def _jacobian(function: Callable[[AnyArray], AnyArray], at: AnyArray) -> Float[AnyArray, "q p"]:
    """Derivatives to the last digit: by JAX, or by complex steps (Squire & Trapp 1998)."""
    if namespace(at) is jnp:
        return jax.jacfwd(function)(at)
    return np.stack([function(at + 1j * step).imag for step in _STEP * np.eye(len(at))], -1) / _STEP


def _jacobian_of_parameters(at: AnyArray, unit: AnyArray, family: Family, num_components: int) -> AnyArray:
    def parameters(vector: AnyArray) -> AnyArray:
        found = parameters_of(from_vector(vector, unit, family, num_components))
        return namespace(vector).concatenate([value.ravel() for value in found.values()])

    return _jacobian(parameters, at)


@matching_precision
@functools.partial(compiled_once, static_argnames=("family", "num_components", "functions"))
def _jacobian_of_functions(
    at: Array, unit: Array, *, family: Family, num_components: int, functions: Functions
) -> Float[Array, "q p"]:
    def values(vector: Array) -> Array:
        found = values_of(functions, from_vector(vector, unit, family, num_components))
        return jnp.concatenate([found[name].ravel() for name, _ in functions])

    return jax.jacfwd(values)(at)
