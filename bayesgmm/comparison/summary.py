"""What a comparison found, in sentences: how many components, which clusters, whether engines agree, what to do next.

Every sentence follows from numbers by a rule, and every rule is a function of numbers alone. A rule that has nothing to
report gives no sentence.
"""

import dataclasses
import html
import math
import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from bayesgmm.diagnostics.agreement import known
from bayesgmm.diagnostics.findings import Diagnosis, Finding, Severity
from bayesgmm.engines.fit import ResultCode
from bayesgmm.engines.registry import ENGINES
from bayesgmm.mixtures.discrimination import column_separations
from bayesgmm.numerics.thresholds import OVERCONFIDENT, UNDERCONFIDENT
from bayesgmm.numerics.words import counted, few_of, listed
from bayesgmm.runtime.printing import Readable, with_uncertainty
from bayesgmm.standard_errors.parameters import ParameterTable

if TYPE_CHECKING:
    from bayesgmm.comparison.comparing import Comparison

_WIDTH = 100
_MOST_COLUMNS = 3  # that a cluster is described by
_CLEAR = 0.9  # largest responsibility from which on a row belongs to its cluster
_AGREES = 0.5  # posterior standard deviations up to which two estimates are called equal
_CRITERIA = ("aic", "bic", "icl")  # from the smallest charge for a parameter

# Differences up to which the evidence for the smaller criterion is called so. Of BIC, and of ICL, which approximates
# the evidence of another likelihood: Kass & Raftery (1995), section 3.2; of AIC: Burnham & Anderson (2002), 2.6.
_BAYES_FACTORS = ((2.0, "hardly any evidence"), (6.0, "positive evidence"), (10.0, "strong evidence"))
_MOST_EVIDENCE = "very strong evidence"
_AIC_SUPPORT = ((2.0, "which has substantial support too"), (10.0, "which has considerably less support"))
_LEAST_SUPPORT = "which has essentially no support"
_SAME_ELPD = 4.0  # differences of leave-one-out that models cannot be told apart by: Sivula et al. (2025), section 5


@dataclass(frozen=True)
class Cluster:
    """One cluster of the engine that is read.

    Attributes:
        number: its number, from 0.
        num_rows: rows that are assigned to it.
        share: its weight with its uncertainty, in percent.
        place: its mean with its uncertainty in the columns that tell it from the others, most telling first.
        certainty: mean of the largest responsibilities of its rows; NaN without rows.
        num_between: rows among them that belong to it with a probability below 0.9.
    """

    number: int
    num_rows: int
    share: str
    place: tuple[str, ...]
    certainty: float
    num_between: int

    def __str__(self) -> str:
        place = f": {', '.join(self.place)}" if self.place else ""
        return f"{self.number}: {counted(self.num_rows, 'row')}, {self.share}{place}; {self.separation}"

    @property
    def separation(self) -> str:
        """How well it is separated, in words."""
        if not self.num_rows:
            return "no row is assigned to it"
        verb = "belongs" if self.num_between == 1 else "belong"
        between = f"{counted(self.num_between, 'row')} {verb} to it" if self.num_between else "none"
        return f"mean responsibility {self.certainty:.3f}, {between} with less than {100 * _CLEAR:.0f} %"


@dataclass(frozen=True)
class Agreement:
    """How far an engine is from the reference, over all parameters.

    Attributes:
        distance: largest distance of its estimate from the reference's mean, in the reference's standard deviations.
        farthest: the parameter at which.
        narrowest: smallest ratio of its standard deviation to the reference's; NaN where it has none.
        narrowest_at: the parameter at which.
        widest: the largest ratio.
        widest_at: the parameter at which.
    """

    distance: float
    farthest: str
    narrowest: float = math.nan
    narrowest_at: str = ""
    widest: float = math.nan
    widest_at: str = ""


