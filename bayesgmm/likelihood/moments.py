r"""Expected sufficient statistics of a mixture, and the M-step that takes them to the next mixture."""

import dataclasses
import operator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from bayesgmm.mixtures.factors import Factor, Triangular, pool
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture, log_normaliser
from bayesgmm.numerics.precision import AnyArray, namespace

_VARIANCE_TOLERANCE = (1e-7, 1e-3)  # errors allowed in float64 and float32, as a fraction of a variance
_VARIANCE_ROUNDING = 16.0  # multiples of the machine's epsilon below which rounding errors were measured
_POOLED_VARIANCE_ROUNDING = 64.0  # one sum less a sum over components, where the others have one sum each


class MomentKind(NamedTuple):
    """What second moments are made, and from mixtures of which representation: static in every program.

    Attributes:
        representation: of the precision factors; second moments have its shape.
        pooled: whether they are summed over the components, each about its own origin.
        averaged: whether they need only be right on average over the features.
        shared: whether all components of the mixture have one precision factor.
    """

    representation: type[Factor]
    pooled: bool
    averaged: bool
    shared: bool

    @property
    def features(self) -> Literal["products", "squares", "sum of squares", "linear"]:
        """Which features of rows the natural form needs (`natural.py`)."""
        if self.pooled and self.shared:
            return "linear"
        if self.representation is Triangular:
            return "products"
        return "sum of squares" if self.averaged else "squares"


def moment_kind(mixture: Mixture, family: Family | None) -> MomentKind:
    """The moments that the M-step of a family needs; without one those of every component."""
    pooled, averaged = (False, False) if family is None else (family.shared, family.isotropic)
    return MomentKind(type(mixture.factor), pooled, averaged, shared=len(mixture.factor) == 1)


def score_kind(mixture: Mixture) -> MomentKind:
    """The moments that the gradient of the log-likelihood needs."""
    shared = len(mixture.factor) == 1
    return MomentKind(type(mixture.factor), pooled=shared, averaged=False, shared=shared)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Expected sufficient statistics of every component; `a + b` are those of the rows of a and b together.

    Attributes:
        origin: the point the moments are taken about, shape (k, d).
        count: expected number of rows (total row weight), shape (k).
        first: sums of differences from the origin, shape (k, d).
        second: sums of their outer products, shape (e, d, d), or of their squares (e, d) for diagonal factors; e is k,
            or 1 where they are pooled: summed over components, each about its own origin.
        log_likelihood: total log-likelihood of the rows, ().
    """

    origin: Float[AnyArray, "k d"]
    count: Float[AnyArray, " k"]
    first: Float[AnyArray, "k d"]
    second: Float[AnyArray, "e d d"] | Float[AnyArray, "e d"]
    log_likelihood: Float[AnyArray, ""]

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows; they must be about the same origin."""
        both = jax.tree.map(operator.add, self, other)
        return dataclasses.replace(both, origin=self.origin)


class Sums(NamedTuple):
    """Sums over rows, of whatever a formulation makes moments of, and of the marginal log-densities."""

    terms: PyTree
    log_likelihood: AnyArray


def maximise(
    moments: Moments, family: Family, reg_covar: Float[AnyArray, " d"], previous: Factor | None = None
) -> Mixture:
    r"""The M-step: the mixture of `family` that maximises the expected complete-data log-likelihood.

    $w_j \propto N_j$, $\mu_j = o_j + a_j / N_j$, and covariances from the scatter
    $S_j - a_j a_j^\top / N_j + N_j \operatorname{diag}(\rho)$, in which the ridge $\rho$ = `reg_covar`, in squared
    units of the data, acts as extra scatter. A ridge of NaN is the default, a tiny fraction of each component's own
    variance: any other would widen a narrow component far from the others. An M-step that iterates starts from the
    `previous` estimate.
    """
    count, xp = positive_count(moments.count), namespace(moments.count)
    shift = moments.first / count[:, None]
    scatter = scatter_of(moments, reg_covar, family.representation)
    factor = family.representation.from_covariances(family.maximise(count, scatter, previous))
    return Mixture(xp.log(count / count.sum()), moments.origin + shift, factor.array)


