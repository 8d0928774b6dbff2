"""EM, held to scikit-learn step by step, to mclust at the end, and to its promises on failure."""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import (
    DATA,
    assert_close,
    dense,
    each_data_set,
    each_factor_shape,
    each_family,
    each_representation,
    each_sklearn_family,
    to_float32,
    to_jax,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from bayesgmm.engines import restarts
from bayesgmm.engines.ascent import run_em
from bayesgmm.engines.em import fit_em
from bayesgmm.engines.fit import FitWarning, ResultCode
from bayesgmm.engines.restarts import default_ridge
from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import Rows
from bayesgmm.likelihood.scores import log_likelihood
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.priors.weakly_informative import default_prior

pytestmark = pytest.mark.usefixtures("strict")

COUNTS = ("num_components", "num_restarts", "max_steps")
FAILED = set(ResultCode) - {ResultCode.successful}


def rough_start(family, x, num_components, rng):
    """Distinct rows as means, and the spread of all the data as every covariance."""
    means = x[rng.choice(len(x), num_components, replace=False)]
    weights = rng.dirichlet(np.full(num_components, 5.0))
    covariance = np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1])
    scatter = np.stack([np.diagonal(covariance) if family.diagonal else covariance] * num_components)
    with jax.enable_x64(True):
        covariances = np.asarray(family.maximise(jnp.ones(num_components), jnp.asarray(scatter)))
    return Mixture.from_covariances(weights, means, covariances), dense(covariances, family, num_components)


# Dense covariances (k, d, d) to the shape that scikit-learn keeps for each covariance_type.
SKLEARN_SHAPES = {
    "full": lambda covariances: covariances,
    "tied": lambda covariances: covariances[0],
    "diag": lambda covariances: np.diagonal(covariances, axis1=1, axis2=2),
    "spherical": lambda covariances: covariances[:, 0, 0],
}


def sklearn_fit(family, x, start, start_covariances, **options):
    shape = SKLEARN_SHAPES[family.name]
    model = GaussianMixture(
        len(start.weights),
        covariance_type=family.name,
        weights_init=start.weights,
        means_init=start.means,
        precisions_init=shape(np.linalg.inv(start_covariances)),
        reg_covar=1e-6,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x)


