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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from bayesgmm.errors import InputError
from bayesgmm.mixtures.checks import (
    as_fields,
    check_columns,
    check_draws,
    check_mixture,
    check_order,
    check_values,
    rows_of_features,
)
from bayesgmm.mixtures.factors import Diagonal, Factor, Triangular
from bayesgmm.mixtures.named import NOT_OF_JAX, Named
from bayesgmm.mixtures.sampling import sample_rows
from bayesgmm.numerics.batches import in_batches
from bayesgmm.numerics.precision import (
    AnyArray,
    ArrayLike,
    KeyLike,
    by_value,
    compiled,
    in_wider_precision,
    is_traced,
    matching_precision,
    matmul,
    namespace,
)
from bayesgmm.numerics.triangular import UNROLLED
from bayesgmm.numerics.validation import as_key, short_repr, whole_number
from bayesgmm.runtime.files import storable
from bayesgmm.runtime.printing import Lines, Printable
from bayesgmm.runtime.programs import ROOM, SMALL, has_room, room_of_rows

LOG_2PI = math.log(2 * math.pi)
Way = Callable[["Mixture", Any], "Densities"]
ABSENT = -1e4  # log-weight of a component that is not there: beside its twin of any weight it has no share
_FAR = -1  # in place of the component of a row whose density underflows under all of them
_AT_ONCE = 2**24  # rows x features x components x draws whose densities are formed at once