@dataclass(frozen=True)
class Summary(Readable):
    """What a comparison found, in sentences. It prints as text, and shows as HTML in a notebook.

    Attributes:
        title: rows, columns and family.
        components: how many components, how decisively, and what the other criteria prefer.
        clusters: each cluster of the engine that is read.
        read: that engine.
        engines: which engine to read and why, how far the others are from it, and what stands against each.
        classes: how well known classes are met; nothing where there are none.
        cross_table: rows by class and cluster, or None.
        next_steps: what to do where something is wrong; nothing where nothing is.
    """

    title: str
    components: tuple[str, ...]
    clusters: tuple[Cluster, ...]
    read: str
    engines: tuple[str, ...]
    classes: tuple[str, ...] = ()
    cross_table: pd.DataFrame | None = None
    next_steps: tuple[str, ...] = ()

    @property
    def sections(self) -> dict[str, tuple[str, ...]]:
        """The sentences by heading, without empty ones."""
        found = {
            "Components": self.components,
            f"Clusters ({self.read})": tuple(map(str, self.clusters)),
            "Engines": self.engines,
            "Known classes": self.classes,
            "Next": self.next_steps or ("nothing to mend",),
        }
        return {heading: sentences for heading, sentences in found.items() if sentences}

    def __str__(self) -> str:
        lines = [self.title]
        for heading, sentences in self.sections.items():
            lines += ["", heading]
            for sentence in sentences:
                lines += textwrap.wrap(sentence, _WIDTH, initial_indent="  ", subsequent_indent="      ")
            if heading == "Known classes" and self.cross_table is not None:
                lines += textwrap.indent(self.cross_table.to_string(), "  ").splitlines()
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<p><strong>{html.escape(self.title)}</strong></p>"]
        for heading, sentences in self.sections.items():
            items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
            parts.append(f"<p>{html.escape(heading)}</p><ul>{items}</ul>")
            if heading == "Known classes" and self.cross_table is not None:
                parts.append(self.cross_table.to_html(border=0))
        return "\n".join(parts)


def summarise(comparison: "Comparison") -> Summary:
    """Summarise a comparison; `Comparison.summary` is the public way."""
    table = comparison.parameters
    read, why = engine_to_read(
        {name: fit.code for name, fit in comparison.fits.items()},
        {name: ENGINES[fit.engine].gives for name, fit in comparison.fits.items()},
        comparison.diagnoses,
    )
    others = {name: agreement for name in table.names if (agreement := agreement_with(table, name)) is not None}
    engines = [f"read {read}: {why}"]
    engines += [f"{name} {words_of_agreement(found, str(table.reference))}" for name, found in others.items()]
    engines += [f"against {name}: {against}" for name, diagnosis in comparison.diagnoses.items()
                if (against := words_against(diagnosis))]  # fmt: skip
    engines += [f"{name} failed, see below" for name in comparison.failures if name not in comparison.fits]
    mixture = comparison.fits[read].mixture
    classes, cross_table = _meet_classes(comparison, read)
    rows, columns = counted(len(comparison.x), "row"), few_of(comparison.feature_names)
    responsibilities = np.asarray(mixture.responsibilities(comparison.x), np.float64)
    telling = np.argsort(-column_separations(mixture), axis=1, kind="stable")
    clusters = describe_clusters(responsibilities, telling, table, read, comparison.feature_names)
    components = [*words_of_count(comparison.candidates, comparison.num_components, comparison.selected_by)]
    if comparison.loo_over_k is not None:
        components += words_of_loo(comparison.loo_over_k, comparison.num_components)
    return Summary(
        title=f"{rows} of {columns}; mixtures of family {comparison.base.family}",
        components=tuple(components),
        clusters=tuple(clusters),
        read=read,
        engines=tuple(engines),
        classes=tuple(classes),
        cross_table=cross_table,
        next_steps=tuple(_next_steps(comparison, read)),
    )