def assert_walks_alike(family, x, num_steps, rng):
    start, start_covariances = rough_start(family, x, 3, rng)
    theirs = sklearn_fit(family, x, start, start_covariances, tol=0.0, max_iter=num_steps)
    ours = fit_em(x, 3, family=family, start=start, tol=0.0, max_steps=num_steps, reg_covar=1e-6, on_failure="ignore")
    assert ours.num_steps == num_steps == theirs.n_iter_
    # They report the log-likelihood of the mixture before each M-step.
    np.testing.assert_allclose(ours.trace[:-1] / len(x), theirs.lower_bounds_, rtol=1e-9)
    assert_close(ours.mixture.weights, theirs.weights_, 1e-9)
    scale = x.std(0)
    np.testing.assert_allclose(ours.mixture.means / scale, theirs.means_ / scale, rtol=0, atol=1e-9)
    covariances = SKLEARN_SHAPES[family.name](ours.mixture.covariances)
    # In units of the data's spread, so that a feature in small units counts as much as one in large units.
    spread = {"full": np.outer(scale, scale), "tied": np.outer(scale, scale), "diag": scale**2, "spherical": 1.0}
    expected = theirs.covariances_ / spread[family.name]
    np.testing.assert_allclose(covariances / spread[family.name], expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@each_data_set
def test_walks_where_scikit_learn_walks(x, rng):
    assert_walks_alike(FAMILIES["full"], x, 30, rng)


@each_sklearn_family
def test_every_family_walks_where_scikit_learn_walks(family, rng):
    assert_walks_alike(family, DATA["simulated"], 30, rng)


@pytest.mark.slow
@each_data_set
@each_sklearn_family
def test_every_family_walks_so_on_every_data_set(family, x, rng):
    assert_walks_alike(family, x, 30, rng)


@pytest.mark.parametrize("num_steps", [1, 5])
@each_sklearn_family
def test_is_where_scikit_learn_is_after_few_steps(family, num_steps, rng):
    assert_walks_alike(family, DATA["simulated"], num_steps, rng)


@each_sklearn_family
def test_ends_where_scikit_learn_ends(family, rng):
    x = DATA["faithful"]
    start, start_covariances = rough_start(family, x, 2, rng)
    theirs = sklearn_fit(family, x, start, start_covariances, tol=1e-14, max_iter=1000)
    ours = fit_em(x, 2, family=family, start=start, tol=1e-14, reg_covar=1e-6, on_failure="raise")
    assert theirs.converged_
    assert ours.log_likelihood == pytest.approx(theirs.score(x) * len(x), rel=1e-8)


# Log-likelihoods of R's mclust 6.0.0 (fits from its own hierarchical start, run on to a relative change below 1e-12):
# (data, model, G) -> loglik. EM from several starts must do at least as well.
MCLUST_LOG_LIKELIHOODS = {
    ("faithful", "VVV", 1): -1289.79674505261,
    ("faithful", "VVV", 2): -1130.26396018475,
    ("faithful", "VVV", 3): -1127.07166741692,
    ("faithful", "VVV", 4): -1111.24796917933,
    ("faithful", "EEE", 2): -1140.18675943708,
    ("faithful", "EEE", 3): -1126.31592782723,
    ("faithful", "EEE", 4): -1120.82812661725,
    ("faithful", "VVI", 3): -1131.81853485217,
    ("faithful", "VII", 3): -1637.43441800186,
    ("faithful", "EEI", 1): -1516.7058266183,
    ("faithful", "EEI", 3): -1133.45539992649,
    ("faithful", "EII", 1): -2003.95203658454,
    ("faithful", "EII", 3): -1663.53959976432,
    ("iris", "VVV", 3): -180.185477131345,
    ("iris", "EEE", 3): -256.354043125658,
    ("iris", "VVI", 3): -307.17757159836,
    ("iris", "VII", 3): -384.314095061206,
    ("iris", "EEI", 3): -361.425522043195,
    ("iris", "EII", 3): -401.802175789079,
}


def best_of_twenty(x, num_components, family, **options):
    """One set of static arguments for many tests: each family is compiled once for each shape."""
    options = {"key": jax.random.key(0), "tol": 1e-9, "on_failure": "raise"} | options
    return fit_em(x, num_components, family=family, num_restarts=20, max_steps=3000, **options)


def by_default(data, model, num_components):
    """Every family on Old Faithful, and one of either representation in more dimensions: other cases are slow."""
    wanted = data == "faithful" or model in ("VVV", "VVI")
    return pytest.param(data, model, num_components, marks=[] if wanted else [pytest.mark.slow])


@pytest.mark.parametrize(("data", "model", "num_components"), [by_default(*case) for case in MCLUST_LOG_LIKELIHOODS])
def test_reaches_at_least_the_likelihood_of_mclust(data, model, num_components):
    (family,) = (family for family in FAMILIES.values() if family.mclust == model)
    expected = MCLUST_LOG_LIKELIHOODS[data, model, num_components]
    fit = best_of_twenty(DATA[data], num_components, family)
    assert fit.log_likelihood > expected - 0.01
    if num_components == 1:
        assert fit.log_likelihood == pytest.approx(expected, abs=1e-6)


def test_old_faithful_with_one_covariance_has_the_published_bic():
    """Scrucca et al. (2016), table in section 4: EEE, 3; their -2314.316 before its last iterations."""
    fit = best_of_twenty(DATA["faithful"], 3, "tied")
    num_parameters = FAMILIES["tied"].num_parameters(3, 2)
    assert 2 * fit.log_likelihood - num_parameters * np.log(272) == pytest.approx(-2314.296, abs=0.01)


def test_a_richer_family_is_at_least_as_likely():
    full, tied, diag, spherical = (
        best_of_twenty(DATA["faithful"], 3, name).log_likelihood for name in ("full", "tied", "diag", "spherical")
    )
    assert full >= diag >= spherical
    assert full >= tied


@pytest.mark.parametrize("reg_covar", [0.0, None])
@each_family
def test_the_log_likelihood_never_falls_and_belongs_to_the_mixture(family, reg_covar, key):
    x = DATA["faithful"]
    fit = best_of_twenty(x, 3, family, key=key, tol=1e-12, reg_covar=reg_covar, on_failure="ignore")
    assert fit.num_steps > 5
    trace = fit.steps
    assert len(trace) == fit.num_steps + 1
    assert np.isfinite(trace).all()
    assert np.isnan(fit.trace[fit.num_steps + 1 :]).all()
    assert (np.diff(trace) >= -1e-12 * np.abs(trace).max()).all()
    assert fit.log_likelihood == trace[-1]
    assert fit.log_likelihood == pytest.approx(fit.mixture.log_prob(x).sum(), rel=1e-13)


@each_representation
def test_components_of_random_starts_are_sorted_and_fits_repeat(family, key):
    fit, again = (best_of_twenty(DATA["faithful"], 3, family, key=key) for _ in range(2))
    assert (np.diff(fit.mixture.means[:, 0]) > 0).all()
    assert_close((again.mixture, again.steps), (fit.mixture, fit.steps), 0.0)


@each_representation
def test_units_do_not_matter(family, rng):
    """The same walk: only the log-likelihood knows the unit."""
    x = DATA["faithful"]
    start, _ = rough_start(family, x, 2, rng)
    scaled_start = Mixture(start.log_weights, 16.0 * start.means, start.precision_factor / 16.0)
    fit = fit_em(x, 2, family=family, start=start)
    scaled = fit_em(16.0 * x, 2, family=family, start=scaled_start)
    assert scaled.num_steps == fit.num_steps
    assert scaled.log_likelihood == pytest.approx(fit.log_likelihood - x.size * np.log(16.0), rel=1e-12)
    assert_close(scaled.mixture.means, 16.0 * fit.mixture.means, 1e-9)
    assert_close(scaled.mixture.covariances, 256.0 * fit.mixture.covariances, 1e-9)


@each_factor_shape
def test_whole_weights_are_repeated_rows(family, rng):
    x = DATA["faithful"]
    times = rng.permutation(np.resize([0, 0, 1, 3], len(x)))  # as many rows as before
    start, _ = rough_start(family, x, 2, rng)
    options = {"family": family, "start": start, "on_failure": "raise"}
    weighted = fit_em(x, 2, row_weights=times, **options)
    repeated = fit_em(np.repeat(x, times, axis=0), 2, **options)
    assert weighted.code is repeated.code
    assert_close(weighted.steps, repeated.steps, 1e-12)
    assert_close(weighted.mixture, repeated.mixture, 1e-9)


def test_a_heavy_cluster_does_not_make_a_light_one_empty(rng):
    x = np.concatenate([rng.normal(size=400), 8 + rng.normal(size=30)])[:, None]
    times = np.repeat([100, 1], [400, 30])
    start = {"means": [[0.0], [8.0]]}
    weighted = fit_em(x, 2, row_weights=times, start=start, on_failure="raise")
    repeated = fit_em(np.repeat(x, times, axis=0), 2, start=start)
    assert weighted.code is repeated.code
    assert_close(weighted.mixture, repeated.mixture, 1e-9)
    padded = np.concatenate([x, np.zeros((2000, 1))]), np.concatenate([times, np.zeros(2000)])
    few = fit_em(padded[0], 2, row_weights=padded[1], start=start, on_failure="raise")
    assert_close(few.mixture, weighted.mixture, 1e-9)


@each_family
def test_float32_stays_float32(family, rng):
    x = DATA["faithful"]
    start, _ = rough_start(family, x, 2, rng)
    exact = fit_em(x, 2, family=family, start=start)
    rounded = fit_em(x.astype(np.float32), 2, family=family, start=start)
    for fit, dtype in ((exact, np.float64), (rounded, np.float32)):
        assert fit.successful
        found = {leaf.dtype for leaf in jax.tree.leaves(fit) if leaf.dtype.kind == "f"}
        assert found == {np.dtype(dtype)}
    assert rounded.log_likelihood == pytest.approx(exact.log_likelihood, rel=1e-4)
    assert_close(rounded.mixture.means, exact.mixture.means, 1e-2)


@pytest.mark.parametrize("separation", [150.0, 300.0, 1000.0])
def test_clusters_far_apart_are_found_in_float32(separation, rng):
    x = np.concatenate([rng.normal(size=500), separation + rng.normal(size=500)])[:, None]
    start = {"means": [[0.0], [separation]]}
    exact = fit_em(x, 2, start=start, on_failure="raise")
    rounded = fit_em(x.astype(np.float32), 2, start=start, on_failure="raise")
    assert_close(rounded.mixture.scales, exact.mixture.scales, 2e-2 if separation == 1000 else 3e-3)


def test_nearly_collinear_clusters_are_found_in_float32(rng):
    z = rng.normal(size=(1000, 2))
    x = np.stack([z[:, 0], z[:, 0] + 3e-3 * z[:, 1]], axis=1)
    x[500:] += [4.0, 4.1]
    start = np.repeat([0, 1], 500)
    exact = fit_em(x, 2, start=start, on_failure="raise")
    rounded = fit_em(x.astype(np.float32), 2, start=start, on_failure="raise")
    assert rounded.log_likelihood == pytest.approx(exact.log_likelihood, rel=2e-2)
    assert rounded.num_steps < 100


@pytest.mark.parametrize("num_distinct", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_component_on_few_distinct_rows_is_collapsed(dtype, num_distinct, rng):
    points = np.array([[20.0, 20.0], [21.0, 20.5]])[np.arange(40) % num_distinct]
    x = np.concatenate([rng.normal(size=(200, 2)), points]).astype(dtype)
    fit = fit_em(x, 2, start=np.repeat([0, 1], [200, 40]), on_failure="ignore")
    assert fit.code is ResultCode.collapsed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_representation
def test_a_start_of_fewer_rows_than_features_is_regularised(family, dtype, rng):
    """Its own covariance is singular but for the ridge: it has the variances within all components."""
    x = (rng.normal(size=(200, 5)) + 8.0 * (np.arange(200) < 100)[:, None]).astype(dtype)
    labels = np.repeat([1, 0, 2], [100, 97, 3])
    begun = fit_em(x, 3, family=family, start=labels, max_steps=0, on_failure="ignore")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(begun.mixture))
    assert np.isfinite(begun.log_likelihood)
    if not family.diagonal:
        within = np.average([x[labels == j].var(0) for j in range(3)], axis=0, weights=np.bincount(labels))
        assert_close(np.asarray(begun.mixture.covariances)[2], np.diag(within), 1e-5)
    fit = fit_em(x, 3, family=family, start=labels, on_failure="ignore")
    assert fit.num_steps > 2  # a spike on the three rows would end it at once


@pytest.mark.parametrize("family", ["full", "tied"])
def test_clusters_of_fewer_rows_than_features_give_no_mixture_of_nan(family, key, rng):
    x = np.maximum(rng.normal(size=(120, 50)) - 1.0, 0.0).astype(np.float32)
    fit = fit_em(x, 6, family=family, key=key, num_restarts=2, on_failure="ignore")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.mixture))
    assert np.isfinite(fit.log_likelihood)


