"""Posterior densities of weights and means, with the point estimates marked in them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType
from scipy.stats import gaussian_kde

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.validation import name_features
from bayesgmm.plots.panels import root_figure, several_axes
from bayesgmm.plots.style import DATA_GREY, FONT_SIZE, INK, cluster_colour, legend_beside, line_styles, tidy

_MOST_FEATURES = 8
_POINT_MARKERS = ("v", "^", "D", "s")


def plot_posterior_parameters(
    fits: Mapping[str, Fit], *, feature_names: Iterable[str] | None = None, ax: Any = None
) -> Any:
    """Draw the posterior densities of the weights (first row) and of the means along every feature (a row for each).

    There is one column of panels, and one colour, for every cluster; one line style for every fit with draws; and a
    marked vertical line for the value of every fit without. The curves are kernel density estimates. Labels have to
    agree between the fits, as those of `compare` do. At most the first eight features are shown.

    Args:
        fits: fits by name, at least one with draws.
        feature_names: names of all d features.
        ax: axes to draw on, of shape (1 + features, k).

    Returns:
        The axes drawn on, an array of that shape.

    Raises:
        InputError: when no fit has draws, or the fits differ in the number of clusters or features.
    """
    posteriors = {name: fit for name, fit in fits.items() if fit.draws is not None}
    points = {name: fit for name, fit in fits.items() if fit.draws is None}
    if not posteriors:
        raise InputError(f"none of the fits ({', '.join(fits) or 'there are none'}) has draws; give one by VI or NUTS")
    shapes = {name: fit.mixture.means.shape for name, fit in fits.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"fits must agree in clusters and features; means have shapes {shapes}")
    num_clusters, num_features = next(iter(shapes.values()))
    names = name_features(feature_names, num_features, default="feature {}" if num_features > 1 else "x")[
        :_MOST_FEATURES
    ]
    num_rows = 1 + len(names)
    handles = _handles(posteriors, points)
    size = (max(2.3 * num_clusters, 4.0) + 0.4, 1.7 * num_rows + 0.5)
    axes = several_axes(ax, (num_rows, num_clusters), size, "weights and means need")
    if ax is None:
        root_figure(axes).legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), max(int(size[0] / 1.4), 1)),
            frameon=False,
            fontsize=FONT_SIZE,
            handlelength=2.6,
        )
    for row in range(num_rows):
        for cluster in range(num_clusters):
            draws = {
                name: _values(fit.draws, row, cluster).ravel()
                for name, fit in posteriors.items()
                if fit.draws is not None
            }
            marks = {name: float(_values(fit.mixture, row, cluster)) for name, fit in points.items()}
            _draw_panel(axes[row, cluster], draws, marks, line_styles(posteriors), cluster, is_weight=row == 0)
        for panel in axes[row]:
            panel.set_xlabel("weight" if row == 0 else f"mean of {names[row - 1]}")
        axes[row, 0].set_ylabel("density")
    for cluster, panel in enumerate(axes[0]):
        panel.set_title(f"cluster {cluster}", color=cluster_colour(cluster))
    for panel in axes.ravel():
        tidy(panel)
        panel.set_yticks([])
    if ax is not None:
        legend_beside(axes[0, -1], handles)
    return axes


def _values(mixture: Mixture, row: int, cluster: int) -> Float[np.ndarray, "*draws"]:
    """Weight of a cluster (row 0) or its mean along feature row - 1."""
    if row == 0:
        return np.asarray(mixture.weights, np.float64)[..., cluster]
    return np.asarray(mixture.means, np.float64)[..., cluster, row - 1]


def _draw_panel(
    ax: Axes,
    draws: Mapping[str, Float[np.ndarray, " s"]],
    marks: Mapping[str, float],
    styles: Mapping[str, LineStyleType],
    cluster: int,
    *,
    is_weight: bool,
) -> None:
    colour = cluster_colour(cluster)
    for name, values in draws.items():
        curve = density_of_draws(values, (0.0, 1.0) if is_weight else (-np.inf, np.inf))
        if curve is None:
            ax.axvline(float(values[0]), color=colour, linestyle=styles[name], linewidth=1.6, gid=f"constant {name}")
            continue
        ax.plot(*curve, color=colour, linestyle=styles[name], linewidth=1.6, gid=f"density {name}")
        ax.fill_between(*curve, color=colour, alpha=0.07, linewidth=0.0)
    for position, (name, value) in enumerate(marks.items()):
        shade = _mark_colour(position)
        ax.axvline(value, color=shade, linewidth=0.9, zorder=1, gid=f"mark {name}")
        ax.plot(
            value,
            # Marks of points that nearly agree are set one below another.
            0.96 - 0.1 * position,
            marker=_POINT_MARKERS[position % len(_POINT_MARKERS)],
            color=shade,
            markersize=5.0,
            linestyle="none",
            transform=ax.get_xaxis_transform(),
            clip_on=False,
        )
    ax.set_ylim(bottom=0.0)
    ax.margins(y=0.15)


def density_of_draws(
    values: Float[np.ndarray, " s"], support: tuple[float, float]
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]] | None:
    """A kernel density estimate along the range of the draws, or None where they are all equal."""
    if np.ptp(values) <= 1e-12 * np.abs(values).max() or len(values) < 2:
        return None
    low, high = np.quantile(values, [0.001, 0.999])
    pad = 0.15 * (high - low)
    grid = np.linspace(max(low - pad, support[0]), min(high + pad, support[1]), 256)
    return grid, gaussian_kde(values)(grid)


def _mark_colour(position: int) -> str:
    return (INK, DATA_GREY)[position % 2]


def _handles(posteriors: Mapping[str, Fit], points: Mapping[str, Fit]) -> list[Line2D]:
    styles = line_styles(posteriors)
    lines = [Line2D([], [], color=INK, linestyle=styles[name], linewidth=1.6, label=name) for name in posteriors]
    marks = [
        Line2D(
            [],
            [],
            color=_mark_colour(position),
            linewidth=0.9,
            marker=_POINT_MARKERS[position % len(_POINT_MARKERS)],
            markersize=5.0,
            label=name,
        )
        for position, name in enumerate(points)
    ]
    return lines + marks