def _of_rows[R](method: Callable[["Mixture", Any, Any], R]) -> Callable[["Mixture", Any], R]:
    """A method of one mixture and rows: the quick way, and the careful one for the rows that turn out to need it."""
    quick = jax.jit(lambda self, x: method(self, x, densities))
    careful = jax.jit(lambda self, x: method(self, x, densities_anywhere))

    @functools.wraps(method)
    @matching_precision
    def of_rows(self: "Mixture", x: ArrayLike) -> R:
        rows, num_leading = rows_of_mixture(self, x), len(self.draw_shape)
        mixture, rows = in_wider_precision(self, self.means.dtype, rows)

        def by(program: Callable[..., Any], rows: AnyArray) -> Any:
            if not num_leading:
                return in_room(program, mixture, rows)
            rows = jnp.asarray(rows)
            return vmap_draws(lambda one: program(one, rows), mixture)(mixture)

        if is_traced((mixture, rows)):
            return by(careful, rows)
        size = max(1, _AT_ONCE // mixture.means.size)
        quickly = functools.partial(by, quick)
        found = quickly(rows) if len(rows) <= size else in_batches(quickly, size, rows, axis=num_leading)
        marks = np.asarray(found)  # NaN, or of a component _FAR
        marks = marks if marks.ndim == num_leading + 1 else marks.max(-1)
        far = ~(marks > _FAR if marks.dtype.kind == "i" else marks == marks).all(tuple(range(num_leading)))
        if not far.any():
            return jax.device_put(found)
        mended = np.array(found)
        mended[(*(slice(None),) * num_leading, far)] = by(careful, np.asarray(rows)[far])
        return jax.device_put(mended)  # pyright: ignore[reportReturnType]

    return of_rows


@storable
@functools.partial(jax.tree_util.register_dataclass, drop_fields=NOT_OF_JAX)
@dataclass(frozen=True)
class Mixture(Named, Printable):
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
        feature_names: names of the features, where it was fitted to a data frame: columns may be asked for by them.
    """

    log_weights: Shaped[AnyArray, "*draws k"]
    means: Shaped[AnyArray, "*draws k d"]
    precision_factor: Shaped[AnyArray, "*draws e d d"] | Shaped[AnyArray, "*draws e d"]

    @classmethod
    def from_covariances(cls, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> "Mixture":
        """The mixture with these mixing proportions (k), means (k, d) and covariances.

        Covariances are (e, d, d), or (e, d) variances for a diagonal representation, with e either 1 or k; further
        leading axes are shared by all three. The precision is that of the arrays of floats among them, float64 where
        there are none. Traced by JAX, a covariance that is not positive definite gives NaN factors.

        Raises:
            InputError: for shapes that do not belong together, weights that are negative or do not sum to 1, and
                covariances that are not symmetric or not positive definite.
        """
        return _from_covariances(*as_fields(weights, means, covariances))

    @property
    def fields(self) -> dict[str, ArrayLike]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in ("log_weights", "means", "precision_factor")}

    @property
    def factor(self) -> Factor:
        """The precision factor as one of the two representations: the one place that tells which it is."""
        representation = Diagonal if self.precision_factor.ndim == self.means.ndim else Triangular
        return representation(self.precision_factor)

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
        return isinstance(self.factor, Diagonal)

    @property
    def draw_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes, () for a single mixture."""
        return self.means.shape[:-2]

    @property
    @by_value
    def weights(self) -> Shaped[AnyArray, "*draws k"]:
        """Mixing proportions, shape (..., k)."""
        return namespace(self.log_weights).exp(self.log_weights)

    @property
    @by_value
    def covariances(self) -> Shaped[AnyArray, "*draws k d d"]:
        """Dense covariance of every component, shape (..., k, d, d), in squared units of the data."""
        dense = self.factor.dense(self.factor.covariances())
        return namespace(dense).broadcast_to(dense, (*self.means.shape, self.num_features))

    @property
    @by_value
    def scales(self) -> Shaped[AnyArray, "*draws k d"]:
        """Standard deviation of every component along every feature, shape (..., k, d)."""
        xp, variances = namespace(self.precision_factor), self.factor.variances()
        return xp.broadcast_to(xp.sqrt(variances), self.means.shape)

    @property
    @by_value
    def mean(self) -> Shaped[AnyArray, "*draws d"]:
        r"""Mean of the whole mixture $m = \sum_j w_j \mu_j$, shape (..., d)."""
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    @by_value
    def covariance(self) -> Shaped[AnyArray, "*draws d d"]:
        r"""Covariance of the whole mixture $\sum_j w_j (\Sigma_j + (\mu_j - m)(\mu_j - m)^\top)$, shape (..., d, d)."""
        weights, away = self.weights[..., None], self.means - self.mean[..., None, :]
        between = matmul((weights * away).swapaxes(-1, -2), away)
        return (weights[..., None] * self.covariances).sum(-3) + between

    def __getitem__(self, index: Any) -> "Mixture":
        """Select among the leading axes: `posterior[0, 10]` is draw 10 of chain 0."""
        chosen = check_draws(index, self.draw_shape)
        return jax.tree.map(lambda leaf: leaf[chosen], self).named(self.feature_names)

    def permute(self, order: ArrayLike) -> "Mixture":
        """The same mixture with its components in another order; `order` has shape (..., k).

        Raises:
            InputError: for what is no permutation of the components.
        """
        as_mixture(self)
        return self._permute(check_order(order, self.log_weights.shape)).named(self.feature_names)

    @by_value
    def _permute(self, order: AnyArray) -> "Mixture":
        num_leading = len(self.draw_shape)
        xp = namespace(self.means, order)
        order = xp.broadcast_to(order, self.log_weights.shape)

        def reorder(field: AnyArray) -> AnyArray:
            if field.shape[num_leading] == 1:
                return field
            index = order.reshape(*order.shape, *(1,) * (field.ndim - order.ndim))
            return xp.take_along_axis(field, index, axis=num_leading)

        return jax.tree.map(reorder, self)

    def marginal(self, columns: object) -> "Mixture":
        """The mixture of some features alone, in the order of `columns`: their names, or numbers counted from 0.

        Raises:
            InputError: for columns that are not there, or twice.
        """
        from bayesgmm.mixtures.marginals import marginal_of

        columns = check_columns(columns, as_mixture(self).num_features, self.feature_names)
        return marginal_of(self, columns).named(self.feature_names[column] for column in columns if self.feature_names)

    def condition(self, columns: object, values: ArrayLike) -> "Mixture":
        r"""The mixture of the other features, in their order, where `columns` have these values.

        $p(x_a \mid x_b) = \sum_j p(j \mid x_b) \, p_j(x_a \mid x_b)$. Its `mean` and `covariance` predict missing
        columns (Gaussian mixture regression). Values (b) are of one row; of m rows, (m, b), the last leading axis is m.

        Raises:
            InputError: for columns that are not there, twice, or all; for values of another shape, or not finite.
        """
        from bayesgmm.mixtures.marginals import condition_on

        columns = check_columns(columns, as_mixture(self).num_features, self.feature_names)
        found = condition_on(self, check_values(values, columns, self.num_features), columns)
        return found.named(name for column, name in enumerate(self.feature_names) if column not in columns)

    @_of_rows
    def joint_log_prob(self, x: AnyArray, way: "Way") -> Float[AnyArray, "*draws n k"]:
        r"""$\log w_j + \log \mathcal N(x_i \mid \mu_j, \Sigma_j)$ for every row and component, shape (..., n, k)."""
        return way(self, x).joint.T

    @_of_rows
    def log_prob(self, x: AnyArray, way: "Way") -> Float[AnyArray, "*draws n"]:
        r"""$\log p(x_i)$ for every row, shape (..., n)."""
        return way(self, x).marginal

    @_of_rows
    def responsibilities(self, x: AnyArray, way: "Way") -> Float[AnyArray, "*draws n k"]:
        r"""Posterior probability $p(j \mid x_i)$ of every component for every row, shape (..., n, k)."""
        return jnp.exp(way(self, x).log_shares).T

    @_of_rows
    def predict(self, x: AnyArray, way: "Way") -> Int[AnyArray, "*draws n"]:
        """Hard assignment of every row: the component of largest responsibility, shape (..., n)."""
        return way(self, x).best

    @matching_precision
    def sample(self, num_rows: int, *, key: KeyLike) -> Float[AnyArray, "*draws n d"]:
        """`num_rows` independent rows from the mixture (from every draw, if there are leading axes).

        Raises:
            InputError: if `num_rows` is not a whole number, or `key` not a random key.
        """
        num_rows, key = whole_number("num_rows", num_rows, least=0), as_key(key)
        as_mixture(self)
        return sample_rows((self.log_weights, self.means, self.precision_factor), key, num_rows, self.draw_shape)

    def shown(self) -> tuple[str, Lines] | None:
        """Weights, means and standard deviations by cluster, of many mixtures with their spread."""
        from bayesgmm.mixtures.presentation import shown_mixture

        return shown_mixture(self)


@compiled
def _from_covariances(weights: AnyArray, means: AnyArray, covariances: AnyArray) -> Mixture:
    weights, means, covariances = (jnp.asarray(value) for value in (weights, means, covariances))
    representation = Diagonal if covariances.ndim == means.ndim else Triangular
    return Mixture(jnp.log(weights), means, representation.from_covariances(covariances).array)


def without_absent(mixture: Mixture, active: Bool[AnyArray, " k"]) -> Mixture:
    """The mixture in which components that are not active are the first one again, of a weight next to nothing."""

    def first_again(field: Array) -> Array:
        return jnp.where(jnp.expand_dims(active, range(1, field.ndim)), field, field[:1]) if len(field) > 1 else field

    log_weights = jnp.where(active, mixture.log_weights, ABSENT)
    return Mixture(log_weights, first_again(mixture.means), first_again(mixture.precision_factor))


def with_room(mixture: Mixture, num_components: int, *, shared: bool = False) -> Mixture:
    """The mixture, or each of several, with absent components up to so many, in NumPy: programs for them serve fewer.

    One covariance that is `shared` stays one, of a single component too.
    """
    k, factor, axis = mixture.num_components, np.asarray(mixture.precision_factor), len(mixture.draw_shape)

    def widen(field: AnyArray) -> np.ndarray:
        more = np.repeat(np.take(np.asarray(field), [0], axis), num_components - k, axis)
        return np.concatenate([field, more], axis)

    log_weights = widen(mixture.log_weights)
    log_weights[..., k:] = ABSENT
    return Mixture(log_weights, widen(mixture.means), factor if shared or factor.shape[axis] < k else widen(factor))


def in_room[R](program: Callable[[Mixture, Any], R], mixture: Mixture, x: Shaped[AnyArray, "n d"]) -> R:
    """`program(mixture, x)`: arrays (n) or (n, k), of few rows by a compiled program that serves other n and k too."""
    (num_rows, num_features), k = x.shape, mixture.num_components
    if is_traced((mixture, x)) or x.size * k >= SMALL or num_rows == 0:
        return program(mixture, jnp.asarray(x))
    more = room_of_rows(num_rows) - num_rows
    x = np.concatenate([np.asarray(x), np.zeros((more, num_features), x.dtype)])
    found = program(with_room(mixture, ROOM) if has_room(k, x.size) else mixture, x)
    return jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[(slice(num_rows), slice(k))[: leaf.ndim]], found))


