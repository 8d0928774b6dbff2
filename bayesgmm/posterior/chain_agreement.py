r"""Have the chains converged? R-hat and effective sample sizes, of labelled parameters and of what has no labels.

A weight or a mean belongs to a component, and components can be renumbered without changing the density. So a bad R-hat
of parameters may come from their labels alone, and a good one may come from the relabelling. Quantities that do not
change when components are renumbered decide: the log-likelihood, the weights in ascending order, the log-density of a
few rows, and the entropy of the allocation of rows to components, the mean over rows of $-\sum_j r_{ij} \log r_{ij}$.

Of these the log-likelihood is exact, over all rows; the entropy is that of at most 500 rows, evenly spaced.

Sources: Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an
improved R-hat; as implemented in ArviZ. Jasra, Holmes & Stephens (2005) for convergence under label switching.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jaxtyping import Array, Float, Int
from scipy.sparse.csgraph import connected_components

from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import Rows
from bayesgmm.likelihood.scores import log_likelihood
from bayesgmm.mixtures.mixture import Mixture, as_mixture, densities, rows_of_mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, matching_precision
from bayesgmm.numerics.thresholds import MAX_R_HAT, MAX_VALLEY, MIN_ESS_PER_CHAIN, MIN_MODE_DRAWS, MIN_MODE_SHARE, vary
from bayesgmm.runtime.chains import fewest_draws
from bayesgmm.runtime.programs import compiled_once

if TYPE_CHECKING:
    from pandas import DataFrame

TAIL = (0.05, 0.95)
"""Quantiles whose effective sample sizes are those of the tails: Vehtari et al. (2021)."""

MAX_ENTROPY_ROWS = 500
NUM_DENSITY_ROWS = 8
_MANY = 2**23  # numbers of draws, for each row, from which they take longer than compiling the program well
_DRAWS_AT_ONCE = 16  # which keeps (16, 500, k) responsibilities in memory, and is the fastest on small data


@dataclass(frozen=True)
class ChainDiagnostics:
    """How well chains mixed in some quantities; one of them alone is bad enough.

    Attributes:
        names: names of the quantities that vary; one that never does has no R-hat.
        r_hat: rank-normalised split R-hat, the larger one of bulk and folded, shape (q).
        ess_bulk: effective number of draws of all chains for the bulk, shape (q).
        ess_tail: the same for the tails, the 5 % and 95 % quantiles, shape (q).
        num_chains: number of chains.
    """

    names: tuple[str, ...]
    r_hat: Float[np.ndarray, " q"]
    ess_bulk: Float[np.ndarray, " q"]
    ess_tail: Float[np.ndarray, " q"]
    num_chains: int

    @property
    def max_r_hat(self) -> float:
        """Worst R-hat; NaN where nothing varies."""
        return float(self.r_hat.max()) if self.names else float("nan")

    @property
    def min_ess_bulk(self) -> float:
        """Smallest effective number of draws for the bulk; NaN where nothing varies."""
        return float(self.ess_bulk.min()) if self.names else float("nan")

    @property
    def min_ess_tail(self) -> float:
        """Smallest effective number of draws for the tails; NaN where nothing varies."""
        return float(self.ess_tail.min()) if self.names else float("nan")

    @property
    def agrees(self) -> bool:
        """Whether no R-hat is above `MAX_R_HAT`; not where nothing varies."""
        return self.max_r_hat <= MAX_R_HAT

    @property
    def successful(self) -> bool:
        """Whether the chains agree and have as many effective draws as they should, in the bulk and in the tails."""
        return self.agrees and min(self.min_ess_bulk, self.min_ess_tail) >= MIN_ESS_PER_CHAIN * self.num_chains


@dataclass(frozen=True)
class Convergence:
    """Convergence of the labelled parameters and, apart from it, of what has no labels.

    Attributes:
        labelled: weights, means and scales of the components, as they were relabelled.
        invariant: what does not change when components are renumbered, and the extra quantities.
        values: draws of the latter by name, arrays (chain, draw).
    """

    labelled: ChainDiagnostics
    invariant: ChainDiagnostics
    values: dict[str, np.ndarray]

    @property
    def successful(self) -> bool:
        """Whether both have mixed."""
        return self.labelled.successful and self.invariant.successful

    @property
    def summary(self) -> dict[str, float]:
        """The worst of both, by the names of a `Fit`'s summary; and the worst R-hat of what has no labels."""
        both = (self.labelled, self.invariant)
        return {
            "r_hat": float(np.max([part.max_r_hat for part in both])),
            "r_hat_invariant": self.invariant.max_r_hat,
            "ess_bulk": float(np.min([part.min_ess_bulk for part in both])),
            "ess_tail": float(np.min([part.min_ess_tail for part in both])),
        }

    @property
    def table(self) -> "DataFrame":
        """One row for each quantity: R-hat, effective draws, and whether it is free of labels."""
        import pandas as pd

        parts = []
        for part, invariant in ((self.labelled, False), (self.invariant, True)):
            numbers = {"r_hat": part.r_hat, "ess_bulk": part.ess_bulk, "ess_tail": part.ess_tail}
            parts.append(pd.DataFrame(numbers | {"invariant": invariant}, pd.Index(part.names, name="quantity")))
        return pd.concat(parts)


