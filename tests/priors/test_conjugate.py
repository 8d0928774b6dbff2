"""The conjugate prior: its numbers, its density against scipy, and the M-step that climbs it."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONJUGATE, DATA, assert_close, each_conjugate_family, random_case
from scipy import stats

import bayesgmm
from bayesgmm.likelihood.expectation import expected_moments
from bayesgmm.likelihood.moments import Moments

pytestmark = pytest.mark.usefixtures("x64", "strict")

FULL, TIED, DIAG, SPHERICAL = (CONJUGATE[name] for name in ("full", "tied", "diag", "spherical"))


def is_spherical(family):
    return family.scale_shape(1, 2)[1] == 1


def informative_prior(x, num_components, family, rng):
    """A prior that says a good deal, away from every default."""
    num_features = x.shape[1]
    root = rng.normal(size=(num_features, num_features + 3))
    if not family.diagonal:
        scale = root @ root.T
    elif is_spherical(family):
        scale = 2.3
    else:
        scale = rng.uniform(0.5, 3.0, size=num_features)
    return bayesgmm.conjugate_prior(
        x,
        num_components,
        family,
        concentration=rng.uniform(1.0, 5.0, size=num_components),
        mean=x.mean(0) + rng.normal(size=num_features),
        shrinkage=3.0,
        dof=num_features + 3.5,
        scale=scale,
    )


def moments_of(x, responsibilities, origin, family):
    """Moments of given responsibilities about any origin, by NumPy."""
    centred = x[:, None] - origin[None]
    if family.diagonal:
        second = np.einsum("nk,nkd->kd", responsibilities, centred**2)
    else:
        second = np.einsum("nk,nkd,nke->kde", responsibilities, centred, centred)
    return Moments(
        origin=jnp.asarray(origin),
        count=jnp.asarray(responsibilities.sum(0)),
        first=jnp.asarray(np.einsum("nk,nkd->kd", responsibilities, centred)),
        second=jnp.asarray(second),
        log_likelihood=jnp.asarray(np.nan),
    )


def map_em(mixture, x, family, prior, num_steps=200, **settings):
    """So many steps of MAP-EM, and the log posterior density at the start of each."""

    def step(mixture, _):
        moments = expected_moments(mixture, x)
        density = moments.log_likelihood + bayesgmm.log_prior(mixture, family, prior)
        return bayesgmm.maximise_posterior(moments, family, prior, **settings), density

    mixture = jax.tree.map(jnp.asarray, mixture)
    return jax.jit(lambda mixture: jax.lax.scan(step, mixture, length=num_steps))(mixture)


def perturbed(mixture, family, size, rng):
    """Another mixture of the same family."""
    factor = np.asarray(mixture.precision_factor)
    if not family.diagonal:
        factor = np.tril(factor @ (np.eye(factor.shape[-1]) + size * rng.normal(size=factor.shape)))
    else:
        free = family.scale_shape(mixture.num_components, mixture.num_features)
        factor = factor * np.exp(size * rng.normal(size=free))
    log_weights = jax.nn.log_softmax(mixture.log_weights + size * rng.normal(size=mixture.num_components))
    means = mixture.means + size * rng.normal(size=mixture.means.shape)
    return bayesgmm.Mixture(log_weights, means, jnp.asarray(factor))


def wide_start(x, means, family):
    """Components at these means, round, and as wide as the data."""
    num_components, num_features = means.shape
    variances = np.full((1 if family.shared else num_components, num_features), x.var(0).mean())
    covariances = variances if family.diagonal else variances[:, :, None] * np.eye(num_features)[None]
    return bayesgmm.Mixture.from_covariances(np.full(num_components, 1 / num_components), means, covariances)


@each_conjugate_family
def test_defaults_are_those_of_fraley_and_raftery(family):
    x = DATA["iris"]
    prior = bayesgmm.conjugate_prior(x, 3, family)
    np.testing.assert_array_equal(prior.concentration, np.ones(3))
    np.testing.assert_allclose(prior.mean, x.mean(0))
    assert (prior.shrinkage, prior.dof) == (0.01, 6.0)
    covariance = np.cov(x.T) / 3 ** (2 / 4)
    if not family.diagonal:
        np.testing.assert_allclose(prior.scale, covariance, rtol=1e-12)
    else:
        shape = () if is_spherical(family) else (4,)
        np.testing.assert_allclose(prior.scale, np.full(shape, np.trace(covariance) / 4), rtol=1e-12)


def test_fewer_rows_than_features_take_the_diagonal():
    x = DATA["iris"][::40]
    prior = bayesgmm.conjugate_prior(x, 2)
    np.testing.assert_allclose(prior.scale, np.diag(x.var(0, ddof=1)) / 2 ** (2 / 4), rtol=1e-12)


def test_row_weights_count_rows(rng):
    x, weights = DATA["iris"], rng.integers(0, 3, size=150)
    weighted = bayesgmm.conjugate_prior(x, 2, row_weights=weights)
    assert_close(weighted, bayesgmm.conjugate_prior(np.repeat(x, weights, axis=0), 2), 1e-12)


def test_every_number_can_be_set():
    given = {
        "concentration": np.array([1.0, 5.0]),
        "mean": np.array([3.0, 70.0]),
        "shrinkage": 0.5,
        "dof": 9.0,
        "scale": np.array([[1.0, 2.0], [2.0, 9.0]]),
    }
    prior = bayesgmm.conjugate_prior(DATA["faithful"], 2, **given)
    for name, value in given.items():
        np.testing.assert_array_equal(getattr(prior, name), value)
    diagonal = bayesgmm.conjugate_prior(DATA["faithful"], 2, "diag", scale=[1.0, 30.0])
    np.testing.assert_array_equal(diagonal.scale, [1.0, 30.0])
    assert bayesgmm.conjugate_prior(DATA["galaxies"], 3, scale=2.0).scale.shape == (1, 1)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("full", {"concentration": 0.0}, r"prior concentration=0.0 must be finite and greater than 0"),
        ("full", {"concentration": [1.0] * 3}, r"prior concentration has shape \(3,\); give one number or .* \(2,\)"),
        ("full", {"mean": np.nan}, r"prior mean=nan must be finite"),
        ("full", {"mean": [1.0, 2.0, 3.0]}, r"prior mean has shape \(3,\)"),
        ("full", {"shrinkage": 0.0}, r"prior shrinkage=0.0 must be finite and greater than 0"),
        ("full", {"shrinkage": [1.0, 2.0]}, r"prior shrinkage has shape \(2,\); give one number"),
        ("full", {"dof": 1.0}, r"prior dof=1.0 must be greater than 1 for family='full' and 2 features; 4 is usual"),
        ("spherical", {"dof": -1.0}, r"prior dof=-1.0 must be finite and greater than 0"),
        (
            "full",
            {"scale": np.ones((2, 2))},
            r"scale=\[\[1., 1.\], \[1., 1.\]\] must be symmetric and positive definite",
        ),
        ("tied", {"scale": [[1.0, 0.5], [0.0, 1.0]]}, r"must be symmetric and positive definite; give such a matrix"),
        ("tied", {"scale": [[1.0, 0.0], [0.0, np.inf]]}, r"must be symmetric and positive definite"),
        ("full", {"scale": 1.0}, r"prior scale has shape \(\); family='full' needs a matrix of shape \(2, 2\)"),
        ("diag", {"scale": np.eye(2)}, r"prior scale has shape \(2, 2\); give one number or an array of shape \(2,\)"),
        ("spherical", {"scale": [1.0, 2.0]}, r"prior scale has shape \(2,\); give one number"),
        ("diag", {"scale": 0.0}, r"prior scale=0.0 must be finite and greater than 0"),
        ("full", {"row_weights": np.full(272, 1e-3)}, r"row_weights add up to 0.272, .* give them as counts of rows"),
        (
            dataclasses.replace(FULL, name="vev", mclust="VEV", conjugate=None),
            {},
            r"family='vev' \(VEV\) has no conjugate prior",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(family, settings, message):
    with pytest.raises(bayesgmm.InputError, match=message) as caught:
        bayesgmm.conjugate_prior(DATA["faithful"], 2, family, **settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("num_components", [0, -1, 2.5, "2", None, True])
@pytest.mark.parametrize("make", [bayesgmm.conjugate_prior, bayesgmm.default_prior])
def test_a_prior_is_for_a_whole_number_of_components(make, num_components):
    with pytest.raises(bayesgmm.InputError, match=f"num_components={num_components!r} must be a whole number"):
        inspect.unwrap(make)(DATA["faithful"], num_components)


@pytest.mark.parametrize("row_weights", [None, np.arange(272) % 2])
def test_a_constant_column_is_named(row_weights):
    x = np.column_stack([DATA["faithful"], np.where(np.arange(272) % 2, 7.0, 7.0 if row_weights is None else 8.0)])
    with pytest.raises(bayesgmm.InputError, match=r"column 2 of x is constant \(7\)"):
        bayesgmm.conjugate_prior(x, 2, row_weights=row_weights)


@pytest.mark.usefixtures("x64")
def test_the_log_prior_of_float32_is_float32(rng):
    case = random_case(FULL, 2, 2, rng)
    prior = informative_prior(case.rows(30, rng), 2, FULL, rng)
    mixture, prior = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (case.mixture, prior))
    assert bayesgmm.log_prior(mixture, FULL, prior).dtype == np.float32


@each_conjugate_family
def test_a_prior_fits_fewer_rows_than_features(family, rng):
    x = rng.normal(size=(4, 4))
    prior = bayesgmm.conjugate_prior(x, 1, family)
    fit = bayesgmm.fit_em(x, 1, family=family, prior=prior, key=jax.random.key(0), num_restarts=1, on_failure="raise")
    assert np.isfinite(fit.log_likelihood)


def test_description_has_the_numbers_and_the_names():
    names = ["eruptions", "waiting"]
    text = bayesgmm.conjugate_prior(DATA["faithful"], 2).describe(names)
    assert "Dirichlet(1, 1)" in text
    assert "eruptions: mean 3.488, variance the component's over 0.01" in text
    assert "InverseWishart, dof 4, scale [0.6514, 6.989; 6.989, 92.41]" in text
    assert "waiting: shape 2, scale 23.27" in bayesgmm.conjugate_prior(DATA["faithful"], 2, "diag").describe(names)
    assert "InverseGamma: shape 2" in bayesgmm.conjugate_prior(DATA["faithful"], 2, "spherical").describe()


@each_conjugate_family
@pytest.mark.parametrize("num_features", [1, 3])
def test_log_prior_is_scipys_with_its_constants(family, num_features, rng):
    case = random_case(family, 2, num_features, rng)
    prior = informative_prior(case.rows(30, rng), 2, family, rng)
    expected = stats.dirichlet(prior.concentration).logpdf(case.weights)
    for mean, covariance in zip(case.means, case.covariances, strict=True):
        expected += stats.multivariate_normal(prior.mean, covariance / prior.shrinkage).logpdf(mean)
    free = case.covariances[:1] if family.shared else case.covariances
    for covariance in free:
        if not family.diagonal:
            expected += stats.invwishart(float(prior.dof), prior.scale).logpdf(covariance)
        else:
            variances = np.diagonal(covariance)[: family.scale_shape(2, num_features)[1]]
            expected += stats.invgamma(prior.dof / 2, scale=prior.scale / 2).logpdf(variances).sum()
    np.testing.assert_allclose(bayesgmm.log_prior(case.mixture, family, prior), expected, rtol=1e-11)


def test_flat_weights_allow_an_empty_component(rng):
    case = random_case(FULL, 2, 2, rng)
    empty = dataclasses.replace(jax.tree.map(jnp.asarray, case.mixture), log_weights=jnp.asarray([0.0, -jnp.inf]))
    assert np.isfinite(bayesgmm.log_prior(empty, FULL, bayesgmm.conjugate_prior(case.rows(30, rng), 2)))


@each_conjugate_family
def test_m_step_maximises_the_expected_log_density_plus_the_prior(family, rng):
    case = random_case(family, 3, 2, rng)
    x = case.rows(40, rng)
    prior = informative_prior(x, 3, family, rng)
    responsibilities = rng.dirichlet(np.ones(3), size=40)
    moments = moments_of(x, responsibilities, rng.normal(size=(3, 2)), family)

    def objective(mixture):
        return (responsibilities * mixture.joint_log_prob(x)).sum() + bayesgmm.log_prior(mixture, family, prior)

    best = bayesgmm.maximise_posterior(moments, family, prior)
    np.testing.assert_allclose(np.exp(best.log_weights).sum(), 1.0, rtol=1e-14)
    highest = float(objective(best))
    others = [float(objective(perturbed(best, family, size, rng))) for size in np.repeat([1e-4, 1e-2, 0.3], 20)]
    assert max(others) < highest + 1e-11 * abs(highest)
    assert max(others[20:]) < highest - 1e-6


@each_conjugate_family
def test_one_component_has_the_analytic_mode(family, rng):
    """The joint mode of the normal-inverse-Wishart (-gamma) posterior, and Fraley & Raftery's denominators."""
    n, d = 25, 3
    x = random_case(FULL, 1, d, rng).rows(n, rng)
    prior = informative_prior(x, 1, family, rng)
    found = bayesgmm.maximise_posterior(moments_of(x, np.ones((n, 1)), np.zeros((1, d)), family), family, prior)
    kappa, gap = prior.shrinkage, x.mean(0) - prior.mean
    scatter = np.cov(x.T, ddof=0) * n + n * kappa / (n + kappa) * np.outer(gap, gap)
    if not family.diagonal:
        expected = (scatter + prior.scale) / (prior.dof + n + d + 2)
    elif is_spherical(family):
        expected = np.eye(d) * (np.trace(scatter) + prior.scale) / (prior.dof + 2 + d + n * d)
    else:
        expected = np.diag((np.diagonal(scatter) + prior.scale) / (prior.dof + n + 3))
    np.testing.assert_allclose(found.covariances[0], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.means[0], (n * x.mean(0) + kappa * prior.mean) / (n + kappa), rtol=1e-12)


