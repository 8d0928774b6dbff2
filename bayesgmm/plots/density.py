"""The density over the plane, and along a slice through it with what the posterior leaves open."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from bayesgmm.errors import InputError
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.numerics.precision import ArrayLike
from bayesgmm.numerics.validation import real_array, short_repr
from bayesgmm.plots import panels, shapes
from bayesgmm.plots.panels import BLUE, INK, VERMILION, AxesLike
from bayesgmm.plots.view import Columns, Drawable, Names, View, point_and_draws, view_rows
from bayesgmm.posterior.allocations import pooled_draws

_PLANE_DRAWS = 100  # averaged into a density over the plane: more of them move no contour
_BAND_DRAWS = 400


def plot_density_contours(
    mixture_or_fit: Drawable,
    x: ArrayLike,
    *,
    levels: Sequence[float] = (0.5, 0.9, 0.99),
    ax: AxesLike = None,
    columns: Columns = None,
    feature_names: Names = None,
) -> Axes:
    """Draw the regions of highest density that hold given parts of the mass, over two columns, with the rows.

    Of a posterior the density is the posterior predictive one, the average over at most 100 draws; labels do not
    matter to it. Where there are more columns it is the marginal density of the two that are shown.

    Args:
        mixture_or_fit: a mixture, draws as a mixture with leading axes, or a fit, whose draws are used if it has any.
        x: rows (n, d).
        levels: probability masses of the regions.
        ax: axes to draw on.
        columns: two columns, by number or name, by default those that separate the components best; or "pca", the
            first two principal components of the standardised columns, or "discriminant" (see `plot_assignments`).
        feature_names: names of all d features.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for rows of one column, for parameters that are NaN, and for arguments that do not fit the mixture.
    """
    levels = shapes.check_levels(levels)
    _, draws = point_and_draws(mixture_or_fit, _PLANE_DRAWS)
    view = _plane_of(draws, x, columns, feature_names)
    ax = panels.one_axes(ax, (6.4, 4.2))
    _draw_regions(ax, draws, view, levels)
    return panels.finish(ax)


def plot_density_slice(
    mixture_or_fit: Drawable,
    x: ArrayLike,
    *,
    along: int | str = 0,
    at: Mapping[int | str, float] | None = None,
    span: tuple[float, float] | None = None,
    ax: AxesLike = None,
    feature_names: Names = None,
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
    given = {} if at is None else dict(at)
    view = view_rows(draws, x, [along, *given], feature_names, at_most=draws.num_features)
    values = [_real_number(f"at[{column!r}]", value) for column, value in given.items()]
    if span is not None:
        low, high = (_real_number("span", end) for end in span)
        if not low < high:
            raise InputError(f"span={span!r} must be two rising numbers")
        span = (low, high)
    ax = panels.one_axes(ax, (6.4, 3.4))
    _draw_slice(ax, draws, view, values, span)
    return panels.finish(ax)


def plot_density_with_slice(
    mixture_or_fit: Drawable,
    x: ArrayLike,
    *,
    at: float | None = None,
    levels: Sequence[float] = (0.5, 0.9, 0.99),
    ax: AxesLike = None,
    columns: Iterable[int | str] | None = None,
    feature_names: Names = None,
) -> np.ndarray:
    """Draw the density over two columns, and beneath it the density along a level slice with the band of the draws.

    Args:
        mixture_or_fit: as in `plot_density_contours`.
        x: rows (n, d).
        at: value of the second column at which the plane is cut, by default the median of the rows.
        levels: probability masses of the regions.
        ax: two axes, of the plane and of the slice.
        columns: two columns, by number or name; by default those that separate the components best.
        feature_names: names of all d features.

    Returns:
        The two axes drawn on, an array.

    Raises:
        InputError: as `plot_density_contours` and `plot_density_slice`.
    """
    levels = shapes.check_levels(levels)
    _, draws = point_and_draws(mixture_or_fit, _PLANE_DRAWS)
    view = _plane_of(draws, x, columns, feature_names)
    if view.rotation is not None:
        raise InputError(f"columns={columns!r} has no column to cut along; give two columns")
    place = float(np.median(view.shown[:, 1])) if at is None else _real_number("at", at)
    if ax is None:
        ax = panels.new_axes((6.4, 6.0), 2, 1, sharex=True, height_ratios=(1.5, 1.0))
    plane, slice_ = panels.several_axes(ax, (2,), (0.0, 0.0), "a plane and its slice need")
    _draw_regions(plane, draws, view, levels)
    look: dict[str, Any] = {"color": VERMILION, "linewidth": 1.4, "linestyle": (0.0, (5.0, 2.0))}
    plane.axhline(place, zorder=4, label="the slice beneath", gid="slice", **look)
    _, many = point_and_draws(mixture_or_fit, _BAND_DRAWS)
    _draw_slice(slice_, many, view, [place], plane.get_xlim())
    slice_.set_ylabel(f"density at\n{view.names[1]} = {place:g}")
    if plane.get_subplotspec() is not None and slice_.get_shared_x_axes().joined(plane, slice_):
        plane.set_xlabel("")
    return np.array([panels.finish(one) for one in (plane, slice_)])


def _real_number(name: str, value: object) -> float:
    number = real_array(value, name)
    if np.ndim(number) or not np.isfinite(number):
        raise InputError(f"{name}={short_repr(value)} must be a finite number")
    return float(number)


def _plane_of(draws: Mixture, x: ArrayLike, columns: Columns, feature_names: Names) -> View:
    """A view of exactly two coordinates."""
    view = view_rows(draws, x, columns, feature_names, at_most=2)
    if view.num_shown != 2:
        cure = "use plot_density_slice" if view.x.shape[1] == 1 else "give two"
        raise InputError(f"the plane takes two columns, and one is shown ({view.names[0]}); {cure}")
    return view


def _draw_regions(ax: Axes, draws: Mixture, view: View, levels: tuple[float, ...]) -> None:
    points, pair = view.shown.astype(np.float64), pooled_draws(view.marginal(draws, 0, 1))
    edges = shapes.region_heights(pair, levels[::-1])
    horizontal, vertical, grid = shapes.grid_of(shapes.plane_of_region(pair, points, edges[0]))
    field = shapes.density_at(pair, grid).reshape(len(horizontal), len(vertical)).T
    # Opacities from the outermost region to the innermost.
    shades = np.linspace(0.12, 0.55, len(levels)) if len(levels) > 1 else [0.3]
    colours = [to_rgba(BLUE, float(shade)) for shade in shades]
    ax.contourf(horizontal, vertical, field, levels=[*edges, np.inf], colors=colours, zorder=0, gid="regions")
    ax.contour(horizontal, vertical, field, levels=edges, colors=BLUE, linewidths=0.8, zorder=1, gid="edges")
    shapes.draw_ground(ax, points)
    of = "posterior predictive" if draws.draw_shape else "the mixture"
    for level, colour in zip(levels, reversed(colours), strict=True):
        panels.add_swatch(ax, f"{100 * level:g}% of {of}", facecolor=colour, edgecolor=BLUE, linewidth=0.8)
    panels.label_rows(ax)
    ax.set(xlim=horizontal[[0, -1]], ylim=vertical[[0, -1]], xlabel=view.names[0], ylabel=view.names[1])


def _draw_slice(ax: Axes, draws: Mixture, view: View, at: list[float], span: tuple[float, float] | None) -> None:
    """The density along the first coordinate of the view where the others are `at`, of all draws."""
    sliced, values = view.marginal(draws, *range(view.num_shown)), view.shown[:, 0]
    grid = shapes.density_grid(sliced.marginal([0]), values, span)
    line = np.column_stack([grid, *(np.full(len(grid), value) for value in at)])
    curves = np.exp(np.asarray(sliced.log_prob(line)))
    if sliced.draw_shape:
        ax.plot(grid, curves.mean(0), color=INK, linewidth=1.6, label="posterior predictive density", gid="density")
        shapes.draw_band(ax, grid, curves, BLUE, alpha=0.3, label="90% of draws", gid="band")
    else:
        ax.plot(grid, curves, color=INK, linewidth=1.6, label="density", gid="density")
    if not at:
        shapes.draw_histogram(ax, [values], rug=True, label="rows, histogram")
    places = ", ".join(f"{name} = {value:g}" for name, value in zip(view.names[1:], at, strict=True))
    highest = 1.08 * max(float(ax.dataLim.y1), np.finfo(float).tiny)
    ax.set(xlim=grid[[0, -1]], ylim=(0.0, highest), xlabel=view.names[0])
    ax.set_ylabel(f"density at {places}" if places else "density")