def convergence(draws: Mixture, x: ArrayLike, *, extra: Mapping[str, ArrayLike] | None = None) -> Convergence:
    """Compute R-hat and effective sample sizes of draws (chain, draw), labelled and free of labels.

    A single chain is compared with itself: R-hat is that of its two halves, each split again.

    Args:
        draws: relabelled draws, a mixture with leading axes (chain, draw).
        x: rows (n, d).
        extra: further quantities without labels, arrays (chain, draw) by name, such as the log posterior density; a
            known `log_likelihood` of all rows is not computed again.

    Raises:
        InputError: for fewer than 4 draws a chain (8 of a single chain), for draws without both leading axes, for extra
            quantities of another shape, and for rows of another number of features.
    """
    num_chains, num_draws = _check_draws(draws)
    if num_draws < (needed := fewest_draws(num_chains)):
        chains = f"{num_chains} chains" if num_chains > 1 else "a single chain"
        raise InputError(f"{num_draws} draws of {chains} are too few for R-hat; draw at least {needed} a chain")
    extra = {name: np.asarray(value, np.float64) for name, value in (extra or {}).items()}
    for name, value in extra.items():
        if value.shape != (num_chains, num_draws):
            raise InputError(
                f"extra {name!r} has shape {value.shape}; it must be that of the draws, {draws.draw_shape}"
            )
    values = invariants(draws, x, with_total="log_likelihood" not in extra) | extra
    labelled = {
        f"{name}[{', '.join(map(str, index))}]": part[(..., *index)]
        for name in ("weights", "means", "scales")
        for part in (np.asarray(getattr(draws, name), np.float64),)
        for index in np.ndindex(part.shape[2:])
    }
    return Convergence(chain_diagnostics(labelled), chain_diagnostics(values), values)


def chain_diagnostics(values: Mapping[str, Float[np.ndarray, "chain draw"]]) -> ChainDiagnostics:
    """Compute R-hat and effective sample sizes of quantities by name.

    Values that are not finite have R-hat infinity and no effective draws.
    """
    from arviz_stats.base.array import array_stats

    varying = {name: value for name, value in values.items() if vary(value)}
    num_chains = len(next(iter(values.values())))
    stacked = np.stack(list(varying.values())) if varying else np.empty((0, num_chains, fewest_draws(2)))
    finite = np.isfinite(stacked).all((1, 2))
    stacked = np.where(finite[:, None, None], stacked, 0.0)
    # A single chain is compared by its halves.
    halves = stacked[:, 0, : stacked.shape[2] // 2 * 2].reshape(len(stacked), 2, -1) if num_chains == 1 else stacked
    with np.errstate(all="ignore"):  # stuck chains have no variance of their own
        r_hat = array_stats.rhat(halves)
        ess_bulk, ess_tail = array_stats.ess(stacked), array_stats.ess(stacked, method="tail", prob=TAIL)
    r_hat = np.where(finite & ~np.isnan(r_hat), r_hat, np.inf)
    ess_bulk, ess_tail = (np.where(finite, np.nan_to_num(effective), 0.0) for effective in (ess_bulk, ess_tail))
    return ChainDiagnostics(tuple(varying), r_hat, ess_bulk, ess_tail, num_chains)


def _check_draws(draws: Mixture) -> tuple[int, ...]:
    if len(as_mixture(draws, "draws").draw_shape) != 2:
        raise InputError(
            f"draws have leading axes {draws.draw_shape}; give those of a Bayesian fit, (chain, draw), as in fit.draws"
        )
    return draws.draw_shape


def invariants(draws: Mixture, x: ArrayLike, *, with_total: bool = True) -> dict[str, Float[np.ndarray, "chain draw"]]:
    """Compute quantities of every draw that do not change when its components are renumbered, arrays (chain, draw).

    `log_likelihood` of all rows, `sorted_weights[i]` in ascending order, `log_density[i]` of row i for up to 8 rows
    spread over the data, and `entropy` of the allocation, averaged over at most 500 evenly spaced rows.

    Args:
        draws: a mixture with leading axes (chain, draw).
        x: rows (n, d).
        with_total: whether to compute `log_likelihood`, which takes longest for many rows.

    Raises:
        InputError: for draws without both leading axes, and rows of another number of features than the draws have.
    """
    _check_draws(draws)
    x = np.asarray(rows_of_mixture(draws, x), np.asarray(draws.means).dtype)
    sample = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_ENTROPY_ROWS)).round().astype(int))
    points = sample[spread_rows(x[sample])]
    flat = jax.tree.map(lambda leaf: np.reshape(leaf, (-1, *leaf.shape[2:])), draws)
    rows, sampled = (Rows(part, np.ones(len(part), x.dtype)).in_steps() for part in (x, x[sample]))
    found = _invariants(flat, rows if with_total else None, x[points], sampled)
    values = jax.tree.map(lambda part: np.asarray(part, np.float64).reshape(*draws.draw_shape, *part.shape[1:]), found)
    weights = np.sort(np.exp(np.asarray(draws.log_weights, np.float64)), axis=-1)
    return {
        **({"log_likelihood": values["log_likelihood"]} if with_total else {}),
        **{f"sorted_weights[{index}]": weights[..., index] for index in range(draws.num_components)},
        **{f"log_density[{row}]": values["log_density"][..., index] for index, row in enumerate(points)},
        "entropy": values["entropy"],
    }


