"""What is drawn of mixtures and rows: ellipses, curves, regions of highest density, scatters, histograms, rugs."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from scipy.special import entr
from scipy.stats import chi2, iqr

from bayesgmm.errors import InputError
from bayesgmm.likelihood.scores import row_log_prob
from bayesgmm.mixtures.functionals import hdr_level
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.validation import short_repr
from bayesgmm.plots.panels import DATA_GREY, INK, cluster_colour, cluster_marker

MANY_ROWS = 5000
"""Beyond it points are drawn as pixels even in a PDF, which would otherwise take minutes to open."""

BAND = (0.05, 0.95)
"""Quantiles of the draws between which a band lies."""

# From white, through the first and second colour of the palette, to nearly black: dark in print, and without red
# against green.
PROBABILITY = LinearSegmentedColormap.from_list("probability", ["#FFFFFF", "#A9CFE5", "#0072B2", "#00324F"])
UNCERTAINTY = LinearSegmentedColormap.from_list("uncertainty", ["#FFFFFF", "#F7DCAA", "#E69F00", "#B03A00", "#3D0C00"])

type Grid = Float[np.ndarray, " g"]
"""Coordinates along an axis."""

_SIDE = 192  # points of the grid along each axis
_MARGIN = 0.08  # about the rows, of their range
_BORDER, _MOST_STEPS = 128, 30  # points along an edge of the plane, and how often it may give way by twice the margin
_NUM_ROWS = 16_384  # of which levels of regions are quantiles: the mass of one of 90% is right to 0.25%


def plane_around(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2 2"]:
    """Lowest and highest coordinates, (2, 2), that hold the rows and a margin about them."""
    low, high = points.min(0), points.max(0)
    pad = np.where(high > low, _MARGIN * (high - low), 1.0)
    return np.stack([low - pad, high + pad])


def plane_of_region(pair: Mixture, points: Float[np.ndarray, "n 2"], height: float) -> Float[np.ndarray, "2 2"]:
    """Lowest and highest coordinates that hold all of the region where the density is above a height, within reason."""
    span = plane_around(points)
    for _ in range(_MOST_STEPS):
        horizontal, vertical = np.linspace(span[0], span[1], _BORDER).T
        sides = []  # left, bottom, right, top
        for low_or_high in span:
            sides.append(np.column_stack([np.full(_BORDER, low_or_high[0]), vertical]))
            sides.append(np.column_stack([horizontal, np.full(_BORDER, low_or_high[1])]))
        beyond = (density_at(pair, np.concatenate(sides)).reshape(2, 2, _BORDER) > height).any(-1)
        if not beyond.any():
            break
        span = span + np.array([[-1.0], [1.0]]) * np.where(beyond, 2 * _MARGIN * (span[1] - span[0]), 0.0)
    return span


def grid_of(span: Float[np.ndarray, "2 2"]) -> tuple[Grid, Grid, Float[np.ndarray, "g*g 2"]]:
    """Even coordinates along both axes, and all their pairs (first axis slowest)."""
    horizontal, vertical = np.linspace(span[0], span[1], _SIDE).T
    pairs = np.stack(np.meshgrid(horizontal, vertical, indexing="ij"), axis=-1)
    return horizontal, vertical, pairs.reshape(-1, 2)


def density_at(mixture: Mixture, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Density of one mixture, of however many components, at points."""
    return np.exp(np.asarray(row_log_prob(mixture, points)))


def region_heights(pair: Mixture, levels: Sequence[float]) -> Float[np.ndarray, " l"]:
    """Heights of the density above which it holds these masses; always of the same random rows, for equal pictures."""
    return np.exp(hdr_level(pair, np.asarray(levels), key=jax.random.key(0), num_draws=_NUM_ROWS).value)


