"""GaussianMixture: scikit-learn's results from scikit-learn's starts, what its class lacks, and its refusals."""

import copy
import dataclasses
import pickle

import jax
import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn.mixture
from helpers import DATA, each_representation, each_sklearn_family, random_case
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

import bayesgmm
from bayesgmm import GaussianMixture, InputError, Mixture, conjugate_prior, fit_em
from bayesgmm.engines.fit import ResultCode
from bayesgmm.mixtures.families import FAMILIES

ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")


def assert_same_mixture(one, other, tolerance):
    for name in ATTRIBUTES:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.shape == theirs.shape, name
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max(), err_msg=name)


# Scikit-learn's class


@pytest.mark.filterwarnings("ignore:Best performing")
@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, "faithful") for family in ("full", "tied", "diag", "spherical")),
        ("full", "iris"),
        ("full", "galaxies"),
        *(
            pytest.param(family, name, marks=pytest.mark.slow)
            for family in ("tied", "diag", "spherical")
            for name in ("iris", "galaxies")
        ),
    ],
)
def test_same_seed_and_steps_give_scikit_learns_mixture(family, name):
    """Twenty steps of both from the same k-means, component for component."""
    options = {"n_components": 3, "covariance_type": family, "random_state": 1, "tol": 0, "max_iter": 20}
    options["init_params"] = "kmeans"
    theirs = sklearn.mixture.GaussianMixture(**options).fit(DATA[name])
    ours = GaussianMixture(**options).fit(DATA[name])
    assert_same_mixture(ours, theirs, 1e-6)
    np.testing.assert_array_equal(ours.labels_, theirs.predict(DATA[name]))
    # Theirs belong to the mixture of a step before.
    np.testing.assert_allclose(ours.lower_bounds_[:-1], theirs.lower_bounds_[1:], rtol=1e-10)
    x = DATA[name][::7] + 0.01
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
    for criterion in ("bic", "aic"):
        assert getattr(ours, criterion)(x) == pytest.approx(getattr(theirs, criterion)(x), rel=1e-8)
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-8)
    assert ours._n_parameters() == theirs._n_parameters()


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_same_tol_ends_a_step_sooner_with_the_same_bound(tol):
    options = {"n_components": 2, "init_params": "kmeans", "random_state": 0, "tol": tol, "max_iter": 1000}
    theirs = sklearn.mixture.GaussianMixture(**options).fit(DATA["faithful"])
    ours = GaussianMixture(**options).fit(DATA["faithful"])
    assert theirs.converged_
    assert ours.converged_
    assert ours.n_iter_ == theirs.n_iter_ - 1 == len(ours.lower_bounds_)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-13)
    assert ours.lower_bound_ == pytest.approx(ours.score(DATA["faithful"]), rel=1e-13)


def test_first_of_equal_starts_and_best_of_unequal_ones(rng):
    x = DATA["iris"]
    one = GaussianMixture(3, init_params="kmeans", random_state=0, tol=1e-10, max_iter=1000)
    many = clone(one).set_params(n_init=6)
    one.fit(x)
    many.fit(x)
    assert many.lower_bound_ >= one.lower_bound_ - 1e-9
    again = clone(many).fit(x)
    assert_same_mixture(again, many, 1e-14)


@pytest.mark.parametrize("init_params", ["auto", "kmeans", "k-means++", "random", "random_from_data", "hierarchical"])
def test_every_start_ends_well(init_params):
    x = DATA["faithful"]
    fit = GaussianMixture(2, init_params=init_params, n_init=5, random_state=0, tol=1e-8, max_iter=1000).fit(x)
    assert fit.lower_bound_ == pytest.approx(-1130.264 / 272, abs=1e-5)  # the maximum that R's mclust finds


def test_parts_of_a_start_take_the_place_of_those_that_are_made(rng):
    x = DATA["iris"]
    made = GaussianMixture(3, init_params="kmeans", reg_covar=0, random_state=0, max_iter=0).fit(x)
    weights, means = np.array([0.2, 0.3, 0.5]), x[[0, 60, 120]]
    for init_params in ("kmeans", "k-means++"):
        fit = GaussianMixture(
            3, random_state=0, max_iter=0, weights_init=weights, means_init=means, init_params=init_params
        ).fit(x)
        np.testing.assert_allclose(fit.weights_, weights)
        np.testing.assert_allclose(fit.means_, means)
        assert fit.covariances_.shape == (3, 4, 4)
    # By default the rest is that of k-means.
    fit = GaussianMixture(3, random_state=0, max_iter=0, precisions_init=made.precisions_).fit(x)
    np.testing.assert_allclose(fit.covariances_, made.covariances_, rtol=1e-9)
    np.testing.assert_allclose(fit.means_, made.means_)


