"""What all figures share: a colour and a marker for every cluster, a line style for every fit, and bare axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from bayesgmm.engines.fit import Fit
from bayesgmm.mixtures.mixture import Mixture

# Okabe & Ito (2008), safe for the colour-blind. Black is kept for the mixture as a whole, and yellow, faint on white,
# comes late.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C", "#D8C800")
BLUE, VERMILION = PALETTE[0], PALETTE[4]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"
DATA_GREY = "#9A9A9A"
FONT_SIZE = 9.0

_ENGINE_STYLES: Mapping[str, LineStyleType] = {"nuts": "-", "vi": (0.0, (5.0, 2.0))}
_SPARE_STYLES: Sequence[LineStyleType] = (
    (0.0, (6.0, 1.5, 1.0, 1.5)),
    (0.0, (1.0, 1.2)),
    (0.0, (9.0, 3.0)),
    (0.0, (3.0, 1.2, 1.0, 1.2, 1.0, 1.2)),
)


def cluster_colour(cluster: int) -> str:
    """Colour of a cluster; the palette starts again after eight, with another marker."""
    return PALETTE[cluster % len(PALETTE)]


def cluster_marker(cluster: int) -> str:
    """Marker of a cluster. Seven markers beside eight colours: no pair repeats before cluster 56."""
    return MARKERS[cluster % len(MARKERS)]


def line_styles(fits: Mapping[str, Fit]) -> dict[str, LineStyleType]:
    """A line style for every fit: its engine's own, or a spare one where an earlier fit of the engine has taken it."""
    styles: dict[str, LineStyleType] = {}
    spare = 0
    for name, fit in fits.items():
        style = _ENGINE_STYLES.get(fit.engine)
        if style is None or style in styles.values():
            style, spare = _SPARE_STYLES[spare % len(_SPARE_STYLES)], spare + 1
        styles[name] = style
    return styles


def engine_name(engine: str) -> str:
    """An engine's name as figures write it."""
    return {"gibbs": "Gibbs", "kmeans": "k-means"}.get(engine, engine.upper())


def tidy(ax: Axes) -> None:
    """Two spines, small ticks, and labels of one size."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=FONT_SIZE, length=3.0)
    for text in (ax.xaxis.label, ax.yaxis.label):
        text.set_fontsize(FONT_SIZE + 1)
    ax.title.set_fontsize(FONT_SIZE + 1)


def cluster_handles(mixture: Mixture) -> list[Any]:
    """Legend entries of the clusters, with their mixing proportions."""
    return [
        Line2D(
            [],
            [],
            color=cluster_colour(cluster),
            marker=cluster_marker(cluster),
            markersize=5.0,
            linewidth=1.6,
            label=f"cluster {cluster} (weight {weight:.2f})",
        )
        for cluster, weight in enumerate(np.asarray(mixture.weights))
    ]


def legend_beside(ax: Axes, handles: Sequence[Any], *, title: str | None = None) -> Legend:
    """A legend to the right of the axes, where it hides nothing; constrained layout makes room for it."""
    return ax.legend(
        handles=handles,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize=FONT_SIZE,
        title_fontsize=FONT_SIZE,
        alignment="left",
    )
