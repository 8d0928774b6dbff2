"""Partitions of rows by distance (k-means++ seeds, k-means) on comparable columns, and the mixture of a partition.

All of it is computed by NumPy where values are known, and by JAX inside the caller's own program.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from bayesgmm.likelihood.expectation import moments_of_partition
from bayesgmm.likelihood.moments import Moments, default_ridge_fraction, maximise, positive_count, scatter_of
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.draws import draw_rows, repeat, repeat_while, uniform_numbers
from bayesgmm.numerics.keys import Keys, are_several, number_key
from bayesgmm.numerics.precision import (
    AnyArray,
    ArrayLike,
    IntLike,
    is_traced,
    matching_precision,
    matmul,
    namespace,
)
from bayesgmm.numerics.triangular import cholesky, inverse_of_lower
from bayesgmm.runtime.programs import SMALL
from bayesgmm.starts.sampling import sample_rows, sampling_masses, standardise

Weights = Float[AnyArray, " n"]
Labels = Int[AnyArray, " n"]
Columns = Float[AnyArray, "d n"]
Attraction = Callable[[AnyArray], AnyArray]

MAX_LLOYD_STEPS = 100
_SEEN = 4096  # rows among which seeds are sought, at least; and so many for each of them:
_SEEN_EACH = 32
_SINGULAR = 2.0  # a variance of less than this many default ridges is one of them at least
_SUMMED_FEATURES = 8  # up to so many, squares of differences are summed; beyond, distances come from a product
_ROUNDING_OF_PRODUCTS = 64.0  # epsilons of the squares that a distance from a product is taken from


def whitened_rows(rows: Rows) -> Float[AnyArray, "d n"]:
    r"""$L^{-1} z_i$ for standardised rows $z_i$ with correlation $L L^\top$: uncorrelated features of variance 1.

    Features, not rows, come first, so that arithmetic over rows vectorises. The correlation gets a ridge of the size of
    its rounding, so that a direction in which the rows do not vary stays near 0.
    """
    standard = standardise(rows).T
    num_features = len(standard)
    correlation = matmul(standard * (rows.weights / rows.total_weight)[None], standard.T)
    ridge = 100 * num_features * float(jnp.finfo(rows.dtype).eps)
    lower = cholesky(correlation + ridge * np.eye(num_features, dtype=rows.dtype))
    # The inverse once, then a product: cheaper than a triangular solve with every row.
    return matmul(inverse_of_lower(lower), standard)


def square_distances(x: Float[AnyArray, "n d"], points: Float[AnyArray, "*r m d"]) -> Float[AnyArray, "*r m n"]:
    """Squared distances of rows from points, exactly 0 between equal ones; columns should be centred."""
    if x.shape[1] <= _SUMMED_FEATURES:
        differences = (x[:, feature][None] - points[..., feature, None] for feature in range(x.shape[1]))
        return sum(difference * difference for difference in differences)
    xp = namespace(x, points)
    squares = (x * x).sum(1)[None] + (points * points).sum(-1)[..., None]
    distances = squares - 2.0 * matmul(points, x.T)
    rounding = _ROUNDING_OF_PRODUCTS * float(jnp.finfo(x.dtype).eps)
    return xp.where(distances > rounding * squares, distances, xp.zeros_like(distances))


def draw_seeds(
    x: Float[AnyArray, "n d"],
    num_components: int,
    row_weights: Weights,
    *,
    key: Keys,
    attraction: Attraction = lambda distances: distances,
    num_trials: int | None = None,
    num_exchanges: int = 0,
) -> Int[AnyArray, "*r k"]:
    r"""Rows far apart, by greedy k-means++ with a local search.

    Of several rows drawn for a seed, with probability proportional to weight times `attraction` of the squared distance
    $D_i^2$ from the seeds so far, that is taken which leaves the lowest cost $\sum_i v_i\, a(D_i^2)$. Then further rows
    are drawn alike, and each takes the place of the seed that is missed least, where that lowers the cost: seeds that
    share a cluster move to one that has none. Of several keys, the seeds of each.

    Source: Arthur & Vassilvitskii (2007), section 2.2 and its conclusions; Lattanzi & Sohler (2019), "A better
    k-means++ algorithm via local search".
    """
    k, xp = num_components, namespace(x, row_weights)
    num_trials = 2 + int(np.log(k)) if num_trials is None else num_trials
    uniform = uniform_numbers(key, (k + num_exchanges, num_trials, 2), row_weights)
    places = np.arange(k, dtype=np.int32)

    def add_seed(index: IntLike, state: tuple[AnyArray, AnyArray]) -> tuple[AnyArray, AnyArray]:
        nearest, seeds = state
        masses = row_weights * xp.where(index == 0, xp.ones_like(nearest), attraction(nearest))
        drawn = draw_rows(masses, uniform[..., index, :, :])
        before = xp.where(index == 0, xp.full_like(nearest, np.inf), nearest)
        tried = xp.minimum(square_distances(x, x[drawn]), before[..., None, :])
        best = (row_weights[None] * attraction(tried)).sum(-1).argmin(-1)
        seed = xp.take_along_axis(drawn, best[..., None], -1)
        nearest = xp.take_along_axis(tried, best[..., None, None], -2)[..., 0, :]
        return nearest, xp.where(places == index, seed, seeds)

    lead = uniform.shape[:-3]
    state = xp.ones((*lead, x.shape[0]), x.dtype), xp.zeros((*lead, k), np.int32)
    seeds = repeat(k, add_seed, state, row_weights)[1]
    if k == 1 or not num_exchanges:
        return seeds

    def exchange(index: IntLike, state: tuple[AnyArray, AnyArray]) -> tuple[AnyArray, AnyArray]:
        seeds, costs = state
        owner = costs.argmin(-2).astype(np.int32)
        owned = places[:, None] == owner[..., None, :]
        nearest = costs.min(-2)
        second = xp.where(owned, xp.asarray(np.inf, costs.dtype), costs).min(-2)
        drawn = draw_rows(row_weights * nearest, uniform[..., k + index, :1, :])
        new = attraction(square_distances(x, x[drawn]))
        with_new = xp.minimum(nearest, new[..., 0, :])
        lost = row_weights * (xp.minimum(second, new[..., 0, :]) - with_new)
        missed = matmul(owned.astype(x.dtype), lost[..., None])[..., 0]
        weakest = missed.argmin(-1)[..., None].astype(np.int32)
        better = (row_weights * (nearest - with_new)).sum(-1, keepdims=True) > missed.min(-1, keepdims=True)
        taken = better & (places == weakest)
        return xp.where(taken, drawn, seeds), xp.where(taken[..., None], new, costs)

    costs = attraction(square_distances(x, x[seeds]))
    return repeat(num_exchanges, exchange, (seeds, costs), row_weights)[0]


def nearest_of(x: Float[AnyArray, "n d"], points: Float[AnyArray, "*r k d"]) -> Int[AnyArray, "*r n"]:
    """The nearest point of every row."""
    return square_distances(x, points).argmin(-2).astype(np.int32)


def kmeans_plus_plus(
    x: Float[AnyArray, "n d"],
    num_components: int,
    row_weights: Weights,
    *,
    key: Keys,
    draw: Callable[..., Int[AnyArray, "*r k"]] = draw_seeds,
) -> Int[AnyArray, "*r n"]:
    """The partition of the rows by their nearest seeds, which are drawn from a sample of very many rows.

    Of several keys, the partition of each.
    """
    seen, most = Rows(x, row_weights), max(_SEEN, _SEEN_EACH * num_components)
    if len(x) > 2 * most:
        if are_several(key):
            each = functools.partial(kmeans_plus_plus, x, num_components, row_weights, draw=draw)
            return np.stack([each(key=one) for one in key])
        seen = sample_rows(seen, sampling_masses(seen), most, key=number_key(key, 1))
    return nearest_of(x, seen.values[draw(seen.values, num_components, seen.weights, key=key)])


def lloyd(x: Columns, labels: Labels, num_components: int, row_weights: Weights) -> Labels:
    r"""k-means from a first partition: means of the clusters and nearest means in turn, until no row moves.

    Lowers $\sum_i v_i \lVert x_i - m_{l(i)} \rVert^2$ at every step. A cluster that has lost all its rows is put on the
    row farthest from its own mean. Columns, here the rows of x, should be centred: distances come from products.

    Source: Lloyd (1982).
    """
    xp, clusters = namespace(x, row_weights), np.arange(num_components, dtype=labels.dtype)

    def nearest_mean(labels: AnyArray, distances: AnyArray) -> tuple[AnyArray, AnyArray]:
        shares = xp.where(labels[None] == clusters[:, None], row_weights[None], xp.zeros_like(row_weights[:1]))
        count = shares.sum(1)
        means = matmul(shares, x.T) / xp.where(count > 0, count, xp.ones_like(count))[:, None]
        farthest = xp.where(row_weights > 0, distances, -np.inf).argmax()
        lost = (count == 0) & (xp.cumsum(count == 0) == 1)  # one at a time, lest two land on the same row
        means = xp.where(lost[:, None], x[:, farthest][None], means)
        scores = 0.5 * (means * means).sum(1)[:, None] - matmul(means, x)
        scores = xp.where(((count > 0) | lost)[:, None], scores, np.inf)
        return scores.argmin(0).astype(labels.dtype), (x * x).sum(0) + 2 * scores.min(0)

    def unfinished(state: tuple[AnyArray, ...]) -> AnyArray | np.bool:
        return state[2] & (state[3] < MAX_LLOYD_STEPS)

    def step(state: tuple[AnyArray, ...]) -> tuple[AnyArray, ...]:
        labels, distances = nearest_mean(state[0], state[1])
        return labels, distances, xp.asarray((labels != state[0]).any()), xp.asarray(state[3] + 1)

    state = (labels, (x * x).sum(0), xp.asarray(True), xp.asarray(0, np.int32))
    return repeat_while(unfinished, step, state, row_weights)[0]


@matching_precision
def mixture_of_partition(
    rows: Rows, responsibilities: Float[AnyArray, "*r n k"], family: Family, reg_covar: ArrayLike
) -> Mixture:
    """The M-step from given responsibilities, with one ridge for all features or one for each (d).

    Of several partitions, in NumPy, the mixture of each, with a first axis.

    A component whose covariance is singular, or is so but for the ridge, because it has fewer rows than features, has
    the variances within all components, without correlations.
    """
    arrays = (rows, responsibilities, reg_covar)
    traced = is_traced(arrays)
    xp, of_jax = jnp if traced else np, any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arrays))
    in_numpy = not traced and rows.values.size * responsibilities.shape[-1] < SMALL
    rows, responsibilities = jax.tree.map(np.asarray if in_numpy else jnp.asarray, (rows, responsibilities))
    take, ridge = moments_of_partition if in_numpy else _moments, xp.asarray(reg_covar, rows.dtype)
    responsibilities = responsibilities.astype(rows.dtype)
    with np.errstate(all="ignore"):  # of a component without rows
        if responsibilities.ndim == 2:
            moments = jax.tree.map(xp.asarray, take(rows, responsibilities, family))
            found = jax.tree.map(lambda leaf: leaf[0], _mixtures_of_moments(moments, family, ridge))
        else:
            many, _, k = responsibilities.shape
            flat = np.moveaxis(responsibilities, 0, 1).reshape(len(rows), many * k)
            moments = jax.tree.map(np.asarray, take(rows, flat, family))
            found = _mixtures_of_moments(moments, family, ridge, many)
    return jax.device_put(found) if of_jax and not traced else found


_moments = jax.jit(moments_of_partition, static_argnames="family")


def _mixtures_of_moments(moments: Moments, family: Family, ridge: AnyArray, many: int = 1) -> Mixture:
    """The mixtures of so many partitions, of which the moments are in line, along a first axis."""
    xp, k = namespace(moments.count), len(moments.count) // many
    if many > 1 and family.shared:  # each by itself, for an M-step pools what it is given
        parts = (_part(moments, slice(first, first + k)) for first in range(0, many * k, k))
        found = [_mixtures_of_moments(part, family, ridge) for part in parts]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    ridge, form = xp.broadcast_to(ridge, moments.first.shape[1]), family.representation
    mixture = maximise(moments, family, ridge)

    def apart(field: AnyArray) -> AnyArray:
        return field.reshape(many, -1, *field.shape[1:])

    count, means = apart(positive_count(moments.count)[:, None]), apart(mixture.means)
    total = count.sum(1, keepdims=True)
    within = apart(form.diagonal_of(scatter_of(moments, ridge, form))).sum(1, keepdims=True) / total
    away = means - (count * means).sum(1, keepdims=True) / total
    of_columns = within + (count * away * away).sum(1, keepdims=True) / total
    variances = apart(mixture.factor.variances())
    floor = _SINGULAR * default_ridge_fraction(ridge.dtype) * xp.maximum(of_columns, variances)
    longest = mixture.factor.whitened_variances(floor.reshape(-1, floor.shape[-1])).max(1)
    singular = ~(longest < 1)  # also of NaN
    within = xp.broadcast_to(within.mean(-1, keepdims=True), within.shape) if family.isotropic else within
    pooled = form.of_diagonal(1.0 / xp.sqrt(xp.broadcast_to(within, variances.shape).reshape(-1, within.shape[-1])))
    factor = xp.where(form.of_each(singular), pooled, mixture.precision_factor)
    return Mixture(xp.log(count / total)[..., 0], means, apart(factor))


def _part(moments: Moments, which: slice) -> Moments:
    return jax.tree.map(lambda leaf: leaf[which] if leaf.ndim else leaf, moments)
