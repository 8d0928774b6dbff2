r"""The shared log-likelihood: of all rows and of each, with derivative rules that make gradients cheap.

By Fisher's identity the same sums are the gradient of the log-likelihood, $\nabla_\theta \sum_i v_i \log p(x_i) =
\sum_i v_i \sum_j r_{ij} \nabla_\theta \log w_j \mathcal N(x_i \mid \mu_j, \Sigma_j)$. `log_likelihood` and
`row_log_prob` carry derivative rules made of them: value and gradient for about the price of one EM iteration,
differentiable again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from bayesgmm.likelihood.expectation import (
    Prepared,
    as_arguments,
    centred_block,
    moments_of_arrays,
    prepare_kind,
    weighted_sums,
)
from bayesgmm.likelihood.moments import Moments, expected_complete_log_prob
from bayesgmm.mixtures.mixture import Mixture, joint_and_marginal
from bayesgmm.numerics.blocks import map_over_blocks, sum_over_blocks
from bayesgmm.numerics.precision import matching_precision


@matching_precision
def log_likelihood(mixture: Mixture, x: Any, row_weights: Any = None) -> Float[Array, ""]:
    r"""Total log-likelihood $\sum_i v_i \log p(x_i)$ of rows x (n, d), with row weights v, by default one each.

    Differentiable to any order in the mixture, the rows and their weights; its first derivatives cost one pass of
    moments and keep no array of size n x k.

    Raises:
        InputError: for shapes that do not match, and types that are not real numbers; values are not looked at.
    """
    mixture, x, row_weights = as_arguments(mixture, x, row_weights)
    return _log_likelihood(mixture, x, row_weights, None)


def prepare_rows(mixture: Mixture, x: Float[Array, "n d"]) -> Prepared | None:
    """What many evaluations of `log_likelihood_of_rows` on the same rows can share."""
    return prepare_kind(mixture, x, jnp.ones(len(x), x.dtype), pooled=len(mixture.precision_factor) == 1)


def log_likelihood_of_rows(mixture: Mixture, x: Float[Array, "n d"], prepared: Prepared | None) -> Float[Array, ""]:
    """`log_likelihood` of rows that are evaluated many times, inside JAX programs."""
    return _log_likelihood(mixture, x, jnp.ones(len(x), x.dtype), prepared)


@matching_precision
def row_log_prob(mixture: Mixture, x: Any) -> Float[Array, " n"]:
    r"""$\log p(x_i)$ of every row, in blocks: `Mixture.log_prob` for many rows, with the cheap reverse derivative.

    Its backward pass is a pass of moments with the cotangent as row weights. Forward-mode derivatives are not
    defined here; take them of `Mixture.log_prob`.
    """
    mixture, x, _ = as_arguments(mixture, x, None)
    return _row_log_prob(mixture, x)


@matching_precision
def row_summaries(mixture: Mixture, x: Any) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log-density of every row and its largest log-responsibility (0 for a row that is certainly assigned)."""
    mixture, x, _ = as_arguments(mixture, x, None)
    return _row_summaries(mixture, x)


@jax.custom_jvp
@jax.jit
def _log_likelihood(mixture: Mixture, x: Array, row_weights: Array, prepared: Prepared | None) -> Array:
    pooled = len(mixture.precision_factor) == 1
    return moments_of_arrays(mixture, x, row_weights, pooled=pooled, prepared=prepared).log_likelihood


@functools.partial(_log_likelihood.defjvp, symbolic_zeros=True)
def _log_likelihood_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    mixture, x, row_weights, prepared = primals
    pooled = len(mixture.precision_factor) == 1
    moments = moments_of_arrays(mixture, x, row_weights, pooled=pooled, prepared=prepared)
    _, tangent = jax.jvp(
        lambda mixture: expected_complete_log_prob(mixture, moments).sum(), (mixture,), (_instantiate(tangents[0]),)
    )
    if not all(isinstance(part, SymbolicZero) for part in tangents[1:3]):

        def in_rows(x: Array, row_weights: Array) -> Array:
            return jnp.dot(row_weights, joint_and_marginal(mixture, x)[2], precision="highest")

        tangent = tangent + jax.jvp(in_rows, (x, row_weights), _instantiate(tangents[1:3]))[1]
    return moments.log_likelihood, tangent


def _instantiate(tangents: Any) -> Any:
    def zeros(leaf: Any) -> Any:
        return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, SymbolicZero) else leaf  # pyright: ignore

    return jax.tree.map(zeros, tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))


@jax.custom_vjp
@jax.jit
def _row_log_prob(mixture: Mixture, x: Array) -> Array:
    size = centred_block(x, mixture.num_components)
    return map_over_blocks(lambda x: joint_and_marginal(mixture, x)[2], size, x)


@jax.jit
def _row_log_prob_forward(mixture: Mixture, x: Array) -> tuple[Array, Any]:
    def block(x: Array) -> tuple[Array, Array]:
        _, joint, marginal = joint_and_marginal(mixture, x)
        return marginal, jnp.exp(joint - marginal[None]).T

    marginal, responsibilities = map_over_blocks(block, centred_block(x, mixture.num_components), x)
    return marginal, (mixture, x, responsibilities)


@jax.jit
def _row_log_prob_backward(residuals: Any, cotangent: Array) -> tuple[Mixture, Array]:
    mixture, x, responsibilities = residuals

    def block(v: Array, x: Array, r: Array) -> tuple[Array, Array, Array]:
        shares = (r * v[:, None]).T
        first, second = weighted_sums(shares, x.T[None] - mixture.means[:, :, None], mixture.is_diagonal)
        return shares.sum(1), first, second

    size = centred_block(x, mixture.num_components)
    count, first, second = sum_over_blocks(block, size, cotangent, x, responsibilities)
    moments = Moments(mixture.means, count, first, second, jnp.zeros((), x.dtype))
    in_mixture = jax.grad(lambda mixture: expected_complete_log_prob(mixture, moments).sum())(mixture)
    _, in_rows = jax.vjp(lambda x: joint_and_marginal(mixture, x)[2], x)
    return in_mixture, in_rows(cotangent)[0]


_row_log_prob.defvjp(_row_log_prob_forward, _row_log_prob_backward)


@jax.jit
def _row_summaries(mixture: Mixture, x: Array) -> tuple[Array, Array]:
    def block(x: Array) -> tuple[Array, Array]:
        _, joint, marginal = joint_and_marginal(mixture, x)
        return marginal, joint.max(0) - marginal

    return map_over_blocks(block, centred_block(x, mixture.num_components), x)
