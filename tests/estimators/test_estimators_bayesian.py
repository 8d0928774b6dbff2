"""BayesianGaussianMixture: scikit-learn's coordinate ascent, the engines behind it, posteriors behind its methods."""

import functools
import pickle

import jax
import numpy as np
import pandas as pd
import pytest
import sklearn.mixture
from helpers import DATA, each_sklearn_family
from scipy import special, stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.utils._param_validation import InvalidParameterError

import bayesgmm
from bayesgmm import BayesianGaussianMixture, InputError, conjugate_prior, default_prior
from bayesgmm.engines.fit import ResultCode

X = DATA["faithful"]
OPTIONS = {
    "cavi": {"num_draws": 200},
    "gibbs": {"num_warmup": 100, "num_draws": 300, "num_chains": 2, "checkpoint": False},
    "map": {},
    "vi": {"num_draws": 300},
    "nuts": {"num_warmup": 150, "num_draws": 500, "num_chains": 2, "checkpoint": False},
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("map", "vi", "nuts")]
each_inference = pytest.mark.parametrize("inference", ["cavi", "gibbs", *SLOW])
each_inference_slowly = pytest.mark.parametrize(
    "inference", ["cavi", pytest.param("gibbs", marks=pytest.mark.slow), *SLOW]
)


@functools.cache
def fitted(inference, dtype=np.float64):
    """Two components on Old Faithful, for the tests that change nothing."""
    return BayesianGaussianMixture(
        n_components=2, inference=inference, random_state=0, engine_options=OPTIONS[inference]
    ).fit(X.astype(dtype))


# Scikit-learn's class


@pytest.mark.filterwarnings("ignore:Best performing")
@pytest.mark.parametrize("name", ["faithful", "iris"])
@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_same_seed_gives_scikit_learns_posterior(name, tol):
    options = {
        "n_components": 3,
        "init_params": "kmeans",
        "random_state": 1,
        "reg_covar": 0,
        "weight_concentration_prior_type": "dirichlet_distribution",
        "tol": tol,
        "max_iter": 500 if tol else 25,
    }
    theirs = sklearn.mixture.BayesianGaussianMixture(**options).fit(DATA[name])
    ours = BayesianGaussianMixture(**options).fit(DATA[name])
    for attribute in ("weights_", "means_", "covariances_", "precisions_", "mean_precision_", "degrees_of_freedom_"):
        mine, other = getattr(ours, attribute), getattr(theirs, attribute)
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6 * np.abs(other).max(), err_msg=attribute)
    np.testing.assert_allclose(ours.weight_concentration_, theirs.weight_concentration_, rtol=1e-6)
    np.testing.assert_allclose(ours.covariance_prior_, theirs.covariance_prior_, rtol=1e-12)
    np.testing.assert_allclose(ours.mean_prior_, theirs.mean_prior_, rtol=1e-12)
    assert ours.degrees_of_freedom_prior_ == theirs.degrees_of_freedom_prior_
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    # Their bound lacks constants.
    differences = np.asarray(ours.lower_bounds_) - np.asarray(theirs.lower_bounds_)
    assert np.ptp(differences) < 1e-8 * abs(theirs.lower_bound_)
    assert ours.lower_bound_ == ours.lower_bounds_[-1] == ours.fit_.summary["elbo"]
    np.testing.assert_allclose(ours.predict_proba(DATA[name]), theirs.predict_proba(DATA[name]), atol=1e-6)
    np.testing.assert_array_equal(ours.labels_, theirs.predict(DATA[name]))


@pytest.mark.filterwarnings("ignore:Best performing")
@each_sklearn_family
def test_same_responsibilities_give_scikit_learns_numbers_in_every_family(family):
    """After one step; later ones differ, for its expected log-determinants are those of full matrices always."""
    covariances = {"full": np.eye(2), "tied": 2 * np.eye(2), "diag": [1.0, 9.0], "spherical": 4.0}
    options = {
        "n_components": 2,
        "covariance_type": family.name,
        "init_params": "kmeans",
        "random_state": 0,
        "reg_covar": 0,
        "max_iter": 1,
        "covariance_prior": covariances[family.name],
        "weight_concentration_prior_type": "dirichlet_distribution",
        "degrees_of_freedom_prior": 3.5,
    }
    x = X + 1000.0 * (X[:, :1] > 3)  # so far apart that responsibilities are 0 and 1
    theirs = sklearn.mixture.BayesianGaussianMixture(**options).fit(x)
    ours = BayesianGaussianMixture(**options).fit(x)
    for attribute in ("means_", "covariances_", "degrees_of_freedom_", "mean_precision_", "weights_"):
        mine, other = np.asarray(getattr(ours, attribute)), np.asarray(getattr(theirs, attribute))
        assert mine.shape == other.shape, attribute
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6 * np.abs(other).max(), err_msg=attribute)


