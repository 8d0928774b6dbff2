"""The rows of a table with what a fit says of each: its cluster, how sure that is, and how usual the row is."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float

from bayesgmm.engines.fit import Fit
from bayesgmm.mixtures.mixture import Mixture
from bayesgmm.posterior.allocations import flat_draws, responsibility_blocks

_MOST_DRAWS = 400  # enough for a spread with three digits
_BLOCK = 4096  # rows at a time, so that draws of many rows fit into memory


def assignment_table(fit: Fit, x: Float[np.ndarray, "n d"]) -> pd.DataFrame:
    """A line for each row of x (n, d).

    "cluster"; "responsibility_j" of each component, of posterior draws their mean, with "responsibility_j_sd" over the
    draws; "uncertainty", one minus the largest responsibility; and "log_density" of the point of the fit.
    """
    return pd.concat(
        [_of_block(fit, x[start : start + _BLOCK]) for start in range(0, len(x), _BLOCK)], ignore_index=True
    )


def _of_block(fit: Fit, x: Float[np.ndarray, "n d"]) -> pd.DataFrame:
    mean, sd = _responsibilities(fit, x)
    columns = {"cluster": mean.argmax(1)}
    for number in range(mean.shape[1]):
        columns[f"responsibility_{number}"] = mean[:, number]
        if sd is not None:
            columns[f"responsibility_{number}_sd"] = sd[:, number]
    columns |= {"uncertainty": 1 - mean.max(1), "log_density": np.asarray(fit.mixture.log_prob(x), np.float64)}
    return pd.DataFrame(columns)


def _responsibilities(
    fit: Fit, x: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"] | None]:
    """Of the point, or their mean and standard deviation over draws, evenly spaced over all chains."""
    if fit.draws is None:
        return np.asarray(fit.mixture.responsibilities(x), np.float64), None
    total = np.zeros((len(x), fit.mixture.num_components))
    squares, count = np.zeros_like(total), 0
    for block in _blocks(fit.draws, x):
        total += block.sum(0, dtype=np.float64)
        squares += np.square(block).sum(0, dtype=np.float64)
        count += len(block)
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


def _blocks(draws: Mixture, x: Float[np.ndarray, "n d"]) -> Iterator[Float[np.ndarray, "block n k"]]:
    flat = flat_draws(draws)
    return responsibility_blocks(flat[:: -(-len(flat.means) // _MOST_DRAWS)], x)
