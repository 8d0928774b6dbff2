"""The one pass over the rows: its sums, and the derivatives made of them, against NumPy and against plain autodiff."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    each_factor_shape,
    each_family,
    each_representation,
    own_shape,
    random_case,
    random_covariances,
    random_draws,
    to_float32,
    to_jax,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from scipy import special

from bayesgmm.likelihood.expectation import expected_moments, moments_of_partition
from bayesgmm.likelihood.moments import Moments, expected_complete_log_prob, maximise
from bayesgmm.likelihood.rows import Rows, over_blocks
from bayesgmm.likelihood.scores import log_likelihood, row_log_prob, row_summaries
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.mixtures.mixture import Mixture, joint_and_marginal
from bayesgmm.numerics import blocks as blocks_module
from bayesgmm.numerics.blocks import block_size

pytestmark = pytest.mark.usefixtures("strict")

K, D, N = 3, 2, 40
SUMS = ("count", "first", "second", "log_likelihood")


@pytest.fixture
def blocks(monkeypatch):
    """Rows in blocks of 16, which do not divide N."""
    monkeypatch.setattr(blocks_module, "_MIN_BLOCK", 16)
    monkeypatch.setattr(blocks_module, "_MAX_BLOCK", 16)
    jax.clear_caches()
    assert block_size(N, 8 * K * D) == 16
    yield
    jax.clear_caches()


@pytest.fixture(params=["whole", "blocks"])
def blocking(request):
    """Every test that asks for this runs twice: rows in one piece, and in blocks."""
    if request.param == "blocks":
        request.getfixturevalue("blocks")


@pytest.fixture
def problem(family, rng):
    """A mixture, rows and their weights."""
    case = random_case(family, K, D, rng)
    return case, case.rows(N, rng), rng.uniform(0.0, 2.0, size=N)


def numpy_moments(case, x, row_weights):
    joint = case.joint_log_prob(x)
    marginal = special.logsumexp(joint, axis=1)
    shares = row_weights[:, None] * np.exp(joint - marginal[:, None])
    centred = x[:, None, :] - case.means
    second = np.einsum("nj,nja,njb->jab", shares, centred, centred)
    if case.mixture.is_diagonal:
        second = np.diagonal(second, axis1=1, axis2=2)
    first = np.einsum("nj,nja->ja", shares, centred)
    return Moments(case.means, shares.sum(0), first, second, np.asarray(row_weights @ marginal))


def plain_log_likelihood(mixture, x, row_weights):
    """The total, differentiated by JAX alone."""
    return jnp.dot(row_weights, joint_and_marginal(mixture, x)[2])


def plain_log_prob(mixture, x):
    return joint_and_marginal(mixture, x)[2]


@each_factor_shape
def test_sums_are_those_of_numpy(problem, blocking):
    case, x, row_weights = problem
    result = expected_moments(case.mixture, x, row_weights)
    assert_close(result, numpy_moments(case, x, row_weights), 1e-12)
    assert_close(log_likelihood(case.mixture, x, row_weights), result.log_likelihood, 1e-14)
    assert_close(expected_moments(case.mixture, x), numpy_moments(case, x, np.ones(N)), 1e-12)
    assert_close(log_likelihood(case.mixture, x), case.mixture.log_prob(x).sum(), 1e-14)


@each_representation
def test_many_rows_are_taken_in_blocks(family, rng):
    """With the block sizes that users get."""
    num_rows = 9001
    assert block_size(num_rows, 8 * K * D) < num_rows
    case = random_case(family, K, D, rng)
    x, row_weights = case.rows(num_rows, rng), rng.uniform(size=num_rows)
    assert_close(expected_moments(case.mixture, x, row_weights), numpy_moments(case, x, row_weights), 1e-12)
    marginal = case.mixture.log_prob(x)
    assert_close(row_log_prob(case.mixture, x), marginal, 1e-13)
    assert_close(log_likelihood(case.mixture, x, row_weights), row_weights @ marginal, 1e-13)


def test_blocks_fit_in_the_cache_and_never_exceed_the_rows():
    assert block_size(100, 8 * K * D) == 100
    assert block_size(10**6, 4) == blocks_module._MAX_BLOCK
    assert block_size(10**6, 10**5) == blocks_module._MIN_BLOCK
    size = block_size(10**6, 8 * 8 * 8)
    assert blocks_module._MIN_BLOCK < size < blocks_module._MAX_BLOCK
    assert size * 8 * 8 * 8 <= blocks_module._BLOCK_BYTES


def test_sums_over_blocks_lose_no_digits():
    """A float32 total of ten million terms, of which a plain running sum loses half the digits."""
    terms = np.full(10**7, 0.1, np.float32)
    rows = Rows(jnp.zeros((10**7, 1)), jnp.asarray(terms))
    total = jax.jit(lambda rows: over_blocks(lambda rows: (rows.weights.sum(), None), 256, rows)[0])(rows)
    np.testing.assert_allclose(float(total), terms.astype(np.float64).sum(), rtol=1e-6)


@each_representation
def test_rows_of_weight_zero_are_inert(problem, blocking):
    case, x, row_weights = problem
    expected = expected_moments(case.mixture, x, row_weights)
    more, none = np.concatenate([x, 50.0 + x[:5]]), np.concatenate([row_weights, np.zeros(5)])
    assert_close(expected_moments(case.mixture, more, none), expected, 1e-14)


@each_representation
def test_weight_two_is_the_row_twice(problem, blocking):
    case, x, _ = problem
    times = np.arange(N) % 3
    weighted = expected_moments(case.mixture, x, times.astype(np.float64))
    repeated = expected_moments(case.mixture, np.repeat(x, times, axis=0))
    assert_close(weighted, repeated, 1e-13)


@each_representation
def test_sums_of_two_sets_of_rows_add(problem):
    case, x, row_weights = problem
    parts = [expected_moments(case.mixture, x[rows], row_weights[rows]) for rows in (slice(None, 15), slice(15, None))]
    assert_close(parts[0] + parts[1], expected_moments(case.mixture, x, row_weights), 1e-13)


@each_representation
def test_float32_stays_float32(problem, blocks):
    case, x, row_weights = problem
    exact = expected_moments(case.mixture, x, row_weights)
    narrow, x, row_weights = to_float32((case.mixture, x, row_weights))
    rounded = expected_moments(narrow, x, row_weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(exact)} == {np.dtype(np.float64)}
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {np.dtype(np.float32)}
    assert_close(rounded, exact, 1e-5)
    assert log_likelihood(narrow, x, row_weights).dtype == np.float32
    assert row_log_prob(narrow, x).dtype == np.float32
    assert {leaf.dtype for leaf in row_summaries(narrow, x)} == {np.dtype(np.float32)}
    gradient = jax.jit(jax.grad(log_likelihood))(narrow, x, row_weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype(np.float32)}


@pytest.mark.usefixtures("x64")
@each_factor_shape
def test_gradient_of_the_log_likelihood(problem, blocking):
    arguments = to_jax((problem[0].mixture, *problem[1:]))
    value, gradient = jax.jit(jax.value_and_grad(plain_log_likelihood, argnums=(0, 1, 2)))(*arguments)
    everything = jax.jit(jax.value_and_grad(log_likelihood, argnums=(0, 1, 2)))(*arguments)
    assert_close(everything, (value, gradient), 1e-9)
    # In the mixture alone the rows are never differentiated: another branch of the rule.
    assert_close(jax.jit(jax.grad(log_likelihood))(*arguments), gradient[0], 1e-9)


@pytest.mark.usefixtures("x64")
@each_factor_shape
def test_forward_derivative_of_the_log_likelihood(problem, rng):
    arguments = to_jax((problem[0].mixture, *problem[1:]))
    tangents = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), arguments)
    ours, expected = (
        jax.jit(lambda arguments, tangents, function=function: jax.jvp(function, arguments, tangents))(
            arguments, tangents
        )
        for function in (log_likelihood, plain_log_likelihood)
    )
    assert_close(ours, expected, 1e-9)


@pytest.mark.usefixtures("x64")
@each_representation
def test_second_derivatives_of_the_log_likelihood(problem, blocks, rng):
    """In everything at once along a random direction, forward over reverse and reverse over reverse."""
    case, x, row_weights = problem
    vector, unravel = ravel_pytree(to_jax((case.mixture, x[:19], row_weights[:19])))
    direction = jnp.asarray(rng.normal(size=vector.shape))

    def forward_over_reverse(function, vector):
        return jax.jvp(jax.grad(lambda vector: function(*unravel(vector))), (vector,), (direction,))[1]

    def reverse_over_reverse(function, vector):
        return jax.grad(lambda vector: jnp.dot(jax.grad(lambda inner: function(*unravel(inner)))(vector), direction))(
            vector
        )

    expected = jax.jit(functools.partial(forward_over_reverse, plain_log_likelihood))(vector)
    assert_close(jax.jit(functools.partial(forward_over_reverse, log_likelihood))(vector), expected, 1e-9)
    assert_close(jax.jit(functools.partial(reverse_over_reverse, log_likelihood))(vector), expected, 1e-9)


@pytest.mark.usefixtures("x64")
@each_factor_shape
def test_hessian_of_the_log_likelihood_in_the_mixture(problem):
    case, x, _ = problem
    vector, unravel = ravel_pytree(to_jax(case.mixture))
    x = jnp.asarray(x)
    expected = jax.jit(jax.hessian(lambda vector: plain_log_likelihood(unravel(vector), x, jnp.ones(N))))(vector)
    assert_close(jax.jit(jax.hessian(lambda vector: log_likelihood(unravel(vector), x)))(vector), expected, 1e-9)


@pytest.mark.usefixtures("x64")
@each_representation
def test_log_likelihood_maps_over_draws_and_over_data(family, rng):
    draws = to_jax(random_draws(family, K, D, (4,), rng))
    x, row_weights = jnp.asarray(rng.normal(size=(4, N, D))), jnp.asarray(rng.uniform(size=(4, N)))
    value_and_grad = jax.jit(jax.value_and_grad(log_likelihood, argnums=(0, 1, 2)))
    mapped = jax.jit(jax.vmap(value_and_grad))(draws, x, row_weights)
    over_draws = jax.jit(jax.vmap(value_and_grad, in_axes=(0, None, None)))(draws, x[0], row_weights[0])
    over_data = jax.jit(jax.vmap(value_and_grad, in_axes=(None, 0, 0)))(draws[0], x, row_weights)
    for i in range(4):
        for batch, arguments in (
            (mapped, (draws[i], x[i], row_weights[i])),
            (over_draws, (draws[i], x[0], row_weights[0])),
            (over_data, (draws[0], x[i], row_weights[i])),
        ):
            assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], batch), value_and_grad(*arguments), 1e-11)


@pytest.mark.usefixtures("x64")
@each_factor_shape
def test_gradient_of_row_log_prob(problem, blocking, rng):
    mixture, x = to_jax((problem[0].mixture, problem[1]))
    cotangent = jnp.asarray(rng.normal(size=N))

    def value_and_pullback(function, mixture, x):
        value, pullback = jax.vjp(function, mixture, x)
        return value, pullback(cotangent)

    expected = jax.jit(functools.partial(value_and_pullback, plain_log_prob))(mixture, x)
    assert_close(jax.jit(functools.partial(value_and_pullback, row_log_prob))(mixture, x), expected, 1e-9)


@pytest.mark.usefixtures("x64")
@each_representation
def test_gradient_of_row_log_prob_maps_over_draws(family, rng):
    draws = to_jax(random_draws(family, K, D, (3,), rng))
    x, cotangent = jnp.asarray(rng.normal(size=(N, D))), jnp.asarray(rng.normal(size=N))

    def score(function, mixture):
        return jax.grad(lambda mixture: jnp.dot(function(mixture, x), cotangent))(mixture)

    mapped = jax.jit(jax.vmap(functools.partial(score, row_log_prob)))(draws)
    plain = jax.jit(functools.partial(score, plain_log_prob))
    for i in range(3):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), plain(draws[i]), 1e-9)


@pytest.mark.parametrize("family", [FAMILIES["full"], FAMILIES["diag"]], ids=["triangular", "diagonal"])
@pytest.mark.usefixtures("x64")
def test_derivatives_agree_with_finite_differences(problem):
    mixture, x, row_weights = to_jax((problem[0].mixture, problem[1][:9], problem[2][:9]))
    check_grads(jax.jit(log_likelihood), (mixture, x, row_weights), order=1, rtol=1e-6)
    check_grads(jax.jit(row_log_prob), (mixture, x), order=1, modes=["rev"], rtol=1e-6)


@each_representation
def test_row_summaries(problem, blocking):
    case, x, _ = problem
    marginal, certainty = row_summaries(case.mixture, x)
    assert_close(marginal, case.mixture.log_prob(x), 1e-13)
    assert_close(np.exp(certainty), case.mixture.responsibilities(x).max(1), 1e-12)


@pytest.mark.usefixtures("x64")
@each_representation
def test_moments_of_a_partition(problem, family, blocking, rng):
    _, x, row_weights = problem
    x = x + 1e6
    responsibilities = rng.dirichlet(np.ones(K), size=N)
    result = moments_of_partition(*to_jax((Rows(x, row_weights), responsibilities)), family)
    shares = responsibilities * row_weights[:, None]
    means = shares.T @ (x - 1e6) / shares.sum(0)[:, None]
    assert_close(result.count, shares.sum(0), 1e-14)
    assert_close(result.origin - 1e6, means, 1e-8)
    centred = (x - 1e6)[:, None, :] - means
    second = np.einsum("nj,nja,njb->jab", shares, centred, centred)
    # Far from the origin the digits of the scatter are still there: means come first.
    assert_close(result.second, np.diagonal(second, axis1=1, axis2=2) if result.second.ndim == 2 else second, 1e-8)
    assert np.abs(result.first).max() < 1e-6
    assert np.isnan(result.log_likelihood)


@pytest.mark.usefixtures("x64")
def test_a_partition_with_an_empty_component_has_finite_moments(rng):
    responsibilities = jnp.asarray(np.eye(3)[np.arange(N) % 2])
    x = jnp.asarray(rng.normal(size=(N, D)))
    result = moments_of_partition(Rows(x, jnp.ones(N)), responsibilities, FAMILIES["full"])
    assert result.count[2] == 0
    assert all(np.isfinite(getattr(result, name)).all() for name in ("origin", "count", "first", "second"))


@pytest.mark.usefixtures("x64")
@each_factor_shape
def test_expected_complete_log_prob_of_another_mixture(problem, family, rng):
    """Moments of one mixture, scored under another: the E-step's bound at any parameters."""
    case, x, row_weights = problem
    other = random_case(family, K, D, rng)
    statistics = to_jax(expected_moments(*to_jax((case.mixture, x, row_weights))))
    shares = row_weights[:, None] * np.asarray(case.mixture.responsibilities(x))
    expected = (shares * other.joint_log_prob(x)).sum(0)
    assert_close(expected_complete_log_prob(to_jax(other.mixture), statistics), expected, 1e-11)


