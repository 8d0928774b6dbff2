"""Cholesky factors and inverses of many small triangular matrices, without the multi-threaded BLAS.

LAPACK's triangular solve takes a thread for every core as soon as a matrix has a few rows, and OpenBLAS keeps those
threads spinning for milliseconds afterwards, on the cores that the pass over the rows needs. Called once in every EM
iteration that doubled the time of the iteration. Inversion by halves needs only products of matrices; the smallest
matrices are computed entry by entry, with the batch as the vector.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from bayesgmm.numerics.precision import AnyArray, namespace

UNROLLED = 4  # up to this size work on a matrix is written out entry by entry
_BASE = 8  # inversion by halves ends at blocks of this size


def cholesky(matrices: Float[AnyArray, "*batch d d"]) -> Float[AnyArray, "*batch d d"]:
    """Lower Cholesky factors of symmetric matrices, of which the lower triangle is read.

    A matrix that is not positive definite gives a factor with a NaN or a zero on its diagonal.
    """
    size, xp = matrices.shape[-1], namespace(matrices)
    if size > UNROLLED:
        return _cholesky_of_numpy(matrices) if xp is np else jnp.linalg.cholesky(matrices, symmetrize_input=False)
    entries = {}
    for column in range(size):
        for row in range(column, size):
            entry = matrices[..., row, column]
            for before in range(column):
                entry = entry - entries[row, before] * entries[column, before]
            entries[row, column] = xp.sqrt(entry) if row == column else entry / entries[column, column]
    return _assembled(entries, size, entries[0, 0])


def _cholesky_of_numpy(matrices: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        if matrices.ndim == 2:
            return np.full_like(matrices, np.nan)
        return np.stack([_cholesky_of_numpy(matrix) for matrix in matrices])


def inverse_of_lower(lower: Inexact[AnyArray, "*batch d d"]) -> Inexact[AnyArray, "*batch d d"]:
    """Inverses of lower triangular matrices, of which the lower triangle is read."""
    if namespace(lower) is jnp:
        return _inverse_of_lower(lower)
    return _inverse_by_entries(lower) if lower.shape[-1] <= UNROLLED else np.linalg.inv(np.tril(lower))


@jax.custom_jvp
def _inverse_of_lower(lower: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    size = lower.shape[-1]
    if size <= UNROLLED:
        return _inverse_by_entries(lower)
    padded_size = max(_BASE, 1 << (size - 1).bit_length())
    padding = [(0, 0)] * (lower.ndim - 2) + [(0, padded_size - size)] * 2
    beyond = jnp.diag((jnp.arange(padded_size) >= size).astype(lower.dtype))
    lower = jnp.pad(jnp.asarray(lower), padding)
    lower = lower + jnp.broadcast_to(beyond, lower.shape)
    width = min(_BASE, padded_size)
    inverses = _inverse_by_rows(_diagonal_blocks(lower, width))
    while width < padded_size:
        below = _diagonal_blocks(lower, 2 * width)[..., width:, :width]
        upper_left, lower_right = inverses[..., 0::2, :, :], inverses[..., 1::2, :, :]
        corner = -jnp.matmul(lower_right, jnp.matmul(below, upper_left, precision="highest"), precision="highest")
        above = jnp.concatenate([upper_left, jnp.zeros_like(corner)], -1)
        inverses = jnp.concatenate([above, jnp.concatenate([corner, lower_right], -1)], -2)
        width *= 2
    return inverses[..., 0, :size, :size]


@_inverse_of_lower.defjvp
def _inverse_of_lower_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _inverse_of_lower(*primals)
    turned = jnp.matmul(jnp.tril(tangents[0]), inverse, precision="highest")
    return inverse, -jnp.matmul(inverse, turned, precision="highest")


def _diagonal_blocks(matrices: Array, width: int) -> Float[Array, "*batch blocks w w"]:
    num_blocks = matrices.shape[-1] // width
    cut = matrices.reshape(*matrices.shape[:-2], num_blocks, width, num_blocks, width)
    return jnp.moveaxis(jnp.diagonal(cut, axis1=-4, axis2=-2), -1, -3)


def _inverse_by_rows(lower: Array) -> Array:
    """Forward substitution, a row of the inverse at a time."""
    size = lower.shape[-1]
    unit = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
    rows = []
    for row in range(size):
        rest = unit[..., row, :]
        for before in range(row):
            rest = rest - lower[..., row, before, None] * rows[before]
        rows.append(rest / lower[..., row, row, None])
    return jnp.stack(rows, -2)


def _inverse_by_entries(lower: AnyArray) -> AnyArray:
    """Forward substitution, an entry of the inverse at a time: of every matrix in the batch at once."""
    size, entries = lower.shape[-1], {}
    for column in range(size):
        entries[column, column] = 1.0 / lower[..., column, column]
        for row in range(column + 1, size):
            rest = sum(lower[..., row, before] * entries[before, column] for before in range(column, row))
            entries[row, column] = -rest / lower[..., row, row]
    return _assembled(entries, size, entries[0, 0])


def _assembled(
    entries: dict[tuple[int, int], AnyArray | np.generic], size: int, like: AnyArray | np.generic
) -> AnyArray:
    xp = namespace(like)
    zero = xp.zeros_like(like)
    rows = [xp.stack([entries.get((row, column), zero) for column in range(size)], -1) for row in range(size)]
    return xp.stack(rows, -2)