# What it lacks


@pytest.mark.parametrize("seed", [0, 1])
def test_both_faces_reach_the_same_optimum_by_default(seed):
    """Twenty clear clusters in ten columns: from k-means, two of them are fitted as one."""
    rng = np.random.default_rng(seed)
    centres = 6 * rng.normal(size=(20, 10))
    labels = rng.integers(20, size=3000)
    x = centres[labels] + rng.normal(size=(3000, 10))
    fit = GaussianMixture(20, random_state=0).fit(x)
    function = fit_em(x, 20, key=jax.random.key(0))
    truth = fit_em(x, 20, start=labels)
    assert fit.converged_
    assert fit.fit_.log_likelihood == pytest.approx(float(truth.log_likelihood), rel=1e-6)
    assert function.log_likelihood == pytest.approx(float(truth.log_likelihood), rel=1e-6)


def test_the_default_has_the_ridge_limits_and_stop_of_the_function():
    """However small the units are."""
    x = 1e-4 * DATA["faithful"]
    fit = GaussianMixture(3, random_state=0).fit(x)
    key = jax.random.key(int(np.random.RandomState(0).randint(np.iinfo(np.int32).max)))
    function = fit_em(x, 3, key=key, accelerate=True)
    assert_same_mixture(fit, GaussianMixture.from_mixture(function.mixture), 1e-12)
    assert fit.n_iter_ == function.num_steps
    with pytest.warns(ConvergenceWarning):
        theirs = GaussianMixture(3, init_params="kmeans", random_state=0).fit(x)
    assert theirs.lower_bound_ < fit.lower_bound_ - 1  # under a ridge of 1e-6
    short = GaussianMixture(3, tol=1e-2, random_state=0).fit(x)  # a user's tolerance is scikit-learn's
    assert short.n_iter_ < fit.n_iter_


def test_weight_two_is_the_row_twice(rng):
    x = DATA["iris"]
    weights = rng.integers(0, 3, len(x))
    repeated = np.repeat(x, weights, axis=0)
    options = {"n_components": 3, "means_init": x[[0, 60, 120]], "init_params": "hierarchical", "tol": 1e-9}
    weighted = GaussianMixture(**options, max_iter=1000).fit(x, sample_weight=weights)
    rows = GaussianMixture(**options, max_iter=1000).fit(repeated)
    assert_same_mixture(weighted, rows, 1e-5)
    assert weighted.lower_bound_ == pytest.approx(rows.lower_bound_, rel=1e-9)
    assert weighted.score(x, sample_weight=weights) == pytest.approx(weighted.score(repeated), rel=1e-12)
    for criterion in ("bic", "aic", "icl"):
        found = getattr(weighted, criterion)(x, sample_weight=weights)
        assert found == pytest.approx(getattr(weighted, criterion)(repeated), rel=1e-12)


def test_weighted_kmeans_starts(rng):
    """A row of weight 0 holds what it will."""
    x = DATA["faithful"].copy()
    weights = np.ones(len(x))
    x[:5], weights[:5] = 1e4, 0.0
    fit = GaussianMixture(2, random_state=0, tol=1e-8, max_iter=500).fit(x, sample_weight=weights)
    rest = GaussianMixture(2, random_state=0, tol=1e-8, max_iter=500).fit(x[5:])
    assert fit.lower_bound_ == pytest.approx(rest.lower_bound_, rel=1e-7)


@each_representation
def test_prior_gives_the_posterior_mode(family, rng):
    x = DATA["faithful"]
    options = {"covariance_type": family.name, "random_state": 0, "tol": 1e-10, "max_iter": 2000, "reg_covar": 0}
    fit = GaussianMixture(3, prior="conjugate", **options).fit(x)
    prior = conjugate_prior(x, 3, family)
    functional = fit_em(x, 3, family=family, prior=prior, start=fit.fit_.mixture, tol=1e-12, max_steps=2000)
    np.testing.assert_allclose(fit.means_, functional.mixture.means, rtol=1e-3)
    objective = functional.log_likelihood + bayesgmm.log_prior(functional.mixture, family, prior)
    assert fit.lower_bound_ * len(x) == pytest.approx(objective, abs=1e-4)
    given = GaussianMixture(3, prior=prior, **options).fit(x)
    assert_same_mixture(given, fit, 1e-12)
    plain = GaussianMixture(3, **options).fit(x)
    assert plain.prior_ is None
    assert np.abs(plain.covariances_ - fit.covariances_).max() > 1e-3


