"""Tables that a person can read, from a `Comparison`: their cells as text."""

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bayesgmm.comparison.comparing import FAILED, Comparison
from bayesgmm.comparison.summary import Summary
from bayesgmm.engines.fit import ResultCode
from bayesgmm.engines.kmeans import KMeansFit
from bayesgmm.engines.registry import BASE_ENGINE, ENGINES
from bayesgmm.numerics.thresholds import MIN_COVERAGE, OVERCONFIDENT, UNDERCONFIDENT
from bayesgmm.numerics.words import counted
from bayesgmm.runtime.printing import with_uncertainty
from bayesgmm.standard_errors.parameters import ParameterTable

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


def loo_table(comparison: Comparison) -> pd.DataFrame:
    """Leave-one-out over numbers of components."""
    assert comparison.loo_over_k is not None
    table = comparison.loo_over_k.sort_values("num_components")
    pairs = zip(table["elpd_diff"], table["dse"], strict=True)
    cells = {
        "k": [f"{count}{' ←' if count == comparison.num_components else ''}" for count in table["num_components"]],
        "ELPD-LOO": [f"{elpd:.2f} ± {se:.2f}" for elpd, se in zip(table["elpd"], table["se"], strict=True)],
        "less the best": [f"{-abs(behind):.2f} ± {se:.2f}" if behind else "–" for behind, se in pairs],
        "weight": [f"{weight:.2f}" for weight in table["weight"]],
        "effective parameters": [f"{number:.1f}" for number in table["p"]],
        "largest Pareto k": [
            f"{k:.2f}{f'; {counted(int(bad), "row")} unreliable' if bad else ''}"
            for k, bad in zip(table["max_pareto_k"], table["num_bad"], strict=True)
        ],
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


def first_of_cluster(frame: pd.DataFrame) -> list[bool]:
    """Whether a row is the first of another cluster than the row before it, of which a line parts it."""
    if "cluster" not in frame:
        return [False] * len(frame)
    return (frame["cluster"] != frame["cluster"].shift(fill_value=frame["cluster"].iloc[0])).tolist()
