r"""First-order theory at a maximum of the likelihood: observed information, sandwich, delta method, influence of rows.

With $\theta$ the free coordinates of a mixture (`coordinates.py`), $\ell$ the shared log-likelihood of rows with
weights $v_i$, and $s_i$ the score of row i, all at the fit,

$$ I = -\nabla^2 \ell, \qquad M = \sum_i v_i s_i s_i^\top, \qquad
   V_{\text{observed}} = I^{-1}, \qquad V_{\text{sandwich}} = I^{-1} M I^{-1}, $$

and a quantity $g(\theta)$ has the variance $\nabla g^\top V \nabla g$. At the maximum this is the same in all
coordinates. Row i moves $g$ by about $l_i = \nabla g^\top I^{-1} s_i$ (its empirical influence).

Sources: McLachlan & Peel (2000), sections 2.15 and 2.16; White (1982); Boldea & Magnus (2009).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bayesgmm.likelihood.log_likelihood import log_likelihood
from bayesgmm.likelihood.moments import Moments, expected_complete_log_prob
from bayesgmm.likelihood.rows import Rows, over_blocks
from bayesgmm.mixtures.coordinates import from_vector, mean_precision_scale, to_vector
from bayesgmm.mixtures.factors import pool
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture, joint_and_marginal
from bayesgmm.mixtures.quantities import Functions, quantities_of
from bayesgmm.numerics.blocks import block_size
from bayesgmm.numerics.precision import AnyArray
from bayesgmm.runtime.programs import compiled_once

_DIRECTIONS_AT_ONCE = 32
_LARGE = 2**16  # rows x components x features², from which optimisation pays


class Information(NamedTuple):
    r"""First-order theory at a mixture, with quantities end to end on one axis q, in the order of their names.

    Attributes:
        covariance: of the free coordinates, (p, p).
        standard_errors: of the quantities, (q).
        acceleration: of the quantities, Efron's $a = \sum_i v_i l_i^3 / (6 (\sum_i v_i l_i^2)^{3/2})$, (q).
        shares: of the information that known labels would give, the share that the rows alone give, in the p directions
            in which these are independent, smallest first; 1 less the rates at which EM converges along them, (p).
        flattest: the direction of the smallest, in the free coordinates, by how much each moves in units of its
            error under known labels, (p).
        distance: of the fit from the maximum that Newton's step points to, in standard errors, with the gradient g:
            $\sqrt{g^\top I^{-1} g}$, ().
    """

    covariance: Float[Array, "p p"]
    standard_errors: Float[Array, " q"]
    acceleration: Float[Array, " q"]
    shares: Float[Array, " p"]
    flattest: Float[Array, " p"]
    distance: Float[Array, ""]


def _is_large(mixture: Mixture, x: AnyArray, *args: object, **kwargs: object) -> bool:
    return mixture.means.size * x.size > _LARGE


@functools.partial(compiled_once, static_argnames=("family", "functions", "sandwich"), unless=_is_large)
def information(
    mixture: Mixture,
    x: Float[Array, "n d"],
    row_weights: Float[Array, " n"],
    *,
    family: Family,
    functions: Functions = (),
    sandwich: bool = False,
) -> Information:
    """Standard errors by first-order theory; for use inside other JAX programs. Never raises.

    Where the information is singular or the fit no maximum, numbers mean nothing: look at `shares`.
    """
    unit = 1.0 / mean_precision_scale(mixture)
    at = to_vector(mixture, unit, family)

    def mixture_at(vector: Array) -> Mixture:
        return from_vector(vector, unit, family, mixture.num_components)

    gradient_of = jax.grad(lambda vector: log_likelihood(mixture_at(vector), x, row_weights))
    gradient = gradient_of(at)
    observed = -jax.lax.map(
        lambda direction: jax.jvp(gradient_of, (at,), (direction,))[1],
        jnp.eye(len(at), dtype=at.dtype),
        batch_size=min(len(at), _DIRECTIONS_AT_ONCE),
    )
    observed = 0.5 * (observed + observed.T)
    # Measured against the information of known labels, curvature has no units, and none at all is seen beside rounding.
    lower = jnp.linalg.cholesky(_information_of_known_labels(mixture_at, at, row_weights.sum()))
    half = jax.scipy.linalg.solve_triangular(lower, observed, lower=True)
    relative = jax.scipy.linalg.solve_triangular(lower, half.T, lower=True)
    shares, directions = jnp.linalg.eigh(0.5 * (relative + relative.T))
    root = jax.scipy.linalg.solve_triangular(lower, directions, lower=True, trans=1)
    inverse = jnp.matmul(root / shares[None], root.T, precision="highest")

    jacobian = jax.jacfwd(lambda vector: ravel_pytree(quantities_of(mixture_at(vector), functions))[0])(at)
    towards = jnp.matmul(jacobian, inverse, precision="highest")
    meat, squares, cubes = _sums_of_scores(mixture_at, at, x, row_weights, towards)
    covariance = jnp.matmul(jnp.matmul(inverse, meat, precision="highest"), inverse, precision="highest")
    covariance = covariance if sandwich else inverse
    variances = (jnp.matmul(jacobian, covariance, precision="highest") * jacobian).sum(1)
    return Information(
        covariance=covariance,
        standard_errors=jnp.sqrt(variances),
        acceleration=jnp.where(squares > 0, cubes / (6.0 * jnp.maximum(squares, jnp.finfo(at.dtype).tiny) ** 1.5), 0.0),
        shares=shares,
        flattest=directions[:, 0],
        distance=jnp.sqrt(jnp.square(jnp.matmul(root.T, gradient, precision="highest")) @ (1.0 / jnp.abs(shares))),
    )


def _information_of_known_labels(mixture_at: Callable[[Array], Mixture], at: Array, num_rows: Array) -> Array:
    """Fisher information (p, p) of so many rows with their labels, from the moments that the mixture expects."""
    mixture = mixture_at(at)
    count = num_rows * jnp.exp(mixture.log_weights)
    factor = mixture.factor
    second = pool(factor.of_each(count) * factor.for_each(len(count)).covariances(), len(factor))
    moments = Moments(mixture.means, count, jnp.zeros_like(mixture.means), second, jnp.zeros((), at.dtype))
    return -jax.hessian(lambda vector: expected_complete_log_prob(mixture_at(vector), moments).sum())(at)


def _sums_of_scores(
    mixture_at: Callable[[Array], Mixture], at: Array, x: Array, row_weights: Array, towards: Float[Array, "q p"]
) -> tuple[Float[Array, "p p"], Float[Array, " q"], Float[Array, " q"]]:
    """Over rows, sums of the scores' products, and of squares and cubes of the rows' influences on the quantities."""

    def score(row: Array) -> Float[Array, " p"]:
        return jax.grad(lambda vector: joint_and_marginal(mixture_at(vector), row[None])[2][0])(at)

    def block(rows: Rows) -> tuple[tuple[Array, Array, Array], None]:
        v, scores = rows.weights, jax.vmap(score)(rows.values)
        influence = jnp.matmul(scores, towards.T, precision="highest")
        meat = jnp.matmul((scores * v[:, None]).T, scores, precision="highest")
        squares = jnp.square(influence)
        cubes = jnp.matmul(v, squares * influence, precision="highest")
        return (meat, jnp.matmul(v, squares, precision="highest"), cubes), None

    return over_blocks(block, block_size(len(x), max(towards.shape) * x.dtype.itemsize), Rows(x, row_weights))[0]
