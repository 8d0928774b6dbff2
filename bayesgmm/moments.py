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

Row weights and padding are the business of this module and of no other.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from bayesgmm.families import Family
from bayesgmm.mixture import Mixture, factor_of_covariances, joint_and_marginal, log_normaliser
from bayesgmm.precision import AnyArray, matching_precision

_BLOCK_BYTES = 2**21  # of the (k, d, rows) working array: about the size of a core's second-level cache
_MIN_BLOCK, _MAX_BLOCK = 256, 4096


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["origin", "count", "first", "second", "log_likelihood"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Moments:
    """Expected sufficient statistics of every component; `a + b` are those of the rows of a and b together.

    Attributes:
        origin: the point the moments are taken about, shape (k, d).
        count: expected number of rows (total row weight), shape (k).
        first: sums of differences from the origin, shape (k, d).
        second: sums of their outer products, shape (k, d, d), or of their squares (k, d) for diagonal factors.
        log_likelihood: total log-likelihood of the rows, ().
    """

    origin: Float[AnyArray, "k d"]
    count: Float[AnyArray, " k"]
    first: Float[AnyArray, "k d"]
    second: Float[AnyArray, "k d d"] | Float[AnyArray, "k d"]
    log_likelihood: Float[AnyArray, ""]

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows; they must be about the same origin."""
        both = jax.tree.map(operator.add, self, other)
        return dataclasses.replace(both, origin=self.origin)


@matching_precision
def expected_moments(mixture: Mixture, x: Any, row_weights: Any = None) -> Moments:
    """Expected moments of rows x (n, d) under the mixture, about its means, and the log-likelihood of the rows."""
    x, row_weights = _prepare(x, row_weights)
    return _expected_moments(mixture, x, row_weights)


def moments_of_partition(
    x: Float[Array, "n d"], responsibilities: Float[Array, "n k"], row_weights: Float[Array, " n"], *, diagonal: bool
) -> Moments:
    """Moments of given responsibilities, about the weighted means they imply; used to start an engine.

    Two passes, means first, so that a component much narrower than the data loses no digits. There is no mixture yet,
    hence no log-likelihood: that field is NaN.
    """

    def means_of_block(x: Array, v: Array, r: Array) -> tuple[Array, Array]:
        shares = r * v[:, None]
        return shares.sum(0), jnp.matmul(shares.T, x, precision="highest")

    count, total = _sum_over_blocks(means_of_block, x, row_weights, responsibilities)
    origin = total / jnp.maximum(count, jnp.finfo(x.dtype).tiny)[:, None]

    def sums_of_block(x: Array, v: Array, r: Array) -> tuple[Array, Array]:
        return _weighted_sums((r * v[:, None]).T, x.T[None] - origin[:, :, None], diagonal)

    first, second = _sum_over_blocks(sums_of_block, x, row_weights, responsibilities)
    return Moments(origin, count, first, second, jnp.asarray(jnp.nan, x.dtype))


def maximise(moments: Moments, family: Family, reg_covar: Float[Array, " d"]) -> Mixture:
    r"""The M-step: the mixture of `family` that maximises the expected complete-data log-likelihood.

    $w_j \propto N_j$, $\mu_j = o_j + a_j / N_j$, and covariances from the scatter
    $S_j - a_j a_j^\top / N_j + N_j \operatorname{diag}(\rho)$, in which the ridge $\rho$ = `reg_covar`, in squared
    units of the data, acts as extra scatter.
    """
    count = jnp.maximum(moments.count, jnp.finfo(moments.count.dtype).tiny)
    shift = moments.first / count[:, None]
    if family.diagonal:
        scatter = moments.second - moments.first * shift + count[:, None] * reg_covar[None]
    else:
        scatter = moments.second - moments.first[:, :, None] * shift[:, None, :]
        scatter = scatter + count[:, None, None] * jnp.diag(reg_covar)[None]
    return Mixture(
        jnp.log(count / count.sum()),
        moments.origin + shift,
        factor_of_covariances(family.maximise(count, scatter), family.diagonal),
    )


def expected_complete_log_prob(mixture: Mixture, moments: Moments) -> Float[Array, " k"]:
    r"""The function that the M-step maximises, one term per component:

    $$ Q_j = N_j (\log w_j + \log |F_j| - \tfrac d2 \log 2\pi) - \tfrac12 \operatorname{tr} F_j S_j F_j^\top, $$

    with the second moment $S_j$ moved from the origin of the moments to the mean of the component.
    """
    factor = mixture.precision_factor
    move = mixture.means - moments.origin
    centred_first = moments.first - moments.count[:, None] * move
    if mixture.is_diagonal:
        second = moments.second - move * (moments.first + centred_first)
        squares = (jnp.square(factor) * second).sum(1)
    else:
        outer = move[:, :, None] * moments.first[:, None, :] + centred_first[:, :, None] * move[:, None, :]
        factor = jnp.broadcast_to(jnp.tril(factor), moments.second.shape)
        squares = (factor * jnp.matmul(factor, moments.second - outer, precision="highest")).sum((1, 2))
    return moments.count * (mixture.log_weights + log_normaliser(mixture)) - 0.5 * squares


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


def _block_size(num_rows: int, num_components: int, num_features: int, itemsize: int) -> int:
    fitting = _BLOCK_BYTES // (itemsize * num_components * num_features)
    return min(num_rows, max(_MIN_BLOCK, min(_MAX_BLOCK, fitting)))


def _blocks(array: Array, size: int) -> Array:
    """Rows in blocks (b, size, ...), the last one filled up with copies of the last row."""
    missing = -array.shape[0] % size
    if missing:
        array = jnp.concatenate([array, jnp.broadcast_to(array[-1:], (missing, *array.shape[1:]))])
    return array.reshape(-1, size, *array.shape[1:])


def _sum_over_blocks(
    function: Callable[..., Any], x: Array, row_weights: Array, *others: Array, num_components: int | None = None
) -> Any:
    """Sum of `function(x, row_weights, *others)` over blocks of rows; the padding has weight zero."""
    num_rows, num_features = x.shape
    size = _block_size(num_rows, num_components or others[0].shape[1], num_features, x.dtype.itemsize)
    if size == num_rows:
        return function(x, row_weights, *others)
    padded = jnp.concatenate([row_weights, jnp.zeros(-num_rows % size, row_weights.dtype)])
    blocks = (_blocks(x, size), padded.reshape(-1, size), *(_blocks(other, size) for other in others))
    shapes = jax.eval_shape(function, *(block[0] for block in blocks))
    zeros = jax.tree.map(jnp.zeros_like, shapes)
    return jax.lax.scan(lambda sums, block: (jax.tree.map(jnp.add, sums, function(*block)), None), zeros, blocks)[0]


def _map_over_blocks(function: Callable[[Array], Any], x: Array, num_components: int) -> Any:
    """`function(x)` for every block of rows, its outputs (rows, ...) put together again."""
    num_rows, num_features = x.shape
    size = _block_size(num_rows, num_components, num_features, x.dtype.itemsize)
    if size == num_rows:
        return function(x)
    parts = jax.lax.map(function, _blocks(x, size))
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:num_rows], parts)


def _weighted_sums(shares: Float[Array, "k n"], centred: Float[Array, "k d n"], diagonal: bool) -> tuple[Array, Array]:
    """First and second moments of centred rows, each row counted with the share its component has in it."""
    shared_out = shares[:, None, :] * centred
    if diagonal:
        return shared_out.sum(2), (shared_out * centred).sum(2)
    return shared_out.sum(2), jnp.matmul(shared_out, jnp.swapaxes(centred, 1, 2), precision="highest")


@jax.jit
def _expected_moments(mixture: Mixture, x: Array, row_weights: Array) -> Moments:
    def block(x: Array, v: Array) -> tuple[Array, ...]:
        _, joint, marginal = joint_and_marginal(mixture, x)
        shares = jnp.exp(joint - marginal[None]) * v[None]
        first, second = _weighted_sums(shares, x.T[None] - mixture.means[:, :, None], mixture.is_diagonal)
        return shares.sum(1), first, second, jnp.dot(v, marginal, precision="highest")

    sums = _sum_over_blocks(block, x, row_weights, num_components=mixture.num_components)
    return Moments(mixture.means, *sums)


@jax.custom_jvp
@jax.jit
def _log_likelihood(mixture: Mixture, x: Array, row_weights: Array) -> Array:
    def block(x: Array, v: Array) -> Array:
        return jnp.dot(v, joint_and_marginal(mixture, x)[2], precision="highest")

    return _sum_over_blocks(block, x, row_weights, num_components=mixture.num_components)


@functools.partial(_log_likelihood.defjvp, symbolic_zeros=True)
def _log_likelihood_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    mixture, x, row_weights = primals
    moments = _expected_moments(mixture, x, row_weights)
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
    return _map_over_blocks(lambda x: joint_and_marginal(mixture, x)[2], x, mixture.num_components)


@jax.jit
def _row_log_prob_forward(mixture: Mixture, x: Array) -> tuple[Array, Any]:
    def block(x: Array) -> tuple[Array, Array]:
        _, joint, marginal = joint_and_marginal(mixture, x)
        return marginal, jnp.exp(joint - marginal[None]).T

    marginal, responsibilities = _map_over_blocks(block, x, mixture.num_components)
    return marginal, (mixture, x, responsibilities)


@jax.jit
def _row_log_prob_backward(residuals: Any, cotangent: Array) -> tuple[Mixture, Array]:
    mixture, x, responsibilities = residuals

    def block(x: Array, v: Array, r: Array) -> tuple[Array, Array, Array]:
        shares = (r * v[:, None]).T
        first, second = _weighted_sums(shares, x.T[None] - mixture.means[:, :, None], mixture.is_diagonal)
        return shares.sum(1), first, second

    count, first, second = _sum_over_blocks(block, x, cotangent, responsibilities)
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

    return _map_over_blocks(block, x, mixture.num_components)
