"""Pictures that ArviZ draws, on axes of the caller: chains, ranks, replicated data, Pareto shapes."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bayesgmm.diagnostics.leave_one_out import num_draws, pointwise_loo
from bayesgmm.errors import InputError
from bayesgmm.numerics.thresholds import pareto_k_limit
from bayesgmm.numerics.validation import one_of, whole_number
from bayesgmm.numerics.words import counted
from bayesgmm.plots import panels
from bayesgmm.plots.panels import BLUE, FONT_SIZE, INK, PALETTE, VERMILION, AxesLike
from bayesgmm.plots.view import engines_giving, evenly_spaced

if TYPE_CHECKING:
    from arviz_plots.plot_collection import PlotCollection
    from xarray import Dataset, DataTree

type Coords = Mapping[str, Any] | None
"""What to draw of variables, by the names of their dimensions."""

_NUM_REPLICATES = 50
_FEWEST_DRAWS = 4
_MOST_PARAMETERS = 12
# ArviZ's function, the width of its lines, and what is along its axis.
_BY_CHAIN = {
    "trace": ("plot_trace_dist", 0.5, "draw"),
    "rank": ("plot_rank_dist", 1.2, "rank among all draws, as a fraction"),
}
_WORDS = {
    "weights": "weight",
    "means": "mean of {feature}",
    "scales": "sd of {feature}",
    "covariances": "covariance of {feature} and {feature_other}",
}


def plot_pareto_k(tree: "DataTree", *, ax: AxesLike = None) -> Axes:
    """Draw the Pareto shape k of every row's importance weights in leave-one-out (by `arviz.plot_khat`).

    Above the dashed line, min(1 - 1 / log10 s, 0.7) of s draws, the estimate of a row's term is unreliable, and the row
    is marked with its number: it is far from all others, or the model fits it badly. Of a variational fit the weights
    also correct for the approximation.

    Args:
        tree: a tree of `to_datatree` with draws.
        ax: axes to draw on.

    Returns:
        The axes drawn on.

    Raises:
        InputError: for a tree of a point estimate, or without the log-likelihood of the rows.

    Source: Vehtari, Gelman & Gabry (2017); Vehtari et al. (2024), Pareto smoothed importance sampling.
    """
    import arviz

    _check_tree(tree, "log_likelihood")
    found, limit = pointwise_loo(tree), pareto_k_limit(num_draws(tree))
    ax = panels.one_axes(ax, (6.4, 3.2))
    points = {"color": BLUE, "size": 14, "alpha": 0.8}
    arviz.plot_khat(
        found,
        threshold=limit,
        plot_collection=on_axes(found.pareto_k.to_dataset(name="pareto_k"), {"pareto_k": np.array(ax, object)}),
        visuals={"khat": points, "threshold_text": {"size": FONT_SIZE - 1}, "hlines": False},
    )
    num_bad = int((np.asarray(found.pareto_k) > limit).sum())
    label = f"k = {limit:.2f}; {counted(num_bad, 'row')} above"
    look: dict[str, Any] = {"color": VERMILION, "linewidth": 1.2, "linestyle": (0.0, (5.0, 2.0))}
    ax.axhline(limit, label=label, gid="threshold", **look)
    ax.set_ylim(top=max(ax.get_ylim()[1], limit + 0.15))
    return panels.finish(ax, xlabel="row", ylabel="Pareto shape k")


def plot_posterior_predictive(
    tree: "DataTree", *, num_replicates: int = _NUM_REPLICATES, kind: str = "kde", ax: AxesLike = None
) -> np.ndarray:
    """Draw every column's density in the data over that in data sets drawn from the posterior (`arviz.plot_ppc_dist`).

    Args:
        tree: a tree of `to_datatree`.
        num_replicates: how many replicated data sets, evenly spaced over all chains; fewer if the tree has fewer.
        kind: "kde", "ecdf" or "hist".
        ax: axes to draw on, one for every feature.

    Returns:
        The axes drawn on: an array with one for every feature.

    Raises:
        InputError: for a tree without replicated data, an unknown kind, or axes that are not as many as features.
    """
    import arviz
    import xarray

    one_of("kind", kind, ("kde", "ecdf", "hist"))
    _check_tree(tree, "posterior_predictive", "observed_data", few_draws=1)
    features = [str(name) for name in tree.posterior_predictive["feature"].values]
    axes = panels.wrapped_axes(ax, len(features), 4, (2.7, 2.5), 1.8, f"{len(features)} features need")
    every = tree["posterior_predictive"].dataset[["x"]].stack(sample=("chain", "draw"), create_index=False)
    few = every.isel(sample=evenly_spaced(every.sizes["sample"], whole_number("num_replicates", num_replicates)))
    few = few.drop_vars(["chain", "draw"])
    groups = {"posterior_predictive": few.rename(sample="draw"), "observed_data": tree["observed_data"].dataset}
    collection = on_axes(few, {"x": axes}, ["feature"], aes={"overlay_ppc": ["sample"]})
    arviz.plot_ppc_dist(
        xarray.DataTree.from_dict(groups),
        var_names=["x"],
        sample_dims=["draw"],
        kind=kind,
        num_samples=few.sizes["sample"],
        plot_collection=collection,
        visuals={
            "predictive_dist": {"color": BLUE, "alpha": 0.25, "width": 0.7},
            "observed_dist": {"color": INK, "width": 1.6},
            "title": False,
        },
    )
    for name, panel in zip(features, axes, strict=True):
        panels.tidy(panel, xlabel=name)
    axes[0].set_ylabel("distribution function" if kind == "ecdf" else "density")
    last = axes[min(3, len(axes) - 1)]
    panels.add_label(last, "data", linewidth=1.6)
    panels.add_label(last, "data set drawn\nfrom the posterior", color=BLUE, linewidth=0.7)
    panels.legend_beside(last)
    return axes


def plot_chain_traces(
    tree: "DataTree", *, var_names: Sequence[str] = ("weights", "means"), coords: Coords = None, ax: AxesLike = None
) -> np.ndarray:
    """Draw the density of parameters by chain, and their draws in order (by `arviz.plot_trace_dist`).

    Curves that lie on one another, and traces that look like the same noise, are what chains that agree look like.

    Args:
        tree: a tree of `to_datatree` with chains.
        var_names: variables of the posterior.
        coords: what to draw of them, such as {"cluster": 0}.
        ax: axes to draw on, an array with a row for every parameter and two columns.

    Returns:
        The axes drawn on, (parameters, 2).

    Raises:
        InputError: for a tree of a point estimate, unknown variables or coordinates, and more than 12 parameters, of
            which no figure would be read.
    """
    return _by_chain(tree, "trace", var_names, coords, ax)


def plot_chain_ranks(
    tree: "DataTree", *, var_names: Sequence[str] = ("weights", "means"), coords: Coords = None, ax: AxesLike = None
) -> np.ndarray:
    """Draw the density of parameters by chain, and whether ranks of their draws are uniform (`arviz.plot_rank_dist`).

    The lines on the right are each chain's share of the ranks among all draws, less what is expected. Those of chains
    that agree stay near 0, and the p value is not small.

    Args:
        tree, var_names, coords, ax: as in `plot_chain_traces`.

    Returns:
        The axes drawn on, (parameters, 2).

    Raises:
        InputError: as `plot_chain_traces`.

    Source: Säilynoja, Bürkner & Vehtari (2022), Graphical test for discrete uniformity.
    """
    return _by_chain(tree, "rank", var_names, coords, ax)


def _by_chain(tree: "DataTree", column: str, var_names: Sequence[str], coords: Coords, ax: AxesLike) -> np.ndarray:
    import arviz
    import xarray

    _check_tree(tree, "posterior")
    posterior = tree["posterior"].dataset
    unknown = [name for name in var_names if name not in posterior]
    if unknown or not var_names:
        raise InputError(f"var_names has {unknown or 'none'}; the posterior has {', '.join(map(str, posterior))}")
    chosen = posterior[list(var_names)]
    try:
        chosen = chosen.sel({name: np.atleast_1d(value) for name, value in (coords or {}).items()})
    except (KeyError, ValueError) as error:
        raise InputError(f"coords={coords!r} is not in the posterior: {' '.join(str(error).split())}") from None
    places = [(str(name), at) for name, at, _ in arviz.xarray_sel_iter(chosen, skip_dims={"chain", "draw"})]
    total = len(places)
    if total > _MOST_PARAMETERS:
        raise InputError(
            f"var_names and coords leave {total} parameters; choose {_MOST_PARAMETERS} or fewer for one figure"
        )
    axes = panels.several_axes(ax, (total, 2), (7.4, 1.45 * total + 0.4), f"{total} parameters need")
    rows = {name: axes[[owner == name for owner, _ in places]] for name in chosen}
    facets = [dim for dim in chosen.dims if dim not in ("chain", "draw")]
    data = chosen.expand_dims(column=["dist", column])
    aes = {"color": ["chain"], "overlay": ["chain"]}
    draw, width, label = _BY_CHAIN[column]
    getattr(arviz, draw)(
        xarray.DataTree.from_dict({"posterior": chosen}),
        compact=False,
        kind="kde",
        plot_collection=on_axes(data, rows, [*facets, "column"], aes=aes, color=list(PALETTE)),
        visuals={"dist": {"width": 1.2}, column: {"width": width}},
    )
    for (name, at), (density, chains) in zip(places, axes, strict=True):
        of_cluster = f", cluster {at['cluster']}" if "cluster" in at else ""
        panels.tidy(density, xlabel=_WORDS.get(name, name).format_map(at) + of_cluster)
        panels.tidy(chains, xlabel="", ylabel="")
        for panel in (density, chains):
            panel.title.set_fontsize(FONT_SIZE)
        density.xaxis.set_major_locator(MaxNLocator(4))
    axes[-1, 1].set_xlabel(label)
    for chain, name in enumerate(chosen["chain"].values):
        panels.add_label(axes[0, 1], f"chain {name}", color=PALETTE[chain % len(PALETTE)], linewidth=1.6)
    panels.legend_beside(axes[0, 1])
    return axes


def _check_tree(tree: "DataTree", *groups: str, few_draws: int = _FEWEST_DRAWS) -> None:
    """Refuse what is no tree, lacks groups, or has fewer draws.

    Raises:
        InputError: naming what is missing.
    """
    number = num_draws(tree)
    missing = [group for group in groups if group not in tree.children]
    if missing:
        raise InputError(f"tree has no group {missing[0]}; make it with to_datatree")
    if number < few_draws:
        raise InputError(f"tree has a posterior of {number} draws; give that of a fit by {engines_giving()}")


def on_axes(
    data: "Dataset", axes: Mapping[Hashable, np.ndarray], dims: Sequence[Hashable] = (), **options: Any
) -> "PlotCollection":
    """ArviZ's record of where to draw: on axes that exist already, one for each coordinate of a variable's `dims`."""
    import xarray
    from arviz_plots.plot_collection import PlotCollection

    plots = {}
    for name, grid in axes.items():
        own = [dim for dim in dims if dim in data[name].dims]
        shape = [data.sizes[dim] for dim in own]
        plots[name] = xarray.DataArray(grid.reshape(shape), dims=own, coords={dim: data[dim] for dim in own})
    figure = np.array(panels.root_figure(next(iter(axes.values()))), dtype=object)
    where = xarray.DataTree.from_dict({"/": xarray.Dataset({"figure": figure}), "plot": xarray.Dataset(plots)})
    return PlotCollection(data, where, backend="matplotlib", **options)