def scatter_of(moments: Moments, reg_covar: Float[AnyArray, " d"], representation: type[Factor]) -> AnyArray:
    r"""Scatter about the means, $S_j - a_j a_j^\top / N_j + N_j \operatorname{diag}(\rho)$, (e, d, d) or (e, d)."""
    count = positive_count(moments.count)
    moved = pool(representation.outer(moments.first, moments.first / count[:, None]), len(moments.second))
    scatter, count = moments.second - moved, pool(count, len(moments.second))
    xp = namespace(scatter, reg_covar)
    own = default_ridge_fraction(scatter.dtype) * representation.diagonal_of(scatter)
    ridge = xp.where(xp.isnan(reg_covar)[None], own, count[:, None] * reg_covar[None])
    return scatter + representation.of_diagonal(ridge)


def default_ridges(moments: Moments, representation: type[Factor]) -> Float[AnyArray, "e d"]:
    """The default ridge of every component, a tiny fraction of the variances that the moments imply."""
    count = positive_count(moments.count)
    moved = pool(moments.first * moments.first / count[:, None], len(moments.second))
    squares = representation.diagonal_of(moments.second) - moved
    return default_ridge_fraction(squares.dtype) * squares / pool(count, len(moments.second))[:, None]


def default_ridge_fraction(dtype: DTypeLike) -> float:
    """The default ridge over a variance: large beside what sums are rounded by."""
    return of_precision(dtype, (1e-10, 1e-7))


def move_second(
    factor: Factor | type[Factor],
    second: AnyArray,
    move: Inexact[AnyArray, "k d"],
    first: Float[AnyArray, "k d"],
    centred: Inexact[AnyArray, "k d"],
) -> AnyArray:
    r"""Second moments about points moved by m: $S - m a^\top - (a - N m) m^\top$.

    With the first moments before, a, and after; pooled ones are moved by all components together.
    """
    return second - pool(factor.outer(move, first) + factor.outer(centred, move), len(second))


def expected_complete_log_prob(mixture: Mixture, moments: Moments) -> Float[Array, " k"]:
    r"""The function that the M-step maximises, one term per component:

    $$ Q_j = N_j (\log w_j + \log |F_j| - \tfrac d2 \log 2\pi) - \tfrac12 \operatorname{tr} F_j S_j F_j^\top, $$

    with the second moment $S_j$ moved from the origin of the moments to the mean of the component. Of pooled second
    moments every component takes an equal part.
    """
    factor, move = mixture.factor, mixture.means - moments.origin
    centred = moments.first - moments.count[:, None] * move
    second = move_second(factor, moments.second, move, moments.first, centred)
    num_parts = mixture.num_components // len(second)
    squares = factor.inner(second) / num_parts
    return moments.count * (mixture.log_weights + log_normaliser(mixture)) - 0.5 * squares


def positive_count(count: AnyArray) -> AnyArray:
    """Counts that can be divided by."""
    return namespace(count).maximum(count, jnp.finfo(count.dtype).tiny)


def keeps_variances(
    count: Float[AnyArray, " k"], first: Float[AnyArray, "k d"], second: AnyArray, kind: MomentKind
) -> Bool[AnyArray, ""]:
    """Whether the variances that moments imply are large enough beside the second moments they are taken from."""
    squares = kind.representation.diagonal_of(second)
    about_origin = first * first / positive_count(count)[:, None]
    rounding = _POOLED_VARIANCE_ROUNDING if kind.pooled and len(count) > 1 else _VARIANCE_ROUNDING
    if kind.averaged:
        squares, about_origin = squares.mean(1, keepdims=True), about_origin.mean(1, keepdims=True)
    if kind.pooled:
        about_origin = about_origin.sum(0, keepdims=True)
    lost = rounding * float(jnp.finfo(count.dtype).eps) / of_precision(count.dtype, _VARIANCE_TOLERANCE)
    return namespace(squares).asarray((squares - about_origin >= lost * squares).all())


def of_precision(dtype: DTypeLike, tolerances: tuple[float, float]) -> float:
    """That of float64 or that of float32."""
    return tolerances[0 if dtype == jnp.float64 else 1]