def test_dirichlet_process_is_the_default_and_leaves_components_empty():
    fit = BayesianGaussianMixture(n_components=6, weight_concentration_prior=0.01, random_state=0, max_iter=500).fit(X)
    assert (fit.weights_ > 0.01).sum() == 2
    a, b = fit.weight_concentration_
    assert b[-1] == 0
    share = a / (a + b)
    np.testing.assert_allclose(fit.weights_, share * np.append(1.0, (1 - share[:-1]).cumprod()), rtol=1e-10)
    assert fit.prior_.stick_breaking
    plain = clone(fit).set_params(weight_concentration_prior_type="dirichlet_distribution").fit(X)
    assert not plain.prior_.stick_breaking
    concentration = plain.weight_concentration_
    np.testing.assert_allclose(plain.weights_, concentration / concentration.sum(), rtol=1e-12)


def test_a_dirichlet_process_cut_off_too_early_is_reported():
    with pytest.warns(
        bayesgmm.FitWarning, match=r"weight_concentration_prior=100000 .* n_components=3: .* 100 % of it"
    ):
        fit = BayesianGaussianMixture(n_components=3, weight_concentration_prior=1e5, random_state=0).fit(X)
    assert "prior" in bayesgmm.diagnose(fit.fit_, X, fit.prior_).causes
    assert fit.prior_.truncated_share == pytest.approx((1e5 / (1e5 + 1)) ** 2)


# A posterior behind the same methods


@each_inference_slowly
def test_density_integrates_to_one_and_is_that_of_samples(inference):
    fit = fitted(inference)
    low, high = X.min(0) - 6 * X.std(0), X.max(0) + 6 * X.std(0)
    grid = [np.linspace(a, b, 128) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = np.prod([axis[1] - axis[0] for axis in grid])
    density = np.exp(fit.score_samples(points)) * cell
    assert density.sum() == pytest.approx(1.0, abs=5e-3)
    rows, labels = fit.sample(8000)
    assert rows.shape == (8000, 2)
    assert (np.diff(labels) >= 0).all()
    np.testing.assert_allclose(np.bincount(labels, minlength=2) / 8000, fit.weights_, atol=0.03)
    mean = density @ points
    assert (np.abs(rows.mean(0) - mean) < 5 * rows.std(0) / np.sqrt(8000) + 0.01 * X.std(0)).all()
    # The density of samples: their mean log-density is that of the density itself.
    expected = density[density > 0] @ np.log(density[density > 0] / cell)
    found = fit.score_samples(rows)
    assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(8000) + 0.01


@pytest.mark.parametrize("inference", ["gibbs", pytest.param("nuts", marks=pytest.mark.slow)])
def test_scores_are_averages_over_draws(inference):
    fit = fitted(inference)
    draws = fit.fit_.draws
    x = X[::40]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), draws)
    log_prob = np.stack([flat[index].log_prob(x) for index in range(len(flat.means))])
    expected = special.logsumexp(log_prob, axis=0) - np.log(len(log_prob))
    np.testing.assert_allclose(fit.score_samples(x), expected, rtol=1e-10)
    shares = np.mean([flat[index].responsibilities(x) for index in range(len(flat.means))], axis=0)
    np.testing.assert_allclose(fit.predict_proba(x), shares, atol=1e-12)
    np.testing.assert_allclose(fit.means_, np.asarray(draws.means).mean((0, 1)), rtol=1e-10)
    np.testing.assert_allclose(fit.weights_, np.asarray(draws.weights).mean((0, 1)), rtol=1e-10)


def test_scores_of_coordinate_ascent_are_student_densities():
    x = DATA["galaxies"]
    fit = BayesianGaussianMixture(n_components=1, random_state=0).fit(x)
    nu, kappa, m = fit.degrees_of_freedom_[0], fit.mean_precision_[0], fit.means_[0, 0]
    scale = np.sqrt(fit.covariances_[0, 0, 0] * (1 + 1 / kappa))
    np.testing.assert_allclose(fit.score_samples(x), stats.t(nu, m, scale).logpdf(x[:, 0]), rtol=1e-10)


