r"""The one pass over the rows: expected sufficient statistics, and the log-likelihood with its derivatives.

Rows are taken in blocks small enough that a block's working set stays in cache. Of each block the pass keeps only sums:
the log-likelihood and, for every component, its expected count, first and second moments

$$ N_j = \sum_i v_i r_{ij}, \quad a_j = \sum_i v_i r_{ij} (x_i - o_j), \quad
   S_j = \sum_i v_i r_{ij} (x_i - o_j)(x_i - o_j)^\top, $$

with row weights $v_i$, responsibilities $r_{ij}$ and an origin $o_j$, the component's current mean (sums about the mean
keep the digits that sums about zero cancel). Sums add, so blocks, and later devices, only have to be added.

By Fisher's identity the same sums are the gradient of the log-likelihood, $\nabla_\theta \sum_i v_i \log p(x_i) =
\sum_i v_i \sum_j r_{ij} \nabla_\theta \log w_j \mathcal N(x_i \mid \mu_j, \Sigma_j)$. `log_likelihood` and
`row_log_prob` carry derivative rules made of them: value and gradient for about the price of one EM iteration,
differentiable again.

Two formulations give the same sums. The centred one whitens the difference of each row from each mean. The natural one
(`natural.py`) is two matrix products, several times faster, and loses digits where a component is narrow beside its
distance from the middle of the data. Large problems take the natural one where the rule of `_expected_moments` finds
that it keeps a log-density to 1e-9 (float64) or 1e-4 (float32) of its size and covariances to 1e-7 or 1e-3; else the
centred one.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from bayesgmm import natural
from bayesgmm.blocks import block_size, map_over_blocks, sum_over_blocks
from bayesgmm.mixture import (
    Mixture,
    joint_and_marginal,
    joint_of_rows,
    shares_and_marginal,
)
from bayesgmm.precision import matching_precision
from bayesgmm.statistics import Moments, expected_complete_log_prob, maximise, positive_count

__all__ = [
    "Moments",
    "expected_complete_log_prob",
    "expected_moments",
    "log_likelihood",
    "maximise",
    "moments_of_partition",
    "row_log_prob",
    "row_summaries",
]

_LARGE = 2**19  # rows x features x components from which the natural form is worth its compilation


@matching_precision
def expected_moments(
    mixture: Mixture, x: Any, row_weights: Any = None, *, pooled: bool = False, axis_name: str | None = None
) -> Moments:
    """Expected moments of rows x (n, d) under the mixture, about its means, and the log-likelihood of the rows.

    With `pooled`, second moments are summed over components: all that a shared covariance needs, and cheaper. Inside
    `jax.shard_map` over rows, `axis_name` is the mesh axis to sum over.
    """
    x, row_weights = _prepare(x, row_weights)
    return _expected_moments(mixture, x, row_weights, pooled=pooled, axis_name=axis_name)


def moments_of_partition(
    x: Float[Array, "n d"], responsibilities: Float[Array, "n k"], row_weights: Float[Array, " n"], *, diagonal: bool
) -> Moments:
    """Moments of given responsibilities, about the weighted means they imply; used to start an engine.

    Two passes, means first, so that a component much narrower than the data loses no digits. There is no mixture yet,
    hence no log-likelihood: that field is NaN.
    """

    size = _centred_block(x, responsibilities.shape[1])

    def means_of_block(v: Array, x: Array, r: Array) -> tuple[Array, Array]:
        shares = r * v[:, None]
        return shares.sum(0), jnp.matmul(shares.T, x, precision="highest")

    count, total = sum_over_blocks(means_of_block, size, row_weights, x, responsibilities)
    origin = total / jnp.maximum(count, jnp.finfo(x.dtype).tiny)[:, None]

    def sums_of_block(v: Array, x: Array, r: Array) -> tuple[Array, Array]:
        return _weighted_sums((r * v[:, None]).T, x.T[None] - origin[:, :, None], diagonal)

    first, second = sum_over_blocks(sums_of_block, size, row_weights, x, responsibilities)
    return Moments(origin, count, first, second, jnp.asarray(jnp.nan, x.dtype))


@matching_precision
def log_likelihood(mixture: Mixture, x: Any, row_weights: Any = None) -> Float[Array, ""]:
    r"""Total log-likelihood $\sum_i v_i \log p(x_i)$ of rows x (n, d), with row weights v, by default one each.

    Differentiable to any order in the mixture, the rows and their weights; its first derivatives cost one pass of
    moments and keep no array of size n x k.
    """
    x, row_weights = _prepare(x, row_weights)
    return _log_likelihood(mixture, x, row_weights)


@matching_precision
def row_log_prob(mixture: Mixture, x: Any) -> Float[Array, " n"]:
    r"""$\log p(x_i)$ of every row, in blocks: `Mixture.log_prob` for many rows, with the cheap reverse derivative.

    Its backward pass is a pass of moments with the cotangent as row weights. Forward-mode derivatives are not
    defined here; take them of `Mixture.log_prob`.
    """
    return _row_log_prob(mixture, jnp.asarray(x))


@matching_precision
def row_summaries(mixture: Mixture, x: Any) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log-density of every row and its largest log-responsibility (0 for a row that is certainly assigned)."""
    return _row_summaries(mixture, jnp.asarray(x))


