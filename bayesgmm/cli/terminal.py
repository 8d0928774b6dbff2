"""Tables that a person can read in a terminal, from a `Comparison`."""

import math
from collections.abc import Hashable
from typing import Any

from rich.table import Table

from bayesgmm.comparison.compare import Comparison
from bayesgmm.comparison.parameter_table import ParameterTable, with_uncertainty
from bayesgmm.engines.fit import Fit, ResultCode
from bayesgmm.engines.kmeans import KMeansFit
from bayesgmm.engines.registry import ENGINES
from bayesgmm.posterior.thresholds import MIN_COVERAGE, OVERCONFIDENT, UNDERCONFIDENT


def engine_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of engines."""
    header = ["engine", "log-lik.", "BIC", "AIC", "ICL", "ELPD-LOO", "seconds", "converged"]
    rows = []
    for row in comparison.table.to_dict("records"):
        elpd = "–" if math.isnan(row["elpd_loo"]) else f"{row['elpd_loo']:.1f} ± {row['elpd_loo_se']:.1f}"
        likelihoods = [row[name] for name in ("log_likelihood", "bic", "aic", "icl")]
        rows.append(
            [
                row["engine"],
                *("–" if math.isnan(value) else f"{value:.2f}" for value in likelihoods),
                elpd,
                f"{row['seconds']:.1f}",
                verdict(comparison.of_row(row["engine"])),
            ]
        )
    return header, rows


def agreement_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of hard assignments: what k-means makes small, and adjusted Rand indices."""
    partitions = {f"ari_{name}": f"ARI with {ENGINES[name].label}" for name in comparison.partitions}
    names = {"inertia": "inertia", **partitions, "ari_labels": "ARI with labels"}
    present = [name for name in names if comparison.table[name].notna().to_numpy().any()]
    rows = [
        [row["engine"], *(f"{row[name]:.4g}" if name == "inertia" else f"{row[name]:.3f}" for name in present)]
        for row in comparison.table.to_dict("records")
    ]
    return ["engine", *(names[name] for name in present)], rows


def verdict(fit: Fit | KMeansFit) -> str:
    """Whether a fit converged, with the evidence."""
    summary = fit.summary if isinstance(fit, Fit) else {}
    steps = f"{int(fit.num_steps)} steps"
    if isinstance(fit, Fit) and ENGINES[fit.engine].gives == "draws":
        evidence = f"R-hat {summary.get('r_hat', math.nan):.3f}"
        if "divergences" in summary:
            evidence += f", {summary['divergences']} divergences"
    else:
        evidence = f"{steps}, k-hat {summary['khat']:.2f}" if "khat" in summary else steps
    yes = "yes" if fit.code is ResultCode.successful else f"no: {fit.code.name.replace('_', ' ')}"
    return f"{yes} ({evidence})"


def component_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of parameters: one row for each, one column for each engine.

    Uncertainties that are far from the sampler's carry a mark (`flag_legend`). Of k-means, shares of the rows and
    centres.
    """
    table, partitions = comparison.parameters, comparison.partitions
    header = ["cluster", "quantity", *table.names, *partitions]
    rows = []
    for line in table.frame.to_dict("records"):
        cells = [
            with_uncertainty(line[name], line.get(f"{name} sd")) + _flag(line, name, table) for name in table.names
        ]
        cells += [
            _of_partition(partition, line["cluster"], line["quantity"], comparison.feature_names)
            for partition in partitions.values()
        ]
        rows.append([line["cluster"], line["quantity"], *cells])
    return header, rows


def _flag(line: dict[Hashable, Any], name: str, table: ParameterTable) -> str:
    """The mark of an uncertainty far from the reference's: their ratio, and the coverage of EM's interval."""
    if name not in line["flagged"]:
        return ""
    ratio = line[f"{name} ratio"]
    marks = [] if OVERCONFIDENT <= ratio <= UNDERCONFIDENT else [f"×{ratio:.2f}"]
    if name == table.likelihood and line[f"{name} coverage"] < MIN_COVERAGE:
        marks.append(f"{100 * line[f'{name} coverage']:.0f}%")
    return f" [{', '.join(marks)}]"


def flag_legend(table: ParameterTable) -> str:
    """What the brackets in the table of parameters mean, or nothing where it has none."""
    if not any(table.frame["flagged"]):
        return ""
    meaning = f"[×ratio]: of this sd to that of {table.reference}, where it is far from 1"
    if table.likelihood and (table.frame[f"{table.likelihood} coverage"] < MIN_COVERAGE).to_numpy().any():
        meaning += f"; [%]: of {table.reference} in EM's 95% interval, where it is little"
    return meaning


def _of_partition(partition: KMeansFit, cluster: str, quantity: str, feature_names: tuple[str, ...]) -> str:
    """A cluster's share of the rows or an entry of its centre; k-means does not estimate spread."""
    if quantity == "weight":
        return f"{partition.shares[int(cluster)]:.4g}"
    means = [f"mean {name}" for name in feature_names]
    return f"{partition.centres[int(cluster)][means.index(quantity)]:.4g}" if quantity in means else "–"


def candidate_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table over numbers of components."""
    header = ["k", "log-lik.", "parameters", "BIC", "AIC", "ICL", "converged"]
    rows = []
    for row in comparison.candidates.to_dict("records"):
        mark = " ←" if row["num_components"] == comparison.num_components else ""
        rows.append(
            [
                f"{row['num_components']}{mark}",
                f"{row['log_likelihood']:.2f}",
                str(row["num_parameters"]),
                *(f"{row[name]:.2f}" for name in ("bic", "aic", "icl")),
                "yes" if row["result"] == ResultCode.successful.name else f"no: {row['result'].replace('_', ' ')}",
            ]
        )
    return header, rows


def rich_tables(comparison: Comparison) -> list[Table]:
    """The tables of a comparison for a terminal."""
    tables = []
    if comparison.selected_by is not None:
        title = f"Number of components by EM; {comparison.selected_by.upper()} selects k = {comparison.num_components}"
        tables.append(_table(title, *candidate_rows(comparison), num_left=0))
    family = comparison.base.family
    title = f"k = {comparison.num_components}, family {family}: {len(comparison.x)} rows on one likelihood"
    tables.append(_table(title, *engine_rows(comparison), num_left=1))
    if comparison.has_agreement:
        title = "Hard assignments: sum of squares within clusters, agreement (1 is perfect, 0 is chance)"
        tables.append(_table(title, *agreement_rows(comparison), num_left=1))
    table = comparison.parameters
    tables.append(
        _table("Parameters (EM ± standard error, posterior mean ± sd)", *component_rows(comparison), num_left=2)
    )
    tables[-1].caption = "\n".join(filter(None, [flag_legend(table), *table.remarks])) or None
    tables[-1].caption_justify = "left"
    return tables


def _table(title: str, header: list[str], rows: list[list[str]], num_left: int) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        left = index < num_left or name == "converged"
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "converged")
    previous = None
    for row in rows:
        if num_left == 2 and previous not in (None, row[0]):
            table.add_section()
        previous = row[0]
        table.add_row(*row)
    return table
