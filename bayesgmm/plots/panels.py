"""What all figures share: colours and markers of clusters, axes and grids of axes, and their legends.

A legend is made of the labels of what was drawn. What it shows otherwise than drawn is added to the axes as an empty
line with a label.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.typing import LineStyleType

from bayesgmm.engines.fit import Fit
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.plots.view import View

type AxesLike = Axes | np.ndarray | Iterable[object] | None
"""Where to draw: one axes, an array or a list of them, or None for new ones."""

# Okabe & Ito (2008), safe for the colour-blind. Black is kept for the mixture as a whole, and yellow, faint on white,
# comes late.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C", "#D8C800")
BLUE, VERMILION = PALETTE[0], PALETTE[4]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, DATA_GREY = "#222222", "#9A9A9A"
FONT_SIZE = 9.0

_STYLES: Mapping[str, LineStyleType] = {"draws": "-", "approximation": (0.0, (5.0, 2.0))}
_SPARE_STYLES: tuple[LineStyleType, ...] = (
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
    """A line style for every fit: that of samplers or of approximations, or a spare one where an earlier fit has it."""
    styles: dict[str, LineStyleType] = {}
    spare = itertools.cycle(_SPARE_STYLES)
    for name, fit in fits.items():
        style = _STYLES.get(ENGINES[fit.engine].gives)
        styles[name] = next(spare) if style is None or style in styles.values() else style
    return styles


def tidy(ax: Axes, **properties: object) -> None:
    """Properties of the axes, such as `xlabel`; two spines, small ticks, and labels of one size."""
    ax.set(**properties)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=FONT_SIZE, length=3.0)
    for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
        text.set_fontsize(FONT_SIZE + 1)


def finish(ax: Axes, *, title: str | None = None, **properties: object) -> Axes:
    """Tidy the axes, and put the legend of what is labelled on them beside them, with a title.

    Returns:
        The same axes, which the caller gets back.
    """
    tidy(ax, **properties)
    legend_beside(ax, title=title)
    return ax


def add_label(ax: Axes, label: str, **look: object) -> None:
    """An entry of the legend without anything drawn: an empty line."""
    ax.add_artist(Line2D([], [], label=label, **{"color": INK, **look}))


def add_swatch(ax: Axes, label: str, **look: object) -> None:
    """An entry of the legend for an area, without anything drawn: a rectangle that is nowhere."""
    ax.add_artist(Rectangle((np.nan, np.nan), 0.0, 0.0, label=label, **{"linewidth": 0.0, **look}))


def label_clusters(ax: Axes, shares: Float[np.ndarray, " k"], word: str = "weight", *, markers: bool = True) -> None:
    """Entries of the legend for clusters, with their shares of the rows."""
    for cluster, share in enumerate(shares):
        look = {"color": cluster_colour(cluster), "linewidth": 1.6, "markersize": 5.0}
        marker = cluster_marker(cluster) if markers else ""
        add_label(ax, f"cluster {cluster} ({word} {share:.2f})", marker=marker, **look)


def label_masses(ax: Axes, levels: Sequence[float], of: str = "") -> None:
    """The entry of the legend that says what ellipses hold, and whose they are."""
    masses = ", ".join(f"{100 * level:g}%" for level in levels)
    label = f"{of + ': ' if of else ''}mean, ellipse{'s' if len(levels) > 1 else ''} of {masses}"
    add_label(ax, label, linewidth=1.0, marker="X", markersize=6.0, markeredgecolor="white")


def label_rows(ax: Axes) -> None:
    """The entry of the legend for small dark points."""
    add_label(ax, "rows", marker="o", markersize=3.5, linestyle="none")


def add_legend(place: Axes | Figure, *axes: Axes, **look: object) -> Legend | None:
    """A legend of what is labelled on some axes, each label once, in the order in which it was drawn; or none."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    options: dict[str, Any] = {"frameon": False, "fontsize": FONT_SIZE, **look}
    return place.legend(list(found.values()), list(found), **options) if found else None


def legend_beside(ax: Axes, *others: Axes, title: str | None = None) -> None:
    """A legend to the right of the axes, where it hides nothing; constrained layout makes room for it."""
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    add_legend(ax, *others, ax, title=title, title_fontsize=FONT_SIZE, alignment="left", **place)


def add_colourbar(ax: Axes, values: ScalarMappable, label: str, inside: Axes | None = None) -> None:
    """A thin bar of the colours beside the axes, or a level one inside empty axes."""
    place: dict[str, Any] = {"ax": ax, "aspect": 30, "pad": 0.02}
    if inside is not None:
        place = {"cax": inside.inset_axes((0.05, 0.8, 0.9, 0.07)), "orientation": "horizontal"}
    bar = root_figure(ax).colorbar(values, **place)
    bar.set_label(label, fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=FONT_SIZE)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class Panels:
    """Axes by (row, column) of the grid of features: (0, 0) for one feature, (1, 0) for two. `corner` is the empty one.

    A panel (i, j) with i > j has feature j along x and feature i along y; (i, i) has feature i along x. `drawn` is what
    the caller gets back: the axes, or the square array of them.
    """

    view: View
    drawn: Axes | np.ndarray
    axes: dict[tuple[int, int], Axes]
    corner: Axes | None

    @property
    def first(self) -> Axes:
        """The first of the axes, which is the only one for one or two features."""
        return next(iter(self.axes.values()))


