"""The HTML report: one self-contained file with the tables, the figures and everything needed to repeat them."""

import base64
import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bayesgmm import plots
from bayesgmm.cli.terminal import agreement_rows, candidate_rows, component_rows, engine_rows, flag_legend
from bayesgmm.comparison.compare import Comparison
from bayesgmm.engines.registry import ENGINES
from bayesgmm.plots.panels import root_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --faint: #5b6b7b; --line: #d8dfe6; --warn: #fff4e0; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
       max-width: 66rem; margin: 2rem auto; padding: 0 1.25rem; background: #fff; }
h1 { font-size: 1.9rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.25rem 0 .5rem; }
p.lead, figcaption, footer { color: var(--faint); } figure { margin: 1rem 0 2rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .92rem; margin-top: .4rem; max-width: 52rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; margin: .5rem 0; }
th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { border-bottom: 2px solid var(--ink); font-weight: 600; }
th.left, td.left { text-align: left; }
tr.new td { border-top: 1.5px solid var(--faint); }
.warning { background: var(--warn); border-left: 4px solid #d98e04; padding: .6rem 1rem; margin: .75rem 0; }
pre { background: #f5f7f9; padding: .8rem 1rem; overflow-x: auto; font-size: .88rem; line-height: 1.45; }
footer { font-size: .85rem; border-top: 1px solid var(--line); margin-top: 3rem; padding-top: .75rem; }
"""


def render_report(
    comparison: Comparison,
    *,
    title: str,
    seed: int,
    data_source: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> str:
    """The report as the text of one HTML file, figures embedded."""
    num_rows, num_features = comparison.x.shape
    units = f" (units: {data_source['units']})" if data_source.get("units") else ""
    several, family = "s" if comparison.num_components > 1 else "", comparison.base.family
    lead = (
        f"{num_rows} rows of {', '.join(comparison.feature_names)}{units}; a mixture of {comparison.num_components} "
        f"Gaussian component{several} of family {family} in {num_features} "
        f"dimension{'s' if num_features > 1 else ''}, fitted by {_listed(list(comparison.fits))} on one likelihood."
    )
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']
    for name, caution in comparison.cautions:
        parts.append(f'<p class="warning"><strong>{html.escape(name)}:</strong> {html.escape(caution)}.</p>')
    parts += [
        "<h2>The engines side by side</h2>",
        _html_table(*engine_rows(comparison), left={"engine", "converged"}),
        "<p class='lead'>Log-likelihood and criteria are those of each engine's point (for posteriors: the mixture of "
        "posterior means). Smaller BIC, AIC and ICL are better, larger ELPD-LOO is better.</p>",
        *_agreement(comparison),
        "<h2>Parameters</h2>",
        *_parameters(comparison),
    ]
    if comparison.selected_by is not None:
        parts += ["<h2>Number of components</h2>", _html_table(*candidate_rows(comparison), left={"converged"})]
    parts += _figures(comparison)
    parts += [
        "<h2>Prior</h2>",
        f"<pre>{html.escape(comparison.prior.describe(comparison.feature_names))}</pre>",
        f"<footer>{html.escape(_footer(seed, data_source, provenance))}</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _agreement(comparison: Comparison) -> list[str]:
    """How far hard assignments agree, where there is k-means or known classes to compare them with."""
    if not comparison.has_agreement:
        return []
    labels = [ENGINES[name].label for name in comparison.partitions]
    of_kmeans = f", which {_listed(labels)} minimises," if labels else ""
    return [
        "<h2>Hard assignments</h2>",
        _html_table(*agreement_rows(comparison), left={"engine"}),
        f"<p class='lead'>The inertia{of_kmeans} is the sum of squared distances of the rows from the means of their "
        "clusters. The adjusted Rand index (ARI) is 1 where two partitions are the same and about 0 "
        "where they agree as by chance. Mixtures assign rows to their most probable component.</p>",
    ]


def _parameters(comparison: Comparison) -> list[str]:
    table = comparison.parameters
    header, rows = component_rows(comparison)
    parts = [
        _html_table(header, rows, left={"cluster", "quantity"}, group=True),
        "<p class='lead'>Maximum likelihood ± standard error (observed information); posterior mean ± standard "
        f"deviation where the engine has draws. {html.escape(flag_legend(table))}</p>",
    ]
    parts += [f'<p class="warning">{html.escape(remark)}.</p>' for remark in table.remarks]
    if table.measured_by is None:
        return parts
    hollow = f"; hollow markers are far from {table.reference}" if any(table.frame["flagged"]) else ""
    caption = f"Estimates and posterior means with 95% intervals by every engine, as distances from {table.measured_by}"
    return [*parts, _figure(plots.plot_parameter_forest(table), f"{caption}{hollow}.")]


def _figures(comparison: Comparison) -> list[str]:
    x, names, fits = comparison.x, comparison.feature_names, comparison.fits
    posteriors = {name: fit for name, fit in fits.items() if fit.draws is not None}
    # The sampler is the reference for pictures of uncertainty; an approximation stands in where it did not run.
    shown = comparison.parameters.reference or next(reversed(posteriors), None)
    parts = ["<h2>The fit by maximum likelihood</h2>"]
    one = x.shape[1] == 1
    figure = plots.plot_assignments(comparison.base.mixture, x, feature_names=names)
    drawn = "density of the EM fit" if one else "components of the EM fit: ellipses hold 50% and 90% of each one's mass"
    parts.append(_figure(figure, f"Rows coloured by hard assignment, with the {drawn}."))
    for name, partition in comparison.partitions.items():
        label = ENGINES[name].label
        parts.append(f"<h2>Beside {html.escape(label)}</h2>")
        figure = plots.plot_partitions(comparison.base, x, partition, feature_names=names)
        ringed = "" if one else "; rows that it assigns otherwise than the mixture are ringed"
        parts.append(_figure(figure, f"Hard assignments by the EM fit and by {label}{ringed}."))
    if shown is not None:
        fit = posteriors[shown]
        parts.append("<h2>The same with its uncertainty</h2>")
        figure = plots.plot_posterior_ellipses(fit, x, point=comparison.base, feature_names=names)
        drawn = "Densities" if one else "Components"
        parts.append(_figure(figure, f"{drawn} of posterior draws ({shown}), thin, and of the EM fit, bold."))
        figure = plots.plot_responsibility_uncertainty(fit, x, feature_names=names)
        parts.append(_figure(figure, "Uncertainty of each row's assignment: one minus its largest "
                                     f"responsibility, averaged over posterior draws ({shown})."))  # fmt: skip
        parts.append("<h2>Posterior of weights and means</h2>")
        figure = plots.plot_posterior_parameters(fits, feature_names=names)
        parts.append(_figure(figure, "Marginal posterior densities; vertical lines mark the EM and MAP values."))
    else:
        figure = plots.plot_responsibility_uncertainty(comparison.base, x, feature_names=names)
        parts.append(
            _figure(figure, "Uncertainty of the assignment of each row: one minus its largest responsibility.")
        )
    parts.append("<h2>What the engines watched</h2>")
    parts.append(_figure(plots.plot_traces(fits), "Log-likelihood of EM, log posterior density of MAP and of every "
                                                  "draw, ELBO of the variational fits."))  # fmt: skip
    if comparison.selected_by is not None:
        parts.append("<h2>Criteria over the number of components</h2>")
        figure = plots.plot_criteria(comparison.candidates, selected=comparison.num_components)
        parts.append(_figure(figure, f"Smaller is better; {comparison.selected_by.upper()} selected k = "
                                     f"{comparison.num_components}."))  # fmt: skip
    return parts


def _figure(drawn: "Axes | np.ndarray", caption: str) -> str:
    from matplotlib import pyplot

    figure = root_figure(drawn)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight")
    pyplot.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = html.escape(caption)
    width = round(figure.get_figwidth() * 96)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text}" width="{width}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _html_table(header: list[str], rows: list[list[str]], left: set[str], group: bool = False) -> str:
    def cells(tag: str, row: list[str]) -> str:
        return "".join(
            f"<{tag}{' class=left' if name in left else ''}>{html.escape(cell)}</{tag}>"
            for name, cell in zip(header, row, strict=True)
        )

    lines = []
    for index, row in enumerate(rows):
        new = group and index > 0 and rows[index - 1][0] != row[0]
        lines.append(f"<tr{' class=new' if new else ''}>{cells('td', row)}</tr>")
    return f'<div class="scroll"><table><tr>{cells("th", header)}</tr>\n' + "\n".join(lines) + "</table></div>"


def _footer(seed: int, data_source: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in provenance["versions"].items())
    source = f"Data: {data_source['name']}. {data_source.get('source', '')}".strip().rstrip(".")
    device = provenance["device"]
    return f"{source}. Seed {seed}. {device['count']} × {device['kind']}. {versions}. {provenance['time']}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
