"""NUTS against the reference draws of a published posterior, under that model's own priors.

Source: the posteriordb project (Magnusson et al. 2025), posterior `low_dim_gauss_mix-low_dim_gauss_mix`: two normal
components with means ~ N(0, 2), standard deviations ~ half-normal(2) and weight ~ Beta(5, 5), of 1000 rows, which are
in `tests/data/low_dim_gauss_mix.json`.
"""

import json
from pathlib import Path

import arviz
import jax
import numpy as np
import pytest

import bayesgmm

# Means and standard deviations of the 10,000 reference draws, and the Monte Carlo errors of the means.
REFERENCE = {
    "mu1": (-2.73351, 0.04205, 0.00042),
    "mu2": (2.86983, 0.05460, 0.00056),
    "sigma1": (1.02807, 0.03144, 0.00032),
    "sigma2": (1.02382, 0.04048, 0.00041),
    "theta": (0.621549, 0.01548, 0.00015),
}


@pytest.fixture(scope="module")
def draws():
    """Draws of the five parameters, each (chain, draw).

    The published model keeps mu1 below mu2. Its density is that of the model without this order, restricted to ordered
    means and doubled: prior and likelihood do not change when the components are swapped, so either order has half of
    the mass. Draws without the order, relabelled by sorting the means, are therefore draws of the ordered model.
    """
    path = Path(__file__).parent / "data" / "low_dim_gauss_mix.json"
    x = np.array(json.loads(path.read_text(encoding="utf-8"))["y"])[:, None]
    prior = bayesgmm.default_prior(
        x, 2, concentration=5.0, mean_loc=0.0, mean_scale=2.0, scale_prior="half_normal", scale_sd=2.0
    )
    fit = bayesgmm.fit_nuts(x, 2, family="diag", prior=prior, key=jax.random.key(0), num_draws=1500)
    assert fit.code is bayesgmm.ResultCode.successful
    mixtures = fit.draws.permute(np.argsort(fit.draws.means[..., 0], axis=-1))
    mu, sigma = mixtures.means[..., 0], mixtures.scales[..., 0]
    theta = mixtures.weights[..., 0]
    values = {"mu1": mu[..., 0], "mu2": mu[..., 1], "sigma1": sigma[..., 0], "sigma2": sigma[..., 1], "theta": theta}
    assert (values["mu1"] < values["mu2"]).all()
    return {name: np.asarray(value) for name, value in values.items()}


@pytest.mark.parametrize("name", REFERENCE)
def test_mean_and_sd_agree_with_the_reference_within_monte_carlo_error(name, draws):
    mean, sd, error = REFERENCE[name]
    found = draws[name]
    of_mean = float(arviz.mcse(found, method="mean"))
    assert abs(found.mean() - mean) < 4 * np.hypot(of_mean, error)
    # The reference draws are nearly independent: (sd / error)^2 of them, and the error of an sd of normal draws.
    of_reference_sd = error / np.sqrt(2)
    of_sd = float(arviz.mcse(found, method="sd"))
    assert abs(found.std(ddof=1) - sd) < 4 * np.hypot(of_sd, of_reference_sd)
    # Errors small enough for the comparison to mean something: a twentieth of the posterior's own width.
    assert max(of_mean, of_sd) < sd / 20
