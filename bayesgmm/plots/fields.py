"""Values over the plane: a grid of points, the density there, and the regions of highest density."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap

from bayesgmm.mixtures.functionals import hdr_level
from bayesgmm.mixtures.mixture import Mixture

# From white, through the first and second colour of the palette, to nearly black: dark in print, and without red
# against green.
PROBABILITY = LinearSegmentedColormap.from_list("probability", ["#FFFFFF", "#A9CFE5", "#0072B2", "#00324F"])
DOUBT = LinearSegmentedColormap.from_list("doubt", ["#FFFFFF", "#F7DCAA", "#E69F00", "#B03A00", "#3D0C00"])

_BLOCK = 4096  # points at a time, whose densities under every component are held at once
_SIDE = 192  # of the grid; its square is a whole number of blocks
_MARGIN = 0.08  # about the rows, of their range
_BORDER, _MOST_STEPS = 128, 30  # points along an edge of the plane, and how often it may give way by twice the margin
_NUM_ROWS = 16_384  # of which levels of regions are quantiles: the mass of one of 90% is right to 0.25%


def plane_around(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2 2"]:
    """Lowest and highest coordinates, (2, 2), that hold the rows and a margin about them."""
    low, high = points.min(0), points.max(0)
    pad = np.where(high > low, _MARGIN * (high - low), 1.0)
    return np.stack([low - pad, high + pad])


def plane_of_region(pair: Mixture, points: Float[np.ndarray, "n 2"], height: float) -> Float[np.ndarray, "2 2"]:
    """Coordinates likewise that hold all of the region where the density is above a height, within reason."""
    span = plane_around(points)
    for _ in range(_MOST_STEPS):
        horizontal, vertical = np.linspace(span[0], span[1], _BORDER).T
        sides = []  # left, bottom, right, top
        for low_or_high in span:
            sides.append(np.column_stack([np.full(_BORDER, low_or_high[0]), vertical]))
            sides.append(np.column_stack([horizontal, np.full(_BORDER, low_or_high[1])]))
        beyond = (density_at(pair, np.concatenate(sides)).reshape(2, 2, _BORDER) > height).any(-1)
        if not beyond.any():
            break
        span = span + np.array([[-1.0], [1.0]]) * np.where(beyond, 2 * _MARGIN * (span[1] - span[0]), 0.0)
    return span


def grid_of(
    span: Float[np.ndarray, "2 2"],
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"], Float[np.ndarray, "g*g 2"]]:
    """Even coordinates along both axes, and all their pairs (first axis slowest)."""
    horizontal, vertical = np.linspace(span[0], span[1], _SIDE).T
    pairs = np.stack(np.meshgrid(horizontal, vertical, indexing="ij"), axis=-1)
    return horizontal, vertical, pairs.reshape(-1, 2)


def averaged(draws: Mixture) -> Mixture:
    r"""The mixture of all components of draws (s), $\frac1s \sum_t p_t(x)$: their posterior predictive density."""
    if not draws.draw_shape:
        return draws
    (num_draws,), k = draws.draw_shape, draws.num_components
    factor = np.asarray(draws.precision_factor)
    factor = np.broadcast_to(factor, (num_draws, k, *factor.shape[2:]))
    return Mixture(
        (np.asarray(draws.log_weights) - np.log(num_draws)).ravel(),
        np.asarray(draws.means).reshape(-1, draws.num_features),
        factor.reshape(-1, *factor.shape[2:]),
    )


def density_at(mixture: Mixture, points: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Density of one mixture, of however many components, at points, a block of them at a time."""
    blocks = np.concatenate([points, np.repeat(points[-1:], -len(points) % _BLOCK, axis=0)])
    values = [np.asarray(mixture.log_prob(block)) for block in np.split(blocks, len(blocks) // _BLOCK)]
    return np.exp(np.concatenate(values)[: len(points)])


def region_heights(pair: Mixture, levels: Sequence[float]) -> Float[np.ndarray, " l"]:
    """Heights of the density above which it holds these masses; always of the same random rows, for equal pictures."""
    found = hdr_level(pair, np.asarray(levels), key=jax.random.key(0), num_draws=_NUM_ROWS)
    return np.exp(np.asarray(found.value))


def mean_responsibilities(mixtures: Mixture, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
    """Responsibilities averaged over the draws of a mixture with one leading axis; of a single mixture its own."""
    if not mixtures.draw_shape:
        return np.asarray(mixtures.responsibilities(x))
    # One draw after another: all at once would hold (s, n, k) numbers.
    total = np.zeros((len(x), mixtures.num_components))
    draws = jax.tree.map(np.asarray, mixtures)
    for draw in range(mixtures.draw_shape[0]):
        total += np.asarray(draws[draw].responsibilities(x))
    return total / mixtures.draw_shape[0]


def assignment_entropy(responsibilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    r"""Entropy of every row's assignment in bits, $-\sum_j r_{ij} \log_2 r_{ij}$: 0 for a sure one, at most log2 k."""
    shares = np.clip(np.asarray(responsibilities, np.float64), 0.0, 1.0)
    return -np.sum(shares * np.log2(np.where(shares > 0, shares, 1.0)), axis=-1)
