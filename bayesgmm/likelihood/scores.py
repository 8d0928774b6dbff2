r"""The shared log-likelihood: of all rows and of each, with derivative rules that make gradients cheap.

By Fisher's identity the same sums are the gradient of the log-likelihood, $\nabla_\theta \sum_i v_i \log p(x_i) =
\sum_i v_i \sum_j r_{ij} \nabla_\theta \log w_j \mathcal N(x_i \mid \mu_j, \Sigma_j)$. `log_likelihood` and
`row_log_prob` carry derivative rules made of them: value and gradient for about the price of one EM iteration,
differentiable again.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
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
from bayesgmm.likelihood.moments import Moments, expected_complete_log_prob, score_kind
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.mixture import Assigned, Mixture, densities_anywhere, in_room, joint_and_marginal
from bayesgmm.numerics.precision import AnyArray, ArrayLike, matching_precision


@matching_precision
def log_likelihood(mixture: Mixture, x: ArrayLike | Rows, row_weights: ArrayLike | None = None) -> Float[Array, ""]:
    r"""Total log-likelihood $\sum_i v_i \log p(x_i)$ of rows x (n, d), with row weights v, by default one each.

    Differentiable to any order in the mixture, the rows and their weights; its first derivatives cost one pass of
    moments and keep no array of size n x k, except where the density of a row underflows under every component.

    Raises:
        InputError: for shapes that do not match, and types that are not real numbers; values are not looked at.
    """
    return _log_likelihood(*in_one_precision(mixture, x, row_weights))


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
    along_mixture = _along_mixture(mixture, tangents[0], moments)
    return moments.log_likelihood, along_mixture + _along_rows(mixture, rows, tangents[1], moments)


def _along_mixture(mixture: Mixture, tangent: Mixture, moments: Moments) -> Array:
    """The derivative by Fisher's identity; it costs no pass over the rows."""
    return jax.jvp(
        lambda mixture: expected_complete_log_prob(mixture, moments).sum(), (mixture,), (_instantiate(tangent),)
    )[1]


def _along_rows(mixture: Mixture, rows: Rows, tangent: Rows, moments: Moments) -> Array:
    if all(isinstance(part, SymbolicZero) for part in (tangent.values, tangent.weights)):
        return jnp.zeros_like(moments.log_likelihood)

    def of_rows(rows: Rows) -> Array:
        return jnp.dot(rows.weights, joint_and_marginal(mixture, rows.values)[2], precision="highest")

    return jax.jvp(of_rows, (rows,), (_instantiate(tangent),))[1]


@jax.custom_jvp
def _log_likelihood(mixture: Mixture, rows: Rows) -> Float[Array, ""]:
    return log_likelihood_of_rows(mixture, rows, None)


@functools.partial(_log_likelihood.defjvp, symbolic_zeros=True)
def _log_likelihood_jvp_anywhere(primals: tuple[Mixture, Rows], tangents: tuple[Mixture, Rows]) -> tuple[Array, Array]:
    """The derivative; where the density of a row underflows under every component, that row's is the limit."""
    mixture, rows = primals
    moments = moments_of_rows(mixture, rows, kind=score_kind(mixture))

    def careful() -> Array:
        moved = tangents[1]
        values = (mixture, rows.values), (_instantiate(tangents[0]), _instantiate(moved.values))
        log_prob, along = jax.jvp(lambda *at: densities_anywhere(*at).marginal, *values)
        found = jnp.dot(rows.weights, along, precision="highest")
        if isinstance(moved.weights, SymbolicZero):  # times an infinite density it would be NaN
            return found
        return found + jnp.dot(moved.weights, log_prob, precision="highest")

    # What costs a pass is whole inside its branch: in reverse, nothing may be a part of what is infinite in the other.
    # What the careful one needs is computed again in reverse, or else the quick one would hand on arrays of its size.
    # The quick derivative along the mixture costs none, and stays outside, of moments that are zero where they are NaN.
    quick = _no_row_underflows(moments.log_likelihood)
    blank = dataclasses.replace(jax.tree.map(jnp.zeros_like, moments), origin=mixture.means)
    finite = jax.tree.map(lambda field, other: jnp.where(quick, field, other), moments, blank)
    further = jax.lax.cond(quick, lambda: _along_rows(mixture, rows, tangents[1], moments), jax.checkpoint(careful))
    return moments.log_likelihood, _along_mixture(mixture, tangents[0], finite) + further


@custom_vmap
def _no_row_underflows(log_prob: Array) -> Array:
    """Whether log-densities are finite; under `vmap` in the whole batch, so that only one branch runs for all of it."""
    return (log_prob > -jnp.inf).all()


@_no_row_underflows.def_vmap
def _in_whole_batch(axis_size: int, in_batched: list[bool], log_prob: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return _no_row_underflows(log_prob), False


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


_Residuals = tuple[Mixture, Array, Array, Array]


@jax.jit
def _row_log_prob_forward(mixture: Mixture, x: Array) -> tuple[Array, _Residuals]:
    marginal, responsibilities = _scores(mixture, x, lambda assigned: (assigned.log_prob, assigned.shares.T))
    return marginal, (mixture, x, responsibilities, marginal)


@jax.jit
def _row_log_prob_backward(residuals: _Residuals, cotangent: Array) -> tuple[Mixture, Array]:
    mixture, x, responsibilities, marginal = residuals

    def quick() -> tuple[Mixture, Array]:
        form = Centred(mixture, mixture.means, score_kind(mixture))
        sums, _ = pass_over(form, Rows(x, cotangent), responsibilities=responsibilities)
        moments, _ = form.moments(sums)
        in_mixture = jax.grad(lambda mixture: expected_complete_log_prob(mixture, moments).sum())(mixture)
        _, in_rows = jax.vjp(lambda x: joint_and_marginal(mixture, x)[2], x)
        return in_mixture, in_rows(cotangent)[0]

    def careful() -> tuple[Mixture, Array]:
        return jax.vjp(lambda *at: densities_anywhere(*at).marginal, mixture, x)[1](cotangent)

    return jax.lax.cond(_no_row_underflows(marginal), quick, careful)


_row_log_prob.defvjp(_row_log_prob_forward, _row_log_prob_backward)


@jax.jit
def _row_summaries(mixture: Mixture, x: AnyArray) -> tuple[Array, Array]:
    return _scores(mixture, x, lambda assigned: (assigned.log_prob, assigned.log_certainty))