def test_weights_and_the_shared_covariance_have_their_denominators(rng):
    n, d, k = 40, 2, 3
    x = random_case(TIED, k, d, rng).rows(n, rng)
    prior = informative_prior(x, k, TIED, rng)
    responsibilities = rng.dirichlet(np.ones(k), size=n)
    count = responsibilities.sum(0)
    moments = moments_of(x, responsibilities, rng.normal(size=(k, d)), TIED)
    found = bayesgmm.maximise_posterior(moments, TIED, prior)
    np.testing.assert_allclose(
        np.exp(found.log_weights), (count + prior.concentration - 1) / (n + prior.concentration.sum() - k), rtol=1e-13
    )
    scatter = prior.scale.copy()
    for share, size in zip(responsibilities.T, count, strict=True):
        mean = share @ x / size
        centred, gap = x - mean, mean - prior.mean
        scatter += (share[:, None] * centred).T @ centred
        scatter += size * prior.shrinkage / (size + prior.shrinkage) * np.outer(gap, gap)
    np.testing.assert_allclose(found.covariances[0], scatter / (prior.dof + n + d + k + 1), rtol=1e-12)

    # Second moments may come already summed over the components, each about its own origin.
    pooled = dataclasses.replace(moments, second=moments.second.sum(0, keepdims=True))
    plain = dataclasses.replace(
        TIED, maximise=lambda count, scatter, previous=None: scatter.sum(0, keepdims=True) / count.sum()
    )
    for ridge in (0.0, 0.1):
        expected = bayesgmm.maximise_posterior(moments, TIED, prior, ridge)
        assert_close(bayesgmm.maximise_posterior(pooled, plain, prior, ridge), expected, 1e-13)


