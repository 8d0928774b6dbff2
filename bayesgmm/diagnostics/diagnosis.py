r"""What is wrong with a fit, in plain words, and what to try: one list, worst first.

`diagnose` looks at how the fit ended, at the sampler's own statistics, at the chains (first by quantities that do not
depend on how components are numbered, then by labelled ones), at the approximation, at components with too few rows,
and at what the prior decides in place of the data. A healthy fit has no findings. Every limit is in the table of
`numerics/thresholds.py`.
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from bayesgmm.diagnostics.findings import Diagnosis, Finding, Severity, listed, percent
from bayesgmm.engines.fit import Fit, ResultCode, advise, as_fit, explain
from bayesgmm.engines.optima import coincident
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import unweighted_rows
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.mixture import Mixture, rows_of_mixture
from bayesgmm.numerics import thresholds as limits
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.validation import column_ranges
from bayesgmm.posterior import chain_agreement
from bayesgmm.posterior.allocations import are_finite
from bayesgmm.priors.checks import check_prior, distinguishes_components
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior
from bayesgmm.runtime.progress import waited_for

if TYPE_CHECKING:
    from xarray import DataTree

_NOTE, _CAUTION, _SERIOUS = Severity.note, Severity.caution, Severity.serious

# What is found, and what to try, by cause. What follows a colon distinguishes two texts of one cause.
_TEXTS = tomllib.loads(Path(__file__).with_name("findings.toml").read_text("utf-8"))
_ALSO_REPORTED_BY = {
    ResultCode.not_mixed: {"R-hat", "effective draws", "several modes", "labels", "stuck chain"},
    ResultCode.divergent: {"divergences"},
    ResultCode.nonfinite: {"not finite"},
}


@waited_for("diagnosis")
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
        InputError: for several fits at once, rows of another number of features or too far away for their squares, a
            prior of another shape, fewer than 4 draws a chain (8 of a single chain), or a tree without log prior
            densities.
    """
    x = np.asarray(unweighted_rows(x).values)
    column_ranges(x)
    _check(fit, x, prior)
    points = fit.mixture if fit.draws is None else fit.draws
    finite = are_finite(points)
    findings = list(_sampler_findings(fit))
    if finite.all():
        findings += [*_approximation_findings(fit), *_chain_findings(fit, x), *_component_findings(fit, points, x)]
        if prior is not None:
            labels_hold = not any(finding.cause == "labels" for finding in findings)
            findings += _prior_findings(fit, points, len(x), prior, labels_hold)
        if tree is not None and not tree.attrs.get("relabelled"):  # else there is a finding about that
            findings += _sensitivity_findings(tree)
    else:
        what = "the mixture is" if fit.draws is None else f"{percent(1 - finite.mean())} of the draws are"
        findings.append(_finding("not finite", _SERIOUS, what=what))
    findings += _result_findings(fit, {finding.cause for finding in findings}, x)
    findings = [dataclasses.replace(finding, advice=advise(finding.advice, fit)) for finding in findings]
    title = f"{fit.engine} ({fit.family}, k={fit.mixture.num_components})"
    return Diagnosis(title, tuple(sorted(findings, key=lambda finding: -finding.severity)))


def _finding(text: str, severity: Severity, **evidence: object) -> Finding:
    """The finding with this text of the table, its numbers filled in."""
    words = _TEXTS[text]
    return Finding(text.partition(":")[0], severity, words["detail"].format(**evidence), words["advice"])


def _check(fit: Fit, x: Float[np.ndarray, "n d"], prior: object) -> None:
    if np.ndim(as_fit(fit).result):
        raise InputError(f"fit holds {np.size(fit.result)} fits; diagnose them one by one")
    rows_of_mixture(fit.mixture, x)
    if prior is not None:
        check_prior(prior, fit.mixture.num_components, fit.mixture.num_features, get_family(fit.family))


def _result_findings(fit: Fit, causes: set[str], x: Float[np.ndarray, "n d"]) -> Iterator[Finding]:
    """The result code, where no other finding reports the same."""
    code = fit.code
    if code is ResultCode.successful or causes & _ALSO_REPORTED_BY.get(code, set()):
        return
    detail, advice = explain(fit, x)
    serious = code in (ResultCode.nonfinite, ResultCode.collapsed, ResultCode.spurious, ResultCode.not_mixed)
    yield Finding(code.name.replace("_", " "), _SERIOUS if serious else _CAUTION, detail, advice)