def test_acceleration_takes_fewer_steps_to_the_same_end():
    x = DATA["faithful"]
    options = {"n_components": 3, "random_state": 1, "tol": 1e-9, "max_iter": 3000}
    plain, fast = (GaussianMixture(acceleration=how, **options).fit(x) for how in (None, "squarem"))
    assert fast.n_iter_ < plain.n_iter_
    assert fast.lower_bound_ == pytest.approx(plain.lower_bound_, abs=1e-7)


def test_icl_and_criteria_are_those_of_the_functional_result():
    x = DATA["iris"]
    fit = GaussianMixture(3, random_state=0).fit(x)
    criteria = bayesgmm.information_criteria(fit.fit_, x)
    assert fit.icl(x) == pytest.approx(criteria.icl, rel=1e-12)
    assert fit.bic(x) == pytest.approx(criteria.bic, rel=1e-12)
    assert fit.fit_.log_likelihood == pytest.approx(fit.score(x) * len(x), rel=1e-12)
    shares = fit.predict_proba(x)
    assert fit.icl(x) == pytest.approx(fit.bic(x) - 2 * np.log(shares.max(1)).sum(), rel=1e-9)


@each_sklearn_family
def test_from_mixture_goes_the_other_way(family, rng):
    case = random_case(family, 3, 2, rng)
    x = case.rows(50, rng)
    estimator = GaussianMixture.from_mixture(case.mixture, None if family.name != "spherical" else "spherical")
    assert estimator.covariance_type == family.name
    np.testing.assert_allclose(estimator.weights_, case.weights, rtol=1e-12)
    expected = sklearn.mixture.GaussianMixture(3, covariance_type=family.name)
    for name in ATTRIBUTES:
        setattr(expected, name, getattr(estimator, name))
    np.testing.assert_allclose(estimator.score_samples(x), expected.score_samples(x), rtol=1e-9)
    np.testing.assert_array_equal(estimator.predict(x), expected.predict(x))
    assert estimator.bic(x) == pytest.approx(expected.bic(x), rel=1e-9)
    assert not estimator.converged_
    assert estimator.n_features_in_ == 2
    estimator.set_params(warm_start=True, tol=1e-2, max_iter=500).fit(x)
    assert estimator.converged_


def test_from_mixture_refuses_what_does_not_fit(rng):
    full, diag = (random_case(FAMILIES[name], 2, 2, rng).mixture for name in ("full", "diag"))
    for mixture, covariance_type in ((full, "diag"), (full, "tied"), (diag, "full"), (diag, "spherical")):
        with pytest.raises(InputError, match=f"covariance_type='{covariance_type}' does not fit a mixture"):
            GaussianMixture.from_mixture(mixture, covariance_type)
    with pytest.raises(InputError, match=r"leading axes \(1,\)"):
        GaussianMixture.from_mixture(jax.tree.map(lambda leaf: leaf[None], full))
    broken = dataclasses.replace(full, log_weights=full.log_weights[:1])
    with pytest.raises(InputError, match="mixture"):
        GaussianMixture.from_mixture(broken)


def test_attributes_that_are_set_are_the_mixture():
    """The way in which scikit-learn's users make an estimator by hand."""
    estimator = GaussianMixture(2)
    estimator.weights_, estimator.means_ = np.array([0.3, 0.7]), np.array([[0.0], [4.0]])
    estimator.covariances_ = np.array([[[1.0]], [[4.0]]])
    estimator.precisions_cholesky_ = np.array([[[1.0]], [[0.5]]])
    x = np.linspace(-3, 9, 11)[:, None]
    expected = 0.3 * stats.norm(0, 1).pdf(x[:, 0]) + 0.7 * stats.norm(4, 2).pdf(x[:, 0])
    np.testing.assert_allclose(np.exp(estimator.score_samples(x)), expected, rtol=1e-12)
    assert estimator.bic(x) == pytest.approx(-2 * np.log(expected).sum() + 5 * np.log(11), rel=1e-12)