def words_of_count(candidates: pd.DataFrame, chosen: int, select_by: str | None) -> Iterator[str]:
    """How many components, by which criterion, how decisively, and what the other criteria prefer.

    Args:
        candidates: a line for each number of components: "num_components", the criteria and "result".
        chosen: the number that was chosen.
        select_by: by which criterion; None where only one number was given.
    """
    if select_by is None:
        yield f"k = {chosen}, the only number that was tried"
        return
    lines = candidates.to_dict("records")
    converged = [line for line in lines if line["result"] == ResultCode.successful.name] or lines
    tried = [line["num_components"] for line in lines]
    usable = [line for line in converged if not math.isnan(line[select_by])]
    name, ranked = select_by.upper(), sorted(usable, key=lambda line: line[select_by])
    if len(ranked) < 2:
        yield f"k = {chosen} by {name} among {_ranged(tried)}: no other fit converged"
        return
    first, second = ranked[:2]
    difference = words_of_difference(select_by, second[select_by] - first[select_by])
    yield f"k = {chosen} by {name} among {_ranged(tried)}; {difference} k = {second['num_components']}"
    if left_out := sorted({*tried} - {line["num_components"] for line in usable}):
        yield f"k = {_ranged(left_out)} left out: no fit that converged"
    others = [name for name in _CRITERIA if name != select_by]
    preferred = {name: min(usable, key=lambda line: line[name])["num_components"] for name in others}
    if agreeing := [name.upper() for name, count in preferred.items() if count == chosen]:
        yield f"{listed(agreeing)} {'agrees' if len(agreeing) == 1 else 'agree'}"
    for name, count in preferred.items():
        if count != chosen:
            yield f"{name.upper()} prefers k = {count}: {_why(name, count > chosen, select_by)}"


def words_of_loo(table: pd.DataFrame, chosen: int) -> Iterator[str]:
    """Which number of components predicts best by leave-one-out, and whether that can be told.

    Args:
        table: of `compare_loo`, best first, with `num_bad`.
        chosen: the number that was chosen by a criterion.
    """
    lines = table.to_dict("records")
    best, second = lines[:2]
    name, unreliable = f"leave-one-out by {best['engine']}", {line["num_components"]: _doubt(line) for line in lines}
    if doubt := unreliable[best["num_components"]]:
        yield f"{name} is highest at k = {best['num_components']}, which cannot be relied on: {doubt}"
        return
    other = second if best["num_components"] == chosen else {line["num_components"]: line for line in lines}.get(chosen)
    if other is None:
        yield f"{name} is highest at k = {best['num_components']}, and there is none at k = {chosen}"
        return
    ahead, error = abs(other["elpd_diff"]), other["dse"]
    told = "too little to tell them apart" if ahead < max(_SAME_ELPD, 2 * error) else "more than chance makes"
    verb = "agrees" if best["num_components"] == chosen else "prefers"
    yield (
        f"{name} {verb}{'' if verb == 'agrees' else f' k = {best["num_components"]}'}: it is {ahead:.1f} ± {error:.1f} "
        f"ahead of k = {other['num_components']}, {told}"
    )
    if doubts := [count for count, doubt in sorted(unreliable.items()) if doubt]:
        yield f"leave-one-out of k = {_ranged(doubts)} cannot be relied on: {unreliable[doubts[0]]}"


def _doubt(line: Mapping[Hashable, Any]) -> str:
    """Why a line of leave-one-out cannot be relied on; empty where it can."""
    if line["result"] != ResultCode.successful.name:
        return f"the fit ended {line['result'].replace('_', ' ')}"
    return f"the Pareto k of {counted(int(line['num_bad']), 'row')} is too large" if line["num_bad"] else ""


def _ranged(counts: Sequence[int]) -> str:
    """Numbers in words, those in a row by their first and last."""
    counts = sorted(counts)
    in_a_row = len(counts) > 2 and counts[-1] - counts[0] == len(counts) - 1
    return f"{counts[0]} to {counts[-1]}" if in_a_row else listed(map(str, counts))


def words_of_difference(criterion: str, behind: float) -> str:
    """How decisively a criterion prefers the first to the second, in words that end before the second."""
    number = f"{behind:.1f}" if behind < 100 else f"{behind:.0f}"
    if criterion == "aic":
        support = next((words for most, words in _AIC_SUPPORT if behind <= most), _LEAST_SUPPORT)
        return f"it is {number} ahead of the runner-up, {support}:"
    evidence = next((words for most, words in _BAYES_FACTORS if behind <= most), _MOST_EVIDENCE)
    return f"it is {number} ahead, {evidence} against"


def _why(criterion: str, more: bool, select_by: str) -> str:
    """What it usually means that a criterion prefers more or fewer components than that which selects."""
    if criterion == "icl" and not more:
        return "components overlap, so that some clusters are made of several components"
    if (criterion, select_by) == ("bic", "icl") and more:
        return "its further components overlap, and ICL counts clusters rather than components"
    charges_less = _CRITERIA.index(criterion) < _CRITERIA.index(select_by)
    charges = f"it charges {'less' if charges_less else 'more'} for a parameter"
    if more != charges_less:
        return f"unusual, for {charges}"
    return f"{charges}, and often takes several components for one cluster" if more else charges