def assignment_entropy(responsibilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    r"""Entropy of every row's assignment in bits, $-\sum_j r_{ij} \log_2 r_{ij}$: 0 where it is certain."""
    return entr(np.clip(np.asarray(responsibilities, np.float64), 0.0, 1.0)).sum(-1) / np.log(2.0)


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Probability masses in ascending order.

    Raises:
        InputError: for masses outside (0, 1), for none, and for what is not a number.
    """
    try:
        ordered = tuple(sorted(float(level) for level in levels))
    except (TypeError, ValueError):
        ordered = ()
    if not ordered or not all(0 < level < 1 for level in ordered):
        raise InputError(f"levels={short_repr(levels)} must be probability masses between 0 and 1, such as (0.5, 0.9)")
    return ordered


def ellipse_outlines(pair: Mixture, level: float, num_points: int = 121) -> Float[np.ndarray, "*draws k num_points 2"]:
    """Points on the ellipse that holds `level` of the mass of every component of a two-dimensional mixture."""
    # The symmetric root exists for covariances that rounding has made singular, where Cholesky's does not.
    values, vectors = np.linalg.eigh(np.asarray(pair.covariances, np.float64))
    root = vectors * np.sqrt(np.clip(values, 0.0, None))[..., None, :]
    angles = np.linspace(0.0, 2 * np.pi, num_points)
    circle = np.sqrt(chi2.ppf(level, df=2)) * np.stack([np.cos(angles), np.sin(angles)])
    return np.asarray(pair.means)[..., None, :] + np.swapaxes(root @ circle, -1, -2)


def density_grid(single: Mixture, values: Float[np.ndarray, " n"], span: tuple[float, float] | None = None) -> Grid:
    """Points over the range of the data, and some beyond, dense enough at every component of a one-column mixture.

    Or over a span that is given. Of draws (s) the first decides where points are dense.
    """
    single = single[0] if single.draw_shape else single
    low, high = (float(values.min()), float(values.max())) if span is None else span
    pad = 0.0 if span is not None else 0.12 * (high - low) or 3.0 * float(np.max(single.scales))
    near = np.asarray(single.means) + np.asarray(single.scales) * np.linspace(-4.0, 4.0, 81)
    even = np.linspace(low - pad, high + pad, 401)
    # Clipped rather than cut: grids of one length share one compiled density.
    return np.sort(np.clip(np.concatenate([even, near.ravel()]), even[0], even[-1]))


def densities(single: Mixture, grid: Grid) -> Float[np.ndarray, "*draws g"]:
    """Density of a one-column mixture, or of each of its draws, along the grid."""
    return np.exp(np.asarray(single.log_prob(grid[:, None])))


def component_densities(single: Mixture, grid: Grid) -> Float[np.ndarray, "*draws g k"]:
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
    width = float(np.clip(2.0 / 1.5 * iqr(values) / len(values) ** (1 / 3), (high - low) / 50, (high - low) / 12))
    gaps = np.diff(np.unique(values))
    gaps = gaps[gaps > 1e-5 * (high - low)]
    if len(gaps) < len(values) / 2:
        step = float(gaps.min())
        width = max(np.ceil(width / step - 1e-3), 1) * step
        low, high = low - step / 2, high + step / 2
    return (low + width * np.arange(np.ceil((high - low) / width - 1e-6) + 1)).tolist()


def draw_band(ax: Axes, grid: Grid, curves: Float[np.ndarray, "s g"], colour: str, **look: object) -> None:
    """The band between two quantiles of the draws' curves, at each point."""
    ax.fill_between(grid, *np.quantile(curves, BAND, axis=0), color=colour, linewidth=0.0, **look)


def draw_lines(ax: Axes, lines: Float[np.ndarray, "m g 2"], colour: str, *, autolim: bool = True, **look: Any) -> None:
    """Many thin lines as one collection; with `autolim` the limits of the axes hold them."""
    ax.add_collection(LineCollection(list(lines), colors=colour, **look), autolim=autolim)


def draw_curves(ax: Axes, grid: Grid, curves: Float[np.ndarray, "s g"], colour: str, **look: Any) -> None:
    """Many thin curves along the grid, as `draw_lines` draws them."""
    draw_lines(ax, np.stack([np.broadcast_to(grid, curves.shape), curves], axis=-1), colour, **look)


def draw_histogram(
    ax: Axes, parts: list[Float[np.ndarray, " _"]], colours: Sequence[str] = (DATA_GREY,), *, rug: bool, **look: object
) -> None:
    """Histogram of one column with area 1, its parts stacked; with a rug also a short tick for every row."""
    bins = bin_edges(np.concatenate(parts))
    ax.hist(parts, bins, density=True, stacked=True, color=colours, linewidth=0.0, **{"alpha": 0.35, **look})
    for part, colour in zip(parts, colours, strict=True) if rug else ():
        draw_rug(ax, part, colour)


def draw_rug(ax: Axes, values: Float[np.ndarray, " n"], colour: str) -> None:
    """A short tick for every row, at the foot of the axes."""
    mark: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 7.0, "markeredgewidth": 0.8}
    mark |= {"transform": ax.get_xaxis_transform(), "rasterized": len(values) > MANY_ROWS, "zorder": 2.1}
    ax.plot(values, np.full(len(values), 0.0175), color=colour, alpha=0.8, gid="rug", **mark)


