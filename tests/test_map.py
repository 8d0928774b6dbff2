"""MAP: the mode of the model's own log-density, the point that AutoDelta finds, to a gradient tolerance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, each_family
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import log_density
from numpyro.optim import Adam

import bayesgmm
from bayesgmm.engines.model import sites_of_mixture


def _log_density(mixture, x, family, prior):
    sites = sites_of_mixture(mixture, family)
    return float(log_density(bayesgmm.model, (x, mixture.num_components, family, prior), {}, sites)[0])


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=name, marks=[] if name in ("full", "diag") else [pytest.mark.slow])
        for name, family in bayesgmm.FAMILIES.items()
    ],
)
def test_converges_where_autodelta_does(family, key, x64):
    """AutoDelta by a long Adam run with a falling step size, from elsewhere, ends at the same mixture."""
    x = jnp.asarray(DATA["faithful"] / DATA["faithful"].std(0))
    fit = bayesgmm.fit_map(x, 2, family=family, key=key)
    assert fit.code is bayesgmm.ResultCode.successful
    prior = bayesgmm.default_prior(x, 2)

    start = bayesgmm.fit_em(x, 2, family=family, key=key).mixture
    values = {name: 1.05 * value for name, value in sites_of_mixture(start, family).items()}
    values["weights"] = jnp.array([0.4, 0.6])
    if "correlation_cholesky" in values:
        values["correlation_cholesky"] = jnp.broadcast_to(jnp.eye(2), values["correlation_cholesky"].shape)
    guide = AutoDelta(bayesgmm.model, init_loc_fn=init_to_value(values=values))
    svi = SVI(bayesgmm.model, guide, Adam(lambda step: 0.02 * 0.5 ** (step / 1000)), Trace_ELBO())
    result = svi.run(key, 12_000, x, 2, family, prior, progress_bar=False)
    found = guide.median(result.params)
    np.testing.assert_allclose(fit.mixture.weights, found["weights"], atol=2e-5)
    np.testing.assert_allclose(fit.mixture.means, found["means"], atol=2e-4)
    np.testing.assert_allclose(fit.trace[-1], -result.losses[-1], atol=1e-6)


@each_family
@pytest.mark.parametrize(
    ("name", "num_components"),
    [
        ("faithful", 3),
        pytest.param("galaxies", 4, marks=pytest.mark.slow),
        pytest.param("iris", 2, marks=pytest.mark.slow),
    ],
)
def test_reaches_its_gradient_tolerance_and_improves_on_em(family, name, num_components, key, x64):
    x = DATA[name]
    em = bayesgmm.fit_em(x, num_components, family=family, key=key, on_failure="ignore")
    fit = bayesgmm.fit_map(x, num_components, family=family, key=key, start=em.mixture)
    assert fit.code is bayesgmm.ResultCode.successful
    prior = bayesgmm.default_prior(x, num_components)
    assert fit.trace[-1] == pytest.approx(_log_density(fit.mixture, x, family, prior), abs=1e-8)
    assert fit.trace[-1] >= _log_density(em.mixture, x, family, prior) - 1e-9
    assert float(fit.log_likelihood) == pytest.approx(float(bayesgmm.log_likelihood(fit.mixture, x)))
    # Labels of the start are kept: every component is nearest to its own.
    order = bayesgmm.match_labels(fit.mixture, em.mixture)
    np.testing.assert_array_equal(order, np.arange(num_components))


def test_flat_data_prior_limit_is_em(key):
    """With a prior that hardly says anything, the mode is the maximum of the likelihood."""
    x = DATA["faithful"]
    em = bayesgmm.fit_em(x, 2, key=key, tol=1e-12, reg_covar=0.0)
    vague = bayesgmm.default_prior(
        x, 2, concentration=1.0, mean_scale=1e6, scale_sigma=1e4, correlation_concentration=1.0
    )
    fit = bayesgmm.fit_map(x, 2, key=key, start=em.mixture, prior=vague)
    # What is left of the prior: one over each scale, and LKJ's Jacobian; both are of relative order 1 / n.
    np.testing.assert_allclose(fit.mixture.means, em.mixture.means, rtol=2e-3)
    assert float(em.log_likelihood) - float(fit.log_likelihood) < 0.1


def test_step_limit_is_reported(key):
    with pytest.warns(bayesgmm.FitWarning, match="step limit"):
        fit = bayesgmm.fit_map(DATA["faithful"], 3, key=key, max_steps=1, gtol=1e-14)
    assert fit.code is bayesgmm.ResultCode.max_steps_reached


def test_float32_and_arguments(key):
    fit = bayesgmm.fit_map(DATA["faithful"].astype(np.float32), 2, key=key)
    assert fit.code is bayesgmm.ResultCode.successful
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(fit.mixture)} == {np.dtype(np.float32)}
    with pytest.raises(bayesgmm.InputError, match="gtol=-1"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, gtol=-1.0)
    with pytest.raises(bayesgmm.InputError, match=r"key=7 is not a random key; pass key=jax.random.key\(7\)"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=7)
    with pytest.raises(bayesgmm.InputError, match=r"prior is for k=3 components of 2 features.*default_prior\(x, 2\)"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, prior=bayesgmm.default_prior(DATA["faithful"], 3))
    start = bayesgmm.fit_em(DATA["faithful"], 2, family="diag", key=key).mixture
    with pytest.raises(bayesgmm.InputError, match=r"diagonal factor.*fit_em"):
        bayesgmm.fit_map(DATA["faithful"], 2, key=key, start=start)