def describe_clusters(
    responsibilities: Float[np.ndarray, "n k"],
    columns: Int[np.ndarray, "k d"],
    table: ParameterTable,
    read: str,
    feature_names: Sequence[str],
) -> Iterator[Cluster]:
    """Each cluster with its size, its place and its separation.

    Args:
        responsibilities: of the rows, by the engine that is read.
        columns: columns by how well they tell each component from the others.
        table: the parameters, with their uncertainties.
        read: that engine.
        feature_names: names of the columns.
    """
    lines = {(line["cluster"], line["quantity"]): line for line in table.frame.to_dict("records")}
    labels, largest = responsibilities.argmax(1), responsibilities.max(1)
    for number, telling in enumerate(columns):
        weight = lines[str(number), "weight"]
        own = largest[labels == number]
        names = [feature_names[column] for column in telling[:_MOST_COLUMNS]]
        places = [(name, lines[str(number), f"mean {name}"]) for name in names]
        yield Cluster(
            number=number,
            num_rows=len(own),
            share=f"{with_uncertainty(100 * weight[read], _sd_of(weight, read, 100.0))} %",
            place=tuple(f"{name} {with_uncertainty(line[read], _sd_of(line, read))}" for name, line in places),
            certainty=float(own.mean()) if len(own) else math.nan,
            num_between=int((own < _CLEAR).sum()),
        )


def _sd_of(line: Mapping, name: str, factor: float = 1.0) -> float | None:
    """The standard deviation of a line by a fit, where it has one."""
    return None if f"{name} sd" not in line else factor * line[f"{name} sd"]


def engine_to_read(
    codes: Mapping[str, ResultCode], kinds: Mapping[str, str], diagnoses: Mapping[str, Diagnosis]
) -> tuple[str, str]:
    """The fit to read, and why: the one that gives most, of those that may be used.

    Draws from the posterior give more than an approximation, and that more than a point; of two of a kind the one with
    milder findings is taken, then of points the first (EM has standard errors), else the last (NUTS after Gibbs). A fit
    with a serious finding is read only where all have one, and an approximation with a caution only before those.

    Args:
        codes: how each fit ended, by name.
        kinds: what each engine gives: "draws", "approximation" or "point".
        diagnoses: what stands against each.
    """
    order = {"point": 0, "approximation": 1, "draws": 2}
    worst = dict.fromkeys(codes, Severity.note)
    for name, code in codes.items():
        ended = Severity.note if code is ResultCode.successful else Severity.caution
        worst[name] = max(ended, diagnoses[name].worst or ended) if name in diagnoses else ended
    names = list(codes)
    # An approximation that misses part of the posterior gives less than a point that is what it says.
    limits = {name: Severity.caution if kinds[name] == "approximation" else Severity.serious for name in names}
    preferred = {name: -place if kinds[name] == "point" else place for place, name in enumerate(names)}
    usable = {name: worst[name] < limits[name] for name in names}
    read = max(names, key=lambda name: (usable[name], order[kinds[name]], -worst[name], preferred[name]))
    gives = {
        "draws": "draws from the posterior",
        "approximation": "an approximation of the posterior",
        "point": "a point without a posterior",
    }[kinds[read]]
    why = {
        Severity.note: "without problems",
        Severity.caution: "with a caution",
        Severity.serious: "with serious problems",
    }[worst[read]]
    passed = [name for name in names if order[kinds[name]] > order[kinds[read]]]
    instead = f"; of {listed(passed)} more stands against" if passed else ""
    return read, f"{gives}, {why}{instead}"


def agreement_with(table: ParameterTable, name: str) -> Agreement | None:
    """How far a fit is from the reference; None where there is no reference, or it is the reference itself."""
    frame, reference = table.frame, table.reference
    if reference is None or name == reference:
        return None
    where = [f"cluster {line['cluster']}, {line['quantity']}" for line in frame.to_dict("records")]
    sd = np.asarray(frame[f"{reference} sd"])
    difference = np.abs(np.asarray(frame[name]) - np.asarray(frame[reference]))
    distance = np.divide(difference, sd, out=np.zeros(len(frame)), where=sd > 0)
    far = int(np.nanargmax(distance))
    found = Agreement(float(distance[far]), where[far])
    ratio = frame.get(f"{name} ratio")
    if ratio is None or ratio.isna().all():
        return found
    low, high = int(np.nanargmin(ratio)), int(np.nanargmax(ratio))
    return dataclasses.replace(
        found,
        narrowest=float(ratio.iloc[low]),
        narrowest_at=where[low],
        widest=float(ratio.iloc[high]),
        widest_at=where[high],
    )