@each_inference_slowly
def test_tree_is_that_of_the_functional_core(inference):
    frame = pd.DataFrame(X, columns=["eruptions", "waiting"])
    fit = fitted(inference)
    tree = fit.datatree_
    assert fit.datatree_ is tree
    posterior = tree.posterior
    assert dict(posterior.sizes)["cluster"] == 2
    assert tree.attrs["engine"] == inference
    mean = np.asarray(posterior["means"].mean(("chain", "draw")))
    error = 6 * np.asarray(posterior["means"].std(("chain", "draw"))) / np.sqrt(posterior["means"][..., 0, 0].size)
    assert (np.abs(mean - fit.means_) < error + 1e-6).all()
    if inference == "cavi":
        named = BayesianGaussianMixture(n_components=2, random_state=0, engine_options=OPTIONS["cavi"]).fit(frame)
        assert list(np.asarray(named.datatree_.posterior["feature"])) == ["eruptions", "waiting"]
        assert named.datatree_.posterior.sizes["draw"] == 200
        assert bayesgmm.loo(named.datatree_).num_bad >= 0
        first = named.datatree_
        assert named.fit(frame).datatree_ is not first
        with pytest.raises(InputError, match="fit without sample_weight"):
            named.fit(X, sample_weight=np.ones(len(X))).datatree_  # noqa: B018
        with pytest.raises(InputError, match=r"needs the rows.*bayesgmm.to_datatree\(estimator.fit_, X"):
            pickle.loads(pickle.dumps(named)).datatree_  # noqa: B018


@each_inference
def test_engine_and_precision(inference):
    fit = fitted(inference)
    assert fit.fit_.engine == inference
    assert fit.converged_ == (fit.fit_.code is ResultCode.successful)
    assert fit.n_iter_ >= 1
    climbs = inference in ("cavi", "map", "vi")
    assert np.isfinite(fit.lower_bound_) == climbs
    assert len(fit.lower_bounds_) == (fit.n_iter_ if climbs else 0)
    assert fit.labels_.dtype == np.int64
    np.testing.assert_array_equal(fit.labels_, fit.predict(X))
    start = bayesgmm.fit_em(X, 2, key=jax.random.key(0)).mixture
    labels = np.asarray(start.predict(X))  # by their means; under a stick-breaking prior the larger one comes first
    np.testing.assert_array_equal(fit.labels_, 1 - labels if inference == "cavi" else labels)
    kind = bayesgmm.ConjugatePrior if inference in ("cavi", "gibbs") else bayesgmm.WeaklyInformativePrior
    assert isinstance(fit.prior_, kind)


@pytest.mark.parametrize("inference", ["cavi", pytest.param("gibbs", marks=pytest.mark.slow)])
def test_float32_stays_float32(inference):
    fit = fitted(inference, np.float32)
    x = X.astype(np.float32)
    for found in (fit.means_, fit.covariances_, fit.predict_proba(x), fit.score_samples(x), fit.sample(3)[0]):
        assert found.dtype == np.float32
    np.testing.assert_allclose(fit.means_, fitted(inference).means_, rtol=1e-2)


# Weights, priors, going on


def test_weight_two_is_the_row_twice(rng):
    weights = rng.integers(0, 3, len(X))
    repeated = np.repeat(X, weights, axis=0)
    for prior_type in ("dirichlet_process", "dirichlet_distribution"):
        model = BayesianGaussianMixture(
            n_components=3,
            init_params="hierarchical",
            weight_concentration_prior_type=prior_type,
            tol=1e-7,
            max_iter=900,
        )
        weighted, rows = clone(model).fit(X, sample_weight=weights), clone(model).fit(repeated)
        assert weighted.lower_bound_ == pytest.approx(rows.lower_bound_, rel=1e-9)
        np.testing.assert_allclose(weighted.means_, rows.means_, rtol=1e-4)
        np.testing.assert_allclose(weighted.covariance_prior_, rows.covariance_prior_, rtol=1e-10)


