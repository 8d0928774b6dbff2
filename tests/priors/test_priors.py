"""Priors: scaled from the data, settable, checked, and described in words."""

import jax
import numpy as np
import pytest
from helpers import DATA
from scipy import stats

import bayesgmm
from bayesgmm.priors.checks import check_has_mode
from bayesgmm.priors.scales import SCALE_PRIORS
from bayesgmm.runtime.files import unpack


def test_defaults_follow_the_columns():
    x = DATA["faithful"]
    prior = bayesgmm.default_prior(x, 4)
    np.testing.assert_allclose(prior.concentration, np.full(4, 2.0))
    np.testing.assert_allclose(prior.mean_loc, x.mean(0))
    np.testing.assert_allclose(prior.mean_scale, 2 * x.std(0))
    np.testing.assert_allclose(prior.scales.median, x.std(0) / 2)  # 4 ** (1 / 2)
    assert prior.scales.sigma == 1.0
    assert prior.correlation_concentration == 2.0


def test_scale_and_shift_equivariance():
    x = DATA["iris"]
    scale, shift = np.array([1e-3, 10.0, 1.0, 1e4]), np.array([5.0, -3.0, 0.0, 100.0])
    before, after = bayesgmm.default_prior(x, 3), bayesgmm.default_prior(x * scale + shift, 3)
    np.testing.assert_allclose(after.mean_loc, before.mean_loc * scale + shift, rtol=1e-12)
    np.testing.assert_allclose(after.mean_scale, before.mean_scale * scale, rtol=1e-10)
    np.testing.assert_allclose(after.scales.median, before.scales.median * scale, rtol=1e-10)


def test_every_number_can_be_set():
    x = DATA["faithful"]
    given = {
        "concentration": np.array([1.0, 5.0]),
        "mean_loc": np.array([3.0, 70.0]),
        "mean_scale": np.array([1.0, 10.0]),
        "scale_median": np.array([0.3, 6.0]),
        "scale_sigma": 0.5,
        "correlation_concentration": 1.0,
    }
    prior = bayesgmm.default_prior(x, 2, **given)
    found = vars(prior) | {"scale_median": prior.scales.median, "scale_sigma": prior.scales.sigma}
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concentration": 0.0}, r"prior concentration=0.0 must be finite and greater than 0"),
        ({"concentration": [1.0, 2.0, 3.0]}, r"prior concentration has shape \(3,\); give one number or .* \(2,\)"),
        ({"mean_scale": -1.0}, r"prior mean_scale=-1.0 must be finite and greater than 0"),
        ({"mean_loc": np.nan}, r"prior mean_loc=nan must be finite$"),
        ({"scale_sigma": np.inf}, r"prior scale_sigma=inf must be finite"),
        ({"scale_sigma": [1.0, 1.0]}, r"prior scale_sigma has shape \(2,\)"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(bayesgmm.InputError, match=message):
        bayesgmm.default_prior(DATA["faithful"], 2, **settings)


def test_defaults_of_the_other_priors_of_scales():
    x = DATA["galaxies"]
    prior = bayesgmm.default_prior(x, 3, scale_prior="half_normal")
    np.testing.assert_allclose(prior.scales.sd, x.std(0))
    assert set(vars(prior.scales)) == {"sd"}
    prior = bayesgmm.default_prior(DATA["iris"], 3, scale_prior="hierarchical", concentration=1.0)
    assert (prior.scales.precision_shape, prior.scales.rate_shape) == (
        2.0,
        0.2,
    )  # alpha and g of Richardson & Green (1997)
    np.testing.assert_allclose(prior.scales.rate_rate, 10.0 / np.ptp(DATA["iris"], axis=0) ** 2)
    assert set(vars(prior.scales)) == {"precision_shape", "rate_shape", "rate_rate"}


def test_numbers_of_the_other_priors_of_scales_can_be_set():
    x = DATA["faithful"]
    prior = bayesgmm.default_prior(x, 2, scale_prior="half_normal", scale_sd=[1.0, 20.0])
    np.testing.assert_array_equal(prior.scales.sd, [1.0, 20.0])
    given = {"precision_shape": 3.0, "rate_shape": 1.5, "rate_rate": np.array([1.0, 0.01])}
    prior = bayesgmm.default_prior(x, 2, scale_prior="hierarchical", **given)
    for name, value in given.items():
        np.testing.assert_array_equal(getattr(prior.scales, name), value)


def test_hierarchical_scales_follow_units():
    x = DATA["faithful"]
    before, after = (bayesgmm.default_prior(rows, 2, scale_prior="hierarchical") for rows in (x, x * [1e-3, 60.0]))
    np.testing.assert_allclose(after.scales.rate_rate, before.scales.rate_rate / np.array([1e-3, 60.0]) ** 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_prior": "gamma"}, r"scale_prior='gamma' is not known; choose one of lognormal, half_normal, hierarch"),
        ({"scale_sd": 1.0}, r"scale_sd belongs to scale_prior='half_normal', and this is scale_prior='lognormal', who"),
        ({"scale_prior": "half_normal", "scale_sigma": 1.0}, r"scale_sigma belongs to .*'lognormal'.*are scale_sd; dr"),
        ({"scale_prior": "hierarchical", "scale_median": 1.0}, r"scale_median belongs to scale_prior='lognormal'"),
        ({"scale_prior": "half_normal", "scale_sd": 0.0}, r"prior scale_sd=0.0 must be finite and greater than 0"),
        ({"scale_prior": "hierarchical", "rate_shape": -1.0}, r"prior rate_shape=-1.0 must be finite and greater than"),
        ({"scale_prior": "hierarchical", "rate_rate": [1.0] * 3}, r"prior rate_rate has shape \(3,\); give one number"),
    ],
)
def test_numbers_of_another_prior_of_scales_are_refused(settings, message):
    with pytest.raises(bayesgmm.InputError, match=message):
        bayesgmm.default_prior(DATA["faithful"], 2, **settings)


