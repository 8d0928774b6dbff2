"""The density over the plane, and along a slice through it with what the posterior leaves open."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesgmm.engines.fit import Fit
from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.validation import real_array, shown
from bayesgmm.plots.fields import averaged, density_at, grid_of, plane_of_region, region_heights
from bayesgmm.plots.panels import new_axes, one_axes, several_axes
from bayesgmm.plots.shapes import check_levels, density_grid, draw_ground, draw_histogram, draw_rug
from bayesgmm.plots.style import BLUE, DATA_GREY, INK, VERMILION, legend_beside, tidy
from bayesgmm.plots.view import View, as_float64, point_and_draws, view_rows

_PLANE_DRAWS = 100  # averaged into a density over the plane: more of them move no contour
_BAND_DRAWS = 400
_BAND = (0.05, 0.95)


def plot_density_contours(
    mixture_or_fit: Mixture | Fit,
    x: Any,
    *,
    levels: Sequence[float] = (0.5, 0.9, 0.99),
    ax: Any = None,
    columns: Iterable[int | str] | str | None = None,
    feature_names: Iterable[str] | None = None,
) -> Axes:
    """Draw the regions of highest density that hold given parts of the mass, over two columns, with the rows.

    Of a posterior the density is the posterior predictive one, the average over at most 100 draws; labels do not
    matter to it. Where there are more columns it is the marginal density of the two that are shown.

    Args:
        mixture_or_fit: a mixture, draws as a mixture with leading axes, or a fit, whose draws are used if it has any.
        x: rows (n, d).
        levels: probability masses of the regions.
        ax: axes to draw on.
        columns: two columns, by number or name, by default the first two; or "pca", the first two principal components
            of the standardised columns.
        feature_names: names of all d features.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for rows of one column, for parameters that are NaN, and for arguments that do not fit the mixture.
    """
    levels = tuple(sorted(levels))
    check_levels(levels)
    _, draws = point_and_draws(mixture_or_fit, _PLANE_DRAWS)
    view = _plane_of(draws, x, columns, feature_names)
    ax = one_axes(ax, (6.4, 4.2))
    _draw_regions(ax, averaged(view.marginal(draws, 0, 1)), view, levels)
    legend_beside(ax, _region_handles(levels, averaged_draws=bool(draws.draw_shape)))
    return ax


def plot_density_slice(
    mixture_or_fit: Mixture | Fit,
    x: Any,
    *,
    along: int | str = 0,
    at: Mapping[int | str, float] | None = None,
    span: tuple[float, float] | None = None,
    ax: Any = None,
    feature_names: Iterable[str] | None = None,
) -> Axes:
    """Draw the density along one column, where others have given values, with a band that holds 90% of the draws.

    It is the joint density of those columns, in units of one over the product of theirs; columns that are not named
    are integrated out. Without `at` it is the marginal density of the column, over a histogram of the rows.

    Args:
        mixture_or_fit: a mixture, draws as a mixture with leading axes, or a fit, whose draws are used if it has any:
            the line is then the average over the draws, and the band holds 90% of them at each point.
        x: rows (n, d).
        along: the column that varies, by number or name.
        at: values of other columns, by number or name, such as {"waiting": 70.0}.
        span: where the line begins and ends, by default some way beyond the rows.
        ax: axes to draw on.
        feature_names: names of all d features.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for columns that do not exist or come twice, values that are not finite numbers, parameters that
            are NaN.
    """
    _, draws = point_and_draws(mixture_or_fit, _BAND_DRAWS)
    if feature_names is not None and not isinstance(feature_names, str):
        feature_names = tuple(feature_names)
    view = view_rows(draws, x, [along], feature_names, at_most=1)
    given = {} if at is None else dict(at)
    fixed = [view_rows(draws, x, [column], feature_names, at_most=1) for column in given]
    columns = [one.columns[0] for one in (view, *fixed)]
    if len(set(columns)) < len(columns):
        raise InputError(f"along={along!r} and at={given!r} name a column twice; give different columns")
    values = [_real_number(f"at[{column!r}]", value) for column, value in given.items()]
    if span is not None:
        low, high = (_real_number("span", end) for end in span)
        if not low < high:
            raise InputError(f"span={span!r} must be two rising numbers")
        span = (low, high)
    ax = one_axes(ax, (6.4, 3.4))
    _draw_slice(ax, as_float64(draws).marginal(columns), view.shown[:, 0], values, span)
    places = ", ".join(f"{one.names[0]} = {value:g}" for one, value in zip(fixed, values, strict=True))
    ax.set_ylabel(f"density at {places}" if places else "density")
    ax.set_xlabel(view.names[0])
    tidy(ax)
    legend_beside(ax, _slice_handles(bool(draws.draw_shape), histogram=not values))
    return ax


def plot_density_with_slice(
    mixture_or_fit: Mixture | Fit,
    x: Any,
    *,
    at: float | None = None,
    levels: Sequence[float] = (0.5, 0.9, 0.99),
    ax: Any = None,
    columns: Iterable[int | str] | None = None,
    feature_names: Iterable[str] | None = None,
) -> Any:
    """Draw the density over two columns, and beneath it the density along a level slice with the band of the draws.

    Args:
        mixture_or_fit: as in `plot_density_contours`.
        x: rows (n, d).
        at: value of the second column at which the plane is cut, by default the median of the rows.
        levels: probability masses of the regions.
        ax: two axes, of the plane and of the slice.
        columns: two columns, by number or name; by default the first two.
        feature_names: names of all d features.

    Returns:
        The two axes drawn on, an array.

    Raises:
        InputError: as `plot_density_contours` and `plot_density_slice`.
    """
    if feature_names is not None and not isinstance(feature_names, str):
        feature_names = tuple(feature_names)
    _, draws = point_and_draws(mixture_or_fit, _PLANE_DRAWS)
    view = _plane_of(draws, x, columns, feature_names)
    if view.rotation is not None:
        raise InputError('columns="pca" has no column to cut along; give two columns')
    along, across = view.columns
    place = float(np.median(view.shown[:, 1])) if at is None else _real_number("at", at)
    if ax is None:
        ax = new_axes((6.4, 6.0), 2, 1, sharex=True, height_ratios=(1.5, 1.0))
    plane, slice_ = several_axes(ax, (2,), (0.0, 0.0), "a plane and its slice need")
    plot_density_contours(mixture_or_fit, x, levels=levels, ax=plane, columns=view.columns, feature_names=feature_names)
    plane.axhline(place, color=VERMILION, linewidth=1.4, linestyle=(0.0, (5.0, 2.0)), zorder=4, gid="slice")
    handle = Line2D([], [], color=VERMILION, linewidth=1.4, linestyle=(0.0, (5.0, 2.0)), label="the slice beneath")
    legend_beside(plane, [*_region_handles(tuple(sorted(levels)), averaged_draws=bool(draws.draw_shape)), handle])
    options: dict[str, Any] = {"span": plane.get_xlim(), "ax": slice_, "feature_names": feature_names}
    plot_density_slice(mixture_or_fit, x, along=along, at={across: place}, **options)
    slice_.set_ylabel(f"density at\n{view.names[1]} = {place:g}")
    if plane.get_subplotspec() is not None and slice_.get_shared_x_axes().joined(plane, slice_):
        plane.set_xlabel("")
    return np.array([plane, slice_])


def _real_number(name: str, value: Any) -> float:
    number = real_array(value, name)
    if np.ndim(number) or not np.isfinite(number):
        raise InputError(f"{name}={shown(value)} must be a finite number")
    return float(number)


def _plane_of(draws: Mixture, x: Any, columns: Any, feature_names: Iterable[str] | None) -> View:
    """A view of exactly two coordinates."""
    view = view_rows(draws, x, columns, feature_names, at_most=2)
    if view.num_shown != 2:
        cure = "use plot_density_slice" if view.x.shape[1] == 1 else "give two"
        raise InputError(f"the plane takes two columns, and one is shown ({view.names[0]}); {cure}")
    return view


def _draw_regions(ax: Axes, pair: Mixture, view: View, levels: tuple[float, ...]) -> None:
    points = view.shown.astype(np.float64)
    edges = region_heights(pair, levels[::-1])
    horizontal, vertical, grid = grid_of(plane_of_region(pair, points, edges[0]))
    field = density_at(pair, grid).reshape(len(horizontal), len(vertical)).T
    colours = [to_rgba(BLUE, shade) for shade in _shades(len(levels))]
    ax.contourf(horizontal, vertical, field, levels=[*edges, np.inf], colors=colours, zorder=0, gid="regions")
    ax.contour(horizontal, vertical, field, levels=edges, colors=BLUE, linewidths=0.8, zorder=1, gid="edges")
    draw_ground(ax, points)
    ax.set_xlim(horizontal[0], horizontal[-1])
    ax.set_ylim(vertical[0], vertical[-1])
    ax.set_xlabel(view.names[0])
    ax.set_ylabel(view.names[1])
    tidy(ax)


def _draw_slice(
    ax: Axes, sliced: Mixture, values: Float[np.ndarray, " n"], at: list[float], span: tuple[float, float] | None
) -> None:
    """The density of the first column of `sliced` where the others are `at`, for all draws."""
    first = sliced.marginal([0])
    grid = density_grid(first[0] if first.draw_shape else first, values, span)
    line = np.column_stack([grid, *(np.full(len(grid), value) for value in at)])
    curves = np.exp(np.asarray(sliced.log_prob(line)))
    if not at:
        draw_histogram(ax, values, None, 1)
        draw_rug(ax, values, DATA_GREY)
    if sliced.draw_shape:
        low, high = np.quantile(curves, _BAND, axis=0)
        ax.fill_between(grid, low, high, color=BLUE, alpha=0.3, linewidth=0.0, gid="band")
        curves = curves.mean(0)
    ax.plot(grid, curves, color=INK, linewidth=1.6, gid="density")
    ax.set_ylim(0.0, 1.08 * max(float(ax.dataLim.y1), np.finfo(float).tiny))
    ax.set_xlim(float(grid[0]), float(grid[-1]))


def _shades(count: int) -> list[float]:
    """Opacities of regions from the outermost to the innermost."""
    return np.linspace(0.12, 0.55, count).tolist() if count > 1 else [0.3]


def _region_handles(levels: tuple[float, ...], *, averaged_draws: bool) -> list[Any]:
    of = "posterior predictive" if averaged_draws else "the mixture"
    handles: list[Any] = [
        Patch(facecolor=to_rgba(BLUE, shade), edgecolor=BLUE, linewidth=0.8, label=f"{100 * level:g}% of {of}")
        for level, shade in zip(levels, reversed(_shades(len(levels))), strict=True)
    ]
    handles.append(Line2D([], [], color=INK, marker="o", markersize=3.5, linestyle="none", label="rows"))
    return handles


def _slice_handles(posterior: bool, *, histogram: bool) -> list[Any]:
    line = "posterior predictive density" if posterior else "density"
    handles: list[Any] = [Line2D([], [], color=INK, linewidth=1.6, label=line)]
    if posterior:
        handles.append(Patch(color=BLUE, alpha=0.3, linewidth=0.0, label="90% of draws"))
    if histogram:
        handles.append(Patch(color=DATA_GREY, alpha=0.35, linewidth=0.0, label="rows, histogram"))
    return handles