def _are_many(draws: Mixture, rows: Rows | None, points: AnyArray, sample: Rows) -> bool:
    return draws.means.size * len(sample if rows is None else rows) > _MANY


@matching_precision
@functools.partial(compiled_once, unless=_are_many)
def _invariants(draws: Mixture, rows: Rows | None, points: AnyArray, sample: Rows) -> dict[str, AnyArray]:
    def of_draw(mixture: Mixture) -> dict[str, Array]:
        total = {} if rows is None else {"log_likelihood": log_likelihood(mixture, rows)}
        entropies = entr(jnp.exp(densities(mixture, sample.values).log_shares)).sum(0)
        entropy = jnp.dot(sample.weights, entropies, precision="highest") / sample.total_weight
        return {**total, "log_density": jnp.asarray(mixture.log_prob(points)), "entropy": entropy}

    return jax.lax.map(of_draw, draws, batch_size=_DRAWS_AT_ONCE)


def spread_rows(x: Float[np.ndarray, "n d"], num_rows: int = NUM_DENSITY_ROWS) -> Int[np.ndarray, " p"]:
    """Indices of up to `num_rows` distinct rows spread over the data, by k-means without chance.

    Centres start at evenly spaced quantiles along the first principal component of the standardised columns; the rows
    nearest to them after ten rounds are taken.
    """
    spread = x.std(0)
    z = (np.asarray(x, np.float64) - x.mean(0)) / np.where(spread > 0, spread, 1.0)
    axis = np.linalg.eigh(z.T @ z)[1][:, -1]
    along = z @ (-axis if axis[0] < 0 else axis)
    quantiles = (np.arange(num_rows) + 0.5) / num_rows
    centres = z[np.argsort(along, kind="stable")[(quantiles * len(z)).astype(int)]]
    for _ in range(10):
        nearest = np.square(z[:, None] - centres).sum(-1).argmin(1)
        centres = np.stack([z[nearest == c].mean(0) if (nearest == c).any() else centres[c] for c in range(num_rows)])
    return np.unique(np.square(z[:, None] - centres).sum(-1).argmin(0))


MODE_RANGE = (0.05, 0.95)


def groups_of_chains(values: Mapping[str, Float[np.ndarray, "chain draw"]]) -> list[tuple[int, ...]]:
    """Group chains that overlap: between groups the central 90 % of the draws of some quantity lie apart.

    Chains that visit the same part of the posterior overlap even where they mix badly; those that sit in different
    modes do not. Chains are in one group if others connect them.
    """
    ranges = np.stack([np.quantile(value, MODE_RANGE, axis=1) for value in values.values()])  # (q, 2, chain)
    low, high = ranges[:, 0], ranges[:, 1]
    connected = ((low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])).all(0)
    num_groups, group = connected_components(connected, directed=False)
    return [tuple(np.flatnonzero(group == index).tolist()) for index in range(num_groups)]


def chains_with_two_modes(values: Mapping[str, Float[np.ndarray, "chain draw"]]) -> dict[str, list[int]]:
    """Find chains that visit two modes, by the quantities in which there is a valley between two peaks."""
    found = {name: [chain for chain, draws in enumerate(value) if _has_valley(draws)] for name, value in values.items()}
    return {name: chains for name, chains in found.items() if chains}


def _has_valley(draws: Float[np.ndarray, " draw"]) -> bool:
    """Whether draws fall into two parts with hardly any between them.

    The two parts are those of 2-means. Between the means of the parts a unimodal density nowhere falls below the lower
    one of its values there, whatever its shape.
    """
    if not np.isfinite(draws).all() or np.ptp(draws) == 0:
        return False
    middle = np.quantile(draws, MODE_RANGE).mean()
    low = high = middle
    for _ in range(20):
        above = draws > middle
        if above.all() or not above.any():
            return False
        low, high = draws[~above].mean(), draws[above].mean()
        middle = (low + high) / 2
    at_low, between, at_high = (int((np.abs(draws - place) < (high - low) / 6).sum()) for place in (low, middle, high))
    least = max(MIN_MODE_DRAWS, MIN_MODE_SHARE * len(draws))
    return min(at_low, at_high) >= least and between < MAX_VALLEY * min(at_low, at_high)
