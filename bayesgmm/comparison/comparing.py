"""The main job: one data set, one mixture, several engines, one table on one likelihood."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from bayesgmm.comparison.over_counts import loo_over_counts
from bayesgmm.comparison.plan import CRITERIA, Counts, Plan, check_counts, check_loo_run, make_priors, plan_runs
from bayesgmm.comparison.summary import Summary, error_line, summarise
from bayesgmm.datasets.columns import combined_columns, doubt_about
from bayesgmm.diagnostics.agreement import agreement_columns, check_labels
from bayesgmm.diagnostics.criteria import Criteria, information_criteria
from bayesgmm.diagnostics.datatree import to_datatree
from bayesgmm.diagnostics.diagnosis import diagnose
from bayesgmm.diagnostics.findings import Diagnosis, Severity
from bayesgmm.diagnostics.leave_one_out import Loo, loo
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.kmeans import KMeansFit
from bayesgmm.engines.modes import em_optima
from bayesgmm.engines.optima import split
from bayesgmm.engines.registry import DEFAULT_ENGINES
from bayesgmm.likelihood.rows import unweighted_rows
from bayesgmm.mixtures.families import Family, get_family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.keys import number_key
from bayesgmm.numerics.precision import KeyLike
from bayesgmm.numerics.validation import as_key, name_features, one_of
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.runtime.files import written_whole
from bayesgmm.runtime.printing import Readable
from bayesgmm.runtime.progress import Listener, NotebookDisplay, in_notebook, shown_by
from bayesgmm.runtime.stopwatch import Seconds, Stopwatch, ahead_for
from bayesgmm.standard_errors.intervals import Uncertainty
from bayesgmm.standard_errors.parameters import ParameterTable, errors_of_em, parameter_table
from bayesgmm.target.problem import make_problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataTree


@dataclass(frozen=True)
class Comparison(Readable):
    """Several engines' fits of the same mixture to the same rows.

    Attributes:
        x: the rows, shape (n, d).
        feature_names: names of the columns.
        fits: the fits by name, EM's first: "em", "map", "vi (normal)", "vi (full rank)", "cavi", "gibbs", "nuts".
        trees: ArviZ DataTrees of the Bayesian fits, by the same names.
        table: one row for each fit: log-likelihood at its point, criteria, ELPD-LOO, inertia of its partition, adjusted
            Rand indices of that with k-means' and with the labels, seconds of computing and those in which the run
            waited for programs to be compiled (`seconds_compiling`; their sum is the wall time), and how it ended; then
            one for each of the `partitions`.
        candidates: EM fits over the numbers of components that were asked for, with their criteria.
        selected_by: criterion that picked the number of components, None where only one was given.
        prior: prior of the Bayesian fits.
        diagnoses: what `diagnose` finds wrong with each fit.
        partitions: partitions by engines that fit no mixture, by name ("kmeans"), their clusters in the order of the EM
            fit's components.
        labels: known classes of the rows (n), which no engine sees; None where there are none.
        errors: standard errors of the EM fit, by its observed information; None where there are too many parameters.
        failures: the error that ended a fit, by its name ("nuts", or "em, k = 5" of a candidate), or that kept standard
            errors or diagnostics of a fit from being computed. `raise comparison.failures["nuts"]` shows where.
        remarks: sentences on columns that look like no measurements, or that are combinations of others.
        loo_over_k: leave-one-out of one engine's fits over the numbers of components, best first, as `compare_loo` has
            it, with `max_pareto_k` and `num_bad`; None where it was not asked for.
    """

    x: Float[np.ndarray, "n d"]
    feature_names: tuple[str, ...]
    fits: dict[str, Fit]
    trees: dict[str, "DataTree"]
    table: pd.DataFrame
    candidates: pd.DataFrame
    selected_by: str | None
    prior: AnyPrior
    diagnoses: dict[str, Diagnosis]
    partitions: dict[str, KMeansFit] = dataclasses.field(default_factory=dict)
    labels: Shaped[np.ndarray, " n"] | None = None
    errors: Uncertainty | None = None
    failures: dict[str, BaseException] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    loo_over_k: pd.DataFrame | None = None

    @property
    def base(self) -> Fit:
        """The fit by EM, at whose optima the others start."""
        return next(iter(self.fits.values()))

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def report(self, path: str | Path, *, title: str = "Gaussian mixture", source: str = "") -> Path:
        """Write the report as one HTML file: the summary, pictures, tables, diagnostics.

        Args:
            path: the file; one that is there is replaced.
            title: heading of the report.
            source: where the data are from, in words.

        Raises:
            InputError: for a path that cannot be written to.
        """
        from bayesgmm.comparison.report import About, render_report

        with written_whole(path) as file:
            file.write(render_report(self, About(title=title, source=source)).encode())
        return Path(path)

    def plot(self) -> "Axes | np.ndarray":
        """Draw the fit with its uncertainty: components of posterior draws, or of the point where none has any."""
        from bayesgmm.comparison.report import picture_of_fit

        return picture_of_fit(self)[0]()

    def summary(self) -> Summary:
        """What was found, in sentences: how many components, which clusters, whether the engines agree, what to do."""
        return self._summary

    @functools.cached_property  # the terminal, the report and three files ask for it
    def _summary(self) -> Summary:
        return summarise(self)

    @functools.cached_property
    def parameters(self) -> ParameterTable:
        """Every parameter by engine with its uncertainty, and where that is far from the reference's."""
        return parameter_table(self.fits, self.errors, feature_names=self.feature_names)

    @functools.cached_property
    def assignments(self) -> dict[str, Int[np.ndarray, " n"]]:
        """Hard assignments of the rows (n) by the point of every fit, and by every partition."""
        found = {name: np.asarray(fit.mixture.predict(self.x)) for name, fit in self.fits.items()}
        return found | {name: partition.labels for name, partition in self.partitions.items()}

    def of_row(self, name: str) -> Fit | KMeansFit | None:
        """The fit or the partition that a row of the table describes; None where the engine failed."""
        return self.partitions.get(name, self.fits.get(name))

    @property
    def has_agreement(self) -> bool:
        """Whether there is something to compare partitions with: another partition, or known classes."""
        return bool(self.partitions) or self.labels is not None

    @property
    def num_components(self) -> int:
        """Number of components of the compared mixture."""
        return self.base.mixture.num_components

    @property
    def cautions(self) -> list[tuple[str, str]]:
        """What a reader of the table must know: (name of the fit, or "data", sentence), worst first."""
        found = [
            (finding.severity, name, f"{finding.cause}: {finding.detail}; {finding.advice}")
            for name, diagnosis in self.diagnoses.items()
            for finding in diagnosis
            if finding.severity > Severity.note
        ]
        for row in self.table.query("num_bad_k > 0").to_dict("records"):
            unreliable = (
                f"the Pareto k of leave-one-out is up to {row['max_pareto_k']:.2f}, so its ELPD-LOO is unreliable for "
                f"{row['num_bad_k']:.0f} of {len(self.x)} rows"
            )
            found.append((Severity.note, row["engine"], unreliable))
        for name, error in self.failures.items():
            severity, lost = (Severity.caution, "in part") if name in self.fits else (Severity.serious, "it has no fit")
            found.append((severity, name, f"failed, {lost}: {error_line(error)}"))
        found = [(name, sentence) for _, name, sentence in sorted(found, key=lambda one: -one[0])]
        return [*(("data", sentence) for sentence in self.remarks), *found]


