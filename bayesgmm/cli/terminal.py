"""Tables that a person can read, from a `Comparison`: their cells as text, and how a terminal shows them."""

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from bayesgmm.comparison.comparing import FAILED, Comparison
from bayesgmm.comparison.parameters import ParameterTable
from bayesgmm.comparison.summary import Summary
from bayesgmm.engines.fit import ResultCode
from bayesgmm.engines.kmeans import KMeansFit
from bayesgmm.engines.registry import BASE_ENGINE, ENGINES
from bayesgmm.posterior.presentation import with_uncertainty
from bayesgmm.posterior.thresholds import MIN_COVERAGE, OVERCONFIDENT, UNDERCONFIDENT

LEFT = {"engine", "converged", "cluster", "quantity", "where it is", "how well it is separated", "class"}
"""Columns of text; those of numbers are aligned on the right."""

_CRITERIA = {"BIC": "bic", "AIC": "aic", "ICL": "icl"}
_EVIDENCE = {"r_hat": "R-hat {:.3f}", "divergences": "{} divergences", "khat": "k-hat {:.2f}"}


def engine_table(comparison: Comparison) -> pd.DataFrame:
    """The engines side by side."""
    table = comparison.table
    elpds = zip(_numbers(table["elpd_loo"], ".1f"), _numbers(table["elpd_loo_se"], ".1f"), strict=True)
    cells = {
        "engine": table["engine"],
        **{title: _numbers(table[name]) for title, name in {"log-lik.": "log_likelihood", **_CRITERIA}.items()},
        "ELPD-LOO": [elpd if elpd == "–" else f"{elpd} ± {se}" for elpd, se in elpds],
        "seconds": _numbers(table["seconds"], ".1f"),
        "compiling": _numbers(table["seconds_compiling"], ".1f"),
        "converged": [f"{_ended(row)} ({_evidence(comparison, row)})" for row in table.to_dict("records")],
    }
    return pd.DataFrame(cells)


def agreement_table(comparison: Comparison) -> pd.DataFrame:
    """Hard assignments: what k-means makes small, and adjusted Rand indices."""
    partitions = {f"ari_{name}": f"ARI with {ENGINES[name].label}" for name in comparison.partitions}
    titles = {"inertia": "inertia", **partitions, "ari_labels": "ARI with labels"}
    found = comparison.table[["engine", *titles]].dropna(axis="columns", how="all")
    cells = {name: _numbers(found[name], ".4g" if name == "inertia" else ".3f") for name in found if name in titles}
    return found.assign(**cells).rename(columns=titles)


def component_table(comparison: Comparison) -> pd.DataFrame:
    """The parameters: one row for each, one column for each engine.

    Uncertainties that are far from the sampler's carry a mark (`flag_legend`). Of k-means, shares of the rows and
    centres.
    """
    table = comparison.parameters
    lines = table.frame.to_dict("records")
    cells: dict[str, Iterable[str]] = {name: table.frame[name] for name in ("cluster", "quantity")}
    for name in table.names:
        cells[name] = [with_uncertainty(one[name], one.get(f"{name} sd")) + _flag(one, name, table) for one in lines]
    for name, partition in comparison.partitions.items():
        known = _centres(partition, comparison.feature_names)
        cells[name] = _numbers((known.get((one["cluster"], one["quantity"]), math.nan) for one in lines), ".4g")
    return pd.DataFrame(cells)


def cluster_table(summary: Summary) -> pd.DataFrame:
    """The clusters of the engine that is read."""
    rows = [
        {
            "cluster": str(cluster.number),
            "rows": str(cluster.num_rows),
            "share": cluster.share,
            "where it is": ", ".join(cluster.place),
            "how well it is separated": cluster.separation,
        }
        for cluster in summary.clusters
    ]
    return pd.DataFrame(rows)


def in_parts(frame: pd.DataFrame, most: int) -> list[pd.DataFrame]:
    """The table cut into parts of so many columns at most, each after its columns of names."""
    names = [name for name in frame if name in LEFT]
    others = [name for name in frame if name not in LEFT]
    return [frame.loc[:, [*names, *others[start : start + most]]] for start in range(0, max(len(others), 1), most)]


