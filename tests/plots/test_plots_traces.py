"""Traces of the engines: checked on the artists, not on pixels."""

import numpy as np
import pytest
from helpers import random_case
from matplotlib.figure import Figure
from plot_helpers import FULL, by_gid, check_drawable, make_fit

from bayesgmm.plots import plot_traces
from bayesgmm.plots.panels import root_figure
from bayesgmm.plots.traces import settled_limits, smooth, trace_lines

pytestmark = pytest.mark.usefixtures("pictures_alone")


def test_traces_say_what_they_show_without_padding(rng):
    case = random_case(FULL, 3, 2, rng)
    elbo = -200 * np.exp(-np.arange(2000) / 100) + rng.normal(size=2000)
    fits = {
        "em": make_fit(case),
        "map": make_fit(case, "map", np.array([-5.0, -4.0, -3.5])),
        "vi (normal)": make_fit(case, "vi", elbo),
        "vi (full rank)": make_fit(case, "vi", elbo + 5),
        "nuts": make_fit(case, "nuts", rng.normal(size=(3, 40))),
    }
    figure = root_figure(plot_traces(fits))
    check_drawable(figure)
    em, map_, vi, nuts = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "log-likelihood", "log posterior density", "ELBO", "log posterior density"
    ]  # fmt: skip
    assert [ax.get_xlabel() for ax in figure.axes] == ["step", "step", "step", "draw"]
    np.testing.assert_array_equal(em.get_lines()[0].get_ydata(), [-30, -20, -15])
    np.testing.assert_array_equal(map_.get_lines()[0].get_ydata(), [-5, -4, -3.5])
    assert len(nuts.get_lines()) == 3
    assert {text.get_text() for text in vi.get_legend().get_texts()} == {"vi (normal)", "vi (full rank)"}
    low, high = vi.get_ylim()
    assert low > -30, "the start would flatten the settled part"
    assert low < -3 < 8 < high
    raw = by_gid(figure, "raw")[0].get_ydata()
    np.testing.assert_array_equal(raw, elbo)


def test_traces_that_cannot_be_drawn_are_refused(rng):
    case = random_case(FULL, 3, 2, rng)
    with pytest.raises(ValueError, match="fits is empty"):
        plot_traces({})
    with pytest.raises(ValueError, match="no finite value"):
        plot_traces({"EM": make_fit(case, trace=np.full(4, np.nan))})
    with pytest.raises(ValueError, match="ax has shape"):
        plot_traces({"a": make_fit(case), "b": make_fit(case, "map")}, ax=Figure().add_subplot())


def test_trace_helpers(rng):
    case = random_case(FULL, 3, 1, rng)
    lines = trace_lines("x", make_fit(case, trace=np.array([[-np.inf, 1.0, 2.0, np.nan], [0.0, 1.0, np.nan, np.nan]])))
    np.testing.assert_array_equal(lines, [[np.nan, 1, 2], [0, 1, np.nan]])
    centres, means = smooth(np.array([1.0, 3.0, np.nan, 5.0]), 2)
    np.testing.assert_allclose(centres, [0.5, 1.5, 2.5])
    np.testing.assert_allclose(means, [2.0, 3.0, 5.0])
    low, high = settled_limits([np.full((1, 10), 3.0)])
    assert low < 3 < high


def test_fits_of_one_engine_may_have_traces_of_different_lengths(rng):
    case = random_case(FULL, 2, 2, rng)
    fits = {
        name: make_fit(case, engine="vi", trace=-50.0 + rng.normal(size=length))
        for name, length in (("vi (normal)", 350), ("vi (full rank)", 400))
    }
    (ax,) = root_figure(plot_traces(fits)).axes
    longest = max(line.get_xdata()[-1] for line in ax.lines)
    assert longest == 399
