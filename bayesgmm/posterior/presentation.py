"""How parameters of a mixture are shown to people: lines of a table, and numbers with as many digits as are known."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.mixtures.quantities import Entry, entries, quantities_of
from bayesgmm.posterior.thresholds import vary

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ("weights", "means", "standard_deviations", "correlations")
LEVEL = 0.95
_TAILS = (0.5 - 0.5 * LEVEL, 0.5 + 0.5 * LEVEL)
_MOST_LINES = 24  # of a mixture that is printed


def with_uncertainty(value: float, sd: float | None) -> str:
    """`value ± sd`, both with the decimals that show two significant digits of the sd."""
    if sd is None or not math.isfinite(sd) or sd <= 0:
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(sd)))
    return f"{value:.{decimals}f} ± {sd:.{decimals}f}"


def shown_entries(
    shape: tuple[int, ...], family: Family, feature_names: tuple[str, ...], points: Sequence[Mixture]
) -> tuple[list[Entry], list[Float[np.ndarray, "lines s"]]]:
    """The weights, means, standard deviations and correlations that are shown of means of this shape, a line each.

    And for each of the mixtures the values of these lines: those of its draws, or the one value of a point.
    """
    lines = [line for line in entries({"means": shape}, family, feature_names) if line.name in _SHOWN]
    quantities = map(quantities_of, points)
    return lines, [
        np.stack([np.asarray(found[line.name], np.float64)[(..., *line.place)].ravel() for line in lines])
        for found in quantities
    ]


def spread(draws: Float[np.ndarray, "lines s"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard deviations of draws, 0 where they differ by rounding only, and the ends of their central 95 %."""
    sd = np.where(vary(draws, 1), draws.std(1, ddof=min(1, draws.shape[1] - 1)), 0.0)
    low, high = np.quantile(draws, _TAILS, axis=1)
    return sd, low, high


def summary_table(
    mixture: Mixture, draws: Mixture | None, family: Family, feature_names: tuple[str, ...]
) -> "pd.DataFrame":
    """A line for each weight, mean, standard deviation and correlation: "cluster", "quantity", "value".

    Of draws "value" is their mean, and there are "sd" and the ends of the central 95 % interval, "low" and "high".
    """
    import pandas as pd  # on first use: fits need none

    points = [mixture if draws is None else draws]
    lines, (values,) = shown_entries(mixture.means.shape, family, feature_names, points)
    columns = {
        "cluster": [line.cluster for line in lines],
        "quantity": [line.label for line in lines],
        "value": values.mean(1),
    }
    if draws is not None:
        columns |= dict(zip(("sd", "low", "high"), spread(values), strict=True))
    return pd.DataFrame(columns)


def lines_of(table: "pd.DataFrame") -> list[tuple[str, str]]:
    """Each cluster of a summary table with its quantities in one line; of many, the first."""
    found: dict[str, list[str]] = {}
    for line in table.to_dict("records"):
        text = f"{line['quantity']} {with_uncertainty(line['value'], line.get('sd'))}"
        found.setdefault(f"cluster {line['cluster']}", []).append(text)
    lines = [(cluster, ", ".join(texts)) for cluster, texts in found.items()]
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], ("...", f"and {more} more")]


def as_html(title: str, lines: list[tuple[str, str]]) -> str:
    """A title and a table of lines, for notebooks."""
    rows = "".join(f"<tr><th>{html.escape(one)}</th><td>{html.escape(text)}</td></tr>" for one, text in lines)
    return f"<p>{html.escape(title)}</p><table>{rows}</table>"
