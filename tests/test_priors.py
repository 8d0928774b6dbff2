"""Priors: scaled from the data, settable, checked, and described in words."""

import jax
import numpy as np
import pytest
from helpers import DATA

import bayesgmm


def test_defaults_follow_the_columns():
    x = DATA["faithful"]
    prior = bayesgmm.default_prior(x, 4)
    np.testing.assert_allclose(prior.concentration, np.full(4, 2.0))
    np.testing.assert_allclose(prior.mean_loc, x.mean(0))
    np.testing.assert_allclose(prior.mean_scale, 2 * x.std(0))
    np.testing.assert_allclose(prior.scale_median, x.std(0) / 2)  # 4 ** (1 / 2)
    assert prior.scale_sigma == 1.0
    assert prior.correlation_concentration == 2.0


def test_scale_and_shift_equivariance():
    x = DATA["iris"]
    scale, shift = np.array([1e-3, 10.0, 1.0, 1e4]), np.array([5.0, -3.0, 0.0, 100.0])
    before, after = bayesgmm.default_prior(x, 3), bayesgmm.default_prior(x * scale + shift, 3)
    np.testing.assert_allclose(after.mean_loc, before.mean_loc * scale + shift, rtol=1e-12)
    np.testing.assert_allclose(after.mean_scale, before.mean_scale * scale, rtol=1e-10)
    np.testing.assert_allclose(after.scale_median, before.scale_median * scale, rtol=1e-10)


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
    for name, value in given.items():
        np.testing.assert_array_equal(getattr(prior, name), value)


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


def test_description_has_the_numbers_and_the_names():
    text = bayesgmm.default_prior(DATA["faithful"], 2).describe(["eruptions", "waiting"])
    assert "Dirichlet(2, 2)" in text
    assert "eruptions: mean 3.488, sd 2.279" in text
    assert "waiting: median 9.595, 95% between 1.35 and 68.1" in text
    assert "LKJ(2)" in text
    assert len(text.splitlines()) == 6


def test_float32_stays_float32_and_it_works_under_jit():
    x = DATA["faithful"].astype(np.float32)
    prior = bayesgmm.default_prior(x, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(prior)} == {np.dtype(np.float32)}
    traced = jax.jit(lambda x: bayesgmm.default_prior(x, 2))(x)
    np.testing.assert_allclose(traced.mean_scale, prior.mean_scale, rtol=1e-4)
