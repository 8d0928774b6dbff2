r"""What a Gaussian mixture is: the pytree `Mixture`, its density, responsibilities and sampling.

The density of one row x in d dimensions under k components is

$$ p(x) = \sum_{j=1}^{k} w_j \, \mathcal N(x \mid \mu_j, \Sigma_j). $$

This module is the only place where a Gaussian log-density is formed, and the only one that sums over components
(`joint_and_marginal`). Every engine, criterion and plot of the package calls it.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from bayesgmm.errors import InputError
from bayesgmm.mixtures import conditioning as marginals
from bayesgmm.numerics.precision import AnyArray, RandomKey, matching_precision
from bayesgmm.numerics.triangular import UNROLLED, cholesky, inverse_of_lower
from bayesgmm.numerics.validation import real_array
from bayesgmm.runtime.files import storable

LOG_2PI = math.log(2 * math.pi)


@storable
@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["log_weights", "means", "precision_factor"], meta_fields=[]
)
@dataclass(frozen=True)
class Mixture:
    r"""A Gaussian mixture, or many of them: every field may carry the same leading axes, such as (chain, draw).

    `precision_factor` is $F_j$ with $\Sigma_j^{-1} = F_j^\top F_j$, the map that whitens component $j$. It has one of
    two representations, and nothing in the package asks for more:

    * triangular, shape (..., e, d, d): lower triangular with a positive diagonal;
    * diagonal, shape (..., e, d): the reciprocals of the standard deviations.

    e is 1 where all components share one covariance, else k. Storing the factor of the precision rather than of the
    covariance makes the density a product instead of a triangular solve: faster, and exact for ill-conditioned
    covariances.

    Attributes:
        log_weights: log mixing proportions, shape (..., k).
        means: component means in the units of the data, shape (..., k, d).
        precision_factor: see above, in reciprocal units of the data.
    """

    log_weights: Shaped[AnyArray, "*draws k"]
    means: Shaped[AnyArray, "*draws k d"]
    precision_factor: Shaped[AnyArray, "*draws e d d"] | Shaped[AnyArray, "*draws e d"]

    @classmethod
    def from_covariances(cls, weights: Any, means: Any, covariances: Any) -> "Mixture":
        """The mixture with these mixing proportions (k), means (k, d) and covariances.

        Covariances are (e, d, d), or (e, d) variances for a diagonal representation, with e either 1 or k; further
        leading axes are shared by all three. A covariance that is not positive definite gives NaN factors, as
        elsewhere in JAX.
        """
        weights, means, covariances = (_as_array(value) for value in (weights, means, covariances))
        return cls(*_fields_from_covariances(weights, means, covariances))

    @property
    def num_components(self) -> int:
        """k."""
        return self.means.shape[-2]

    @property
    def num_features(self) -> int:
        """d."""
        return self.means.shape[-1]

    @property
    def is_diagonal(self) -> bool:
        """Whether the precision factor is stored as a diagonal."""
        return self.precision_factor.ndim == self.means.ndim

    @property
    def draw_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes, () for a single mixture."""
        return self.means.shape[:-2]

    @property
    def weights(self) -> Shaped[AnyArray, "*draws k"]:
        """Mixing proportions, shape (..., k)."""
        return _weights(self)

    @property
    def covariances(self) -> Shaped[AnyArray, "*draws k d d"]:
        """Dense covariance of every component, shape (..., k, d, d), in squared units of the data."""
        return _covariances(self)

    @property
    def scales(self) -> Shaped[AnyArray, "*draws k d"]:
        """Standard deviation of every component along every feature, shape (..., k, d)."""
        return _scales(self)

    @property
    def mean(self) -> Shaped[AnyArray, "*draws d"]:
        r"""Mean of the whole mixture $m = \sum_j w_j \mu_j$, shape (..., d)."""
        return _mean(self)

    @property
    def covariance(self) -> Shaped[AnyArray, "*draws d d"]:
        r"""Covariance of the whole mixture $\sum_j w_j (\Sigma_j + (\mu_j - m)(\mu_j - m)^\top)$, shape (..., d, d)."""
        return _covariance(self)

    def __getitem__(self, index: Any) -> "Mixture":
        """Select among the leading axes: `posterior[0, 10]` is draw 10 of chain 0."""
        if not self.draw_shape:
            raise IndexError("a single mixture has no leading axes to index; use .permute to reorder components")
        return jax.tree.map(lambda leaf: leaf[index], self)

    def permute(self, order: Any) -> "Mixture":
        """The same mixture with its components in another order; `order` has shape (..., k)."""
        return _permute(self, order)

    def marginal(self, columns: Any) -> "Mixture":
        """The mixture of some features alone, in the order of `columns`: their numbers, counted from 0.

        Raises:
            InputError: for columns that are not there, or twice.
        """
        return _marginal(self, marginals.check_columns(columns, self.num_features))

    def condition(self, columns: Any, values: Any) -> "Mixture":
        r"""The mixture of the other features, in their order, where `columns` have these values.

        $p(x_a \mid x_b) = \sum_j p(j \mid x_b) \, p_j(x_a \mid x_b)$. Its `mean` and `covariance` predict missing
        columns (Gaussian mixture regression). Values (b) are of one row; of m rows, (m, b), the last leading axis is m.

        Raises:
            InputError: for columns that are not there, twice, or all; for values of another shape, or not finite.
        """
        columns = marginals.check_columns(columns, self.num_features)
        return _condition(self, marginals.check_values(values, columns, self.num_features), columns)

    def joint_log_prob(self, x: Any) -> Float[AnyArray, "*draws n k"]:
        r"""$\log w_j + \log \mathcal N(x_i \mid \mu_j, \Sigma_j)$ for every row and component, shape (..., n, k)."""
        return _over_rows(_joint_rows, self, x)

    def log_prob(self, x: Any) -> Float[AnyArray, "*draws n"]:
        r"""$\log p(x_i)$ for every row, shape (..., n)."""
        return _over_rows(_log_prob, self, x)

    def responsibilities(self, x: Any) -> Float[AnyArray, "*draws n k"]:
        r"""Posterior probability $p(j \mid x_i)$ of every component for every row, shape (..., n, k)."""
        return _over_rows(_responsibilities, self, x)

    def predict(self, x: Any) -> Int[AnyArray, "*draws n"]:
        """Hard assignment of every row: the component of largest responsibility, shape (..., n)."""
        return _over_rows(_predict, self, x)

    def sample(self, num_rows: int, *, key: RandomKey) -> Float[AnyArray, "*draws n d"]:
        """`num_rows` independent rows from the mixture (from every draw, if there are leading axes)."""
        return _sample(self, key, num_rows)


