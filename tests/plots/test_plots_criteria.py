"""Criteria over k and family: checked on the artists, not on pixels."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from plot_helpers import by_gid, check_drawable

from bayesgmm.errors import InputError
from bayesgmm.plots import plot_criteria, plot_loo_over_k
from bayesgmm.plots.panels import root_figure

pytestmark = pytest.mark.usefixtures("pictures_alone")


def test_criteria_mark_each_minimum_and_the_selected_number():
    table = pd.DataFrame(
        {
            "num_components": [3, 1, 2, 4],
            "bic": [8.0, 20.0, 7.0, np.nan],
            "aic": [5.0, 19.0, 6.0, 5.5],
            "icl": [9.0, 8.5, 9.1, np.inf],
        }
    )
    figure = root_figure(plot_criteria(table, selected=2))
    for name, k, value in (("bic", 2, 7.0), ("aic", 3, 5.0), ("icl", 1, 8.5)):
        (mark,) = by_gid(figure, f"minimum {name}")
        np.testing.assert_array_equal(mark.get_xydata(), [[k, value]])
        np.testing.assert_array_equal(by_gid(figure, name)[0].get_xdata(), [1, 2, 3, 4])
    texts = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert texts == {"BIC", "AIC", "ICL", "minimum", "selected: k = 2"}
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    for wrong, message in (
        (table.drop(columns="num_components"), "num_components"),
        (pd.concat([table, table]), "more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_criteria(wrong)
    with pytest.raises(ValueError, match="selected=7"):
        plot_criteria(table, selected=7)


def test_a_fit_that_failed_is_not_marked_as_the_minimum():
    """A spike has no maximum of its likelihood, and thus the smallest criterion of all."""
    table = pd.DataFrame({"num_components": [1, 2, 3], "aic": [9.0, 5.0, -70.0]})
    for results, k in ((["successful", "successful", "collapsed"], 2), (["collapsed"] * 3, 3)):
        figure = root_figure(plot_criteria(table.assign(result=results)))
        (mark,) = by_gid(figure, "minimum aic")
        assert mark.get_xdata() == [k]


def test_several_families_have_a_panel_for_each_criterion_and_one_minimum_in_it():
    rows = [
        {"family": family, "num_components": k, "bic": 10.0 * (k - 3) ** 2 + offset, "aic": float(-k) + offset}
        for family, offset in (("full", 5.0), ("tied", 0.0))
        for k in (4, 1, 3, 2)
    ]
    axes = plot_criteria(pd.DataFrame(rows), selected=("tied", 3))
    assert [ax.get_ylabel() for ax in axes] == ["BIC", "AIC"]
    for ax, best in zip(axes, ((3, 0.0), (4, -4.0)), strict=True):
        assert {"full", "tied"} <= {line.get_gid() for line in ax.get_lines()}
        (mark,) = [line for line in ax.get_lines() if str(line.get_gid()).startswith("minimum")]
        np.testing.assert_array_equal(mark.get_xydata(), [best])
    check_drawable(axes, laid_out=True)
    only = plot_criteria(pd.DataFrame(rows), criteria=["aic"])
    assert [ax.get_ylabel() for ax in only] == ["AIC"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selected": 3}, "must be a pair"),
        ({"selected": ("diag", 3)}, "family 'diag'"),
        ({"criteria": ["loo"]}, "'loo'"),
        ({"ax": Figure().add_subplot()}, "2 criteria need"),
    ],
)
def test_wrong_arguments_of_several_families_are_named(arguments, message):
    table = pd.DataFrame({"family": ["full", "tied"], "num_components": [1, 1], "bic": [1.0, 2.0], "aic": [1.0, 2.0]})
    with pytest.raises(InputError, match=message) as error:
        plot_criteria(table, **arguments)
    assert "\n" not in str(error.value)


def test_leave_one_out_over_k_shows_differences_and_what_is_unreliable():
    table = pd.DataFrame(
        {
            "num_components": [2, 3, 1],
            "elpd_diff": [0.0, -2.5, -80.0],
            "dse": [0.0, 3.0, 9.0],
            "result": ["successful", "not_mixed", "successful"],
            "num_bad": [0, 0, 4],
        }
    )
    ax = plot_loo_over_k(table, selected=2)
    line, *_ = ax.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[1, -80.0], [2, 0.0], [3, -2.5]])
    (hollow,) = (line for line in ax.get_lines() if line.get_label() == "unreliable")
    np.testing.assert_array_equal(hollow.get_xdata(), [1, 3])
    assert "selected: k = 2" in [text.get_text() for text in ax.get_legend().get_texts()]
    with pytest.raises(InputError, match="selected=7"):
        plot_loo_over_k(table, selected=7)
    with pytest.raises(InputError, match="elpd_diff and dse"):
        plot_loo_over_k(table.drop(columns="dse"))
