"""How parameters of a mixture are shown to people: lines of a table, and numbers with as many digits as are known."""

import html
import math
from typing import TYPE_CHECKING

import numpy as np

from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.mixtures.quantities import entries, quantities_of

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("weights", "means", "standard_deviations", "correlations")
_MOST_LINES = 24  # of a mixture that is printed


def with_uncertainty(value: float, sd: float | None) -> str:
    """`value ± sd`, both with the decimals that show two significant digits of the sd."""
    if sd is None or not math.isfinite(sd) or sd <= 0:
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(sd)))
    return f"{value:.{decimals}f} ± {sd:.{decimals}f}"


def summary_table(
    mixture: Mixture, draws: Mixture | None, family: Family, feature_names: tuple[str, ...]
) -> "pd.DataFrame":
    """A line for each weight, mean, standard deviation and correlation: "cluster", "quantity", "value".

    Of draws "value" is their mean, and there are "sd" and the ends of the central 95 % interval, "low" and "high".
    """
    import pandas as pd  # on first use: fits need none

    lines = [line for line in entries({"means": mixture.means.shape}, family, feature_names) if line.name in SHOWN]
    found = quantities_of(mixture if draws is None else draws)
    values = np.stack([np.asarray(found[line.name], np.float64)[(..., *line.place)].ravel() for line in lines])
    columns = {
        "cluster": [line.cluster for line in lines],
        "quantity": [line.label for line in lines],
        "value": values.mean(1),
    }
    if draws is not None:
        low, high = np.quantile(values, (0.025, 0.975), axis=1)
        columns |= {"sd": values.std(1, ddof=min(1, values.shape[1] - 1)), "low": low, "high": high}
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
