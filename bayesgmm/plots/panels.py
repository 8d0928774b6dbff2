"""The panels of a figure: one axes for one or two coordinates, a lower-triangle grid for more."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesgmm.errors import InputError
from bayesgmm.plots.style import FONT_SIZE, legend_beside, tidy
from bayesgmm.plots.view import View


@dataclass(frozen=True)
class Panels:
    """Axes by (row, column) of the grid of features: (0, 0) for one feature, (1, 0) for two. `corner` is the empty one.

    A panel (i, j) with i > j has feature j along x and feature i along y; (i, i) has feature i along x. `drawn` is what
    the caller gets back: the axes, or the square array of them.
    """

    drawn: Any
    axes: dict[tuple[int, int], Axes]
    corner: Axes | None


def new_axes(figsize: tuple[float, float], num_rows: int = 1, num_columns: int = 1, **options: Any) -> Any:
    """New axes in a new figure of pyplot's, laid out so that nothing overlaps: one `Axes`, or an array of them."""
    # On first use: importing pyplot looks for a display.
    from matplotlib import pyplot

    return pyplot.subplots(num_rows, num_columns, figsize=figsize, layout="constrained", **options)[1]


def one_axes(ax: Any, figsize: tuple[float, float]) -> Axes:
    """The caller's axes, or new ones.

    Raises:
        InputError: for what is not one `Axes`.
    """
    if ax is None:
        return new_axes(figsize)
    if np.size(ax) != 1:
        raise InputError(f"ax holds {np.size(ax)} axes; give one")
    single = np.ravel(np.asarray(ax, object))[0]
    if not isinstance(single, Axes):
        raise InputError(f"ax must be matplotlib Axes; got {type(single).__name__}")
    return single


def several_axes(ax: Any, shape: tuple[int, ...], figsize: tuple[float, float], what: str, **options: Any) -> Any:
    """The caller's axes as an array of this shape, or new ones.

    Raises:
        InputError: for axes of another shape, saying `what` needs them.
    """
    if ax is None:
        num_rows, num_columns = (1, *shape)[-2:]
        return np.reshape(new_axes(figsize, num_rows, num_columns, squeeze=False, **options), shape)
    grid = np.asarray(ax, object)
    if grid.size == 1 and np.prod(shape) == 1:
        grid = grid.reshape(shape)
    if grid.shape != shape:
        raise InputError(f"ax has shape {grid.shape}, but {what} axes of shape {shape}")
    return grid


def make_panels(view: View, ax: Any, *, diagonal: bool = True) -> Panels:
    """New axes in a new figure, or the caller's: one `Axes` for one or two coordinates, else a square array of them.

    Raises:
        InputError: when the caller's axes are too few or too many.
    """
    count = view.num_shown
    if count <= 2:
        if np.size(ax) != 1:
            raise InputError(f"ax holds {np.size(ax)} axes, but {count} columns need one")
        ax = one_axes(ax, (6.4, 3.4) if count == 1 else (6.4, 4.2))
        return Panels(ax, {(count - 1, 0): ax}, None)
    first = 0 if diagonal else 1
    side = count - first
    size = 2.1 * side + 0.6
    grid = several_axes(ax, (side, side), (size * 1.05, size), f"{count} columns need")
    axes = {}
    for i in range(side):
        for j in range(side):
            if j <= i:
                axes[i + first, j] = grid[i, j]
            else:
                grid[i, j].set_axis_off()
    return Panels(grid, axes, grid[0, -1])


def finish(panels: Panels, view: View, handles: Sequence[Any]) -> Any:
    """Equal limits along the rows and columns of the grid, feature names outside, the legend where it hides nothing.

    Returns:
        What the caller gets back.
    """
    last = view.num_shown - 1
    for (i, j), ax in panels.axes.items():
        tidy(ax)
        if view.num_shown <= 2:
            continue
        ax.set_xlim(_limits(panels, j))
        if i != j:
            ax.set_ylim(_limits(panels, i))
        if i == j:
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
        elif j > 0:
            ax.tick_params(labelleft=False)
        if i < last:
            ax.tick_params(labelbottom=False)
    for (i, j), ax in panels.axes.items():
        if i == last:
            ax.set_xlabel(view.names[j])
        if i != j and j == 0:
            ax.set_ylabel(view.names[i])
    if not handles:
        return panels.drawn
    if panels.corner is None:
        legend_beside(next(iter(panels.axes.values())), handles)
    else:
        legend = panels.corner.legend(handles=handles, loc="upper right", frameon=False, fontsize=FONT_SIZE)
        # It may reach over the other empty panels without pushing anything aside.
        legend.set_in_layout(False)
    return panels.drawn


def root_figure(drawn: Any) -> Figure:
    """The figure that axes belong to, through any sub-figures; a figure is its own."""
    first = np.ravel(np.asarray(drawn, object))[0]
    figure = first if isinstance(first, Figure) else first.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _limits(panels: Panels, feature: int) -> tuple[float, float]:
    """Limits that hold everything drawn along a feature."""
    spans = [ax.dataLim.intervalx for (_, j), ax in panels.axes.items() if j == feature]
    spans += [ax.dataLim.intervaly for (i, j), ax in panels.axes.items() if i == feature and i != j]
    low, high = float(np.min(spans)), float(np.max(spans))
    pad = 0.04 * (high - low) or 1.0
    return low - pad, high + pad
