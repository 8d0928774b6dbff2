"""Scikit-learn's own checks of estimators."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from bayesgmm import BayesianGaussianMixture, GaussianMixture

pytestmark = pytest.mark.filterwarnings("default")  # as in scikit-learn's own runs


def start_that_is_not_random(cls):
    """Three components, for one is no clustering; the only start for which repeated rows and weights draw the same."""
    return cls(n_components=3, init_params="hierarchical")


@parametrize_with_checks([start_that_is_not_random(GaussianMixture), start_that_is_not_random(BayesianGaussianMixture)])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [GaussianMixture(), BayesianGaussianMixture()],
    expected_failed_checks=lambda estimator: {"check_clustering": "one component is one cluster"},
)
def test_checks_of_scikit_learn_by_default(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [GaussianMixture(3), BayesianGaussianMixture(n_components=3)],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": "k-means draws other rows as seeds where rows are repeated"
    },
)
def test_checks_of_scikit_learn_from_kmeans(estimator, check):
    check(estimator)
