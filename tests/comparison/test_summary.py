"""The sentences of a summary, each rule on numbers made for it, and a whole one."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from helpers import DATA

import bayesgmm
from bayesgmm.comparison.summary import (
    Agreement,
    agreement_with,
    describe_clusters,
    engine_to_read,
    words_against,
    words_of_advice,
    words_of_agreement,
    words_of_classes,
    words_of_count,
    words_of_difference,
    words_of_loo,
)
from bayesgmm.diagnostics.findings import Diagnosis, Finding, Severity
from bayesgmm.engines.fit import ResultCode
from bayesgmm.standard_errors.parameters import ParameterTable

GOOD = ResultCode.successful
KINDS = {"em": "point", "vi (normal)": "approximation", "gibbs": "draws", "nuts": "draws"}


def candidates(bic, aic=None, icl=None, results=None):
    """A table of fits over k = 1, 2, ..., with the same criteria unless others are given."""
    num = len(bic)
    return pd.DataFrame(
        {
            "num_components": range(1, num + 1),
            "bic": bic,
            "aic": bic if aic is None else aic,
            "icl": bic if icl is None else icl,
            "result": results or ["successful"] * num,
        }
    )


def count(table, chosen, select_by="bic"):
    return list(words_of_count(table, chosen, select_by))


def test_how_many_components_and_how_decisively():
    found = count(candidates([130.0, 100.0, 111.5]), 2)
    assert found == [
        "k = 2 by BIC among 1 to 3; it is 11.5 ahead, very strong evidence against k = 3",
        "AIC and ICL agree",
    ]


@pytest.mark.parametrize(
    ("criterion", "behind", "words"),
    [
        # Kass & Raftery (1995), section 3.2: 2 log B of 0 to 2, 2 to 6, 6 to 10, more.
        ("bic", 0.0, "0.0 ahead, hardly any evidence"),
        ("bic", 1.9, "hardly any evidence"),
        ("bic", 5.9, "5.9 ahead, positive evidence"),
        ("icl", 9.9, "strong evidence"),
        ("bic", 10.1, "very strong evidence"),
        ("bic", 523.4, "523 ahead, very strong evidence"),
        ("aic", 1.9, "substantial support"),
        ("aic", 9.0, "considerably less support"),
        ("aic", 11.0, "essentially no support"),
    ],
)
def test_differences_in_words(criterion, behind, words):
    assert words in words_of_difference(criterion, behind)


def test_a_tie_is_hardly_any_evidence():
    assert "0.0 ahead, hardly any evidence against k = 3" in count(candidates([130.0, 100.0, 100.0]), 2)[0]


def test_criteria_that_prefer_another_number_say_what_that_means():
    table = candidates([130.0, 110.0, 100.0, 105.0], aic=[130.0, 110.0, 99.0, 90.0], icl=[130.0, 100.0, 104.0, 120.0])
    _, aic, icl = count(table, 3)
    assert icl == "ICL prefers k = 2: components overlap, so that some clusters are made of several components"
    assert aic.startswith("AIC prefers k = 4: it charges less for a parameter")
    _, aic, bic = count(table, 2, "icl")
    assert bic.startswith("BIC prefers k = 3: its further components overlap")
    assert aic.startswith("AIC prefers k = 4: it charges less")
    _, bic, icl = count(table, 4, "aic")
    assert bic.startswith("BIC prefers k = 3: it charges more for a parameter")
    assert icl.startswith("ICL prefers k = 2: components overlap")


def test_numbers_whose_fit_did_not_converge_are_left_out():
    results = ["successful", "successful", "collapsed", "failed"]
    found = count(candidates([130.0, 100.0, 20.0, math.nan], results=results), 2)
    assert found[0].endswith("it is 30.0 ahead, very strong evidence against k = 1")
    assert found[1] == "k = 3 and 4 left out: no fit that converged"
    (alone,) = count(candidates([130.0, 20.0], results=["successful", "collapsed"]), 1)
    assert alone == "k = 1 by BIC among 1 and 2: no other fit converged"
    assert count(candidates([130.0]), 1, None) == ["k = 1, the only number that was tried"]


def diagnosis(*severities):
    return Diagnosis("fit", tuple(Finding(f"cause {number}", severity, "detail", "advice")
                                  for number, severity in enumerate(severities)))  # fmt: skip


@pytest.mark.parametrize(
    ("codes", "findings", "read", "why"),
    [
        ({}, {}, "nuts", "draws from the posterior, without problems"),
        ({"nuts": ResultCode.not_mixed}, {"nuts": Severity.serious}, "gibbs", "without problems"),
        ({"nuts": ResultCode.max_steps_reached}, {}, "gibbs", "without problems"),
        # A sampler with a caution gives more than an approximation without any.
        ({}, {"nuts": Severity.caution, "gibbs": Severity.caution}, "nuts", "with a caution"),
        ({}, {"nuts": Severity.note}, "nuts", "without problems"),
        (
            {},
            {"nuts": Severity.serious, "gibbs": Severity.serious},
            "vi (normal)",
            "an approximation of the posterior, without problems; of gibbs and nuts more stands against",
        ),
        # One that misses part of the posterior is not read.
        (
            {},
            {"nuts": Severity.serious, "gibbs": Severity.serious, "vi (normal)": Severity.caution},
            "em",
            "a point without a posterior, without problems; of vi (normal), gibbs and nuts more stands against",
        ),
        ({}, dict.fromkeys(KINDS, Severity.serious), "nuts", "with serious problems"),
        ({}, dict.fromkeys(KINDS, Severity.serious) | {"em": Severity.caution}, "em", "with a caution"),
    ],
)
def test_which_engine_to_read(codes, findings, read, why):
    diagnoses = {name: diagnosis(severity) for name, severity in findings.items()}
    found, words = engine_to_read(dict.fromkeys(KINDS, GOOD) | codes, KINDS, diagnoses)
    assert found == read
    assert why in words


def test_the_worst_finding_and_the_number_of_others():
    assert words_against(diagnosis(Severity.serious, Severity.caution, Severity.note)) == "cause 0: detail (and 1 more)"
    assert words_against(diagnosis(Severity.note)) == ""
    assert words_against(diagnosis()) == ""


def parameters(**columns):
    """A table of two parameters of each of two clusters."""
    frame = pd.DataFrame(
        {"cluster": ["0", "1", "0", "1"], "quantity": ["weight", "weight", "mean a", "mean a"], **columns}
    )
    return ParameterTable(frame, tuple(columns), "nuts", ())


def test_agreement_is_in_posterior_standard_deviations():
    table = parameters(
        **{"nuts": [0.4, 0.6, 1.0, 9.0], "nuts sd": [0.1, 0.1, 0.5, 2.0]},
        **{"vi": [0.4, 0.6, 1.4, 9.0], "vi sd": [0.05, 0.11, 0.5, 2.0], "vi ratio": [0.5, 1.1, 1.0, 1.0]},
        **{"map": [0.4, 0.6, 1.0, 5.0]},
    )
    assert agreement_with(table, "vi") == Agreement(
        pytest.approx(0.8), "cluster 0, mean a", 0.5, "cluster 0, weight", 1.1, "cluster 1, weight"
    )
    of_point = agreement_with(table, "map")
    assert (of_point.distance, of_point.farthest) == (2.0, "cluster 1, mean a")
    assert math.isnan(of_point.widest)
    assert agreement_with(table, "nuts") is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Agreement(0.2, "here"), "agrees with nuts: at most 0.20 posterior sd apart (here)"),
        (Agreement(2.34, "here"), "is up to 2.3 posterior sd from nuts (here)"),
        (Agreement(0.2, "here", 0.9, "a", 1.1, "b"), "agrees with .*; its sd is 0.90 to 1.10 times as large"),
        (Agreement(0.2, "here", 0.4, "a", 1.1, "b"), r"agrees .*; overconfident: its sd is 0.40 times as large \(a\)"),
        (Agreement(0.2, "here", 0.9, "a", 1.7, "b"), r"agrees .*; underconfident: its sd is 1.70 times as large \(b\)"),
    ],
)
def test_agreement_in_words(found, words):
    assert re.fullmatch(words if "*" in words else re.escape(words), words_of_agreement(found, "nuts"))


def test_clusters_with_their_sizes_places_and_separation():
    table = parameters(nuts=[0.4, 0.6, 1.0, 9.0], **{"nuts sd": [0.031, 0.031, 0.52, 2.0]})
    responsibilities = np.array([[1.0, 0.0], [0.8, 0.2], [0.05, 0.95]])
    one, two = describe_clusters(responsibilities, np.array([[0], [0]]), table, "nuts", ["a"])
    assert (
        str(one)
        == "0: 2 rows, 40.0 ± 3.1 %: a 1.00 ± 0.52; mean responsibility 0.900, 1 row belongs to it with less than 90 %"
    )
    assert str(two) == "1: 1 row, 60.0 ± 3.1 %: a 9.0 ± 2.0; mean responsibility 0.950, none with less than 90 %"
    empty, _ = describe_clusters(responsibilities[2:], np.array([[0], [0]]), table, "nuts", ["a"])
    assert str(empty).endswith("no row is assigned to it")


def test_known_classes():
    table = pd.crosstab(np.repeat(["a", "b", "c"], 10), np.repeat([0, 1, 1], 10))
    assert words_of_classes(0.5, table) == (
        "adjusted Rand index 0.500 (1 is perfect, 0 is chance); 20 of 30 rows are of the class that is most frequent "
        "in their cluster"
    )


def test_a_whole_summary_in_text_and_html(key):
    labels = np.where(DATA["faithful"][:, 0] < 3, "short", None)  # some classes are not known
    frame = pd.DataFrame(DATA["faithful"], columns=["eruptions", "waiting"])
    found = bayesgmm.compare(frame, [1, 2], engines=["em", "map"], labels=labels, key=key).summary()
    assert found.read == "em"
    assert found.components[0].startswith("k = 2 by BIC among 1 and 2; it is")
    assert [cluster.num_rows for cluster in found.clusters] == [97, 175]
    assert found.cross_table.to_numpy().sum() == (DATA["faithful"][:, 0] < 3).sum()
    assert found.next_steps == ("try more components: k = 2 is the largest number that was tried",)
    text, page = str(found), found._repr_html_()
    for heading, sentences in found.sections.items():
        assert heading in text
        for sentence in sentences:
            assert sentence in " ".join(text.split())
            assert sentence.replace("<", "&lt;") in page
    assert max(map(len, text.splitlines())) <= 100


def test_what_was_tried_is_not_advised():
    finding = Finding("k-hat", Severity.caution, "it is 0.9", "draws from the posterior itself by NUTS")
    assert words_of_advice(finding, "approximation", "nuts", "draws") == "k-hat: read nuts, which approximates nothing"
    assert words_of_advice(finding, "approximation", "em", "point").endswith(
        "try draws from the posterior itself by NUTS"
    )
    assert words_of_advice(finding, "draws", "nuts", "draws").startswith("k-hat: try ")


def leave_one_out(behind, errors, results=None, bad=None):
    """A table of `compare_loo` over k = 1, 2, ..., best first."""
    num = len(behind)
    table = pd.DataFrame(
        {
            "engine": "nuts",
            "num_components": range(1, num + 1),
            "elpd_diff": np.negative(behind),
            "dse": errors,
            "result": results or ["successful"] * num,
            "num_bad": bad or [0] * num,
        }
    )
    return table.sort_values("elpd_diff", ascending=False)


@pytest.mark.parametrize(
    ("behind", "errors", "options", "said"),
    [
        (
            [90.0, 0.0, 2.5],
            [12.0, 0.0, 3.0],
            {},
            ["leave-one-out by nuts agrees: it is 2.5 ± 3.0 ahead of k = 3, too little to tell them apart"],
        ),
        (
            [90.0, 0.0, 60.0],
            [12.0, 0.0, 9.0],
            {},
            ["leave-one-out by nuts agrees: it is 60.0 ± 9.0 ahead of k = 3, more than chance makes"],
        ),
        (
            [90.0, 3.9, 0.0],
            [12.0, 1.0, 0.0],
            {},
            ["leave-one-out by nuts prefers k = 3: it is 3.9 ± 1.0 ahead of k = 2, too little to tell them apart"],
        ),
        (
            [90.0, 0.0, 5.0, 6.0],
            [12.0, 0.0, 2.0, 2.0],
            {"bad": [0, 0, 0, 3]},
            [
                "leave-one-out by nuts agrees: it is 5.0 ± 2.0 ahead of k = 3, more than chance makes",
                "leave-one-out of k = 4 cannot be relied on: the Pareto k of 3 rows is too large",
            ],
        ),
        (
            [90.0, 5.0, 0.0],
            [12.0, 2.0, 0.0],
            {"results": ["successful", "successful", "not_mixed"]},
            ["leave-one-out by nuts is highest at k = 3, which cannot be relied on: the fit ended not mixed"],
        ),
    ],
)
def test_leave_one_out_over_k_in_words(behind, errors, options, said):
    assert list(words_of_loo(leave_one_out(behind, errors, **options), 2)) == said
