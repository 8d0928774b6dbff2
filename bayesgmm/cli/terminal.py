"""How a terminal shows the tables of a `Comparison`."""

import pandas as pd
from rich.table import Table

from bayesgmm.comparison.comparing import Comparison
from bayesgmm.comparison.tables import (
    LEFT,
    agreement_table,
    candidate_table,
    component_table,
    engine_table,
    first_of_cluster,
    flag_legend,
    in_parts,
    loo_table,
)
from bayesgmm.engines.registry import ENGINES


def rich_tables(comparison: Comparison, width: int = 140) -> list[Table]:
    """The tables of a comparison for a terminal of this width, which none is wider than: engines go into a second."""
    count, family, em = comparison.num_components, comparison.base.family, ENGINES[comparison.base.engine].label
    tables = {f"k = {count}, family {family}: {len(comparison.x)} rows on one likelihood": engine_table(comparison)}
    if comparison.selected_by is not None:
        title = f"Number of components by {em}; {comparison.selected_by.upper()} selects k = {count}"
        tables = {title: candidate_table(comparison), **tables}
    if comparison.loo_over_k is not None:
        tables["Leave-one-out over the number of components"] = loo_table(comparison)
    if comparison.has_agreement:
        title = "Hard assignments: sum of squares within clusters, agreement (1 is perfect, 0 is chance)"
        tables[title] = agreement_table(comparison)
    found = [_rich_table(title, frame) for title, frame in tables.items()]
    title = f"Parameters ({em} ± standard error, posterior mean ± sd)"
    found += [_rich_table(title, part) for part in _fitting(component_table(comparison), width)]
    parameters = comparison.parameters
    found[-1].caption = "\n".join(filter(None, [flag_legend(parameters), *parameters.remarks])) or None
    found[-1].caption_justify = "left"
    return found


def _fitting(frame: pd.DataFrame, width: int) -> list[pd.DataFrame]:
    """The table in as few parts as a terminal of this width has room for."""
    widths = {name: 3 + max(len(str(name)), *(len(cell) for cell in frame[name])) for name in frame}
    for most in range(len(widths), 1, -1):
        parts = in_parts(frame, most)
        if all(1 + sum(widths[name] for name in part) <= width for part in parts):
            return parts
    return in_parts(frame, 1)


def _rich_table(title: str, frame: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in frame:
        table.add_column(str(name), justify="left" if name in LEFT else "right", no_wrap=name != "converged")
    for row, is_first in zip(frame.itertuples(index=False), first_of_cluster(frame), strict=True):
        if is_first:
            table.add_section()
        table.add_row(*row)
    return table
