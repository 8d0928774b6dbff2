"""Priors in words: rows of a quantity, what is assumed of it, and the interval that holds 95% of the prior."""

from collections.abc import Sequence

import numpy as np

from bayesgmm.numerics.precision import AnyArray
from bayesgmm.runtime.printing import Lines

Row = tuple[str, str, str]
_MOST_LINES = 40


def describe_weights(concentration: AnyArray) -> list[Row]:
    """Rows of the description that are about the weights: of each, and of the smallest, which tells how many count."""
    from scipy import stats

    alpha = np.asarray(concentration, np.float64)
    if len(alpha) == 1:
        return [("weights", "one component, of weight 1", "")]
    is_even = bool((alpha == alpha[0]).all())
    listed = f"{alpha[0]:g} x {len(alpha)}" if is_even and len(alpha) > 6 else ", ".join(f"{a:g}" for a in alpha)
    smallest = np.random.default_rng(0).dirichlet(alpha, size=50_000).min(1)  # has no closed form; two digits of it do
    rows = [("weights", f"Dirichlet({listed}){', each' if is_even else ''}", "")]
    margins = [(stats.beta(a, alpha.sum() - a).interval(0.95)) for a in (alpha[:1] if is_even else alpha)]
    if is_even:
        rows[0] = (*rows[0][:2], as_interval(*margins[0]))
    else:
        rows += [("weights", f"of component {j}", as_interval(*margin)) for j, margin in enumerate(margins)]
    low, high = np.quantile(smallest, [0.025, 0.975])
    return [*rows, ("weights", "the smallest of them", f"{low:.2g} to {high:.2g}")]


def describe_sticks(concentration: AnyArray) -> list[Row]:
    """Rows of the description that are about the weights of a Dirichlet process, truncated to k components."""
    from scipy import stats

    gamma = np.asarray(concentration, np.float64)
    if len(gamma) == 1:
        return describe_weights(gamma)
    is_even = bool((gamma == gamma[0]).all())
    listed = f"{gamma[0]:g}" if is_even else ", ".join(f"{value:g}" for value in gamma[:-1])
    assumed = f"stick-breaking: Beta(1, {listed}) of what earlier components left"
    return [("weights", assumed, ""), ("weights", "of the first", as_interval(*stats.beta(1, gamma[0]).interval(0.95)))]


def describe_intervals(
    quantity: str, assumed: Sequence[str], limits: tuple[AnyArray, AnyArray], prefix: str = ""
) -> list[Row]:
    """Rows of one quantity, each with the interval between its lower and upper limit."""
    intervals = (prefix + as_interval(*pair) for pair in zip(*np.atleast_1d(*limits), strict=True))
    return [(quantity, text, interval) for text, interval in zip(assumed, intervals, strict=True)]


def as_lines(rows: Sequence[Row]) -> Lines:
    """Rows of a description, each a line of what is printed; of very many the first."""
    lines = [(what, f"{assumed}{f'; 95 % from {interval}' if interval else ''}") for what, assumed, interval in rows]
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], ("...", f"and {more} more")]


def as_interval(low: float, high: float) -> str:
    """Two numbers as words."""
    return f"{low:.3g} to {high:.3g}"


def as_table(rows: Sequence[Row]) -> str:
    """Rows of a description in aligned columns: of what, what is assumed, and where 95% of the prior lies."""
    shown_rows = [("", "assumed", "95% of the prior")]
    for index, (quantity, assumed, interval) in enumerate(rows):
        is_new = index == 0 or rows[index - 1][0] != quantity
        shown_rows.append((quantity if is_new else "", assumed, interval))
    widths = [max(len(row[column]) for row in shown_rows) for column in range(2)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in shown_rows)