def vmap_draws(function: Callable[..., Any], mixture: Mixture) -> Callable[..., Any]:
    """`function` of one mixture, mapped over the leading axes that `mixture` has."""
    for _ in mixture.draw_shape:
        function = jax.vmap(function)
    return function


def factor_of_covariances(covariances: Array, diagonal: bool) -> Array:
    """Precision factor of covariances (..., d, d), or of variances (..., d) for the diagonal representation."""
    if diagonal:
        return 1.0 / jnp.sqrt(covariances)
    return inverse_of_lower(cholesky(covariances))


def whiten(mixture: Mixture, x: Float[Array, "n d"]) -> Float[Array, "k d n"]:
    r"""$F_j (x_i - \mu_j)$, with rows as the fastest axis, in which exp and sums over components vectorise."""
    centred = x.T[None] - mixture.means[:, :, None]
    if mixture.is_diagonal:
        return centred * mixture.precision_factor[:, :, None]
    factor = jnp.tril(mixture.precision_factor)
    factor = jnp.broadcast_to(factor, (mixture.num_components, *factor.shape[1:]))
    if mixture.num_features <= UNROLLED:  # a product of such small matrices costs more to set up than to work out
        rows = (
            sum(factor[:, row, column, None] * centred[:, column] for column in range(row + 1))
            for row in range(mixture.num_features)
        )
        return jnp.stack(list(rows), 1)
    return jnp.matmul(factor, centred, precision="highest")


def log_normaliser(mixture: Mixture) -> Float[Array, " k"]:
    r"""$\log|F_j| - \tfrac d2 \log 2\pi$, the log-density of every component at its own mean."""
    factor = mixture.precision_factor
    diagonal = factor if mixture.is_diagonal else jnp.diagonal(factor, axis1=-2, axis2=-1)
    log_determinant = jnp.broadcast_to(jnp.log(diagonal).sum(-1), (mixture.num_components,))
    return log_determinant - 0.5 * mixture.num_features * LOG_2PI