def new_axes(figsize: tuple[float, float], num_rows: int = 1, num_columns: int = 1, **options: Any) -> Any:
    """New axes in a new figure of pyplot's, laid out so that nothing overlaps: one `Axes`, or an array of them."""
    # On first use: importing pyplot looks for a display.
    from matplotlib import pyplot

    return pyplot.subplots(num_rows, num_columns, figsize=figsize, layout="constrained", **options)[1]


def one_axes(ax: AxesLike, figsize: tuple[float, float], cure: str = "; give one") -> Axes:
    """The caller's axes, or new ones.

    Raises:
        InputError: for what is not one `Axes`; `cure` ends the message where there are several.
    """
    if ax is None:
        return new_axes(figsize)
    given = np.asarray(ax, object)
    if given.size != 1:
        raise InputError(f"ax holds {given.size} axes{cure}")
    single = given.item()
    if not isinstance(single, Axes):
        raise InputError(f"ax must be matplotlib Axes; got {type(single).__name__}")
    return single


def several_axes(ax: AxesLike, shape: tuple[int, ...], figsize: tuple[float, float], what: str) -> np.ndarray:
    """The caller's axes as an array of this shape, or new ones; of three axes the first are side by side.

    Raises:
        InputError: for axes of another shape, saying `what` needs them.
    """
    if ax is None:
        beside, num_rows, num_columns = (1, 1, *shape)[-3:]
        grid = new_axes(figsize, num_rows, beside * num_columns, squeeze=False)
        return grid.reshape(num_rows, beside, num_columns).swapaxes(0, 1).reshape(shape)
    grid = np.asarray(ax, object)
    if grid.size == 1 and np.prod(shape) == 1:
        grid = grid.reshape(shape)
    if grid.shape != shape:
        raise InputError(f"ax has shape {grid.shape}, but {what} axes of shape {shape}")
    return grid


def wrapped_axes(
    ax: AxesLike, count: int, most_columns: int, size: tuple[float, float], margin: float, what: str
) -> np.ndarray:
    """The caller's axes as an array of length `count`, or a new grid; `size` is that of one of them."""
    if ax is None:
        columns = min(count, most_columns)
        rows = -(-count // columns)
        grid = new_axes((size[0] * columns + margin, size[1] * rows), rows, columns, squeeze=False).ravel()
        for spare in grid[count:]:
            spare.set_axis_off()
        return grid[:count]
    return several_axes(np.ravel(np.asarray(ax, object)), (count,), (0.0, 0.0), what)


def make_panels(view: View, ax: AxesLike, *, diagonal: bool = True) -> Panels:
    """New axes in a new figure, or the caller's: one `Axes` for one or two coordinates, else a square array of them.

    Raises:
        InputError: when the caller's axes are too few or too many.
    """
    count = view.num_shown
    if count <= 2:
        ax = one_axes(ax, (6.4, 3.4 if count == 1 else 4.2), f", but {count} columns need one")
        return Panels(view, ax, {(count - 1, 0): ax}, None)
    first = 0 if diagonal else 1
    side = count - first
    size = 2.1 * side + 0.6
    grid = several_axes(ax, (side, side), (size * 1.05, size), f"{count} columns need")
    for spare in grid[np.triu_indices(side, 1)]:
        spare.set_axis_off()
    axes = {(i + first, j): grid[i, j] for i in range(side) for j in range(i + 1)}
    return Panels(view, grid, axes, grid[0, -1])


def finish_grid(panels: Panels) -> Axes | np.ndarray:
    """Equal limits along the rows and columns of the grid, feature names outside, the legend where it hides nothing.

    Returns:
        What the caller gets back.
    """
    view, last = panels.view, panels.view.num_shown - 1
    for (i, j), ax in panels.axes.items():
        tidy(ax, xlabel=view.names[j] if i == last else "")
        if i != j and j == 0:
            ax.set_ylabel(view.names[i])
        if last <= 1:
            continue
        ax.set_xlim(_limits(panels, j))
        if i == j:
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
        else:
            ax.set_ylim(_limits(panels, i))
            ax.tick_params(labelleft=j == 0)
        ax.tick_params(labelbottom=i == last)
    if panels.corner is None:
        legend_beside(panels.first)
    elif legend := add_legend(panels.corner, *panels.axes.values(), loc="upper right"):
        legend.set_in_layout(False)  # it may reach over the other empty panels without pushing anything aside
    return panels.drawn


def root_figure(drawn: Figure | Axes | np.ndarray) -> Figure:
    """The figure that axes belong to, through any sub-figures; a figure is its own."""
    first = np.ravel(np.asarray(drawn, object))[0]
    return first if isinstance(first, Figure) else first.get_figure(root=True)


def _limits(panels: Panels, feature: int) -> tuple[float, float]:
    """Limits that hold everything drawn along a feature."""
    spans = [ax.dataLim.intervalx for (_, j), ax in panels.axes.items() if j == feature]
    spans += [ax.dataLim.intervaly for (i, j), ax in panels.axes.items() if i == feature and i != j]
    low, high = float(np.min(spans)), float(np.max(spans))
    pad = 0.04 * (high - low) or 1.0
    return low - pad, high + pad
