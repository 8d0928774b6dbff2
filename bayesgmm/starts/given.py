"""Starts that a user gives (a mixture, some of its parameters, responsibilities, labels), checked and made mixtures."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bayesgmm.errors import InputError
from bayesgmm.likelihood.rows import Rows, as_rows
from bayesgmm.mixtures.factors import Factor
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture, as_mixture
from bayesgmm.numerics.precision import AnyArray, ArrayLike, is_traced, matching_precision
from bayesgmm.numerics.validation import matrix_fault, refuse_masks, short_repr
from bayesgmm.priors.normal_inverse_wishart import ConjugateDistribution
from bayesgmm.starts.kmeans import mixture_of_partition
from bayesgmm.starts.sampling import centre_and_scale

if TYPE_CHECKING:
    StartLike = str | Mixture | Sequence[Mixture] | Mapping[str, ArrayLike] | ConjugateDistribution | ArrayLike
else:
    StartLike = object
"""A start as a user gives it: a name, mixtures, parameters, an approximation, responsibilities or labels."""


def mixture_from_start(
    start: StartLike, x: ArrayLike | Rows, num_components: int, family: Family, reg_covar: ArrayLike
) -> Mixture:
    """The mixture that a user's own start means, in the precision of the rows and the representation of the family.

    Args:
        start: one of

            * a `Mixture`;
            * a mapping with `means` (k, d) and, where wanted, `weights` (k) and one of `covariances` and `precisions`,
              in scikit-learn's shapes: (k, d, d), (d, d) where shared, (k, d) diagonal, (k) spherical. Without weights
              they are equal; without covariances they come from the M-step of the rows nearest to each mean;
            * responsibilities (n, k), or integer labels (n) from 0 to k - 1, followed by the M-step.
        x: rows (n, d), or `Rows` where they have weights.
        num_components: k.
        family: covariance family.
        reg_covar: ridge of the M-step, one number or one for each feature (d).

    Raises:
        InputError: for shapes and values that cannot be a start, before anything is compiled.
    """
    rows = as_rows(x)
    if isinstance(start, Mixture):
        return _convert(start, rows.values, num_components, family)
    if isinstance(start, Mapping):
        return _from_parameters(start, rows, num_components, family, reg_covar)
    return mixture_of_partition(rows, responsibilities_from_start(start, rows, num_components), family, reg_covar)


@matching_precision
def _build(
    x: AnyArray, weights: AnyArray, means: AnyArray, matrices: AnyArray, factor_of: Callable[[AnyArray], Factor]
) -> Mixture:
    weights, means, matrices = (jnp.asarray(value, x.dtype) for value in (weights, means, matrices))
    return Mixture(jnp.log(weights / weights.sum()), means, factor_of(matrices).array)


@matching_precision
def _nearest_means(rows: Rows, means: AnyArray) -> Array:
    """Label of the mean nearest to each row in standardised columns, shape (n)."""
    rows = jax.tree.map(jnp.asarray, rows)
    centre, scale = (part[None] for part in centre_and_scale(rows))
    standard, means = (rows.values - centre) / scale, (jnp.asarray(means, rows.dtype) - centre) / scale
    return (0.5 * jnp.square(means).sum(1)[:, None] - jnp.matmul(means, standard.T, precision="highest")).argmin(0)


@matching_precision
def _convert(start: Mixture, x: AnyArray, num_components: int, family: Family) -> Mixture:
    """The start in the precision of x, its precision factor in the representation of the family.

    It is taken at its word: variances that differ by feature count in the first responsibilities of any family.
    """
    _check_given(start, num_components, x.shape[1], family, finite=True)
    factor = jnp.asarray(start.precision_factor, x.dtype)
    factor = factor if family.diagonal else start.factor.dense(factor)
    factor = jnp.broadcast_to(factor, (family.num_factors(num_components), *factor.shape[1:]))
    return Mixture(jnp.asarray(start.log_weights, x.dtype), jnp.asarray(start.means, x.dtype), factor)


def _from_parameters(
    start: Mapping[str, ArrayLike], rows: Rows, num_components: int, family: Family, reg_covar: ArrayLike
) -> Mixture:
    known, (k, d) = ("weights", "means", "covariances", "precisions"), (num_components, rows.num_features)
    if unknown := [name for name in start if name not in known]:
        raise InputError(f"start has an entry {unknown[0]!r}; a mapping may have {', '.join(known)}")
    if "means" not in start:
        raise InputError("start has no 'means', which a mapping must have")
    if "covariances" in start and "precisions" in start:
        raise InputError("start has both covariances and precisions; give one of them")
    means, weights = _as_array("means", start["means"], (k, d)), start.get("weights", np.full(k, 1 / k))
    weights = _as_array("weights", weights, (k,))
    if not is_traced(weights):
        if (bad := np.flatnonzero(weights <= 0)).size:
            first = f"weights[{bad[0]}]={weights[bad[0]]:g}"
            raise InputError(f"start: {first} must be positive; an empty component stays so")
        if abs(weights.sum() - 1) > 1e-4:
            raise InputError(f"start: weights sum to {weights.sum():g}; they must sum to 1")
    for kind in ("covariances", "precisions"):
        if kind in start:
            matrices = _matrices(kind, start[kind], k, d, family)
            return _build(rows.values, weights, means, matrices, getattr(family.representation, f"from_{kind}"))
    shares = responsibilities_from_start(_nearest_means(rows, means), rows, k)
    fitted = mixture_of_partition(rows, shares, family, reg_covar)
    return _build(rows.values, weights, means, fitted.precision_factor, family.representation)


def _matrices(kind: str, value: ArrayLike, num_components: int, num_features: int, family: Family) -> AnyArray:
    matrices = _compact(kind, _as_array(kind, value), num_components, num_features, family)
    matrices = family.expand(f"start: {kind}", matrices, num_components, num_features)
    if is_traced(matrices):
        return matrices
    for index, matrix in enumerate(matrices):
        name = kind if family.shared else f"{kind}[{index}]"
        if family.diagonal:
            if (matrix <= 0).any():
                raise InputError(f"start: {name}={matrix.tolist()} must be positive")
        elif fault := matrix_fault(matrix):
            raise InputError(f"start: {name} {fault}")
    return matrices


def _compact(kind: str, matrices: AnyArray, num_components: int, num_features: int, family: Family) -> AnyArray:
    """Dense matrices of every component, as `Mixture.covariances` are, without what the family has once or not at all.

    Those of any other shape stay as they are.
    """
    if matrices.shape != (num_components, num_features, num_features) or not (family.shared or family.diagonal):
        return matrices
    diagonals = matrices.diagonal(0, 1, 2)
    compact = diagonals if family.diagonal else matrices
    compact = compact[:1] if family.shared else compact
    if is_traced(matrices):
        return compact
    whole = compact[..., None] * np.eye(num_features) if family.diagonal else compact
    if not np.allclose(whole, matrices, rtol=1e-5, atol=1e-8 * float(np.abs(diagonals).max())):
        raise InputError(
            f"start: {kind} are not those of family={family.name!r}: {family.description}; give them so, or start from "
            "the means alone"
        )
    return compact


def _as_array(name: str, value: ArrayLike, shape: tuple[int, ...] | None = None) -> AnyArray:
    """A finite float64 array of the given shape; a traced value is asked for its shape alone."""
    refuse_masks(value, f"start: {name}")
    try:
        array = jnp.asarray(value) if is_traced(value) else np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"start: {name} must be an array of numbers; got {type(value).__name__}") from None
    if shape is not None and array.shape != shape:
        raise InputError(f"start: {name} must have shape {shape}; got {array.shape}")
    if not is_traced(array) and not np.isfinite(array).all():
        raise InputError(f"start: {name} has NaN or infinite entries")
    return array


def responsibilities_from_start(start: object, rows: Rows, num_components: int) -> AnyArray:
    """Responsibilities (n, k) from responsibilities or labels, in which every component has rows."""
    num_rows, given = len(rows), type(start).__name__
    refuse_masks(start, "start")
    if not isinstance(start, jax.Array):
        try:
            start = np.asarray(start)
        except ValueError:
            start = np.asarray(None)
    if start.dtype.kind not in "iuf" or start.ndim not in (1, 2) or (start.ndim == 1 and start.dtype.kind == "f"):
        raise InputError(
            "start must be a Mixture, a mapping with 'means', responsibilities (rows, components) or integer labels "
            f"(rows); got {given} of dtype {start.dtype} and shape {start.shape}"
        )
    if start.ndim == 1:
        if start.shape != (num_rows,):
            raise InputError(f"start: labels must have shape ({num_rows},), one for each row; got {start.shape}")
        if is_traced(start):
            return jax.nn.one_hot(start, num_components, dtype=rows.dtype)
        labels = np.asarray(start)
        if (bad := np.flatnonzero((labels < 0) | (labels >= num_components))).size:
            raise InputError(f"start[{bad[0]}]={labels[bad[0]]} must be a label from 0 to {num_components - 1}")
        shares = np.eye(num_components)[labels]
    else:
        shares = _as_array("responsibilities", start, (num_rows, num_components))
        if is_traced(shares):
            return shares / shares.sum(1, keepdims=True)
        if (negative := np.argwhere(shares < 0)).size:
            row, column = negative[0]
            raise InputError(f"start[{row}, {column}]={shares[row, column]:g}: responsibilities cannot be negative")
        totals = shares.sum(1)
        if (bad := np.flatnonzero(np.abs(totals - 1) > 1e-4)).size:
            raise InputError(f"start[{bad[0]}] sums to {totals[bad[0]]:g}; the responsibilities of a row sum to 1")
        shares = shares / totals[:, None]
    v = rows.weights
    if not is_traced(v) and (empty := np.flatnonzero(np.asarray(v, np.float64) @ shares == 0)).size:
        raise InputError(f"start leaves component {empty[0]} without rows; every component needs some")
    return shares.astype(rows.dtype)


def check_starts(
    start: object, num_components: int, num_features: int, family: Family, *, finite: bool = True
) -> list[Mixture]:
    """The start or starts, a mixture or a sequence of them, as `check_start` gives them.

    Raises:
        InputError: as `check_start`, and for none.
    """
    given = list(start) if isinstance(start, Sequence) and not isinstance(start, str) else [start]
    if not given:
        raise InputError("start is an empty sequence; give at least one Mixture, or leave it out to start from EM")
    return [check_start(one, num_components, num_features, family, finite=finite) for one in given]


def check_start(
    start: object, num_components: int, num_features: int, family: Family, *, finite: bool = True
) -> Mixture:
    """A mixture that is a member of the family, with as many factors as the family has.

    Raises:
        InputError: for anything else, and where `finite` is asked for, for a mixture that is not.
    """
    if not isinstance(start, Mixture):
        raise InputError(f"start={short_repr(start)} must be a Mixture, such as the .mixture of a fit_em result")
    _check_given(start, num_components, num_features, family, finite=finite)
    if not isinstance(start.factor, family.representation):
        raise InputError(
            f"start has a diagonal factor, and family={family.name!r} needs a triangular one; start from a fit_em "
            "result of the same family"
        )
    factor = np.asarray(start.precision_factor)
    if family.isotropic and not np.allclose(factor, factor[:, :1], rtol=1e-5, atol=0.0, equal_nan=True):
        raise InputError(f"start has variances that differ by feature, but family={family.name!r} has one for all")
    factor = np.broadcast_to(factor, (family.num_factors(num_components), *factor.shape[1:]))
    return dataclasses.replace(start, precision_factor=factor)


def _check_given(start: Mixture, num_components: int, num_features: int, family: Family, *, finite: bool) -> None:
    if len(shape := np.shape(start.means)) == 2 and shape != (num_components, num_features):
        raise InputError(
            f"start has means of shape {shape}, but num_components={num_components} and x has {num_features} features"
        )
    if as_mixture(start, "start").draw_shape:
        raise InputError(f"start has leading axes {start.draw_shape}; index it down to a single mixture")
    if family.diagonal and not isinstance(start.factor, family.representation):
        raise InputError(f"start has covariances between features, but family={family.name!r} has variances only")
    if family.shared and (count := len(start.factor)) > 1:
        raise InputError(f"start has {count} covariances, but the components of family={family.name!r} share one")
    for name, field in start.fields.items() if finite else ():
        if not is_traced(field) and not np.isfinite(np.asarray(field)).all():
            raise InputError(f"start.{name} has NaN or infinite entries; start from a mixture that is finite")
