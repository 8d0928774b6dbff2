"""Every picture beside its reference in `pictures/`, pixel by pixel within a tolerance.

After a change that is meant, run this file with `--mpl-generate-path=tests/plots/pictures`, which makes the
references anew; look at each before it is committed.
"""

from pathlib import Path

import jax
import numpy as np
import pandas as pd
import picture_inputs as inputs
import pytest
from matplotlib import pyplot
from matplotlib.testing.compare import calculate_rms

from bayesgmm import plots
from bayesgmm.plots.panels import root_figure
from bayesgmm.standard_errors.parameters import parameter_table

REFERENCES = Path(__file__).parent / "pictures"
DPI = 64
# Root mean square over all pixels and colours, of 255. Antialiasing of other processors moves it by less than 1; what
# the last test changes by more.
TOLERANCE = 3.0
NAMES = inputs.NAMES

picture = pytest.mark.mpl_image_compare(
    baseline_dir="pictures", style="default", backend="agg", tolerance=TOLERANCE, savefig_kwargs={"dpi": DPI}
)


@picture
def test_assignments_of_two_columns():
    return root_figure(plots.plot_assignments(inputs.PLANE, inputs.X[:, :2], feature_names=NAMES[:2]))


@picture
def test_assignments_of_one_column():
    return root_figure(plots.plot_assignments(inputs.LINE, inputs.X[:, 0], feature_names=NAMES[:1]))


@picture
def test_assignments_of_three_columns():
    return root_figure(plots.plot_assignments(inputs.EM, inputs.X, feature_names=NAMES))


@picture
def test_assignments_in_principal_components():
    return root_figure(plots.plot_assignments(inputs.EM, inputs.X, columns="pca", feature_names=NAMES))


@picture
def test_posterior_ellipses():
    x = inputs.X[:, :2]
    drawn = plots.plot_posterior_ellipses(inputs.POSTERIOR_PLANE, x, point=inputs.EM_PLANE, feature_names=NAMES[:2])
    return root_figure(drawn)


@picture
def test_posterior_densities():
    x = inputs.X[:, 0]
    drawn = plots.plot_posterior_ellipses(inputs.POSTERIOR_LINE, x, point=inputs.EM_LINE, feature_names=NAMES[:1])
    return root_figure(drawn)


@picture
def test_density_contours():
    return root_figure(plots.plot_density_contours(inputs.POSTERIOR_PLANE, inputs.X[:, :2], feature_names=NAMES[:2]))


@picture
def test_density_with_slice():
    x = inputs.X[:, :2]
    return root_figure(plots.plot_density_with_slice(inputs.POSTERIOR_PLANE, x, at=64.0, feature_names=NAMES[:2]))


@picture
def test_density_slice():
    return root_figure(plots.plot_density_slice(inputs.POSTERIOR, inputs.X, along=1, feature_names=NAMES))


@picture
def test_responsibility_bars():
    return root_figure(plots.plot_responsibility_bars(inputs.POSTERIOR_PLANE, inputs.X[:, :2]))


@picture
def test_responsibility_heatmap():
    return root_figure(plots.plot_responsibility_heatmap(inputs.POSTERIOR_PLANE, inputs.X[:, :2]))


@picture
def test_responsibility_uncertainty():
    drawn = plots.plot_responsibility_uncertainty(inputs.POSTERIOR_PLANE, inputs.X[:, :2], feature_names=NAMES[:2])
    return root_figure(drawn)


@picture
def test_assignment_entropy():
    return root_figure(plots.plot_assignment_entropy(inputs.POSTERIOR_PLANE, inputs.X[:, :2], feature_names=NAMES[:2]))


@picture
def test_assignment_entropy_of_one_column():
    return root_figure(plots.plot_assignment_entropy(inputs.POSTERIOR_LINE, inputs.X[:, 0], feature_names=NAMES[:1]))


@picture
def test_parameter_forest():
    fits = {"em": inputs.EM_PLANE, "nuts": inputs.POSTERIOR_PLANE}
    return root_figure(plots.plot_parameter_forest(parameter_table(fits, feature_names=NAMES[:2])))


@picture
def test_similarity_matrix():
    x = inputs.X[:, :2]
    labels = np.asarray(inputs.PLANE.predict(x))
    return root_figure(plots.plot_similarity_matrix(inputs.POSTERIOR_PLANE, x, labels=labels))


@picture
def test_criteria():
    return root_figure(plots.plot_criteria(inputs.criteria(), selected=3))


@picture
def test_criteria_of_families():
    table = inputs.criteria(("full", "tied", "diag", "spherical"))
    return root_figure(plots.plot_criteria(table, selected=("tied", 4)))


