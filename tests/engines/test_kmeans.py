"""k-means beside the mixtures: scikit-learn's numbers, agreement of partitions, and where a comparison shows them."""

import csv
import itertools
import json

import jax
import numpy as np
import pandas as pd
import pytest
from helpers import DATA, random_case
from matplotlib.figure import Figure
from plot_helpers import by_gid, check_drawable, check_finite, make_fit
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

import bayesgmm
from bayesgmm.cli import main as cli
from bayesgmm.comparison.tables import agreement_table, component_table, engine_table
from bayesgmm.diagnostics.agreement import adjusted_rand_index, check_labels
from bayesgmm.engines.fit import ResultCode
from bayesgmm.engines.kmeans import KMeansFit, fit_kmeans, inertia_of
from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.plots import plot_partitions
from bayesgmm.plots.panels import root_figure


def count_pairs(labels, other):
    """The adjusted Rand index by its definition, pair by pair (Hubert & Arabie 1985)."""
    pairs = list(itertools.combinations(range(len(labels)), 2))
    same = np.array([labels[i] == labels[j] for i, j in pairs])
    same_other = np.array([other[i] == other[j] for i, j in pairs])
    expected = same.sum() * same_other.sum() / len(pairs)
    return ((same & same_other).sum() - expected) / (0.5 * (same.sum() + same_other.sum()) - expected)


@pytest.mark.parametrize("name", ["faithful", "iris", "galaxies"])
def test_partitions_are_scikit_learns(name, key):
    x = DATA[name]
    found = fit_kmeans(x, 3, key=key)
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    reference = KMeans(3, n_init=10, random_state=seed).fit(x)
    np.testing.assert_array_equal(found.labels, reference.labels_)
    assert found.inertia == reference.inertia_
    assert found.code is ResultCode.successful
    # What it says is of the partition that it returns.
    np.testing.assert_allclose(found.inertia, inertia_of(x, found.labels), rtol=1e-10)
    np.testing.assert_allclose(found.centres, [x[found.labels == j].mean(0) for j in range(3)], rtol=1e-10)
    np.testing.assert_allclose(found.shares, np.bincount(found.labels) / len(x))
    np.testing.assert_array_equal(found.predict(x), found.labels)
    again = fit_kmeans(x, 3, key=key)
    np.testing.assert_array_equal(again.labels, found.labels)


def test_standardised_columns_and_weights(key):
    x = DATA["faithful"]
    found = fit_kmeans(x, 2, key=key, standardise=True)
    z = x / x.std(0)
    np.testing.assert_allclose(found.inertia, inertia_of(z, found.labels), rtol=1e-10)
    np.testing.assert_allclose(found.column_scale, x.std(0))
    np.testing.assert_array_equal(found.predict(x), found.labels)
    in_seconds = fit_kmeans(x * [60.0, 1.0], 2, key=key, standardise=True)
    np.testing.assert_array_equal(in_seconds.labels, found.labels)
    raw = fit_kmeans(x * [60.0, 1.0], 2, key=key)
    assert adjusted_rand_index(raw.labels, fit_kmeans(x, 2, key=key).labels) < 0.99  # units decide
    # Weight 3 is the row three times.
    weights = np.where(np.arange(len(x)) < 50, 3, 1)
    weighted = fit_kmeans(x, 2, key=key, row_weights=weights)
    repeated = fit_kmeans(np.repeat(x, weights, axis=0), 2, key=key)
    assert weighted.inertia == pytest.approx(repeated.inertia, rel=1e-4)
    assert fit_kmeans(x.astype(np.float32), 2, key=key).centres.dtype == np.float32


def test_weight_two_is_the_row_twice_and_weight_none_is_no_row(key, rng):
    x = DATA["faithful"]
    weights = rng.integers(0, 3, len(x))
    counted = weights > 0
    far = np.where(counted[:, None], x, 1e200)  # whatever it holds
    weighted = fit_kmeans(far, 2, key=key, row_weights=weights, standardise=True)
    repeated = fit_kmeans(np.repeat(x, weights, axis=0), 2, key=key, standardise=True)
    np.testing.assert_allclose(weighted.column_scale, np.repeat(x, weights, axis=0).std(0), rtol=1e-12)
    order = weighted.centres[:, 0].argsort(), repeated.centres[:, 0].argsort()
    np.testing.assert_allclose(weighted.centres[order[0]], repeated.centres[order[1]], rtol=1e-6)
    np.testing.assert_allclose(weighted.shares[order[0]], repeated.shares[order[1]], rtol=1e-12)
    assert weighted.inertia == pytest.approx(repeated.inertia, rel=1e-6)
    np.testing.assert_array_equal(weighted.labels[counted], weighted.predict(x[counted]))
    matched = weighted.matched_to(1 - weighted.labels)
    np.testing.assert_array_equal(matched.shares, weighted.shares[::-1])