def _prepare(x: Any, row_weights: Any) -> tuple[Array, Array]:
    x = jnp.asarray(x)
    if row_weights is None:
        return x, jnp.ones(x.shape[:1], x.dtype)
    return x, jnp.asarray(row_weights, dtype=x.dtype)


def _natural_block(num_products: int) -> int:
    """Rows in a block: a few thousand of few features, fewer of many, so that their features stay in cache."""
    return 4096 if num_products <= 16 else 512 if num_products < 128 else 256


def _centred_block(x: Array, num_components: int) -> int:
    return block_size(len(x), x.dtype.itemsize * num_components * x.shape[1])


def _weighted_sums(shares: Float[Array, "k n"], centred: Float[Array, "k d n"], diagonal: bool) -> tuple[Array, Array]:
    """First and second moments of centred rows, each row counted with the share its component has in it."""
    shared_out = shares[:, None, :] * centred
    if diagonal:
        return shared_out.sum(2), (shared_out * centred).sum(2)
    return shared_out.sum(2), jnp.matmul(shared_out, jnp.swapaxes(centred, 1, 2), precision="highest")


# Errors allowed in float64 and float32, as a fraction of the log-density of a row and of a variance.
_LOG_PROB_TOLERANCE = (1e-9, 1e-4)
_VARIANCE_TOLERANCE = (1e-7, 1e-3)
# Rounding errors were measured below these multiples of the machine's epsilon; sums over a block's rows have more.
_LOG_PROB_ROUNDING, _VARIANCE_ROUNDING = 2.0, 16.0
_POOLED_VARIANCE_ROUNDING = 64.0  # one sum less a sum over components, where the others have one sum each


def _amplitude_limit(dtype: Any) -> float:
    """How large an amplitude the tolerance allows."""
    return _tolerance(dtype, _LOG_PROB_TOLERANCE) / (_LOG_PROB_ROUNDING * float(jnp.finfo(dtype).eps))


def _tolerance(dtype: Any, tolerances: tuple[float, float]) -> float:
    return tolerances[0 if dtype == jnp.float64 else 1]


@functools.partial(jax.jit, static_argnames=("pooled", "axis_name"))
def _expected_moments(
    mixture: Mixture, x: Array, row_weights: Array, *, pooled: bool, axis_name: str | None = None
) -> Moments:
    """By the natural form where the problem is large and its amplitude allows that, else by the centred one.

    Afterwards the moments may turn out to come from rows further out, or to imply variances much narrower, than those
    of the mixture. Then they are taken again by the centred form, about the means just found.
    """
    large = mixture.num_components * x.size >= _LARGE

    def over_devices(moments: Moments) -> Moments:
        if axis_name is None:
            return moments
        return dataclasses.replace(jax.lax.psum(moments, axis_name), origin=moments.origin)

    def centred(origin: Array) -> Moments:
        return _centred_moments(mixture, x, row_weights, origin, pooled=pooled)

    if not large:
        return over_devices(centred(mixture.means))

    def first_centred() -> tuple[Moments, Array]:
        moments = centred(mixture.means)
        return moments, _keeps_variances(moments.count, moments.first, moments.second)

    one_factor = len(mixture.precision_factor) == 1
    form, amplitude = natural.natural_form(mixture, natural.frame_of(x), pooled=pooled and one_factor)
    moments, accurate = jax.lax.cond(
        amplitude <= _amplitude_limit(x.dtype),
        lambda: _natural_moments(mixture, form, x, row_weights, pooled=pooled),
        first_centred,
    )
    moments = over_devices(moments)
    if axis_name is not None:
        accurate = jax.lax.psum(accurate.astype(jnp.int32), axis_name) == jax.lax.psum(1, axis_name)
    found = moments.origin + moments.first / positive_count(moments.count)[:, None]
    return jax.lax.cond(accurate, lambda: moments, lambda: over_devices(centred(found)))


def _keeps_variances(count: Array, first: Array, second: Array) -> Bool[Array, ""]:
    """Whether the variances that moments imply are large enough beside the second moments they are taken from."""
    squares = second if second.ndim == 2 else jnp.diagonal(second, axis1=1, axis2=2)
    about_origin = jnp.square(first) / positive_count(count)[:, None]
    rounding = _VARIANCE_ROUNDING
    if len(squares) < len(count):
        about_origin, rounding = about_origin.sum(0, keepdims=True), _POOLED_VARIANCE_ROUNDING
    lost = rounding * float(jnp.finfo(count.dtype).eps) / _tolerance(count.dtype, _VARIANCE_TOLERANCE)
    return (squares - about_origin >= lost * squares).all()


