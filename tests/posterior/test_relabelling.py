"""Label switching undone: known switching is recovered, orders are the best of all, and one line says what is wrong."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from helpers import (
    DATA,
    assert_close,
    each_factor_shape,
    each_representation,
    random_case,
    random_draws,
    to_float32,
    to_jax,
)

import bayesgmm
from bayesgmm.posterior import allocations
from bayesgmm.posterior.relabelling import METHODS, relabel_draws

each_method = pytest.mark.parametrize("method", METHODS)
each_method_of_rows = pytest.mark.parametrize("method", METHODS[1:])
each_separation = pytest.mark.parametrize("separation", [8.0, 3.0], ids=["separated", "overlapping"])
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.9]])


def spaced_case(family, separation, rng):
    """Three components, their means as far apart as told, in units of roughly one standard deviation."""
    case = random_case(family, 3, 2, rng)
    means = separation * CORNERS
    return dataclasses.replace(case, mixture=dataclasses.replace(case.mixture, means=means), means=means)


def jittered(mixture, draw_shape, jitter, rng):
    """Draws around a mixture, all in its order and family."""
    draws = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (*draw_shape, *leaf.shape)), mixture)
    log_weights = draws.log_weights + jitter * rng.normal(size=draws.log_weights.shape)
    num_factors = mixture.precision_factor.shape[0]
    scales = np.exp(jitter * rng.normal(size=(*draw_shape, num_factors)))
    return bayesgmm.Mixture(
        log_weights - np.log(np.exp(log_weights).sum(-1, keepdims=True)),
        draws.means + jitter * rng.normal(size=draws.means.shape),
        draws.precision_factor * scales.reshape(*scales.shape, *(1,) * (mixture.precision_factor.ndim - 1)),
    )


def random_orders(draw_shape, num_components, share, rng):
    """Orders of which about this share is drawn from all, the others being the identity."""
    num_draws = int(np.prod(draw_shape))
    orders = np.stack([rng.permutation(num_components) for _ in range(num_draws)])
    orders[rng.random(num_draws) > share] = np.arange(num_components)
    return orders.reshape(*draw_shape, num_components)


def switched(family, separation, rng, *, share=1.0, draw_shape=(3, 40)):
    """A mixture, rows of it, its draws in order, the same draws switched, and by which orders."""
    case = spaced_case(family, separation, rng)
    ordered = jittered(case.mixture, draw_shape, 0.1, rng)
    orders = random_orders(draw_shape, 3, share, rng)
    return case.mixture, case.rows(60, rng), ordered, ordered.permute(orders), orders


def num_moved(orders):
    return int((orders != np.arange(orders.shape[-1])).any(-1).sum())


@each_method
@each_separation
@each_factor_shape
def test_known_switching_is_undone(family, separation, method, rng):
    mixture, x, ordered, draws, orders = switched(family, separation, rng)
    found = relabel_draws(draws, method=method, pivot=mixture, x=x)
    assert_close(found.draws, ordered, 1e-12)
    np.testing.assert_array_equal(np.take_along_axis(orders, found.orders, -1), np.broadcast_to([0, 1, 2], (3, 40, 3)))
    assert_close(draws.permute(found.orders), found.draws, 1e-12)
    assert found.num_relabelled == num_moved(orders) > 50
    assert found.method == method


@each_method_of_rows
@each_separation
@each_representation
@pytest.mark.parametrize("share", [0.4, 1.0], ids=["seldom", "always"])
def test_known_switching_is_undone_without_a_pivot(family, separation, method, share, rng):
    """Up to one numbering of all draws, and of these the one that leaves most draws as they came."""
    _, x, ordered, draws, orders = switched(family, separation, rng, share=share)
    found = relabel_draws(draws, method=method, x=x)
    undone = np.take_along_axis(orders, found.orders, -1)
    np.testing.assert_array_equal(undone, np.broadcast_to(undone[0, 0], undone.shape))
    assert_close(found.draws, ordered.permute(undone), 1e-12)
    counts = np.unique(orders.reshape(-1, 3), axis=0, return_counts=True)[1]
    assert found.num_relabelled == num_moved(found.orders) == 120 - counts.max()


@each_method
def test_draws_in_order_stay_as_they_are(method, rng):
    mixture, x, ordered, _, _ = switched(bayesgmm.FAMILIES["full"], 3.0, rng)
    found = relabel_draws(ordered, method=method, pivot=mixture, x=x)
    assert found.num_relabelled == 0
    assert_close(found.draws, ordered, 0)


def test_the_pivot_is_the_default_and_needs_no_rows(rng):
    mixture, _, ordered, draws, _ = switched(bayesgmm.FAMILIES["tied"], 3.0, rng)
    found = relabel_draws(draws, pivot=mixture)
    assert found.method == "pivot"
    assert found.num_iterations == 1
    assert_close(found.draws, ordered, 1e-12)


def test_loss_of_the_pivot_is_the_expected_joint_log_density(rng):
    """Of rows simulated from the pivot and their own components, within five standard errors."""
    mixture, _, ordered, draws, _ = switched(bayesgmm.FAMILIES["diag"], 3.0, rng, draw_shape=(1, 3))
    (loss,) = relabel_draws(draws, pivot=mixture).losses
    labels = rng.choice(3, size=20_000, p=np.asarray(mixture.weights))
    factors = np.linalg.cholesky(mixture.covariances)
    x = mixture.means[labels] + np.einsum("nij,nj->ni", factors[labels], rng.normal(size=(len(labels), 2)))
    joint = np.asarray(ordered.joint_log_prob(x))[0][:, np.arange(len(x)), labels].mean(0)
    assert abs(joint.mean() + loss) < 5 * joint.std() / np.sqrt(len(x))


def test_components_follow_their_rows(rng):
    """Rows tell components apart, not sizes: the weights of two clusters cross over from draw to draw."""
    rows = np.concatenate([rng.normal(size=(30, 1)), 6.0 + rng.normal(size=(10, 1))])
    share = rng.uniform(0.3, 0.7, size=(1, 50))
    draws = bayesgmm.Mixture.from_covariances(
        np.stack([share, 1 - share], -1), np.tile([[0.0], [6.0]], (1, 50, 1, 1)), np.ones((1, 50, 2, 1))
    )
    orders = random_orders((1, 50), 2, 1.0, rng)
    for method in METHODS[1:]:
        found = relabel_draws(draws.permute(orders), method=method, x=rows)
        assert np.ptp(np.asarray(found.draws.means), axis=1).max() == 0


# Against every permutation.


def shares_of(draws, x, method):
    """What a method compares: responsibilities, or 1 for the component of the largest."""
    shares = np.asarray(draws.responsibilities(x)).reshape(-1, len(x), draws.num_components)
    if method == "ecr":
        shares = (shares.argmax(-1)[..., None] == np.arange(draws.num_components)).astype(float)
    return shares


def loss_of(shares, method):
    """From relabelled shares (s, n, k): divergence from their mean, or rows not under their commonest label."""
    mean = shares.mean(0)
    if method == "ecr":
        return (shares[:, np.arange(len(mean)), mean.argmax(1)] == 0).sum() / len(shares)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = shares * np.log(shares / mean)
    return np.where(shares > 0, terms, 0.0).sum() / len(shares)


@each_method_of_rows
@pytest.mark.parametrize(("num_components", "num_draws"), [(2, 8), (3, 4)])
@pytest.mark.parametrize("jitter", [0.1, 0.3], ids=["tight", "wide"])
def test_orders_are_the_best_of_all_combinations(num_components, num_draws, jitter, method, rng):
    """The alternation reaches the least loss over (k!)^(s-1) numberings; the first draw may keep its own."""
    permutations = [list(order) for order in itertools.permutations(range(num_components))]
    for _ in range(5):
        case = random_case(bayesgmm.FAMILIES["full"], num_components, 2, rng)
        draws = jittered(case.mixture, (1, num_draws), jitter, rng)
        draws = draws.permute(random_orders((1, num_draws), num_components, 1.0, rng))
        x = case.rows(10, rng)
        shares = shares_of(draws, x, method)
        orders = itertools.product([permutations[0]], *[permutations] * (num_draws - 1))
        least = min(
            loss_of(np.stack([one[:, order] for one, order in zip(shares, combination, strict=True)]), method)
            for combination in orders
        )
        found = relabel_draws(draws, method=method, x=x)
        reached = loss_of(shares_of(found.draws, x, method), method)
        assert found.losses[-1] == pytest.approx(reached, abs=1e-9)
        assert reached == pytest.approx(least, abs=1e-9)


@each_method_of_rows
@pytest.mark.parametrize("with_pivot", [True, False], ids=["pivot", "no pivot"])
def test_losses_never_rise_and_no_draw_is_better_in_another_order(with_pivot, method, rng):
    """On draws that have nothing in common, where there is most to iterate."""
    for _ in range(3):
        draws = random_draws(bayesgmm.FAMILIES["diag"], 4, 2, (2, 60), rng)
        x = 3.0 * rng.normal(size=(50, 2))
        pivot = draws[0, 0] if with_pivot else None
        found = relabel_draws(draws, method=method, pivot=pivot, x=x)
        assert (np.diff(found.losses) <= 1e-9).all()
        assert found.num_iterations == len(found.losses) <= 100
        shares = shares_of(found.draws, x, method)
        if method == "ecr" and with_pivot:
            assert found.num_iterations == 1
            reward = shares_of(pivot, x, "ecr")[0]
            assert found.losses[0] == pytest.approx(len(x) - np.einsum("snk,nk->", shares, reward) / 120, abs=1e-9)
        elif method == "ecr":
            reward = (shares.mean(0).argmax(1)[:, None] == np.arange(4)).astype(float)
        else:
            assert found.num_iterations > 2
            reward = np.log(np.maximum(shares.mean(0), 1e-300))
        scores = np.einsum("snl,nj->slj", shares, reward)
        ours = np.trace(scores, axis1=1, axis2=2)
        best = np.max([scores[:, order, np.arange(4)].sum(1) for order in itertools.permutations(range(4))], axis=0)
        # A draw of the last pass may have moved the mean by what does not change the loss.
        assert best.sum() - ours.sum() <= 1e-9 * np.abs(best).sum()


def test_ecr_keeps_the_order_of_components_without_rows(rng):
    """Where as many rows agree in either order, the draw is not counted as permuted."""
    mixture = bayesgmm.Mixture.from_covariances([0.6, 0.2, 0.1, 0.1], [[0.0], [5.0], [90.0], [99.0]], np.ones((4, 1)))
    draws = jittered(mixture, (1, 30), 0.01, rng)
    x = np.concatenate([rng.normal(size=(20, 1)), 5.0 + rng.normal(size=(10, 1))])
    swapped = np.array([1, 0, 2, 3])
    assert relabel_draws(draws, method="ecr", pivot=mixture, x=x).num_relabelled == 0
    found = relabel_draws(draws.permute(swapped), method="ecr", pivot=mixture, x=x)
    np.testing.assert_array_equal(found.orders, np.broadcast_to(swapped, (1, 30, 4)))


# Shapes, precision, memory.


@each_method
def test_a_single_component_has_nothing_to_permute(method, rng):
    case = random_case(bayesgmm.FAMILIES["full"], 1, 2, rng)
    draws = jittered(case.mixture, (2, 5), 0.1, rng)
    found = relabel_draws(draws, method=method, pivot=case.mixture, x=case.rows(5, rng))
    assert found.num_relabelled == 0
    assert found.orders.shape == (2, 5, 1)


@each_method
@pytest.mark.parametrize("draw_shape", [(7,), (1, 1), (2, 3, 4)], ids=str)
def test_any_leading_axes(draw_shape, method, rng):
    mixture, x, ordered, draws, orders = switched(bayesgmm.FAMILIES["spherical"], 8.0, rng, draw_shape=draw_shape)
    found = relabel_draws(draws, method=method, pivot=mixture, x=x)
    assert found.orders.shape == (*draw_shape, 3)
    assert found.num_relabelled == num_moved(orders)
    assert_close(found.draws, ordered, 1e-12)


@each_method
def test_float32_stays_float32(method, rng):
    mixture, x, ordered, draws, _ = switched(bayesgmm.FAMILIES["full"], 3.0, rng)
    draws, mixture = to_jax(to_float32((draws, mixture)))
    found = relabel_draws(draws, method=method, pivot=mixture, x=np.float32(x))
    assert {leaf.dtype for leaf in jax.tree.leaves(found.draws)} == {np.dtype(np.float32)}
    assert_close(found.draws, to_float32(ordered), 1e-6)


@each_method_of_rows
def test_blocks_of_draws_change_nothing(method, rng, monkeypatch):
    _, x, _, draws, _ = switched(bayesgmm.FAMILIES["full"], 2.0, rng)
    whole = relabel_draws(draws, method=method, x=x)
    monkeypatch.setattr(allocations, "_BLOCK_BYTES", 17 * x.shape[0] * 3 * 2 * 8)  # 17 of 120 draws
    for kept in (allocations._KEPT_BYTES, 0):
        monkeypatch.setattr(allocations, "_KEPT_BYTES", kept)
        parts = relabel_draws(draws, method=method, x=x)
        np.testing.assert_array_equal(parts.orders, whole.orders)
        np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-12, atol=1e-9)


def test_a_posterior_of_overlapping_components_gets_unimodal_means():
    """Old Faithful with k = 2: whatever the method, relabelled means lie on their own side."""
    x = DATA["faithful"]
    em = bayesgmm.fit_em(x, 2, key=jax.random.key(0)).mixture
    rng = np.random.default_rng(1)
    draws = jittered(em, (4, 250), 0.05, rng).permute(random_orders((4, 250), 2, 1.0, rng))
    for method in METHODS:
        found = relabel_draws(draws, method=method, pivot=em, x=x)
        first, second = np.moveaxis(np.asarray(found.draws.means), -2, 0)
        sign = np.sign(em.means[1] - em.means[0])
        assert (sign * (second - first) > 0).all()


# What cannot be done.


def refused(message, draws, **options):
    with pytest.raises(bayesgmm.InputError, match=message) as refusal:
        relabel_draws(draws, **options)
    assert "\n" not in str(refusal.value)


def test_errors_say_what_to_do(rng):
    mixture, x, _, draws, _ = switched(bayesgmm.FAMILIES["full"], 3.0, rng, draw_shape=(2, 4))
    refused("method='kmeans' is not known; choose one of pivot, stephens, ecr", draws, method="kmeans")
    refused("method='pivot' needs pivot=", draws)
    for method in METHODS[1:]:
        refused(f"method='{method}' classifies rows and needs them: give x=", draws, method=method, pivot=mixture)
        refused(r"x must have shape \(rows, 2\)", draws, method=method, x=x[:, :1])
        refused("x has NaN or infinite values in 1 of 60 rows", draws, method=method, x=np.where(x == x[3], np.nan, x))
    for method in METHODS:
        refused("draws with means .* are a single mixture; give the draws", mixture, method=method, pivot=mixture, x=x)
        empty = jax.tree.map(lambda leaf: leaf[:, :0], draws)
        refused("there are none. Give at least one draw", empty, method=method, pivot=mixture, x=x)
        broken = dataclasses.replace(draws, means=np.where(np.arange(4)[:, None, None] == 2, np.nan, draws.means))
        refused(
            r"2 of 8 draws are not finite, the first draws\[0, 2\]; drop", broken, method=method, pivot=mixture, x=x
        )
        unlike = random_case(bayesgmm.FAMILIES["full"], 4, 2, rng).mixture, draws
        for pivot in (*unlike, random_case(bayesgmm.FAMILIES["full"], 3, 1, rng).mixture):
            refused("pivot with means .* does not fit .*: give one mixture", draws, method=method, pivot=pivot, x=x)
        failed = dataclasses.replace(mixture, means=np.full((3, 2), np.nan))
        refused("pivot has parameters that are not finite", draws, method=method, pivot=failed, x=x)


def test_only_the_pivot_method_needs_a_pivot_of_the_same_family(rng):
    _, x, ordered, draws, _ = switched(bayesgmm.FAMILIES["full"], 8.0, rng)
    diagonal = spaced_case(bayesgmm.FAMILIES["diag"], 8.0, rng).mixture
    refused("of the same k, d and family", draws, pivot=diagonal)
    for method in METHODS[1:]:
        assert_close(relabel_draws(draws, method=method, pivot=diagonal, x=x).draws, ordered, 1e-12)


def test_rows_out_of_reach_belong_to_the_closest_component(rng):
    mixture, x, ordered, draws, _ = switched(bayesgmm.FAMILIES["full"], 8.0, rng)
    far = np.float32(np.concatenate([x, [[1e30, 0.0]]]))
    draws, mixture = to_float32((draws, mixture))
    found = relabel_draws(draws, method="ecr", pivot=mixture, x=far)
    assert_close(found.draws, to_float32(ordered), 1e-6)
    assert np.isfinite(found.losses).all()
