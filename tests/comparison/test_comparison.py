"""`compare` from Python: the same job without files."""

import jax
import numpy as np
import pandas as pd
import pytest
from helpers import DATA

import bayesgmm
from bayesgmm.comparison.plan import Run
from bayesgmm.diagnostics.findings import Severity


def test_engines_are_run_on_the_selected_number_of_components(key):
    frame = pd.DataFrame(DATA["faithful"], columns=["eruptions", "waiting"])
    told = []
    found = bayesgmm.compare(frame, [1, 2, 3], engines=["em", "map"], key=key, on_progress=told.append)
    assert found.feature_names == ("eruptions", "waiting")
    assert list(found.fits) == ["em", "map"]
    assert list(found.candidates["num_components"]) == [1, 2, 3]
    best = found.candidates.loc[found.candidates["bic"].idxmin(), "num_components"]
    assert found.num_components == best == 2
    assert found.selected_by == "bic"
    assert found.fits["map"].mixture.num_components == 2
    assert len(found.fits["map"].summary["log_posteriors"]) == 4  # from several ends of EM, not from the best alone
    assert set(found.trees) == {"map"}
    assert found.cautions == []
    assert told[:2] == ["EM, k = 1", "EM, k = 2"]
    for name, fit in found.fits.items():
        row = found.table.set_index("engine").loc[name]
        assert row["log_likelihood"] == pytest.approx(float(fit.mixture.log_prob(DATA["faithful"]).sum()))
        assert row["bic"] == pytest.approx(bayesgmm.bic(fit, DATA["faithful"]))


def test_columns_that_are_hardly_measurements_are_named(key):
    eruptions = DATA["faithful"][:, 0]
    frame = pd.DataFrame({"eruptions": eruptions, "id": np.arange(272.0)})
    found = bayesgmm.compare(frame, 1, engines=["em"], key=key)
    sentence = "column 'id' was fitted as a measurement, and its whole numbers count the rows; leave it out"
    assert [(name, text.startswith(sentence)) for name, text in found.cautions] == [("data", True)]
    frame = pd.DataFrame({"eruptions": eruptions, "seconds": 60 * eruptions})
    found = bayesgmm.compare(frame, 2, engines=["em"], key=key)
    (whose, text), *others = found.cautions
    assert whose == "data"
    assert "is a linear combination of" in text
    assert "eruptions" in text
    assert "seconds" in text
    assert not any("fewer components" in text for _, text in others)


