r"""What is wrong with a fit, in plain words, and what to try: one list, worst first.

`diagnose` looks at how the fit ended, at the sampler's own statistics, at the chains (first by quantities that do not
depend on how components are numbered, then by labelled ones), at the approximation, at components with too few rows,
and at what the prior decides in place of the data. A healthy fit has no findings. Every limit is in the table of
`posterior/thresholds.py`.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from bayesgmm.diagnostics.findings import Diagnosis, Finding, Severity, listed, percent
from bayesgmm.engines.fit import Fit, ResultCode, as_fit
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import unweighted_rows
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.mixture import Mixture, rows_of_mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.posterior.convergence import (
    ChainDiagnostics,
    Convergence,
    chains_with_two_modes,
    convergence,
    groups_of_chains,
)
from bayesgmm.posterior.thresholds import (
    EMPTY_PROBABILITY,
    HOPELESS_R_HAT,
    MANY_DIVERGENCES,
    MAX_R_HAT,
    MAX_RELABELLED,
    MAX_REPEATED,
    MAX_SD_RATIO,
    MAX_SENSITIVITY,
    MAX_TREE_DEPTH,
    MIN_ACCEPTANCE,
    MIN_E_BFMI,
    MIN_ESS_PER_CHAIN,
    MIN_WIDTH,
    pareto_k_limit,
)
from bayesgmm.priors.checks import check_prior
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior

if TYPE_CHECKING:
    from xarray import DataTree

_NOTE, _CAUTION, _SERIOUS = Severity.note, Severity.caution, Severity.serious

_ALSO_REPORTED_BY = {
    ResultCode.not_mixed: {"R-hat", "effective draws", "several modes", "labels", "stuck chain"},
    ResultCode.divergent: {"divergences"},
    ResultCode.nonfinite: {"not finite"},
}


def diagnose(fit: Fit, x: ArrayLike, prior: AnyPrior | None = None, *, tree: "DataTree | None" = None) -> Diagnosis:
    """List what is wrong with a fit by any engine, worst first, and what to try; empty for a healthy fit.

    A finding replaces those that follow from it: chains in different modes replace R-hat, and so do labels that do not
    agree.

    Args:
        fit: one fit, outside `jit` and `vmap`.
        x: the rows that were fitted (n, d), each counted once.
        prior: its prior; without it there are no findings about the prior.
        tree: its DataTree by `to_datatree`, for the sensitivity to the prior's power; of fits with draws.

    Raises:
        InputError: for several fits at once, rows of another number of features, a prior of another shape, fewer than 4
            draws a chain (8 of a single chain), or a tree without log prior densities.
    """
    x = np.asarray(unweighted_rows(x).values)
    _check(fit, x, prior)
    points = fit.mixture if fit.draws is None else fit.draws
    finite = _is_finite(points)
    findings = list(_sampler_findings(fit))
    if finite.all():
        findings += [*_approximation_findings(fit), *_chain_findings(fit, x), *_component_findings(fit, points, x)]
        if prior is not None:
            labels_hold = not any(finding.cause == "labels" for finding in findings)
            findings += _prior_findings(fit, points, len(x), prior, labels_hold)
        if tree is not None:
            findings += _sensitivity_findings(tree)
    else:
        what = "the mixture is" if fit.draws is None else f"{percent(1 - finite.mean())} of the draws are"
        advice = "look for huge values in the data, rescale its columns, or compute in float64"
        findings.append(Finding("not finite", _SERIOUS, f"{what} infinite or NaN", advice))
    findings += _result_findings(fit, {finding.cause for finding in findings})
    title = f"{fit.engine} ({fit.family}, k={fit.mixture.num_components})"
    return Diagnosis(title, tuple(sorted(findings, key=lambda finding: -finding.severity)))


def _check(fit: Fit, x: Float[np.ndarray, "n d"], prior: object) -> None:
    if np.ndim(as_fit(fit).result):
        raise InputError(f"fit holds {np.size(fit.result)} fits; diagnose them one by one")
    rows_of_mixture(fit.mixture, x)
    if prior is not None:
        check_prior(prior, fit.mixture.num_components, fit.mixture.num_features, get_family(fit.family))


def _is_finite(points: Mixture) -> Bool[np.ndarray, "*draws"]:
    """Whether a mixture, or each of its draws, is finite; a weight may be 0."""
    fields = (np.exp(np.asarray(points.log_weights)), np.asarray(points.means), np.asarray(points.precision_factor))
    each = [np.isfinite(field).reshape(*points.draw_shape, -1).all(-1) for field in fields]
    return np.asarray(np.logical_and.reduce(each))


def _result_findings(fit: Fit, causes: set[str]) -> Iterator[Finding]:
    """The result code, where no other finding reports the same."""
    code = fit.code
    if code is ResultCode.successful or causes & _ALSO_REPORTED_BY.get(code, set()):
        return
    detail, _, advice = code.explanation.partition("; ")
    serious = code in (ResultCode.nonfinite, ResultCode.collapsed, ResultCode.not_mixed)
    yield Finding(code.name.replace("_", " "), _SERIOUS if serious else _CAUTION, detail, advice)


def _sampler_findings(fit: Fit) -> Iterator[Finding]:
    """Divergences, trajectories that were cut short, and energies that change too slowly, of NUTS."""
    stats = {name: np.asarray(value) for name, value in fit.sample_stats.items()}
    if "diverging" in stats and (number := int(stats["diverging"].sum())):
        yield Finding(
            "divergences",
            _SERIOUS if number / stats["diverging"].size > MANY_DIVERGENCES else _CAUTION,
            f"{number} of {stats['diverging'].size} draws ended a trajectory that diverged; the parts of the posterior "
            "near them may be missing",
            "target_accept=0.95 or higher; if they stay, a tighter prior of the scales, or fewer components",
        )
    most = fit.summary.get("max_tree_depth", int(MAX_TREE_DEPTH))
    if "tree_depth" in stats and (share := (stats["tree_depth"] >= most).mean()) > 0:
        yield Finding(
            "tree depth",
            _NOTE,
            f"{percent(share)} of the draws hit the tree-depth limit, {most}, which is slow, not wrong",
            "a longer warm-up, or a tighter prior: the posterior is far longer in one direction than in another",
        )
    if "energy" in stats:
        from arviz_stats.base.array import array_stats

        with np.errstate(all="ignore"):  # the energy of a stuck chain does not vary
            e_bfmi: np.ndarray = np.array(array_stats.bfmi(stats["energy"]), ndmin=1)
        if (low := np.flatnonzero(e_bfmi < MIN_E_BFMI)).size:
            yield Finding(
                "E-BFMI",
                _CAUTION,
                f"E-BFMI is {e_bfmi[low].min():.2f}, below {MIN_E_BFMI}, in {listed('chain', low)}: the energy changes "
                "too slowly for the tails to be reached",
                "a longer warm-up, a tighter prior of the scales, or fewer components",
            )


def _approximation_findings(fit: Fit) -> Iterator[Finding]:
    """Pareto k-hat of the ratios of the posterior to its approximation."""
    if fit.draws is None or "khat" not in fit.summary:
        return
    k_hat, limit = float(fit.summary["khat"]), pareto_k_limit(int(np.prod(fit.draws.draw_shape)))
    if np.isnan(k_hat):
        yield Finding(
            "k-hat",
            _CAUTION,
            "Pareto k-hat cannot be estimated: log posterior densities of the draws differ by little more than "
            "rounding",
            "float64 rows",
        )
    elif not k_hat <= limit:
        yield Finding(
            "k-hat",
            _CAUTION if k_hat <= 1 else _SERIOUS,
            f"Pareto k-hat is {k_hat:.2f}, above {limit:.2f}: the approximation misses part of the posterior, and its "
            "uncertainties cannot be trusted",
            "another approximation (for fit_vi, guide='full_rank'), or draws from the posterior itself by fit_nuts",
        )


def _chain_findings(fit: Fit, x: Float[np.ndarray, "n d"]) -> Iterator[Finding]:
    """Chains that are stuck, stay in different modes, disagree or are too short, and labels that do not agree.

    Draws of an approximation are independent: they are no chains.
    """
    if fit.draws is None or {"khat", "elbo"} & set(fit.summary):
        return
    stuck = (np.diff(np.asarray(fit.draws.means), axis=1) == 0).all((2, 3)).mean(1) > MAX_REPEATED
    if "acceptance_rate" in fit.sample_stats:
        stuck |= np.asarray(fit.sample_stats["acceptance_rate"]).mean(1) < MIN_ACCEPTANCE
    if stuck.any():
        yield Finding(
            "stuck chain",
            _SERIOUS,
            f"{listed('chain', np.flatnonzero(stuck))} of {stuck.size} hardly moved",
            "another key or another start, a smaller jitter, a longer warm-up",
        )
    elif stuck.size == 1:
        yield Finding(
            "one chain",
            _NOTE,
            "there is a single chain, so R-hat can compare its parts only, and modes that it never visited go unseen",
            "num_chains=4, from different starting points",
        )
    if not stuck.all():
        log_density = {"lp": np.asarray(fit.sample_stats["lp"])[~stuck]} if "lp" in fit.sample_stats else {}
        found = convergence(fit.draws[~stuck], x, extra=log_density)
        number = fit.summary.get("num_relabelled")
        relabelled = None if number is None else number / float(np.prod(fit.draws.draw_shape))
        yield from _agreement_findings(found, np.flatnonzero(~stuck), relabelled)


def _agreement_findings(
    found: Convergence, chains: Int[np.ndarray, " chain"], relabelled: float | None
) -> Iterator[Finding]:
    """Several modes, or else R-hat and effective draws; disagreement of the labels only apart from any other.

    Args:
        found: convergence of the chains that move.
        chains: their numbers.
        relabelled: share of all draws whose components were renumbered, where it is known.
    """
    groups = groups_of_chains(found.values)
    if len(groups) > 1:  # R-hat and effective draws would report the same, less clearly
        level = found.values["log_likelihood"].mean(1)
        each = " and ".join(
            f"{listed('chain', chains[list(group)])} (log-likelihood {level[list(group)].mean():.1f})"
            for group in groups
        )
        yield Finding(
            "several modes",
            _SERIOUS,
            f"{each} stayed in different parts of the posterior, whatever the labels; R-hat is "
            f"{found.invariant.max_r_hat:.2f}",
            "more chains, to see which modes recur; fewer components, a more restricted family or a tighter prior. Do "
            "not pool the chains: how many of them end in a mode does not estimate its weight",
        )
        return
    if moving := chains_with_two_modes(found.values):
        name, seen_in = max(moving.items(), key=lambda item: len(item[1]))
        yield Finding(
            "several modes",
            _CAUTION,
            f"{listed('chain', chains[seen_in])} moved between two modes: two peaks of {name}, hardly a draw between",
            "reading draws and predictions, not means over draws, which lie between the modes; fewer components",
        )
    labels_only = relabelled != 0 and found.invariant.agrees and not found.labelled.agrees
    if labels_only:
        share = "" if relabelled is None else f", {percent(relabelled)} of which were relabelled"
        yield Finding(
            "labels",
            _CAUTION,
            f"the disagreement is in the labels only: R-hat is up to {found.labelled.max_r_hat:.2f} for components of "
            f"the relabelled draws{share}, but {found.invariant.max_r_hat:.3f} for everything that has no labels",
            "read densities, predictions and who is clustered with whom, not single components; or fewer components",
        )
    elif relabelled is not None and relabelled >= MAX_RELABELLED and found.labelled.agrees:
        yield Finding(
            "label switching",
            _NOTE,
            f"the components of {percent(relabelled)} of the draws were renumbered, and agree since",
            "nothing, where components are far apart; else look at the draws before reading a single component",
        )
    yield from _mixing_findings([found.invariant] if labels_only else [found.invariant, found.labelled])


def _mixing_findings(parts: Sequence[ChainDiagnostics]) -> Iterator[Finding]:
    names = [name for part in parts for name in part.names]
    r_hats, *effective = (
        np.concatenate([getattr(part, column) for part in parts]) for column in ("r_hat", "ess_bulk", "ess_tail")
    )
    worst = int(r_hats.argmax())
    if r_hats[worst] > MAX_R_HAT:
        yield Finding(
            "R-hat",
            _SERIOUS if r_hats[worst] > HOPELESS_R_HAT else _CAUTION,
            f"the chains disagree: R-hat is up to {r_hats[worst]:.3f} ({names[worst]}), and above {MAX_R_HAT} for "
            f"{(r_hats > MAX_R_HAT).sum()} of {len(names)} quantities",
            "more draws (num_draws) and a longer warm-up; if it stays, fewer components or a tighter prior",
        )
    needed = int(MIN_ESS_PER_CHAIN) * parts[0].num_chains
    few = [
        f"{values.min():.0f} for the {where} of {names[values.argmin()]}"
        for where, values in zip(("bulk", "tail"), effective, strict=True)
        if values.min() < needed
    ]
    if few:
        yield Finding(
            "effective draws",
            _CAUTION,
            f"the draws are worth as few as {' and '.join(few)}; {needed} are needed, {MIN_ESS_PER_CHAIN:g} a chain",
            "more draws (num_draws), in proportion to what is missing",
        )


def _component_findings(fit: Fit, points: Mixture, x: Float[np.ndarray, "n d"]) -> Iterator[Finding]:
    """Components with next to no rows, and those of a point that are much narrower than the data."""
    (n, d), family = x.shape, get_family(fit.family)
    counts = n * _weights_by_draw(points)
    needed = family.min_component_rows(d)
    in_draws = "" if fit.draws is None else " in {} of the draws"
    if (share := (counts < 1).any(1).mean()) >= EMPTY_PROBABILITY:
        yield Finding(
            "empty component",
            _CAUTION,
            f"{_which((counts < 1).mean(0))} less than one of {n} rows{in_draws.format(percent(share))}",
            "fewer components: the data do not ask for this many; or, if all of them are known to be there, a larger "
            "concentration in the prior",
        )
    elif (share := (counts < needed).any(1).mean()) >= EMPTY_PROBABILITY:
        yield Finding(
            "few rows",
            _NOTE if fit.has_prior else _CAUTION,
            f"{_which((counts < needed).mean(0))} fewer rows than the {needed} that a covariance needs"
            f"{in_draws.format(percent(share))}",
            "fewer components, or a more restricted family",
        )
    if fit.draws is None and fit.code is not ResultCode.collapsed:
        widths = _widths(fit.mixture, x)
        if (narrow := np.flatnonzero(widths < MIN_WIDTH)).size:
            yield Finding(
                "narrow component",
                _CAUTION,
                f"{listed('component', narrow)}: down to {widths.min():.1e} of the data's width in some direction, "
                "perhaps a spike on rows that are equal or in line",
                "other starts, a prior, a more restricted family or a larger reg_covar; look for repeated rows",
            )


def _weights_by_draw(points: Mixture) -> Float[np.ndarray, "draws k"]:
    return np.exp(np.asarray(points.log_weights, np.float64)).reshape(-1, points.num_components)


def _which(shares: Float[np.ndarray, " k"]) -> str:
    """The components to which something happens, at least half as often as to the first of them, and their verb."""
    often = np.flatnonzero(shares >= shares.max() / 2)
    return f"{listed('component', often)} {'hold' if often.size > 1 else 'holds'}"


def _widths(mixture: Mixture, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " k"]:
    r"""$\min_v \sqrt{v^\top \Sigma_j v / v^\top S v}$ with S the covariance of the rows: no units, no coordinates."""
    factor = np.asarray(mixture.precision_factor, np.float64)
    if mixture.is_diagonal:
        factor = factor[..., None] * np.eye(mixture.num_features)
    covariance = np.cov(x, rowvar=False, bias=True, dtype=np.float64).reshape(2 * [mixture.num_features])
    largest = np.linalg.eigvalsh(factor @ covariance @ np.swapaxes(factor, 1, 2))[:, -1]
    return np.broadcast_to(1 / np.sqrt(largest), mixture.num_components)


def _prior_findings(fit: Fit, points: Mixture, n: int, prior: AnyPrior, labels_hold: bool) -> Iterator[Finding]:
    """Where the posterior is hardly narrower than the prior, or the prior counts for more rows than there are."""
    ruled = []
    concentration = np.asarray(prior.concentration)
    if (counted := float(concentration.sum())) > n:
        ruled.append(f"weights (it counts for {counted:.0f} rows, the data for {n})")
    if isinstance(prior, ConjugatePrior):
        ruled += _ruled_by_counts(n * _weights_by_draw(points).mean(0), prior, fit.family)
    elif fit.draws is not None and labels_hold:
        ruled += _ruled_by_spread(fit.draws, prior)
    if np.ptp(concentration) > 0 and (relabelled := fit.summary.get("num_relabelled")):
        yield Finding(
            "labels of the prior",
            _CAUTION,
            f"the prior distinguishes components by their concentrations, but {relabelled} draws were renumbered to "
            "match a pivot: parameters of single components are not those of the stated posterior",
            "equal concentrations; or only what has no labels: densities, similarity of rows, log-likelihood",
        )
    if ruled:
        yield Finding(
            "prior",
            _CAUTION,
            f"the prior outweighs the data for {'; '.join(ruled)}",
            "fewer components or more rows; or, if the prior states what is known, vary it to see what changes",
        )


def _ruled_by_counts(counts: Float[np.ndarray, " k"], prior: ConjugatePrior, family_name: str) -> Iterator[str]:
    family = get_family(family_name)
    of_covariances = counts.sum(keepdims=True) if family.shared else counts
    if family.isotropic:
        of_covariances = of_covariances * len(prior.mean)  # every feature of a row informs the one variance
    for name, prior_rows, rows in (
        ("means", float(prior.shrinkage), counts),
        ("covariances", float(prior.dof), of_covariances),
    ):
        if (ruled := np.flatnonzero(rows < prior_rows)).size:
            where = "" if len(rows) < len(counts) else f" of {listed('component', ruled)}"
            yield f"{name}{where} (it counts for {prior_rows:.3g} rows, the data for as few as {rows.min():.2g})"


def _ruled_by_spread(draws: Mixture, prior: WeaklyInformativePrior) -> Iterator[str]:
    for name, values, prior_sd in (
        ("means", np.asarray(draws.means), np.asarray(prior.mean_scale)),
        ("scales", np.log(np.asarray(draws.scales)), prior.scales.log_sd),
    ):
        ratio = values.std((0, 1)) / prior_sd
        if (ruled := np.flatnonzero((ratio > MAX_SD_RATIO).any(1))).size:
            spread = f"up to {ratio.max():.2f} of the prior's standard deviation is left"
            yield f"{name} of {listed('component', ruled)} ({spread})"


def _sensitivity_findings(tree: "DataTree") -> Iterator[Finding]:
    from bayesgmm.diagnostics.loo import prior_sensitivity

    found = prior_sensitivity(tree, round_to=6)
    to_prior, to_data = (np.asarray(found[column], np.float64) for column in ("prior", "likelihood"))
    sensitive = to_prior > MAX_SENSITIVITY
    if sensitive.any():
        weak = bool((to_data[sensitive] <= MAX_SENSITIVITY).any())
        yield Finding(
            "prior sensitivity",
            _CAUTION if weak else _NOTE,
            f"{sensitive.sum()} of {sensitive.size} parameters move with the power of the prior, most of all "
            f"{found.index[int(to_prior.argmax())]} ({to_prior.max():.2f}, above {MAX_SENSITIVITY}); "
            + ("some of them do not move with that of the data" if weak else "they move with that of the data too"),
            "vary the prior and see what changes; where prior and data disagree, ask which of them is wrong",
        )
