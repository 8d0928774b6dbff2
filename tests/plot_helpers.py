"""What tests of pictures share: small fits made by hand, artists by name, and figures that must be whole."""

import io

import numpy as np
import pytest

from bayesgmm.engines.fit import Fit
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.plots.panels import root_figure

each_dimension = pytest.mark.parametrize("d", [1, 2, 4])
FULL = FAMILIES["full"]


def make_fit(case, engine="em", trace=None, draws=None):
    """A fit of a case's mixture; its trace ends in padding."""
    trace = np.array([-30.0, -20.0, -15.0, np.nan, np.nan]) if trace is None else trace
    return Fit(engine, "full", case.mixture, np.float64(-15.0), np.int32(0), np.int32(2), trace, draws)


def posterior_of(case, rng, scale=0.05, shape=(2, 30)):
    """Draws about a mixture, small enough steps that labels cannot switch."""
    k, d = case.means.shape
    weights = rng.dirichlet(400 * case.weights, size=shape)
    means = case.means + scale * rng.normal(size=(*shape, k, d))
    inflated = case.covariances * np.exp(scale * rng.normal(size=(*shape, k)))[..., None, None]
    return Mixture.from_covariances(weights, means, inflated)


def by_gid(drawn, gid):
    """The artists of that name in the figure of some axes."""
    return [artist for ax in root_figure(drawn).axes for artist in ax.get_children() if artist.get_gid() == gid]


def starting_with(drawn, prefix):
    artists = [artist for ax in root_figure(drawn).axes for artist in ax.get_children()]
    return [artist for artist in artists if str(artist.get_gid()).startswith(prefix)]


def check_drawable(drawn, *, laid_out=False):
    """It renders, and nothing in it is NaN. Laying out many panels takes seconds, so that is tried on some only."""
    figure = root_figure(drawn)
    if not laid_out:
        figure.set_layout_engine("none")
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    check_finite(figure)


def check_finite(drawn):
    for ax in root_figure(drawn).axes:
        assert np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all()
        for line in ax.get_lines():
            assert np.isfinite(np.asarray(line.get_xydata(), float)).all()
        for collection in ax.collections:
            assert np.isfinite(np.ma.getdata(collection.get_offsets())).all()
            assert all(np.isfinite(path.vertices).all() for path in collection.get_paths())
