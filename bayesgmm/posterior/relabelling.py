r"""Relabelling posterior draws: sample without constraints, then give every draw's components one common numbering.

The likelihood does not change when components are renumbered, so a sampler may renumber them on its way, and averages
of one component over draws mean nothing. An order for every draw t, $\nu_t$, is found afterwards, exactly for each draw
by linear assignment, so that the draws agree best:

* `pivot`: with one reference mixture, such as the fit by EM, by the expected joint log-density (see `matching.py`). The
  cheapest; needs no rows.
* `stephens`: with their own average classification probabilities $q_{ij}$,
  $$ \min_{\nu, q} \sum_t \sum_{ij} r^{(t)}_{i \nu_t(j)} \log \frac{r^{(t)}_{i \nu_t(j)}}{q_{ij}}, $$
  in turn over q (the mean of the relabelled probabilities) and over each $\nu_t$, until neither lowers it. Uses
  all responsibilities of the rows; needs no reference.
* `ecr`: with one allocation of the rows, of which as few as possible are allocated otherwise. The pivot's hard
  allocation if there is a pivot; else each row's most frequent label, in turn with the orders (iterative version 1).

An alternation ends where it cannot improve, which need not be the best of all. It starts from the pivot's
classification of the rows, or where there is none from that of ten draws in turn, each tried on up to a hundred draws.

Without a pivot, all k! numberings of the result are equally good. The one given back leaves most draws as they came.

Sources: Stephens (2000), Dealing with label switching in mixture models, sections 4.1 (algorithm 2) and 4.2;
Papastamoulis & Iliopoulos (2010), An artificial allocations based solution to the label switching problem; Rodríguez &
Walker (2014), Label switching in Bayesian mixture models: deterministic relabeling strategies; Papastamoulis (2016),
label.switching.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike
from bayesgmm.numerics.validation import one_of
from bayesgmm.posterior.allocations import flat_draws, passes_over_draws, rows_of_draws
from bayesgmm.posterior.matching import best_orders, check_reference, label_scores

METHODS = ("pivot", "stephens", "ecr")

_LEAST_FALL = 1e-12  # of the loss, relative to its size: less is rounding
_FLOOR = 1e-3  # part of a start's shares that is spread evenly
_START_DRAWS = 100  # evenly spaced draws among which a start is looked for
_NUM_STARTS = 10  # of them that are tried


@dataclass(frozen=True)
class Relabelling:
    """Draws with a common numbering of their components.

    Attributes:
        draws: the draws relabelled, with the leading axes that they came with.
        orders: `draws` are the given ones permuted by this, shape (..., k): component `orders[..., j]` became j.
        num_relabelled: how many draws are not in the order they came in.
        method: `pivot`, `stephens` or `ecr`.
        losses: what the method lowers, a mean over draws, after each of its iterations: for `pivot` minus the expected
            joint log-density, for `stephens` the Kullback-Leibler divergence summed over rows (in nats), for `ecr` the
            number of rows allocated otherwise.
    """

    draws: Mixture
    orders: Int[np.ndarray, "*draws k"]
    num_relabelled: int
    method: str
    losses: Float[np.ndarray, " iterations"]

    @property
    def num_iterations(self) -> int:
        """Passes over the draws, 1 where nothing is to iterate."""
        return len(self.losses)


def relabel_draws(
    draws: Mixture, *, method: str = "pivot", pivot: Mixture | None = None, x: ArrayLike | None = None
) -> Relabelling:
    """Undo label switching: every draw's components in the order in which the draws agree best.

    Responsibilities of a block of draws are in memory at a time, and kept from one iteration to the next up to 512 MB.
    For many rows an evenly spaced part, such as `x[::10]`, is enough to tell components apart.

    Args:
        draws: a mixture with leading axes, such as (chain, draw).
        method: `pivot`, `stephens` or `ecr`; see the module.
        pivot: the mixture whose numbering the result has, normally the fit by EM or MAP. `pivot` needs it; `ecr` and
            `stephens` start from it.
        x: rows (n, d), for `stephens` and `ecr`.

    Raises:
        InputError: for an unknown method, a missing pivot or missing rows, a pivot of other components, features or
            covariance representation, draws without leading axes or that are not finite, rows that cannot be used.
    """
    one_of("method", method, METHODS)
    flat = flat_draws(draws)
    if pivot is not None:
        check_reference(pivot, draws, ("pivot", "draws"), any_factor=method != "pivot")
        if not all(np.isfinite(np.asarray(field)).all() for field in (pivot.means, pivot.precision_factor)):
            raise InputError("pivot has parameters that are not finite; give a fit that succeeded")
    if method == "pivot":
        if pivot is None:
            raise InputError(
                "method='pivot' needs pivot=, such as the mixture of an EM fit; or choose 'stephens', 'ecr'"
            )
        scores = np.asarray(label_scores(flat, pivot), np.float64)
        orders = best_orders(scores)
        losses = [-float(np.take_along_axis(scores, orders[:, None], 1).sum((1, 2)).mean())]
    elif x is None:
        raise InputError(f"method={method!r} classifies rows and needs them: give x=, or choose method='pivot'")
    else:
        orders, losses = _by_rows(flat, pivot, rows_of_draws(draws, x), method)
    identity = np.arange(draws.num_components, dtype=orders.dtype)
    if pivot is None:
        distinct, counts = np.unique(orders, axis=0, return_counts=True)
        orders = orders[:, np.argsort(distinct[counts.argmax()])]
    num_relabelled = int((orders != identity).any(1).sum())
    orders = orders.reshape(*draws.draw_shape, -1)
    return Relabelling(draws.permute(orders), orders, num_relabelled, method, np.asarray(losses, np.float64))


@dataclass(frozen=True)
class _Criterion:
    """What an alternation lowers: an offset less the mean score of the relabelled draws.

    Attributes:
        block_of: what of the responsibilities (draws, n, k) counts, with rows last.
        reward_of: what a share of a row is worth under each label, given the mean shares of the labels (k, n).
        bonus: for every component that keeps its number, less than any difference that counts.
    """

    block_of: Callable[[np.ndarray], np.ndarray]
    reward_of: Callable[[np.ndarray], np.ndarray]
    bonus: float


def _by_rows(draws: Mixture, pivot: Mixture | None, x: AnyArray, method: str) -> tuple[np.ndarray, list[float]]:
    stephens = method == "stephens"
    soft = _Criterion(lambda block: np.ascontiguousarray(np.swapaxes(block, 1, 2)), _log, 0.0)
    criterion = soft if stephens else _Criterion(_hard, _most, 0.5 / draws.num_components)
    shares = _best_start(draws, x, criterion) if pivot is None else _spread(np.asarray(pivot.responsibilities(x)).T)
    passes = passes_over_draws(criterion.block_of, draws, x)
    # What scores are counted from: the best that a draw could score alone.
    offset = float(len(x))
    if stephens:
        offset = sum(float((block * _log(block.astype(np.float64))).sum()) for block in passes()) / len(draws.means)
    return _alternate(passes, shares, criterion, offset, once=not stephens and pivot is not None)[:2]


def _best_start(draws: Mixture, x: AnyArray, criterion: _Criterion) -> Float[np.ndarray, "k n"]:
    """The best end of an alternation over a few draws, of those that start from one draw each."""
    few = draws[:: -(-len(draws.means) // _START_DRAWS)]
    passes = passes_over_draws(criterion.block_of, few, x)
    starts = few[:: -(-len(few.means) // _NUM_STARTS)].responsibilities(x)
    ends = (_alternate(passes, _spread(np.asarray(start).T), criterion, 0.0) for start in starts)
    return min(ends, key=lambda end: end[1][-1])[2]


def _alternate(
    passes: Callable[[], Iterable[np.ndarray]],
    shares: Float[np.ndarray, "k n"],
    criterion: _Criterion,
    offset: float,
    *,
    once: bool = False,
) -> tuple[np.ndarray, list[float], np.ndarray]:
    r"""Orders given the mean shares of labels in rows, these given the orders, in turn until the loss stops falling.

    A draw that gives component l the share $p_{li}$ of row i scores $\sum_i p_{li} W_{ji}$ where l gets label j, with
    the reward W of the current mean shares.
    """
    losses: list[float] = []
    rewards = criterion.reward_of(shares)
    k = len(shares)
    while True:
        orders, total, num_draws = [], np.zeros_like(shares), 0
        for block in passes():
            components = block.reshape(-1, block.shape[-1]).astype(np.float64)
            scores = (components @ rewards.T).reshape(-1, k, k)
            order = best_orders(scores + criterion.bonus * np.eye(k))
            # The label of every component, as a matrix: adds up relabelled shares without a copy of them.
            of_label = np.argsort(order, axis=1).reshape(-1)[:, None] == np.arange(k)
            total += of_label.T.astype(np.float64) @ components
            num_draws += len(block)
            orders.append(order)
        shares = total / num_draws
        rewards = rewards if once else criterion.reward_of(shares)
        losses.append(offset - float((shares * rewards).sum()))
        if once or (len(losses) > 1 and losses[-2] - losses[-1] <= _LEAST_FALL * max(1.0, abs(losses[-1]))):
            return np.concatenate(orders), losses, shares


def _spread(shares: np.ndarray) -> np.ndarray:
    """Shares (k, n) of one mixture, with a small part spread evenly: one certain row shall not outvote all others."""
    return (1 - _FLOOR) * shares.astype(np.float64) + _FLOOR / len(shares)


def _hard(responsibilities: np.ndarray) -> np.ndarray:
    """1 where a component is the row's own, with rows last."""
    return responsibilities.argmax(-1)[:, None] == np.arange(responsibilities.shape[-1])[:, None]


def _log(shares: np.ndarray) -> np.ndarray:
    """Of a share that underflows, the logarithm of the smallest number: large enough, and finite."""
    return np.log(np.maximum(shares, np.finfo(np.float64).tiny))


def _most(shares: np.ndarray) -> np.ndarray:
    """1 for the most frequent label of every row, the first of several."""
    return (shares.argmax(0) == np.arange(len(shares))[:, None]).astype(np.float64)
