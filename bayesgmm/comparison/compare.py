"""The main job: one data set, one mixture, several engines, one table on one likelihood."""

import dataclasses
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd

from bayesgmm.comparison.agreement import agreement_columns, check_labels, row_of_kmeans
from bayesgmm.comparison.parameter_table import ParameterTable, errors_of_em, parameter_table
from bayesgmm.comparison.plan import check_names, check_values, make_priors, planned_runs
from bayesgmm.diagnostics.criteria import information_criteria
from bayesgmm.diagnostics.datatree import to_datatree
from bayesgmm.diagnostics.diagnose import diagnose
from bayesgmm.diagnostics.findings import Diagnosis, Severity
from bayesgmm.diagnostics.loo import Loo, loo
from bayesgmm.engines.em import fit_em
from bayesgmm.engines.fit import COMPARED, DEFAULT_ENGINES, Fit, ResultCode
from bayesgmm.engines.kmeans import KMeansFit, fit_kmeans
from bayesgmm.engines.modes import em_optima
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import as_rows, enough_rows
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.numerics.validation import as_key, name_features, whole_number
from bayesgmm.posterior.thresholds import MAX_PARETO_K
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.standard_errors.intervals import Uncertainty

if TYPE_CHECKING:
    from xarray import DataTree

CRITERIA = ("bic", "aic", "icl")
_PACKAGES = ("bayesgmm", "jax", "numpyro", "arviz", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """Several engines' fits of the same mixture to the same rows.

    Attributes:
        x: the rows, shape (n, d).
        feature_names: names of the columns.
        fits: the fits by name: "em", "map", "vi (normal)", "vi (full rank)", "cavi", "gibbs", "nuts".
        trees: ArviZ DataTrees of the Bayesian fits, by the same names.
        table: one row for each fit: log-likelihood at its point, criteria, ELPD-LOO, inertia of its partition, adjusted
            Rand indices of that with k-means' and with the labels, seconds, and how it ended; and one for k-means.
        candidates: EM fits over the numbers of components that were asked for, with their criteria.
        selected_by: criterion that picked the number of components, None where only one was given.
        prior: prior of the Bayesian fits.
        diagnoses: what `diagnose` finds wrong with each fit.
        kmeans: partition by k-means, its clusters in the order of the EM fit's components; None unless asked for.
        labels: known classes of the rows (n), which no engine sees; None where there are none.
        errors: standard errors of the EM fit, by its observed information; None where there are too many parameters.
    """

    x: np.ndarray
    feature_names: tuple[str, ...]
    fits: dict[str, Fit]
    trees: dict[str, "DataTree"]
    table: pd.DataFrame
    candidates: pd.DataFrame
    selected_by: str | None
    prior: AnyPrior
    diagnoses: dict[str, Diagnosis]
    kmeans: KMeansFit | None = None
    labels: np.ndarray | None = None
    errors: Uncertainty | None = None

    @property
    def parameters(self) -> ParameterTable:
        """Every parameter by engine, beside what each is sure of, and where that cannot be believed."""
        return parameter_table(self.fits, self.errors, feature_names=self.feature_names)

    @property
    def assignments(self) -> dict[str, np.ndarray]:
        """Hard assignments of the rows (n) by the point of every fit, and by k-means."""
        found = {name: np.asarray(fit.mixture.predict(self.x)) for name, fit in self.fits.items()}
        return found if self.kmeans is None else {**found, "kmeans": self.kmeans.labels}

    def of_row(self, name: str) -> Fit | KMeansFit:
        """What a row of the table is of."""
        return self.kmeans if name == "kmeans" and self.kmeans is not None else self.fits[name]

    @property
    def has_agreement(self) -> bool:
        """Whether there is something to compare partitions with: k-means, or known classes."""
        return self.kmeans is not None or self.labels is not None

    @property
    def num_components(self) -> int:
        """Number of components of the compared mixture."""
        return self.fits["em"].mixture.num_components

    @property
    def cautions(self) -> list[tuple[str, str]]:
        """What a reader of the table must know: (name of the fit, sentence), worst first."""
        found = [
            (finding.severity, name, f"{finding.cause}: {finding.detail}; {finding.advice}")
            for name, diagnosis in self.diagnoses.items()
            for finding in diagnosis
            if finding.severity > Severity.note
        ]
        leaning = [
            (
                row["engine"],
                f"the largest Pareto k of leave-one-out is {row['max_pareto_k']:.2f}, above {MAX_PARETO_K}: its "
                "ELPD-LOO leans on rows whose terms are unreliable",
            )
            for row in self.table.to_dict("records")
            if row["max_pareto_k"] > MAX_PARETO_K
        ]
        found.sort(key=lambda one: -one[0])
        return [(name, sentence) for _, name, sentence in found] + leaning


def compare(
    x: Any,
    num_components: Any,
    *,
    family: str | Family = "full",
    engines: Sequence[str] = DEFAULT_ENGINES,
    key: Any,
    feature_names: Sequence[str] | None = None,
    select_by: str = "bic",
    guides: Sequence[str] = ("full_rank",),
    prior: str = "weakly_informative",
    prior_settings: Mapping[str, Any] | None = None,
    em: Mapping[str, Any] | None = None,
    map: Mapping[str, Any] | None = None,
    vi: Mapping[str, Any] | None = None,
    cavi: Mapping[str, Any] | None = None,
    gibbs: Mapping[str, Any] | None = None,
    nuts: Mapping[str, Any] | None = None,
    kmeans: Mapping[str, Any] | None = None,
    labels: Any = None,
    on_progress: OnProgress | None = None,
    on_step: OnProgress | None = None,
) -> Comparison:
    """Fit one mixture by several engines and put the fits side by side.

    Args:
        x: rows (n, d); a pandas DataFrame gives its column names to the features.
        num_components: k, or several: then EM fits each, the criterion `select_by` picks one, and the other engines
            fit that one.
        family: covariance family.
        engines: which engines to run; "em" is always among them, because the others start from its fit. "cavi" and
            "gibbs" need the conjugate prior. "kmeans" is no mixture: its partition is put beside those of the others.
        key: `jax.random.key(seed)`.
        feature_names: names of the columns.
        select_by: "bic", "aic" or "icl".
        guides: guides of the variational engine: "normal", "full_rank", "low_rank".
        prior: "weakly_informative" (`default_prior`) or "conjugate" (`conjugate_prior`): one for all Bayesian engines,
            so that they are ways to the same posterior.
        prior_settings: keyword arguments of that function.
        em: further keyword arguments of `fit_em`; likewise `map`, `vi`, `cavi`, `gibbs`, `nuts` and `kmeans` of theirs.
        labels: known classes of the rows (n), numbers or text, to judge partitions by; missing ones are left out.
        on_progress: called with a sentence whenever something starts.
        on_step: called with a sentence about once a second while a sampler runs.

    Ctrl-C ends a sampler with what it has drawn, and no further engine is run; fits that were made before are kept.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
        KeyboardInterrupt: for Ctrl-C before a Bayesian engine has ended or drawn.
    """
    family = get_family(family)
    table, rows, key = x, as_rows(x), as_key(key)
    x = np.asarray(rows.values)
    names = name_features(feature_names, x.shape[1], table)
    given: Any = num_components
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    counts = sorted({whole_number("num_components", count) for count in several})
    if not counts:
        raise InputError("num_components is empty; give one number or several")
    unknown = [engine for engine in engines if engine not in COMPARED]
    if unknown:
        raise InputError(f"engines has {unknown[0]!r}; choose from {', '.join(COMPARED)}")
    if select_by not in CRITERIA:
        raise InputError(f"select_by={select_by!r} is not known; choose one of {', '.join(CRITERIA)}")
    for count in counts:
        enough_rows(rows, count, family)
    labels = check_labels(labels, len(x))
    priors = make_priors(x, counts, family, prior, prior_settings, engines)
    em_key, *engine_keys, tree_key = jax.random.split(key, 6)
    engine_keys += list(jax.random.split(jax.random.fold_in(key, 1), 4))
    settings = {"map": map, "vi": vi, "cavi": cavi, "gibbs": gibbs, "nuts": nuts}
    runs = planned_runs(engines, guides, engine_keys, settings, on_step)
    check_names("em", fit_em, em, ("x", "num_components", "family", "key", "on_failure"))
    if "kmeans" in engines:
        check_names("kmeans", fit_kmeans, kmeans, ("x", "num_components", "key"))
        check_values("kmeans", fit_kmeans, kmeans or {})
    tell = on_progress or (lambda _: None)

    seconds: dict[str, float] = {}
    candidates: list[dict[str, Any]] = []
    em_fits: dict[int, Fit] = {}
    for count in counts:
        tell(f"EM, k = {count}")
        began = time.perf_counter()
        fit = fit_em(x, count, family=family, key=em_key, on_failure="ignore", **(em or {}))
        em_fits[count] = fit
        candidates.append(_candidate(fit, x, time.perf_counter() - began))
    frame = pd.DataFrame(candidates)
    selected = _select(frame, select_by)
    fits = {"em": em_fits[selected]}
    seconds["em"] = float(frame.loc[frame["num_components"] == selected, "seconds"].iloc[0])
    numbers = priors[selected]

    partition = None
    if "kmeans" in engines:
        tell(f"k-means, k = {selected}")
        began = time.perf_counter()
        partition = fit_kmeans(x, selected, **{"key": jax.random.fold_in(key, 2), **(kmeans or {})})
        seconds["kmeans"] = time.perf_counter() - began
        partition = partition.matched_to(np.asarray(fits["em"].mixture.predict(x)))

    options = {"family": family, "prior": numbers, "on_failure": "ignore"}
    # The fit in the table comes first: its labels are kept.
    starts = [fits["em"].mixture]
    for run in runs:
        needed, name = run.num_starts, run.name
        began = time.perf_counter()
        try:
            if len(starts) < needed:
                tell(f"further ends of EM, k = {selected}")
                more_key = jax.random.fold_in(em_key, len(starts))
                starts += em_optima(x, selected, family, needed - len(starts), key=more_key, **(em or {}))
                began = time.perf_counter()
            tell(f"{name}, k = {selected}")
            start = starts[:needed] if needed > 1 else starts[0]
            fits[name] = run.function(x, selected, start=start, **run.options, **options)
        except KeyboardInterrupt:  # whoever stopped it wants to see what there is
            if len(fits) == 1:
                raise
            tell(f"interrupted: {name} has no result, and no further engine is run")
            break
        seconds[name] = time.perf_counter() - began
        if fits[name].code is ResultCode.interrupted:
            tell("interrupted: no further engine is run")
            break

    tell("standard errors")
    errors = errors_of_em(fits["em"], x, (em or {}).get("row_weights"))
    trees: dict[str, DataTree] = {}
    leave_one_out: dict[str, Loo | None] = {}
    for name, fit in fits.items():
        if fit.engine != "em":
            tell(f"diagnostics of {name}")
            trees[name] = to_datatree(fit, x, prior=numbers, key=tree_key, feature_names=names)
            leave_one_out[name] = loo(trees[name])
    tell("judgement")
    diagnoses = {name: diagnose(fit, x, None if fit.engine == "em" else numbers) for name, fit in fits.items()}
    rows = [_row(name, fit, x, leave_one_out.get(name), seconds[name]) for name, fit in fits.items()]
    comparison = Comparison(
        x=x,
        feature_names=names,
        fits=fits,
        trees=trees,
        table=pd.DataFrame(),
        candidates=frame,
        selected_by=select_by if len(counts) > 1 else None,
        prior=numbers,
        diagnoses=diagnoses,
        kmeans=partition,
        labels=labels,
        errors=errors,
    )
    if partition is not None:
        rows.append(row_of_kmeans(partition, rows[0], seconds["kmeans"]))
    agreement = agreement_columns(x, comparison.assignments, partition, labels)
    return dataclasses.replace(comparison, table=pd.DataFrame(rows).assign(**agreement))


def _candidate(fit: Fit, x: np.ndarray, seconds: float) -> dict[str, Any]:
    found = information_criteria(fit, x)
    return {
        "num_components": fit.mixture.num_components,
        **vars(found),
        "num_steps": int(fit.num_steps),
        "result": fit.code.name,
        "seconds": seconds,
    }


def _select(candidates: pd.DataFrame, select_by: str) -> int:
    """The number of components of smallest criterion, among the fits that converged (all fits, if none did)."""
    converged = candidates[candidates["result"] == ResultCode.successful.name]
    pool = converged if len(converged) else candidates
    return int(np.asarray(pool["num_components"])[np.argmin(pool[select_by])])


def _row(name: str, fit: Fit, x: np.ndarray, leave_one_out: Loo | None, seconds: float) -> dict[str, Any]:
    found = information_criteria(fit, x)
    nothing = float("nan")
    return {
        "engine": name,
        "family": fit.family,
        "num_components": fit.mixture.num_components,
        **vars(found),
        "elpd_loo": leave_one_out.elpd if leave_one_out else nothing,
        "elpd_loo_se": leave_one_out.se if leave_one_out else nothing,
        "max_pareto_k": leave_one_out.max_pareto_k if leave_one_out else nothing,
        "r_hat": fit.summary.get("r_hat", nothing),
        "ess_bulk": fit.summary.get("ess_bulk", nothing),
        "divergences": fit.summary.get("divergences", nothing),
        "khat": fit.summary.get("khat", nothing),
        "num_steps": int(fit.num_steps),
        "seconds": seconds,
        "result": fit.code.name,
        "message": fit.code.explanation,
    }


def provenance() -> dict[str, Any]:
    """Versions, device and time: what a reader needs to run the same comparison again."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": platform.machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def parameters(fit: Fit | KMeansFit) -> dict[str, Any]:
    """Weights, means and covariances of a fit's point, with posterior standard deviations where it has draws.

    Of k-means, the shares of the rows and the centres.
    """
    if isinstance(fit, KMeansFit):
        return {"shares": fit.shares.tolist(), "centres": fit.centres.tolist()}
    mixture = fit.mixture
    found: dict[str, Any] = {
        "weights": np.asarray(mixture.weights).tolist(),
        "means": np.asarray(mixture.means).tolist(),
        "covariances": np.asarray(mixture.covariances).tolist(),
    }
    if fit.draws is not None:
        found["weights_sd"] = np.asarray(fit.draws.weights).std((0, 1), ddof=1).tolist()
        found["means_sd"] = np.asarray(fit.draws.means).std((0, 1), ddof=1).tolist()
    return found
