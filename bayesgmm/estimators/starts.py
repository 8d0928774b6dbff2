"""Where EM starts: scikit-learn's names of starts, and the parts of a start that the caller gives."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from sklearn.cluster import KMeans

from bayesgmm.estimators.arguments import key_of
from bayesgmm.likelihood.rows import as_rows
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.starts.named import get_start, mixture_from_start, start_from


def start_of_init(
    init_params: str,
    given: Mapping[str, np.ndarray],
    x: np.ndarray,
    num_components: int,
    row_weights: np.ndarray | None,
    family: Family,
    reg_covar: Any,
    rng: np.random.RandomState,
) -> tuple[Any, jax.Array | None]:
    """A start of `fit_em`, and the key that it needs if it is a name.

    k-means is scikit-learn's, so that the same `random_state` gives the start of its own class, and labels in the same
    order. Parts that are `given` take the place of those of the start.
    """
    if {"weights", "means", "precisions"} <= set(given):
        return mixture_from_start(given, as_rows(x, row_weights), num_components, family, reg_covar), None
    by_name = init_params != "kmeans"
    shares = None if by_name else _kmeans_shares(x, num_components, row_weights, rng)
    key = key_of(rng) if by_name else None
    if not given and (not by_name or get_start(init_params).random):
        return (init_params if by_name else shares), key
    if by_name:
        made = start_from(as_rows(x, row_weights), num_components, family, reg_covar, start=init_params, key=key)
        made = made.permute(np.lexsort(np.asarray(made.means).T[::-1]))  # whatever the order of the rows
    else:
        made = mixture_from_start(shares, as_rows(x, row_weights), num_components, family, reg_covar)
    numbers = {"weights": made.weights, "means": made.means, **given}
    factor = made.precision_factor
    if "precisions" in given:
        factor = mixture_from_start(
            numbers, as_rows(x, row_weights), num_components, family, reg_covar
        ).precision_factor
    mixture = Mixture(np.log(numbers["weights"]), numbers["means"], factor)
    return jax.tree.map(lambda leaf: np.asarray(leaf, x.dtype), mixture), None


def _kmeans_shares(
    x: np.ndarray, num_components: int, row_weights: np.ndarray | None, rng: np.random.RandomState
) -> np.ndarray:
    options: Any = {"n_clusters": num_components, "n_init": 1, "random_state": rng}
    labels: Any = KMeans(**options).fit(x, sample_weight=row_weights).labels_
    return shares_of_labels(labels, num_components, row_weights)


def shares_of_labels(labels: np.ndarray, num_components: int, row_weights: np.ndarray | None) -> np.ndarray:
    """Responsibilities (n, k) of labels; components without rows go halves with one that has."""
    shares = np.eye(num_components)[labels]
    counts = shares.sum(0) if row_weights is None else np.asarray(row_weights, np.float64) @ shares
    sharing = [[component] for component in range(num_components)]
    hosts = np.flatnonzero(counts > 0)
    for index, empty in enumerate(np.flatnonzero(counts == 0)):
        sharing[hosts[index % len(hosts)]].append(int(empty))
    for host in hosts:
        shares[:, sharing[host]] = shares[:, [host]] / len(sharing[host])
    return shares
