r"""The compiled loop of expectation-maximisation: from one start to the end of its ascent.

A step is the M-step of the moments in hand, then one pass over the rows that gives the new mixture's log-likelihood and
its moments; so the log-likelihood reported always belongs to the mixture reported. Under a conjugate prior the M-step
is that of the posterior and the objective is log-likelihood plus log prior density.

Source: Dempster, Laird & Rubin (1977); McLachlan & Peel (2000), section 3.2.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.loop import RUNNING, Loop
from bayesgmm.likelihood.expectation import Prepared, moments_of_rows, psum
from bayesgmm.likelihood.moments import Moments, default_ridge_fraction, default_ridges, maximise, moment_kind
from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.coordinates import from_coordinates, mean_precision_scale, to_coordinates
from bayesgmm.mixtures.factors import Factor
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture, without_absent
from bayesgmm.numerics.precision import AnyArray, BoolLike, IntLike
from bayesgmm.priors.conjugate import ConjugatePrior, log_prior, maximise_posterior

_COLLAPSED_WIDTH = 10.0  # a component is a point once its variance is within this factor of the ridge
_ROUNDING_WIDTH = 10.0  # or its standard deviation within this factor of what a number of the column is rounded by
_LONGEST_FIRST_STRIDE, _STRIDE_GROWTH = 1e4, 4.0
_ACCELERATED = 10.0  # times tol: extrapolation comes to a point of small steps from elsewhere, often early on the way
_CONFIRMING = 10  # plain steps that must show that an accelerated run is at its end
_NOISE = 4.0  # multiples of rounding below which changes say nothing of the rate of convergence
_COARSE = 1e-10  # rounding from which on steps count for it that the objective cannot show: that of float32
_MOVES_OF_ROUNDING = 128.0  # multiples of it, in standard deviations, below which a step is no step


class StopRule(NamedTuple):
    r"""When a run ends, and from which step on it extrapolates.

    Steps of EM near its limit shrink by a rate $c$, so that after a change $\delta$ of the objective
    $\delta\, c / (1 - c)$ is left to gain: many times the change itself, where EM is slow. $c$ is the ratio of the
    last two changes. Extrapolations leave what they do not see: a run that they have brought near its end takes a few
    plain steps, whose changes then tell.

    Source: Böhning et al. (1994), "The distribution of the likelihood ratio for mixtures of densities from the
    one-parameter exponential family", section 3 (Aitken's acceleration).

    Attributes:
        tol: the run ends when what is left to gain per row, and the last change, are less than this.
        by_change: whether the change alone counts, as in scikit-learn.
        patience: plain steps before the first extrapolation.
    """

    tol: AnyArray
    by_change: AnyArray
    patience: AnyArray


def stop_rule(tol: AnyArray, *, by_change: BoolLike = False, patience: IntLike = 0) -> StopRule:
    """A rule in arrays of NumPy."""
    return StopRule(tol, np.asarray(by_change), np.asarray(patience, np.int32))


class Problem(NamedTuple):
    """One fit: its start, its rows and what they are fitted with.

    A start may have more components than are fitted, so that a program serves several numbers of them: those which are
    not `active` (k) stay absent. A ridge of NaN is a tiny fraction of the variances of each component itself.
    """

    start: Mixture
    rows: Rows
    ridge: AnyArray
    stop: StopRule
    prior: ConjugatePrior | None
    step_limit: Array
    total_weight: Array
    active: Array | None = None


class State(NamedTuple):
    """Where the ascent stands."""

    mixture: Mixture
    moments: Moments
    objective: Array
    previous: Mixture  # the mixture one plain step ago, where the next step may extrapolate
    extrapolate: Array
    longest_stride: Array
    last_change: Array  # of the objective per row, by a plain step; NaN after an extrapolation
    stride: Array  # that the last extrapolation called for
    waits: Array  # plain steps to come before the next extrapolation
    num_steps: Array  # -1 before the first pass over the rows, which only evaluates the start
    result: Array
    trace: Array


@dataclass(frozen=True)
class Ascent(Loop):
    """The loop of EM."""

    accelerate: bool = False

    def _plain_step(self, problem: Problem, moments: Moments, previous: Factor) -> Mixture:
        if problem.prior is None:
            mixture = maximise(moments, self.family, problem.ridge, previous)
        else:
            mixture = maximise_posterior(moments, self.family, problem.prior, problem.ridge, previous)
        return mixture if problem.active is None else without_absent(mixture, problem.active)

    def prepare(self, problem: Problem) -> Prepared | None:
        """What passes over the same rows share; nothing where there is room for more components, for rows are few."""
        return super().prepare(problem) if problem.active is None else None

    def begin(self, problem: Problem) -> State:
        """The state before the first pass."""
        dtype, start = problem.rows.dtype, problem.start
        count = jnp.zeros(start.num_components, dtype)
        second = jnp.zeros_like(start.precision_factor)
        moments = Moments(start.means, count, jnp.zeros_like(start.means), second, jnp.zeros((), dtype))
        return State(
            mixture=start,
            moments=moments,
            objective=jnp.zeros((), dtype),
            previous=start,
            extrapolate=jnp.asarray(False),
            longest_stride=jnp.asarray(_LONGEST_FIRST_STRIDE, dtype),
            last_change=jnp.zeros((), dtype),
            stride=jnp.asarray(jnp.inf, dtype),
            waits=jnp.zeros((), jnp.int32),
            num_steps=jnp.asarray(-1, jnp.int32),
            result=jnp.asarray(RUNNING, jnp.int32),
            trace=jnp.full(self.max_steps + 1, jnp.nan, dtype),
        )

    def step(self, problem: Problem, state: State, running: Array, prepared: Prepared | None = None) -> State:
        """An M-step and the pass that follows; of a state that is not running, the state itself."""
        mixture, stride = self.propose(problem, state)
        kind = moment_kind(mixture, self.family)
        moments = moments_of_rows(mixture, problem.rows, prepared, kind=kind, axis_name=self.axis_name)
        return self.judge(problem, state, mixture, stride, moments, running)

    def propose(self, problem: Problem, state: State) -> tuple[Mixture, Array]:
        """The mixture to evaluate next, and how far it might go beyond a plain step."""
        mixture, stride = self._plain_step(problem, state.moments, state.mixture.factor), state.longest_stride
        if self.accelerate:
            mixture, stride = _further(state, mixture, self.family, problem.active)
        fresh = state.num_steps < 0
        return jax.tree.map(lambda new, old: jnp.where(fresh, old, new), mixture, state.mixture), stride

    def judge(
        self, problem: Problem, state: State, mixture: Mixture, stride: Array, moments: Moments, running: Array
    ) -> State:
        """The next state, from what was proposed and the moments of the rows under it."""
        fresh, far, stop = state.num_steps < 0, state.extrapolate, problem.stop
        total_weight = problem.total_weight
        objective = moments.log_likelihood
        if problem.prior is not None:
            objective = objective + log_prior(mixture, self.family, problem.prior)
        previous, longest_stride = state.previous, state.longest_stride
        change = (objective - state.objective) / total_weight
        usable = _finite(mixture) & jnp.isfinite(objective)
        # Rounding of a sum of n log-densities, with room: a fall beyond it is a fall.
        resolution = float(jnp.finfo(problem.rows.dtype).eps)
        rounding = 1e3 * resolution
        rounding = rounding * jnp.maximum(1.0, jnp.abs(state.objective) / total_weight)
        slack = rounding + _ridge_penalty(mixture, state.moments, problem.ridge)
        # A plain step never lowers the objective: where it seems to, by no more than rounding, nothing is left to gain;
        # nor can the objective show changes smaller than its own. What float32 cannot show, the step itself tells.
        noise, blind = _NOISE * resolution * jnp.abs(state.objective) / total_weight, resolution > _COARSE
        fallen = ~fresh & (change < jnp.where(far, -noise if blind else 0.0, -slack))
        # An unusable step is not taken: the last good mixture stays, with its own log-likelihood.
        kept = fresh | (usable & ~fallen)
        flat = (change <= noise) & (change >= -rounding) & (stop.tol > 0)
        if blind:
            gain = _gain_of_step(state.mixture, mixture)
            change = jnp.where(flat & ~stop.by_change & ~far, gain, change)
            flat = flat & (stop.by_change | (gain < (_MOVES_OF_ROUNDING * resolution) ** 2))
        rate = change / state.last_change
        multiple = jnp.where((rate >= 0) & (rate < 1), rate / (1 - rate), jnp.inf)
        left = jnp.abs(change) * jnp.where(stop.by_change, 1.0, jnp.maximum(multiple, 1.0))
        settled = ~fresh & ((left < stop.tol) | flat)
        waits = state.waits
        if self.accelerate:
            after_far = jnp.isnan(state.last_change)
            factor = jnp.where(stop.by_change, _ACCELERATED, jnp.maximum(state.stride, 1.0))
            promising = ~fresh & ((jnp.abs(change) * factor < stop.tol) | flat)
            settled = flat | (2.0 * left < stop.tol)  # slow directions show late
            settled = jnp.where(stop.by_change, promising, ~fresh & settled & ~after_far & (waits <= 1))
            waits = jnp.where(after_far & promising, _CONFIRMING, jnp.maximum(waits - 1, 0))
        result = jnp.where(fallen, ResultCode.decreased, jnp.where(settled, ResultCode.successful, RUNNING))
        result = jnp.where(usable, result, _failure(mixture))
        result = jnp.where(far, RUNNING, result).astype(jnp.int32)
        if self.accelerate:
            previous = jax.tree.map(lambda new, old: jnp.where(running, new, old), state.mixture, previous)
            grown = jnp.where(stride >= longest_stride, _STRIDE_GROWTH * longest_stride, longest_stride)
            shrunk = jnp.maximum(longest_stride / _STRIDE_GROWTH, 1.0 + 1e-3)
            longest_stride = jnp.where(far & running, jnp.where(kept, grown, shrunk), longest_stride)
            change = jnp.where(far, jnp.nan, change)
        mixture, moments, objective = jax.tree.map(
            lambda new, old: jnp.where(kept & running, new, old),
            (mixture, moments, objective),
            (state.mixture, state.moments, state.objective),
        )
        # A pass over the rows is a step, whether it was kept or not; only a run that ends on it leaves it out.
        num_steps = state.num_steps + (running & (kept | far)).astype(jnp.int32)
        goes_on = ~far & (state.num_steps >= stop.patience) & (waits == 0) & self.accelerate
        # Written nowhere where the state stays: traces are too long to be copied in every step.
        place = jnp.where(running, num_steps, len(state.trace))
        return State(
            mixture=mixture,
            moments=moments,
            objective=objective,
            previous=previous,
            extrapolate=jnp.where(running, goes_on, far),
            longest_stride=longest_stride,
            last_change=jnp.where(running & ~fresh, change, state.last_change),
            stride=jnp.where(running & far, stride, state.stride) if self.accelerate else state.stride,
            waits=jnp.where(running & ~far, waits, state.waits) if self.accelerate else waits,
            num_steps=num_steps,
            result=jnp.where(running, result, state.result),
            trace=state.trace.at[place].set(objective, mode="drop"),
        )

    def end(self, problem: Problem, state: State) -> Fit:
        """The fit, and how it ended."""
        result = jnp.where(state.result == RUNNING, ResultCode.max_steps_reached, state.result)
        lightest = _lightest_row(problem.rows.weights, self.axis_name)
        shrunk = _collapsed(state.mixture, state.moments.count, problem, lightest)
        few = _few_rows(state.moments.count, problem, self.family, self.axis_name)
        result = jnp.where(few & (result == ResultCode.successful), ResultCode.spurious, result)
        result = jnp.where(shrunk & (result != ResultCode.nonfinite), ResultCode.collapsed, result)
        return Fit(
            engine="em",
            family=self.family.name,
            mixture=state.mixture,
            log_likelihood=state.moments.log_likelihood,
            result=result.astype(jnp.int32),
            num_steps=state.num_steps,
            trace=state.trace,
            prior_given=problem.prior is not None,
        )


@functools.partial(jax.jit, static_argnames=("family", "max_steps", "accelerate", "axis_name"))
def run_em(
    start: Mixture,
    rows: Rows,
    ridge: Float[AnyArray, " d"],
    tol: StopRule | Float[AnyArray, ""],
    prior: ConjugatePrior | None = None,
    step_limit: Int[AnyArray, ""] | None = None,
    active: Bool[AnyArray, " k"] | None = None,
    *,
    family: Family,
    max_steps: int,
    accelerate: bool = False,
    axis_name: str | None = None,
) -> Fit:
    r"""EM from one start: the compiled core of `fit_em`, for use inside other JAX programs. Never raises.

    With `accelerate`, every second step may go further along the path of the last two: from $\theta_0$ and its plain
    steps $\theta_1, \theta_2$, to $\theta_0 + 2 \alpha r + \alpha^2 v$ with $r = \theta_1 - \theta_0$,
    $v = \theta_2 - \theta_1 - r$ and $\alpha = \lVert r \rVert / \lVert v \rVert$, in log-weights, means and
    log-Cholesky factors. It is taken only where the objective does not fall below that of $\theta_1$; only plain
    steps can end the run. A `StopRule` in place of `tol` may ask for plain steps first. (SQUAREM: Varadhan & Roland
    2008, scheme S3 of section 6.)

    Under `vmap`, small fits share lanes that refill as fits end (`lanes.py`); large ones run one after the other. With
    `axis_name`, rows are those of one device inside `jax.shard_map`, and moments are summed over that axis.

    Where a `step_limit` is given, `max_steps` is only the room that the trace has. Where `active` components are, the
    others of the start are none.
    """
    total_weight = psum(rows.total_weight, axis_name)
    limit = jnp.asarray(max_steps if step_limit is None else step_limit, jnp.int32)
    stop = tol if isinstance(tol, StopRule) else stop_rule(tol)
    problem = Problem(start, rows, ridge, stop, prior, limit, total_weight, active)
    return Ascent(family, max_steps, axis_name, accelerate)(problem)


def _gain_of_step(old: Mixture, new: Mixture) -> Array:
    r"""What a plain step gains per row, to second order and where EM is slow, from the parameters alone.

    The complete data gain $\sum_j w_j \{\log (w_j / w_j') + \mathrm{KL}(\mathcal N_j \,\|\, \mathcal N_j')\}$, and the
    observed ones nearly twice that: the gain is $r^\top I_c r - \tfrac12 r^\top I_o r$ of a step $r$, with little
    information observed, $I_o \ll I_c$, along slow directions.

    Source: McLachlan & Krishnan (2008), The EM algorithm and extensions, sections 3.9 and 4.3.
    """
    moved = old.factor.whiten((new.means - old.means)[:, :, None])[:, :, 0]
    changed = new.factor.relative_change(old.precision_factor)
    each = jnp.square(moved).sum(1) + jnp.square(new.log_weights - old.log_weights)
    return (jnp.exp(new.log_weights) * (each + 0.5 * jnp.broadcast_to(changed, each.shape))).sum()


def _further(state: State, plain: Mixture, family: Family, active: Array | None) -> tuple[Mixture, Array]:
    """The extrapolated mixture where it is its turn, else the plain step; and the stride that the steps call for."""
    unit = 1.0 / mean_precision_scale(plain, active)
    old, now, new = (to_coordinates(mixture, unit) for mixture in (state.previous, state.mixture, plain))
    r = jax.tree.map(jnp.subtract, now, old)
    v = jax.tree.map(lambda new, now, r: new - now - r, new, now, r)
    called_for = _norm(r, active) / jnp.maximum(_norm(v, active), jnp.finfo(unit.dtype).tiny)
    stride = jnp.clip(called_for, 1.0, state.longest_stride)
    far = jax.tree.map(lambda old, r, v: old + 2.0 * stride * r + jnp.square(stride) * v, old, r, v)
    far = from_coordinates(far, unit, family)
    turn = state.extrapolate & _finite(far)
    return jax.tree.map(lambda far, plain: jnp.where(turn, far, plain), far, plain), called_for


def _norm(tree: PyTree, active: Array | None) -> Array:
    """The norm, to which absent components do not add."""

    def squares(leaf: Array) -> Array:
        each = jnp.square(leaf).reshape(len(leaf), -1).sum(1)
        return (each if active is None or len(leaf) == 1 else jnp.where(active, each, 0.0)).sum()

    return jnp.sqrt(sum(squares(leaf) for leaf in jax.tree.leaves(tree)))


def _lightest_row(row_weights: Array, axis_name: str | None) -> Array:
    """The smallest weight of a row that counts."""
    lightest = jnp.where(row_weights > 0, row_weights, jnp.inf).min()
    return lightest if axis_name is None else jax.lax.pmin(lightest, axis_name)


def _ridge_penalty(mixture: Mixture, moments: Moments, ridge: Array) -> Array:
    r"""$\tfrac12 \sum_j w_j \operatorname{tr}(\Sigma_j^{-1} \operatorname{diag} \rho)$: what the ridge takes, per row.

    With a ridge the M-step maximises a penalised objective, so the log-likelihood itself may fall by this much. The
    mixture is that of the moments, by a plain step; from them come the variances that its default ridge is a part of.
    """
    ridges = jnp.where(jnp.isnan(ridge)[None], default_ridges(moments, type(mixture.factor)), ridge[None])
    return 0.5 * (jnp.exp(mixture.log_weights)[:, None] * mixture.factor.leverages() * ridges).sum()


def _finite(tree: PyTree) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _failure(mixture: Mixture) -> Array:
    """Why a mixture cannot be used: finite means with a factor that is not finite come from a singular covariance."""
    singular = _finite(mixture.means) & ~_finite(mixture.precision_factor)
    return jnp.where(singular, ResultCode.collapsed, ResultCode.nonfinite)


def _collapsed(mixture: Mixture, count: Array, problem: Problem, lightest_row: Array) -> Array:
    """Whether a component has not half a row, or has a variance that is the ridge's or rounding's and not the data's.

    Rounding is that of the numbers themselves, for sums are taken about the means: clusters however far apart keep
    their widths. Across correlated columns it is that of the component's own variances, of which the narrowest
    direction is what is left. Under a prior an empty component is no accident: it has the prior's own mode.
    """
    eps = jnp.finfo(mixture.means.dtype).eps
    ridge, by_default = problem.ridge, jnp.isnan(problem.ridge)
    floor = jnp.where(by_default, 0.0, _COLLAPSED_WIDTH * ridge)
    floor = jnp.maximum(floor, _mean_squares(mixture) * (_ROUNDING_WIDTH * eps) ** 2)[None]
    relative = jnp.where(by_default, _COLLAPSED_WIDTH * default_ridge_fraction(ridge.dtype), _ROUNDING_WIDTH * eps)
    floor = jnp.maximum(floor, relative[None] * mixture.factor.variances())
    # In units of the floor the narrowest direction, along the axes or not, gives the factor a row longer than one.
    longest = mixture.factor.whitened_variances(floor).max()
    if problem.prior is not None:
        return longest > 1.0
    empty = count < 0.5 * lightest_row
    empty = empty if problem.active is None else empty & problem.active
    return empty.any() | (longest > 1.0)


def _few_rows(count: Array, problem: Problem, family: Family, axis_name: str | None) -> Array:
    """Whether a component with a covariance of its own has no more rows than span it: a maximum that chance makes.

    Weights that are not whole numbers count as so many rows of equal weight as would have their sum and sum of squares.
    """
    if problem.prior is not None or family.shared or len(count) == 1:
        return jnp.asarray(False)
    weights = problem.rows.weights
    sums = jnp.stack(
        [weights.sum(), jnp.square(weights).sum(), (weights != jnp.round(weights)).sum(dtype=weights.dtype)]
    )
    total, squares, broken = psum(sums, axis_name)
    unit = jnp.where(broken > 0, squares / total, 1.0)
    few = count < (family.min_rows(problem.rows.num_features) + 0.5) * unit
    return (few if problem.active is None else few & problem.active).any()


def _mean_squares(mixture: Mixture) -> Float[Array, " d"]:
    """Mean square of every feature under the mixture; after an M-step, that of the rows."""
    squares = jnp.square(mixture.scales) + jnp.square(mixture.means)
    return jnp.matmul(jnp.exp(mixture.log_weights), squares, precision="highest")