def test_a_collapsed_fit_is_not_selected(key):
    """Beside a cluster of identical rows the likelihood of k = 3 has no maximum, and must not win by its height."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(40, 2)) + 8, np.full((5, 2), 30.0)])
    start = bayesgmm.Mixture.from_covariances(
        np.full(3, 1 / 3), np.array([[0.0, 0.0], [8.0, 8.0], [30.0, 30.0]]), np.stack([np.eye(2)] * 3)
    )
    found = bayesgmm.compare(x, 3, engines=["em"], key=key, settings={"em": {"start": start}})
    assert found.table["result"][0] == "collapsed"
    assert found.cautions[0][0] == "em"
    assert "shrank" in found.cautions[0][1]
    # From random starts, other maxima are preferred to the spike; a collapsed k is passed over.
    found = bayesgmm.compare(x, [1, 2, 3], engines=["em"], key=key)
    assert found.fits["em"].code is bayesgmm.ResultCode.successful
    assert np.asarray(found.fits["em"].mixture.scales).min() > 0.1


def test_map_starts_where_it_starts_alone(key, monkeypatch):
    """At optima of EM, each the best of its restarts: single runs lead to lower modes, and are one more program."""
    from bayesgmm.engines import modes

    runs = []

    def fit_em(*args, **options):
        runs.append(options.get("num_restarts"))
        return bayesgmm.fit_em(*args, **options)

    monkeypatch.setattr(modes, "fit_em", fit_em)
    bayesgmm.compare(DATA["galaxies"], 2, engines=["em", "map"], key=key, settings={"em": {"num_restarts": 20}})
    assert runs == [20, 20, 20]  # beside the fit in the table
    runs.clear()
    bayesgmm.fit_map(DATA["galaxies"], 2, key=key)
    assert runs == [None] * 4  # the default


def test_prior_settings_reach_the_engines(key):
    x = DATA["galaxies"]
    settings = {"concentration": 7.0, "scale_sigma": 0.3}
    found = bayesgmm.compare(x, 2, engines=["em", "map"], key=key, prior_settings=settings)
    np.testing.assert_array_equal(found.prior.concentration, [7.0, 7.0])
    plain = bayesgmm.compare(x, 2, engines=["em", "map"], key=key)
    assert not np.allclose(found.fits["map"].mixture.weights, plain.fits["map"].mixture.weights)
    assert found.selected_by is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engines": ["em", "mcmc"]}, "engines='mcmc' is not known; .*choose one of em, map, vi, cavi, gibbs, nuts"),
        ({"engines": "em"}, r"engines='em' is one text; give a list, such as engines=\['em'\]"),
        *(
            (
                {"settings": {name: {"row_weights": np.ones(272)}}, "prior": "conjugate", "engines": ["em", name]},
                f"settings of {name} has row_weights, but a comparison counts every row once; .* directly",
            )
            for name in ("em", "cavi", "kmeans")
        ),
        (
            {"settings": {"em": {"prior": bayesgmm.conjugate_prior(DATA["faithful"], 2)}}, "engines": ["em"]},
            "settings of em has a prior, but a comparison's EM has none: .* maximum likelihood; drop it, .* with map",
        ),
        *(
            (
                {"settings": {"cavi": {name: value}}, "prior": "conjugate", "engines": ["em", "cavi"]},
                f"cavi has '{name}', which is no option of it here",
            )
            for name, value in (("num_restarts", 3), ("start", "kmeans"))
        ),
        ({"engines": ["em", "gibbs"]}, "engines has 'gibbs', which needs a conjugate prior; set prior='conjugate'"),
        ({"prior": "flat"}, "prior='flat' is not known; choose one of weakly_informative, conjugate"),
        ({"select_by": "dic"}, "select_by='dic' is not known"),
        ({"feature_names": ["a"]}, "feature_names has 1 names for 2 features"),
        ({"num_components": [2, 400]}, "num_components=400 .* needs at least 400 rows"),
        (
            {"settings": {"vi": {"guide": ["bogus"]}}, "engines": ["em", "vi"]},
            "guide='bogus' is not known; choose one of",
        ),
        (
            {"settings": {"vi": {"guide": ["normal", "normal"]}}, "engines": ["em", "vi"]},
            "guide=.*, each once",
        ),
        ({"prior_settings": {"concentration": -1.0}}, "prior concentration"),
        ({"prior_settings": {"conc": 1.0}}, "prior_settings has 'conc', which is no option of it here; there are conc"),
        ({"prior_settings": {"scale_prior": "half_normal"}, "engines": ["em", "map"]}, "half.normal"),
        ({"prior_settings": {"concentration": 0.5}, "engines": ["em", "map"]}, "concentration"),
        ({"prior_settings": {"dof": 0.5}, "prior": "conjugate", "engines": ["em", "gibbs"]}, "dof"),
        (
            {"settings": {"nuts": {"num_draws": 2}}, "engines": ["em", "map", "nuts"]},
            "num_draws=2 is too few for R-hat",
        ),
        (
            {"settings": {"nuts": {"num_samples": 9}}, "engines": ["em", "nuts"]},
            "nuts has 'num_samples', which is no option of it",
        ),
        (
            {"settings": {"nuts": {"start": None}}, "engines": ["em", "nuts"]},
            "nuts has 'start', which is no option of it here",
        ),
        (
            {"settings": {"nuts": {"target_accept": 2.0}}, "engines": ["em", "nuts"]},
            "target_accept=2.0 must lie between 0 and 1",
        ),
        (
            {"settings": {"vi": {"num_draws": 3}}, "engines": ["em", "vi"]},
            "num_draws=3 must be a whole number of at least 25",
        ),
        (
            {"settings": {"vi": {"checkpoint": 3.5}}, "engines": ["em", "vi"]},
            "checkpoint=3.5 must be the path of a file",
        ),
        ({"settings": {"map": {"gtol": -1.0}}, "engines": ["em", "map"]}, "gtol"),
        (
            {"settings": {"cavi": {"num_draws": 3}}, "prior": "conjugate", "engines": ["em", "cavi"]},
            "num_draws=3 is too few",
        ),
        (
            {"settings": {"gibbs": {"progress": "yes"}}, "prior": "conjugate", "engines": ["em", "gibbs"]},
            "progress='yes' must be True",
        ),
        (
            {"settings": {"kmeans": {"num_restarts": 0}}, "engines": ["em", "kmeans"]},
            "num_restarts=0 must be a whole number",
        ),
        ({"settings": {"em": {"restarts": 3}}}, "em has 'restarts', which is no option of it here"),
        ({"num_components": 2.5}, "num_components=2.5 must be a whole number"),
        ({"num_components": None}, "num_components=None must be a whole number"),
        ({"num_components": "23"}, "num_components='23' must be a whole number"),
        ({"num_components": [1, "2"]}, "num_components='2' must be a whole number"),
        ({"num_components": []}, "num_components is empty; give one number or several"),
        ({"key": 0}, r"key=0 is not a random key; pass key=jax.random.key\(0\)"),
    ],
)
def test_bad_arguments(arguments, message):
    """Refused before anything begins, whichever engine would be the one to refuse."""
    told = []
    arguments = {"num_components": 2, "key": jax.random.key(0), "on_progress": told.append, **arguments}
    with pytest.raises(bayesgmm.InputError, match=message):
        bayesgmm.compare(DATA["faithful"], **arguments)
    assert told == []


def test_interrupted_engine_loses_none_of_the_earlier_fits(key, monkeypatch):
    from bayesgmm.engines import cavi

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cavi, "_fit", stop)
    told = []
    options = {"prior": "conjugate", "key": key, "on_progress": told.append}
    found = bayesgmm.compare(DATA["faithful"], 2, engines=["em", "map", "cavi", "gibbs"], **options)
    assert list(found.fits) == ["em", "map"]
    assert "interrupted: cavi has no result, and no further engine is run" in told
    with pytest.raises(KeyboardInterrupt):
        bayesgmm.compare(DATA["faithful"], 2, engines=["em", "cavi"], **options)


def test_cautions_are_those_of_the_diagnoses_and_of_leave_one_out(key):
    found = bayesgmm.compare(DATA["galaxies"], np.int64(2), engines=["em"], key=key)
    assert found.cautions == []
    findings = [
        bayesgmm.Finding("small", Severity.note, "next to nothing", "do nothing"),
        bayesgmm.Finding("bad", Severity.caution, "something", "act"),
        bayesgmm.Finding("terrible", Severity.serious, "everything", "run"),
    ]
    found.diagnoses["em"] = bayesgmm.Diagnosis("em", tuple(findings))
    # Of 1,000 draws the limit is 0.67: rows that `loo` counts as unreliable are reported, whatever the largest k.
    found.table.loc[0, ["max_pareto_k", "num_bad_k"]] = 0.68, 3
    (_, first), (_, second), (_, third) = found.cautions
    assert first == "terrible: everything; run"
    assert second == "bad: something; act"
    assert "leave-one-out is up to 0.68, so its ELPD-LOO is unreliable for 3 of 82 rows" in third


def test_all_engines_on_one_conjugate_prior(key):
    """Six ways to one posterior: samplers and approximations agree on means within their Monte Carlo errors."""
    told, steps = [], []
    engines = ("em", "map", "vi", "cavi", "gibbs", "nuts")
    few = {"num_warmup": 200, "num_draws": 400}
    found = bayesgmm.compare(
        DATA["faithful"],
        2,
        family="diag",
        engines=engines,
        key=key,
        prior="conjugate",
        prior_settings={"concentration": 2.0},
        settings={"gibbs": few, "nuts": few, "vi": {"num_draws": 500}},
        on_progress=told.append,
        on_step=steps.append,
    )
    assert list(found.fits) == ["em", "map", "vi (full rank)", "cavi", "gibbs", "nuts"]
    assert isinstance(found.prior, bayesgmm.ConjugatePrior)
    deviation = np.asarray(found.fits["nuts"].draws.means).std((0, 1))
    for name in ("vi (full rank)", "cavi", "gibbs"):
        fit = found.fits[name]
        assert (np.abs(fit.mixture.means - found.fits["nuts"].mixture.means) < 0.4 * deviation).all()
        assert np.isfinite(found.table.set_index("engine").loc[name, "elpd_loo"])
        assert set(found.diagnoses) == set(found.fits)
    assert any("of 600" in step for step in steps)
    assert not any("of 600" in line for line in told)
    table = bayesgmm.compare_loo({name: tree for name, tree in found.trees.items() if name != "map"})
    assert set(table["engine"]) == {"vi", "cavi", "gibbs", "nuts"}
    assert abs(table["weight"].sum() - 1) < 1e-6  # not rounded
    assert (table["elpd"] % 0.1 > 1e-9).any()


def test_interrupted_sampler_ends_the_comparison_with_what_there_is(key):
    def stop(step):
        if "of 2100" in step and "nuts" not in step and int(step.split(":")[1].split()[0]) > 120:
            raise KeyboardInterrupt

    found = bayesgmm.compare(
        DATA["galaxies"],
        2,
        family="diag",
        engines=("em", "gibbs", "nuts"),
        key=key,
        prior="conjugate",
        settings={"gibbs": {"num_warmup": 100, "num_draws": 2000}},
        on_step=stop,
    )
    assert list(found.fits) == ["em", "gibbs"]
    assert found.fits["gibbs"].code is bayesgmm.ResultCode.interrupted
    assert found.table.set_index("engine").loc["gibbs", "result"] == "interrupted"
    assert any("interrupted" in sentence for _, sentence in found.cautions)


def test_an_engine_that_fails_has_a_row_and_the_others_stand(key, monkeypatch):
    from bayesgmm.comparison import comparing as module
    from bayesgmm.comparison.tables import engine_table
    from bayesgmm.engines import cavi

    def fail(*args, **options):
        raise ZeroDivisionError("a fault\nof an engine")

    told = []
    options = {"prior": "conjugate", "key": key, "on_progress": told.append}
    monkeypatch.setattr(cavi, "_fit", fail)
    found = bayesgmm.compare(DATA["galaxies"], 2, engines=["em", "map", "cavi", "kmeans"], **options)
    assert list(found.table["engine"]) == ["em", "map", "kmeans", "cavi"]
    row = found.table.iloc[3]
    assert (row["result"], row["message"]) == ("failed", "ZeroDivisionError: a fault of an engine")
    assert np.isnan(row["ari_kmeans"])
    assert found.table["inertia"].notna().sum() == 3
    assert found.of_row("cavi") is None
    assert "cavi failed: ZeroDivisionError: a fault of an engine" in told
    assert ("cavi", "failed, it has no fit: ZeroDivisionError: a fault of an engine") in found.cautions
    assert engine_table(found)["converged"].iloc[3] == "no: failed (ZeroDivisionError)"
    # Nor is a fit lost whose diagnostics fail or are not waited for, or a k that EM fitted beside one that it did not.
    monkeypatch.setattr(module, "to_datatree", fail)
    monkeypatch.setattr(module, "errors_of_em", fail)
    found = bayesgmm.compare(DATA["galaxies"], 2, engines=["em", "map"], **options)
    assert (list(found.fits), list(found.trees), found.errors) == (["em", "map"], [], None)
    assert set(found.failures) == {"em", "map"}
    assert found.cautions[0][1].startswith("failed, in part")

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "diagnose", stop)
    found = bayesgmm.compare(DATA["galaxies"], 2, engines=["em"], **options)
    assert (list(found.fits), found.diagnoses) == (["em"], {})
    assert any("interrupted" in line for line in told)


def test_a_number_of_components_that_fails_loses_no_other(key):
    start = bayesgmm.fit_em(DATA["galaxies"], 2, key=key).mixture
    settings = {"em": {"start": start}}
    found = bayesgmm.compare(DATA["galaxies"], [2, 3], engines=["em"], key=key, settings=settings)
    assert list(found.candidates["result"]) == ["successful", "failed"]
    assert found.num_components == 2
    assert list(found.failures) == ["em, k = 3"]
    with pytest.raises(bayesgmm.InputError, match="start"):
        bayesgmm.compare(DATA["galaxies"], 3, engines=["em"], key=key, settings=settings)


def test_further_optima_are_sought_once(key, monkeypatch):
    """Also where one of their fits fails: samplers then start from those that there are."""
    from bayesgmm.comparison import comparing as module

    sought = []

    def em_optima(*args, **options):
        sought.append(args[3])
        return []

    monkeypatch.setattr(module, "em_optima", em_optima)
    few = {"num_warmup": 5, "num_draws": 8}
    engines = ("em", "map", "gibbs")
    settings = {"gibbs": few}
    bayesgmm.compare(DATA["galaxies"], 2, engines=engines, key=key, prior="conjugate", settings=settings)
    assert sought == [3]


@pytest.fixture(scope="module")
def over_k():
    """Leave-one-out of CAVI at three numbers of components, where three are clear."""
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(centre, 1.0, size=(60, 2)) for centre in (-6.0, 0.0, 6.0)])
    told = []
    options = {"key": jax.random.key(0), "prior": "conjugate", "family": "diag", "on_progress": told.append}
    found = bayesgmm.compare(x, [2, 3, 4], engines=["em", "cavi"], loo_over_k="cavi", **options)
    return found, told


def test_leave_one_out_of_an_engine_at_every_number_of_components(over_k):
    found, told = over_k
    table = found.loo_over_k
    assert sorted(table["num_components"]) == [2, 3, 4]
    assert found.num_components == 3
    chosen = table.set_index("num_components").loc[3]
    line = found.table.set_index("engine").loc["cavi"]
    assert chosen["elpd"] == pytest.approx(line["elpd_loo"], rel=1e-12)
    assert table.set_index("num_components").loc[2, "elpd_diff"] < -50
    assert [sentence for sentence in told if "leave-one-out" in sentence] == [
        "cavi, k = 2, for leave-one-out",
        "cavi, k = 4, for leave-one-out",
    ]
    assert any("leave-one-out by cavi" in sentence for sentence in found.summary().components)


def test_what_fails_at_another_number_is_named_and_the_others_are_compared(monkeypatch):
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(centre, 1.0, size=(60, 2)) for centre in (-6.0, 0.0, 6.0)])
    run = Run.__call__

    def fails_at_four(self, rows, num_components, **shared):
        if self.name == "cavi" and num_components == 4:
            raise FloatingPointError("four is too many")
        return run(self, rows, num_components, **shared)

    monkeypatch.setattr(Run, "__call__", fails_at_four)
    options = {"key": jax.random.key(0), "prior": "conjugate", "family": "diag"}
    found = bayesgmm.compare(x, [2, 3, 4], engines=["em", "cavi"], loo_over_k="cavi", **options)
    assert sorted(found.loo_over_k["num_components"]) == [2, 3]
    assert str(found.failures["cavi, k = 4"]) == "four is too many"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loo_over_k": "cavi"}, "loo_over_k='cavi' must be an engine with draws; of those that are run, none can"),
        ({"loo_over_k": "em", "engines": ["em", "vi"]}, "of those that are run, vi can"),
        ({"loo_over_k": "vi", "engines": ["em", "vi"], "num_components": 2}, "num_components is 2 only"),
    ],
)
def test_leave_one_out_over_k_is_refused_where_it_cannot_be(arguments, message, key):
    with pytest.raises(bayesgmm.InputError, match=message):
        bayesgmm.compare(DATA["faithful"], **{"num_components": [1, 2], "engines": ["em"], "key": key, **arguments})