def candidate_table(comparison: Comparison) -> pd.DataFrame:
    """The fits over numbers of components."""
    table = comparison.candidates
    cells = {
        "k": [f"{count}{' ←' if count == comparison.num_components else ''}" for count in table["num_components"]],
        "log-lik.": _numbers(table["log_likelihood"]),
        "parameters": table["num_parameters"].astype(str),
        **{title: _numbers(table[name]) for title, name in _CRITERIA.items()},
        "converged": [_ended(row) for row in table.to_dict("records")],
    }
    return pd.DataFrame(cells)


def _numbers(values: Iterable[float], style: str = ".2f") -> list[str]:
    """Numbers as text, a dash where there is none."""
    return ["–" if math.isnan(value) else format(value, style) for value in values]


def _ended(row: Mapping[Hashable, Any]) -> str:
    """Whether the fit of a row converged."""
    return "yes" if row["result"] == ResultCode.successful.name else f"no: {row['result'].replace('_', ' ')}"


def _evidence(comparison: Comparison, row: Mapping[Hashable, Any]) -> str:
    """What convergence is judged by: R-hat and divergences of chains, else steps, with k-hat of an approximation."""
    if row["result"] == FAILED:
        return type(comparison.failures[str(row["engine"])]).__name__
    summary = comparison.fits[row["engine"]].summary if row["engine"] in comparison.fits else {}
    found = [words.format(summary[name]) for name, words in _EVIDENCE.items() if name in summary]
    return ", ".join(found if "r_hat" in summary else [f"{row['num_steps']} steps", *found])


def _flag(line: Mapping[Hashable, Any], name: str, table: ParameterTable) -> str:
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
        meaning += f"; [%]: of {table.reference} in {ENGINES[BASE_ENGINE].label}'s 95% interval, where it is little"
    return meaning


def _centres(partition: KMeansFit, feature_names: tuple[str, ...]) -> dict[tuple[str, str], float]:
    """Shares of the rows and entries of the centres, by cluster and quantity; k-means does not estimate spread."""
    quantities = ["weight", *(f"mean {name}" for name in feature_names)]
    values = np.column_stack([partition.shares, partition.centres])
    return {(str(cluster), quantities[column]): value for (cluster, column), value in np.ndenumerate(values)}


def rich_tables(comparison: Comparison, width: int = 140) -> list[Table]:
    """The tables of a comparison for a terminal of this width, which none is wider than: engines go into a second."""
    count, family, em = comparison.num_components, comparison.base.family, ENGINES[comparison.base.engine].label
    tables = {f"k = {count}, family {family}: {len(comparison.x)} rows on one likelihood": engine_table(comparison)}
    if comparison.selected_by is not None:
        title = f"Number of components by {em}; {comparison.selected_by.upper()} selects k = {count}"
        tables = {title: candidate_table(comparison), **tables}
    if comparison.has_agreement:
        title = "Hard assignments: sum of squares within clusters, agreement (1 is perfect, 0 is chance)"
        tables[title] = agreement_table(comparison)
    found = [_rich_table(title, frame) for title, frame in tables.items()]
    title = f"Parameters ({em} ± standard error, posterior mean ± sd)"
    found += [_rich_table(title, part) for part in _fitting(component_table(comparison), width)]
    parameters = comparison.parameters
    found[-1].caption = "\n".join(filter(None, [flag_legend(parameters), *parameters.remarks])) or None
    found[-1].caption_justify = "left"
    return found


def _fitting(frame: pd.DataFrame, width: int) -> list[pd.DataFrame]:
    """The table in as few parts as a terminal of this width has room for."""
    widths = {name: 3 + max(len(str(name)), *(len(cell) for cell in frame[name])) for name in frame}
    for most in range(len(widths), 1, -1):
        parts = in_parts(frame, most)
        if all(1 + sum(widths[name] for name in part) <= width for part in parts):
            return parts
    return in_parts(frame, 1)


def _rich_table(title: str, frame: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in frame:
        table.add_column(str(name), justify="left" if name in LEFT else "right", no_wrap=name != "converged")
    for row, is_first in zip(frame.itertuples(index=False), first_of_cluster(frame), strict=True):
        if is_first:
            table.add_section()
        table.add_row(*row)
    return table


def first_of_cluster(frame: pd.DataFrame) -> list[bool]:
    """Whether a row is the first of another cluster than the row before it, of which a line parts it."""
    if "cluster" not in frame:
        return [False] * len(frame)
    return (frame["cluster"] != frame["cluster"].shift(fill_value=frame["cluster"].iloc[0])).tolist()
