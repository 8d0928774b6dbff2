r"""What is wrong with a fit, in plain words, and what to try: one list, worst first.

`diagnose` looks at how the fit ended, at what the sampler said of itself, at the chains (by quantities that do not
depend on how components are numbered, then by labelled ones), at the approximation, at components that hold next to no
rows, and at what the prior decides in place of the data. A healthy fit has no findings.
"""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from bayesgmm.diagnostics.chains import approximation_findings, chain_findings, sampler_findings
from bayesgmm.diagnostics.findings import Diagnosis, Finding, Severity, listed, percent
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import get_family
from bayesgmm.mixtures.mixture import Mixture, rows_of_mixture
from bayesgmm.numerics.validation import as_rows, shown
from bayesgmm.priors.conjugate import AnyPrior, ConjugatePrior
from bayesgmm.priors.weakly_informative import WeaklyInformativePrior

if TYPE_CHECKING:
    from xarray import DataTree

EMPTY_PROBABILITY = 0.05
"""Posterior probability of next to no rows from which a component is told of: a choice of this package."""

MIN_WIDTH = 1e-3
"""Width of a component in its narrowest direction, in that of the data there: a choice of this package."""

MAX_SD_RATIO = math.sqrt(0.5)
"""Posterior over prior standard deviation, above which the data took away less than half of the prior variance."""

MAX_SENSITIVITY = 0.05
"""Of parameters to the power of the prior: Kallioinen, Paananen, Bürkner & Vehtari (2024)."""

_ALSO_SAID_BY = {
    ResultCode.not_mixed: {"R-hat", "effective draws", "several modes", "labels", "stuck chain"},
    ResultCode.divergent: {"divergences"},
    ResultCode.nonfinite: {"not finite"},
}


def diagnose(fit: Fit, x: Any, prior: AnyPrior | None = None, *, tree: "DataTree | None" = None) -> Diagnosis:
    """What is wrong with a fit by any engine, worst first, and what to try; empty for a healthy fit.

    Where chains stay in different modes that is told in place of R-hat, and where labels are the trouble, in place of
    what follows from it.

    Args:
        fit: one fit, outside `jit` and `vmap`.
        x: the rows that were fitted (n, d), each counted once.
        prior: its prior; without it nothing is said of what the prior decides.
        tree: its DataTree by `to_datatree`, for the sensitivity to the prior's power; of fits with draws.

    Raises:
        InputError: for several fits at once, rows of another number of features, a prior of another shape, fewer than 4
            draws a chain (8 of a single chain), or a tree without log prior densities.
    """
    x = np.asarray(as_rows(x))
    _check(fit, x, prior)
    points = fit.mixture if fit.draws is None else fit.draws
    finite = _is_finite(points)
    findings = list(sampler_findings(fit))
    if finite.all():
        findings += [*approximation_findings(fit), *chain_findings(fit, x), *_component_findings(fit, points, x)]
        if prior is not None:
            labels_hold = not any(finding.cause == "labels" for finding in findings)
            findings += _prior_findings(fit, points, len(x), prior, labels_hold)
        if tree is not None:
            findings += _sensitivity_findings(tree)
    else:
        what = "the mixture is" if fit.draws is None else f"{percent(1 - finite.mean())} of the draws are"
        advice = "look for huge values in the data, rescale its columns, or compute in float64"
        findings.append(Finding("not finite", Severity.serious, f"{what} infinite or no number", advice))
    findings += _how_it_ended(fit, {finding.cause for finding in findings})
    title = f"{fit.engine} ({fit.family}, k={fit.mixture.num_components})"
    return Diagnosis(title, tuple(sorted(findings, key=lambda finding: -finding.severity)))


def _check(fit: Fit, x: np.ndarray, prior: Any) -> None:
    if np.ndim(fit.result):
        raise InputError(f"fit holds {np.size(fit.result)} fits; diagnose them one by one")
    rows_of_mixture(fit.mixture, x)
    if prior is None:
        return
    if not isinstance(prior, WeaklyInformativePrior | ConjugatePrior):
        raise InputError(f"prior={shown(prior)} is no prior; give the one that was fitted with")
    shape = (len(prior.concentration), len(prior.column_mean))
    if shape != fit.mixture.means.shape:
        raise InputError(
            f"prior is for (k, d) = {shape}, the fit has {fit.mixture.means.shape}; give the one that was fitted with"
        )


def _is_finite(points: Mixture) -> Bool[np.ndarray, "*draws"]:
    """Whether a mixture, or each of its draws, is one; a weight may be 0."""
    fields = (np.exp(np.asarray(points.log_weights)), np.asarray(points.means), np.asarray(points.precision_factor))
    each = [np.isfinite(field).reshape(*points.draw_shape, -1).all(-1) for field in fields]
    return np.asarray(np.logical_and.reduce(each))


def _how_it_ended(fit: Fit, causes: set[str]) -> Iterator[Finding]:
    """The result code, where no finding has said it already."""
    code = fit.code
    if code is ResultCode.successful or causes & _ALSO_SAID_BY.get(code, set()):
        return
    found, _, advice = code.explanation.partition("; ")
    serious = code in (ResultCode.nonfinite, ResultCode.collapsed, ResultCode.not_mixed)
    yield Finding(code.name.replace("_", " "), Severity.serious if serious else Severity.caution, found, advice)