def test_covariances_that_are_set_serve_where_no_factor_is():
    estimator = GaussianMixture(2)
    estimator.covariances_ = np.array([[[1.0]], [[4.0]]])
    x = np.linspace(-3, 9, 11)[:, None]
    with pytest.raises(InputError, match="weights_ is missing; set weights_, means_ and precisions_cholesky_"):
        estimator.predict(x)
    estimator.weights_, estimator.means_ = np.array([0.3, 0.7]), np.array([[0.0], [4.0]])
    expected = 0.3 * stats.norm(0, 1).pdf(x[:, 0]) + 0.7 * stats.norm(4, 2).pdf(x[:, 0])
    np.testing.assert_allclose(np.exp(estimator.score_samples(x)), expected, rtol=1e-12)
    del estimator.covariances_
    with pytest.raises(InputError, match="precisions_cholesky_ is missing; set it, or covariances_, or call fit"):
        estimator.predict(x)


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_arguments_set_after_a_fit_leave_it_as_it_is(covariance_type):
    """Of two components of two features, a diagonal factor even has the shape of a tied one."""
    means, variances = np.array([[0.0, 0.0], [4.0, 4.0]]), np.array([[1.0, 4.0], [0.25, 1.0]])
    estimator = GaussianMixture.from_mixture(Mixture.from_covariances([0.3, 0.7], means, variances))
    estimator.set_params(covariance_type=covariance_type)
    x = np.array([[0.5, -1.0], [3.0, 3.5]])
    parts = [stats.multivariate_normal(mean, np.diag(own)).pdf(x) for mean, own in zip(means, variances, strict=True)]
    np.testing.assert_allclose(estimator.score_samples(x), np.log(0.3 * parts[0] + 0.7 * parts[1]), rtol=1e-12)
    assert estimator._n_parameters() == 9


def test_samples_are_of_the_mixture(rng):
    x = DATA["faithful"]
    fit = GaussianMixture(2, random_state=0).fit(x)
    rows, labels = fit.sample(20_000)
    assert (np.diff(labels) >= 0).all()
    assert rows.shape == (20_000, 2)
    np.testing.assert_allclose(np.bincount(labels) / 20_000, fit.weights_, atol=5 * 0.5 / np.sqrt(20_000))
    for component in (0, 1):
        part = rows[labels == component]
        error = np.sqrt(np.diagonal(fit.covariances_[component]) / len(part))
        assert (np.abs(part.mean(0) - fit.means_[component]) < 5 * error).all()
        np.testing.assert_allclose(np.cov(part.T), fit.covariances_[component], rtol=0.1)
    np.testing.assert_array_equal(fit.sample(20_000)[0], rows)
    generator = fit.set_params(random_state=np.random.RandomState(0))
    assert not np.array_equal(generator.sample(5)[0], generator.sample(5)[0])


# Precision, seeds, and the tools around


@each_representation
def test_float32_stays_float32_and_float64_is_float64(family):
    assert not jax.config.jax_enable_x64
    for dtype in (np.float32, np.float64):
        x = DATA["iris"].astype(dtype)
        fit = GaussianMixture(2, covariance_type=family.name, random_state=0, prior="conjugate").fit(x)
        for name in ATTRIBUTES:
            assert getattr(fit, name).dtype == dtype, name
        for found in (fit.predict_proba(x), fit.score_samples(x), fit.sample(5)[0]):
            assert found.dtype == dtype
        assert {np.asarray(leaf).dtype.type for leaf in jax.tree.leaves(fit.fit_.mixture)} == {dtype}
    whole = GaussianMixture(2, covariance_type=family.name, random_state=0).fit((10 * x).astype(int))
    assert whole.means_.dtype == np.float64


@pytest.mark.parametrize("make", [lambda: 7, lambda: np.random.RandomState(7), lambda: np.int64(7)])
@pytest.mark.parametrize("init_params", ["auto", "kmeans", "random"])
def test_random_states_of_every_kind_repeat_a_fit(make, init_params):
    x = DATA["iris"]
    first, second = (GaussianMixture(3, random_state=make(), init_params=init_params).fit(x) for _ in range(2))
    assert_same_mixture(first, second, 1e-14)
    np.random.seed(3)  # noqa: NPY002  # None is NumPy's global generator, as in scikit-learn
    third = GaussianMixture(3, init_params=init_params).fit(x)
    np.random.seed(3)  # noqa: NPY002
    assert_same_mixture(GaussianMixture(3, init_params=init_params).fit(x), third, 1e-14)


