"""Label switching: permutations are undone exactly, and draws are brought to the reference's labels."""

import itertools

import jax
import numpy as np
import pytest
from helpers import assert_close, each_factor_shape, each_representation, random_case, random_draws

import bayesgmm
from bayesgmm.posterior.matching import label_scores


@each_factor_shape
@pytest.mark.parametrize("num_features", [1, 3])
def test_permutations_are_undone(family, num_features, rng):
    reference = random_case(family, 4, num_features, rng).mixture
    for order in itertools.permutations(range(4)):
        shuffled = reference.permute(np.array(order))
        assert_close(bayesgmm.relabel(shuffled, reference), reference, 1e-12)


@each_representation
def test_every_draw_has_its_own_order(family, rng):
    reference = random_case(family, 3, 2, rng).mixture
    orders = np.stack([rng.permutation(3) for _ in range(10)]).reshape(2, 5, 3)
    draws = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (2, 5, *leaf.shape)).copy(), reference).permute(orders)
    found = bayesgmm.match_labels(draws, reference)
    assert found.shape == (2, 5, 3)
    relabelled = draws.permute(found)
    np.testing.assert_allclose(relabelled.means, np.broadcast_to(reference.means, (2, 5, 3, 2)), rtol=1e-12)


@each_factor_shape
def test_score_is_the_expected_joint_log_density(family, rng):
    """Against a Monte Carlo average of the density itself, within five standard errors."""
    mixture, reference = (random_case(family, 2, 2, rng) for _ in range(2))
    scores = np.asarray(label_scores(mixture.mixture, reference.mixture))
    for j in range(2):
        rows = rng.multivariate_normal(reference.means[j], reference.covariances[j], size=20_000)
        joint = np.asarray(mixture.mixture.joint_log_prob(rows)) * reference.weights[j]
        error = joint.std(0) / np.sqrt(len(rows))
        assert (np.abs(joint.mean(0) - scores[:, j]) < 5 * error).all()


def test_order_is_the_best_of_all_permutations(rng):
    family = bayesgmm.FAMILIES["full"]
    reference = random_case(family, 4, 2, rng).mixture
    draws = random_draws(family, 4, 2, (6,), rng)
    scores = np.asarray(label_scores(draws, reference))
    for score, order in zip(scores, bayesgmm.match_labels(draws, reference), strict=True):
        best = max(itertools.permutations(range(4)), key=lambda p: sum(score[i, j] for j, i in enumerate(p)))
        assert tuple(order) == best


def test_mixtures_of_other_shapes_are_refused(rng):
    two, three = (random_case(bayesgmm.FAMILIES["full"], k, 2, rng).mixture for k in (2, 3))
    with pytest.raises(bayesgmm.InputError, match=r"reference with means \(3, 2\) .* does not fit mixture with means"):
        bayesgmm.match_labels(two, three)
    diagonal = random_case(bayesgmm.FAMILIES["diag"], 2, 2, rng).mixture
    factors = r"factors \(2, 2\) does not fit .* factors \(2, 2, 2\): give one mixture of the same k, d and family"
    with pytest.raises(bayesgmm.InputError, match=factors):
        bayesgmm.relabel(two, diagonal)