def test_a_step_limit_that_is_too_low_is_said(key, rng):
    x = rng.normal(size=(500, 4))
    found = fit_kmeans(x, 8, key=key, max_steps=1, num_restarts=1)
    assert found.code is ResultCode.max_steps_reached


def test_clusters_are_matched_to_labels(rng):
    labels = rng.integers(0, 4, 200)
    x = rng.normal(size=(200, 2)) + 20.0 * labels[:, None]
    found = fit_kmeans(x, 4, key=jax.random.key(1))
    shuffled = found.matched_to((labels + 1) % 4)
    np.testing.assert_array_equal(shuffled.labels, (labels + 1) % 4)
    np.testing.assert_allclose(shuffled.centres, [x[shuffled.labels == j].mean(0) for j in range(4)])
    np.testing.assert_array_equal(found.matched_to(labels).labels, labels)
    two = fit_kmeans(x, 2, key=jax.random.key(1)).matched_to(labels)
    assert adjusted_rand_index(two.labels, fit_kmeans(x, 2, key=jax.random.key(1)).labels) == 1.0


def test_adjusted_rand_index_agrees_with_pairs(rng):
    labels, other = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    other = np.where(rng.random(40) < 0.5, labels, other)
    assert adjusted_rand_index(labels, other) == pytest.approx(count_pairs(labels, other), rel=1e-12)
    assert adjusted_rand_index(labels, (labels + 1) % 3) == 1.0
    words = np.array(["a", "b", "c", "d"])[other]
    assert adjusted_rand_index(labels, words) == adjusted_rand_index(labels, other)


@pytest.mark.parametrize("missing", ["", None, np.nan, pd.NA])
def test_rows_without_a_class_are_left_out(missing, rng):
    labels, other = rng.integers(0, 3, 40), rng.integers(0, 2, 40)
    known = np.arange(40) >= 10
    words = np.array([str(label) if one else missing for label, one in zip(labels, known, strict=True)], object)
    expected = pytest.approx(adjusted_rand_score(labels[known], other[known]))
    assert adjusted_rand_index(words, other) == expected
    masked = np.ma.array(labels, mask=~known)
    assert adjusted_rand_index(masked, other) == adjusted_rand_index(list(masked), other) == expected
    assert check_labels(masked, len(labels))[~known].tolist() == [None] * (~known).sum()
    with pytest.raises(InputError, match="labels are all missing"):
        check_labels(np.array([missing] * 3, object), 3)


def test_what_cannot_be_is_refused(key):
    x = DATA["faithful"]
    with pytest.raises(InputError, match=r"labels must have shape \(272,\), one for each row; got \(3,\)"):
        bayesgmm.compare(x, 2, engines=["em"], key=key, labels=[0, 1, 1])
    with pytest.raises(InputError, match="engines='kmean' is not known; did you mean 'kmeans'"):
        bayesgmm.compare(x, 2, engines=["em", "kmean"], key=key)
    with pytest.raises(InputError, match="one shape"):
        adjusted_rand_index([0, 1], [0, 1, 1])
    with pytest.raises(InputError, match="num_components=0"):
        fit_kmeans(x, 0, key=key)
    with pytest.raises(InputError, match=r"tol=-1\.0 must be a finite number"):
        fit_kmeans(x, 2, key=key, tol=-1.0)
    with pytest.raises(InputError, match="standardise='yes'"):
        fit_kmeans(x, 2, key=key, standardise="yes")
    with pytest.raises(InputError, match="like the centres"):
        fit_kmeans(x, 2, key=key).predict(x[:, :1])


@pytest.fixture(scope="module")
def iris():
    data = bayesgmm.load_dataset("iris")
    key = jax.random.key(0)
    return bayesgmm.compare(
        data.x,
        3,
        engines=["em", "cavi", "kmeans"],
        prior="conjugate",
        key=key,
        labels=data.labels,
        feature_names=data.feature_names,
    )


