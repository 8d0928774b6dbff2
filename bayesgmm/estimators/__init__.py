"""The scikit-learn face: estimators with no numerics of their own."""

from bayesgmm.estimators.bayesian import BayesianGaussianMixture
from bayesgmm.estimators.maximum_likelihood import GaussianMixture

__all__ = ["BayesianGaussianMixture", "GaussianMixture"]
