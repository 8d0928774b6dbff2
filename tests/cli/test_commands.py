"""`fit`, `predict` and `init`: a table is enough; and what scripts read: exit codes, JSON, silence."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import bayesgmm
from bayesgmm.cli import main as cli
from bayesgmm.cli.config import load_config, parse_counts
from bayesgmm.cli.terminal import _fitting
from bayesgmm.comparison.assignments import assignment_table
from bayesgmm.datasets.tables import DataError, read_parts


def run(*arguments):
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of two clusters, of an identifier, and of their classes; and a run of `fit` on it."""
    folder = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(6, 1, (40, 2))])
    frame = pd.DataFrame(rows, columns=["length", "width"])
    frame.insert(0, "id", range(1, 101))
    frame["kind"] = ["small"] * 60 + ["large"] * 40
    frame.to_csv(folder / "rows.csv", index=False)
    result = run("fit", folder / "rows.csv", "--components", "1:2", "--out", folder / "run", "--labels", "kind")
    assert result.exit_code == 0, result.output
    (folder / "told.txt").write_text(result.stdout)
    return folder


def test_fit_prints_the_summary_and_no_tables(folder):
    told = (folder / "told.txt").read_text()
    assert "k = 2 by BIC among 1 to 2" in told or "k = 2 by BIC among 1 and 2" in told
    assert "adjusted Rand index" in told
    assert "log-lik." not in told
    assert "8 files in" in told


def test_fit_without_out_writes_nothing(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = run("fit", folder / "rows.csv", "--components", "2", "--columns", "length, width", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_record_of_the_run(folder):
    result = run("fit", folder / "rows.csv", "--components", "2", "--json", "--quiet")
    record = json.loads(result.stdout)
    assert record["fits"]["em"]["num_components"] == 2
    assert record["read"] == "em"
    assert record["data"]["feature_names"] == ["length", "width"]


def test_a_fit_with_serious_problems_has_an_exit_code_of_its_own(folder, tmp_path):
    """Two rows a component: the likelihood of k = 3 has no maximum."""
    frame = pd.DataFrame({"a": [0.0, 0.0, 0.0, 5.0, 9.0, 9.5, 11.0]})
    frame.to_csv(tmp_path / "few.csv", index=False)
    result = run("fit", tmp_path / "few.csv", "--components", "3")
    assert result.exit_code == cli.EXIT_SERIOUS, result.output
    assert "with serious problems" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--components", "1:x"], "components='1:x' names no numbers; write 3, or 1,2,4, or 1:6"),
        (["--components", "3:1"], "components='3:1' names no numbers"),
        (["--family", "round"], "mixture.family = 'round' is not known"),
        (["--select-by", "dic"], "mixture.select_by = 'dic'"),
        (["--columns", "length,depth"], "depth"),
    ],
)
def test_bad_options_get_one_line(folder, options, line):
    result = run("fit", folder / "rows.csv", *options)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_counts_from_text():
    assert parse_counts("3") == [3]
    assert parse_counts("1,2, 4") == [1, 2, 4]
    assert parse_counts("2:5") == [2, 3, 4, 5]


def test_predictions_are_those_of_the_fit(folder):
    result = run("predict", folder / "run", folder / "rows.csv")
    assert result.exit_code == 0, result.output
    lines = [line.split(",") for line in result.stdout.strip().splitlines()]
    frame = pd.DataFrame(lines[1:], columns=lines[0]).astype(float)
    fit = bayesgmm.load_fit(folder / "run" / "em.npz")
    x = pd.read_csv(folder / "rows.csv")[["length", "width"]].to_numpy()
    np.testing.assert_array_equal(frame["cluster"], fit.mixture.predict(x))
    np.testing.assert_allclose(
        frame[["responsibility_0", "responsibility_1"]], fit.mixture.responsibilities(x), atol=1e-12
    )
    np.testing.assert_allclose(frame["log_density"], fit.mixture.log_prob(x), rtol=1e-9)
    # The run's own table begins alike.
    table = pd.read_csv(folder / "run" / "assignments.csv")
    assert list(table.columns) == [*lines[0], "em", "label"]
    np.testing.assert_allclose(table["log_density"], frame["log_density"], rtol=1e-9)
    assert table["label"].tolist() == ["small"] * 60 + ["large"] * 40


