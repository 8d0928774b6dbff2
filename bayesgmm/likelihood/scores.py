r"""The shared log-likelihood: of all rows and of each, with derivative rules that make gradients cheap.

By Fisher's identity the same sums are the gradient of the log-likelihood, $\nabla_\theta \sum_i v_i \log p(x_i) =
\sum_i v_i \sum_j r_{ij} \nabla_\theta \log w_j \mathcal N(x_i \mid \mu_j, \Sigma_j)$. `log_likelihood` and
`row_log_prob` carry derivative rules made of them: value and gradient for about the price of one EM iteration,
differentiable again.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree

from bayesgmm.likelihood.expectation import (
    Centred,
    Prepared,
    in_one_precision,
    moments_of_rows,
    pass_over,
    prepare_kind,
)
from bayesgmm.likelihood.moments import expected_complete_log_prob, score_kind
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.mixture import Assigned, Mixture, in_room, joint_and_marginal
from bayesgmm.numerics.precision import AnyArray, ArrayLike, matching_precision


@matching_precision
def log_likelihood(mixture: Mixture, x: ArrayLike | Rows, row_weights: ArrayLike | None = None) -> Float[Array, ""]:
    r"""Total log-likelihood $\sum_i v_i \log p(x_i)$ of rows x (n, d), with row weights v, by default one each.

    Differentiable to any order in the mixture, the rows and their weights; its first derivatives cost one pass of
    moments and keep no array of size n x k. Derivatives leave out rows whose density underflows under every component,
    where the value is -inf; those of `Mixture.log_prob` have the limit.

    Raises:
        InputError: for shapes that do not match, and types that are not real numbers; values are not looked at.
    """
    return log_likelihood_of_rows(*in_one_precision(mixture, x, row_weights), None)


@jax.jit
def prepare_rows(mixture: Mixture, rows: Rows) -> Prepared | None:
    """What many evaluations of `log_likelihood_of_rows` on the same rows can share."""
    return prepare_kind(mixture, rows, score_kind(mixture))


@matching_precision
def row_log_prob(mixture: Mixture, x: ArrayLike | Rows) -> Float[Array, " n"]:
    r"""$\log p(x_i)$ of every row, in blocks: `Mixture.log_prob` for many rows, with the cheap reverse derivative.

    Its backward pass is a pass of moments with the cotangent as row weights. Forward-mode derivatives are not
    defined here; take them of `Mixture.log_prob`.
    """
    mixture, rows = in_one_precision(mixture, x)
    return in_room(_row_log_prob, mixture, rows.values)


@matching_precision
def row_summaries(mixture: Mixture, x: ArrayLike | Rows) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log-density of every row and its largest log-responsibility (0 for a row that is certainly assigned)."""
    mixture, rows = in_one_precision(mixture, x)
    return in_room(_row_summaries, mixture, rows.values)


@jax.custom_jvp
@jax.jit
def log_likelihood_of_rows(mixture: Mixture, rows: Rows, prepared: Prepared | None) -> Float[Array, ""]:
    """`log_likelihood` of rows that are evaluated many times, inside JAX programs."""
    return moments_of_rows(mixture, rows, prepared, kind=score_kind(mixture)).log_likelihood


@functools.partial(log_likelihood_of_rows.defjvp, symbolic_zeros=True)
def _log_likelihood_jvp(
    primals: tuple[Mixture, Rows, Prepared | None], tangents: tuple[Mixture, Rows, Prepared | None]
) -> tuple[Array, Array]:
    mixture, rows, prepared = primals
    moments = moments_of_rows(mixture, rows, prepared, kind=score_kind(mixture))
    _, tangent = jax.jvp(
        lambda mixture: expected_complete_log_prob(mixture, moments).sum(), (mixture,), (_instantiate(tangents[0]),)
    )
    if not all(isinstance(part, SymbolicZero) for part in (tangents[1].values, tangents[1].weights)):

        def in_rows(rows: Rows) -> Array:
            return jnp.dot(rows.weights, joint_and_marginal(mixture, rows.values)[2], precision="highest")

        tangent = tangent + jax.jvp(in_rows, (rows,), (_instantiate(tangents[1]),))[1]
    return moments.log_likelihood, tangent


def _instantiate[T](tangents: T) -> T:
    def zeros(leaf: PyTree) -> PyTree:
        return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, SymbolicZero) else leaf  # pyright: ignore

    return jax.tree.map(zeros, tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))


def _scores[R](mixture: Mixture, x: Array, score: Callable[[Assigned], R]) -> R:
    """Scores of the rows, of weight 1 each."""
    form = Centred(mixture, mixture.means, score_kind(mixture))
    return pass_over(form, Rows(x, jnp.ones(len(x), x.dtype)), score=score, with_sums=False)[1]


@jax.custom_vjp
@jax.jit
def _row_log_prob(mixture: Mixture, x: Array) -> Array:
    return _scores(mixture, x, lambda assigned: assigned.log_prob)


_Residuals = tuple[Mixture, Array, Array]


@jax.jit
def _row_log_prob_forward(mixture: Mixture, x: Array) -> tuple[Array, _Residuals]:
    marginal, responsibilities = _scores(mixture, x, lambda assigned: (assigned.log_prob, assigned.shares.T))
    return marginal, (mixture, x, responsibilities)


@jax.jit
def _row_log_prob_backward(residuals: _Residuals, cotangent: Array) -> tuple[Mixture, Array]:
    mixture, x, responsibilities = residuals
    form = Centred(mixture, mixture.means, score_kind(mixture))
    sums, _ = pass_over(form, Rows(x, cotangent), responsibilities=responsibilities)
    moments, _ = form.moments(sums)
    in_mixture = jax.grad(lambda mixture: expected_complete_log_prob(mixture, moments).sum())(mixture)
    _, in_rows = jax.vjp(lambda x: joint_and_marginal(mixture, x)[2], x)
    return in_mixture, in_rows(cotangent)[0]


_row_log_prob.defvjp(_row_log_prob_forward, _row_log_prob_backward)


@jax.jit
def _row_summaries(mixture: Mixture, x: AnyArray) -> tuple[Array, Array]:
    return _scores(mixture, x, lambda assigned: (assigned.log_prob, assigned.log_certainty))
