"""R-hat and effective draws against formulas of their own, and quantities that do not depend on labels."""

import dataclasses

import jax
import numpy as np
import numpyro.diagnostics
import pytest
from helpers import (
    autoregressive,
    each_factor_shape,
    each_representation,
    jittered,
    random_case,
    random_draws,
    to_float32,
)
from scipy import special, stats

import bayesgmm
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.posterior.chain_agreement import (
    chain_diagnostics,
    chains_with_two_modes,
    convergence,
    groups_of_chains,
    invariants,
    spread_rows,
)


def rank_normalised_split(values):
    """Halves of chains, as normal scores of the ranks over all of them: Vehtari et al. (2021), equations 13 and 14."""
    half = values.shape[1] // 2
    split = np.concatenate([values[:, :half], values[:, -half:]])
    scores = [split, np.abs(split - np.median(split))]
    return [stats.norm.ppf((stats.rankdata(part) - 0.375) / (part.size + 0.25)).reshape(part.shape) for part in scores]


@pytest.mark.parametrize("case", ["independent", "apart", "wider", "autocorrelated"])
def test_r_hat_is_that_of_numpyro_on_ranks(case, rng):
    values = rng.normal(size=(4, 300))
    values[0] += case == "apart"
    values[1] *= 3 if case == "wider" else 1
    values = autoregressive(0.9, (4, 300), rng) if case == "autocorrelated" else values
    found = chain_diagnostics({"a": values, "b": -2.0 * values})
    # Halves are given as chains, which `gelman_rubin` takes as they are.
    expected = max(float(numpyro.diagnostics.gelman_rubin(part)) for part in rank_normalised_split(values))
    np.testing.assert_allclose(found.r_hat, expected, rtol=1e-9)  # units do not matter
    assert found.agrees == (expected <= 1.01)
    bulk = numpyro.diagnostics.effective_sample_size(rank_normalised_split(values)[0])
    np.testing.assert_allclose(found.ess_bulk, bulk, rtol=0.05)  # sums of autocorrelations end a lag apart
    assert found.max_r_hat == found.r_hat.max()
    assert found.min_ess_bulk == found.ess_bulk.min()


def test_effective_draws_of_a_known_process(rng):
    phi = 0.8
    values = autoregressive(phi, (4, 20_000), rng)
    found = chain_diagnostics({"a": values})
    assert found.ess_bulk[0] == pytest.approx(values.size * (1 - phi) / (1 + phi), rel=0.1)
    # The indicator of a tail of an autoregressive process, with its autocorrelations by the bivariate normal.
    cut = stats.norm.ppf(0.05)
    lags = phi ** np.arange(1, 60)
    joint = [stats.multivariate_normal(cov=[[1, rho], [rho, 1]]).cdf([cut, cut]) for rho in lags]
    correlation = (np.array(joint) - 0.05**2) / (0.05 * 0.95)
    assert found.ess_tail[0] == pytest.approx(values.size / (1 + 2 * correlation.sum()), rel=0.15)
    assert found.ess_tail[0] > found.ess_bulk[0]


@each_factor_shape
def test_invariants_are_those_of_a_dense_oracle(family, rng):
    cases = [random_case(family, 3, 2, rng) for _ in range(6)]
    x = cases[0].rows(90, rng)
    draws = jax.tree.map(lambda *f: np.stack(f).reshape(2, 3, *f[0].shape), *[case.mixture for case in cases])
    found = invariants(draws, x)
    rows = [int(name[12:-1]) for name in found if name.startswith("log_density")]
    assert 4 <= len(rows) == len(set(rows)) <= 8
    for index, case in enumerate(cases):
        at = divmod(index, 3)
        joint = case.joint_log_prob(x)
        marginal = special.logsumexp(joint, axis=1)
        allocation = np.exp(joint - marginal[:, None])
        assert found["log_likelihood"][at] == pytest.approx(marginal.sum(), rel=1e-10)
        assert found["entropy"][at] == pytest.approx(stats.entropy(allocation, axis=1).mean(), rel=1e-8, abs=1e-12)
        for j, weight in enumerate(sorted(case.weights)):
            assert found[f"sorted_weights[{j}]"][at] == pytest.approx(weight, rel=1e-12)
        for row in rows:
            assert found[f"log_density[{row}]"][at] == pytest.approx(marginal[row], rel=1e-9)


