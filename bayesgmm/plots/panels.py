"""Which columns a figure shows, and its panels: one axes for one or two columns, a lower-triangle grid for more."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesgmm.checks import as_rows
from bayesgmm.mixture import Mixture
from bayesgmm.plots.style import FONT_SIZE, legend_beside, tidy

MAX_COLUMNS = 4


@dataclass(frozen=True)
class View:
    """The rows (n, d), the columns of them that are shown, and the names of those columns."""

    x: Float[np.ndarray, "n d"]
    columns: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def shown(self) -> Float[np.ndarray, "n m"]:
        """The columns that are shown."""
        return self.x[:, list(self.columns)]


@dataclass(frozen=True)
class Panels:
    """Axes by (row, column) of the grid of features: (0, 0) for one feature, (1, 0) for two. `corner` is the empty one.

    A panel (i, j) with i > j has feature j along x and feature i along y; (i, i) has feature i along x.
    """

    figure: Figure
    axes: dict[tuple[int, int], Axes]
    corner: Axes | None


def name_features(x: Any, num_features: int, feature_names: Iterable[str] | None) -> tuple[str, ...]:
    """Names of all features: those given, else those of a data frame, else numbers.

    Raises:
        ValueError: when there are not as many names as features.
    """
    if feature_names is None:
        feature_names = getattr(x, "columns", None)
    if feature_names is None:
        return tuple(f"feature {column}" for column in range(num_features)) if num_features > 1 else ("x",)
    names = (feature_names,) if isinstance(feature_names, str) else tuple(str(name) for name in feature_names)
    if len(names) != num_features:
        raise ValueError(f"feature_names has {len(names)} names, but there are {num_features} features")
    return names


def view_rows(
    mixture: Mixture, x: Any, columns: Iterable[int | str] | None, feature_names: Iterable[str] | None
) -> View:
    """The rows checked against the mixture, and the columns to show: by default the first four.

    Raises:
        ValueError: for rows of another width than the mixture's, for a mixture that is not finite, for columns that
            do not exist, come twice, or are more than four.
    """
    rows = np.asarray(as_rows(x))
    if rows.shape[1] != mixture.num_features:
        raise ValueError(f"x has {rows.shape[1]} features, but the mixture has {mixture.num_features}")
    if not all(np.isfinite(np.asarray(field)).all() for field in (mixture.means, mixture.precision_factor)):
        raise ValueError("the mixture has NaN or infinite parameters, so there is nothing to draw; look at fit.code")
    names = name_features(x, rows.shape[1], feature_names)
    if columns is None:
        columns = range(min(rows.shape[1], MAX_COLUMNS))
    chosen = tuple(_column(column, names) for column in ((columns,) if isinstance(columns, str) else columns))
    if not 1 <= len(chosen) <= MAX_COLUMNS or len(set(chosen)) < len(chosen):
        raise ValueError(f"columns={chosen} must be one to {MAX_COLUMNS} different columns")
    return View(rows, chosen, tuple(names[column] for column in chosen))


def _column(column: int | str, names: tuple[str, ...]) -> int:
    if isinstance(column, str):
        if column not in names:
            raise ValueError(f"columns has {column!r}, which is not among the features {', '.join(names)}")
        return names.index(column)
    if not -len(names) <= column < len(names):
        raise ValueError(f"columns has {column}, but there are {len(names)} features, counted from 0")
    return int(column) % len(names)


def make_panels(view: View, ax: Any, *, diagonal: bool = True) -> Panels:
    """New axes in a new figure, or the caller's: one `Axes` for one or two columns, else a square array of them.

    Raises:
        ValueError: when the caller's axes are too few or too many.
    """
    count = len(view.columns)
    if count <= 2:
        if ax is None:
            size = (6.4, 3.4) if count == 1 else (6.4, 4.2)
            ax = Figure(figsize=size, layout="constrained").subplots()
        if np.size(ax) != 1:
            raise ValueError(f"ax holds {np.size(ax)} axes, but {count} columns need one")
        ax = np.ravel(np.asarray(ax, object))[0]
        return Panels(root_figure(ax), {(count - 1, 0): ax}, None)
    first = 0 if diagonal else 1
    side = count - first
    if ax is None:
        size = 2.1 * side + 0.6
        ax = Figure(figsize=(size * 1.05, size), layout="constrained").subplots(side, side)
    grid = np.asarray(ax, object)
    if grid.shape != (side, side):
        raise ValueError(f"ax has shape {grid.shape}, but {count} columns need axes of shape ({side}, {side})")
    axes = {}
    for i in range(side):
        for j in range(side):
            if j <= i:
                axes[i + first, j] = grid[i, j]
            else:
                grid[i, j].set_axis_off()
    return Panels(root_figure(grid[0, 0]), axes, grid[0, -1])


def finish(panels: Panels, view: View, handles: Sequence[Any]) -> Figure:
    """Equal limits along the rows and columns of the grid, feature names outside, the legend where it hides nothing."""
    last = len(view.columns) - 1
    for (i, j), ax in panels.axes.items():
        tidy(ax)
        if len(view.columns) <= 2:
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
        return panels.figure
    if panels.corner is None:
        legend_beside(next(iter(panels.axes.values())), handles)
    else:
        legend = panels.corner.legend(handles=handles, loc="upper right", frameon=False, fontsize=FONT_SIZE)
        # It may reach over the other empty panels without pushing anything aside.
        legend.set_in_layout(False)
    return panels.figure


def root_figure(ax: Axes) -> Figure:
    """The figure that an axes belongs to, through any sub-figures."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def _limits(panels: Panels, feature: int) -> tuple[float, float]:
    """Limits that hold everything drawn along a feature."""
    spans = [ax.dataLim.intervalx for (_, j), ax in panels.axes.items() if j == feature]
    spans += [ax.dataLim.intervaly for (i, j), ax in panels.axes.items() if i == feature and i != j]
    low, high = float(np.min(spans)), float(np.max(spans))
    pad = 0.04 * (high - low) or 1.0
    return low - pad, high + pad


def marginal(mixture: Mixture, columns: Iterable[int]) -> Mixture:
    """The mixture's marginal over some of its columns, in float64; leading axes stay."""
    chosen = list(columns)
    covariances = np.asarray(mixture.covariances, np.float64)
    return Mixture.from_covariances(
        np.asarray(mixture.weights, np.float64),
        np.asarray(mixture.means, np.float64)[..., chosen],
        covariances[..., chosen, :][..., chosen],
    )


def thinned_draws(draws: Mixture, at_most: int) -> Mixture:
    """At most so many draws, evenly spaced over all chains, under one leading axis."""
    num_leading = len(draws.draw_shape)
    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *np.shape(leaf)[num_leading:]), draws)
    total = int(np.prod(draws.draw_shape))
    index: Int[np.ndarray, " s"] = np.unique(np.linspace(0, total - 1, min(at_most, total)).round().astype(int))
    return flat[index]