def test_priors_by_name_and_by_value():
    options = {"n_components": 2, "random_state": 0}
    prior = conjugate_prior(X, 2)
    named = BayesianGaussianMixture(prior="conjugate", **options).fit(X)
    given = BayesianGaussianMixture(prior=prior, **options).fit(X)
    np.testing.assert_array_equal(named.means_, given.means_)
    assert not hasattr(named, "mean_prior_")
    functional = bayesgmm.fit_cavi(X, 2, prior=prior, key=jax.random.key(0), tol=1e-9)
    assert given.lower_bound_ == pytest.approx(functional.summary["elbo"], abs=0.05)


@pytest.mark.slow
def test_priors_of_the_mode():
    """`default_prior` unless numbers of the conjugate one are given, or it is asked for."""
    options = {"n_components": 2, "random_state": 0, "inference": "map"}
    weak = BayesianGaussianMixture(**options).fit(X)
    same = BayesianGaussianMixture(prior="weakly_informative", **options).fit(X)
    np.testing.assert_allclose(weak.means_, same.means_, rtol=1e-9)
    conjugate = BayesianGaussianMixture(mean_precision_prior=0.5, **options).fit(X)
    assert isinstance(conjugate.prior_, bayesgmm.ConjugatePrior)
    assert conjugate.weight_concentration_prior_ == 1.0
    by_em = bayesgmm.GaussianMixture(2, prior=conjugate.prior_, random_state=0, tol=1e-12, max_iter=3000).fit(X)
    np.testing.assert_allclose(conjugate.means_, by_em.means_, rtol=1e-4)


def test_columns_that_are_sums_of_others_have_a_prior_of_variances():
    x = np.column_stack([X, X.sum(1)])
    fit = BayesianGaussianMixture(n_components=2, random_state=0, max_iter=500).fit(x)
    np.testing.assert_allclose(fit.covariance_prior_, np.diag(x.var(0, ddof=1)), rtol=1e-9)
    np.testing.assert_array_equal(fit.labels_, BayesianGaussianMixture(n_components=2, random_state=0).fit(X).labels_)


def test_n_init_keeps_the_highest_bound():
    one, many = (
        BayesianGaussianMixture(n_components=5, n_init=n_init, random_state=3, max_iter=400).fit(DATA["iris"])
        for n_init in (1, 6)
    )
    assert many.lower_bound_ >= one.lower_bound_ - 1e-3


@pytest.mark.filterwarnings("ignore:Best performing")
def test_warm_start_goes_on_and_verbose_tells(capsys):
    options = {"n_components": 3, "init_params": "kmeans", "random_state": 0, "tol": 0}
    whole = BayesianGaussianMixture(max_iter=9, verbose=2, verbose_interval=4, **options).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[:-1]] == ["Initialization 0", "  Iteration 4", "  Iteration 8"]
    change = whole.lower_bounds_[3] - whole.lower_bounds_[2]
    assert f"ll change {change:.5f}" in lines[1]
    assert f"lower bound {whole.lower_bound_:.5f}" in lines[-1]
    parts = BayesianGaussianMixture(max_iter=3, warm_start=True, **options)
    for _ in range(3):
        parts.fit(X)
    assert capsys.readouterr().out == ""
    assert parts.lower_bound_ == pytest.approx(whole.lower_bound_, rel=1e-12)
    np.testing.assert_allclose(parts.means_, whole.means_, rtol=1e-9)
    with pytest.raises(InputError, match=r"warm_start=True goes on from 3 components .*but n_components=2"):
        parts.set_params(n_components=2).fit(X)


@pytest.mark.slow
def test_engines_tell_and_go_on(capsys):
    fit = BayesianGaussianMixture(
        n_components=2,
        inference="gibbs",
        random_state=0,
        warm_start=True,
        verbose=1,
        verbose_interval=1,
        engine_options=OPTIONS["gibbs"],
    ).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gibbs: 4 starts by EM"
    assert any("of 400" in line for line in lines)
    fit.fit(X)
    assert capsys.readouterr().out.splitlines()[0] == "gibbs: 1 starts by EM"


def test_not_converged_is_told():
    with pytest.warns(ConvergenceWarning, match=r"did not converge.*raise max_iter"):
        fit = BayesianGaussianMixture(n_components=3, max_iter=2, tol=1e-9, random_state=0).fit(X)
    assert not fit.converged_
    with pytest.warns(ConvergenceWarning, match=r"inference='gibbs' did not converge: .*see engine_options"):
        BayesianGaussianMixture(
            n_components=2,
            inference="gibbs",
            random_state=0,
            engine_options={"num_draws": 10, "num_warmup": 1, "checkpoint": False},
        ).fit(X)


