"""The HTML report: one self-contained file with the tables, the figures and everything needed to repeat them.

Its frame, and how it looks, are in `report.html`.
"""

import base64
import html
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bayesgmm import plots
from bayesgmm.cli import terminal
from bayesgmm.cli.config import CommonConfig
from bayesgmm.comparison.compare import Comparison
from bayesgmm.datasets import Dataset
from bayesgmm.engines.registry import ENGINES
from bayesgmm.numerics.validation import counted, listed
from bayesgmm.plots.panels import root_figure


def render_report(comparison: Comparison, settings: CommonConfig, data: Dataset, provenance: Mapping[str, Any]) -> str:
    """The report as the text of one HTML file, figures embedded."""
    units = f" (units: {data.units})" if data.units else ""
    lead = (
        f"{data.columns}{units}; a mixture of "
        f"{counted(comparison.num_components, 'Gaussian component')} of family {comparison.base.family} in "
        f"{counted(comparison.x.shape[1], 'dimension')}, fitted by {listed(comparison.fits)} on one likelihood."
    )
    noted = [*(("data", note) for note in data.notes), *comparison.cautions]
    cautions = [f"<strong>{html.escape(name)}:</strong> {html.escape(text)}." for name, text in noted]
    versions = ", ".join(f"{package} {version}" for package, version in provenance["versions"].items())
    device = f"{provenance['device']['count']} × {provenance['device']['kind']}"
    source = f"Data: {data.name}. {data.source}".strip().rstrip(".")
    return Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        title=html.escape(settings.title),
        lead=html.escape(lead),
        cautions="\n".join(f'<p class="warning">{caution}</p>' for caution in cautions),
        engines=_html_table(terminal.engine_table(comparison)),
        agreement=_agreement(comparison) if comparison.has_agreement else "",
        parameters=_parameters(comparison),
        candidates=_candidates(comparison) if comparison.selected_by else "",
        pictures="\n".join(_pictures(comparison)),
        prior=html.escape(comparison.prior.describe(comparison.feature_names)),
        footer=html.escape(f"{source}. Seed {settings.seed}. {device}. {versions}. {provenance['time']}."),
    )


def _agreement(comparison: Comparison) -> str:
    """How far hard assignments agree, where there is k-means or known classes to compare them with."""
    labels = [ENGINES[name].label for name in comparison.partitions]
    of_kmeans = f", which {listed(labels)} minimises," if labels else ""
    return (
        f"<h2>Hard assignments</h2>\n{_html_table(terminal.agreement_table(comparison))}\n"
        f"<p class='lead'>The inertia{of_kmeans} is the sum of squared distances of the rows from the means of their "
        "clusters. The adjusted Rand index (ARI) is 1 where two partitions are the same and about 0 "
        "where they agree as by chance. Mixtures assign rows to their most probable component.</p>"
    )


def _candidates(comparison: Comparison) -> str:
    return f"<h2>Number of components</h2>\n{_html_table(terminal.candidate_table(comparison))}"


def _parameters(comparison: Comparison) -> str:
    table = comparison.parameters
    parts = [
        _html_table(terminal.component_table(comparison)),
        "<p class='lead'>Maximum likelihood ± standard error (observed information); posterior mean ± standard "
        f"deviation where the engine has draws. {html.escape(terminal.flag_legend(table))}</p>",
        *(f'<p class="warning">{html.escape(remark)}.</p>' for remark in table.remarks),
    ]
    if table.measured_by is not None:
        hollow = f"; hollow markers are far from {table.reference}" if any(table.frame["flagged"]) else ""
        caption = (
            f"Estimates and posterior means with 95% intervals by every engine, as distances from {table.measured_by}"
        )
        parts.append(_figure(plots.plot_parameter_forest(table), f"{caption}{hollow}."))
    return "\n".join(parts)