def test_tables_and_whole_numbers_are_fitted_in_float64():
    x = (10.0 * DATA["faithful"]).round()
    expected = best_of_twenty(x, 3, "full")
    for same in (x.astype(int), pd.DataFrame(x), x.tolist()):
        assert_close(best_of_twenty(same, 3, "full").mixture, expected.mixture, 0.0)


# Failures


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
@pytest.mark.usefixtures("x64")
@each_representation
def test_a_row_that_is_no_number_is_never_successful(family, bad, rng):
    """In the compiled core, on rows that `fit_em` refuses."""
    x = DATA["faithful"].copy()
    start, _ = rough_start(family, x, 2, rng)
    x[17, 1] = bad
    arguments = to_jax((start, Rows(x, np.ones(len(x))), np.zeros(2), np.asarray(1e-6)))
    fit = run_em(*arguments, family=family, max_steps=1000)
    assert fit.code in FAILED
    assert fit.num_steps == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.mixture))


@pytest.mark.parametrize("reg_covar", [0.0, None])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@each_family
def test_components_shrinking_onto_points_are_collapsed(family, dtype, reg_covar, rng):
    """All rows are copies of three, as many as there are components: no maximum exists in any family."""
    points = np.array([[0.0, 0.0], [5.0, 1.0], [2.0, 7.0]])
    x = np.repeat(points, 10, axis=0).astype(dtype)
    num_factors = 1 if family.shared else 3
    covariances = np.ones((num_factors, 2)) if family.diagonal else np.stack([np.eye(2)] * num_factors)
    start = Mixture.from_covariances(np.full(3, 1 / 3), points + 0.1, covariances)
    fit = fit_em(x, 3, family=family, start=start, reg_covar=reg_covar, on_failure="ignore")
    assert fit.code is ResultCode.collapsed
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.mixture))
    assert np.isfinite(fit.log_likelihood)
    assert float(fit.log_likelihood) == pytest.approx(float(fit.mixture.log_prob(x).sum()), rel=1e-5)


