"""What is wrong with draws: what the sampler said of itself, whether chains move, agree and suffice, and k-hat."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from bayesgmm.diagnostics.findings import Finding, Severity, listed, percent
from bayesgmm.engines.fit import Fit
from bayesgmm.posterior.convergence import (
    MAX_R_HAT,
    MIN_ESS_PER_CHAIN,
    ChainDiagnostics,
    Convergence,
    chains_with_two_modes,
    convergence,
    groups_of_chains,
)

HOPELESS_R_HAT = 1.1
"""R-hat from which draws are not to be used at all: the limit in use before 1.01, Gelman et al. (2013, chapter 11)."""

MANY_DIVERGENCES = 0.01
"""Share of divergent draws that is no accident: a choice of this package."""

MAX_TREE_DEPTH = 10
"""Doublings after which NumPyro ends a trajectory, by default."""

MIN_E_BFMI = 0.3
"""Energy fraction of missing information: Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in
Hamiltonian Monte Carlo."""

MIN_ACCEPTANCE = 0.1
"""A chain that accepts less stands still: a choice of this package."""

MAX_REPEATED = 0.5
"""A chain of which a larger share of draws repeats the one before stands still: a choice of this package."""

MAX_K_HAT = 0.7
"""S draws can do with a k-hat of min(1 - 1 / log10(S), 0.7); above 1 there is no mean: Vehtari et al. (2024)."""

MAX_PERMUTED = 0.05
"""Share of draws with renumbered components from which it is told: a choice of this package."""


def sampler_findings(fit: Fit) -> Iterator[Finding]:
    """Divergences, trajectories that were cut short, and energies that change too slowly, of NUTS."""
    stats = {name: np.asarray(value) for name, value in fit.sample_stats.items()}
    if "diverging" in stats and (number := int(stats["diverging"].sum())):
        share = number / stats["diverging"].size
        yield Finding(
            "divergences",
            Severity.serious if share > MANY_DIVERGENCES else Severity.caution,
            f"{number} of {stats['diverging'].size} draws ended a trajectory that diverged; the parts of the posterior "
            "near them may be missing",
            "target_accept=0.95 or higher; if they stay, a tighter prior of the scales, or fewer components",
        )
    most = fit.summary.get("max_tree_depth", MAX_TREE_DEPTH)
    if "tree_depth" in stats and (share := (stats["tree_depth"] >= most).mean()) > 0:
        yield Finding(
            "tree depth",
            Severity.note,
            f"{percent(share)} of the draws reached the largest tree depth, {most}, which is slow, not wrong",
            "a longer warm-up, or a tighter prior: the posterior is far longer in one direction than in another",
        )
    if "energy" in stats:
        from arviz_stats.base.array import array_stats

        with np.errstate(all="ignore"):  # the energy of a chain that stands still does not vary
            e_bfmi: np.ndarray = np.array(array_stats.bfmi(stats["energy"]), ndmin=1)
        if (low := np.flatnonzero(e_bfmi < MIN_E_BFMI)).size:
            yield Finding(
                "E-BFMI",
                Severity.caution,
                f"E-BFMI is {e_bfmi[low].min():.2f}, below {MIN_E_BFMI}, in {listed('chain', low)}: the energy changes "
                "too slowly for the tails to be reached",
                "a longer warm-up, a tighter prior of the scales, or fewer components",
            )


def approximation_findings(fit: Fit) -> Iterator[Finding]:
    """Pareto k-hat of the ratios of the posterior to its approximation."""
    if fit.draws is None or "khat" not in fit.summary:
        return
    k_hat, num_draws = float(fit.summary["khat"]), int(np.prod(fit.draws.draw_shape))
    limit = min(1 - 1 / np.log10(num_draws), MAX_K_HAT) if num_draws > 10 else 0.0
    if np.isnan(k_hat):
        yield Finding(
            "k-hat",
            Severity.caution,
            "Pareto k-hat cannot be told: log posterior densities of the draws differ by hardly more than rounding",
            "float64 rows",
        )
    elif not k_hat <= limit:
        yield Finding(
            "k-hat",
            Severity.caution if k_hat <= 1 else Severity.serious,
            f"Pareto k-hat is {k_hat:.2f}, above {limit:.2f}: the approximation misses part of the posterior, and its "
            "uncertainties are not to be trusted",
            "another approximation (for fit_vi, guide='full_rank'), or draws from the posterior itself by fit_nuts",
        )


def chain_findings(fit: Fit, x: np.ndarray) -> Iterator[Finding]:
    """Chains that stand still, stay in modes of their own, disagree or are too short, and labels that do not hold.

    Draws of an approximation are independent, and there is nothing to find.
    """
    if fit.draws is None or {"khat", "elbo"} & set(fit.summary):
        return
    stuck = _standing_still(fit)
    if stuck.any():
        yield Finding(
            "stuck chain",
            Severity.serious,
            f"{listed('chain', np.flatnonzero(stuck))} of {stuck.size} hardly moved",
            "another key or another start, a smaller jitter, a longer warm-up",
        )
    elif stuck.size == 1:
        yield Finding(
            "one chain",
            Severity.note,
            "a single chain cannot tell what it never saw; R-hat compares its parts",
            "num_chains=4, from different starting points",
        )
    if not stuck.all():
        log_density = {"lp": np.asarray(fit.sample_stats["lp"])[~stuck]} if "lp" in fit.sample_stats else {}
        found = convergence(fit.draws[~stuck], x, extra=log_density)
        num_relabelled = fit.summary.get("num_relabelled")
        permuted = None if num_relabelled is None else num_relabelled / float(np.prod(fit.draws.draw_shape))
        yield from _agreement(found, np.flatnonzero(~stuck), permuted)


def _standing_still(fit: Fit) -> Bool[np.ndarray, " chain"]:
    assert fit.draws is not None
    means = np.asarray(fit.draws.means)
    stuck = (np.diff(means, axis=1) == 0).all((2, 3)).mean(1) > MAX_REPEATED
    if "acceptance_rate" in fit.sample_stats:
        stuck |= np.asarray(fit.sample_stats["acceptance_rate"]).mean(1) < MIN_ACCEPTANCE
    return stuck


def _agreement(found: Convergence, chains: np.ndarray, permuted: float | None) -> Iterator[Finding]:
    """Several modes, or else R-hat and effective draws, with what is due to labels alone told from what is not.

    Args:
        found: convergence of the chains that move.
        chains: their numbers.
        permuted: share of all draws whose components were renumbered, where it is known.
    """
    groups = groups_of_chains(found.values)
    if len(groups) > 1:  # R-hat and effective draws say nothing else, and say it less well
        yield _modes_of_groups(found, [chains[list(group)] for group in groups], groups)
        return
    if moving := chains_with_two_modes(found.values):
        name, seen_in = max(moving.items(), key=lambda item: len(item[1]))
        yield Finding(
            "several modes",
            Severity.caution,
            f"{listed('chain', chains[seen_in])} moved between two modes: two peaks of {name}, hardly a draw between",
            "reading draws and predictions, not means over draws, which lie between the modes; fewer components",
        )
    labels_alone = permuted != 0 and found.invariant.agrees and not found.labelled.agrees
    if labels_alone:
        share = "" if permuted is None else f", {percent(permuted)} of which were permuted"
        yield Finding(
            "labels",
            Severity.caution,
            f"the labels are the trouble, not the chains: R-hat is up to {found.labelled.max_r_hat:.2f} for components "
            f"of the relabelled draws{share}, but {found.invariant.max_r_hat:.3f} for all that has no labels",
            "read densities, predictions and who is clustered with whom, not single components; or fewer components",
        )
    elif permuted is not None and permuted >= MAX_PERMUTED and found.labelled.agrees:
        yield Finding(
            "label switching",
            Severity.note,
            f"the components of {percent(permuted)} of the draws were renumbered, and agree since",
            "nothing, where components are far apart; else look at the draws before reading a component by itself",
        )
    yield from _mixing([found.invariant] if labels_alone else [found.invariant, found.labelled])


def _modes_of_groups(found: Convergence, groups: Sequence[np.ndarray], members: Sequence[tuple[int, ...]]) -> Finding:
    level = found.values["log_likelihood"].mean(1)
    told = " and ".join(
        f"{listed('chain', group)} (log-likelihood {level[list(member)].mean():.1f})"
        for group, member in zip(groups, members, strict=True)
    )
    return Finding(
        "several modes",
        Severity.serious,
        f"{told} stayed in different parts of the posterior, whatever the labels; R-hat is "
        f"{found.invariant.max_r_hat:.2f}",
        "more chains, to see which modes recur; fewer components, a more restricted family or a tighter prior. How "
        "many chains end in a mode does not tell its weight: do not pool them",
    )


def _mixing(parts: Sequence[ChainDiagnostics]) -> Iterator[Finding]:
    def worst(column: str, pick: np.ufunc) -> tuple[float, str]:
        values = np.concatenate([getattr(part, column) for part in parts])
        names = [name for part in parts for name in part.names]
        index = int(np.flatnonzero(values == pick.reduce(values))[0])
        return float(values[index]), names[index]

    r_hat, name = worst("r_hat", np.maximum)
    if r_hat > MAX_R_HAT:
        above = sum(int((part.r_hat > MAX_R_HAT).sum()) for part in parts)
        yield Finding(
            "R-hat",
            Severity.serious if r_hat > HOPELESS_R_HAT else Severity.caution,
            f"the chains disagree: R-hat is up to {r_hat:.3f} ({name}), and above {MAX_R_HAT} for {above} of "
            f"{sum(len(part.names) for part in parts)} quantities",
            "more draws (num_draws) and a longer warm-up; if it stays, fewer components or a tighter prior",
        )
    enough = MIN_ESS_PER_CHAIN * parts[0].num_chains
    least = {where: worst(f"ess_{where}", np.minimum) for where in ("bulk", "tail")}
    if told := [f"{ess:.0f} for the {where} of {name}" for where, (ess, name) in least.items() if ess < enough]:
        yield Finding(
            "effective draws",
            Severity.caution,
            f"the draws are worth as few as {' and '.join(told)}; {enough} are wanted, {MIN_ESS_PER_CHAIN} a chain",
            "more draws (num_draws), in proportion to what is missing",
        )