def joint_of_whitened(mixture: Mixture, whitened: Float[Array, "k d n"]) -> Float[Array, "k n"]:
    r"""$\log w_j + \log|F_j| - \tfrac d2 \log 2\pi - \tfrac12 \lVert F_j (x_i - \mu_j) \rVert^2$. The one density."""
    squares = jnp.square(whitened)
    # Of few features written out, to be worked out together with what the squares are made of.
    few = mixture.num_features <= UNROLLED
    squares = sum(squares[:, row] for row in range(mixture.num_features)) if few else squares.sum(1)
    return (mixture.log_weights + log_normaliser(mixture))[:, None] - 0.5 * squares


def joint_of_rows(mixture: Mixture, x: Float[Array, "n d"]) -> Float[Array, "k n"]:
    """Joint log-densities of rows, with rows as the fastest axis."""
    return joint_of_whitened(mixture, whiten(mixture, x))


def joint_and_marginal(mixture: Mixture, x: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
    """Whitened rows (k, d, n), joint log-densities (k, n) and the marginal log-density (n) of every row."""
    whitened = whiten(mixture, x)
    joint = joint_of_whitened(mixture, whitened)
    return whitened, joint, sum_over_components(joint)


def sum_over_components(joint: Float[Array, "k n"]) -> Float[Array, " n"]:
    """Marginal log-density of every row from the joint ones."""
    return jax.nn.logsumexp(joint, axis=0)


def shares_and_marginal_parts(
    joint: Float[Array, "k n"], row_weights: Float[Array, " n"]
) -> tuple[Float[Array, "k n"], tuple[Float[Array, " n"], Float[Array, " n"]]]:
    """Responsibilities times row weights, and what `weighted_marginal` takes: with one exp for each entry."""
    largest = jax.lax.stop_gradient(joint.max(0))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    relative = jnp.exp(joint - largest[None])
    total = relative.sum(0)
    # A row beyond the reach of every component has no shares, whatever its weight.
    return relative * (row_weights / jnp.where(total == 0, 1.0, total))[None], (largest, total)


def weighted_marginal(
    row_weights: Float[Array, " n"], largest: Float[Array, " n"], total: Float[Array, " n"]
) -> Float[Array, ""]:
    """Weighted sum of marginal log-densities, from the largest joint one of each row and the sum relative to it.

    A row of weight 0 counts nothing, even where its log-density is minus infinity.
    """
    marginal = jnp.where(row_weights == 0, 0.0, largest + jnp.log(total))
    return jnp.dot(row_weights, marginal, precision="highest")


def covariance_factor(factor: AnyArray) -> Array:
    r"""Lower triangular $L$ with $\Sigma = L L^\top$, from a triangular precision factor: its inverse."""
    return inverse_of_lower(factor)


def _as_array(value: Any) -> AnyArray:
    return value if isinstance(value, jax.Array) else np.asarray(value)


def rows_of_mixture(mixture: Mixture, x: Any) -> AnyArray:
    """Rows x (n, d), of any real dtype, with as many features as the mixture; their values are not looked at.

    Raises:
        InputError: for other shapes and for types that are not real numbers.
    """
    x = real_array(x, "x")
    if x.ndim != 2 or x.shape[1] != mixture.num_features:
        raise InputError(f"x must have shape (rows, {mixture.num_features}) like the means; got {x.shape}")
    return x


@matching_precision
def _over_rows(function: Callable[[Mixture, Array], Array], mixture: Mixture, x: Any) -> Array:
    x = jnp.asarray(rows_of_mixture(mixture, x), jax.dtypes.canonicalize_dtype(mixture.means.dtype))
    return vmap_draws(lambda mixture: function(mixture, x), mixture)(mixture)


@jax.jit
def _joint_rows(mixture: Mixture, x: Array) -> Array:
    return joint_and_marginal(mixture, x)[1].T


@jax.jit
def _log_prob(mixture: Mixture, x: Array) -> Array:
    return joint_and_marginal(mixture, x)[2]


@jax.jit
def _responsibilities(mixture: Mixture, x: Array) -> Array:
    _, joint, marginal = joint_and_marginal(mixture, x)
    return jnp.exp(joint - marginal[None]).T


@jax.jit
def _predict(mixture: Mixture, x: Array) -> Array:
    return joint_and_marginal(mixture, x)[1].argmax(0)


@matching_precision
@jax.jit
def _fields_from_covariances(weights: Any, means: Any, covariances: Any) -> tuple[Array, Array, Array]:
    weights, means, covariances = (jnp.asarray(value) for value in (weights, means, covariances))
    return jnp.log(weights), means, factor_of_covariances(covariances, covariances.ndim == means.ndim)


@matching_precision
@jax.jit
def _weights(mixture: Mixture) -> Array:
    return jnp.exp(mixture.log_weights)


@matching_precision
@jax.jit
def _covariances(mixture: Mixture) -> Array:
    dense = marginals.dense_covariances(mixture.precision_factor, mixture.is_diagonal)
    return jnp.broadcast_to(dense, (*mixture.means.shape, mixture.num_features))


@matching_precision
@jax.jit
def _scales(mixture: Mixture) -> Array:
    return jnp.sqrt(jnp.diagonal(_covariances(mixture), axis1=-2, axis2=-1))


@matching_precision
@jax.jit
def _mean(mixture: Mixture) -> Array:
    return marginals.total_mean(_weights(mixture), mixture.means)


@matching_precision
@jax.jit
def _covariance(mixture: Mixture) -> Array:
    return marginals.total_covariance(_weights(mixture), mixture.means, _covariances(mixture))


@matching_precision
@functools.partial(jax.jit, static_argnums=1)
def _marginal(mixture: Mixture, columns: tuple[int, ...]) -> Mixture:
    def one(mixture: Mixture) -> Mixture:
        return Mixture(
            mixture.log_weights, *marginals.marginal_gaussians(mixture.means, mixture.precision_factor, columns)
        )

    return vmap_draws(one, mixture)(mixture)


@matching_precision
@functools.partial(jax.jit, static_argnums=2)
def _condition(mixture: Mixture, values: Any, columns: tuple[int, ...]) -> Mixture:
    values = jnp.asarray(values, jax.dtypes.canonicalize_dtype(mixture.means.dtype))
    rows = values.reshape(-1, len(columns))

    def one(mixture: Mixture) -> Mixture:
        _, joint, marginal = joint_and_marginal(_marginal(mixture, columns), rows)
        means, factor = marginals.conditional_gaussians(mixture.means, mixture.precision_factor, columns, rows)
        fields = ((joint - marginal[None]).T, means, factor)
        return Mixture(*(field if values.ndim == 2 else field[0] for field in fields))

    return vmap_draws(one, mixture)(mixture)


@matching_precision
@jax.jit
def _permute(mixture: Mixture, order: Any) -> Mixture:
    num_leading = len(mixture.draw_shape)
    order = jnp.broadcast_to(jnp.asarray(order), mixture.log_weights.shape)

    def reorder(field: Any) -> Array:
        field = jnp.asarray(field)
        if field.shape[num_leading] == 1:
            return field
        index = order.reshape(*order.shape, *(1,) * (field.ndim - order.ndim))
        return jnp.take_along_axis(field, index, axis=num_leading)

    return jax.tree.map(reorder, mixture)


@matching_precision
def _sample(mixture: Mixture, key: Array, num_rows: int) -> Array:
    keys = jax.random.split(key, mixture.draw_shape) if mixture.draw_shape else key
    return vmap_draws(functools.partial(_sample_one, num_rows=num_rows), mixture)(mixture, keys)


@functools.partial(jax.jit, static_argnames="num_rows")
def _sample_one(mixture: Mixture, key: Array, *, num_rows: int) -> Array:
    label_key, normal_key = jax.random.split(key)
    labels = jax.random.categorical(label_key, mixture.log_weights, shape=(num_rows,))
    noise = jax.random.normal(normal_key, (num_rows, mixture.num_features), dtype=mixture.means.dtype)
    factor = jnp.broadcast_to(mixture.precision_factor, (mixture.num_components, *mixture.precision_factor.shape[1:]))
    if mixture.is_diagonal:
        return mixture.means[labels] + noise / factor[labels]
    return mixture.means[labels] + jnp.einsum(
        "nij,nj->ni", covariance_factor(factor)[labels], noise, precision="highest"
    )
