"""Rows that stay on the host: the same fits as of rows that do not."""

import jax
import numpy as np
import pytest

from bayesgmm import Mixture, conjugate_prior, fit_em, log_likelihood
from bayesgmm.engines import streaming
from bayesgmm.engines.fit import ResultCode
from bayesgmm.errors import InputError
from bayesgmm.likelihood import rows as rows_module
from bayesgmm.likelihood.rows import Rows, as_rows

pytestmark = pytest.mark.usefixtures("strict")

COPIED, STREAMED = 2**40, 0
NUM_ROWS = 2503


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Some dozens of chunks, the last of them short."""
    monkeypatch.setattr(rows_module, "_CHUNK_BYTES", 4096)


@pytest.fixture
def rows(rng):
    means = np.asarray([[0, 0, 0], [4, 0, 1], [0, 5, -2]])
    return means[rng.integers(3, size=NUM_ROWS)] + rng.normal(size=(NUM_ROWS, 3))


def both_ways(monkeypatch, x, num_components, **options):
    fits = []
    for limit in (COPIED, STREAMED):
        monkeypatch.setattr(rows_module, "STREAMED_BYTES", limit)
        assert as_rows(x).is_streamed == (limit == STREAMED)
        fits.append(fit_em(x, num_components, **options))
    return fits


def assert_same(actual, expected, rtol):
    assert actual.code is expected.code
    assert actual.num_steps == expected.num_steps
    np.testing.assert_allclose(actual.log_likelihood, expected.log_likelihood, rtol=rtol)
    np.testing.assert_allclose(actual.steps, expected.steps, rtol=rtol)
    for name in ("weights", "means", "covariances"):
        found, wanted = getattr(actual.mixture, name), getattr(expected.mixture, name)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize(
    ("family", "dtype", "rtol"),
    [(family, np.float64, 1e-9) for family in ("full", "tied", "diag", "spherical")]
    + [(family, np.float32, 2e-3) for family in ("full", "tied", "diag", "spherical")],
)
def test_the_same_fit(family, dtype, rtol, rows, rng, monkeypatch):
    options = {"family": family, "start": np.arange(NUM_ROWS) % 3, "max_steps": 12, "tol": 0.0, "on_failure": "ignore"}
    options["row_weights"] = rng.uniform(0.5, 2, size=NUM_ROWS)
    copied, streamed = both_ways(monkeypatch, rows.astype(dtype), 3, **options)
    assert copied.code is ResultCode.max_steps_reached
    assert_same(streamed, copied, rtol)
    assert streamed.log_likelihood == pytest.approx(
        float(log_likelihood(streamed.mixture, rows.astype(dtype), options["row_weights"])), rel=1e-5
    )


def test_with_a_prior_and_extrapolation(rows, monkeypatch):
    start = (rows[:, 0] > 2).astype(int) + 2 * (rows[:, 1] > 2.5)
    start[start == 3] = 0
    options = {"start": start, "prior": conjugate_prior(rows, 3), "accelerate": True, "tol": 1e-9}
    copied, streamed = both_ways(monkeypatch, rows, 3, **options)
    assert streamed.successful
    assert_same(streamed, copied, 1e-8)


def test_from_random_starts(rows, monkeypatch):
    """The sample is drawn in another way; the best fit is the same."""
    copied, streamed = both_ways(monkeypatch, rows, 3, key=jax.random.key(1), num_restarts=4, tol=1e-10)
    assert streamed.successful
    np.testing.assert_allclose(streamed.mixture.means, copied.mixture.means, atol=1e-4)
    np.testing.assert_allclose(streamed.log_likelihood, copied.log_likelihood, rtol=1e-8)


def test_a_memory_map_is_not_copied(rows, tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", rows)
    monkeypatch.setattr(rows_module, "STREAMED_BYTES", STREAMED)
    start = np.arange(NUM_ROWS) % 3
    mapped = fit_em(np.load(tmp_path / "rows.npy", mmap_mode="r"), 3, start=start, on_failure="ignore")
    assert_same(mapped, fit_em(rows, 3, start=start, on_failure="ignore"), 1e-12)


@pytest.mark.parametrize("family", ["full", "diag"])
def test_narrow_clusters_far_from_the_middle_keep_their_digits(family, rng, monkeypatch):
    """Where the natural form would lose them, the rows are gone over again, centred."""
    x = rng.normal(size=(NUM_ROWS, 2)) + 1e7 * (np.arange(NUM_ROWS) % 2)[:, None]
    options = {"family": family, "start": np.arange(NUM_ROWS) % 2, "reg_covar": 0.0, "on_failure": "raise"}
    copied, streamed = both_ways(monkeypatch, x, 2, **options)
    assert_same(streamed, copied, 1e-7)


def test_rows_of_no_weight_may_hold_anything(rows, monkeypatch):
    monkeypatch.setattr(rows_module, "STREAMED_BYTES", STREAMED)
    spoiled = np.concatenate([[[1e200] * 3], rows, [[-1e200] * 3]])
    weights = np.r_[0.0, np.ones(NUM_ROWS), 0.0]
    labels = np.arange(NUM_ROWS) % 3
    mixture = Mixture.from_covariances(np.ones(3) / 3, rows[:3], np.stack([4 * np.eye(3)] * 3))
    for start, spoiled_start in ((mixture, mixture), (labels, np.r_[0, labels, 0])):
        expected = fit_em(rows, 3, start=start, tol=1e-8)
        assert_same(fit_em(spoiled, 3, start=spoiled_start, row_weights=weights, tol=1e-8), expected, 1e-6)
    hierarchical = fit_em(spoiled, 3, start="hierarchical", key=jax.random.key(0), row_weights=weights, tol=1e-8)
    assert hierarchical.successful
    assert hierarchical.log_likelihood == pytest.approx(float(expected.log_likelihood), rel=1e-5)


def test_inside_the_callers_jit_rows_are_copied(rows, monkeypatch):
    monkeypatch.setattr(rows_module, "STREAMED_BYTES", STREAMED)
    x, options = rows.astype(np.float32), {"start": np.arange(NUM_ROWS) % 3, "max_steps": 5, "on_failure": "ignore"}
    inside = jax.jit(lambda tol: fit_em(x, 3, tol=tol, **options))(1e-6)
    np.testing.assert_allclose(inside.log_likelihood, fit_em(x, 3, **options).log_likelihood, rtol=1e-5)


def test_failures_are_told(rng, monkeypatch):
    monkeypatch.setattr(rows_module, "STREAMED_BYTES", STREAMED)
    x = np.concatenate([rng.normal(size=(500, 2)), np.full((20, 2), 7.0)])
    collapsed = fit_em(x, 2, start=np.repeat([0, 1], [500, 20]), on_failure="ignore")
    assert collapsed.code is ResultCode.collapsed
    x[77, 1] = np.nan
    with pytest.raises(InputError, match="row 77, column 1"):
        fit_em(x, 2, key=jax.random.key(0))


def test_the_moments_of_columns(rows, rng):
    weights = rng.uniform(size=NUM_ROWS)
    mean, variance = streaming.column_moments_in_chunks(Rows(rows, weights))
    np.testing.assert_allclose(mean, np.average(rows, axis=0, weights=weights), rtol=1e-12)
    np.testing.assert_allclose(variance, np.cov(rows.T, aweights=weights, bias=True).diagonal(), rtol=1e-12)