def test_predictions_of_draws_are_averages_with_their_spread(folder):
    fit = bayesgmm.load_fit(folder / "run" / "em.npz")
    rng = np.random.default_rng(0)
    means = fit.mixture.means + 0.2 * rng.normal(size=(2, 30, 2, 2))
    draws = bayesgmm.Mixture(
        np.broadcast_to(fit.mixture.log_weights, (2, 30, 2)),
        means,
        np.broadcast_to(fit.mixture.precision_factor, (2, 30, 2, 2, 2)),
    )
    x = pd.read_csv(folder / "rows.csv")[["length", "width"]].to_numpy()
    found = assignment_table(dataclasses.replace(fit, draws=draws), x)
    each = np.asarray(draws.responsibilities(x)).reshape(60, 100, 2)
    np.testing.assert_allclose(found["responsibility_1"], each[..., 1].mean(0), atol=1e-12)
    np.testing.assert_allclose(found["responsibility_1_sd"], each[..., 1].std(0), atol=1e-7)
    np.testing.assert_allclose(found["uncertainty"], 1 - each.mean(0).max(1), atol=1e-12)


def test_predict_writes_a_file_whole_or_not_at_all(folder, tmp_path):
    out = tmp_path / "found.csv"
    assert run("predict", folder / "run", folder / "rows.csv", "--out", out).exit_code == 0
    assert len(pd.read_csv(out)) == 100
    again = run("predict", folder / "run", folder / "rows.csv", "--out", out)
    assert (again.exit_code, "pass --overwrite" in again.stderr) == (2, True)
    frame = pd.read_csv(folder / "rows.csv").drop(columns="width")
    frame.to_csv(tmp_path / "narrow.csv", index=False)
    narrow = run("predict", folder / "run", tmp_path / "narrow.csv", "--out", tmp_path / "new.csv")
    assert "has no column 'width', which the fit needs" in narrow.stderr
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["here", "rows.csv"], "has no comparison.json of a run"),
        (["run", "none.csv"], "does not exist"),
        (["run", "rows.csv", "--engine", "nuts"], "engine='nuts'"),
        (["run", "rows.csv", "--out", "no/folder/found.csv"], "cannot be written"),
    ],
)
def test_what_cannot_be_predicted_gets_one_line(folder, monkeypatch, arguments, line):
    monkeypatch.chdir(folder)
    result = run("predict", *arguments)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_parts_of_a_file_are_the_file(folder, tmp_path):
    whole = bayesgmm.datasets.read_table(folder / "rows.csv", ["width", "length"]).x
    parts = list(read_parts(folder / "rows.csv", ["width", "length"], 30))
    assert [len(part) for part in parts] == [30, 30, 30, 10]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    frame = pd.read_csv(folder / "rows.csv")
    frame.to_parquet(tmp_path / "rows.parquet")
    np.testing.assert_array_equal(
        np.concatenate(list(read_parts(tmp_path / "rows.parquet", ["width", "length"], 30))), whole
    )
    frame.to_csv(tmp_path / "commas.csv", sep=";", decimal=",", index=False)
    np.testing.assert_allclose(
        np.concatenate(list(read_parts(tmp_path / "commas.csv", ["width", "length"], 30))), whole
    )
    frame.loc[41, "width"] = np.nan
    frame.to_csv(tmp_path / "gap.csv", index=False)
    with pytest.raises(DataError, match="data row 42 "):
        list(read_parts(tmp_path / "gap.csv", ["width", "length"], 30))
    frame.iloc[:1].to_csv(tmp_path / "one.csv", index=False)
    assert [part.shape for part in read_parts(tmp_path / "one.csv", ["width", "length"])] == [(1, 2)]


def test_init_writes_settings_that_are_taken_as_they_are(folder):
    result = run("init", folder / "rows.csv")
    assert result.exit_code == 0, result.output
    written = (folder / "rows.toml").read_text(encoding="utf-8")
    settings = load_config(folder / "rows.toml")
    assert settings.data.columns == ("length", "width")
    assert settings.data.labels == "kind"
    assert settings.data.load().x.shape == (100, 2)
    assert settings.mixture.num_components == (1, 2, 3, 4, 5, 6)
    assert "# column 'id' was left out" in written
    assert all(
        line.startswith("#") or "=" in line or re.fullmatch(r"\[\w+\]", line) for line in written.splitlines() if line
    )
    again = run("init", folder / "rows.csv")
    assert (again.exit_code, "pass --overwrite" in again.stderr) == (2, True)


def test_tables_in_the_terminal_are_no_wider_than_it():
    frame = pd.DataFrame(
        {"cluster": ["0"], "quantity": ["mean a"], **{f"engine {number}": ["1.234 ± 0.567"] for number in range(7)}}
    )
    for width in (60, 80, 120, 200):
        parts = _fitting(frame, width)
        assert sorted(name for part in parts for name in part if name.startswith("engine")) == sorted(frame.columns[2:])
        for part in parts:
            assert 1 + sum(3 + max(len(name), len(part[name][0])) for name in part) <= width