def _sampler_findings(fit: Fit) -> Iterator[Finding]:
    """Divergences, trajectories that were cut short, and energies that change too slowly, of NUTS."""
    stats = {name: np.asarray(value) for name, value in fit.sample_stats.items()}
    if "diverging" in stats and (number := int(stats["diverging"].sum())):
        total = stats["diverging"].size
        severity = _SERIOUS if number / total > limits.MANY_DIVERGENCES else _CAUTION
        yield _finding("divergences", severity, number=number, total=total)
    most = fit.summary.get("max_tree_depth", int(limits.MAX_TREE_DEPTH))
    if "tree_depth" in stats and (share := (stats["tree_depth"] >= most).mean()) > 0:
        yield _finding("tree depth", _NOTE, share=percent(share), most=most)
    if "energy" in stats:
        from arviz_stats.base.array import array_stats

        with np.errstate(all="ignore"):  # the energy of a stuck chain does not vary
            e_bfmi: np.ndarray = np.array(array_stats.bfmi(stats["energy"]), ndmin=1)
        if (low := np.flatnonzero(e_bfmi < limits.MIN_E_BFMI)).size:
            evidence = {"least": e_bfmi[low].min(), "limit": limits.MIN_E_BFMI, "chains": listed("chain", low)}
            yield _finding("E-BFMI", _CAUTION, **evidence)


def _approximation_findings(fit: Fit) -> Iterator[Finding]:
    """Pareto k-hat of the ratios of the posterior to its approximation."""
    if fit.draws is None or "khat" not in fit.summary:
        return
    k_hat, limit = float(fit.summary["khat"]), limits.pareto_k_limit(int(np.prod(fit.draws.draw_shape)))
    if np.isnan(k_hat):
        yield _finding("k-hat: unknown", _CAUTION)
    elif k_hat > limit:
        # With as many digits as tell one from the other.
        digits = next(count for count in range(2, 20) if count == 19 or round(k_hat, count) > round(limit, count))
        evidence = {"k_hat": f"{k_hat:.{digits}f}", "limit": f"{limit:.{digits}f}"}
        yield _finding("k-hat", _CAUTION if k_hat <= 1 else _SERIOUS, **evidence)


def _chain_findings(fit: Fit, x: Float[np.ndarray, "n d"]) -> Iterator[Finding]:
    """Chains that are stuck, stay in different modes, disagree or are too short, and labels that do not agree.

    Draws of an approximation are independent: they are no chains.
    """
    if fit.draws is None or {"khat", "elbo"} & set(fit.summary):
        return
    stuck = (np.diff(np.asarray(fit.draws.means), axis=1) == 0).all((2, 3)).mean(1) > limits.MAX_REPEATED
    if "acceptance_rate" in fit.sample_stats:
        stuck |= np.asarray(fit.sample_stats["acceptance_rate"]).mean(1) < limits.MIN_ACCEPTANCE
    if stuck.any():
        yield _finding("stuck chain", _SERIOUS, chains=listed("chain", np.flatnonzero(stuck)), total=stuck.size)
    elif stuck.size == 1:
        yield _finding("one chain", _NOTE)
    if not stuck.all():
        log_density = {"lp": np.asarray(fit.sample_stats["lp"])[~stuck]} if "lp" in fit.sample_stats else {}
        found = chain_agreement.convergence(fit.draws[~stuck], x, extra=log_density)
        number = fit.summary.get("num_relabelled")
        relabelled = None if number is None else number / float(np.prod(fit.draws.draw_shape))
        yield from _agreement_findings(found, np.flatnonzero(~stuck), relabelled)


def _agreement_findings(
    found: chain_agreement.Convergence, chains: Int[np.ndarray, " chain"], relabelled: float | None
) -> Iterator[Finding]:
    """Several modes, or else R-hat and effective draws; disagreement of the labels only apart from any other.

    Args:
        found: convergence of the chains that move.
        chains: their numbers.
        relabelled: share of all draws whose components were renumbered, where it is known.
    """
    groups = [list(group) for group in chain_agreement.groups_of_chains(found.values)]
    if len(groups) > 1:  # R-hat and effective draws would report the same, less clearly
        level = found.values["log_likelihood"].mean(1)
        each = [f"{listed('chain', chains[group])} (log-likelihood {level[group].mean():.1f})" for group in groups]
        yield _finding("several modes", _SERIOUS, groups=" and ".join(each), r_hat=found.invariant.max_r_hat)
        return
    if moving := chain_agreement.chains_with_two_modes(found.values):
        name, seen_in = max(moving.items(), key=lambda item: len(item[1]))
        yield _finding("several modes: in a chain", _CAUTION, chains=listed("chain", chains[seen_in]), quantity=name)
    labels_only = relabelled != 0 and found.invariant.agrees and not found.labelled.agrees
    if labels_only:
        share = "" if relabelled is None else f", {percent(relabelled)} of which were relabelled"
        r_hats = {"labelled": found.labelled.max_r_hat, "invariant": found.invariant.max_r_hat}
        yield _finding("labels", _CAUTION, share=share, **r_hats)
    elif relabelled is not None and relabelled >= limits.MAX_RELABELLED and found.labelled.agrees:
        yield _finding("label switching", _NOTE, share=percent(relabelled))
    yield from _mixing_findings([found.invariant] if labels_only else [found.invariant, found.labelled])


