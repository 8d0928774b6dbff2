"""Traces of several starts and of the evidence bound: checked on the artists, not on pixels."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import DATA, random_case
from matplotlib import colors
from matplotlib.figure import Figure
from plot_helpers import FULL, by_gid, check_drawable, make_fit, posterior_of

import bayesgmm
from bayesgmm.engines.fit import ResultCode
from bayesgmm.errors import InputError
from bayesgmm.plots import plot_elbo, plot_restarts
from bayesgmm.plots.panels import DATA_GREY, PALETTE
from bayesgmm.plots.traces import group_ends

pytestmark = pytest.mark.usefixtures("pictures_alone")


def run_to(case, *values, result=ResultCode.successful):
    """A run of EM with these log-likelihoods, padded to ten."""
    trace = np.full(10, np.nan)
    trace[: len(values)] = values
    fit = make_fit(case, trace=trace)
    return dataclasses.replace(fit, num_steps=np.int32(len(values) - 1), result=np.int32(result))


def test_ends_are_grouped_from_the_best_down():
    ends = np.array([-10.0, -10.05, -10.11, np.nan, -30.0, -10.2])
    np.testing.assert_array_equal(group_ends(ends, 0.1), [0, 0, 1, -1, 2, 1])
    np.testing.assert_array_equal(group_ends(ends, 100.0), [0, 0, 0, -1, 0, 0])
    np.testing.assert_array_equal(group_ends(np.full(3, np.nan), 0.1), [-1, -1, -1])


def test_runs_are_drawn_in_full_and_coloured_by_their_end(rng):
    case = random_case(FULL, 2, 2, rng)
    ends = (-20.0, -12.0, -20.03, -16.0, -18.0, -14.0, -22.0)
    runs = [run_to(case, -90.0, -40.0, end) for end in ends]
    runs.append(run_to(case, -90.0, -1.0, 3.0, 4.0, 5.0, result=ResultCode.collapsed))
    ax = plot_restarts(runs)
    for number, end in enumerate(ends):
        (line,) = by_gid(ax, f"run {number}")
        np.testing.assert_array_equal(line.get_xydata(), [[0, -90], [1, -40], [2, end]])
    ranks = {1: 0, 5: 1, 3: 2, 4: 3}
    for number in range(7):
        colour = PALETTE[ranks[number]] if number in ranks else DATA_GREY
        assert colors.same_color(by_gid(ax, f"run {number}")[0].get_color(), colour)
        np.testing.assert_array_equal(by_gid(ax, f"end {number}")[0].get_xydata(), [[2, ends[number]]])
    assert not by_gid(ax, "end 7")
    assert by_gid(ax, "run 7")[0].get_linestyle() == "--"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["−12.0: 1 start", "−14.0: 1 start", "−16.0: 1 start", "−18.0: 1 start", "lower: 3 starts",
                     "failed: 1 start"]  # fmt: skip
    low, high = ax.get_ylim()
    assert -90 < low < -22 < -12 < high
    assert 2 < ax.get_xlim()[1] < 3
    check_drawable(ax, laid_out=True)


def test_a_maximum_that_chance_makes_is_no_optimum_however_high(rng):
    case = random_case(FULL, 2, 2, rng)
    runs = [run_to(case, -90.0, -40.0, end) for end in (-20.0, -20.02)]
    runs.append(run_to(case, -90.0, -40.0, -11.0, result=ResultCode.spurious))
    ax = plot_restarts(runs)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["−20.0: 2 starts", "made by chance: 1 start"]
    assert by_gid(ax, "run 2")[0].get_linestyle() == "--"
    assert len(by_gid(ax, "end 2")) == 1
    check_drawable(ax, laid_out=True)


def test_starts_of_one_program_are_those_of_single_fits(x64):
    """The example of the docstring: each run of the `vmap` is the fit that the same key gives alone."""
    x = DATA["faithful"]
    keys = jax.random.split(jax.random.key(4), 5)

    def fit(key):
        return bayesgmm.fit_em(x, 3, key=key, num_restarts=1, on_failure="ignore")

    fits = jax.vmap(fit)(keys)
    ax = plot_restarts(fits)
    assert ax.get_ylabel() == "log-likelihood"
    for number in (0, 3):
        alone = fit(keys[number])
        (line,) = by_gid(ax, f"run {number}")
        np.testing.assert_allclose(line.get_ydata(), alone.steps, rtol=1e-9)
        assert line.get_ydata()[-1] == pytest.approx(float(alone.log_likelihood), rel=1e-9)
    check_drawable(ax)


def test_runs_that_cannot_be_drawn_are_refused(rng):
    case = random_case(FULL, 2, 2, rng)
    good = run_to(case, -3.0, -2.0)
    for fits, message in (
        ([], "leading axis"),
        ([good, make_fit(case, "map")], "runs of one engine"),
        ([make_fit(case, "nuts", np.zeros((2, 5)), posterior_of(case, rng))], "fits are by nuts"),
        ([run_to(case, -3.0, np.nan, result=ResultCode.nonfinite)], "none of the fits"),
    ):
        with pytest.raises(InputError, match=message):
            plot_restarts(fits)
    with pytest.raises(InputError, match="same_within"):
        plot_restarts([good], same_within=-1.0)
    ax = Figure().add_subplot()
    assert plot_restarts(good, ax=ax) is ax


def test_evidence_bounds_are_drawn_by_engine(rng):
    case = random_case(FULL, 2, 2, rng)
    climb = -50 * np.exp(-np.arange(40) / 5) - 100
    noisy = climb + np.append(0.0, rng.normal(size=39))
    vi = {name: make_fit(case, "vi", noisy + shift) for name, shift in (("normal", 0.0), ("full rank", 2.0))}
    ax = plot_elbo(vi)
    raw = sorted(line.get_ydata()[0] for line in by_gid(ax, "raw"))
    assert raw == pytest.approx([climb[0], climb[0] + 2])
    assert ax.get_ylabel() == "ELBO"
    assert ax.get_title() == ""
    cavi = plot_elbo(make_fit(case, "cavi", climb))
    np.testing.assert_array_equal(cavi.get_lines()[0].get_ydata(), climb)
    check_drawable(ax)
    for fits, message in (
        ({}, "no engine"),
        ({**vi, "cavi": make_fit(case, "cavi", climb)}, "cavi, vi"),
        (make_fit(case), "by em"),
        (make_fit(case, "vi", np.full(3, np.nan)), "no finite value"),
    ):
        with pytest.raises(InputError, match=message):
            plot_elbo(fits)