def vmap_draws(function: Callable[..., Any], mixture: Mixture) -> Callable[..., Any]:
    """`function` of one mixture, mapped over the leading axes that `mixture` has."""
    for _ in mixture.draw_shape:
        function = jax.vmap(function)
    return function


def whiten(mixture: Mixture, x: Float[AnyArray, "n d"]) -> Float[AnyArray, "k d n"]:
    r"""$F_j (x_i - \mu_j)$, with rows as the fastest axis, in which exp and sums over components vectorise."""
    return mixture.factor.whiten(x.T[None] - mixture.means[:, :, None])


def log_normaliser(mixture: Mixture) -> Float[AnyArray, " k"]:
    r"""$\log|F_j| - \tfrac d2 \log 2\pi$, the log-density of every component at its own mean."""
    xp = namespace(mixture.precision_factor)
    log_determinant = xp.broadcast_to(mixture.factor.log_determinant(), (mixture.num_components,))
    return log_determinant - 0.5 * mixture.num_features * LOG_2PI


def joint_of_whitened(mixture: Mixture, whitened: Float[AnyArray, "k d n"]) -> Float[AnyArray, "k n"]:
    r"""$\log w_j + \log|F_j| - \tfrac d2 \log 2\pi - \tfrac12 \lVert F_j (x_i - \mu_j) \rVert^2$. The one density."""
    squares = whitened * whitened
    # Of few features written out, to be computed together with what the squares are made of.
    few = mixture.num_features <= UNROLLED
    squares = sum(squares[:, row] for row in range(mixture.num_features)) if few else squares.sum(1)
    return (mixture.log_weights + log_normaliser(mixture))[:, None] - 0.5 * squares