def words_of_agreement(found: Agreement, reference: str) -> str:
    """Whether an engine agrees with the reference, in words."""
    if found.distance <= _AGREES:
        words = f"agrees with {reference}: at most {found.distance:.2f} posterior sd apart ({found.farthest})"
    else:
        words = f"is up to {found.distance:.1f} posterior sd from {reference} ({found.farthest})"
    if found.narrowest < OVERCONFIDENT:
        words += f"; overconfident: its sd is {found.narrowest:.2f} times as large ({found.narrowest_at})"
    if found.widest > UNDERCONFIDENT:
        words += f"; underconfident: its sd is {found.widest:.2f} times as large ({found.widest_at})"
    if found.narrowest >= OVERCONFIDENT and found.widest <= UNDERCONFIDENT:
        words += f"; its sd is {found.narrowest:.2f} to {found.widest:.2f} times as large"
    return words


def words_against(diagnosis: Diagnosis) -> str:
    """The worst finding, and how many more there are; nothing where there are notes at most."""
    serious = [finding for finding in diagnosis if finding.severity > Severity.note]
    if not serious:
        return ""
    more = f" (and {len(serious) - 1} more)" if len(serious) > 1 else ""
    return f"{serious[0].cause}: {serious[0].detail}{more}"


def _meet_classes(comparison: "Comparison", read: str) -> tuple[list[str], pd.DataFrame | None]:
    """How well known classes are met by the clusters of the engine that is read."""
    labels = comparison.labels
    if labels is None:
        return [], None
    index = float(comparison.table.set_index("engine").loc[read, "ari_labels"])
    are_known = known(labels)
    clusters = np.asarray(comparison.assignments[read])
    cross_table = pd.crosstab(
        pd.Series(labels[are_known].astype(str), name="class"), pd.Series(clusters[are_known], name="cluster")
    )
    return [words_of_classes(index, cross_table)], cross_table


def words_of_classes(index: float, cross_table: pd.DataFrame) -> str:
    """The adjusted Rand index, and how many rows are of the class that most rows of their cluster are of."""
    inside, total = int(cross_table.max(axis=0).sum()), int(cross_table.to_numpy().sum())
    return (
        f"adjusted Rand index {index:.3f} (1 is perfect, 0 is chance); {inside} of {total} rows are of the class that "
        "is most frequent in their cluster"
    )


def _next_steps(comparison: "Comparison", read: str) -> Iterator[str]:
    """What to do, worst first, each advice once."""
    yield from (f"data: {remark}" for remark in comparison.remarks)
    counts = comparison.candidates["num_components"]
    if comparison.selected_by is not None and comparison.num_components == counts.max():
        yield f"try more components: k = {comparison.num_components} is the largest number that was tried"
    found = [
        (finding.severity, name, finding)
        for name, diagnosis in comparison.diagnoses.items()
        for finding in diagnosis
        if finding.severity > Severity.note
    ]
    told: dict[str, list[str]] = {}
    for _, name, finding in sorted(found, key=lambda one: -one[0]):
        advice = words_of_advice(finding, _gives(comparison, name), read, _gives(comparison, read))
        told.setdefault(advice, []).append(name)
    yield from (f"{listed(names)}: {advice}" for advice, names in told.items())
    for name, error in comparison.failures.items():
        yield f"{name}: failed, {error_line(error)}"


def _gives(comparison: "Comparison", name: str) -> str:
    return ENGINES[comparison.fits[name].engine].gives


def words_of_advice(finding: Finding, gives: str, read: str, read_gives: str) -> str:
    """What to do about a finding; of an approximation beside draws from the posterior, to read those."""
    if gives == "approximation" and read_gives == "draws":
        return f"{finding.cause}: read {read}, which approximates nothing"
    return f"{finding.cause}: try {finding.advice}"


def error_line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