def test_lives_in_pipelines_searches_and_files(tmp_path, rng):
    frame = pd.DataFrame(DATA["iris"], columns=["a", "b", "c", "d"])
    pipeline = make_pipeline(StandardScaler(), GaussianMixture(random_state=0)).set_output(transform="pandas")
    search = GridSearchCV(
        pipeline, {"gaussianmixture__n_components": [1, 2], "gaussianmixture__covariance_type": ["full", "diag"]}, cv=3
    ).fit(frame)
    best = search.best_estimator_[-1]
    assert search.best_params_["gaussianmixture__covariance_type"] == "full"
    assert list(best.feature_names_in_) == list(frame.columns)
    assert search.score(frame) == pytest.approx(best.score(search.best_estimator_[0].transform(frame)), rel=1e-12)
    path = tmp_path / "pipeline.joblib"
    joblib.dump(search.best_estimator_, path)
    fitted = search.best_estimator_
    for same in (joblib.load(path), pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(same.predict_proba(frame), search.predict_proba(frame))
    with pytest.raises(NotFittedError):
        clone(best).predict(frame)
    rows = np.asarray(frame)
    fits = joblib.Parallel(n_jobs=2, prefer="threads")(
        joblib.delayed(clone(best).set_params(random_state=seed).fit)(rows) for seed in range(4)
    )
    for seed, fit in enumerate(fits):
        assert_same_mixture(fit, clone(best).set_params(random_state=seed).fit(rows), 1e-14)


def test_rows_in_blocks_are_rows_at_once(monkeypatch):
    fit = GaussianMixture(3, random_state=0).fit(DATA["iris"])
    x = np.tile(DATA["iris"], (3, 1))[:333]
    whole = fit.predict_proba(x), fit.score_samples(x)
    monkeypatch.setattr("bayesgmm.estimators.base._BLOCK_NUMBERS", 1024)
    np.testing.assert_allclose(fit.predict_proba(x), whole[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(fit.score_samples(x), whole[1], rtol=1e-12)


@pytest.mark.parametrize("acceleration", [None, "squarem"])
@pytest.mark.parametrize("init_params", ["kmeans", "k-means++"])
def test_verbose_tells_of_the_same_fit(init_params, acceleration, capsys):
    x = DATA["faithful"]
    options = {"n_components": 3, "random_state": 0, "init_params": init_params, "tol": 1e-5, "max_iter": 500}
    quiet = GaussianMixture(acceleration=acceleration, **options).fit(x)
    assert capsys.readouterr().out == ""
    for verbose in (1, 2):
        loud = GaussianMixture(acceleration=acceleration, verbose=verbose, verbose_interval=10, n_init=2, **options)
        loud.fit(x)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "Initialization 0"
        assert sum(line.startswith("Initialization ") and line[15:].isdigit() for line in lines) == 2
        assert sum("converged" in line for line in lines) == 2
        first = lines[1 : next(index for index, line in enumerate(lines) if "converged" in line)]
        assert [int(line.split()[1]) for line in first] == list(range(10, 10 * len(first) + 1, 10))
        assert all(("ll change" in line) == (verbose == 2) for line in first)
        assert len(first) >= 1
    one = GaussianMixture(acceleration=acceleration, verbose=1, **options).fit(x)
    assert_same_mixture(one, quiet, 1e-9)
    assert one.n_iter_ == quiet.n_iter_
    np.testing.assert_allclose(one.lower_bounds_, quiet.lower_bounds_, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Best performing")
def test_warm_start_goes_on():
    x = DATA["iris"]
    options = {"n_components": 3, "init_params": "kmeans", "random_state": 0, "tol": 0}
    whole = GaussianMixture(max_iter=12, **options).fit(x)
    parts = GaussianMixture(max_iter=4, warm_start=True, **options)
    for _ in range(3):
        parts.fit(x)
    assert_same_mixture(parts, whole, 1e-9)
    with pytest.raises(InputError, match="warm_start=True goes on from 3 components of 4 features, but n_components=2"):
        parts.set_params(n_components=2).fit(x)


# Files


def test_saved_and_loaded_is_the_same(tmp_path, rng):
    frame = pd.DataFrame(DATA["faithful"], columns=["eruptions", "waiting"])
    prior = conjugate_prior(DATA["faithful"], 2)
    for random_state in (3, np.random.RandomState(3), None):
        fit = GaussianMixture(2, random_state=random_state, prior=prior, means_init=DATA["faithful"][:2]).fit(frame)
        fit.save(tmp_path / "fit")
        same = GaussianMixture.load(tmp_path / "fit")
        np.testing.assert_array_equal(same.predict_proba(frame), fit.predict_proba(frame))
        assert_same_mixture(same, fit, 0.0)
        assert (same.n_iter_, same.converged_, same.lower_bound_) == (fit.n_iter_, fit.converged_, fit.lower_bound_)
        assert same.fit_.code is fit.fit_.code
        assert list(same.feature_names_in_) == ["eruptions", "waiting"]
        assert same.bic(frame) == fit.bic(frame)
        if random_state is not None:
            np.testing.assert_array_equal(same.sample(4)[0], fit.sample(4)[0])
    unfitted = GaussianMixture(4, covariance_type="diag", init_params="random")
    unfitted.save(tmp_path / "unfitted")
    assert GaussianMixture.load(tmp_path / "unfitted").get_params() == unfitted.get_params()


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "fit"
    fit = GaussianMixture(2, random_state=0).fit(DATA["faithful"])
    fit.save(path)
    with pytest.raises(InputError, match="holds a 'GaussianMixture', not a BayesianGaussianMixture"):
        bayesgmm.BayesianGaussianMixture.load(path)
    bayesgmm.save_fit(fit.fit_, tmp_path / "functional")
    with pytest.raises(InputError, match="holds a fit, not a scikit-learn estimator"):
        GaussianMixture.load(tmp_path / "functional")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is damaged"):
        GaussianMixture.load(path)
    path.write_bytes(pickle.dumps(fit))
    with pytest.raises(InputError, match="is not of bayesgmm"):
        GaussianMixture.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        GaussianMixture.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"prior=<object.* cannot be stored"):
        GaussianMixture(2, prior=object()).save(path)


# Refusals

BAD = {
    "n_components": (0, -1, 2.5, "2", None, True),
    "covariance_type": ("fll", None, 3, "VVVV"),
    "tol": (-1.0, "a", None, np.nan),
    "reg_covar": (-1e-6, "a", None),
    "max_iter": (-1, 1.5, None),
    "n_init": (0, 1.5, "many", None),
    "init_params": ("k-mean", None, 3),
    "random_state": ("a", 1.5, jax.random.key(0)),
    "warm_start": ("yes", None, 2),
    "verbose": (-1, "loud", None),
    "verbose_interval": (0, 1.5, None),
    "prior": ("weak", "conjugate_prior"),
    "acceleration": ("fast", True, 1),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_arguments_out_of_range_are_refused_as_by_scikit_learn(name, value):
    with pytest.raises(InvalidParameterError, match=name) as caught:
        GaussianMixture(**{"n_components": 2, **{name: value}}).fit(DATA["faithful"])
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


def test_codes_of_mclust_are_names_of_families():
    named, coded = (
        GaussianMixture(2, covariance_type=name, random_state=0, max_iter=3, tol=1e9).fit(DATA["faithful"])
        for name in ("full", "VVV")
    )
    np.testing.assert_array_equal(coded.covariances_, named.covariances_)


X = DATA["faithful"]
REFUSED = {
    "weights of a wrong shape": ({"weights_init": np.ones(3) / 3}, r"'weights' .* \(2,\), but got \(3,\)"),
    "weights out of range": ({"weights_init": [1.5, -0.5]}, r"in the range \[0, 1\].*weights_init\[0\]=1.5"),
    "weights that do not sum to 1": ({"weights_init": [0.5, 0.6]}, r"normalized.*1\.10000"),
    "a weight of 0": ({"weights_init": [1.0, 0.0]}, r"weights_init\[1\]=0: an empty component"),
    "means of a wrong shape": ({"means_init": np.zeros((3, 2))}, r"'means' .* \(2, 2\), but got \(3, 2\).*means_init"),
    "means that are text": ({"means_init": [["a", "b"]] * 2}, "means_init=.* array of numbers"),
    "means with NaN": ({"means_init": [[0, np.nan], [1, 2]]}, "means_init contains NaN"),
    "precisions of another type": (
        {"precisions_init": np.ones((2, 2)), "covariance_type": "full"},
        r"'full precision' .* \(2, 2, 2\), but got \(2, 2\)",
    ),
    "precisions that are not symmetric": (
        {"precisions_init": np.array([[1.0, 0.5], [0.0, 1.0]]), "covariance_type": "tied"},
        "'tied precision' should be symmetric, positive-definite; precisions_init is not symmetric",
    ),
    "precisions that are not positive": (
        {"precisions_init": [[1, 1], [1, -2]], "covariance_type": "diag"},
        "'diag precision' should be positive; precisions_init has -2",
    ),
    "a prior of another covariance type": (
        {"prior": conjugate_prior(X, 2, "diag")},
        r"prior has a scale of shape \(2,\), not \(2, 2\).*covariance_type='full'",
    ),
    "a prior of another number of components": (
        {"prior": conjugate_prior(X, 3)},
        "prior is for k=3 components .*n_components=2",
    ),
    "a prior without a mode": (
        {"prior": conjugate_prior(X, 2, concentration=0.5)},
        "concentration=0.5 is below 1.*no mode",
    ),
    "a prior of the other kind": ({"prior": bayesgmm.default_prior(X, 2)}, "prior is one of default_prior"),
    "no prior at all": ({"prior": 3}, "prior is 3, and this takes a conjugate prior"),
    "more components than rows": ({"n_components": 300}, "n_components = 300, n_samples = 272; give more rows"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        GaussianMixture(**{"n_components": 2, **arguments}).fit(X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(5), r"sample_weight must have shape \(272,\), one for each row; got \(5,\)"),
        (-np.ones(272), r"sample_weight\[0\]=-1.0 must be finite and not negative"),
        (np.zeros(272), "sample_weight are all zero"),
    ],
)
def test_sample_weights_that_cannot_be_used_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        GaussianMixture(2).fit(X, sample_weight=weights)


def test_collapse_without_a_ridge_is_scikit_learns_error_and_with_one_a_warning(rng):
    x = np.concatenate([rng.normal(size=(40, 2)), np.full((10, 2), 8.0)])
    options = {"n_components": 2, "init_params": "kmeans", "random_state": 0, "max_iter": 200}
    for cls in (GaussianMixture, sklearn.mixture.GaussianMixture):
        with pytest.raises(ValueError, match=r"ill-defined empirical covariance.*increase reg_covar"):
            cls(reg_covar=0, **options).fit(x)
    with pytest.warns(ConvergenceWarning, match=r"did not converge.*a component shrank.*larger reg_covar"):
        fit = GaussianMixture(**options).fit(x)
    assert fit.fit_.code is ResultCode.collapsed
    assert not fit.converged_
    assert np.isfinite(fit.score(x))


def test_constant_columns_are_fitted_under_the_ridge(rng):
    x = np.column_stack([DATA["faithful"], np.full(272, 3.0)])
    with pytest.warns(ConvergenceWarning):
        fit = GaussianMixture(2, random_state=0).fit(x)
    with pytest.warns(ConvergenceWarning):
        ours = GaussianMixture(2, init_params="kmeans", random_state=0).fit(x)
    theirs = sklearn.mixture.GaussianMixture(2, random_state=0).fit(x)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-6)
    assert fit.lower_bound_ > theirs.lower_bound_  # which stops early


ROWS = {
    "NaN": np.full((9, 2), np.nan),
    "one dimension": np.ones(9),
    "text": [["a", "b"]] * 9,
    "one row": np.ones((1, 2)),
    "complex numbers": 1j * np.ones((9, 2)),
    "nothing": np.ones((9, 0)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS)
def test_rows_are_refused_as_by_scikit_learn(x):
    errors = []
    for cls in (GaussianMixture, sklearn.mixture.GaussianMixture):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # of which all is compared
            cls(2).fit(x)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_one_density():
    """Scores are those of the one density: what `Mixture` says, so say the estimators."""
    fit = GaussianMixture(2, random_state=0).fit(X)
    mixture = fit.fit_.mixture
    np.testing.assert_allclose(fit.score_samples(X), mixture.log_prob(X), rtol=1e-12)
    np.testing.assert_allclose(fit.predict_proba(X), mixture.responsibilities(X), atol=1e-12)
    dense = [stats.multivariate_normal(m, c) for m, c in zip(fit.means_, fit.covariances_, strict=True)]
    expected = np.log(sum(w * part.pdf(X) for w, part in zip(fit.weights_, dense, strict=True)))
    np.testing.assert_allclose(fit.score_samples(X), expected, rtol=1e-10)