def test_lives_in_searches_and_files(tmp_path):
    search = GridSearchCV(BayesianGaussianMixture(random_state=0, max_iter=300), {"n_components": [1, 2]}, cv=2).fit(X)
    assert search.best_params_ == {"n_components": 2}
    same = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(same.predict_proba(X), search.predict_proba(X))
    for inference in ("cavi", "gibbs"):
        fit = fitted(inference)
        fit.save(tmp_path / inference)
        same = BayesianGaussianMixture.load(tmp_path / inference)
        assert repr(same) == repr(fit)
        np.testing.assert_array_equal(same.predict_proba(X), fit.predict_proba(X))
        np.testing.assert_array_equal(same.score_samples(X), fit.score_samples(X))
        np.testing.assert_array_equal(same.sample(4)[0], fit.sample(4)[0])
        assert type(same.prior_) is type(fit.prior_)
        assert same.mean_prior_.tolist() == fit.mean_prior_.tolist()
        with pytest.raises(InputError, match="needs the rows, which files do not keep"):
            same.datatree_  # noqa: B018


# Refusals

BAD = {
    "inference": ("em", None, 3),
    "n_init": (0, "many"),
    "max_iter": (0, -1),
    "weight_concentration_prior_type": ("dirichlet", 3),
    "weight_concentration_prior": (0, -1.0, "a"),
    "mean_precision_prior": (0, "a", np.inf),
    "degrees_of_freedom_prior": (0, -2.0),
    "prior": ("weak", 3),
    "engine_options": ("a", {"num_chains": 3}, {"start": None}),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_arguments_out_of_range_are_refused_as_by_scikit_learn(name, value):
    with pytest.raises(InvalidParameterError, match=name) as caught:
        BayesianGaussianMixture(**{"n_components": 2, name: value}).fit(X)
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


REFUSED = {
    "few degrees of freedom": (
        {"degrees_of_freedom_prior": 1.0},
        r"'degrees_of_freedom_prior' should be greater than 1, but got 1\.000",
    ),
    "a mean of another shape": ({"mean_prior": [1.0]}, r"'means' .* \(2,\), but got \(1,\).*mean_prior"),
    "a covariance of another type": (
        {"covariance_prior": [1.0, 2.0]},
        r"'full covariance_prior' .* \(2, 2\), but got \(2,\)",
    ),
    "a covariance that is none": (
        {"covariance_prior": [[1.0, 2.0], [2.0, 1.0]]},
        "'full covariance_prior' should be symmetric, positive-definite",
    ),
    "variances that are none": (
        {"covariance_prior": [1.0, -2.0], "covariance_type": "diag"},
        "'diag covariance_prior' should be positive; it has -2",
    ),
    "two priors": (
        {"prior": "conjugate", "mean_precision_prior": 2.0},
        "prior='conjugate' and mean_precision_prior=2.0 contradict each other",
    ),
    "a prior of another covariance type": (
        {"prior": conjugate_prior(X, 2, "diag")},
        r"prior has a scale of shape \(2,\), not \(2, 2\).*covariance_type='full'",
    ),
    "a prior that is not conjugate": (
        {"prior": default_prior(X, 2)},
        "prior is one of default_prior, and inference='cavi' takes a conjugate prior",
    ),
    "a process without a mode": (
        {"inference": "map", "weight_concentration_prior_type": "dirichlet_process"},
        "stick_breaking=True has .*no mode",
    ),
    "an option of another engine": (
        {"inference": "gibbs", "engine_options": {"target_accept": 0.9}},
        "engine_options has 'target_accept', which inference='gibbs' does not take; choose from .*num_draws",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        BayesianGaussianMixture(**{"n_components": 2, **arguments}).fit(X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inference", ["map", "vi", "gibbs", "nuts"])
def test_row_weights_that_an_engine_cannot_take_are_refused(inference):
    with pytest.raises(InputError, match=f"inference='{inference}' takes no sample_weight.*inference='cavi'"):
        BayesianGaussianMixture(n_components=2, inference=inference).fit(X, sample_weight=np.ones(len(X)))
