"""Outlines of covariance ellipses, curves of one-dimensional densities, and the rows beneath them."""

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from scipy.stats import chi2

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.style import DATA_GREY, INK, cluster_colour, cluster_marker

_MANY_ROWS = 5000  # beyond it points are drawn as pixels even in a PDF, which would otherwise take minutes to open


def check_levels(levels: tuple[float, ...]) -> None:
    """Refuse probability masses outside (0, 1).

    Raises:
        InputError: naming the offending levels.
    """
    if not levels or not all(0 < level < 1 for level in levels):
        raise InputError(f"levels={levels} must be probability masses between 0 and 1, such as (0.5, 0.9)")


def ellipse_outlines(pair: Mixture, level: float, num_points: int = 121) -> Float[np.ndarray, "*draws k num_points 2"]:
    """Points on the ellipse that holds `level` of the mass of every component of a two-dimensional mixture."""
    # The symmetric root exists for covariances that rounding has made singular, where Cholesky's does not.
    values, vectors = np.linalg.eigh(np.asarray(pair.covariances, np.float64))
    root = vectors * np.sqrt(np.clip(values, 0.0, None))[..., None, :]
    angles = np.linspace(0.0, 2 * np.pi, num_points)
    circle = np.sqrt(chi2.ppf(level, df=2)) * np.stack([np.cos(angles), np.sin(angles)])
    return np.asarray(pair.means)[..., None, :] + np.swapaxes(root @ circle, -1, -2)


def density_grid(
    single: Mixture, values: Float[np.ndarray, " n"], span: tuple[float, float] | None = None
) -> Float[np.ndarray, " g"]:
    """Points over the range of the data, and some beyond, dense enough at every component of a one-column mixture.

    Or over a span that is given.
    """
    low, high = (float(values.min()), float(values.max())) if span is None else span
    pad = 0.0 if span is not None else 0.12 * (high - low) or 3.0 * float(np.max(single.scales))
    near = np.asarray(single.means) + np.asarray(single.scales) * np.linspace(-4.0, 4.0, 81)
    even = np.linspace(low - pad, high + pad, 401)
    # Clipped rather than cut: grids of one length share one compiled density.
    return np.sort(np.clip(np.concatenate([even, near.ravel()]), even[0], even[-1]))


def densities(single: Mixture, grid: Float[np.ndarray, " g"]) -> Float[np.ndarray, "*draws g"]:
    """Density of a one-column mixture, or of each of its draws, along the grid."""
    return np.exp(np.asarray(single.log_prob(grid[:, None])))


def component_densities(single: Mixture, grid: Float[np.ndarray, " g"]) -> Float[np.ndarray, "*draws g k"]:
    """Density of every component times its weight, along the grid."""
    return np.exp(np.asarray(single.joint_log_prob(grid[:, None])))


def bin_edges(values: Float[np.ndarray, " n"]) -> list[float]:
    """Edges of some 12 to 50 equal bins, two thirds as wide as the rule of Freedman & Diaconis (1981) makes them.

    That rule is for one smooth hump; clusters narrower than the whole want finer bins. Where the values are rounded,
    every bin holds the same number of possible values: other bins would show a comb that is not in the data.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return [low - 0.5, low + 0.5]
    lower, upper = np.quantile(values, [0.25, 0.75])
    width = 2.0 / 1.5 * float(upper - lower) / len(values) ** (1 / 3)
    width = float(np.clip(width, (high - low) / 50, (high - low) / 12))
    gaps = np.diff(np.unique(values))
    gaps = gaps[gaps > 1e-5 * (high - low)]
    if len(gaps) < len(values) / 2:
        step = float(gaps.min())
        width = max(np.ceil(width / step - 1e-3), 1) * step
        low, high = low - step / 2, high + step / 2
    return (low + width * np.arange(np.ceil((high - low) / width - 1e-6) + 1)).tolist()


def draw_histogram(
    ax: Axes, values: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"] | None, num_clusters: int
) -> None:
    """Histogram of one column with area 1; with labels, the clusters' shares stacked in pale tints of their colours."""
    if labels is None:
        ax.hist(values, bins=bin_edges(values), density=True, color=DATA_GREY, alpha=0.35, linewidth=0.0)
        return
    ax.hist(
        [values[labels == cluster] for cluster in range(num_clusters)],
        bins=bin_edges(values),
        density=True,
        stacked=True,
        color=[cluster_colour(cluster) for cluster in range(num_clusters)],
        alpha=0.3,
        linewidth=0.0,
    )


def draw_rug(ax: Axes, values: Float[np.ndarray, " n"], colour: str, *, height: float = 0.035) -> None:
    """A short tick for every row, at the foot of the axes."""
    ax.plot(
        values,
        np.full(len(values), height / 2),
        linestyle="none",
        marker="|",
        markersize=7.0,
        markeredgewidth=0.8,
        color=colour,
        alpha=0.8,
        transform=ax.get_xaxis_transform(),
        rasterized=len(values) > _MANY_ROWS,
        gid="rug",
    )


def draw_points(ax: Axes, points: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"], num_clusters: int) -> None:
    """A scatter of the rows, one collection for every cluster."""
    for cluster in range(num_clusters):
        chosen = points[labels == cluster]
        ax.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=point_size(len(points)),
            color=cluster_colour(cluster),
            marker=cluster_marker(cluster),
            alpha=0.6,
            linewidths=0.0,
            rasterized=len(points) > _MANY_ROWS,
            gid=f"cluster {cluster}",
        )


def draw_plain_points(ax: Axes, points: Float[np.ndarray, "n 2"]) -> None:
    """A scatter of the rows in grey, as the ground of something else."""
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=0.6 * point_size(len(points)),
        color=DATA_GREY,
        alpha=0.7,
        linewidths=0.0,
        rasterized=len(points) > _MANY_ROWS,
        gid="rows",
    )


def draw_ground(ax: Axes, points: Float[np.ndarray, "n 2"]) -> None:
    """The rows as small dark points over a field."""
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=0.4 * point_size(len(points)),
        color=INK,
        alpha=0.7,
        linewidths=0.0,
        rasterized=len(points) > _MANY_ROWS,
        zorder=3,
        gid="rows",
    )


def point_size(num_rows: int) -> float:
    """Area of a marker in square points, smaller for more rows."""
    return float(np.clip(4000.0 / num_rows, 3.0, 18.0))
