r"""Where a sampler starts: around the modes that EM finds, with the shape that the posterior has there.

From each of the distinct best ends of several EM runs, a few Newton steps go to the mode of the posterior in the
unconstrained coordinates; there the curvature is the observed information, whose inverse is the covariance of the
normal approximation. Chains start at draws from it, and it is their first mass matrix. Curvature is taken by central
differences of the exact gradient, so that one compiled program serves all of this.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bayesgmm.likelihood.expectation import Prepared
from bayesgmm.mixtures.families import Family
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.priors.conjugate import AnyPrior
from bayesgmm.target import unconstrained as space
from bayesgmm.target.potential import MAX_DENSE, ravel, values_and_gradients

_NEWTON_STEPS = 12
_SETTLED = 1e-2  # of a Newton step, in units of the posterior's own standard deviation: near enough to start at
_MOST_HALVINGS = 10
_BATCH = 64  # points that a compiled call evaluates


class NormalApproximation(NamedTuple):
    """The normal approximation of the posterior around a mode, in unconstrained coordinates.

    Attributes:
        mode: its centre, shape (p).
        root: a square root of its covariance, (p, p), or of its diagonal, (p).
        energy: potential energy at the mode.
    """

    mode: Float[np.ndarray, " p"]
    root: np.ndarray
    energy: float

    @property
    def log_mass(self) -> float:
        """Logarithm of the posterior mass around the mode, by Laplace, up to what all modes share."""
        root = self.root
        volume = np.log(np.abs(root)).sum() if root.ndim == 1 else np.linalg.slogdet(root)[1]
        return float(volume - self.energy)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance (p, p), or its diagonal (p)."""
        return np.square(self.root) if self.root.ndim == 1 else self.root @ self.root.T

    def draw(self, noise: np.ndarray) -> np.ndarray:
        """A point that standard normal noise (p) moves to."""
        return self.mode + (self.root * noise if self.root.ndim == 1 else self.root @ noise)


def approximate(
    start: Mixture, x: Array, prepared: Prepared | None, family: Family, prior: AnyPrior
) -> NormalApproximation:
    """The normal approximation at the mode that Newton steps reach from a mixture, such as an end of EM."""
    origin, unravel = ravel_pytree(space.to_unconstrained(start, family, prior))
    evaluate = evaluator(unravel, x, prepared, start.num_components, family, prior)
    point = np.asarray(origin, np.float64)
    # Second differences of float64 gradients are best at about this step, a cube root of the rounding.
    width = float(jnp.finfo(x.dtype).eps) ** (1 / 3)
    energy = float(evaluate(point[None])[0][0])
    root = np.full(point.size, 0.1)
    for _ in range(_NEWTON_STEPS):
        energy, gradient, curvature = _curvature(point, evaluate, width)
        values, vectors = curvature
        # Directions that curve the wrong way, or hardly, are taken by their size and by what the prior leaves.
        floor = 1e-4 * max(1.0, float(np.median(np.abs(values))))
        values = np.maximum(np.abs(values), floor)
        root = vectors / np.sqrt(values) if vectors.ndim == 2 else 1.0 / np.sqrt(values)
        along = root.T @ gradient if vectors.ndim == 2 else root * gradient
        step = -(root @ along) if vectors.ndim == 2 else -root * along
        if not np.isfinite(step).all() or np.abs(along).max() < _SETTLED:
            break
        lengths = np.array([1.0, 0.5, 0.25, 0.1, 0.03, 0.01])
        energies = evaluate(point[None] + lengths[:, None] * step[None])[0]
        best = int(np.nanargmin(np.where(np.isfinite(energies), energies, np.inf)))
        if not energies[best] < energy:
            break
        point, energy = point + lengths[best] * step, float(energies[best])
    return NormalApproximation(point, root, energy)


def distinct(approximations: Sequence[NormalApproximation], within: float) -> list[NormalApproximation]:
    """Those at different heights, largest mass first, of logarithmic mass within so much of the largest.

    A mode of which the components are numbered otherwise has the same energy, and is the same.
    """
    found: list[NormalApproximation] = []
    usable = [one for one in approximations if np.isfinite(one.energy) and np.isfinite(one.log_mass)]
    for one in sorted(usable, key=lambda one: -one.log_mass):
        if found and one.log_mass < found[0].log_mass - within:
            continue
        if all(abs(one.energy - other.energy) > 1e-2 for other in found):
            found.append(one)
    return found


Evaluator = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def draw_starts(
    modes: Sequence[NormalApproximation], noise: Float[np.ndarray, "m p"], evaluate: Evaluator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points around the modes, where noise moves to, with their energies (m) and gradients (m, p).

    Where the posterior ends sooner than its normal approximation a point may have no density that a number can show, or
    next to none: it comes nearer to its mode by halves.
    """
    noise = noise.copy()
    lowest, size = np.array([mode.energy for mode in modes]), noise.shape[1]
    for _ in range(_MOST_HALVINGS):
        points = np.stack([mode.draw(part) for mode, part in zip(modes, noise, strict=True)])
        energies, gradients = evaluate(points)
        # A draw from a normal posterior would be about p / 2 above its mode.
        usable = np.isfinite(gradients).all(1) & (energies < lowest + 10.0 * (size + 10))
        if usable.all():
            return points, energies, gradients
        noise[~usable] /= 2
    points = np.stack([mode.mode for mode in modes])
    return points, *evaluate(points)


def evaluator(
    unravel: Callable[[Array], space.Sites],
    x: Array,
    prepared: Prepared | None,
    num_components: int,
    family: Family,
    prior: AnyPrior,
) -> Evaluator:
    """Energies (m) and gradients (m, p) of points (m, p), in batches of one size."""

    def evaluate(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energies, gradients = [], []
        for first in range(0, len(points), _BATCH):
            part = points[first : first + _BATCH]
            filled = np.concatenate([part, np.broadcast_to(part[-1:], (_BATCH - len(part), part.shape[1]))])
            sites = jax.vmap(unravel)(jnp.asarray(filled, x.dtype))
            value, gradient = values_and_gradients(
                sites, x, prepared, prior, num_components=num_components, family=family
            )
            energies.append(np.asarray(value, np.float64)[: len(part)])
            gradients.append(np.asarray(ravel(gradient), np.float64)[: len(part)])
        return np.concatenate(energies), np.concatenate(gradients)

    return evaluate


def _curvature(
    point: np.ndarray, evaluate: Evaluator, width: float
) -> tuple[float, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Energy, gradient, and eigenvalues and vectors of the curvature; of many coordinates the diagonal and ones."""
    size = point.size
    if size > MAX_DENSE:
        # Probed along random signs: their product with the curvature has its diagonal as its mean (Hutchinson).
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (_BATCH // 2, size))
        energies, gradients = evaluate(np.concatenate([point + width * signs, point - width * signs, point[None]]))
        change = (gradients[: len(signs)] - gradients[len(signs) : -1]) / (2 * width)
        return float(energies[-1]), gradients[-1], ((signs * change).mean(0), np.ones(size))
    moves = width * np.eye(size)
    energies, gradients = evaluate(np.concatenate([point + moves, point - moves, point[None]]))
    hessian = (gradients[:size] - gradients[size : 2 * size]) / (2 * width)
    if not np.isfinite(hessian).all():
        return float(energies[-1]), gradients[-1], (np.full(size, 100.0), np.eye(size))
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    return float(energies[-1]), gradients[-1], (values, vectors)