def draw_points(ax: Axes, points: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"], num_clusters: int) -> None:
    """A scatter of the rows, one collection for every cluster."""
    for cluster in range(num_clusters):
        look = {"color": cluster_colour(cluster), "marker": cluster_marker(cluster), "gid": f"cluster {cluster}"}
        _scatter(ax, points[labels == cluster], len(points), 1.0, alpha=0.6, **look)


def draw_ground(ax: Axes, points: Float[np.ndarray, "n 2"], *, size: float = 0.4, **look: Any) -> None:
    """The rows as small points, by default dark ones over a field."""
    _scatter(ax, points, len(points), size, **{"color": INK, "alpha": 0.7, "zorder": 3, "gid": "rows", **look})


def _scatter(ax: Axes, points: Float[np.ndarray, "m 2"], num_rows: int, size: float, **look: Any) -> None:
    area = size * point_size(num_rows)
    ax.scatter(points[:, 0], points[:, 1], s=area, linewidths=0.0, rasterized=num_rows > MANY_ROWS, **look)


def draw_components(ax: Axes, pair: Mixture, levels: Sequence[float]) -> None:
    """Ellipses and means of the components of a two-dimensional mixture, the smallest mass in the strongest line."""
    for level, width in zip(levels, np.linspace(1.8, 1.0, len(levels)), strict=True):
        for cluster, outline in enumerate(ellipse_outlines(pair, level)):
            colour = cluster_colour(cluster)
            # A white edge keeps the line apart from points of its own colour.
            ax.plot(*outline.T, color="white", linewidth=width + 1.6, alpha=0.7, zorder=3, gid="halo")
            ax.plot(*outline.T, color=colour, linewidth=width, zorder=4, gid=f"ellipse {cluster} {level:g}")
    draw_centres(ax, np.asarray(pair.means), "mean")


def draw_outlines(ax: Axes, pair: Mixture, *, zorder: int) -> None:
    """Thin ellipses that hold 90% of every component, over colours that say something else."""
    for outline in ellipse_outlines(pair, 0.9):
        ax.plot(*outline.T, color=INK, linewidth=0.8, alpha=0.6, zorder=zorder, gid="ellipse")


def draw_centres(ax: Axes, places: Float[np.ndarray, "k 2"], name: str) -> None:
    """A mark at every one of some places, such as the means of components."""
    look: dict[str, Any] = {"marker": "X", "markersize": 8.0, "markeredgecolor": "white", "markeredgewidth": 1.0}
    for cluster, place in enumerate(places):
        ax.plot(*place[:, None], color=INK, linestyle="none", zorder=5, gid=f"{name} {cluster}", **look)


def point_size(num_rows: int) -> float:
    """Area of a marker in square points, smaller for more rows."""
    return float(np.clip(4000.0 / num_rows, 3.0, 18.0))