def test_comparison_on_irises(iris):
    """The well-known figures: 0.90 for the mixture of three, 0.73 for k-means with an inertia of 78.85."""
    assert list(iris.table["engine"]) == ["em", "cavi", "kmeans"]
    table = iris.table.set_index("engine")
    assert table.loc["kmeans", "inertia"] == pytest.approx(78.851, abs=1e-3)
    assert table.loc["kmeans", "ari_labels"] == pytest.approx(0.730, abs=1e-3)
    assert table.loc["em", "ari_labels"] == pytest.approx(0.904, abs=1e-3)
    assert table.loc["kmeans", "ari_kmeans"] == 1.0
    labels, by_kmeans = iris.labels, iris.partitions["kmeans"].labels
    for name, assigned in iris.assignments.items():
        assert table.loc[name, "ari_labels"] == pytest.approx(adjusted_rand_score(labels, assigned))
        assert table.loc[name, "ari_kmeans"] == pytest.approx(adjusted_rand_score(by_kmeans, assigned))
        assert table.loc[name, "inertia"] >= table.loc["kmeans", "inertia"]
    assert table.loc["em", "inertia"] == pytest.approx(inertia_of(iris.x, iris.assignments["em"]))
    assert np.isnan(table.loc["kmeans", ["log_likelihood", "bic", "elpd_loo"]].astype(float)).all()
    # Its clusters have the numbers of the components with which they share most rows.
    together = np.zeros((3, 3))
    np.add.at(together, (iris.assignments["em"], iris.partitions["kmeans"].labels), 1)
    assert (together.argmax(1) == np.arange(3)).all()


def test_tables_of_a_comparison(iris):
    last = engine_table(iris).iloc[-1]
    assert last["engine"] == "kmeans"
    assert last["log-lik."] == last["BIC"] == last["ELPD-LOO"] == "–"
    assert last["converged"] == f"yes ({iris.partitions['kmeans'].num_steps} steps)"
    agreement = agreement_table(iris)
    assert list(agreement) == ["engine", "inertia", "ARI with k-means", "ARI with labels"]
    assert list(agreement.iloc[-1]) == ["kmeans", "78.85", "1.000", "0.730"]
    components = component_table(iris)
    assert list(components)[-1] == "kmeans"
    np.testing.assert_allclose(components["kmeans"][:5].astype(float), [1 / 3, 5.006, 3.428, 1.462, 0.246], rtol=1e-3)


def test_without_k_means_or_labels_nothing_is_said_of_them(key):
    x = DATA["faithful"]
    found = bayesgmm.compare(x, 2, engines=["em"], key=key)
    assert not found.has_agreement
    assert found.table["ari_labels"].isna().all()
    assert "ari_kmeans" not in found.table
    labelled = bayesgmm.compare(x, 2, engines=["em"], key=key, labels=x[:, 1] > 70)
    assert labelled.partitions == {}
    assert list(agreement_table(labelled)) == ["engine", "inertia", "ARI with labels"]
    assert labelled.table["ari_labels"][0] > 0.8


def test_the_command_runs_it(tmp_path, rng):
    x = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(6, 1, (40, 2))])
    lines = ["length,width,label"] + [f"{a},{b},{'small' if i < 60 else 'large'}" for i, (a, b) in enumerate(x)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "job.toml").write_text(
        'engines = ["em", "kmeans"]\n[data]\npath = "rows.csv"\n[mixture]\nnum_components = 2\n'
        "[kmeans]\nstandardise = true\nnum_restarts = 3\n"
    )
    result = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "job.toml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    for text in ("kmeans", "ARI with k-means", "ARI with labels", "inertia", "assignments.csv"):
        assert text in result.stdout
    assert "k-means, k = 2" in result.stderr
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    of_kmeans = record["fits"]["kmeans"]
    assert of_kmeans["ari_labels"] == 1.0
    assert of_kmeans["bic"] is None
    assert of_kmeans["result_code"] == 0
    np.testing.assert_allclose(sorted(of_kmeans["parameters"]["shares"]), [0.4, 0.6])
    assert np.shape(of_kmeans["parameters"]["centres"]) == (2, 2)
    assert of_kmeans["inertia"] < 100  # in standardised units, out of 200
    assert record["settings"]["kmeans"] == {"num_restarts": 3, "max_steps": 300, "tol": 1e-4, "standardise": True}
    with open(tmp_path / "out" / "assignments.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["small"] * 60 + ["large"] * 40
    assert adjusted_rand_index([row["kmeans"] for row in rows], [row["em"] for row in rows]) > 0.9
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Hard assignments by the EM fit and by k-means" in report
    assert "ARI with labels" in report
    with open(tmp_path / "out" / "comparison.csv") as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["engine"], last["log_likelihood"], last["num_parameters"]) == ("kmeans", "", "4")


