"""Parameters of a start in the shapes in which the package itself gives them."""

import numpy as np
import pytest
from helpers import assert_close, each_family, random_case

from bayesgmm.errors import InputError
from bayesgmm.mixtures.families import FAMILIES
from bayesgmm.starts.given import mixture_from_start


@each_family
@pytest.mark.parametrize("kind", ["covariances", "precisions"])
def test_dense_matrices_of_every_component_are_a_start_of_any_family(family, kind, rng):
    case = random_case(family, 3, 2, rng)
    mixture = case.mixture
    matrices = mixture.covariances if kind == "covariances" else np.linalg.inv(mixture.covariances)
    start = {"weights": mixture.weights, "means": mixture.means, kind: matrices}
    found = mixture_from_start(start, case.rows(20, rng), 3, family, 0.0)
    assert found.precision_factor.shape == mixture.precision_factor.shape
    assert_close(found.covariances, case.covariances, 1e-12)


def test_matrices_that_the_family_does_not_have_are_refused(rng):
    case = random_case(FAMILIES["full"], 3, 2, rng)
    start = {"means": case.means, "covariances": case.covariances}
    for name in ("tied", "diag", "tied_spherical"):
        with pytest.raises(InputError, match=f"start: covariances are not those of family='{name}': .*; give them so"):
            mixture_from_start(start, case.rows(20, rng), 3, FAMILIES[name], 0.0)
