"""Every finding by its cause and no other: fits made of draws that are healthy but for one thing."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from helpers import DATA, FAMILIES, autoregressive, jittered, random_case

import bayesgmm
from bayesgmm.diagnostics.diagnosis import _TEXTS, _check, diagnose
from bayesgmm.diagnostics.findings import Severity
from bayesgmm.engines.fit import _EXPLANATIONS, Fit, ResultCode, advise
from bayesgmm.engines.registry import ENGINES
from bayesgmm.mixtures.mixture import Mixture

NUM_CHAINS, NUM_DRAWS, NUM_ROWS = 4, 1000, 300
SHAPE = (NUM_CHAINS, NUM_DRAWS)


@pytest.fixture(scope="module")
def case():
    weights, means = np.array([0.4, 0.6]), np.array([[0.0, 0.0], [4.0, 1.0]])
    covariances = np.array([[[1.0, 0.3], [0.3, 1.0]], [[0.5, 0.0], [0.0, 2.0]]])
    one = random_case(FAMILIES["full"], 2, 2, np.random.default_rng(0))
    mixture = bayesgmm.Mixture.from_covariances(weights, means, covariances)
    return dataclasses.replace(one, mixture=mixture, weights=weights, means=means, covariances=covariances)


@pytest.fixture(scope="module")
def x(case):
    return case.rows(NUM_ROWS, np.random.default_rng(1))


@pytest.fixture(scope="module")
def healthy(case):
    """What a sampler that works gives: independent draws, and statistics of NUTS."""
    rng = np.random.default_rng(2)
    stats = {
        "diverging": np.zeros(SHAPE, bool),
        "acceptance_rate": rng.uniform(0.7, 1.0, SHAPE),
        "n_steps": np.full(SHAPE, 7),
        "tree_depth": np.full(SHAPE, 3),
        "energy": rng.normal(size=SHAPE),
        "lp": rng.normal(size=SHAPE),
    }
    return Fit(
        engine="nuts",
        family="full",
        mixture=case.mixture,
        log_likelihood=np.float64(-900.0),
        result=np.int32(0),
        num_steps=np.int32(1500),
        trace=stats["lp"],
        draws=jittered(case.mixture, SHAPE, rng, 0.05),
        sample_stats=stats,
        summary={"r_hat": 1.001, "num_relabelled": 0},
    )


def with_stats(fit, **stats):
    return dataclasses.replace(fit, sample_stats={**fit.sample_stats, **stats})


def with_draws(fit, **fields):
    return dataclasses.replace(fit, draws=dataclasses.replace(fit.draws, **fields))


def with_summary(fit, **summary):
    return dataclasses.replace(fit, summary={**fit.summary, **summary})


def point(fit, engine, mixture=None, code=ResultCode.successful, **changes):
    changes = {"draws": None, "sample_stats": {}, "summary": {}, "result": np.int32(code)} | changes
    return dataclasses.replace(fit, engine=engine, mixture=mixture or fit.mixture, **changes)


def approximation(fit, khat, engine="vi"):
    draws = jax.tree.map(lambda leaf: leaf[:1], fit.draws)
    stats = {"log_p": np.zeros((1, NUM_DRAWS)), "log_q": np.zeros((1, NUM_DRAWS))}
    return dataclasses.replace(
        fit, engine=engine, draws=draws, sample_stats=stats, summary={"khat": khat, "elbo": -950.0}
    )


def only(diagnosis, cause, severity):
    """The diagnosis has one finding, this one; it is given back."""
    assert diagnosis.causes == (cause,), str(diagnosis)
    assert diagnosis.worst is diagnosis[0].severity is Severity[severity]
    return diagnosis[0]


def test_a_healthy_fit_has_no_findings(healthy, x):
    found = diagnose(healthy, x, bayesgmm.default_prior(x, 2))
    assert not found
    assert found.worst is None
    assert list(found) == []
    assert str(found) == "nuts (full, k=2): no problems found"


def test_points_and_approximations_are_healthy_too(healthy, x):
    prior, conjugate = bayesgmm.default_prior(x, 2), bayesgmm.conjugate_prior(x, 2)
    assert not diagnose(point(healthy, "em"), x)
    assert not diagnose(point(healthy, "map"), x, prior)
    assert not diagnose(approximation(healthy, 0.5), x, prior)
    assert not diagnose(approximation(healthy, 0.5, "cavi"), x, conjugate)
    gibbs = dataclasses.replace(healthy, engine="gibbs", sample_stats={"lp": healthy.sample_stats["lp"]})
    assert not diagnose(gibbs, x, conjugate)


@pytest.mark.parametrize(("number", "severity"), [(3, "caution"), (100, "serious")])
def test_divergences(number, severity, healthy, x):
    diverging = np.zeros(SHAPE, bool)
    diverging.flat[:number] = True
    fit = dataclasses.replace(with_stats(healthy, diverging=diverging), result=np.int32(ResultCode.divergent))
    assert only(diagnose(fit, x), "divergences", severity).detail.startswith(f"{number} of 4000 draws")


def test_tree_depth(healthy, x):
    depth = healthy.sample_stats["tree_depth"].copy()
    depth[2, :40] = 10
    found = only(diagnose(with_stats(healthy, tree_depth=depth), x), "tree depth", "note")
    assert found.detail.startswith("1 % of the draws hit the tree-depth limit, 10")
    assert not diagnose(with_stats(healthy, tree_depth=np.minimum(depth, 9)), x)
    shallow = dataclasses.replace(healthy, summary={**healthy.summary, "max_tree_depth": 2})
    found = only(diagnose(with_stats(shallow, tree_depth=np.full(SHAPE, 2)), x), "tree depth", "note")
    assert found.detail.startswith("100 % of the draws hit the tree-depth limit, 2")
    deep = dataclasses.replace(healthy, summary={**healthy.summary, "max_tree_depth": 12})
    assert not diagnose(with_stats(deep, tree_depth=depth), x)


def test_e_bfmi_against_its_formula(healthy, x, rng):
    for phi, is_low in ((0.75, False), (0.95, True)):
        energy = healthy.sample_stats["energy"].copy()
        energy[1] = 300.0 + 5.0 * autoregressive(phi, (1, NUM_DRAWS), rng)[0]
        steps = np.square(energy[1][1:] - energy[1][:-1]).sum()
        expected = steps / np.square(energy[1] - energy[1].mean()).sum()
        assert (expected < 0.3) == is_low
        found = diagnose(with_stats(healthy, energy=energy), x)
        if is_low:
            assert f"E-BFMI is {expected:.2f}, below 0.3, in chain 1:" in only(found, "E-BFMI", "caution").detail
        else:
            assert not found


def test_chains_that_disagree(healthy, x):
    """R-hat above 1.01 of four chains goes with fewer than 400 effective draws; the reverse is the next test."""
    for shift, severity in ((0.5, "caution"), (1.5, "serious")):
        lp = healthy.sample_stats["lp"] + shift * (np.arange(4) == 2)[:, None]
        found = diagnose(with_stats(healthy, lp=lp), x)
        assert set(found.causes) == {"R-hat", "effective draws"}
        assert found.worst is Severity[severity]
        r_hat = next(finding for finding in found if finding.cause == "R-hat")
        assert "(lp), and above 1.01 for 1 of " in r_hat.detail
        same = dataclasses.replace(with_stats(healthy, lp=lp), result=np.int32(ResultCode.not_mixed))
        assert diagnose(same, x).causes == found.causes  # the result code says nothing else


def test_few_effective_draws(healthy, x, rng):
    """Autocorrelated chains whose halves have the same mean and spread agree, and are worth little."""
    halves = autoregressive(0.9, (8, NUM_DRAWS // 2), rng)
    halves = (halves - halves.mean(1, keepdims=True)) / halves.std(1, keepdims=True)
    lp = halves.reshape(SHAPE)
    found = only(diagnose(with_stats(healthy, lp=lp), x), "effective draws", "caution").detail
    assert "for the bulk of lp" in found
    assert "400 are needed" in found


def test_few_effective_draws_of_the_tails(healthy, x, rng):
    """Stretches of a wide and of a narrow distribution, the same in both halves of all chains: the bulk is fine."""
    wide = np.tile(np.arange(NUM_DRAWS // 2) < NUM_DRAWS // 10, 2)
    lp = rng.permuted(np.tile(np.linspace(-3, 3, NUM_DRAWS), (NUM_CHAINS, 1)), axis=1)
    lp = np.where(wide, lp, 0.2 * lp)
    found = only(diagnose(with_stats(healthy, lp=lp), x), "effective draws", "caution").detail
    assert "for the tail of lp" in found
    assert "bulk" not in found


def test_chains_stuck_in_modes_of_their_own(healthy, x):
    means = healthy.draws.means.copy()
    means[[0, 3]] += [1.5, 0.0]
    found = only(diagnose(with_draws(healthy, means=means), x), "several modes", "serious").detail
    assert found.startswith("chains 0, 3 (log-likelihood -")
    assert " and chains 1, 2 (log-likelihood -" in found


def test_chains_that_move_between_modes(healthy, x, rng):
    means = healthy.draws.means.copy()
    means[..., 0, 0] += np.where(rng.random(SHAPE) < 0.4, 1.5, 0.0)
    found = only(diagnose(with_draws(healthy, means=means), x), "several modes", "caution").detail
    assert found.startswith("chains 0, 1, 2, 3 moved between two modes: two peaks of ")


def test_labels_are_told_from_chains(healthy, x):
    order = np.broadcast_to([0, 1], (*SHAPE, 2)).copy()
    order[0] = [1, 0]
    fit = dataclasses.replace(healthy, draws=healthy.draws.permute(order), result=np.int32(ResultCode.not_mixed))
    found = only(diagnose(with_summary(fit, num_relabelled=1000), x), "labels", "caution").detail
    assert "relabelled draws, 25 % of which were relabelled, but 1.0" in found
    unknown = dataclasses.replace(fit, summary={})
    prior = bayesgmm.default_prior(x, 2, mean_scale=2.0)  # little more than the spread that switching makes
    assert "of which" not in only(diagnose(unknown, x, prior), "labels", "caution").detail
    # Where no draw was ever relabelled it cannot be the labels.
    assert set(diagnose(with_summary(fit, num_relabelled=0), x).causes) == {"R-hat", "effective draws"}


def test_switched_labels_that_were_put_right(healthy, x):
    found = only(diagnose(with_summary(healthy, num_relabelled=800), x), "label switching", "note").detail
    assert found.startswith("the components of 20 % of the draws")
    assert not diagnose(with_summary(healthy, num_relabelled=100), x)
    shifted = with_draws(healthy, means=healthy.draws.means + 0.05 * (np.arange(4) == 2)[:, None, None, None])
    assert set(diagnose(with_summary(shifted, num_relabelled=800), x).causes) == {"R-hat", "effective draws"}


def test_a_chain_that_stands_still(healthy, x):
    draws = jax.tree.map(np.array, healthy.draws)
    for leaf in jax.tree.leaves(draws):
        leaf[1, 300:] = leaf[1, 300]
    still = dataclasses.replace(healthy, draws=draws, result=np.int32(ResultCode.not_mixed))
    assert only(diagnose(still, x), "stuck chain", "serious").detail == "chain 1 of 4 hardly moved"
    rate = healthy.sample_stats["acceptance_rate"].copy()
    rate[[0, 2]] = 0.0
    assert (
        "chains 0, 2 of 4"
        in only(diagnose(with_stats(healthy, acceptance_rate=rate), x), "stuck chain", "serious").detail
    )
    assert only(diagnose(with_stats(healthy, acceptance_rate=0 * rate), x), "stuck chain", "serious")


def test_one_chain(healthy, x):
    one = dataclasses.replace(
        healthy,
        draws=healthy.draws[:1],
        sample_stats={name: value[:1] for name, value in healthy.sample_stats.items()},
    )
    only(diagnose(one, x), "one chain", "note")


def test_k_hat_is_told_with_the_digits_that_exceed_the_limit(healthy, x):
    (finding,) = diagnose(approximation(healthy, 0.669), x)
    assert "k-hat is 0.669, above 0.667" in finding.detail


@pytest.mark.parametrize(
    ("khat", "severity"), [(0.66, None), (0.68, "caution"), (0.9, "caution"), (1.1, "serious"), (np.inf, "serious")]
)
def test_k_hat(khat, severity, healthy, x):
    """Of 1,000 draws it may be 1 - 1/3."""
    found = diagnose(approximation(healthy, khat), x)
    if severity is None:
        assert not found
    else:
        assert f"k-hat is {khat:.2f}, above 0.67" in only(found, "k-hat", severity).detail


def test_k_hat_of_many_draws(healthy, x):
    many = jax.tree.map(lambda leaf: leaf.reshape(1, -1, *leaf.shape[2:]), healthy.draws)
    for khat, causes in ((0.69, ()), (0.71, ("k-hat",))):
        assert diagnose(dataclasses.replace(approximation(healthy, khat), draws=many), x).causes == causes


def with_small_weight(fit, expected, rng):
    """Component 1 holds so many rows, give or take a half."""
    small = expected / NUM_ROWS * np.exp(0.3 * rng.normal(size=SHAPE))
    return with_draws(fit, log_weights=np.log(np.stack([1 - small, small], axis=-1)))


def test_empty_component(healthy, x, rng):
    found = only(diagnose(with_small_weight(healthy, 0.8, rng), x), "empty component", "caution").detail
    assert found.startswith("component 1 holds less than one of 300 rows in 7")
    both = np.log([[0.999, 0.001], [0.001, 0.999]])[np.arange(NUM_DRAWS) % 2]
    both = np.broadcast_to(both, (*SHAPE, 2)) + 1e-3 * rng.normal(size=(*SHAPE, 2))
    assert "components 0, 1 hold less" in str(diagnose(approximation(with_draws(healthy, log_weights=both), 0.1), x))


def test_few_rows(healthy, x, rng):
    found = only(diagnose(with_small_weight(healthy, 2.5, rng), x), "few rows", "note").detail
    assert found.startswith("component 1 holds fewer rows than the 3 that a covariance needs in 7")
    assert not diagnose(with_small_weight(healthy, 12.0, rng), x)
    mixture = dataclasses.replace(healthy.mixture, log_weights=np.log([0.995, 0.005]))
    only(diagnose(point(healthy, "em", mixture), x), "few rows", "caution")
    only(diagnose(point(healthy, "em", mixture, prior_given=True), x), "few rows", "note")
    only(diagnose(point(healthy, "map", mixture), x), "few rows", "note")
    shared = dataclasses.replace(mixture, precision_factor=mixture.precision_factor[:1])
    assert not diagnose(dataclasses.replace(point(healthy, "em", shared), family="tied"), x)


@pytest.mark.parametrize("family", ["full", "diag"])
def test_narrow_component(family, healthy, x):
    """Narrow is measured against the data in the same direction: columns in other units, or in line, do not matter."""
    covariances = {"full": np.stack([np.eye(2)] * 2), "diag": np.ones((2, 2))}[family]
    spike = covariances.copy()
    spike[1] *= 1e-8
    units = np.array([1e6, 1e-6])
    for scale in (np.ones(2), units):
        by = np.outer(scale, scale) if family == "full" else scale**2
        for covariance, causes in ((covariances, ()), (spike, ("narrow component",))):
            mixture = bayesgmm.Mixture.from_covariances([0.5, 0.5], [[0.0, 0.0], [4.0, 1.0]] * scale, covariance * by)
            fit = dataclasses.replace(point(healthy, "em", mixture), family=family)
            assert diagnose(fit, x * scale).causes == causes
    collapsed = dataclasses.replace(fit, result=np.int32(ResultCode.collapsed))
    only(diagnose(collapsed, x * units), "collapsed", "serious")


def test_prior_that_decides(healthy, x):
    """Draws have a standard deviation of 0.05 in means and log scales."""

    def about(fit, **numbers):
        found = diagnose(fit, x, bayesgmm.default_prior(x, 2, **numbers))
        return only(found, "prior", "caution").detail if found else None

    assert "means of components 0, 1 (up to 0.8" in about(healthy, mean_scale=0.06)
    assert about(healthy, mean_scale=0.1) is None
    assert "scales of components 0, 1 (up to 0.8" in about(healthy, scale_sigma=0.06)
    assert about(healthy, scale_sigma=0.1) is None
    assert "weights (it counts for 400 rows, the data for 300)" in about(healthy, concentration=200.0)
    assert about(healthy, concentration=100.0) is None
    assert about(point(healthy, "map"), mean_scale=0.01) is None  # a point has no spread
    draws = healthy.draws
    wide = dataclasses.replace(
        draws, precision_factor=draws.precision_factor * np.exp(np.random.default_rng(3).normal(size=(*SHAPE, 1, 1, 1)))
    )
    # Prior standard deviations of log scales: pi / sqrt(8) of a half-normal, and 2.58 where a = 2, g = 0.2.
    for kind, causes in (("half_normal", ("prior",)), ("hierarchical", ())):
        prior = bayesgmm.default_prior(x, 2, scale_prior=kind)
        assert diagnose(approximation(dataclasses.replace(healthy, draws=wide), 0.1), x, prior).causes == causes


@pytest.mark.parametrize(
    ("numbers", "how"),
    [({"stick_breaking": True}, "place in the stick"), ({"concentration": [1.0, 2.0]}, "concentrations")],
)
def test_a_prior_that_distinguishes_the_components_of_relabelled_draws(numbers, how, healthy, x):
    prior = bayesgmm.conjugate_prior(x, 2, **numbers)
    assert diagnose(healthy, x, prior).causes == ()
    relabelled = dataclasses.replace(healthy, summary={**healthy.summary, "num_relabelled": 1})
    finding = only(diagnose(relabelled, x, prior), "labels of the prior", "caution")
    assert how in finding.detail
    # The prior density of the draws is then not the one they were drawn with, and no sensitivity is made of it.
    tree = bayesgmm.to_datatree(relabelled, x, prior=prior, key=jax.random.key(0))
    with pytest.raises(bayesgmm.InputError, match="1 draws that were renumbered under a prior that distinguishes"):
        bayesgmm.prior_sensitivity(tree)
    assert diagnose(relabelled, x, prior, tree=tree).causes == ("labels of the prior",)


def test_conjugate_prior_that_decides(healthy, x):
    """Components hold 120 and 180 rows."""

    def about(**numbers):
        found = diagnose(healthy, x, bayesgmm.conjugate_prior(x, 2, **numbers))
        return only(found, "prior", "caution").detail if found else None

    assert about(shrinkage=100.0, dof=100.0) is None
    assert "means of component 0 (it counts for 150 rows, the data for as few as 1.2e+02)" in about(shrinkage=150.0)
    assert "covariances of components 0, 1 (it counts for 200 rows" in about(dof=200.0)
    shared = dataclasses.replace(
        point(healthy, "em"),
        family="tied",
        mixture=dataclasses.replace(healthy.mixture, precision_factor=healthy.mixture.precision_factor[:1]),
    )
    prior = bayesgmm.conjugate_prior(x, 2, "tied", dof=200.0)
    assert not diagnose(shared, x, prior)
    prior = bayesgmm.conjugate_prior(x, 2, "tied", dof=400.0)
    assert "for covariances (it counts for 400" in only(diagnose(shared, x, prior), "prior", "caution").detail


@pytest.mark.parametrize("code", [code for code in ResultCode if code is not ResultCode.successful])
def test_every_result_code_is_told_of(code, healthy, x):
    engine = "nuts" if code in (ResultCode.not_mixed, ResultCode.divergent) else "em"
    fit = point(healthy, engine, code=code)
    found = diagnose(fit, x)
    assert found.causes == (code.name.replace("_", " "),)
    assert f"{found[0].detail}; {found[0].advice}" == fit.explanation
    assert found.worst >= Severity.caution


def test_draws_that_are_not_finite(healthy, x):
    means = healthy.draws.means.copy()
    means[0, :40] = np.nan
    fit = dataclasses.replace(with_draws(healthy, means=means), result=np.int32(ResultCode.nonfinite))
    found = only(diagnose(fit, x, bayesgmm.default_prior(x, 2)), "not finite", "serious")
    assert found.detail == "1 % of the draws are infinite or NaN"
    mixture = dataclasses.replace(healthy.mixture, means=np.full((2, 2), np.inf))
    only(diagnose(point(healthy, "em", mixture), x), "not finite", "serious")
    nothing = dataclasses.replace(healthy.mixture, log_weights=np.array([0.0, -np.inf]))
    only(diagnose(point(healthy, "em", nothing), x), "empty component", "caution")  # a weight of 0 is a number


def test_sensitivity_to_the_power_of_the_prior(healthy, x, key):
    for mean_scale, causes in ((50.0, ()), (0.3, ("prior sensitivity",))):
        prior = bayesgmm.default_prior(x, 2, mean_scale=mean_scale)
        tree = bayesgmm.to_datatree(healthy, x, prior=prior, key=key)
        assert diagnose(healthy, x, prior, tree=tree).causes == causes
    without = tree.filter(lambda node: node.name != "log_prior")
    with pytest.raises(bayesgmm.InputError, match="tree has no group log_prior"):
        diagnose(healthy, x, tree=without)


def test_the_list_is_sorted_and_reads_well(healthy, x, rng):
    diverging = np.zeros(SHAPE, bool)
    diverging[0, 0] = True
    lp = healthy.sample_stats["lp"] + 1.5 * (np.arange(4) == 2)[:, None]
    depth = np.full(SHAPE, 10)
    found = diagnose(with_stats(healthy, diverging=diverging, lp=lp, tree_depth=depth), x)
    assert found.causes == ("R-hat", "divergences", "effective draws", "tree depth")
    lines = str(found).splitlines()
    assert lines[0] == "nuts (full, k=2): 4 findings"
    assert lines[1].startswith("serious   R-hat: the chains disagree")
    assert [line[:10].strip() for line in lines[1:] if line[0] != " "] == ["serious", "caution", "caution", "note"]
    assert sum(line.strip().startswith("try: ") for line in lines) == 4
    assert max(map(len, lines)) <= 100
    words = " ".join(str(found).split())
    assert all(finding.advice in words for finding in found)


def test_bad_arguments(healthy, x, key):
    three = dataclasses.replace(healthy, draws=healthy.draws[:, :3], sample_stats={})
    with pytest.raises(bayesgmm.InputError, match="3 draws of 4 chains are too few for R-hat; draw at least 4 a chain"):
        diagnose(three, x)
    assert not diagnose(approximation(three, -1.0), x)  # which has no chains
    several = dataclasses.replace(point(healthy, "em"), result=np.zeros(5, np.int32))
    with pytest.raises(bayesgmm.InputError, match="fit holds 5 fits; diagnose them one by one"):
        diagnose(several, x)
    with pytest.raises(bayesgmm.InputError, match=r"x must have shape \(rows, 2\)"):
        diagnose(healthy, x[:, :1])
    with pytest.raises(bayesgmm.InputError, match="prior is for k=3 components of 2 features"):
        diagnose(healthy, x, bayesgmm.default_prior(x, 3))
    with pytest.raises(bayesgmm.InputError, match="prior is 'flat', which is no prior"):
        _check(healthy, x, "flat")


def test_real_fits_are_healthy(key):
    rows = DATA["faithful"]
    prior = bayesgmm.default_prior(rows, 2)
    em = bayesgmm.fit_em(rows, 2, key=key)
    nuts = bayesgmm.fit_nuts(rows, 2, key=key, start=em.mixture, prior=prior)
    for fit in (em, bayesgmm.fit_map(rows, 2, key=key, start=em.mixture, prior=prior), nuts):
        assert not diagnose(fit, rows, prior), str(diagnose(fit, rows, prior))


def test_em_with_too_many_components_is_told_of(key):
    rows = np.concatenate([DATA["galaxies"], np.full((3, 1), 50_000.0)])
    fit = bayesgmm.fit_em(rows, 5, key=key, on_failure="ignore")
    assert diagnose(fit, rows).worst is Severity.serious


@pytest.mark.slow
def test_too_many_components_under_a_flat_prior_are_told_of(key):
    rows = DATA["faithful"]
    prior = bayesgmm.default_prior(rows, 3, concentration=0.1)
    found = diagnose(bayesgmm.fit_nuts(rows, 3, key=key, prior=prior, on_failure="ignore"), rows, prior)
    assert {"R-hat", "several modes"} & set(found.causes)
    assert "empty component" in found.causes


def test_no_fit_is_advised_what_it_has_or_cannot_have(healthy):
    """Every text of a code or a finding, for fits by every engine, of every family, size and precision."""
    several = ("labels", "coincident components", "higher maximum", "empty component")  # are of two components at least
    texts = [text.rpartition("; ")[2] for text in _EXPLANATIONS.values()]
    texts += [words["advice"] for cause, words in _TEXTS.items() if cause not in several]
    assert not any("[" in text for text in map(advise, texts))
    for text in texts:
        # Names of Python are no help to a user of the command line, nor values of one engine's settings to another.
        assert not any(word in advise(text) for word in ("=", "num_draws", "full_rank", "fit_", ".mixture"))
        for engine, k, family, dtype in itertools.product(ENGINES, (1, 2), FAMILIES, (np.float32, np.float64)):
            if engine == "kmeans":
                continue
            mixture = Mixture(np.zeros(k, dtype), np.zeros((k, 2), dtype), np.ones((1, 2), dtype))
            words = advise(text, dataclasses.replace(healthy, engine=engine, family=family, mixture=mixture))
            assert "[" not in words
            assert "|" not in words
            assert dtype is np.float32 or "float64" not in words
            assert k > 1 or "fewer components" not in words
            assert family != "tied_spherical" or "more restricted" not in words
            assert engine == "em" or ("reg_covar" not in words and "with a prior" not in words)
            assert engine != "em" or "guide" not in words


@pytest.mark.parametrize("family", ["full", "tied"])
def test_columns_in_line_are_named_by_the_fit_itself(family, rng, key):
    x = rng.normal(size=(200, 2))
    x = np.column_stack([x, x.sum(1)]).astype(np.float32)
    with pytest.warns(
        bayesgmm.FitWarning, match=r"column '\d' is a linear combination of '\d', '\d'; leave one of them"
    ):
        bayesgmm.fit_em(x, 2, family=family, key=key, num_restarts=2)