def joint_of_rows(mixture: Mixture, x: Float[AnyArray, "n d"]) -> Float[AnyArray, "k n"]:
    """Joint log-densities of rows, with rows as the fastest axis."""
    return joint_of_whitened(mixture, whiten(mixture, x))


def joint_and_marginal(mixture: Mixture, x: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
    """Whitened rows (k, d, n), joint log-densities (k, n) and the marginal log-density (n) of every row."""
    whitened = whiten(mixture, x)
    joint = joint_of_whitened(mixture, whitened)
    return whitened, joint, sum_over_components(joint)


class Densities(NamedTuple):
    """Joint (k, n) and marginal (n) log-densities of rows, log-responsibilities (k, n), the largest's number."""

    joint: Float[Array, "k n"]
    marginal: Float[Array, " n"]
    log_shares: Float[Array, "k n"]
    best: Int[Array, " n"]


def densities(mixture: Mixture, x: Float[Array, "n d"]) -> Densities:
    """The quick way: a row whose squares overflow under every component has NaN for responsibilities, and a mark."""
    _, joint, marginal = joint_and_marginal(mixture, x)
    return Densities(joint, marginal, joint - marginal[None], jnp.where(joint.max(0) > -jnp.inf, joint.argmax(0), _FAR))


def densities_anywhere(mixture: Mixture, x: Float[Array, "n d"]) -> Densities:
    """The way for any row: one whose squares overflow has the responsibilities of the limit, and their derivatives.

    There a row belongs to the components that are closest in their own units. That is seen in a larger unit, a
    power of two, which costs no digits.
    """
    most = int(jnp.finfo(x.dtype).maxexp)
    wide = jnp.abs(x).max(1) > 2.0 ** (most // 2 - 2)  # not of NaN
    unit = jnp.where(wide, 2.0 ** (3 * most // 4), 1.0).astype(x.dtype)[None, None]
    whitened = mixture.factor.whiten(x.T[None] / unit - mixture.means[:, :, None] / unit)
    joint = joint_of_rows(mixture, x)
    joint = jnp.where(jnp.isnan(joint) & wide[None], -jnp.inf, joint)
    far = joint.max(0, keepdims=True) == -jnp.inf
    small = jnp.square(whitened * jnp.where(wide, 1.0, 2.0 ** -(0.55 * most)).astype(x.dtype)[None, None])
    distance = jnp.where(mixture.log_weights[:, None] > -jnp.inf, small.sum(1), jnp.inf)
    heights = (mixture.log_weights + log_normaliser(mixture))[:, None]
    heights = jnp.where(distance <= distance.min(0, keepdims=True), heights, -jnp.inf)
    in_limit = jax.lax.stop_gradient(heights - sum_over_components(heights)[None])
    there = (jnp.exp(in_limit) * jnp.where(far & (in_limit > -jnp.inf), joint, 0.0)).sum(0)
    marginal = sum_over_components(jnp.where(far, 0.0, joint))
    log_shares = jnp.where(far, in_limit, joint - marginal[None])
    return Densities(joint, jnp.where(far[0], there, marginal), log_shares, log_shares.argmax(0))


def sum_over_components(joint: Float[Array, "k n"]) -> Float[Array, " n"]:
    """Marginal log-density of every row from the joint ones."""
    return jax.nn.logsumexp(joint, axis=0)


class Assigned(NamedTuple):
    """Rows assigned to components, in parts or wholly, and their marginal log-densities.

    Attributes:
        shares: share of each component in each row, times the weight of the row, shape (k, n).
        largest: the largest joint log-density of each row, shape (n).
        total: sum over components of the joint densities relative to the largest one, shape (n).
    """

    shares: Float[AnyArray, "k n"]
    largest: Float[AnyArray, " n"]
    total: Float[AnyArray, " n"]

    @property
    def log_prob(self) -> Float[AnyArray, " n"]:
        """Marginal log-density of every row."""
        return self.largest + namespace(self.total).log(self.total)

    @property
    def log_certainty(self) -> Float[Array, " n"]:
        """Logarithm of the largest responsibility of every row; 0, the limit, where its density underflows."""
        return jnp.where(self.total > 0, -jnp.log(self.total), 0.0)

    def log_likelihood(self, row_weights: Float[AnyArray, " n"]) -> Float[AnyArray, ""]:
        """Weighted sum of marginal log-densities. A row of weight 0 adds nothing, even where its own is -inf."""
        log_prob = namespace(row_weights).where(row_weights == 0, 0.0, self.log_prob)
        return matmul(row_weights, log_prob)


def expected_shares(joint: Float[AnyArray, "k n"], row_weights: Float[AnyArray, " n"]) -> Assigned:
    """Responsibilities as shares, with one exp for each entry."""
    largest, relative = _relative_to_largest(joint)
    total = relative.sum(0)
    # A row whose density underflows under every component has no shares, whatever its weight.
    safe = namespace(total).where(total == 0, 1.0, total)
    return Assigned(relative * (row_weights / safe)[None], largest, total)


def drawn_shares(joint: Float[Array, "k n"], row_weights: Float[Array, " n"], uniform: Float[Array, " n"]) -> Assigned:
    """Each row allocated to one component, drawn by inversion with the responsibilities as probabilities."""
    largest, relative = _relative_to_largest(joint)
    cumulative = jnp.cumsum(relative, 0)
    reached = cumulative > (uniform * cumulative[-1])[None]  # also at 0, where none of no probability is reached
    earlier = jnp.concatenate([jnp.zeros_like(reached[:1]), reached[:-1]])
    return Assigned((reached & ~earlier).astype(joint.dtype) * row_weights[None], largest, cumulative[-1])


def _relative_to_largest(joint: Float[AnyArray, "k n"]) -> tuple[Float[AnyArray, " n"], Float[AnyArray, "k n"]]:
    xp, largest = namespace(joint), joint.max(0)
    largest = jax.lax.stop_gradient(largest) if xp is jnp else largest
    largest = xp.where(xp.isfinite(largest), largest, 0.0)
    return largest, xp.exp(joint - largest[None])


def rows_of_mixture(mixture: Mixture, x: ArrayLike) -> AnyArray:
    """Rows x (n, d), of one feature also (n,), of any real dtype, with as many as the mixture; values are not checked.

    Raises:
        InputError: for other shapes and for types that are not real numbers; for a mixture that is none.
    """
    return rows_of_features(as_mixture(mixture).num_features, x)


def as_mixture(value: object, name: str = "mixture") -> Mixture:
    """The value, if it is a mixture.

    Raises:
        InputError: for anything else; of a fit, naming its mixture; for fields that do not belong together, weights
            that do not sum to 1, and a factor that is not lower triangular.
    """
    if isinstance(value, Mixture):
        check_mixture(value.fields, name)
        return value
    cure = f"give its mixture, {name}.mixture" if hasattr(value, "mixture") else "give the .mixture of a fit"
    raise InputError(f"{name}={short_repr(value)} is not a Mixture; {cure}")
