"""ArviZ drawing on axes of one's own: its record of what goes where, made for axes that exist already."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.plots.panels import root_figure
from bayesgmm.plots.style import PALETTE

if TYPE_CHECKING:
    from xarray import DataTree


def by_facet(data: Any, axes: Any, dims: tuple[str, ...], aes: Mapping[str, Any]) -> Any:
    """Where ArviZ is to draw: on axes that exist already, one, or one for each coordinate of `dims`."""
    import xarray
    from arviz_plots.plot_collection import PlotCollection

    grid = np.empty(tuple(data.sizes[dim] for dim in dims), object)
    grid[...] = axes
    places = np.arange(grid.size).reshape(grid.shape)
    shared = {"figure": np.array(root_figure(axes), dtype=object)}
    shared |= {"plot": (dims, grid), "row_index": (dims, np.zeros_like(places)), "col_index": (dims, places)}
    where = xarray.Dataset(shared, coords={dim: data[dim] for dim in dims})
    return PlotCollection(data, xarray.DataTree(where), aes=dict(aes), backend="matplotlib")


def by_parameter(data: Any, axes: Any, facets: Sequence[Any], counts: Mapping[Any, int], column: str) -> Any:
    """Likewise two panels for every parameter in the order of the variables: the density left, and right `column`."""
    import xarray
    from arviz_plots.plot_collection import PlotCollection

    groups: dict[str, dict[Any, Any]] = {"plot": {}, "row_index": {}, "col_index": {}}
    first = 0
    for name, count in counts.items():
        own = [dim for dim in facets if dim in data[name].dims]
        shape = (*(data.sizes[dim] for dim in own), 2)
        coords = {dim: data[dim] for dim in own} | {"column": ["dist", column]}
        rows = np.repeat(np.arange(first, first + count)[:, None], 2, axis=1)
        parts = {"plot": axes[first : first + count], "row_index": rows, "col_index": np.tile([0, 1], (count, 1))}
        for group, values in parts.items():
            groups[group][name] = xarray.DataArray(values.reshape(shape), dims=(*own, "column"), coords=coords)
        first += count
    where = xarray.DataTree(
        xarray.Dataset({"figure": np.array(root_figure(axes), dtype=object)}),
        children={name: xarray.DataTree(xarray.Dataset(group)) for name, group in groups.items()},
    )
    data = data.expand_dims(column=["dist", column])
    aes = {"color": ["chain"], "overlay": ["chain"]}
    return PlotCollection(data, where, aes=aes, backend="matplotlib", color=list(PALETTE))


def few_replicates(tree: "DataTree", at_most: int) -> Any:
    """The tree's replicated data sets, at most so many, as one chain; and the data."""
    import xarray

    replicated = tree["posterior_predictive"].dataset[["x"]].stack(sample=("chain", "draw"))
    total = replicated.sizes["sample"]
    index = np.unique(np.linspace(0, total - 1, min(at_most, total)).round().astype(int))
    few = (
        replicated.isel(sample=index)
        .drop_vars(["sample", "chain", "draw"])
        .rename(sample="draw")
        .expand_dims(chain=[0])
    )
    few = few.assign_coords(draw=np.arange(len(index))).transpose("chain", "draw", ...)
    return xarray.DataTree.from_dict({"posterior_predictive": few, "observed_data": tree["observed_data"].dataset})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings about ArviZ's use of what NumPy and xarray deprecate, which no user could mend."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        yield
