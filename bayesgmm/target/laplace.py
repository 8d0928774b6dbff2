r"""The Laplace approximation: where samplers and variational inference start, and the shape the posterior has there.

From each of the distinct best EM optima, a few Newton steps go to the mode of the posterior in the unconstrained
coordinates. There the curvature is the observed information, whose inverse is the covariance of the approximation.
Chains start at draws from it, and it is their first mass matrix; guides start at it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.target.unconstrained import Energy, Numbers, Target, vector_of

MAX_DENSE = 200  # coordinates up to which curvature is found in all directions and kept as a matrix
_NEWTON_STEPS = 12
_SETTLED = 1e-2  # of a Newton step, in units of the posterior's own standard deviation: near enough to start at
_MOST_HALVINGS = 10
_NUM_PROBES = 31


class NormalApproximation(NamedTuple):
    """The normal approximation of the posterior around a mode, in unconstrained coordinates.

    Attributes:
        mode: its centre, shape (p).
        root: a square root of its covariance, (p, p), or of its diagonal, (p).
        energy: energy at the mode.
    """

    mode: Float[np.ndarray, " p"]
    root: np.ndarray
    energy: float

    @classmethod
    def standard(cls, size: int) -> "NormalApproximation":
        """A standard normal one of so many coordinates, of the shapes that `approximate` gives."""
        return cls(np.zeros(size), np.eye(size) if size <= MAX_DENSE else np.ones(size), 0.0)

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


@np.errstate(all="ignore")  # what is not finite ends the steps
def approximate(target: Target, start: Mixture) -> NormalApproximation:
    """The normal approximation at the mode that Newton steps reach from a mixture, such as an EM optimum."""
    evaluate = Energy(target)
    point = np.asarray(vector_of(target, start), np.float64)
    energy, root = np.nan, np.full(point.size, 0.1)
    for _ in range(_NEWTON_STEPS):
        energy, gradient, values, vectors = _eigen(point, evaluate)
        # Directions that curve the wrong way, or hardly, are taken by their size and by what the prior leaves.
        floor = 1e-4 * max(1.0, float(np.median(np.abs(values))))
        values = np.maximum(np.abs(values), floor)
        root = 1.0 / np.sqrt(values) if vectors is None else vectors / np.sqrt(values)
        along = root * gradient if vectors is None else root.T @ gradient
        step = -root * along if vectors is None else -(root @ along)
        if not np.isfinite(step).all() or np.abs(along).max() < _SETTLED:
            break
        lengths = np.array([1.0, 0.5, 0.25, 0.1, 0.03, 0.01])
        energies = evaluate(point[None] + lengths[:, None] * step[None])[0]
        best = int(np.nanargmin(np.where(np.isfinite(energies), energies, np.inf)))
        if not energies[best] < energy:
            break
        point, energy = point + lengths[best] * step, float(energies[best])
    return NormalApproximation(point, root, energy)


def _eigen(point: Numbers, evaluate: Energy) -> tuple[float, Numbers, Numbers, Numbers | None]:
    """Energy, gradient, eigenvalues and eigenvectors of the curvature; of many coordinates its diagonal and None."""
    size = point.size
    if size > MAX_DENSE:
        # Probed along random signs: their product with the curvature has its diagonal as its mean (Hutchinson).
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (_NUM_PROBES, size))
        energy, gradient, products = evaluate.curvature(point, signs)
        return energy, gradient, (signs * products).mean(0), None
    energy, gradient, hessian = evaluate.curvature(point, np.eye(size))
    if not np.isfinite(hessian).all():
        return energy, gradient, np.full(size, 100.0), np.eye(size)
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    return energy, gradient, values, vectors


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


def draw_starts(
    modes: Sequence[NormalApproximation],
    noise: Float[np.ndarray, "m p"],
    evaluate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
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
