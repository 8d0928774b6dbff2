"""BIC, AIC and ICL: scikit-learn's for its four families, mclust's up to sign; pointwise log-likelihoods of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import em
from helpers import DATA, each_factor_shape, each_family, random_draws
from sklearn.mixture import GaussianMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

import bayesgmm
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.starts.kmeans import mixture_of_partition

PARAMETERS = {  # from the formulas of the families, (k, d) = (3, 4)
    "full": 2 + 12 + 3 * 10,
    "tied": 2 + 12 + 10,
    "diag": 2 + 12 + 12,
    "spherical": 2 + 12 + 3,
    "tied_diag": 2 + 12 + 4,
    "tied_spherical": 2 + 12 + 1,
}


@each_family
def test_number_of_parameters(family):
    assert family.num_parameters(3, 4) == PARAMETERS[family.name]


@pytest.mark.parametrize("data", ["faithful", "galaxies", "iris", "simulated"])
@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical"])
def test_bic_and_aic_are_those_of_scikit_learn(family, data):
    x, fit = DATA[data], em(data, 2, family)
    covariances = np.asarray(fit.mixture.covariances)
    own_shape = {
        "full": covariances,
        "tied": covariances[0],
        "diag": np.diagonal(covariances, axis1=1, axis2=2),
        "spherical": covariances[:, 0, 0],
    }[family]
    peer = GaussianMixture(2, covariance_type=family)
    peer.weights_, peer.means_, peer.covariances_ = (
        np.asarray(fit.mixture.weights),
        np.asarray(fit.mixture.means),
        own_shape,
    )
    peer.precisions_cholesky_ = _compute_precision_cholesky(own_shape, family)
    found = bayesgmm.information_criteria(fit, x)
    np.testing.assert_allclose(found.bic, peer.bic(x), rtol=1e-11)
    np.testing.assert_allclose(found.aic, peer.aic(x), rtol=1e-11)
    np.testing.assert_allclose(found.log_likelihood, float(fit.log_likelihood), rtol=1e-12)
    assert (bayesgmm.bic(fit, x), bayesgmm.aic(fit, x)) == (found.bic, found.aic)


# The partitions of Old Faithful from which R's mclust 6.0.0 started (its hierarchical clustering), the M-steps it took
# before its last E-step, and what it printed then: bic = 2 loglik - npar log n and icl, larger is better.
MCLUST_FAITHFUL = {
    "full": (
        "0101010010100101101011010010000000011010010100010100101001001010100010010010100000010000101010100010"
        "1010010100010010101010010010101010101010010001010100100000101010001010110000010010001001010100000010"
        "100101001010100010101010000000010101100101000010101000000010001011001010",
        2,
        -2322.19195930296,
        -2322.69746732717,
    ),
    "tied": (
        "0121212012102121121211012012222222211210212120212120121221221212102212012212122022212222101012122212"
        "1012212120212212121012210012101210121210212221210122122220101012221210112222210212201201212120220212"
        "120121201212122210121212222222210101122121222012121222002212221211221012",
        17,
        -2314.31629566578,
        -2357.82424895482,
    ),
}


@pytest.mark.parametrize("family", list(MCLUST_FAITHFUL))
def test_bic_and_icl_are_those_of_mclust_with_the_other_sign(family, x64):
    labels, num_steps, bic, icl = MCLUST_FAITHFUL[family]
    x = DATA["faithful"]
    partition = jnp.eye(int(max(labels)) + 1)[np.array(list(labels), int)]
    start = mixture_of_partition(as_rows(x), partition, bayesgmm.FAMILIES[family], reg_covar=np.zeros(2))
    walk = {"tol": 0.0, "max_steps": num_steps, "reg_covar": 0.0, "on_failure": "ignore"}
    fit = bayesgmm.fit_em(x, partition.shape[1], family=family, start=start, **walk)
    found = bayesgmm.information_criteria(fit, x)
    np.testing.assert_allclose(-found.bic, bic, atol=1e-8)
    np.testing.assert_allclose(-found.icl, icl, atol=1e-8)


def test_old_faithful_tied_three(key):
    """The figure that mclust is known for: EEE with three components, -2314.3."""
    fit = bayesgmm.fit_em(DATA["faithful"], 3, family="tied", key=key)
    num_parameters = 2 + 6 + 3
    assert round(2 * float(fit.log_likelihood) - num_parameters * np.log(272), 1) == -2314.3
    assert round(-bayesgmm.bic(fit, DATA["faithful"]), 1) == -2314.3


def test_icl_by_its_definition(key):
    x = DATA["iris"]
    fit = bayesgmm.fit_em(x, 3, key=key)
    certainty = np.log(np.asarray(fit.mixture.responsibilities(x)).max(1)).sum()
    np.testing.assert_allclose(bayesgmm.icl(fit, x), bayesgmm.bic(fit, x) - 2 * certainty, rtol=1e-12)


def test_row_weights_count_as_rows(key):
    x = DATA["faithful"]
    weights = np.arange(len(x)) % 3.0
    fit = bayesgmm.fit_em(x, 2, key=key, row_weights=weights)
    repeated = np.repeat(x, weights.astype(int), axis=0)
    found, expected = (vars(bayesgmm.information_criteria(fit, *rows)) for rows in ((x, weights), (repeated,)))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_criteria_are_mapped_over_tables_and_traced(rng):
    """With rows of weight 0, which may hold anything."""
    tables = rng.normal(size=(3, 60, 2)) + 8 * (np.arange(60) % 2)[:, None]
    weights = np.ones((3, 60))
    weights[:, :7] = 0.0
    tables[:, :7] = 1e200

    def criteria(x, row_weights):
        fit = bayesgmm.fit_em(x, 2, start=jnp.arange(60) % 2, row_weights=row_weights)
        return fit, bayesgmm.information_criteria(fit, x, row_weights), bayesgmm.icl(fit, x, row_weights)

    fits, found, icl = jax.jit(jax.vmap(criteria))(jnp.asarray(tables), jnp.asarray(weights))
    assert found.num_parameters == 11
    for index in range(3):
        fit = jax.tree.map(lambda leaf, index=index: np.asarray(leaf)[index], fits)
        alone = bayesgmm.information_criteria(fit, tables[index], weights[index])
        for name in ("log_likelihood", "bic", "aic", "icl"):
            np.testing.assert_allclose(getattr(found, name)[index], getattr(alone, name), rtol=1e-12)
        assert icl[index] == found.icl[index]


@each_factor_shape
def test_pointwise_log_likelihood_of_draws(family, rng):
    draws = random_draws(family, 2, 3, (2, 4), rng)
    x = rng.normal(size=(17, 3))
    pointwise = bayesgmm.pointwise_log_likelihood(draws, x)
    assert pointwise.shape == (2, 4, 17)
    for chain in range(2):
        for draw in range(4):
            one = jax.tree.map(lambda leaf, index=(chain, draw): leaf[index], draws)
            np.testing.assert_allclose(pointwise[chain, draw], one.log_prob(x), rtol=1e-12)