@picture
def test_loo_over_k():
    table = pd.DataFrame(
        {"num_components": [1, 2, 3, 4], "elpd_diff": [-62.0, 0.0, -1.8, -3.1], "dse": [9.5, 0.0, 2.2, 2.4]}
    )
    return root_figure(plots.plot_loo_over_k(table.assign(result="successful", num_bad=[0, 0, 0, 2]), selected=2))


@picture
def test_num_components():
    table = inputs.criteria().assign(weight=[0.0, 0.12, 0.63, 0.2, 0.05, 0.0])
    return root_figure(plots.plot_num_components(table))


@picture
def test_occupied_components():
    x = inputs.X[:, :2]
    unsure = x[np.argsort(inputs.PLANE.responsibilities(x).max(1))[:7]]
    drawn = plots.plot_occupied_components(inputs.draws_about(inputs.PLANE, 200), unsure, key=jax.random.key(0))
    return root_figure(drawn)


@picture
def test_restarts():
    return root_figure(plots.plot_restarts(inputs.runs()))


@picture
def test_elbo():
    return root_figure(plots.plot_elbo(inputs.elbo_fits()))


@picture
def test_traces():
    trace = -620.0 + 2 * inputs.noise((3, 120), 4)
    fits = {
        "em": inputs.fit_of(inputs.MIXTURE, trace=inputs.climb(-760.0, -612.4, 0.4, 18)),
        "vi": inputs.elbo_fits()["vi (full rank)"],
        "cavi": inputs.fit_of(inputs.MIXTURE, "cavi", inputs.climb(-700.0, -631.0, 0.3, 25)),
        "nuts": inputs.fit_of(inputs.MIXTURE, "nuts", trace, inputs.draws_about(inputs.MIXTURE)),
    }
    return root_figure(plots.plot_traces(fits))


@picture
def test_pareto_k():
    return root_figure(plots.plot_pareto_k(inputs.tree()))


@picture
def test_posterior_predictive():
    return root_figure(plots.plot_posterior_predictive(inputs.tree(), num_replicates=30))


@picture
def test_chain_traces():
    return root_figure(plots.plot_chain_traces(inputs.tree(), coords={"cluster": 0}))


@picture
def test_chain_ranks():
    return root_figure(plots.plot_chain_ranks(inputs.tree(), coords={"cluster": 0}))


@picture
def test_partitions():
    drawn = plots.plot_partitions(inputs.EM_PLANE, inputs.X[:, :2], inputs.partition(), feature_names=NAMES[:2])
    return root_figure(drawn)


@picture
def test_posterior_parameters():
    fits = {"EM": inputs.EM_PLANE, "NUTS": inputs.POSTERIOR_PLANE}
    return root_figure(plots.plot_posterior_parameters(fits, feature_names=NAMES[:2]))


# Tested by what is on them: the forest is made of a table of fits, the prior predictive is random.
ELSEWHERE = {"plot_parameter_forest", "plot_prior_predictive"}


def test_every_other_public_picture_is_here():
    source = Path(__file__).read_text(encoding="utf-8")
    missing = {name for name in plots.__all__ if f"plots.{name}(" not in source}
    assert missing <= ELSEWHERE
    pictures = {f"{name}.png" for name, test in globals().items() if _is_picture(test)}
    assert {path.name for path in REFERENCES.glob("*.png")} == pictures


def _is_picture(test):
    return any(mark.name == "mpl_image_compare" for mark in getattr(test, "pytestmark", []))


@pytest.mark.parametrize(
    "change",
    [
        {"levels": (0.5, 0.93)},
        {"feature_names": ("eruption (s)", NAMES[1])},
        {"mixture": inputs.PLANE.permute([1, 0, 2])},
    ],
    ids=["wider ellipses", "another label", "other colours"],
)
def test_a_small_change_is_seen(change, tmp_path):
    """The tolerance is not so wide that a wrong picture passes."""
    options = {"mixture": inputs.PLANE, "feature_names": NAMES[:2], **change}
    with pyplot.style.context("default"):
        figure = root_figure(plots.plot_assignments(options.pop("mixture"), inputs.X[:, :2], **options))
        figure.savefig(tmp_path / "changed.png", dpi=DPI)
        pyplot.close(figure)
    paths = (REFERENCES / "test_assignments_of_two_columns.png", tmp_path / "changed.png")
    reference, changed = (pyplot.imread(path)[:, :, :3] * 255 for path in paths)
    assert calculate_rms(reference, changed) > TOLERANCE