@pytest.mark.parametrize("reg_covar", [0.0, None])
@each_representation
def test_too_many_components_are_never_successful(family, reg_covar, rng, key):
    """A component for every row. Not even a start has a covariance then."""
    x = rng.normal(size=(8, 2))
    fit = fit_em(x, 8, family=family, key=key, num_restarts=5, reg_covar=reg_covar, on_failure="ignore")
    assert fit.code in FAILED
    if np.isfinite(fit.log_likelihood):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.mixture))


@each_representation
def test_too_few_rows_that_count_are_never_successful(family, rng, key):
    """Where weights are known they are refused, inside the caller's `jit` they are not."""
    row_weights = np.zeros(8, np.float32)
    row_weights[:3] = 1.0
    x = rng.normal(size=(8, 2)).astype(np.float32)
    fit = functools.partial(fit_em, x, 8, family=family, key=key, num_restarts=5)
    with pytest.raises(InputError, match=r"at least 8 rows of positive weight.* got 3"):
        fit(row_weights=row_weights)
    assert jax.jit(lambda row_weights: fit(row_weights=row_weights))(row_weights).code in FAILED


def test_a_row_of_no_weight_may_hold_anything_finite(rng):
    x = DATA["faithful"]
    start, _ = rough_start(FAMILIES["full"], x, 2, rng)
    spoiled, row_weights = x.copy(), [1] * 271 + [0]
    spoiled[-1] = [1e200, -1e200]
    fits = [fit_em(rows, 2, start=start, row_weights=row_weights, on_failure="raise") for rows in (x, spoiled)]
    assert fits[1].log_likelihood == pytest.approx(fits[0].log_likelihood, rel=1e-12)