def test_ridge_is_extra_scatter(rng):
    x = random_case(DIAG, 2, 2, rng).rows(30, rng)
    prior = informative_prior(x, 2, DIAG, rng)
    moments = moments_of(x, rng.dirichlet(np.ones(2), size=30), np.zeros((2, 2)), DIAG)
    without = bayesgmm.maximise_posterior(moments, DIAG, prior)
    ridged = bayesgmm.maximise_posterior(moments, DIAG, prior, np.array([0.1, 0.4]))
    share = moments.count / (moments.count + prior.dof + 3)
    np.testing.assert_allclose(
        jnp.square(ridged.scales) - jnp.square(without.scales), share[:, None] * np.array([[0.1, 0.4]]), rtol=1e-10
    )


@each_conjugate_family
def test_log_posterior_never_falls_and_ends_where_it_is_flat(family, rng):
    x = random_case(family, 3, 2, rng).rows(150, rng)
    prior = informative_prior(x, 3, family, rng)
    start = wide_start(x, rng.choice(x, 3), family)
    mixture, trace = map_em(start, x, family, prior, 1000)
    assert np.diff(trace).min() > -1e-12 * abs(trace[-1])

    def density(log_weights, means, factor):
        factor = factor if family.diagonal else jnp.tril(factor)
        mixture = bayesgmm.Mixture(jax.nn.log_softmax(log_weights), means, factor)
        return bayesgmm.log_likelihood(mixture, x) + bayesgmm.log_prior(mixture, family, prior)

    slopes = jax.grad(density, argnums=(0, 1, 2))(mixture.log_weights, mixture.means, mixture.precision_factor)
    slopes = [*slopes[:2], slopes[2].sum(-1) if is_spherical(family) else slopes[2]]
    assert max(float(jnp.abs(slope).max()) for slope in slopes) < 1e-6