@each_representation
def test_renumbered_components_change_no_invariant(family, rng):
    draws = random_draws(family, 3, 2, (2, 10), rng)
    x = rng.normal(size=(50, 2))
    orders = rng.permuted(np.broadcast_to(np.arange(3), (2, 10, 3)), axis=-1)
    before, after = invariants(draws, x), invariants(draws.permute(orders), x)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].shape == (2, 10)
        np.testing.assert_allclose(after[name], before[name], rtol=1e-10, atol=1e-12)


def test_of_many_rows_the_log_likelihood_is_exact_and_the_entropy_of_evenly_spaced_ones(rng):
    case = random_case(FAMILIES["full"], 2, 2, rng)
    x = case.rows(2345, rng)
    found = invariants(jax.tree.map(lambda leaf: leaf[None, None], case.mixture), x)
    joint = case.joint_log_prob(x)
    marginal = special.logsumexp(joint, axis=1)
    assert found["log_likelihood"][0, 0] == pytest.approx(marginal.sum(), rel=1e-10)
    every = stats.entropy(np.exp(joint - marginal[:, None]), axis=1)
    sample = np.unique(np.round(np.arange(500) * 2344 / 499).astype(int))
    assert found["entropy"][0, 0] == pytest.approx(every[sample].mean(), rel=1e-8)
    assert found["entropy"][0, 0] != pytest.approx(every.mean(), rel=1e-8)


def test_precision_is_that_of_the_draws(rng):
    case = random_case(FAMILIES["full"], 2, 2, rng)
    x = case.rows(200, rng)
    draws = jittered(case.mixture, (2, 8), rng)
    exact, rough = invariants(draws, x), invariants(to_float32(draws), x)
    for name in exact.keys() & rough.keys():
        np.testing.assert_allclose(rough[name], exact[name], rtol=1e-4, atol=1e-5)
    assert not np.array_equal(rough["entropy"], exact["entropy"])


def test_spread_rows_reach_every_cluster(rng):
    corners = np.array([[0.0, 0.0], [0.0, 9.0], [90.0, 0.0], [90.0, 9.0]])  # a single axis does not tell them apart
    labels = np.repeat(np.arange(4), 40)
    x = corners[labels] + rng.normal(size=(160, 2)) * [10.0, 1.0] * 0.3
    rows = spread_rows(x)
    np.testing.assert_array_equal(rows, spread_rows(x.copy()))
    np.testing.assert_array_equal(rows, spread_rows(x * [1e3, 1e-3] + 7.0))  # units do not matter
    assert set(labels[rows]) == {0, 1, 2, 3}
    np.testing.assert_array_equal(spread_rows(np.zeros((3, 2))), [0])
    assert set(spread_rows(rng.normal(size=(3, 1)))) <= {0, 1, 2}


def test_labels_and_chains_are_told_apart(rng):
    case = random_case(FAMILIES["full"], 3, 2, rng)
    x = case.rows(100, rng)
    draws = jittered(case.mixture, (4, 1000), rng)
    lp = rng.normal(size=(4, 1000))
    healthy = convergence(draws, x, extra={"lp": lp})
    assert healthy.successful
    assert set(healthy.labelled.names) >= {"weights[2]", "means[0, 1]", "scales[2, 0]"}
    assert set(healthy.invariant.names) >= {"log_likelihood", "entropy", "sorted_weights[0]", "lp"}
    np.testing.assert_array_equal(healthy.values["lp"], lp)

    order = np.broadcast_to(np.arange(3), (4, 1000, 3)).copy()
    order[0] = [2, 0, 1]
    switched = convergence(draws.permute(order), x)
    assert switched.labelled.max_r_hat > 1.5
    assert switched.invariant.successful
    assert not switched.successful
    assert switched.summary["r_hat"] == switched.labelled.max_r_hat
    assert switched.summary["r_hat_invariant"] == switched.invariant.max_r_hat

    apart = convergence(draws, x, extra={"lp": lp + 3.0 * (np.arange(4) == 1)[:, None]})
    assert apart.labelled.successful
    assert not apart.invariant.agrees
    table = apart.table
    worst = table["r_hat"].idxmax()
    assert worst == "lp"
    assert bool(table.loc["lp", "invariant"])
    assert not table.loc["means[0, 0]", "invariant"]
    assert apart.summary["ess_tail"] == table["ess_tail"].min()