@pytest.mark.parametrize("total", [1e-18, 1e18])
def test_weights_that_pass_in_float32_can_be_fitted(total, rng):
    x = DATA["faithful"].astype(np.float32)
    start, _ = rough_start(FAMILIES["full"], x, 2, rng)
    weighted = fit_em(x, 2, start=start, row_weights=np.full(272, total / 272), on_failure="raise")
    assert_close(weighted.mixture.means, fit_em(x, 2, start=start).mixture.means, 1e-2)


@pytest.mark.parametrize("num_features", [2, 20])
def test_a_component_in_a_plane_is_collapsed_in_any_dimension(num_features, rng):
    """Along no single feature is it narrow: only the sum of its features is constant."""
    flat = rng.normal(size=(60, num_features))
    flat -= flat.mean(1, keepdims=True)
    x = np.concatenate([flat, 20.0 + rng.normal(size=(60, num_features))])
    means = np.stack([flat.mean(0), x[60:].mean(0)])
    start = Mixture.from_covariances(np.full(2, 0.5), means, np.stack([np.eye(num_features)] * 2))
    fit = fit_em(x, 2, family="full", start=start, on_failure="ignore")
    assert fit.code is ResultCode.collapsed


def test_no_step_gives_the_start_itself(rng):
    x = DATA["iris"]
    start, _ = rough_start(FAMILIES["full"], x, 3, rng)
    fit = fit_em(x, 3, start=start, max_steps=0, on_failure="ignore")
    assert_close(fit.mixture, start, 0.0)
    assert fit.log_likelihood == pytest.approx(log_likelihood(start, x), rel=1e-13)
    assert (fit.code, int(fit.num_steps), len(fit.trace)) == (ResultCode.max_steps_reached, 0, 1)


