"""What a user waits for: how many programs are compiled, and that rounding shapes up changes no fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, compilations, each_family

from bayesgmm.engines.cavi import fit_cavi
from bayesgmm.engines.em import fit_em
from bayesgmm.estimators import GaussianMixture
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.priors.conjugate import conjugate_prior
from bayesgmm.starts.named import STARTS

X = DATA["faithful"]


def fit(x=X, num_components=2, key=0, **options):
    return fit_em(x, num_components, **{"key": jax.random.key(key), "on_failure": "ignore", **options})


def test_another_fit_of_the_same_step_compiles_nothing():
    fit()
    fit(num_components=9)  # slow, and so carried on by the accelerated program
    tolerances = (0.0, 1e-3, jnp.float32(1e-4))
    with compilations() as first:
        jax.jit(lambda x: x + 41)(1.0)
    assert len(first) == 1  # the count is no constant
    with compilations() as events:
        for num_components in range(1, 11):
            fit(num_components=num_components)
        for num_rows in (257, 260, 271, 272, 285, 300, 319, 320):
            fit(np.resize(X, (num_rows, 2)) + 1e-3 * np.arange(num_rows)[:, None])
        for num_restarts in (2, 3, 9, 10, 11, 50):
            fit(num_restarts=num_restarts)
        for max_steps in (0, 1, 5, 999, 1000):
            fit(max_steps=max_steps)
        for tol in tolerances:
            fit(tol=tol)
        for reg_covar in (0.0, 1e-6, np.array([1e-3, 1e-4])):
            fit(reg_covar=reg_covar)
        fit(key=1)
        fit(row_weights=np.arange(272) % 3)
    assert events == []


@pytest.mark.parametrize("options", [{"start": "kmeans"}, {"num_restarts": 1}], ids=str)
def test_so_does_no_other_number_of_components_from_another_start(options):
    fit(**options)
    fit(num_components=9, **options)
    with compilations() as events:
        for num_components in range(1, 11):
            fit(num_components=num_components, **options)
    assert events == []


def test_coordinate_ascent_compiles_once_too():
    """For another table of the same step, other numbers of restarts and steps, another tolerance, prior and key."""

    def cavi(x=X, key=0, **options):
        return fit_cavi(x, 2, **{"key": jax.random.key(key), "num_draws": 0, "on_failure": "ignore", **options})

    cavi()
    with compilations() as events:
        for num_rows in (257, 285, 320):
            cavi(np.resize(X, (num_rows, 2)) + 1e-3 * np.arange(num_rows)[:, None])
        for num_restarts in (2, 9, 11):
            cavi(num_restarts=num_restarts)
        for max_steps in (0, 5, 999):
            assert len(cavi(max_steps=max_steps).trace) == max_steps + 1
        cavi(tol=1e-3)
        cavi(prior=conjugate_prior(X, 2, "full", shrinkage=0.1, concentration=1.5))
        cavi(key=1)
        cavi(row_weights=np.arange(272) % 3)
        cavi(start="distant_rows")
    assert events == []
    cavi(num_restarts=1)
    with compilations() as events:
        cavi(X[:260], num_restarts=1, max_steps=50)
    assert events == []


@pytest.mark.filterwarnings("ignore:Best performing")
def test_a_search_over_numbers_of_components_and_folds_compiles_for_one_of_them():
    GaussianMixture(2, random_state=0).fit(X[:217])
    with compilations() as events:
        for num_components in range(1, 7):
            for num_rows in (217, 218):
                GaussianMixture(num_components, random_state=0).fit(X[-num_rows:])
    assert events == []


def test_another_prior_and_another_start_compile_nothing():
    def with_prior(shrinkage):
        fit(prior=conjugate_prior(X, 2, "full", shrinkage=shrinkage, concentration=1.5), accelerate=False)

    with_prior(0.01)
    start = fit().mixture
    fit(start=start)
    with compilations() as events:
        with_prior(0.1)
        fit(X[:260], start=dataclasses.replace(start, means=0.99 * start.means), max_steps=50)
    assert events == []


def test_a_loop_over_tables_of_several_sizes_compiles_for_one_of_them(rng):
    with compilations() as events:
        for num_rows in range(190, 211):
            fit(rng.normal(size=(num_rows, 3)) + 9 * (np.arange(num_rows)[:, None] % 2))
    assert len(events) <= 2  # the starts, and the runs


@pytest.mark.usefixtures("x64")
@each_family
@pytest.mark.parametrize("num_components", [1, 3])
def test_a_fit_with_room_to_spare_is_the_same_fit(family, num_components):
    """Inside the caller's program nothing is rounded up."""
    # Strides would enlarge what sums are rounded by.
    options = {"family": family, "max_steps": 60, "accelerate": False}
    plain = jax.jit(lambda x, key: fit_em(x, num_components, key=key, **options))
    for key in range(2):
        ours, theirs = fit(X, num_components, key, **options), plain(X, jax.random.key(key))
        assert int(ours.result) == int(theirs.result)
        assert int(ours.num_steps) == int(theirs.num_steps)
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10),
            (ours.mixture, ours.trace),
            (theirs.mixture, theirs.trace),
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("start", [name for name, start in STARTS.items() if start.random])
@pytest.mark.parametrize("num_restarts", [1, 4])
def test_from_every_start(start, num_restarts, rng):
    x = X + 1e-3 * rng.normal(size=X.shape)  # without rows as near to one seed as to another, which rounding assigns
    options = {"start": start, "num_restarts": num_restarts, "family": FAMILIES["diag"], "tol": 0, "max_steps": 30}
    plain = jax.jit(lambda x, key: fit_em(x, 4, key=key, on_failure="ignore", **options))
    ours, theirs = fit(x, 4, **options), plain(x, jax.random.key(0))
    np.testing.assert_allclose(ours.mixture.means, theirs.mixture.means, rtol=1e-6)
    np.testing.assert_allclose(ours.steps, theirs.steps, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@each_family
@pytest.mark.parametrize("num_components", [1, 3])
def test_from_a_given_start(family, num_components):
    """From its own end a fit settles at once: nothing is left to gain, whatever covariance components share."""
    end = fit(X, num_components, family=family, tol=1e-9, max_steps=5000, accelerate=False)
    start = dataclasses.replace(end.mixture, means=1.001 * end.mixture.means)
    options = {"family": family, "tol": 1e-9, "max_steps": 5000, "accelerate": False}
    plain = jax.jit(lambda x, start: fit_em(x, num_components, start=start, **options))
    for given in (end.mixture, start):
        ours, theirs = fit(X, num_components, start=given, **options), plain(X, given)
        assert ours.code.name == "successful"
        assert int(theirs.result) == 0
        np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, rtol=1e-12)
        np.testing.assert_allclose(ours.trace[0], theirs.trace[0], rtol=1e-12)