def _component_findings(fit: Fit, points: Mixture, x: np.ndarray) -> Iterator[Finding]:
    """Components that hold next to no rows, and those of a point that are much narrower than the data."""
    (n, d), family = x.shape, get_family(fit.family)
    counts = n * _weights_by_draw(points)
    needed = 1 if family.shared else 2 if family.diagonal else d + 1
    in_draws = "" if fit.draws is None else " in {} of the draws"
    if (share := (counts < 1).any(1).mean()) >= EMPTY_PROBABILITY:
        yield Finding(
            "empty component",
            Severity.caution,
            f"{_which((counts < 1).mean(0))} less than one of {n} rows{in_draws.format(percent(share))}",
            "fewer components: the data do not ask for this many; or, if all of them are known to be there, a larger "
            "concentration in the prior",
        )
    elif (share := (counts < needed).any(1).mean()) >= EMPTY_PROBABILITY:
        yield Finding(
            "few rows",
            Severity.caution if fit.engine == "em" else Severity.note,
            f"{_which((counts < needed).mean(0))} fewer rows than the {needed} that a covariance needs"
            f"{in_draws.format(percent(share))}",
            "fewer components, or a more restricted family",
        )
    if fit.draws is None and fit.code is not ResultCode.collapsed:
        widths = _widths(fit.mixture, x)
        if (narrow := np.flatnonzero(widths < MIN_WIDTH)).size:
            yield Finding(
                "narrow component",
                Severity.caution,
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


def _widths(mixture: Mixture, x: np.ndarray) -> Float[np.ndarray, " k"]:
    r"""$\min_v \sqrt{v^\top \Sigma_j v / v^\top S v}$ with S the covariance of the rows: no units, no coordinates."""
    factor = np.asarray(mixture.precision_factor, np.float64)
    if mixture.is_diagonal:
        factor = factor[..., None] * np.eye(mixture.num_features)
    covariance = np.cov(x, rowvar=False, bias=True, dtype=np.float64).reshape(2 * [mixture.num_features])
    largest = np.linalg.eigvalsh(factor @ covariance @ np.swapaxes(factor, 1, 2))[:, -1]
    return np.broadcast_to(1 / np.sqrt(largest), mixture.num_components)


def _prior_findings(fit: Fit, points: Mixture, n: int, prior: AnyPrior, labels_hold: bool) -> Iterator[Finding]:
    """Where the posterior is hardly narrower than the prior, or the prior counts for more rows than there are."""
    told = []
    if (counted := float(np.sum(np.asarray(prior.concentration)))) > n:
        told.append(f"weights (it counts for {counted:.0f} rows, the data for {n})")
    if isinstance(prior, ConjugatePrior):
        told += _ruled_by_counts(n * _weights_by_draw(points).mean(0), prior, fit.family)
    elif fit.draws is not None and labels_hold:
        told += _ruled_by_spread(fit.draws, prior)
    concentration = np.asarray(prior.concentration)
    if np.ptp(concentration) > 0 and (permuted := fit.summary.get("num_relabelled")):
        yield Finding(
            "labels of the prior",
            Severity.caution,
            f"the prior tells components apart by their concentrations, but {permuted} draws were renumbered to match "
            "a pivot: parameters of single components are not those of the stated posterior",
            "equal concentrations; or only what has no labels: densities, similarity of rows, log-likelihood",
        )
    if told:
        yield Finding(
            "prior",
            Severity.caution,
            f"the prior says more than the data about {'; '.join(told)}",
            "fewer components or more rows; or, if the prior says what is known, vary it to see what changes",
        )


def _ruled_by_counts(counts: np.ndarray, prior: ConjugatePrior, family_name: str) -> Iterable[str]:
    family = get_family(family_name)
    of_covariances = counts.sum(keepdims=True) if family.shared else counts
    if family.isotropic:
        of_covariances = of_covariances * len(prior.mean)  # every feature of a row tells of the one variance
    for name, prior_rows, rows in (
        ("means", float(prior.shrinkage), counts),
        ("covariances", float(prior.dof), of_covariances),
    ):
        if (ruled := np.flatnonzero(rows < prior_rows)).size:
            where = "" if len(rows) < len(counts) else f" of {listed('component', ruled)}"
            yield f"{name}{where} (it counts for {prior_rows:.3g} rows, the data for as few as {rows.min():.2g})"


def _ruled_by_spread(draws: Mixture, prior: WeaklyInformativePrior) -> Iterable[str]:
    for name, values, prior_sd in (
        ("means", np.asarray(draws.means), np.asarray(prior.mean_scale)),
        ("scales", np.log(np.asarray(draws.scales)), prior.scales.log_sd),
    ):
        ratio = values.std((0, 1)) / prior_sd
        if (ruled := np.flatnonzero((ratio > MAX_SD_RATIO).any(1))).size:
            spread = f"up to {ratio.max():.2f} of the prior's standard deviation is left"
            yield f"{name} of {listed('component', ruled)} ({spread})"


def _sensitivity_findings(tree: "DataTree") -> Iterator[Finding]:
    from bayesgmm.diagnostics.datatree import prior_sensitivity

    found = prior_sensitivity(tree, round_to=6)
    to_prior, to_data = (np.asarray(found[column], np.float64) for column in ("prior", "likelihood"))
    sensitive = to_prior > MAX_SENSITIVITY
    if sensitive.any():
        weak = bool((to_data[sensitive] <= MAX_SENSITIVITY).any())
        yield Finding(
            "prior sensitivity",
            Severity.caution if weak else Severity.note,
            f"{sensitive.sum()} of {sensitive.size} parameters move with the power of the prior, most of all "
            f"{found.index[int(to_prior.argmax())]} ({to_prior.max():.2f}, above {MAX_SENSITIVITY}); "
            + ("some of them do not move with that of the data" if weak else "they move with that of the data too"),
            "vary the prior and see what changes; where prior and data disagree, ask which of them is wrong",
        )