@each_representation
def test_with_a_ridge_columns_may_be_constant_and_rows_repeat(family, rng):
    """The maximum is that of scikit-learn; what has no spread of its own has the ridge, and is no success."""
    x = np.repeat([[0.0, 1.0, 5.0], [4.0, 2.0, 5.0], [1.0, 7.0, 5.0]], 7, axis=0)
    labels = np.repeat([0, 1, 2], 7)
    fit = fit_em(x, 3, family=family, start=labels, reg_covar=1e-3, on_failure="ignore")
    np.testing.assert_allclose(fit.mixture.covariances, np.broadcast_to(1e-3 * np.eye(3), (3, 3, 3)), atol=1e-12)
    expected = 21 * (np.log(1 / 3) - 1.5 * np.log(2 * np.pi * 1e-3))
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-12)
    assert fit.code is ResultCode.collapsed
    with pytest.raises(InputError, match="column 2 of x is constant"):
        fit_em(x, 3, family=family, start=labels, reg_covar=0.0)


def test_the_step_limit_is_reported(rng):
    x = DATA["iris"]
    start, _ = rough_start(FAMILIES["full"], x, 3, rng)
    fit = fit_em(x, 3, start=start, max_steps=3, on_failure="ignore")
    assert fit.code is ResultCode.max_steps_reached
    assert fit.num_steps == 3
    assert not fit.successful


def test_a_failed_restart_never_wins(monkeypatch):
    """Of six starts one is made NaN and three narrow on a heap of equal rows, where the likelihood has no bound."""
    x = np.concatenate([DATA["faithful"], np.repeat(DATA["faithful"][:1], 30, axis=0)])
    made, make_starts = [], restarts._make_starts

    def spoiled(*args, **options):
        starts = make_starts(*args, **options)
        narrow = Mixture.from_covariances([0.1, 0.9], [x[0], x.mean(0)], [1e-4 * np.eye(2), np.cov(x.T)])
        for field, narrow_field in zip(jax.tree.leaves(starts), jax.tree.leaves(narrow), strict=True):
            made.append(len(field))
            field[0], field[1:4] = np.nan, narrow_field
        return starts

    monkeypatch.setattr(restarts, "_make_starts", spoiled)
    fit = fit_em(x, 2, key=jax.random.key(0), num_restarts=6, on_failure="raise")
    assert made == [6, 6, 6]
    assert fit.mixture.scales.min() > 0.05
    assert fit.log_likelihood == pytest.approx(fit.mixture.log_prob(x).sum(), rel=1e-12)


