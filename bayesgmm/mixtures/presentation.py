"""How parameters of a mixture are shown to people: tables of them, and a few lines for each cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float

from bayesgmm.mixtures.families import FAMILIES, Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.mixtures.quantities import Entry, entries, quantities_of
from bayesgmm.numerics.precision import is_traced
from bayesgmm.numerics.thresholds import vary
from bayesgmm.numerics.validation import name_features
from bayesgmm.numerics.words import counted
from bayesgmm.runtime.printing import Lines, with_uncertainty

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ("weights", "means", "standard_deviations", "correlations")
LEVEL = 0.95
_TAILS = (0.5 - 0.5 * LEVEL, 0.5 + 0.5 * LEVEL)
_MOST_CLUSTERS, _MOST_QUANTITIES = 24, 15  # that are printed


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
    lines, (values,) = shown_entries(mixture.means.shape[-2:], family, feature_names, points)
    columns = {
        "cluster": [line.cluster for line in lines],
        "quantity": [line.label for line in lines],
        "value": values.mean(1),
    }
    if draws is not None:
        columns |= dict(zip(("sd", "low", "high"), spread(values), strict=True))
    return pd.DataFrame(columns)


def lines_of(table: "pd.DataFrame") -> Lines:
    """Each cluster of a table of values and their spread with its quantities in one line; of many, the first."""
    found: dict[str, list[str]] = {}
    for line in table.to_dict("records"):
        text = f"{line['quantity']} {with_uncertainty(line['value'], line.get('sd'))}"
        found.setdefault(str(line["cluster"]), []).append(text)
    lines = [(f"cluster {cluster}" if cluster else "", _few(texts)) for cluster, texts in found.items()]
    more = len(lines) - _MOST_CLUSTERS
    return lines if more <= 0 else [*lines[:_MOST_CLUSTERS], ("...", f"and {counted(more, 'cluster')} more")]


def _few(texts: list[str]) -> str:
    """Quantities of a cluster in one line: all, or the first means and what there is beside."""
    more = len(texts) - _MOST_QUANTITIES
    return ", ".join(texts if more <= 0 else [*texts[:_MOST_QUANTITIES], f"and {more} more"])


def has_contents(mixture: Mixture) -> bool:
    """Whether there are numbers to show: not inside `jit`, and not in a pytree of something else, such as of shapes."""
    return not is_traced(mixture) and all(isinstance(one, np.ndarray | jax.Array) for one in mixture.fields.values())


def shown_mixture(mixture: Mixture) -> tuple[str, Lines] | None:
    """A mixture by its weights, means, standard deviations and correlations; many by those with their spread."""
    if not has_contents(mixture):
        return None
    shared = len(mixture.factor) < mixture.num_components
    kinds = [one for one in FAMILIES.values() if one.representation is type(mixture.factor) and not one.isotropic]
    family = next(one for one in kinds if one.shared == shared)
    shape, names = mixture.draw_shape, name_features(None, mixture.num_features, mixture)
    of_draws = f"; {' x '.join(map(str, shape))} of them, means and standard deviations over them" if shape else ""
    title = (
        f"Mixture of {counted(mixture.num_components, 'Gaussian component')} in "
        f"{counted(mixture.num_features, 'dimension')}{of_draws}"
    )
    return title, lines_of(summary_table(mixture, mixture if shape else None, family, names))