@each_conjugate_family
def test_shift_and_units_do_not_matter(family, rng):
    """Matrices follow any units; diagonals and spheres, whose default scale averages over features, common ones."""
    case = random_case(family, 2, 2, rng)
    x = case.rows(100, rng)
    unit, shift = np.array([3.0, 3.0] if family.diagonal else [1e-3, 50.0]), np.array([20.0, -7.0])
    before, _ = map_em(case.mixture, x, family, bayesgmm.conjugate_prior(x, 2, family))
    factor = np.asarray(case.mixture.precision_factor) / unit
    start = bayesgmm.Mixture(case.mixture.log_weights, case.means * unit[None] + shift[None], factor)
    moved = x * unit[None] + shift[None]
    after, _ = map_em(start, moved, family, bayesgmm.conjugate_prior(moved, 2, family))
    np.testing.assert_allclose(after.log_weights, before.log_weights, rtol=1e-8)
    np.testing.assert_allclose(after.means, before.means * unit[None] + shift[None], rtol=1e-8)
    np.testing.assert_allclose(after.covariances, before.covariances * np.outer(unit, unit)[None], rtol=1e-7)


@each_conjugate_family
def test_identical_rows_do_not_collapse_a_component(family, rng):
    x = np.concatenate([rng.normal(size=(60, 2)), np.full((30, 2), 4.0)])
    prior = bayesgmm.conjugate_prior(x, 2, family)
    start = wide_start(x, np.array([[0.0, 0.0], [4.0, 4.0]]), family)
    mixture, trace = map_em(start, x, family, prior)
    assert np.isfinite(trace).all()
    assert abs(float(trace[-1] - trace[-2])) < 1e-10
    # No more than all rows could be in the denominator.
    smallest = np.linalg.eigvalsh(prior.scale).min() if not family.diagonal else np.min(prior.scale)
    assert np.linalg.eigvalsh(mixture.covariances).min() > smallest / (float(prior.dof) + 2 * len(x) + 10)