def test_failures_are_announced_once_in_one_sentence(rng):
    x = DATA["iris"]
    start, _ = rough_start(FAMILIES["full"], x, 3, rng)
    fit = functools.partial(fit_em, x, 3, start=start, max_steps=3)
    with pytest.warns(FitWarning, match=r"em \(full, k=3\): the step limit was reached .* raise max_steps") as caught:
        fit()
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match="the step limit was reached"):
        fit(on_failure="raise")
    assert fit(on_failure="ignore").code is ResultCode.max_steps_reached


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": None}, "key=None .*jax.random.key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"key has shape \(3,\): .*key\[0\]"),
        *(({name: value}, f"{name}={value!r}") for name in COUNTS for value in (-1, 2.5, "3", True)),
        *(({name: None}, f"{name}=None") for name in ("num_components", "max_steps")),
        *(({name: 0}, f"{name}=0") for name in ("num_components", "num_restarts")),
        *(({"tol": value}, f"tol={value!r}") for value in (-1.0, np.nan, np.inf, True)),
        *(({"tol": value}, "tol ") for value in ("a", None, [1e-3])),
        *(({"reg_covar": value}, "reg_covar=") for value in (-1.0, np.nan, np.inf, [1e-3, -1.0], True)),
        *(({"reg_covar": value}, "reg_covar ") for value in ("a", 1j, [1e-3] * 3)),
        ({"accelerate": "yes"}, "accelerate='yes' must be True or False"),
        ({"prior": "x"}, r"prior is 'x', .*conjugate_prior\(x, 2, 'full'\)"),
        ({"prior": True}, r"prior is True, .*conjugate_prior\(x, 2, 'full'\)"),
        ({"prior": default_prior(DATA["faithful"], 2)}, r"prior is one of default_prior, .*conjugate_prior\(x, 2"),
        ({"family": "fll"}, "family='fll' is not known; choose one of full, tied, diag, spherical"),
        ({"num_components": 4, "row_weights": np.arange(272) < 3}, "rows of positive weight.* got 3"),
        ({"start": Mixture.from_covariances(np.ones(1), np.zeros((1, 3)), np.ones((1, 3)))}, r"\(1, 3\).*2 features"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(options, message):
    # Past the checked annotation of the prior, which users do not have; numbers are looked at before it.
    fit = inspect.unwrap(fit_em) if "prior" in options else fit_em
    with pytest.raises(InputError, match=message) as caught:
        fit(DATA["faithful"], **{"num_components": 2, "key": jax.random.key(0), **options})
    assert "\n" not in str(caught.value)


def test_a_tolerance_below_rounding_is_met_by_the_steps_themselves():
    """Log-densities of about -100 are known to 2e-5 in float32; what is gained beyond that the parameters tell."""
    x = np.random.default_rng(0).normal(size=(5000, 4))
    x[:2500, 0] += 2.5
    x = (1e10 * x).astype(np.float32)
    options = {"start": np.arange(5000) * 3 // 5000, "on_failure": "raise"}
    fits = [fit_em(x, 3, tol=tol, **options) for tol in (1e-12, 1e-6, 2e-5)]
    assert 95 < -fits[0].log_likelihood / len(x) < 105
    assert fits[0].num_steps >= fits[1].num_steps >= fits[2].num_steps
    np.testing.assert_allclose(fits[0].log_likelihood, fits[1].log_likelihood, rtol=1e-5)


@each_representation
@pytest.mark.parametrize(("dtype", "offset"), [(np.float32, 1e4), (np.float64, 1e8)])
def test_a_start_far_from_the_rows_is_no_collapse(family, dtype, offset, rng):
    """What is left of a variance about a mean so far away is rounding; the rows are gone over again."""
    x = (offset + rng.normal(size=(5000, 2))).astype(dtype)
    shape = (1, 2) if family.diagonal else (1, 2, 2)
    covariances = offset**2 * (np.ones(shape) if len(shape) == 2 else np.eye(2)[None])
    start = Mixture.from_covariances(*(np.asarray(part, dtype) for part in (np.ones(1), np.zeros((1, 2)), covariances)))
    fit = fit_em(x, 1, family=family, start=start, reg_covar=1e-6, on_failure="raise")
    np.testing.assert_allclose(np.diagonal(fit.mixture.covariances[0]), x.var(0, dtype=np.float64), rtol=0.05)


# Transformations


@pytest.mark.usefixtures("x64")
@each_representation
def test_many_fits_at_once_equal_the_loop(family, rng):
    """Of different lengths, in one program."""
    x = jnp.asarray(DATA["faithful"][rng.integers(272, size=(3, 272))])
    start = to_jax(rough_start(family, DATA["faithful"], 2, rng)[0])
    fit = functools.partial(fit_em, num_components=2, family=family, start=start, on_failure="raise")
    together = jax.jit(jax.vmap(fit))(x)
    assert together.successful.all()
    for i in range(3):
        alone = fit(x[i])
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert one.num_steps == alone.num_steps
        assert_close(one.steps, alone.steps, 1e-12)
        assert_close(one.mixture, alone.mixture, 1e-9)


def test_usable_inside_the_callers_jit_and_vmap():
    x = jnp.asarray(DATA["faithful"], jnp.float32)
    keys = jax.random.split(jax.random.key(3), 2)
    fit = functools.partial(fit_em, num_components=2, family="diag", num_restarts=2)
    alone = [fit(x, key=key).mixture for key in keys]
    inside = jax.jit(lambda x, key: fit(x, key=key))(x, keys[0])
    assert_close(inside.mixture, alone[0], 1e-4)
    together = jax.vmap(lambda key: fit(x, key=key))(keys)
    for i in range(2):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together.mixture), alone[i], 1e-4)


