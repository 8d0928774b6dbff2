r"""The two representations of a precision factor $F$, $\Sigma^{-1} = F^\top F$, and the algebra that each of them has.

Symmetric matrices (covariances, precisions, second moments) go with a representation in its own shape: (..., d, d), or
diagonals alone, (..., d). They are called `matrices` here whichever shape they have. No product of a factor with itself
is formed where features may be nearly collinear: it would lose half of the digits.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int, Shaped

from bayesgmm.numerics.precision import AnyArray, matmul, namespace
from bayesgmm.numerics.triangular import UNROLLED, cholesky, inverse_of_lower

Matrices = Inexact[AnyArray, "*shape"]
"""Symmetric matrices in the shape of a representation, (..., d, d) or (..., d)."""


@dataclass(frozen=True)
class _Factor:
    """Precision factors of e components, e being k, or 1 where all components share one."""

    array: AnyArray
    num_axes: ClassVar[int]  # of one factor, and of one symmetric matrix in its shape

    @classmethod
    def shape(cls, num_features: int) -> tuple[int, ...]:
        """Shape of one factor: (d, d) or (d)."""
        return (num_features,) * cls.num_axes

    @classmethod
    def of_each(cls, numbers: AnyArray) -> AnyArray:
        """Numbers (..., k), of one component each, with axes to multiply matrices by."""
        return numbers.reshape(*numbers.shape, *(1,) * cls.num_axes)

    def __len__(self) -> int:
        """e."""
        return self.array.shape[-1 - self.num_axes]

    def scaled(self, unit: AnyArray) -> Self:
        r"""$F \operatorname{diag}(u)$: the factor for features that are measured in these units (d)."""
        units = namespace(self.array, unit).asarray(unit).reshape(*(1,) * (self.array.ndim - 1), -1)
        return dataclasses.replace(self, array=self.array * units)

    def for_each(self, num_components: int) -> Self:
        """One factor for each of k components."""
        shape = (num_components, *self.array.shape[1:])
        return dataclasses.replace(self, array=namespace(self.array).broadcast_to(self.array, shape))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Triangular(_Factor):
    """Lower triangular factors with positive diagonals, (..., e, d, d)."""

    array: Shaped[AnyArray, "*draws e d d"]
    num_axes = 2

    @classmethod
    def from_covariances(cls, covariances: AnyArray) -> Self:
        """Factors of covariances in this shape; of one that is not positive definite a factor with NaN."""
        return cls(inverse_of_lower(cholesky(covariances)))

    @classmethod
    def from_precisions(cls, precisions: AnyArray) -> Self:
        """Factors of precisions in this shape."""
        # Cholesky gives P = L L'; with the order of the features reversed before and after, P = F' F with F lower.
        return cls(jnp.linalg.cholesky(precisions[..., ::-1, ::-1])[..., ::-1, ::-1].mT)

    @classmethod
    def from_scales(cls, scales: Float[Array, "*batch d"], correlation_cholesky: Array | None) -> Self:
        """Factors from standard deviations and, where there are correlations, their Cholesky factors."""
        if correlation_cholesky is None:
            return cls(1.0 / scales[..., None])
        # The precision factor of L = diag(s) C is the inverse of C, its columns divided by the scales.
        return cls(inverse_of_lower(correlation_cholesky) / scales[..., None, :])

    @classmethod
    def from_logarithms(cls, log_diagonal: Inexact[AnyArray, "e d"], below: Inexact[AnyArray, "e b"]) -> Self:
        """Factors from what `logarithms` gives."""
        xp, num_features, num_below = namespace(log_diagonal, below), log_diagonal.shape[1], below.shape[1]
        place = np.full((num_features, num_features), num_below)  # of each entry; those above the diagonal are zero
        place[np.tril_indices(num_features, -1)] = np.arange(num_below)
        return cls(xp.pad(below, ((0, 0), (0, 1)))[:, place] + _diagonal_matrices(xp.exp(log_diagonal)))

    @staticmethod
    def to_blocks(matrices: AnyArray) -> Float[Array, "e v p p"]:
        """Matrices (e, ...) as v independent ones of p dimensions: one of d, or d of one."""
        return matrices[:, None]

    @classmethod
    def from_blocks(cls, blocks: Float[Array, "e v p p"], num_features: int) -> Self:
        """Factors from those of such matrices."""
        return cls(blocks[:, 0])

    @staticmethod
    def outer(left: AnyArray, right: AnyArray) -> Matrices:
        r"""$a b^\top$ of vectors (..., d)."""
        return left[..., :, None] * right[..., None, :]

    @staticmethod
    def outer_sums(left: Float[AnyArray, "k d n"], right: Float[AnyArray, "k d n"]) -> Float[AnyArray, "k d d"]:
        r"""$\sum_i a_i b_i^\top$ where that is symmetric, with rows as the fastest axis."""
        xp, num_features = namespace(left), left.shape[1]
        if num_features > UNROLLED:
            return matmul(left, right.swapaxes(1, 2))
        parts = [[(left[:, a] * right[:, b]).sum(1) for b in range(a + 1)] for a in range(num_features)]
        rows = [[parts[max(a, b)][min(a, b)] for b in range(num_features)] for a in range(num_features)]
        return xp.stack([xp.stack(row, 1) for row in rows], 1)

    @staticmethod
    def times(matrices: AnyArray, vectors: AnyArray) -> Float[Array, "*batch d"]:
        """Products of symmetric matrices and vectors (..., d)."""
        return (matrices * vectors[..., None, :]).sum(-1)

    @staticmethod
    def diagonal_of(matrices: AnyArray) -> Float[AnyArray, "*batch d"]:
        """Diagonals of matrices in this shape."""
        return namespace(matrices).diagonal(matrices, axis1=-2, axis2=-1)

    @staticmethod
    def of_diagonal(values: AnyArray) -> Matrices:
        """Diagonal matrices with these entries (..., d)."""
        return _diagonal_matrices(values)

    @staticmethod
    def dense(matrices: AnyArray) -> Inexact[AnyArray, "*batch d d"]:
        """Matrices in this shape as (..., d, d)."""
        return matrices

    @staticmethod
    def entries(matrices: AnyArray) -> tuple[Inexact[AnyArray, "*batch d"], Inexact[AnyArray, "*batch b"]]:
        """The diagonals of matrices in this shape, and the entries below them."""
        rows, columns = np.tril_indices(matrices.shape[-1], -1)
        return namespace(matrices).diagonal(matrices, axis1=-2, axis2=-1), matrices[..., rows, columns]

    def products(self, matrices: AnyArray) -> AnyArray:
        r"""$F_j S_j$ of symmetric matrices in this shape."""
        return matmul(namespace(self.array).tril(self.array), matrices)

    def pull_back(self, whitened: Inexact[AnyArray, "k m d"]) -> Inexact[AnyArray, "k m d"]:
        r"""$F_j^\top z_{ji}$."""
        return matmul(whitened, namespace(self.array).tril(self.array))

    def whiten(self, centred: Inexact[AnyArray, "k d n"]) -> Inexact[AnyArray, "k d n"]:
        r"""$F_j c_{ji}$, with rows as the fastest axis."""
        num_components, num_features, _ = centred.shape
        xp = namespace(self.array, centred)
        factor = xp.tril(self.array)
        factor = xp.broadcast_to(factor, (num_components, *factor.shape[1:]))
        if num_features > UNROLLED:  # below, setting up a matrix product costs more than its arithmetic
            return matmul(factor, centred)
        rows = (
            sum(factor[:, row, column, None] * centred[:, column] for column in range(row + 1))
            for row in range(num_features)
        )
        return xp.stack(list(rows), 1)

    @staticmethod
    def times_lower(lower: Float[Array, "d d"], noise: Float[Array, " d"]) -> Float[Array, " d"]:
        r"""$F^{-1} z$ of one row, given $F^{-1}$."""
        return jnp.matmul(lower, noise, precision="highest")

    def diagonal(self) -> Inexact[AnyArray, "*draws e d"]:
        """Diagonals of the factors."""
        return namespace(self.array).diagonal(self.array, axis1=-2, axis2=-1)

    def log_determinant(self) -> Inexact[AnyArray, "*draws e"]:
        r"""$\log |F|$."""
        return namespace(self.array).log(self.diagonal()).sum(-1)

    def inverse(self) -> Matrices:
        r"""$F^{-1}$ in this shape, the factor of the covariance."""
        return inverse_of_lower(self.array)

    def covariances(self) -> Matrices:
        """Covariances in this shape."""
        lower = self.inverse()
        return matmul(lower, lower.swapaxes(-1, -2))

    def variances(self) -> Inexact[AnyArray, "*draws e d"]:
        """Diagonals of the covariances."""
        lower = self.inverse()
        return (lower * lower).sum(-1)

    def precisions(self) -> Matrices:
        """Precisions in this shape."""
        factor = jnp.tril(self.array)
        return jnp.matmul(jnp.swapaxes(factor, -1, -2), factor, precision="highest")

    def scales_and_correlations(self) -> tuple[Float[Array, "e d"], Float[Array, "e d d"] | None]:
        """Standard deviations, and Cholesky factors of the correlations where there are some."""
        lower = self.inverse()
        scales = jnp.sqrt(jnp.square(lower).sum(-1))
        return scales, lower / scales[..., None] if scales.shape[-1] > 1 else None

    def logarithms(self) -> tuple[Float[AnyArray, "e d"], Float[AnyArray, "e b"]]:
        """Logarithms of the diagonals, and the entries below them: all of them free."""
        diagonal, below = self.entries(self.array)
        return namespace(self.array).log(diagonal), below

    def leverages(self) -> Float[Array, "e d"]:
        """Diagonals of the precisions."""
        return jnp.square(jnp.tril(self.array)).sum(-2)

    def whitened_variances(self, variances: Float[AnyArray, "e d"]) -> Float[AnyArray, "e d"]:
        r"""Diagonals of $F \operatorname{diag}(v) F^\top$."""
        xp = namespace(self.array, variances)
        return (xp.square(xp.tril(self.array)) * variances[:, None, :]).sum(-1)

    def relative_change(self, old: AnyArray) -> Inexact[AnyArray, " e"]:
        r"""$\lVert F (\Sigma' - \Sigma) F^\top \rVert^2$, to first order in what differs from these old factors."""
        moved = matmul(self.array - old, inverse_of_lower(old))
        moved = moved + moved.swapaxes(-1, -2)
        return (moved * moved).sum((-1, -2))

    def inner(self, matrices: Matrices) -> Float[Array, " e"]:
        r"""$\operatorname{tr} F_j S_j F_j^\top$ of matrices in this shape."""
        factor = jnp.broadcast_to(jnp.tril(self.array), matrices.shape)
        return (factor * jnp.matmul(factor, matrices, precision="highest")).sum((1, 2))

    def marginal(self, columns: Int[np.ndarray, " b"]) -> Self:
        """Factors of some features alone: from the rows b of $L = F^{-1}$ by a QR decomposition."""
        rows = inverse_of_lower(self.array)[:, columns]
        upper = jnp.linalg.qr(jnp.swapaxes(rows, -1, -2), mode="r")
        return dataclasses.replace(self, array=inverse_of_lower(jnp.swapaxes(upper * _signs(upper)[..., None], -1, -2)))

    def condition(
        self, given: Int[np.ndarray, " b"], others: Int[np.ndarray, " a"], away: Float[Array, "m k b"]
    ) -> tuple["Factor", Float[Array, "m k a"]]:
        r"""Factors of other features, and how far their means move, where some are given so far away from theirs.

        The precision is $F_a^\top F_a$, and the move minimises $\lVert F_a x_a + F_b x_b \rVert^2$.
        """
        factor = jnp.tril(self.array)
        # QR of the columns in reverse order: with the order restored the triangle is a lower one.
        basis, upper = jnp.linalg.qr(factor[:, :, others[::-1]])
        signs = _signs(upper)
        lower = (upper * signs[..., None])[:, ::-1, ::-1]
        basis = (basis * signs[:, None])[:, :, ::-1]
        projected = jnp.einsum("eda,edb->eab", basis, factor[:, :, given], precision="highest")
        slope = -jnp.matmul(inverse_of_lower(lower), projected, precision="highest")
        slope = jnp.broadcast_to(slope, (away.shape[1], *slope.shape[1:]))
        move = jnp.einsum("kab,mkb->mka", slope, away, precision="highest")
        return dataclasses.replace(self, array=lower), move


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagonal(_Factor):
    """Reciprocals of standard deviations, (..., e, d)."""

    array: Shaped[AnyArray, "*draws e d"]
    num_axes = 1

    @classmethod
    def from_covariances(cls, covariances: AnyArray) -> Self:
        return cls(1.0 / namespace(covariances).sqrt(covariances))

    @classmethod
    def from_precisions(cls, precisions: AnyArray) -> Self:
        return cls(jnp.sqrt(precisions))

    @classmethod
    def from_scales(cls, scales: Float[Array, "*batch d"], correlation_cholesky: Array | None) -> Self:
        return cls(1.0 / scales)

    @classmethod
    def from_logarithms(cls, log_diagonal: Inexact[AnyArray, "e d"], below: Inexact[AnyArray, "e b"]) -> Self:
        return cls(namespace(log_diagonal).exp(log_diagonal))

    @staticmethod
    def to_blocks(matrices: AnyArray) -> Float[Array, "e v p p"]:
        return matrices[:, :, None, None]

    @classmethod
    def from_blocks(cls, blocks: Float[Array, "e v p p"], num_features: int) -> Self:
        return cls(jnp.broadcast_to(blocks[:, :, 0, 0], (len(blocks), num_features)))

    @staticmethod
    def outer(left: AnyArray, right: AnyArray) -> Matrices:
        return left * right

    @staticmethod
    def outer_sums(left: Float[AnyArray, "k d n"], right: Float[AnyArray, "k d n"]) -> Float[AnyArray, "k d"]:
        return (left * right).sum(2)

    @staticmethod
    def times(matrices: AnyArray, vectors: AnyArray) -> Float[Array, "*batch d"]:
        return matrices * vectors

    @staticmethod
    def diagonal_of(matrices: AnyArray) -> Float[AnyArray, "*batch d"]:
        return matrices

    of_diagonal = diagonal_of

    @staticmethod
    def dense(matrices: AnyArray) -> Inexact[AnyArray, "*batch d d"]:
        return _diagonal_matrices(matrices)

    @staticmethod
    def entries(matrices: AnyArray) -> tuple[Inexact[AnyArray, "*batch d"], Inexact[AnyArray, "*batch b"]]:
        return matrices, matrices[..., :0]

    def products(self, matrices: AnyArray) -> AnyArray:
        return self.array * matrices

    def pull_back(self, whitened: Inexact[AnyArray, "k m d"]) -> Inexact[AnyArray, "k m d"]:
        return whitened * self.array[:, None]

    def whiten(self, centred: Inexact[AnyArray, "k d n"]) -> Inexact[AnyArray, "k d n"]:
        return centred * self.array[:, :, None]

    @staticmethod
    def times_lower(lower: Float[Array, " d"], noise: Float[Array, " d"]) -> Float[Array, " d"]:
        return lower * noise

    def diagonal(self) -> Inexact[AnyArray, "*draws e d"]:
        return self.array

    def log_determinant(self) -> Inexact[AnyArray, "*draws e"]:
        return namespace(self.array).log(self.array).sum(-1)

    def inverse(self) -> Matrices:
        return 1.0 / self.array

    def covariances(self) -> Matrices:
        return self.inverse() ** 2

    variances = covariances

    def precisions(self) -> Matrices:
        return jnp.square(self.array)

    leverages = precisions

    def scales_and_correlations(self) -> tuple[Float[Array, "e d"], Float[Array, "e d d"] | None]:
        return self.inverse(), None

    def logarithms(self) -> tuple[Float[AnyArray, "e d"], Float[AnyArray, "e b"]]:
        return namespace(self.array).log(self.array), self.array[:, :0]

    def whitened_variances(self, variances: Float[AnyArray, "e d"]) -> Float[AnyArray, "e d"]:
        return self.array * self.array * variances

    def relative_change(self, old: AnyArray) -> Inexact[AnyArray, " e"]:
        r"""$\lVert F (\Sigma' - \Sigma) F^\top \rVert^2$, to first order in what differs from these old factors."""
        moved = (self.array - old) / old
        return 4.0 * (moved * moved).sum(-1)

    def inner(self, matrices: Matrices) -> Float[Array, " e"]:
        return (jnp.square(self.array) * matrices).sum(1)

    def marginal(self, columns: Int[np.ndarray, " b"]) -> Self:
        return dataclasses.replace(self, array=jnp.asarray(self.array)[:, columns])

    def condition(
        self, given: Int[np.ndarray, " b"], others: Int[np.ndarray, " a"], away: Float[Array, "m k b"]
    ) -> tuple["Factor", Float[Array, "m k a"]]:
        return self.marginal(others), jnp.zeros((*away.shape[:2], len(others)), away.dtype)


Factor = Triangular | Diagonal
"""Either of the two; they have the same methods."""


def _diagonal_matrices(values: AnyArray) -> Inexact[AnyArray, "*batch d d"]:
    identity = np.eye(values.shape[-1], dtype=values.dtype)
    return values[..., None] * identity.reshape(*(1,) * (values.ndim - 1), *identity.shape)


def _signs(upper: Float[Array, "e a a"]) -> Float[Array, "e a"]:
    """What the rows of triangular matrices are to be multiplied by to have a positive diagonal."""
    diagonal = jnp.diagonal(upper, axis1=-2, axis2=-1)
    return jnp.where(diagonal < 0, -jnp.ones_like(diagonal), jnp.ones_like(diagonal))


def pool(values: AnyArray, num_factors: int) -> AnyArray:
    """Values of k components (k, ...) summed over them where they share one factor, (1, ...); else as they are."""
    return values.sum(0, keepdims=True) if num_factors < len(values) else values