def closed_form(family, x, shares, ridge):
    """Weights, means and dense covariances of the M-step, as the textbooks have them."""
    count = shares.sum(0)
    means = shares.T @ x / count[:, None]
    centred = x[:, None, :] - means
    covariances = np.einsum("nj,nja,njb->jab", shares, centred, centred) / count[:, None, None] + np.diag(ridge)
    weights = count / count.sum()
    match family.name:
        case "full":
            pass
        case "tied":
            covariances = np.broadcast_to(np.einsum("j,jab->ab", weights, covariances), covariances.shape)
        case "diag":
            covariances = covariances * np.eye(len(ridge))
        case "spherical":
            covariances = np.trace(covariances, axis1=1, axis2=2)[:, None, None] / len(ridge) * np.eye(len(ridge))
        case "tied_diag":
            covariances = np.broadcast_to(np.einsum("j,jab->ab", weights, covariances), covariances.shape)
            covariances = covariances * np.eye(len(ridge))
        case "tied_spherical":
            variance = np.einsum("j,jaa->", weights, covariances) / len(ridge)
            covariances = np.broadcast_to(variance * np.eye(len(ridge)), covariances.shape)
        case _:
            pytest.skip(f"no closed form written down for {family.name}")
    return weights, means, covariances


@pytest.mark.parametrize("ridge", [(0.0, 0.0), (0.1, 0.3)], ids=["no-ridge", "ridge"])
@pytest.mark.usefixtures("x64")
@each_family
def test_maximise_is_the_closed_form(problem, family, ridge):
    case, x, row_weights = problem
    shares = row_weights[:, None] * np.asarray(case.mixture.responsibilities(x))
    weights, means, covariances = closed_form(family, x, shares, np.array(ridge))
    statistics = to_jax(expected_moments(*to_jax((case.mixture, x, row_weights))))
    result = maximise(statistics, family, jnp.asarray(ridge))
    assert_close(result.weights, weights, 1e-13)
    assert_close(result.means, means, 1e-13)
    assert_close(result.covariances, covariances, 1e-12)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), log_size=st.floats(-4.0, 0.0))