def compare(
    x: ArrayLike | pd.DataFrame,
    num_components: Counts,
    *,
    family: str | Family = "full",
    engines: Sequence[str] = DEFAULT_ENGINES,
    key: KeyLike,
    feature_names: Sequence[str] | None = None,
    select_by: str = "bic",
    loo_over_k: str | None = None,
    prior: str = "weakly_informative",
    prior_settings: Mapping[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    labels: ArrayLike | None = None,
    checkpoint: bool = False,
    on_progress: Listener | None = None,
    on_step: Listener | None = None,
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
        loo_over_k: an engine with draws that fits every number of components too, not only the one selected, for
            leave-one-out of each; by default none does, for it takes as many fits.
        prior: "weakly_informative" (`default_prior`) or "conjugate" (`conjugate_prior`): one for all Bayesian engines,
            so that they are ways to the same posterior.
        prior_settings: keyword arguments of that function.
        settings: further keyword arguments of the engines' functions by engine, such as
            `{"em": {"tol": 1e-8}, "vi": {"guide": ["normal", "full_rank"]}}`; of several guides each gives a fit.
        labels: known classes of the rows (n), numbers or text, to judge partitions by; missing ones are left out.
        checkpoint: whether long runs are saved in the user's cache folder once a minute, for the same call to resume.
        on_progress: called with a sentence whenever something starts; a notebook shows them if neither is given.
        on_step: called with a sentence whenever a sampler, or EM of many rows, has got further.

    Ctrl-C ends a sampler with what it has drawn, and no further engine is run; fits that were made before are kept. So
    they are where an engine fails, which then has a row in the table that says so.

    Raises:
        InputError: for arguments that cannot be fitted, before anything is compiled.
        Exception: what EM raised, where it has no fit at all.
        KeyboardInterrupt: for Ctrl-C before a Bayesian engine has ended or drawn.
    """
    family, key, rows = get_family(family), as_key(key), unweighted_rows(x)
    counts = check_counts(num_components, rows, family)
    display = NotebookDisplay() if on_progress is on_step is None and in_notebook() else None
    on_step = on_step if display is None else display.step
    offered = {"checkpoint": checkpoint, **({} if on_step is None else {"progress": on_step})}
    runs, tree_key = plan_runs(engines, settings or {}, offered, key)
    plan = Plan(
        rows=rows,
        feature_names=name_features(feature_names, rows.num_features, x),
        family=family,
        counts=counts,
        select_by=one_of("select_by", select_by, CRITERIA),
        labels=check_labels(labels, len(rows)),
        priors=make_priors(rows, counts, family, prior, prior_settings or {}, runs),
        base=runs[0],
        runs=runs[1:],
        tree_key=tree_key,
        loo_run=check_loo_run(loo_over_k, runs, counts),
    )
    tell = on_progress or (lambda _: None) if display is None else display.stage
    with display or shown_by(on_step):
        return _assess(plan, _fit(plan, tell), tell)


@dataclass(frozen=True)
class _Fitted:
    """Results by name, seconds that each took, candidates among which EM's was selected, its errors, and failures.

    And the optimum of EM for every number of components.
    """

    fits: dict[str, Fit]
    optima: dict[int, Mixture]
    partitions: dict[str, KMeansFit]
    seconds: dict[str, Seconds]
    candidates: pd.DataFrame
    errors: Uncertainty | None
    failures: dict[str, BaseException]


def _fit(plan: Plan, tell: Listener) -> _Fitted:
    """EM for each number of components, then the other engines for the one that the criterion selects."""
    x, failures = np.asarray(plan.rows.values), dict[str, BaseException]()
    optima, candidates = _fit_candidates(plan, x, tell, failures)
    index = _select(candidates, plan.select_by)
    best, count = optima[index], plan.counts[index]
    fits, partitions = {plan.base.name: best.named(plan.feature_names)}, {}
    seconds = {plan.base.name: Seconds(*map(float, candidates[_SECONDS].to_numpy()[index]))}
    shared = {"family": plan.family, "prior": plan.priors[count], "on_failure": "ignore"}
    # The fit in the table comes first: its labels are kept.
    starts, num_sought = [best.mixture], 1
    problem = make_problem(plan.rows, count, plan.family, plan.priors[count], jax.random.key(0))
    for run in plan.runs:
        with contextlib.suppress(Exception), ahead_for(run.name):  # the run will say what is wrong
            run.engine.compile_ahead(problem, run.arguments)
    tell("standard errors")  # while programs of the engines are compiled
    errors = _try(lambda: errors_of_em(best, x), plan.base.name, failures)
    for run in plan.runs:
        stopwatch = Stopwatch(run.name)
        try:
            with stopwatch:
                if num_sought < run.num_starts:
                    tell(f"further EM optima, k = {count}")
                    own = dict(plan.base.arguments)
                    key = number_key(own.pop("key"), num_sought)
                    starts += em_optima(plan.rows, count, plan.family, run.num_starts - num_sought, key=key, **own)
                    num_sought = run.num_starts
                    stopwatch.restart()
                tell(f"{run.engine.label if run.engine.gives == 'partition' else run.name}, k = {count}")
                start = starts[: run.num_starts] if run.num_starts > 1 else best.mixture
                found = run(plan.rows, count, start=start, **shared)
        except KeyboardInterrupt:  # whoever stopped it wants to see what there is
            if len(fits) == 1:
                raise
            tell(f"interrupted: {run.name} has no result, and no further engine is run")
            break
        except Exception as error:  # and of an engine that fails, what the others have computed
            failures[run.name], seconds[run.name] = error, stopwatch.seconds
            tell(f"{run.name} failed: {error_line(error)}")
            continue
        seconds[run.name] = stopwatch.seconds
        if run.engine.gives == "partition":
            partitions[run.name] = found.matched_to(np.asarray(best.mixture.predict(x)))
        else:
            fits[run.name] = found.named(plan.feature_names)
        if found.code is ResultCode.interrupted:
            tell("interrupted: no further engine is run")
            break
    at = {number: fit.mixture for number, fit in zip(plan.counts, optima, strict=True) if fit is not None}
    return _Fitted(fits, at, partitions, seconds, candidates, errors, failures)


def _fit_candidates(
    plan: Plan, x: Float[np.ndarray, "n d"], tell: Listener, failures: dict[str, BaseException]
) -> tuple[list[Any], pd.DataFrame]:
    """EM fits over the numbers of components, None where one failed, and their table."""
    optima, lines = [], []
    for count in plan.counts:
        tell(f"EM, k = {count}")
        name = plan.base.name if len(plan.counts) == 1 else f"{plan.base.name}, k = {count}"
        shared = {"family": plan.family, "on_failure": "ignore"}
        with Stopwatch(plan.base.name) as stopwatch:
            found = _try(functools.partial(plan.base, plan.rows, count, **shared), name, failures)
            before = next((one for one in reversed(optima) if one is not None), None)
            if found is not None and before is not None and _is_below(found, before):
                start = {"start": split(before.mixture, count, plan.family)}
                again = dataclasses.replace(plan.base, arguments=plan.base.arguments | start)
                other = _try(functools.partial(again, plan.rows, count, **shared), name, failures)
                found = other if other is not None and not _is_below(other, before) else found
                if found is not other:
                    tell(f"EM, k = {count}: a lower log-likelihood than with fewer components; raise num_restarts")
        optima.append(found)
        found = failures[name] if found is None else found
        lines.append(_line(plan.base.name, found, x, stopwatch.seconds, like=(plan.family, count)))
    if all(fit is None for fit in optima):
        raise next(iter(failures.values()))
    return optima, pd.DataFrame(lines, columns=_OF_CANDIDATES)


def _is_below(fit: Fit, other: Fit) -> bool:
    """Whether a fit is lower than that of fewer components, which no maximum is."""
    return bool(other.successful and fit.log_likelihood < other.log_likelihood)


def _try[R](make: Callable[[], R], name: str, failures: dict[str, BaseException]) -> R | None:
    """What is made, or None: then the error is kept by this name, and everything else stands."""
    try:
        return make()
    except Exception as error:
        failures[name] = error
        return None


def _assess(plan: Plan, fitted: _Fitted, tell: Listener) -> Comparison:
    """Standard errors, leave-one-out and diagnoses of the fits, and the table of it all."""
    x, fits, seconds, failures = np.asarray(plan.rows.values), fitted.fits, fitted.seconds, fitted.failures
    prior = plan.priors[next(iter(fits.values())).mixture.num_components]
    bayesian = {run.name for run in plan.runs if run.engine.prior != "none"}
    trees, lines, diagnoses, over_k, stopped = {}, [], {}, None, False

    def attempt[R](make: Callable[[], R], name: str) -> R | None:
        """What is made of a fit, unless that fails or somebody who will not wait for it stops it."""
        nonlocal stopped
        try:
            return None if stopped else _try(make, name, failures)
        except KeyboardInterrupt:
            stopped = True
            tell("interrupted: diagnostics that are not computed yet are left out")

    for name, fit in fits.items():
        leave_one_out = None
        if name in bayesian:
            tell(f"diagnostics of {name}")
            names = plan.feature_names
            make = functools.partial(to_datatree, fit, x, prior=prior, key=plan.tree_key, feature_names=names)
            if (tree := attempt(make, name)) is not None:
                trees[name] = tree
                leave_one_out = attempt(functools.partial(loo, tree), name)
        lines.append(_line(name, fit, x, seconds[name], leave_one_out))
    if (run := plan.loo_run) is not None:
        known = {trees[run.name].attrs["num_components"]: trees[run.name]} if run.name in trees else {}
        make = functools.partial(loo_over_counts, plan, run, fitted.optima, known, failures, tell)
        over_k = attempt(make, f"{run.name}, leave-one-out")
    tell("diagnoses")
    for name, fit in fits.items():
        found = attempt(functools.partial(diagnose, fit, x, prior if name in bayesian else None), name)
        diagnoses |= {} if found is None else {name: found}
    lines += [_line(name, partition, x, seconds[name]) for name, partition in fitted.partitions.items()]
    like = (plan.family, next(iter(fits.values())).mixture.num_components)
    lines += [
        _line(run.name, failures[run.name], x, seconds[run.name], like=like)
        for run in plan.runs
        if run.name in failures and run.name not in fits
    ]
    table = pd.DataFrame(lines)
    text = table.select_dtypes(exclude="number").columns
    table[text] = table[text].fillna("")
    comparison = Comparison(
        x=x,
        feature_names=plan.feature_names,
        fits=fits,
        trees=trees,
        table=table,
        candidates=fitted.candidates,
        selected_by=plan.select_by if len(plan.counts) > 1 else None,
        prior=prior,
        diagnoses=diagnoses,
        partitions=fitted.partitions,
        labels=plan.labels,
        errors=fitted.errors,
        failures=failures,
        remarks=tuple(_remarks(x, plan)),
        loo_over_k=over_k,
    )
    agreement = agreement_columns(x, comparison.assignments, fitted.partitions, plan.labels)
    return dataclasses.replace(comparison, table=table.join(pd.DataFrame(agreement)))  # rows of failures have none


def _remarks(x: Float[np.ndarray, "n d"], plan: Plan) -> Iterator[str]:
    """Sentences on columns that are hardly measurements, and on those that make covariances singular."""
    for name, values in zip(plan.feature_names, x.T, strict=True):
        if doubt := doubt_about(name, values):
            yield f"column {name!r} was fitted as a measurement, and {doubt}; leave it out if it is none"
    if not plan.family.diagonal:
        for sentence in combined_columns(x, plan.feature_names):
            yield f"{sentence}, so covariances are singular; leave one of them out, or choose a diagonal family"


def _select(candidates: pd.DataFrame, select_by: str) -> int:
    """Index of the smallest criterion, among the fits that converged (all fits, if none did)."""
    converged = (candidates["result"] == ResultCode.successful.name).to_numpy()
    values = np.nan_to_num(candidates[select_by].to_numpy(), nan=np.inf)
    return int(np.argmin(np.where(converged, values, np.inf) if converged.any() else values))


FAILED = "failed"
"""The result of an engine that raised an error, and has no fit with a `ResultCode`."""

_SECONDS = ["seconds", "seconds_compiling"]
_OF_CANDIDATES = ["num_components", *Criteria.__dataclass_fields__, "num_steps", "result", *_SECONDS]
_LOO_COLUMNS = {"elpd_loo": "elpd", "elpd_loo_se": "se", "max_pareto_k": "max_pareto_k", "num_bad_k": "num_bad"}


def _line(
    name: str,
    found: Fit | KMeansFit | BaseException,
    x: Float[np.ndarray, "n d"],
    seconds: Seconds,
    leave_one_out: Loo | None = None,
    *,
    like: tuple[Family, int] | None = None,
) -> dict[str, Any]:
    """A row of the table; a partition has no likelihood, and leaves most columns empty, as does what failed.

    `like` are the family and the number of components that a fit would have had.
    """
    took = {"seconds": seconds.computing, "seconds_compiling": seconds.compiling}
    if isinstance(found, BaseException):
        assert like is not None
        family, k = like
        shape = {"family": family.name, "num_components": k, "num_parameters": family.num_parameters(k, x.shape[1])}
        end = {"num_steps": 0, **took, "result": FAILED, "message": error_line(found)}
        return {"engine": name, **shape, **end}
    code = found.code
    message = code.explanation if isinstance(found, KMeansFit) else found.explanation
    end = {"num_steps": int(found.num_steps), **took, "result": code.name, "message": message}
    if isinstance(found, KMeansFit):
        k, d = found.centres.shape
        return {"engine": name, "num_components": k, "num_parameters": k * d, **end}
    return {
        "engine": name,
        "family": found.family,
        "num_components": found.mixture.num_components,
        **vars(information_criteria(found, x)),
        **{column: getattr(leave_one_out, field, np.nan) for column, field in _LOO_COLUMNS.items()},
        **{name: found.summary.get(name, np.nan) for name in ("r_hat", "ess_bulk", "divergences", "khat")},
        **end,
    }
