"""The main job from end to end, and every bad input: one clear line, exit code 2, nothing half-written."""

import base64
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import bayesgmm
from bayesgmm.cli import main as cli
from bayesgmm.cli import outputs
from bayesgmm.comparison.tables import in_parts
from bayesgmm.runtime.printing import with_uncertainty

ROOT = Path(__file__).parents[2]

SMALL = """
title = "A <small> test"
seed = 3
[data]
path = "rows.csv"
[mixture]
family = "diag"
num_components = [1, 2]
[em]
num_restarts = 3
[vi]
guide = "normal"
num_draws = 300
[nuts]
num_chains = 2
num_warmup = 200
num_draws = 200
"""
EM_ONLY = """
engines = ["em"]
[data]
path = "rows.csv"
[mixture]
num_components = 2
"""


def run(*arguments):
    return CliRunner().invoke(cli.app, ["compare", *map(str, arguments)])


@pytest.fixture
def rows():
    rng = np.random.default_rng(2)
    return np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(6, 1, (40, 2))])


@pytest.fixture
def folder(tmp_path, rows):
    """A folder with a table of rows and a function that writes settings beside it."""
    header = "length,width"
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header=header, comments="")
    return tmp_path


def settings(folder, text, name="job.toml"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run of the small job."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(6, 1, (40, 2))])
    table = np.column_stack([np.arange(1, 101), rows])
    np.savetxt(folder / "rows.csv", table, delimiter=",", header="id,length,width", comments="")
    result = run(settings(folder, SMALL), "--out", folder / "out", "--seed", "5")
    assert result.exit_code == 0, result.output
    return folder / "out", result


def test_files_of_the_main_job(finished):
    out, _ = finished
    names = {path.name for path in out.iterdir()}
    assert names == {
        "comparison.csv",
        "assignments.csv",
        "comparison.json",
        "parameters.csv",
        "report.html",
        "summary.txt",
        "figures",
        "em.npz",
        *(f"{name}.{kind}" for name in ("map", "vi_normal", "nuts") for kind in ("nc", "npz")),
    }
    assert [path for path in out.parent.iterdir() if path.name.startswith(".")] == []
    figures = ["assignments", "criteria", "fit", "pareto_k", "parameters", "posterior_predictive", "posteriors"]
    figures += ["ranks", "traces", "uncertainty"]
    assert sorted(path.name for path in (out / "figures").iterdir()) == sorted(
        f"{name}.{form}" for name in figures for form in ("png", "svg")
    )
    assert "<svg" in (out / "figures" / "fit.svg").read_text()


def test_table_in_the_terminal(finished):
    _, result = finished
    for text in (
        "BIC selects k = 2",
        "ELPD-LOO",
        "R-hat",
        "k-hat",
        "weight",
        "mean length",
        "±",
        "yes (",
        "report.html",
    ):
        assert text in result.stdout
    # Progress goes to the other stream, so that the table can be piped.
    assert "nuts, k = 2" in result.stderr
    assert "nuts, k = 2" not in result.stdout


def test_the_summary_comes_first_on_the_page_in_the_terminal_and_in_a_file(finished):
    out, result = finished
    text = (out / "summary.txt").read_text(encoding="utf-8")
    assert "k = 2 by BIC among 1 and 2; it is" in text
    assert "read nuts: draws from the posterior" in " ".join(text.split())
    assert text in result.stdout
    assert result.stdout.index(text) < result.stdout.index("ELPD-LOO")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.index("k = 2 by BIC among 1 and 2; it is") < report.index("<img")


def test_no_table_of_the_report_is_wider_than_the_page(finished):
    """Engines beyond five are in a further table, each cluster has its own, and correlations of many columns fold."""
    frame = pd.DataFrame([["weight", *"1234567"]], columns=["quantity", *"abcdefg"])
    parts = in_parts(frame, 5)
    assert [list(part) for part in parts] == [["quantity", *"abcde"], ["quantity", "f", "g"]]
    report = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert report.count("<h3>Cluster 0</h3>") == report.count("<h3>Cluster 1</h3>") == 1


def test_columns_that_are_used_and_left_out_are_named(finished):
    out, result = finished
    note = "column 'id' was left out: its whole numbers count the rows"
    assert "100 rows of length, width." in result.stdout
    assert note in " ".join(result.stdout.split())
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "100 rows of length, width; a mixture of" in report
    assert note.replace("'", "&#x27;") in report
    data = json.loads((out / "comparison.json").read_text())["data"]
    assert data["feature_names"] == ["length", "width"]
    assert data["notes"][0].startswith(note)


def test_comparison_csv(finished):
    out, _ = finished
    with open(out / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["engine"] for row in rows] == ["em", "map", "vi (normal)", "nuts"]
    for row in rows:
        assert float(row["bic"]) == pytest.approx(-2 * float(row["log_likelihood"]) + 9 * np.log(100))
        assert float(row["seconds"]) > 0
        assert float(row["seconds_compiling"]) >= 0
        assert row["num_components"] == "2"
    assert rows[0]["elpd_loo"] == rows[1]["elpd_loo"] == ""
    assert float(rows[3]["elpd_loo_se"]) > 0


def test_comparison_json(finished):
    out, _ = finished
    record = json.loads((out / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert record["seed"] == 5
    assert record["settings"]["seed"] == 5
    assert record["dtype"] == "float64"
    assert record["device"]["platform"] == "cpu"
    assert record["versions"]["jax"]
    assert record["versions"]["bayesgmm"] == bayesgmm.__version__
    assert record["settings"]["mixture"]["family"] == "diag"
    assert [candidate["num_components"] for candidate in record["candidates"]] == [1, 2]
    assert record["fits"]["em"]["result_code"] == 0
    assert record["fits"]["em"]["elpd_loo"] is None
    assert sum(record["fits"]["nuts"]["parameters"]["weights"]) == pytest.approx(1)
    assert np.shape(record["fits"]["nuts"]["parameters"]["means_sd"]) == (2, 2)


def test_report_is_one_self_contained_file(finished):
    out, _ = finished
    text = (out / "report.html").read_text()
    assert "<title>A &lt;small&gt; test</title>" in text
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(images) == 10
    for image in images:
        assert base64.b64decode(image)[:8] == b"\x89PNG\r\n\x1a\n"
    assert not re.search(r'src="(?!data:)|href="(?!#)', text)
    assert text.count("<figcaption>") == 10
    headings = re.findall("<h2>(.*)</h2>", text)
    assert headings == [
        "Summary",
        "The fit",
        "The engines side by side",
        "Parameters",
        "Diagnostics",
        "Prior",
        "Settings",
    ]
    for heading in headings:  # the table of contents
        anchor = heading.lower().replace(" ", "-")
        assert f'<a href="#{anchor}">{heading}</a>' in text
        assert f'<section id="{anchor}">' in text


def test_trees_in_the_output_folder_are_the_fits(finished):
    out, _ = finished
    tree = bayesgmm.load_datatree(out / "nuts.nc")
    record = json.loads((out / "comparison.json").read_text())
    mean = tree.posterior["means"].mean(("chain", "draw")).to_numpy()
    np.testing.assert_allclose(mean, record["fits"]["nuts"]["parameters"]["means"], rtol=1e-9)
    assert list(tree.posterior["feature"].values) == ["length", "width"]


def test_same_seed_same_numbers_and_em_alone(folder):
    job = settings(folder, EM_ONLY)
    records = []
    for name in ("one", "two"):
        assert run(job, "--out", folder / name, "--seed", "1").exit_code == 0
        records.append(json.loads((folder / name / "comparison.json").read_text())["fits"]["em"]["parameters"])
    assert records[0] == records[1]
    assert {path.name for path in (folder / "one").iterdir()} == {
        "assignments.csv",
        "comparison.csv",
        "comparison.json",
        "em.npz",
        "figures",
        "parameters.csv",
        "report.html",
        "summary.txt",
    }


def test_full_output_folder_is_kept_unless_overwritten(folder):
    job = settings(folder, EM_ONLY)
    out = folder / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    result = run(job, "--out", out)
    assert result.exit_code == 2
    assert (
        result.stderr.strip()
        == f"error: output folder '{out}' is not empty; pass --overwrite, or choose another with --out"
    )
    assert (out / "precious.txt").read_text() == "keep me"
    assert run(job, "--out", out, "--overwrite").exit_code == 0
    assert (out / "report.html").exists()
    assert not (out / "precious.txt").exists()


def test_a_failure_while_writing_leaves_nothing_behind(folder, monkeypatch):
    job = settings(folder, EM_ONLY)
    out = folder / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")

    def broken(*_, **__):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(outputs, "render_report", broken)
    result = run(job, "--out", out, "--overwrite")
    assert isinstance(result.exception, RuntimeError)
    assert {path.name for path in out.iterdir()} == {"precious.txt"}
    assert {path.name for path in folder.iterdir()} == {"rows.csv", "job.toml", "out"}


TOO_FEW = "length,width\n" + "1,2\n" * 3 + "2,1\n" * 3
BAD = {
    "unknown key": (EM_ONLY + "famly = 'full'\n", None, ["mixture.famly", "did you mean 'family'"]),
    "missing file": (EM_ONLY.replace("rows.csv", "absent.csv"), None, ["absent.csv", "does not exist"]),
    "missing column": (
        EM_ONLY.replace('"rows.csv"', '"rows.csv"\ncolumns = ["height"]'),
        None,
        ["'height'", "'length'"],
    ),
    "non-numeric": (EM_ONLY + "", "length,width\n1,a\n2,b\n3,c\n", ["width"]),
    "NaN": (EM_ONLY, "length,width\n1,2\nnan,3\n4,5\n,7\n", ["2", "row 2"]),
    "k beyond distinct rows": (
        EM_ONLY.replace("= 2", "= 3"),
        TOO_FEW,
        ["num_components=3", "3 distinct rows; got 2"],
    ),
    "too few rows": (
        EM_ONLY,
        "length,width\n1,2\n3,5\n",
        ["num_components=2", "at least 3 rows", "got 2. Give more rows, or choose a diagonal family"],
    ),
    "empty file": (EM_ONLY, "", ["empty"]),
    "constant column": (EM_ONLY, "length,width\n1,2\n1,3\n1,4\n1,5\n", ["constant", "length"]),
    "no settings": (None, None, ["job.toml"]),
}


@pytest.mark.parametrize("fault", list(BAD))
def test_bad_input_gets_a_clear_line_and_exit_code_2(fault, folder):
    text, table, parts = BAD[fault]
    if table is not None:
        (folder / "rows.csv").write_text(table)
        if fault == "non-numeric":
            text = text.replace('"rows.csv"', '"rows.csv"\ncolumns = ["length", "width"]')
    job = folder / "job.toml" if text is None else settings(folder, text)
    result = run(job, "--out", folder / "out")
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert not (folder / "out").exists()
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("engine", "prior", "advice"),
    [
        (
            "map",
            'scale_prior = "half_normal"',
            r'scale_prior="lognormal" or kind = "conjugate" in \[prior\], .* "nuts"$',
        ),
        ("map", "concentration = 0.5", 'concentration=0.5 is below 1, .*; use at least 1, or .* the engine "nuts"$'),
        ("map", 'kind = "conjugate"\nstick_breaking = true', 'use stick_breaking=false, or the engine "cavi" or'),
        ("gibbs", "", r'set kind = "conjugate" in \[prior\]$'),
    ],
)
def test_errors_speak_of_keys_and_engines_not_of_python(engine, prior, advice, folder):
    text = EM_ONLY.replace('["em"]', f'["em", "{engine}"]') + f"\n[prior]\n{prior}\n"
    result = run(settings(folder, text), "--out", folder / "out")
    assert result.exit_code == 2
    assert re.search(advice, result.stderr.strip())
    assert not re.search(r"\bfit_|\b\w+_prior\b(?!=)|True|False", result.stderr)


def test_command_is_installed_and_quick_to_help():
    for arguments in (["--help"], ["compare", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "bayesgmm", *arguments], capture_output=True, text=True, check=True
        )
        assert "bayesgmm" in done.stdout
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, bayesgmm.cli; print('jax' in sys.modules)"], capture_output=True, text=True
    )
    assert imported.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("num_cores", "engines", "more", "num_devices"),
    [
        (3, '["em"]', "", 3),
        (2, '["em", "nuts"]', "", 2),
        (3, '["em", "nuts"]', "", 3),
        (2, '["em", "nuts"]', "[nuts]\nnum_chains = 3\n", 3),
        (1, '["em", "nuts"]', "", 1),
        (6, '["em", "nuts"]', "", 6),
    ],
)
def test_there_is_a_device_for_every_core(num_cores, engines, more, num_devices, folder, monkeypatch):
    """Also without chains, so that EM on many rows uses the cores; more for chains that they cannot share evenly."""
    asked = []

    def ask(count):
        asked.append(count)
        raise bayesgmm.InputError("enough")

    monkeypatch.setattr(cli, "_num_cores", lambda: num_cores)
    monkeypatch.setattr(cli, "_use_host_devices", ask)
    run(settings(folder, EM_ONLY.replace('["em"]', engines) + more), "--out", folder / "out")
    assert asked == [num_devices]