def test_what_does_not_vary_has_no_r_hat(rng):
    case = random_case(FAMILIES["full"], 1, 2, rng)
    x = case.rows(50, rng)
    found = convergence(jittered(case.mixture, (2, 2000), rng), x)
    names = found.labelled.names + found.invariant.names
    assert "weights[0]" not in names
    assert "entropy" not in names
    assert found.successful
    still = convergence(jax.tree.map(lambda leaf: np.broadcast_to(leaf, (2, 8, *leaf.shape)), case.mixture), x)
    assert still.labelled.names == ()
    assert not still.successful


def test_draws_that_are_not_finite_do_not_agree(rng):
    case = random_case(FAMILIES["full"], 2, 2, rng)
    draws = jittered(case.mixture, (2, 300), rng)
    means = draws.means.copy()
    means[1, 7, 0, 0] = np.nan
    found = convergence(dataclasses.replace(draws, means=means), case.rows(50, rng))
    assert found.labelled.max_r_hat == np.inf
    assert found.invariant.max_r_hat == np.inf
    assert found.invariant.min_ess_tail == 0
    assert not found.successful


def test_chains_that_stand_still_apart_do_not_agree():
    found = chain_diagnostics({"a": np.repeat([[0.0], [1.0]], 50, axis=1)})
    assert found.r_hat[0] > 10
    assert not found.successful


def test_a_single_chain_is_compared_with_itself(rng):
    steady = chain_diagnostics({"a": rng.normal(size=(1, 1000))})
    assert steady.max_r_hat < 1.01
    drifting = chain_diagnostics({"a": rng.normal(size=(1, 1000)) + np.linspace(0, 3, 1000)})
    assert drifting.max_r_hat > 1.1


def test_chains_in_modes_of_their_own(rng):
    values = rng.normal(size=(4, 200))
    assert groups_of_chains({"a": values}) == [(0, 1, 2, 3)]
    apart = values + 6.0 * np.array([0, 1, 0, 1])[:, None]
    assert groups_of_chains({"a": values, "b": apart}) == [(0, 2), (1, 3)]
    # A chain that goes to and fro connects the others.
    apart[0] += 6.0 * (np.arange(200) > 100)
    assert groups_of_chains({"a": values, "b": apart}) == [(0, 1, 2, 3)]
    slow = autoregressive(0.98, (4, 1000), rng)
    assert groups_of_chains({"a": slow}) == [(0, 1, 2, 3)]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_two_modes_of_a_chain_are_found_and_one_is_not_split(share, rng):
    where = rng.random(size=(3, 1000)) < share
    where[1] = False
    values = rng.normal(size=(3, 1000)) + 7.0 * where
    steps = rng.normal(size=(1, 1000)) + 7.0 * (np.arange(1000) < 1000 * share)
    assert chains_with_two_modes({"a": values, "b": steps}) == {"a": [0, 2], "b": [0]}
    unimodal = {
        "normal": rng.normal(size=(4, 1000)),
        "uniform": rng.uniform(size=(4, 1000)),
        "skewed": -rng.gamma(0.5, size=(4, 1000)),
        "heavy": rng.standard_t(2, size=(4, 1000)),
        "overlapping": rng.normal(size=(4, 1000)) + 2.5 * (rng.random(size=(4, 1000)) < share),
        "slow": autoregressive(0.95, (4, 1000), rng),
        "ties": np.maximum(rng.normal(size=(4, 1000)), 0.0),
        "still": np.zeros((4, 1000)),
    }
    assert chains_with_two_modes(unimodal) == {}


def test_bad_arguments(rng):
    case = random_case(FAMILIES["full"], 2, 2, rng)
    x = case.rows(20, rng)
    draws = jittered(case.mixture, (2, 8), rng)
    with pytest.raises(bayesgmm.InputError, match="3 draws of 2 chains are too few for R-hat; draw at least 4 a chain"):
        convergence(draws[:, :3], x)
    with pytest.raises(bayesgmm.InputError, match="7 draws of a single chain are too few for R-hat; draw at least 8"):
        convergence(draws[:1, :7], x)
    for fewest in (draws[:, :4], draws[:1]):
        assert np.isfinite(convergence(fewest, x).summary["r_hat"])
    with pytest.raises(bayesgmm.InputError, match=r"draws have leading axes \(8,\); give those of a Bayesian fit"):
        convergence(draws[0], x)
    with pytest.raises(
        bayesgmm.InputError, match=r"extra 'lp' has shape \(8,\); it must be that of the draws, \(2, 8\)"
    ):
        convergence(draws, x, extra={"lp": np.zeros(8)})
    with pytest.raises(bayesgmm.InputError, match=r"x must have shape \(rows, 2\) like the means"):
        convergence(draws, x[:, :1])
