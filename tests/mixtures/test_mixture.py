"""The density, held to SciPy's on dense covariances, and what follows from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    Case,
    assert_close,
    each_factor_shape,
    each_family,
    each_representation,
    own_shape,
    random_case,
    random_draws,
    some_families,
    to_float32,
    to_jax,
)
from scipy import integrate, special, stats

import bayesgmm
from bayesgmm.errors import InputError
from bayesgmm.likelihood.scores import log_likelihood
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.runtime.files import save_value

pytestmark = pytest.mark.usefixtures("strict")

K = 3
METHODS = ("joint_log_prob", "log_prob", "responsibilities", "predict")


def assert_density_agrees(case: Case, x, rtol=1e-10):
    joint = case.joint_log_prob(x)
    marginal = special.logsumexp(joint, axis=1)
    # Log-densities cross zero, where only the absolute error means anything.
    np.testing.assert_allclose(case.mixture.joint_log_prob(x), joint, rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(case.mixture.log_prob(x), marginal, rtol=rtol, atol=1e-12)
    responsibilities = case.mixture.responsibilities(x)
    np.testing.assert_allclose(responsibilities, np.exp(joint - marginal[:, None]), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(responsibilities.sum(1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(case.mixture.predict(x), joint.argmax(1))


@pytest.mark.parametrize("num_features", [1, 2, 8, 32])
@each_family
def test_density_agrees_with_scipy(family, num_features, rng):
    case = random_case(family, K, num_features, rng)
    assert_density_agrees(case, np.concatenate([case.rows(30, rng), 5.0 * rng.normal(size=(10, num_features))]))


@each_representation
def test_a_narrow_component_far_from_the_origin_loses_no_digits(family, rng):
    """Sums about zero would keep no digit at all here."""
    case = random_case(family, K, 2, rng)
    means = 1e6 + 1e-3 * case.means
    covariances = 1e-6 * case.covariances
    mixture = Mixture.from_covariances(case.weights, means, own_shape(covariances, family))
    far = Case(mixture, case.weights, means, covariances)
    assert_density_agrees(far, far.rows(30, rng))


@each_representation
def test_one_component_is_one_gaussian(family, rng):
    case = random_case(family, 1, 2, rng)
    x = case.rows(10, rng)
    assert_density_agrees(case, x)
    np.testing.assert_array_equal(case.mixture.responsibilities(x), np.ones((10, 1)))


@each_representation
def test_rows_far_in_the_tails_stay_finite(family, rng):
    case = random_case(family, K, 2, rng)
    x = np.array([[1e4, 0.0], [-1e4, 1e4], [1e8, 1e8]])
    assert_density_agrees(case, x)
    assert np.isfinite(case.mixture.log_prob(x)).all()


@each_representation
def test_rows_whose_squares_overflow_have_the_responsibilities_of_the_limit(family, rng):
    """Those of float64 in float32, and in float64 those of rows not quite so far away."""
    case = random_case(family, K, 2, rng)
    directions = rng.normal(size=(20, 2))
    expected = special.softmax(case.joint_log_prob(1e20 * directions), axis=1)
    assert len(np.unique(expected.argmax(1))) > 1
    for far, mixture in ((1e20, to_float32(case.mixture)), (1e38, to_float32(case.mixture)), (1e160, case.mixture)):
        x = (far * directions).astype(mixture.means.dtype)
        np.testing.assert_array_equal(mixture.log_prob(x), -np.inf)
        np.testing.assert_array_equal(mixture.joint_log_prob(x), -np.inf)
        np.testing.assert_allclose(mixture.responsibilities(x), expected, atol=1e-6)
        np.testing.assert_array_equal(mixture.predict(x), expected.argmax(1))
        given = mixture.condition([0], x[:, :1])
        assert all(np.isfinite(leaf).all() for leaf in (given.weights, given.means))
        np.testing.assert_allclose(given.weights.sum(-1), 1.0, rtol=1e-6)


def test_a_row_whose_squares_overflow_has_the_slope_of_its_component(rng):
    case = random_case(FAMILIES["full"], K, 2, rng)
    mixture, x = to_jax(to_float32(case.mixture)), jnp.array([[1e20, -2e20]], jnp.float32)
    closest = special.softmax(case.joint_log_prob(np.asarray(x, np.float64)), axis=1)[0].argmax()
    expected = -np.linalg.solve(case.covariances[closest], np.asarray(x[0], np.float64) - case.means[closest])
    slope = jax.grad(lambda x: mixture.log_prob(x).sum())(x)[0]
    np.testing.assert_allclose(slope, expected, rtol=1e-5)
    in_means = jax.grad(lambda mixture: mixture.log_prob(x).sum())(mixture).means
    np.testing.assert_allclose(in_means[closest], -expected, rtol=1e-5)
    # The fused gradient leaves such a row out: a choice of two ways costs all callers compilation, and `vmap` both.
    in_mixture = jax.grad(log_likelihood)(mixture, x)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(in_mixture))


def test_a_component_of_weight_zero_takes_no_part(rng):
    covariances = np.stack([np.eye(2)] * 3)
    means = rng.normal(size=(3, 2))
    with np.errstate(divide="ignore"):
        mixture = Mixture.from_covariances(np.array([0.4, 0.6, 0.0]), means, covariances)
    two = Mixture.from_covariances(np.array([0.4, 0.6]), means[:2], covariances[:2])
    x = rng.normal(size=(10, 2))
    np.testing.assert_allclose(mixture.log_prob(x), two.log_prob(x), rtol=1e-12)
    np.testing.assert_array_equal(mixture.responsibilities(x)[:, 2], np.zeros(10))


@each_family
def test_the_dense_representation_has_the_same_density(family, rng):
    """Families are nested: the same covariances, whatever the representation, are the same mixture."""
    case = random_case(family, K, 3, rng)
    as_full = Mixture.from_covariances(case.weights, case.means, case.covariances)
    x = case.rows(20, rng)
    np.testing.assert_allclose(case.mixture.log_prob(x), as_full.log_prob(x), rtol=1e-12)


@some_families("full", "tied")
def test_entries_above_the_diagonal_of_a_factor_are_not_read(family, rng):
    """So that an optimiser may move through all matrices."""
    case = random_case(family, K, 3, rng)
    factor = case.mixture.precision_factor
    noisy = Mixture(case.mixture.log_weights, case.means, factor + np.triu(rng.normal(size=factor.shape), 1))
    x = case.rows(20, rng)
    for method in METHODS:
        np.testing.assert_array_equal(getattr(noisy, method)(x), getattr(case.mixture, method)(x))
    np.testing.assert_array_equal(noisy.covariances, case.mixture.covariances)


@each_representation
def test_precision_follows_the_input(family, rng):
    case = random_case(family, K, 2, rng)
    x = case.rows(10, rng)
    narrow = to_float32(case.mixture)
    for method in ("joint_log_prob", "log_prob", "responsibilities"):
        exact, rounded = getattr(case.mixture, method)(x), getattr(narrow, method)(x.astype(np.float32))
        assert exact.dtype == np.float64
        assert rounded.dtype == np.float32
        np.testing.assert_allclose(rounded, exact, rtol=1e-4, atol=1e-4)
    for field in ("weights", "covariances", "scales"):
        assert getattr(case.mixture, field).dtype == np.float64
        assert getattr(narrow, field).dtype == np.float32
        np.testing.assert_allclose(getattr(narrow, field), getattr(case.mixture, field), rtol=1e-5, atol=1e-5)
    key = jax.random.key(0)
    assert case.mixture.sample(5, key=key).dtype == np.float64
    assert narrow.sample(5, key=key).dtype == np.float32
    assert Mixture.from_covariances(*to_float32((case.weights, case.means, case.covariances))).means.dtype == np.float32


@each_representation
def test_float32_keeps_its_digits_away_from_the_origin(family, rng):
    """Held to SciPy on exactly the numbers that float32 holds."""
    case = random_case(family, K, 3, rng)
    far = to_float32(Mixture(case.mixture.log_weights, case.means + 1e3, case.mixture.precision_factor))
    x = (case.rows(30, rng) + 1e3).astype(np.float32)
    exact = jax.tree.map(lambda field: np.asarray(field, np.float64), far)
    np.testing.assert_allclose(far.log_prob(x), exact.log_prob(x.astype(np.float64)), rtol=1e-5, atol=1e-5)


@each_factor_shape
def test_leading_axes_equal_the_loop(family, rng):
    draws = random_draws(family, K, 2, (2, 3), rng)
    x = rng.normal(size=(7, 2))
    assert draws.draw_shape == (2, 3)
    assert (draws.num_components, draws.num_features, draws.is_diagonal) == (K, 2, family.diagonal)
    order = np.argsort(rng.normal(size=(2, 3, K)))
    permuted = draws.permute(order)
    for i, j in np.ndindex(2, 3):
        one = draws[i, j]
        assert one.draw_shape == ()
        for method in METHODS:
            np.testing.assert_allclose(getattr(draws, method)(x)[i, j], getattr(one, method)(x), rtol=1e-11, atol=1e-12)
        for field in ("weights", "covariances", "scales"):
            np.testing.assert_allclose(getattr(draws, field)[i, j], getattr(one, field), rtol=1e-12, atol=1e-14)
        assert_close(permuted[i, j], one.permute(order[i, j]), 0.0)


@each_factor_shape
def test_leading_axes_are_sampled_each_from_its_own_mixture(family, rng, key):
    draws = random_draws(family, K, 2, (2, 2), rng)
    rows = draws.sample(20_000, key=key)
    assert rows.shape == (2, 2, 20_000, 2)
    for i, j in np.ndindex(2, 2):
        _assert_rows_follow(draws[i, j], rows[i, j], rng)


@each_factor_shape
def test_permuted_components(family, rng):
    case = random_case(family, K, 2, rng)
    x = case.rows(20, rng)
    order = np.array([2, 0, 1])
    permuted = case.mixture.permute(order)
    np.testing.assert_allclose(permuted.log_prob(x), case.mixture.log_prob(x), rtol=1e-13)
    # Vector instructions round a component's last digit by its place.
    np.testing.assert_array_max_ulp(permuted.joint_log_prob(x), case.mixture.joint_log_prob(x)[:, order], maxulp=2)
    np.testing.assert_array_equal(permuted.weights, case.mixture.weights[order])
    np.testing.assert_array_equal(permuted.covariances, case.mixture.covariances[order])
    assert_close(permuted.permute(np.argsort(order)), case.mixture, 0.0)


@each_representation
def test_shift_and_scale(family, rng):
    case = random_case(family, K, 3, rng)
    x = case.rows(20, rng)
    shift, scale = rng.normal(size=3), 7.3
    moved = Mixture.from_covariances(
        case.weights, scale * case.means + shift, scale**2 * own_shape(case.covariances, family)
    )
    expected = case.mixture.log_prob(x) - 3 * np.log(scale)
    np.testing.assert_allclose(moved.log_prob(scale * x + shift), expected, rtol=1e-11)


@each_representation
def test_density_integrates_to_one(family, rng):
    case = random_case(family, K, 1, rng)
    total, _ = integrate.quad(
        lambda value: np.exp(case.mixture.log_prob(np.array([[value]]))[0]),
        *(-40.0, 40.0),
        points=case.means[:, 0],
        epsabs=1e-11,
        limit=200,
    )
    assert total == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("num_features", [1, 3])
@each_factor_shape
def test_samples_follow_the_mixture(family, num_features, rng, key):
    case = random_case(family, K, num_features, rng)
    rows = case.mixture.sample(50_000, key=key)
    _assert_rows_follow(case.mixture, rows, rng)
    again = case.mixture.sample(50_000, key=key)
    np.testing.assert_array_equal(rows, again)
    assert not np.array_equal(rows, case.mixture.sample(50_000, key=jax.random.split(key)[0]))


def _assert_rows_follow(mixture, rows, rng):
    """Mean and covariance within 5 Monte Carlo standard errors; Kolmogorov-Smirnov along random directions."""
    weights, means, covariances = mixture.weights, mixture.means, mixture.covariances
    mean = weights @ means
    between = means - mean
    covariance = np.einsum("j,jab->ab", weights, covariances) + np.einsum("j,ja,jb->ab", weights, between, between)
    centred = rows - mean
    products = np.einsum("na,nb->nab", centred, centred)
    root_n = np.sqrt(len(rows))
    assert (np.abs(centred.mean(0)) < 5 * np.sqrt(np.diagonal(covariance)) / root_n).all()
    assert (np.abs(products.mean(0) - covariance) < 5 * products.std(0) / root_n).all()
    for direction in (*np.eye(rows.shape[1]), rng.normal(size=rows.shape[1])):
        centres = means @ direction
        scales = np.sqrt(np.einsum("a,jab,b->j", direction, covariances, direction))

        def cdf(values, centres=centres, scales=scales):
            return (weights * stats.norm.cdf(values[:, None], centres, scales)).sum(1)

        assert stats.kstest(rows @ direction, cdf).pvalue > 1e-4


@each_family
def test_from_covariances_and_back(family, rng):
    case = random_case(family, K, 4, rng)
    mixture = case.mixture
    assert_close(mixture.weights, case.weights, 1e-14)
    assert_close(mixture.means, case.means, 0.0)
    assert_close(mixture.covariances, case.covariances, 1e-13)
    assert_close(mixture.scales, np.sqrt(np.diagonal(case.covariances, axis1=1, axis2=2)), 1e-13)
    assert mixture.is_diagonal == family.diagonal
    assert mixture.precision_factor.shape[0] == (1 if family.shared else K)
    dense_factor = mixture.precision_factor
    dense_factor = dense_factor[..., None] * np.eye(4) if family.diagonal else dense_factor
    np.testing.assert_array_equal(dense_factor, np.tril(dense_factor))
    assert (np.diagonal(dense_factor, axis1=1, axis2=2) > 0).all()
    precision = np.swapaxes(dense_factor, 1, 2) @ dense_factor
    assert_close(np.broadcast_to(precision, (K, 4, 4)), np.linalg.inv(case.covariances), 1e-12)


NOT_POSITIVE_DEFINITE = np.array([[[1.0, 2.0], [2.0, 1.0]]])


def test_a_traced_covariance_that_is_not_positive_definite_gives_nan():
    made = jax.jit(Mixture.from_covariances)(np.ones(1), np.zeros((1, 2)), NOT_POSITIVE_DEFINITE)
    assert np.isnan(made.precision_factor).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (([2.0, 2.0], [[0.0], [4.0]], [[1.0], [1.0]]), "weights sum to 4; .* divide them by their sum"),
        (([1.2, -0.2], [[0.0], [4.0]], [[1.0], [1.0]]), r"weights=\[1.2, -0.2\] must not be negative"),
        (([0.5, 0.5], [0.0, 4.0], [[1.0], [1.0]]), "weights, means and covariances must have shapes"),
        ((1.0, 0.0, 1.0), "weights, means and covariances must have shapes"),
        (([], np.zeros((0, 2)), np.zeros((0, 2, 2))), "weights, means and covariances must have shapes"),
        (([1.0], [[0.0, np.nan]], [[1.0, 1.0]]), "means has NaN or infinite entries"),
        (([1.0], [[0.0, 0.0]], [[1.0, -2.0]]), r"covariances\[0, 1\]=-2 is a variance and must be positive"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 0.9], [0.0, 1.0]]]), r"covariances\[0\] is not symmetric"),
        (([1.0], [[0.0, 0.0]], NOT_POSITIVE_DEFINITE), r"covariances\[0\] is not positive definite: .* eigenvalue -1;"),
        ((np.ma.array([0.5, 0.5], mask=[0, 1]), [[0.0], [4.0]], [[1.0], [1.0]]), "weights is a masked array"),
        ((["a"], [[0.0]], [[1.0]]), "weights must hold real numbers"),
    ],
)
def test_what_no_mixture_has_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Mixture.from_covariances(*fields)


def test_a_mixture_of_whole_numbers_has_a_density_of_floats():
    """Means of integers once made integers of the rows, and 0.5 was a 0."""
    mixture = Mixture.from_covariances([0.5, 0.5], [[0], [4]], [[1], [4]])
    x = np.array([[0.5], [3.9]])
    expected = np.log(0.5 * stats.norm.pdf(x[:, 0]) + 0.5 * stats.norm.pdf(x[:, 0], 4, 2))
    np.testing.assert_allclose(mixture.log_prob(x), expected, rtol=1e-14)
    fields = [0.5, 0.5], np.float32([[0], [4]]), [[1], [4]]
    assert {leaf.dtype for leaf in jax.tree.leaves(Mixture.from_covariances(*fields))} == {np.dtype("float32")}


def test_covariances_of_features_in_far_units_are_taken():
    """Positive definite in units of the features, where eigenvalues of the matrix itself are lost in rounding."""
    unit = np.array([1e-9, 1.0, 1e9])
    correlations = np.array([[1.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 1.0]])
    covariance = correlations * unit[:, None] * unit
    found = Mixture.from_covariances([1.0], np.zeros((1, 3)), covariance[None]).log_prob(2 * unit[None])
    expected = stats.multivariate_normal(np.zeros(3), correlations).logpdf([2.0] * 3) - np.log(unit).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


HALVES = np.log([0.5, 0.5])
MADE_BY_HAND = {
    "0-d": (Mixture(np.array(0.0), np.array(0.0), np.array(1.0)), "must have shapes"),
    "lists": (
        Mixture([0.0, 0.0], [[0.0], [0.0]], [[1.0], [1.0]]),
        r"log_weights=\[0.0, 0.0\] must be an array of floating-point numbers",
    ),
    "integers": (Mixture(HALVES, np.zeros((2, 1), int), np.ones((2, 1))), "means=.* must be an array of floating"),
    "lengths": (Mixture(np.log(np.ones(3) / 3), np.zeros((2, 1)), np.ones((2, 1))), "must have shapes"),
    "factors": (Mixture(HALVES, np.zeros((2, 1)), np.ones((3, 1))), "must have shapes"),
    "weights": (Mixture(np.log([2.0, 2.0]), np.zeros((2, 1)), np.ones((2, 1))), "sum to 4; they must sum to 1"),
    "signs": (Mixture(HALVES, np.zeros((2, 1)), -np.ones((2, 1))), "negative entry on its diagonal"),
}
KEY = {"key": jax.random.key(0)}
ROW = np.zeros((1, 1))
DOORS = {
    "log_prob": lambda mixture, _: mixture.log_prob(ROW),
    "sample": lambda mixture, _: mixture.sample(3, **KEY),
    "permute": lambda mixture, _: mixture.permute([1, 0]),
    "marginal": lambda mixture, _: mixture.marginal([0]),
    "condition": lambda mixture, _: mixture.condition([0], [0.0]),
    "cdf": lambda mixture, _: bayesgmm.cdf(mixture, 0.0),
    "quantile": lambda mixture, _: bayesgmm.quantile(mixture, 0.5),
    "entropy": lambda mixture, _: bayesgmm.entropy(mixture, **KEY),
    "kl_divergence": lambda mixture, _: bayesgmm.kl_divergence(mixture, mixture, **KEY),
    "hdr_level": lambda mixture, _: bayesgmm.hdr_level(mixture, 0.5),
    "log_likelihood": lambda mixture, _: bayesgmm.log_likelihood(mixture, ROW),
    "pointwise_log_likelihood": lambda mixture, _: bayesgmm.pointwise_log_likelihood(mixture, ROW),
    "expected_moments": lambda mixture, _: bayesgmm.expected_moments(mixture, ROW),
    "match_labels": lambda mixture, _: bayesgmm.match_labels(mixture, mixture),
    "fit_em": lambda mixture, _: bayesgmm.fit_em(np.arange(9.0)[:, None], 2, start=mixture),
    "fit_map": lambda mixture, _: bayesgmm.fit_map(np.arange(9.0)[:, None], 2, start=mixture, **KEY),
    "save_mixture": lambda mixture, folder: bayesgmm.save_mixture(mixture, folder / "mixture.npz"),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=list(DOORS))
def test_every_door_refuses_a_mixture_made_by_hand_that_is_none(door, tmp_path):
    for mixture, message in MADE_BY_HAND.values():
        with pytest.raises(InputError, match=message):
            door(mixture, tmp_path)


def test_an_upper_triangular_factor_is_refused():
    upper = Mixture(HALVES, np.zeros((2, 2)), np.array([np.triu(np.ones((2, 2)))]))
    with pytest.raises(InputError, match="is upper triangular and must be lower triangular; give its transpose"):
        upper.log_prob(np.zeros((1, 2)))


def test_files_hold_mixtures_that_are_some(tmp_path):
    mixture, message = MADE_BY_HAND["weights"]
    save_value(mixture, tmp_path / "mixture.npz", "mixture")
    with pytest.raises(InputError, match=f"mixture of file .*{message}"):
        bayesgmm.load_mixture(tmp_path / "mixture.npz")


def test_a_fit_that_failed_keeps_its_mixture_of_nan():
    nan = Mixture(np.full(2, np.nan), np.full((2, 1), np.nan), np.full((2, 1), np.nan))
    assert np.isnan(nan.permute([1, 0]).means).all()


@pytest.mark.usefixtures("x64")
@each_representation
def test_is_a_pytree_that_jax_can_transform(family, rng):
    case = random_case(family, K, 2, rng)
    mixture, x = to_jax(case.mixture), jnp.asarray(case.rows(10, rng))
    leaves, structure = jax.tree.flatten(mixture)
    assert len(leaves) == 3
    assert_close(jax.tree.unflatten(structure, leaves), mixture, 0.0)
    assert isinstance(jax.jit(lambda mixture: mixture)(mixture), Mixture)
    expected = mixture.log_prob(x)
    assert_close(jax.jit(Mixture.log_prob)(mixture, x), expected, 1e-13)
    assert_close(jax.vmap(lambda row: mixture.log_prob(row[None])[0])(x), expected, 1e-13)
    gradient = jax.grad(lambda mixture: mixture.log_prob(x).sum())(mixture)
    # Of the weights the gradient is known in closed form: the expected counts.
    assert_close(gradient.log_weights, mixture.responsibilities(x).sum(0), 1e-12)
    assert_close(jax.jit(jax.grad(lambda mixture: mixture.log_prob(x).sum()))(mixture), gradient, 1e-11)


def test_rows_of_another_width_are_refused(rng):
    mixture = Mixture.from_covariances(np.ones(1), np.zeros((1, 2)), np.ones((1, 2)))
    for bad in (np.zeros((5, 3)), np.zeros(5)):
        with pytest.raises(ValueError, match=r"x must have shape \(rows, 2\) like the means; got"):
            mixture.log_prob(bad)


def test_one_dimension_is_one_feature(rng):
    """As everywhere else: fits, criteria and pictures take rows (n,) for (n, 1)."""
    mixture = Mixture.from_covariances([0.3, 0.7], [[0.0], [4.0]], [[1.0], [4.0]])
    x = rng.normal(size=20)
    for name in METHODS:
        np.testing.assert_array_equal(getattr(mixture, name)(x), getattr(mixture, name)(x[:, None]))
    expected = np.log(0.3 * stats.norm.pdf(x) + 0.7 * stats.norm.pdf(x, 4, 2))
    np.testing.assert_allclose(bayesgmm.pointwise_log_likelihood(mixture, x), expected, rtol=1e-13)
    np.testing.assert_allclose(bayesgmm.log_likelihood(mixture, list(x)), expected.sum(), rtol=1e-13)
    assert bayesgmm.expected_moments(mixture, x).count.sum() == pytest.approx(20)


def test_a_single_mixture_cannot_be_indexed():
    mixture = Mixture.from_covariances(np.ones(1), np.zeros((1, 2)), np.ones((1, 2)))
    with pytest.raises(IndexError, match=r"\.permute"):
        mixture[0]


def test_more_indices_than_leading_axes_select_no_component(rng):
    draws = random_draws(FAMILIES["full"], K, 2, (2, 3), rng)
    assert draws[1, 2].draw_shape == ()
    assert draws[..., [0, 2]].draw_shape == (2, 2)
    assert draws[np.array([[True, False, True], [False, False, True]])].draw_shape == (3,)
    assert jax.jit(lambda index: to_jax(to_float32(draws))[index])(1).draw_shape == (3,)
    with pytest.raises(IndexError, match="too many indices"):
        draws[1, 2, 0]


def arrays(mixture):
    return to_jax(tuple(jax.tree.leaves(mixture)))


@pytest.mark.usefixtures("x64")
@each_factor_shape
def test_many_rows_and_draws_are_taken_in_blocks(family, rng, key, monkeypatch):
    """Neither densities nor samples hold n d d or n k d numbers at once, and blocks change none of them."""
    from bayesgmm.mixtures import mixture as module
    from bayesgmm.mixtures import sampling

    draws, x = random_draws(family, K, 3, (2, 3), rng), rng.normal(size=(50, 3))
    x[7] = 1e160
    one = draws[1, 2]
    whole = [getattr(mixture, name)(x) for mixture in (draws, one) for name in METHODS]
    sampled = [sampling._sample.__wrapped__(arrays(one), key, num_rows=50, draw_shape=())]
    sampled.append(sampling._sample.__wrapped__(arrays(draws), key, num_rows=50, draw_shape=(2, 3)))
    monkeypatch.setattr(module, "_AT_ONCE", 11 * one.means.size)
    monkeypatch.setattr(sampling, "_GATHERED", 7 * 9)
    blocks = [getattr(mixture, name)(x) for mixture in (draws, one) for name in METHODS]
    for found, expected in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    found = [sampling._sample.__wrapped__(arrays(one), key, num_rows=50, draw_shape=())]
    found.append(sampling._sample.__wrapped__(arrays(draws), key, num_rows=50, draw_shape=(2, 3)))
    assert_close(found, sampled, 1e-13)