@pytest.mark.usefixtures("pictures_alone")
class TestPictures:
    @pytest.mark.parametrize("d", [1, 2, 4])
    def test_both_partitions_are_drawn(self, d, rng, key):
        case = random_case(FAMILIES["full"], 3, d, rng)
        x = case.rows(80, rng)
        partition = fit_kmeans(x, 3, key=key)
        axes = plot_partitions(make_fit(case), x, partition)
        assert axes.shape == (2,)
        left, right = axes
        assert left.get_xlim() == right.get_xlim()
        assert left.get_ylim() == right.get_ylim()
        assert left.get_title() == "mixture, EM"
        agreement = adjusted_rand_index(case.mixture.predict(x), partition.labels)
        assert right.get_title() == f"k-means, adjusted Rand index {agreement:.2f}"
        assert len(by_gid(axes, "nearest centre")) == (d == 2)
        assert len(by_gid(axes, "boundary")) == (2 if d == 1 else 0)
        check_drawable(axes)

    def test_rows_that_differ_are_ringed(self, rng, key):
        case = random_case(FAMILIES["full"], 3, 2, rng)
        x = case.rows(80, rng)
        partition = fit_kmeans(x, 3, key=key)
        labels = np.asarray(case.mixture.predict(x))
        matched = partition.matched_to(labels)
        axes = plot_partitions(case.mixture, x, partition, columns=[1, 0])
        (rings,) = by_gid(axes, "differs")
        np.testing.assert_array_equal(rings.get_offsets(), x[matched.labels != labels][:, [1, 0]])
        for cluster in range(3):
            (centre,) = by_gid(axes, f"centre {cluster}")
            np.testing.assert_allclose(centre.get_xydata()[0], matched.centres[cluster][[1, 0]])
        # The tint has the colour of the nearest centre, with the axes in the order shown.
        (tint,) = by_gid(axes, "nearest centre")
        left, right, low, high = tint.get_extent()
        pixels = np.asarray(tint.get_array())
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 3
        for cluster in range(3):
            here = matched.centres[cluster][[1, 0]]
            column = int((here[0] - left) / (right - left) * 399)
            row = int((here[1] - low) / (high - low) * 399)
            expected = by_gid(axes, f"cluster {cluster}")[-1].get_facecolor()[0, :3]
            np.testing.assert_allclose(pixels[row, column], 1 - 0.14 * (1 - expected), atol=1e-12)

    def test_grids_and_axes_of_the_caller(self, rng, key):
        case = random_case(FAMILIES["diag"], 3, 4, rng)
        x = pd.DataFrame(case.rows(80, rng), columns=list("abcd"))
        partition = fit_kmeans(x, 3, key=key)
        axes = plot_partitions(case.mixture, x, partition, columns=["d", "a", "b"])
        assert axes.shape == (2, 3, 3)
        check_finite(axes)
        grid = np.array(Figure().subplots(3, 6)).reshape(3, 2, 3).swapaxes(0, 1)
        drawn = plot_partitions(case.mixture, x, partition, columns=["d", "a", "b"], ax=grid)
        assert root_figure(drawn) is root_figure(grid)
        pair = Figure().subplots(1, 2)
        assert root_figure(plot_partitions(case.mixture, x, partition, ax=pair)) is root_figure(pair)
        with pytest.raises(InputError, match="two pictures need"):
            plot_partitions(case.mixture, x, partition, ax=Figure().subplots())

    def test_partitions_of_other_rows_are_refused(self, rng, key):
        case = random_case(FAMILIES["full"], 3, 2, rng)
        x = case.rows(80, rng)
        with pytest.raises(InputError, match="partition is of 70 rows of 2 features"):
            plot_partitions(case.mixture, x, fit_kmeans(x[:70], 3, key=key))


def test_a_partition_is_a_plain_record():
    shares = np.array([1 / 3, 2 / 3])
    partition = KMeansFit(np.array([0, 1, 1]), shares, np.zeros((2, 1)), 1.0, np.ones(1), 2, ResultCode.successful)
    assert partition.num_clusters == 2
