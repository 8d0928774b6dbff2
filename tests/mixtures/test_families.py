"""The table of covariance structures: what every record promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, dense, each_family, random_covariances
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesgmm.mixtures.families import FAMILIES, get_family

pytestmark = pytest.mark.usefixtures("strict")

K, D = 3, 4

# Parameters of the whole mixture as R's mclust 6.0.0 counts them: (model, components, features) -> npar.
MCLUST_NUM_PARAMETERS = {
    ("VVV", 1, 2): 5,
    ("VVV", 3, 2): 17,
    ("VVV", 3, 4): 44,
    ("EEE", 1, 2): 5,
    ("EEE", 3, 2): 11,
    ("EEE", 3, 4): 24,
    ("VVI", 1, 2): 4,
    ("VVI", 3, 2): 14,
    ("VVI", 3, 4): 26,
    ("EEI", 1, 2): 4,
    ("EEI", 3, 2): 10,
    ("EEI", 3, 4): 18,
    ("EII", 1, 2): 3,
    ("EII", 3, 2): 9,
    ("EII", 3, 4): 15,
    ("VII", 1, 2): 3,
    ("VII", 3, 2): 11,
    ("VII", 3, 4): 17,
}


def test_names_and_codes_are_those_of_the_table():
    assert [family.name for family in FAMILIES.values()] == list(FAMILIES)
    assert len({family.mclust for family in FAMILIES.values()}) == len(FAMILIES)
    assert all(family.description for family in FAMILIES.values())


@each_family
def test_a_family_is_found_by_name_or_given_as_a_record(family):
    assert get_family(family.name) is get_family(family.mclust) is family
    assert get_family(family) is family


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="family='oval' is not known; choose one of full, tied, diag, spherical"):
        get_family("oval")


@pytest.mark.parametrize(("model", "num_components", "num_features"), MCLUST_NUM_PARAMETERS)
def test_parameters_are_counted_as_in_mclust(model, num_components, num_features):
    (family,) = (family for family in FAMILIES.values() if family.mclust == model)
    expected = MCLUST_NUM_PARAMETERS[model, num_components, num_features]
    assert family.num_parameters(num_components, num_features) == expected


@pytest.mark.usefixtures("x64")
@each_family
def test_parameters_are_as_many_as_covariances_have_dimensions(family, rng):
    """The rank of the map from scatter to covariances is the dimension of the family."""
    count, scatter = _statistics(family, rng)
    jacobian = jax.jacobian(lambda scatter: family.maximise(count, scatter))(scatter)
    rows = int(np.prod(jacobian.shape[: -scatter.ndim]))
    # Scatter is symmetric: only its symmetric directions count.
    if not family.diagonal:
        jacobian = jacobian + jnp.swapaxes(jacobian, -1, -2)
    assert np.linalg.matrix_rank(np.asarray(jacobian).reshape(rows, -1)) == family.num_covariance_parameters(K, D)


@pytest.mark.parametrize("num_features", [1, 4])
@each_family
def test_shapes(family, num_features, rng):
    num_factors = 1 if family.shared else K
    expected = (num_factors, num_features) if family.diagonal else (num_factors, num_features, num_features)
    assert random_covariances(family, K, num_features, rng).shape == expected
    scale_shape = family.scale_shape(K, num_features)
    assert np.broadcast_shapes(scale_shape, (num_factors, num_features)) == (num_factors, num_features)
    assert family.has_correlations(num_features) == (not family.diagonal and num_features > 1)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), log_size=st.floats(-6.0, 0.5))
@each_family
def test_no_other_covariances_of_the_family_are_more_likely(family, seed, log_size):
    """Against the likelihood of scatter as NumPy has it, whatever the size of the step away."""
    rng = np.random.default_rng(seed)
    count, scatter = _statistics(family, rng)
    _, other = _statistics(family, rng)
    with jax.enable_x64(True):
        best = np.asarray(family.maximise(count, scatter))
        size = 10.0**log_size
        # Larger or smaller, and of another shape.
        moved = np.asarray(family.maximise(count, np.exp(size * rng.normal()) * (scatter + size * other)))
    count, scatter = np.asarray(count), np.asarray(scatter)
    scatter = scatter[:, :, None] * np.eye(D) if family.diagonal else scatter
    highest = _log_likelihood_of(dense(best, family, K), count, scatter)
    assert _log_likelihood_of(dense(moved, family, K), count, scatter) <= highest + 1e-12 * abs(highest)


def _log_likelihood_of(covariances, count, scatter):
    log_determinants = np.linalg.slogdet(covariances)[1]
    return (
        -0.5 * (count * log_determinants).sum()
        - 0.5 * np.trace(np.linalg.solve(covariances, scatter), axis1=1, axis2=2).sum()
    )


@pytest.mark.usefixtures("x64")
@each_family
def test_covariances_scale_with_scatter_and_follow_their_components(family, rng):
    count, scatter = _statistics(family, rng)
    covariances = family.maximise(count, scatter)
    assert_close(family.maximise(count, 4.0 * scatter), 4.0 * covariances, 0.0)
    assert_close(family.maximise(4.0 * count, 4.0 * scatter), covariances, 0.0)
    order = np.array([2, 0, 1])
    expected = covariances if family.shared else covariances[order]
    assert_close(family.maximise(count[order], scatter[order]), expected, 1e-15)


@pytest.mark.usefixtures("x64")
@each_family
def test_estimates_a_member_of_the_family_as_itself(family, rng):
    covariances = random_covariances(family, K, D, rng)
    each = jnp.asarray(np.broadcast_to(covariances, (K, *covariances.shape[1:])))
    count = jnp.asarray(rng.uniform(1.0, 9.0, size=K))
    scatter = count.reshape(K, *(1,) * (each.ndim - 1)) * each
    assert_close(family.maximise(count, scatter), covariances, 1e-14)


@pytest.mark.usefixtures("x64")
def test_families_agree_where_they_must(rng):
    full, tied, diag, spherical = (FAMILIES[name] for name in ("full", "tied", "diag", "spherical"))
    count, scatter = _statistics(full, rng)
    variances = jnp.diagonal(scatter, axis1=1, axis2=2)
    # One component: shared or not is the same.
    assert_close(tied.maximise(count[:1], scatter[:1]), full.maximise(count[:1], scatter[:1]), 1e-15)
    # No correlations: the variances of a full covariance are those of a diagonal one.
    expected = jnp.diagonal(full.maximise(count, scatter), axis1=1, axis2=2)
    assert_close(diag.maximise(count, variances), expected, 0.0)
    # One feature: a variance is a variance.
    one = diag.maximise(count, variances[:, :1])
    assert_close(spherical.maximise(count, variances[:, :1]), one, 0.0)
    assert_close(full.maximise(count, scatter[:, :1, :1])[:, :, 0], one, 0.0)
    # Shared by all components: the variances of a shared matrix, and their mean.
    shared = FAMILIES["tied_diag"].maximise(count, variances)
    assert_close(shared, jnp.diagonal(tied.maximise(count, scatter), axis1=1, axis2=2), 1e-15)
    one_variance = FAMILIES["tied_spherical"].maximise(count, variances)
    assert_close(one_variance, np.full((1, D), np.mean(np.asarray(shared))), 1e-15)
    # Components whose variances are the same: shared or not is the same.
    alike = count[:, None] * jnp.broadcast_to(variances[:1] / count[0], variances.shape)
    for own, pooled in ((diag, "tied_diag"), (spherical, "tied_spherical")):
        assert_close(FAMILIES[pooled].maximise(count, alike), own.maximise(count, alike)[:1], 1e-14)


def _statistics(family, rng):
    """Counts, and scatter of as many rows."""
    root = rng.normal(size=(K, D, 2 * D)) * np.exp(rng.normal(size=(K, D, 1)))
    scatter = root @ np.swapaxes(root, 1, 2)
    if family.diagonal:
        scatter = np.diagonal(scatter, axis1=1, axis2=2)
    with jax.enable_x64(True):
        return jnp.asarray(rng.uniform(1.0, 9.0, size=K)), jnp.asarray(scatter)
