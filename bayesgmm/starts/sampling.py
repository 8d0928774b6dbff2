"""Comparable columns, and samples of very many rows in which small clusters far from the others are not lost."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bayesgmm.likelihood.rows import Rows
from bayesgmm.mixtures.families import Family
from bayesgmm.numerics.draws import draw_rows, uniform_numbers
from bayesgmm.numerics.keys import Keys
from bayesgmm.numerics.precision import AnyArray, namespace

_SAMPLE_ROWS = 4096  # at least; and so many times the fewest that all components need:
_TIMES_FEWEST = 6
_PART = 2**16  # rows whose distances are taken together


def standardise(rows: Rows) -> Float[AnyArray, "n d"]:
    """Columns with weighted mean 0 and variance 1; a constant column stays at 0, up to rounding."""
    centre, scale = centre_and_scale(rows)
    return (rows.values - centre[None]) / scale[None]


def centre_and_scale(
    rows: Rows, moments: tuple[AnyArray, AnyArray] | None = None
) -> tuple[Float[AnyArray, " d"], Float[AnyArray, " d"]]:
    """Weighted mean and standard deviation of every column, 1 where it is no more than rounding of the mean."""
    mean, variance = column_moments(rows) if moments is None else moments
    xp = namespace(mean)
    scale = xp.sqrt(variance)
    return mean, xp.where(scale > 10 * jnp.finfo(rows.dtype).eps * abs(mean), scale, xp.ones_like(scale))


def column_moments(rows: Rows) -> tuple[Float[AnyArray, " d"], Float[AnyArray, " d"]]:
    """Weighted mean and variance of every column, by reductions that XLA fuses, so that no copy of the rows is made."""
    x, shares = rows.values, (rows.weights / rows.total_weight)[:, None]
    near = x[0]  # differences from a row keep the digits that a mean far from zero would cost
    mean = near + (shares * (x - near[None])).sum(0)
    centred = x - mean[None]
    return mean, (shares * (centred * centred)).sum(0)


def sample_size(rows: Rows, num_components: int, family: Family) -> int:
    """Rows of a sample that is large enough for starts and short runs with so many components."""
    return max(_SAMPLE_ROWS, _TIMES_FEWEST * num_components * family.min_component_rows(rows.num_features))


def sampling_masses(rows: Rows, moments: tuple[AnyArray, AnyArray] | None = None) -> Float[AnyArray, " n"]:
    """By what rows are drawn: half by weight, half by weight times squared distance from the mean.

    Columns are standardised, by their mean and variance (d) where these are known. So a few rows far out are seen.

    Source: Bachem, Lucic & Krause (2018), "Scalable k-means clustering via lightweight coresets".
    """
    centre, scale = centre_and_scale(rows, moments)

    def distances(x: AnyArray) -> AnyArray:
        standard = (x - centre[None]) / scale[None]
        return (standard * standard).sum(1)

    x = rows.values
    if namespace(x) is jnp:
        far = distances(x)
    else:
        far = np.concatenate([distances(x[first : first + _PART]) for first in range(0, len(x), _PART)])
    return rows.weights * (0.5 + 0.5 * far * (rows.total_weight / (rows.weights * far).sum()))


def sample_rows(rows: Rows, masses: Float[AnyArray, " n"], size: int, *, key: Keys) -> Rows:
    r"""Rows drawn independently by their masses, with weights that make up for it.

    A row drawn with probability $q_i$ has the weight $v_i / (m q_i)$, with which sums over the sample are unbiased.
    """
    drawn = draw_rows(masses, uniform_numbers(key, (size, 2), masses))
    sample = rows.at(drawn)
    return dataclasses.replace(sample, weights=sample.weights * (masses.sum() / size) / masses[drawn])