def _mixing_findings(parts: Sequence[chain_agreement.ChainDiagnostics]) -> Iterator[Finding]:
    names = [name for part in parts for name in part.names]
    r_hats = np.concatenate([part.r_hat for part in parts])
    above, worst = r_hats > limits.MAX_R_HAT, int(r_hats.argmax())
    if above.any():
        severity = _SERIOUS if r_hats[worst] > limits.HOPELESS_R_HAT else _CAUTION
        evidence = {"worst": r_hats[worst], "name": names[worst], "number": above.sum(), "total": len(names)}
        yield _finding("R-hat", severity, limit=limits.MAX_R_HAT, **evidence)
    needed = int(limits.MIN_ESS_PER_CHAIN) * parts[0].num_chains
    few = []
    for where in ("bulk", "tail"):
        effective = np.concatenate([getattr(part, f"ess_{where}") for part in parts])
        if effective.min() < needed:
            few.append(f"{effective.min():.0f} for the {where} of {names[effective.argmin()]}")
    if few:
        each = limits.MIN_ESS_PER_CHAIN
        yield _finding("effective draws", _CAUTION, few=" and ".join(few), needed=needed, each=each)


def _component_findings(fit: Fit, points: Mixture, x: Float[np.ndarray, "n d"]) -> Iterator[Finding]:
    """Components with next to no rows, and those of a point that coincide or are much narrower than the data."""
    n, d = x.shape
    counts = n * _flatten_weights(points)
    needed = get_family(fit.family).min_component_rows(d)
    for text, least, severity in (
        ("empty component", 1, _CAUTION),
        ("few rows", needed, _NOTE if fit.has_prior else _CAUTION),
    ):
        few = counts < least
        if (share := few.any(1).mean()) >= limits.EMPTY_PROBABILITY:
            where = "" if fit.draws is None else f" in {percent(share)} of the draws"
            # Those to which it happens at least half as often as to the first of them.
            often = np.flatnonzero(few.mean(0) >= few.mean(0).max() / 2)
            which = f"{listed('component', often)} {'hold' if often.size > 1 else 'holds'}"
            yield _finding(text, severity, which=which, n=n, needed=needed, where=where)
            break
    if fit.draws is None and d and (groups := coincident(fit.mixture)):
        which = "; ".join(listed("component", group) for group in groups)
        yield _finding("coincident components", _CAUTION, which=which)
    if "passed_over" in fit.summary:
        yield _finding("higher maximum", _NOTE, gain=float(fit.summary["passed_over"]))
    if fit.draws is None and fit.code is not ResultCode.collapsed:
        widths = _measure_widths(fit.mixture, x)
        if (narrow := np.flatnonzero(widths < limits.MIN_WIDTH)).size:
            yield _finding("narrow component", _CAUTION, which=listed("component", narrow), least=widths.min())


def _flatten_weights(points: Mixture) -> Float[np.ndarray, "draws k"]:
    return np.exp(np.asarray(points.log_weights, np.float64)).reshape(-1, points.num_components)


def _measure_widths(mixture: Mixture, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " k"]:
    r"""$\min_v \sqrt{v^\top \Sigma_j v / v^\top S v}$ with S the covariance of the rows: no units, no coordinates."""
    factor = mixture.factor.dense(np.asarray(mixture.precision_factor, np.float64))
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
        ruled += _ruled_by_counts(n * _flatten_weights(points).mean(0), prior, fit.family)
    elif fit.draws is not None and labels_hold:
        ruled += _ruled_by_spread(fit.draws, prior)
    if distinguishes_components(prior) and (relabelled := fit.summary.get("num_relabelled")):
        sticks = not np.ptp(concentration) > 0
        yield _finding(f"labels of the prior{': of a stick' if sticks else ''}", _CAUTION, number=relabelled)
    if isinstance(prior, ConjugatePrior) and (share := prior.truncated_share) > limits.MAX_TRUNCATED:
        yield _finding("prior: of a truncated stick", _CAUTION, share=percent(share))
    if ruled:
        yield _finding("prior", _CAUTION, ruled="; ".join(ruled))


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
        if (ruled := np.flatnonzero((ratio > limits.MAX_SD_RATIO).any(1))).size:
            spread = f"up to {ratio.max():.2f} of the prior's standard deviation is left"
            yield f"{name} of {listed('component', ruled)} ({spread})"


def _sensitivity_findings(tree: "DataTree") -> Iterator[Finding]:
    from bayesgmm.diagnostics.leave_one_out import prior_sensitivity

    found = prior_sensitivity(tree, round_to=6)
    to_prior, to_data = (np.asarray(found[column], np.float64) for column in ("prior", "likelihood"))
    sensitive = to_prior > limits.MAX_SENSITIVITY
    if sensitive.any():
        weak = bool((to_data[sensitive] <= limits.MAX_SENSITIVITY).any())
        data = "some of them do not move with that of the data" if weak else "they move with that of the data too"
        evidence = {"number": sensitive.sum(), "total": sensitive.size, "limit": limits.MAX_SENSITIVITY, "data": data}
        most = {"name": found.index[int(to_prior.argmax())], "most": to_prior.max()}
        yield _finding("prior sensitivity", _CAUTION if weak else _NOTE, **evidence, **most)
