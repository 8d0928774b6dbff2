"""Parameters of several engines on one line, and where they are not to be believed."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import DATA
from plot_helpers import by_gid, check_drawable

import bayesgmm
from bayesgmm.cli.terminal import rich_tables
from bayesgmm.comparison.tables import component_table, flag_legend
from bayesgmm.plots import plot_parameter_forest
from bayesgmm.standard_errors.parameters import errors_of_em, parameter_table
from bayesgmm.standard_errors.uncertainties import uncertainty

NAMES = ("eruptions", "waiting")
pytestmark = pytest.mark.usefixtures("pictures_alone")


@pytest.fixture(scope="module")
def em():
    return bayesgmm.fit_em(DATA["faithful"], 2, key=jax.random.key(0), tol=1e-10)


@pytest.fixture(scope="module")
def errors(em):
    return uncertainty(em, DATA["faithful"])


def drawn(em, errors, engine, factor=1.0, num_draws=4000):
    """A posterior about the EM fit whose standard deviations are so many times its standard errors."""
    rng = np.random.default_rng(3)
    shape = (4, num_draws // 4)
    noise = {name: rng.normal(size=(*shape, *value.shape)) for name, value in errors.estimates.items()}
    means = em.mixture.means + factor * errors.standard_errors["means"] * noise["means"]
    # In logarithms, so that scales stay positive.
    relative = errors.standard_errors["standard_deviations"] / em.mixture.scales
    scales = em.mixture.scales * np.exp(factor * relative * noise["standard_deviations"])
    of_pairs = errors.estimates["correlations"] + factor * errors.standard_errors["correlations"] * np.triu(
        noise["correlations"], 1
    )
    correlations = np.clip(np.triu(of_pairs, 1), -0.95, 0.95)
    correlations = correlations + np.swapaxes(correlations, -1, -2) + np.eye(2)
    covariances = correlations * scales[..., :, None] * scales[..., None, :]
    weight = em.mixture.weights[0] + factor * errors.standard_errors["weights"][0] * noise["weights"][..., 0]
    draws = bayesgmm.Mixture.from_covariances(np.stack([weight, 1 - weight], -1), means, covariances)
    return dataclasses.replace(em, engine=engine, draws=draws)


def test_every_number_is_where_it_belongs(em, errors):
    nuts = drawn(em, errors, "nuts")
    fits = {"em": em, "map": dataclasses.replace(em, engine="map"), "nuts": nuts}
    table = parameter_table(fits, errors, feature_names=NAMES)
    frame = table.frame.set_index(["cluster", "quantity"])
    assert table.names == ("em", "map", "nuts")
    assert table.reference == table.measured_by == "nuts"
    assert table.remarks == ()
    assert [quantity for cluster, quantity in frame.index if cluster == "1"] == [
        "weight", "mean eruptions", "mean waiting", "sd eruptions", "sd waiting", "corr eruptions, waiting",
    ]  # fmt: skip
    line = frame.loc[("1", "mean waiting")]
    assert line["em"] == line["map"] == em.mixture.means[1, 1]
    assert line["em sd"] == errors.standard_errors["means"][1, 1]
    assert (line["em low"], line["em high"]) == tuple(errors.intervals()["means"][1, 1])
    draws = nuts.draws.means[..., 1, 1]
    assert line["nuts"] == pytest.approx(draws.mean(), rel=1e-12)
    assert line["nuts sd"] == pytest.approx(draws.std(ddof=1), rel=1e-12)
    np.testing.assert_allclose([line["nuts low"], line["nuts high"]], np.quantile(draws, [0.025, 0.975]), rtol=1e-12)
    assert line["em ratio"] == pytest.approx(line["em sd"] / line["nuts sd"], rel=1e-12)
    inside = (draws >= line["em low"]) & (draws <= line["em high"])
    assert line["em coverage"] == pytest.approx(inside.mean(), rel=1e-12)
    assert "map sd" not in frame
    correlations = nuts.draws.covariances[..., 0, 0, 1] / nuts.draws.scales[..., 0, :].prod(-1)
    assert frame.loc[("0", "corr eruptions, waiting"), "nuts"] == pytest.approx(correlations.mean(), rel=1e-12)
    # Draws that follow the standard errors give nothing to remark.
    assert table.notes == []


@pytest.mark.parametrize(
    ("factor", "note"), [(0.4, "overconfident: vi 0.40"), (2.0, "underconfident: vi 2.00"), (1.0, "")]
)
def test_approximations_are_held_to_the_sampler(factor, note, em, errors):
    fits = {"em": em, "vi": drawn(em, errors, "vi", factor), "nuts": drawn(em, errors, "nuts")}
    frame = parameter_table(fits, errors).frame
    means = frame[frame["quantity"].str.startswith("mean")]
    np.testing.assert_allclose(means["vi ratio"], factor, rtol=1e-6)
    assert all(text == note for text in means["note"])
    assert all(flagged == (("vi",) if note else ()) for flagged in means["flagged"])
    # Gibbs stands in for NUTS.
    fits = {"em": em, "vi": drawn(em, errors, "vi", factor), "gibbs": drawn(em, errors, "gibbs")}
    assert parameter_table(fits, errors).reference == "gibbs"


def test_normal_approximations_that_fail_are_named(em, errors):
    wide = parameter_table({"em": em, "nuts": drawn(em, errors, "nuts", 2.0)}, errors).frame
    means = wide[wide["quantity"].str.startswith("mean")]
    np.testing.assert_allclose(means["em ratio"], 0.5, rtol=0.05)
    assert all(text.startswith("overconfident: em 0.") and "em's 95 % interval holds" in text for text in means["note"])
    # Of the right width, but elsewhere.
    nuts = drawn(em, errors, "nuts")
    moved = nuts.draws.means + 1.5 * errors.standard_errors["means"]
    nuts = dataclasses.replace(nuts, draws=dataclasses.replace(nuts.draws, means=moved))
    frame = parameter_table({"em": em, "nuts": nuts}, errors).frame
    means = frame[frame["quantity"].str.startswith("mean")]
    # The normal distribution about 1.5 has 67.7 % between -1.96 and 1.96.
    np.testing.assert_allclose(means["em coverage"], 0.677, atol=0.03)
    assert all("em's 95 % interval holds 6" in text for text in means["note"])


def test_without_standard_errors_that_is_said(em, errors):
    fits = {"em": em, "nuts": drawn(em, errors, "nuts")}
    table = parameter_table(fits)
    assert table.remarks == ("em: it has no standard errors",)
    assert "em sd" not in table.frame
    far = dataclasses.replace(errors, message="the information is singular: because")
    assert parameter_table(fits, far).remarks == ("em: the information is singular: because",)
    doubtful = dataclasses.replace(fits["nuts"], result=np.int32(bayesgmm.ResultCode.not_mixed))
    (remark,) = parameter_table({"em": em, "nuts": doubtful}, errors).remarks
    assert remark.startswith("nuts: the chains disagree")
    assert remark.endswith("comparisons with it are unreliable")
    alone = parameter_table({"em": em}, errors)
    assert alone.reference is None
    assert alone.measured_by == "em"
    assert not any(alone.frame["note"])
    with pytest.raises(bayesgmm.InputError, match=r"none of the fits \(em\) has standard errors or draws"):
        plot_parameter_forest(parameter_table({"em": em}))


def test_errors_of_em_are_not_made_of_too_many_parameters(em):
    huge = bayesgmm.Mixture(np.log([0.5, 0.5]), np.zeros((2, 70)), np.stack([np.eye(70)] * 2))
    assert errors_of_em(dataclasses.replace(em, mixture=huge), np.zeros((3, 70))) is None


def test_fits_that_cannot_be_compared_are_refused(em):
    other = bayesgmm.fit_em(DATA["faithful"], 3, key=jax.random.key(0))
    with pytest.raises(bayesgmm.InputError, match="agree in clusters, features and family"):
        parameter_table({"em": em, "map": other})
    with pytest.raises(bayesgmm.InputError, match="at least one"):
        parameter_table({})
    with pytest.raises(bayesgmm.InputError, match="feature_names has 1 names"):
        parameter_table({"em": em}, feature_names=["a"])


def test_compare_has_it_all_in_one_table(key):
    x = DATA["faithful"]
    few = {"num_warmup": 200, "num_draws": 300}
    found = bayesgmm.compare(
        x, 2, family="tied", engines=("em", "nuts"), key=key, feature_names=NAMES, settings={"nuts": few}
    )
    assert found.errors is not None
    assert found.errors.code is bayesgmm.UncertaintyCode.successful
    frame = found.parameters.frame
    assert set(frame["cluster"]) == {"0", "1", "all"}
    means = frame[frame["quantity"].str.startswith("mean")]
    # The posterior under a weak prior and the likelihood of 272 rows are nearly one normal.
    np.testing.assert_allclose(means["em ratio"], 1.0, atol=0.2)
    cells = component_table(found)
    assert list(cells) == ["cluster", "quantity", "em", "nuts"]
    assert len(cells) == len(frame)
    assert all("±" in cell for name in ("em", "nuts") for cell in cells[name])
    # Standard errors that are told to be too small by a third are marked where they stand.
    shrunk = {name: 0.6 * value for name, value in found.errors.standard_errors.items()}
    doubtful = dataclasses.replace(found, errors=dataclasses.replace(found.errors, standard_errors=shrunk))
    marks = [cell.split("[")[-1] for cell in component_table(doubtful)["em"]]
    ratios = doubtful.parameters.frame["em ratio"]
    assert [mark.startswith(f"×{ratio:.2f}") for mark, ratio in zip(marks, ratios, strict=True)] == list(ratios < 0.7)
    assert (ratios < 0.7).sum() >= len(ratios) - 2
    legend = flag_legend(doubtful.parameters)
    assert legend.startswith("[×ratio]: of this sd to that of nuts, where it is far from 1; [%]: of nuts in EM's 95%")
    assert flag_legend(dataclasses.replace(found, fits={"em": found.fits["em"]}).parameters) == ""
    prior = bayesgmm.conjugate_prior(x, 2, concentration=20.0)
    mode = bayesgmm.fit_em(x, 2, prior=prior, start=found.base.mixture)
    pulled = dataclasses.replace(found, fits={"em": mode}, errors=errors_of_em(mode, x))
    assert "em: the fit is" in rich_tables(pulled)[-1].caption


# The picture


def test_forest_is_measured_in_the_reference(em, errors):
    nuts, vi = drawn(em, errors, "nuts"), drawn(em, errors, "vi", 0.4)
    table = parameter_table({"em": em, "vi": vi, "nuts": nuts}, errors, feature_names=NAMES)
    ax = plot_parameter_forest(table)
    check_drawable(ax)
    lines = table.frame.to_dict("records")
    assert len(ax.get_yticklabels()) == len(lines)
    assert ax.get_yticklabels()[1].get_text() == f"mean eruptions  {lines[1]['nuts']:.3f} ± {lines[1]['nuts sd']:.3f}"
    assert ax.get_xlabel() == "distance from nuts, in its posterior sd"
    for name in table.names:
        bars = by_gid(ax, f"interval {name}")
        points = [*by_gid(ax, f"point {name}"), *by_gid(ax, f"flagged {name}")]
        points.sort(key=lambda point: -point.get_ydata()[0])
        assert len(bars) == len(points) == len(lines)
        for line, bar, point in zip(lines, bars, points, strict=True):
            limits = (np.array([line[f"{name} low"], line[f"{name} high"]]) - line["nuts"]) / line["nuts sd"]
            np.testing.assert_allclose(bar.get_xdata(), limits)
            np.testing.assert_allclose(point.get_xdata(), (line[name] - line["nuts"]) / line["nuts sd"])
            assert (point.get_gid() == f"flagged {name}") == (name in line["flagged"])
    assert not by_gid(ax, "flagged nuts")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "cluster 0", "cluster 1", "em", "vi", "nuts", "hollow: far from nuts",
    ]  # fmt: skip
    alone = plot_parameter_forest(parameter_table({"em": em}, errors))
    assert alone.get_xlabel() == "distance from em, in its standard errors"


def test_em_under_a_prior_is_not_maximum_likelihood(em, errors):
    x = DATA["faithful"]
    mode = bayesgmm.fit_em(x, 2, prior=bayesgmm.conjugate_prior(x, 2), key=jax.random.key(0))
    assert mode.has_prior
    assert not em.has_prior
    assert parameter_table({"mode": mode}).likelihood is None
    table = parameter_table({"mode": mode, "em": em}, errors)
    assert table.likelihood == "em"
    assert "mode sd" not in table.frame


def test_forest_of_many_parameters_leaves_correlations_out(rng):
    x = np.concatenate([rng.normal(size=(60, 5)), 9 + rng.normal(size=(60, 5))])
    fit = bayesgmm.fit_em(x, 2, key=jax.random.key(0))
    table = parameter_table({"em": fit}, errors_of_em(fit, x))
    assert len(table.frame) == 2 * (1 + 5 + 5 + 10)
    labels = [text.get_text() for text in plot_parameter_forest(table).get_yticklabels()]
    assert len(labels) == 2 * (1 + 5 + 5)
    assert not any(label.startswith("corr") for label in labels)