@pytest.mark.parametrize("start", ["hierarchical", "kmeans"])
def test_the_start_of_em_and_its_acceleration_can_be_set(start, folder, monkeypatch):
    from bayesgmm.comparison import plan

    given = {}

    def fit(run, *args, **shared):
        given.update(run.arguments)
        raise bayesgmm.InputError("enough")

    monkeypatch.setattr(plan.Run, "__call__", fit)
    run(settings(folder, EM_ONLY + f"[em]\nstart = '{start}'\naccelerate = true\n"), "--out", folder / "out")
    assert (given["start"], given["accelerate"]) == (start, True)


@pytest.mark.parametrize(
    ("value", "sd", "text"),
    [
        (2.0363, 0.0284, "2.036 ± 0.028"),
        (79.968, 0.4612, "79.97 ± 0.46"),
        (1234.5, 67.8, "1234 ± 68"),
        (2.5, None, "2.5"),
    ],
)
def test_digits_follow_the_uncertainty(value, sd, text):
    assert with_uncertainty(value, sd) == text


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(folder):
    job = settings(folder, EM_ONLY)
    result = run(job, "--out", folder / "rows.csv" / "out")
    assert result.exit_code == 2
    assert "cannot be made in" in result.stderr
    result = run(job, "--out", folder / "rows.csv")
    assert result.exit_code == 2
    assert "is a file" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_run(config, tmp_path):
    result = run(config, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