@each_family
def test_nothing_in_the_family_beats_the_maximum(family, seed, log_size):
    """Weights, means and covariances moved at once, by any amount and in any direction."""
    rng = np.random.default_rng(seed)
    case = random_case(family, K, D, rng)
    x = 2.0 * rng.normal(size=(N, D))
    with jax.enable_x64(True):
        statistics = expected_moments(*to_jax((case.mixture, x)))
        best = maximise(statistics, family, jnp.zeros(D))
        assume(bool(jnp.isfinite(best.precision_factor).all()))  # a component of one row has no maximum
        size = 10.0**log_size
        weights = (1 - size) * best.weights + size * rng.dirichlet(np.ones(K))
        means = best.means + size * rng.normal(size=(K, D))
        near = own_shape(best.covariances, family) + size * random_covariances(family, K, D, rng)
        covariances = np.exp(size * rng.normal()) * near
        moved = Mixture.from_covariances(*to_jax((weights, means, covariances)))
        highest = float(expected_complete_log_prob(best, statistics).sum())
        assert float(expected_complete_log_prob(moved, statistics).sum()) <= highest + 1e-12 * abs(highest)


@pytest.mark.parametrize("num_rows", [300, 16394, 2**20 + 3])
def test_a_row_beyond_the_reach_of_float32_counts_by_its_weight(num_rows):
    """Its log-density is minus infinity wherever the boundaries of blocks fall, and of weight 0 it counts nothing."""
    mixture = Mixture.from_covariances(*(np.asarray(part, np.float32) for part in (np.ones(1), [[0]], [[[1]]])))
    x, weights = np.zeros((num_rows, 1), np.float32), np.ones(num_rows, np.float32)
    x[-20] = 1e25
    assert log_likelihood(mixture, x, weights) == -np.inf
    weights[-20] = 0.0
    np.testing.assert_allclose(
        log_likelihood(mixture, x, weights), -0.5 * np.log(2 * np.pi) * (num_rows - 1), rtol=1e-6
    )