def test_whole_rows_may_be_traced():
    x = (10.0 * DATA["faithful"]).round().astype(int)
    covariances = np.stack([np.diag([100.0, 5000.0])] * 2)
    start = Mixture.from_covariances(np.full(2, 0.5), x[[0, 1]].astype(float), covariances)
    fit = functools.partial(fit_em, num_components=2, start=start, on_failure="raise")
    assert jax.jit(fit)(x).log_likelihood == pytest.approx(fit(x).log_likelihood, rel=1e-4)


def test_shapes_are_refused_inside_the_callers_jit():
    rows = jax.ShapeDtypeStruct((3, 2), np.float32)
    fit = functools.partial(fit_em, num_components=2, key=jax.random.key(0))
    with pytest.raises(InputError, match=r"x must have shape \(rows, features\); got \(3, 2, 2\)"):
        jax.eval_shape(fit, jax.ShapeDtypeStruct((3, 2, 2), np.float32))
    with pytest.raises(InputError, match=r"needs at least 5 rows.* got 3"):
        jax.eval_shape(functools.partial(fit, num_components=5), rows)
    with pytest.raises(InputError, match=r"row_weights must have shape \(3,\)"):
        jax.eval_shape(lambda x, v: fit(x, row_weights=v), rows, jax.ShapeDtypeStruct((4,), np.float32))


@pytest.mark.usefixtures("x64")
def test_a_failure_inside_the_callers_jit_is_only_a_code():
    bad = DATA["faithful"].copy()
    bad[3, 0] = np.nan
    fit = jax.jit(lambda x: fit_em(x, 2, key=jax.random.key(0), num_restarts=3, on_failure="raise"))(jnp.asarray(bad))
    assert fit.code in FAILED


def test_default_ridge_is_a_tiny_fraction_of_the_variance():
    x = DATA["faithful"]
    rows = Rows(x, np.ones(272))
    narrow = default_ridge(to_jax(to_float32(rows)))
    np.testing.assert_allclose(narrow, 1e-7 * x.var(0), rtol=1e-4)
    with jax.enable_x64(True):
        np.testing.assert_allclose(default_ridge(to_jax(rows)), 1e-10 * x.var(0), rtol=1e-12)


def test_every_result_code_is_a_sentence():
    for code in ResultCode:
        assert code.explanation
        assert "\n" not in code.explanation


@pytest.mark.parametrize(("num_rows", "seed"), [(2000, 0), (20_000, 1)])
def test_float32_ends_where_float64_does(num_rows, seed):
    """Of components that overlap EM gains less in a step than float32 can show, long before it is at its end."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, num_rows, p=[0.5, 0.3, 0.2])
    x = (rng.normal(size=(num_rows, 2)) + 1.5 * labels[:, None]).astype(np.float32)
    drawn = x[rng.choice(num_rows, 3, replace=False)].astype(np.float64)
    start = Mixture.from_covariances(np.full(3, 1 / 3), drawn, np.tile(np.cov(x.T) / 2, (3, 1, 1)))
    ends = []
    for dtype in (np.float32, np.float64):
        given = jax.tree.map(lambda field, dtype=dtype: np.asarray(field, dtype), start)
        fit = fit_em(x.astype(dtype), 3, start=given, max_steps=5000, on_failure="raise")
        mixture = jax.tree.map(lambda field: np.asarray(field, np.float64), fit.mixture)
        ends.append(np.asarray(mixture.log_prob(x.astype(np.float64))).mean())
    assert ends[1] - ends[0] < 2e-6  # of the mean log-likelihood; 1e-4 if float32's changes of it are believed