@each_conjugate_family
def test_an_empty_component_is_at_the_mode_of_the_prior(family, rng):
    case = random_case(family, 2, 2, rng)
    x = case.rows(20, rng)
    prior = informative_prior(x, 2, family, rng)
    responsibilities = np.stack([np.ones(20), np.zeros(20)], axis=1)
    mixture = bayesgmm.maximise_posterior(moments_of(x, responsibilities, case.means, family), family, prior)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(mixture))
    np.testing.assert_allclose(mixture.means[1], prior.mean, rtol=1e-12)


def test_prior_is_traced(rng):
    """Many priors in one vectorised, differentiable program."""
    case = random_case(FULL, 2, 2, rng)
    x = case.rows(50, rng)
    prior = jax.tree.map(jnp.asarray, bayesgmm.conjugate_prior(x, 2))
    start = jax.tree.map(jnp.asarray, case.mixture)

    def fitted(shrinkage):
        here = dataclasses.replace(prior, shrinkage=shrinkage)
        mixture = bayesgmm.maximise_posterior(expected_moments(start, x), FULL, here)
        return mixture, bayesgmm.log_prior(mixture, FULL, here)

    strengths = jnp.asarray([0.01, 1.0, 100.0])
    together = jax.vmap(fitted)(strengths)
    for index, strength in enumerate(strengths):
        assert_close(jax.tree.map(lambda leaf, index=index: leaf[index], together), fitted(strength), 1e-12)
    step = 1e-5
    slope = jax.grad(lambda strength: fitted(strength)[1])(1.0)
    difference = (fitted(1.0 + step)[1] - fitted(1.0 - step)[1]) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    traced = jax.jit(lambda x: bayesgmm.conjugate_prior(x, 2))(jnp.asarray(x))
    assert_close(traced, prior, 1e-12)


@each_conjugate_family
def test_precision_is_that_of_the_input(family, rng):
    case = random_case(family, 2, 2, rng)
    x = case.rows(60, rng)
    exact, _ = map_em(case.mixture, x, family, bayesgmm.conjugate_prior(x, 2, family), 20)
    with jax.enable_x64(False):
        prior = bayesgmm.conjugate_prior(x.astype(np.float32), 2, family)
        assert {leaf.dtype for leaf in jax.tree.leaves(prior)} == {np.dtype(np.float32)}
        start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), case.mixture)
        single, _ = map_em(start, x.astype(np.float32), family, prior, 20)
        assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(single)} == {np.dtype(np.float32)}
        assert bayesgmm.log_prior(single, family, prior).dtype == np.float32
        assert_close(single, exact, 1e-3)
        # Outside of float64 mode, doubles stay doubles.
        double = bayesgmm.log_prior(case.mixture, family, bayesgmm.conjugate_prior(x, 2, family))
        assert np.asarray(double).dtype == np.float64


def test_em_refuses_a_prior_without_a_mode(key):
    x = DATA["faithful"]
    with pytest.raises(bayesgmm.InputError, match=r"prior concentration=0.5 is below 1, so the posterior"):
        bayesgmm.fit_em(x, 2, key=key, prior=bayesgmm.conjugate_prior(x, 2, concentration=0.5))