def test_constant_column_is_refused_by_name():
    x = DATA["faithful"].copy()
    x[:, 1] = 7.0
    for settings in ({}, {"scale_prior": "hierarchical"}):
        with pytest.raises(bayesgmm.InputError, match=r"column 1 of x is constant \(7\).*drop that column"):
            bayesgmm.default_prior(x, 2, **settings)


def test_priors_without_a_mode_are_refused():
    x = DATA["faithful"]
    check_has_mode(bayesgmm.default_prior(x, 2, concentration=1.0))
    check_has_mode(bayesgmm.default_prior(x, 2, scale_prior="hierarchical"))
    check_has_mode(bayesgmm.conjugate_prior(x, 2))
    with pytest.raises(bayesgmm.InputError, match=r'"half_normal" is finite at zero.*use scale_prior="lognormal"'):
        check_has_mode(bayesgmm.default_prior(x, 2, scale_prior="half_normal"))
    with pytest.raises(bayesgmm.InputError, match=r"prior concentration=0.5 is below 1"):
        check_has_mode(bayesgmm.default_prior(x, 2, concentration=[0.5, 1.0]))


def test_another_prior_of_scales_is_another_compilation_and_another_number_is_not():
    x = DATA["faithful"]
    traces = []

    @jax.jit
    def spread(prior):
        traces.append(prior.scales.name)
        return prior.mean_scale.sum()

    for settings in ({}, {"scale_sigma": 0.3}, {"scale_prior": "half_normal"}, {"scale_prior": "half_normal"}):
        spread(bayesgmm.default_prior(x, 2, **settings))
    assert traces == ["lognormal", "half_normal"]


def interval_of(text, beginning):
    """The two numbers at the end of the first line that has these words."""
    line = next(line for line in text.splitlines() if beginning in line)
    low, high = line.split("  ")[-1].strip().removeprefix("sd ").split(" to ")
    return float(low), float(high)


def draws_of_scales(prior, rng, size):
    """Standard deviations of a component along the first feature, by their definition, in NumPy."""
    if prior.scales.name == "lognormal":
        return np.exp(rng.normal(np.log(prior.scales.median[0]), prior.scales.sigma, size))
    if prior.scales.name == "half_normal":
        return np.abs(rng.normal(0.0, prior.scales.sd[0], size))
    rate = rng.gamma(prior.scales.rate_shape, 1.0 / prior.scales.rate_rate[0], size)
    return rng.gamma(prior.scales.precision_shape, 1.0 / rate) ** -0.5