def _pictures(comparison: Comparison) -> Iterator[str]:
    """Every figure with its caption; one without a heading belongs to the one before it."""
    x, names, fits, base = comparison.x, comparison.feature_names, comparison.fits, comparison.base
    label, one = ENGINES[base.engine].label, x.shape[1] == 1
    em = f"the {label} fit"
    picture = plots.plot_assignments(base.mixture, x, feature_names=names)
    drawn = f"density of {em}" if one else f"components of {em}: ellipses hold 50% and 90% of each one's mass"
    yield _figure(picture, f"Rows coloured by hard assignment, with the {drawn}.", "The fit by maximum likelihood")
    for name, partition in comparison.partitions.items():
        other = ENGINES[name].label
        picture = plots.plot_partitions(base, x, partition, feature_names=names)
        ringed = "" if one else "; rows that it assigns otherwise than the mixture are ringed"
        yield _figure(picture, f"Hard assignments by {em} and by {other}{ringed}.", f"Beside {other}")
    posteriors = [name for name, fit in fits.items() if fit.draws is not None]
    if posteriors:
        # The sampler is the reference for pictures of uncertainty; an approximation stands in where it did not run.
        shown = comparison.parameters.reference or posteriors[-1]
        picture = plots.plot_posterior_ellipses(fits[shown], x, point=base, feature_names=names)
        caption = f"{'Densities' if one else 'Components'} of posterior draws ({shown}), thin, and of {em}, bold."
        yield _figure(picture, caption, "The same with its uncertainty")
        picture = plots.plot_responsibility_uncertainty(fits[shown], x, feature_names=names)
        caption = "Uncertainty of each row's assignment: one minus its largest responsibility, averaged over posterior "
        yield _figure(picture, f"{caption}draws ({shown}).")
        picture = plots.plot_posterior_parameters(fits, feature_names=names)
        points = listed(ENGINES[fit.engine].label for fit in fits.values() if fit.draws is None)
        caption = f"Marginal posterior densities; vertical lines mark the {points} values."
        yield _figure(picture, caption, "Posterior of weights and means")
    else:
        picture = plots.plot_responsibility_uncertainty(base, x, feature_names=names)
        yield _figure(picture, "Uncertainty of the assignment of each row: one minus its largest responsibility.")
    caption = (
        f"Log-likelihood of {label}, log posterior density of MAP and of every draw, ELBO of the variational fits."
    )
    yield _figure(plots.plot_traces(fits), caption, "What the engines watched")
    if comparison.selected_by is not None:
        picture = plots.plot_criteria(comparison.candidates, selected=comparison.num_components)
        caption = f"Smaller is better; {comparison.selected_by.upper()} selected k = {comparison.num_components}."
        yield _figure(picture, caption, "Criteria over the number of components")


def _figure(drawn: Axes | np.ndarray, caption: str, title: str = "") -> str:
    from matplotlib import pyplot

    figure, buffer = root_figure(drawn), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight")
    pyplot.close(figure)
    data, text = base64.b64encode(buffer.getvalue()).decode("ascii"), html.escape(caption)
    heading = f"<h2>{html.escape(title)}</h2>\n" if title else ""
    return (
        f'{heading}<figure><img src="data:image/png;base64,{data}" alt="{text}" '
        f'width="{round(figure.get_figwidth() * 96)}"><figcaption>{text}</figcaption></figure>'
    )


def _html_table(frame: pd.DataFrame) -> str:
    def line(tag: str, cells: tuple[str, ...], kind: str = "") -> str:
        kinds = [" class=left" if name in terminal.LEFT else "" for name in frame]
        texts = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr{kind}>{''.join(texts)}</tr>"

    rows = zip(frame.itertuples(index=False), terminal.first_of_cluster(frame), strict=True)
    lines = [line("th", tuple(frame)), *(line("td", row, " class=new" if is_first else "") for row, is_first in rows)]
    return f'<div class="scroll"><table>{"\n".join(lines)}</table></div>'