def _centred_moments(
    mixture: Mixture, x: Array, row_weights: Array, origin: Float[Array, "k d"], *, pooled: bool
) -> Moments:
    def block(v: Array, x: Array) -> tuple[Array, ...]:
        shares, marginal = shares_and_marginal(joint_of_rows(mixture, x), v)
        first, second = _weighted_sums(shares, x.T[None] - origin[:, :, None], mixture.is_diagonal)
        if pooled:
            second = second.sum(0, keepdims=True)
        return shares.sum(1), first, second, jnp.dot(v, marginal, precision="highest")

    return Moments(origin, *sum_over_blocks(block, _centred_block(x, mixture.num_components), row_weights, x))


def _natural_moments(
    mixture: Mixture, form: natural.NaturalForm, x: Array, row_weights: Array, *, pooled: bool
) -> tuple[Moments, Array]:
    """Moments by the natural form, and whether they are accurate."""
    diagonal, d = mixture.is_diagonal, x.shape[1]

    def block(v: Array, x: Array) -> tuple[Array, ...]:
        z = form.frame.standardise(x)
        features = natural.features(form, z, diagonal=diagonal)
        shares, marginal = shares_and_marginal(jnp.matmul(form.theta, features, precision="highest"), v)
        sums = jax.lax.dot_general(features, shares, (((1,), (1,)), ((), ())), precision="highest")
        log_likelihood = jnp.dot(v, marginal, precision="highest")
        if not form.pooled:
            return sums, log_likelihood
        return sums, log_likelihood, natural.second_moment(z, v, diagonal=diagonal)

    size = min(len(x), _natural_block(form.theta.shape[1]))
    sums, log_likelihood, *common_second = sum_over_blocks(block, size, row_weights, x)
    if form.pooled:
        count, first, second = sums[d], sums[:d].T, common_second[0][None]
        log_likelihood = log_likelihood - 0.5 * (form.precision * second).sum()
    else:
        count, first, second = natural.unpack(sums, d, diagonal=diagonal)
    # The amplitude once more, for the rows that each component turned out to have.
    squares = second if diagonal else jnp.diagonal(second, axis1=1, axis2=2)
    size = squares.sum(0)[None] / count.sum() if form.pooled else squares / positive_count(count)[:, None]
    amplitude = natural.amplitude(form.precision, jnp.broadcast_to(size, first.shape))
    if pooled and len(second) > 1:
        second = second.sum(0, keepdims=True)
    accurate = (amplitude <= _amplitude_limit(x.dtype)) & _keeps_variances(count, first, second)
    first, second = natural.about_means(mixture, form.frame, count, first, second)
    return Moments(mixture.means, count, first, second, log_likelihood), accurate


@jax.custom_jvp
@jax.jit
def _log_likelihood(mixture: Mixture, x: Array, row_weights: Array) -> Array:
    return _expected_moments(mixture, x, row_weights, pooled=len(mixture.precision_factor) == 1).log_likelihood


@functools.partial(_log_likelihood.defjvp, symbolic_zeros=True)
def _log_likelihood_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    mixture, x, row_weights = primals
    moments = _expected_moments(mixture, x, row_weights, pooled=len(mixture.precision_factor) == 1)
    _, tangent = jax.jvp(
        lambda mixture: expected_complete_log_prob(mixture, moments).sum(), (mixture,), (_instantiate(tangents[0]),)
    )
    if not all(isinstance(part, SymbolicZero) for part in tangents[1:]):

        def in_rows(x: Array, row_weights: Array) -> Array:
            return jnp.dot(row_weights, joint_and_marginal(mixture, x)[2], precision="highest")

        tangent = tangent + jax.jvp(in_rows, (x, row_weights), _instantiate(tangents[1:]))[1]
    return moments.log_likelihood, tangent


def _instantiate(tangents: Any) -> Any:
    def zeros(leaf: Any) -> Any:
        return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, SymbolicZero) else leaf  # pyright: ignore

    return jax.tree.map(zeros, tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))


@jax.custom_vjp
@jax.jit
def _row_log_prob(mixture: Mixture, x: Array) -> Array:
    size = _centred_block(x, mixture.num_components)
    return map_over_blocks(lambda x: joint_and_marginal(mixture, x)[2], size, x)


@jax.jit
def _row_log_prob_forward(mixture: Mixture, x: Array) -> tuple[Array, Any]:
    def block(x: Array) -> tuple[Array, Array]:
        _, joint, marginal = joint_and_marginal(mixture, x)
        return marginal, jnp.exp(joint - marginal[None]).T

    marginal, responsibilities = map_over_blocks(block, _centred_block(x, mixture.num_components), x)
    return marginal, (mixture, x, responsibilities)


@jax.jit
def _row_log_prob_backward(residuals: Any, cotangent: Array) -> tuple[Mixture, Array]:
    mixture, x, responsibilities = residuals

    def block(v: Array, x: Array, r: Array) -> tuple[Array, Array, Array]:
        shares = (r * v[:, None]).T
        first, second = _weighted_sums(shares, x.T[None] - mixture.means[:, :, None], mixture.is_diagonal)
        return shares.sum(1), first, second

    size = _centred_block(x, mixture.num_components)
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

    return map_over_blocks(block, _centred_block(x, mixture.num_components), x)