@pytest.mark.parametrize("scale_prior", ["lognormal", "half_normal", "hierarchical"])
def test_description_has_the_numbers_the_names_and_the_intervals(scale_prior, rng):
    settings = {"rate_shape": 2.0} if scale_prior == "hierarchical" else {}
    prior = bayesgmm.default_prior(DATA["faithful"], 2, scale_prior=scale_prior, **settings)
    text = prior.describe(["eruptions", "waiting"])
    assert "Dirichlet(2, 2), each" in text
    assert "eruptions: mean 3.488, sd 2.279" in text
    assert "LKJ(2)" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    lines = text.splitlines()
    column = lines[0].index("95% of the prior")
    assert all(line[column - 1] == " " for line in lines if " to " in line)  # aligned
    weights = rng.dirichlet([2.0, 2.0], 40_000)
    assert interval_of(text, "each") == pytest.approx(np.quantile(weights[:, 0], [0.025, 0.975]), rel=0.03)
    assert interval_of(text, "smallest") == pytest.approx(np.quantile(weights.min(1), [0.025, 0.975]), rel=0.03)
    assert interval_of(text, "eruptions: mean") == pytest.approx([3.488 - 1.96 * 2.279, 3.488 + 1.96 * 2.279], abs=0.01)
    of_scales = next(line for line in lines if line.startswith("scales"))
    sds = draws_of_scales(prior, rng, 200_000)
    assert interval_of(text, of_scales) == pytest.approx(np.quantile(sds, [0.025, 0.975]), rel=0.04)
    # A correlation under LKJ(2) has density proportional to 1 - r^2 in two dimensions: 3/4 (r - r^3/3) + 1/2 below r.
    edge = interval_of(text, "LKJ")[1]
    assert 0.75 * (edge - edge**3 / 3) + 0.5 == pytest.approx(0.975, abs=1e-3)
    assert ("has no mode" in text) == (scale_prior == "half_normal")
    if scale_prior == "lognormal":
        assert "waiting: median 9.595, log-sd 1" in text
    if scale_prior == "hierarchical":
        assert interval_of(text, "Gamma(2, 0.816") == pytest.approx(
            stats.gamma(2, scale=1 / 0.8163).interval(0.95), 5e-3
        )


@pytest.mark.parametrize("family", ["full", "diag", "spherical"])
def test_description_of_the_conjugate_prior_has_its_intervals(family, rng):
    """Against draws of the prior by SciPy and NumPy."""
    x = DATA["iris"]
    prior = bayesgmm.conjugate_prior(x, 3, family, dof=9.0, shrinkage=0.5)
    text = prior.describe(["a", "b", "c", "d"])
    size = 60_000
    if family == "full":
        covariances = stats.invwishart(9.0, prior.scale).rvs(size, random_state=rng)
        variances = covariances[:, 2, 2]
        lines = [line.strip() for line in text.splitlines()]
        assert any(line.startswith("b: -0.0245, 0.1097  ") for line in lines)
        sds = interval_of(text, "c: 0.7357, -0.1903, 1.799")
    else:
        variances = np.ravel(prior.scale)[-1] / rng.chisquare(9.0, size)
        sds = interval_of(text, "InverseGamma")
    means = rng.normal(prior.mean[2], np.sqrt(variances / 0.5))
    assert sds == pytest.approx(np.quantile(np.sqrt(variances), [0.025, 0.975]), rel=0.03)
    assert interval_of(text, "c: mean") == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=0.05)
    assert "weights" in text
    assert "Dirichlet(1, 1, 1), each" in text


def test_description_of_one_component_many_or_uneven_ones():
    x = DATA["galaxies"]
    assert "one component, of weight 1" in bayesgmm.default_prior(x, 1).describe()
    assert "LKJ" not in bayesgmm.default_prior(x, 1).describe()
    assert "Dirichlet(2 x 9), each" in bayesgmm.default_prior(x, 9).describe()
    uneven = bayesgmm.default_prior(x, 2, concentration=[1.0, 3.0]).describe(["velocity"])
    assert interval_of(uneven, "component 1") == pytest.approx(stats.beta(3, 1).interval(0.95), rel=0.01)
    for prior in (bayesgmm.default_prior(x, 2), bayesgmm.conjugate_prior(x, 2)):
        with pytest.raises(bayesgmm.InputError, match="feature_names has 2 names for 1 features; give one each"):
            prior.describe(["velocity", "distance"])


def test_float32_stays_float32_and_it_works_under_jit():
    x = DATA["faithful"].astype(np.float32)
    prior = bayesgmm.default_prior(x, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(prior)} == {np.dtype(np.float32)}
    traced = jax.jit(lambda x: bayesgmm.default_prior(x, 2))(x)
    np.testing.assert_allclose(traced.mean_scale, prior.mean_scale, rtol=1e-4)


@pytest.mark.parametrize("scale_prior", SCALE_PRIORS)
def test_priors_of_older_files_are_read(scale_prior):
    """They had the numbers of all priors of scales in one record, `Prior`, those of the other two being None."""
    prior = bayesgmm.default_prior(DATA["faithful"], 2, scale_prior=scale_prior)
    fields = {name: value for name, value in vars(prior).items() if name not in ("scales", "feature_names")}
    for record in SCALE_PRIORS.values():
        fields |= {argument: getattr(prior.scales, field, None) for argument, field in record.arguments.items()}
    arrays = {name: value for name, value in fields.items() if value is not None}
    packed = {name: None if value is None else {"array": name} for name, value in fields.items()}
    found = unpack({"type": "Prior", "fields": {**packed, "scale_prior": scale_prior}}, arrays)
    assert type(found.scales) is SCALE_PRIORS[scale_prior]
    jax.tree.map(np.testing.assert_array_equal, found, prior)
