"""The HTML report: one self-contained file with the tables, the figures and everything needed to repeat them.

Its frame, and how it looks, are in `report.html`.
"""

import base64
import contextlib
import functools
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import pyplot, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesgmm import plots
from bayesgmm.comparison import tables
from bayesgmm.comparison.comparing import Comparison
from bayesgmm.comparison.summary import Summary, error_line
from bayesgmm.diagnostics.leave_one_out import prior_sensitivity
from bayesgmm.engines.registry import ENGINES
from bayesgmm.errors import InputError
from bayesgmm.numerics.thresholds import MIN_DRAWS
from bayesgmm.numerics.words import counted, few_of, listed
from bayesgmm.plots.panels import root_figure
from bayesgmm.plots.view import MAX_COLUMNS, best_columns
from bayesgmm.runtime.provenance import provenance

if TYPE_CHECKING:
    from xarray import DataTree

_MOST_ENGINES = 5  # columns of a table that the page has room for
_MANY_COLUMNS = 4  # from which on correlations are folded away
_MOST_TABULATED = 12  # columns that are not folded away
_MOST_DRAWN = 12  # parameters in pictures of chains
_MOST_COMPARED = 8  # columns whose replicates are drawn

_STYLES = {"ess_bulk": "{:.0f}", "ess_tail": "{:.0f}", "r_hat": "{:.3f}"}  # Monte Carlo errors have two digits

Drawing = Callable[[], Axes | np.ndarray]


@dataclass(frozen=True)
class About:
    """What a report says beside the numbers of a comparison.

    Attributes:
        title: its heading.
        columns: which rows and columns were used, in words; by default their numbers and names.
        units: of the columns.
        source: of the data.
        notes: remarks on how they were read.
        settings: what the run was asked for, as text; empty where it is not known.
        seed: the seed, where it is known.
    """

    title: str = "Gaussian mixture"
    columns: str = ""
    units: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()
    settings: str = ""
    seed: int | None = None


class _Figures:
    """Pictures for the page, and for a folder of files where one is named; each is drawn once and closed.

    One that cannot be drawn leaves a remark: a picture is no reason to lose a run.
    """

    def __init__(self, folder: Path | None, formats: Sequence[str]) -> None:
        self._folder, self._formats = folder, formats
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, draw: Drawing, caption: str) -> str:
        """The figure as a part of the page; its files are called by this name."""
        others = set(pyplot.get_fignums())
        try:
            return self._drawn(name, root_figure(draw()), html.escape(caption))
        except Exception as error:
            return f'<p class="warning">No picture "{html.escape(name)}": {html.escape(error_line(error))}.</p>'
        finally:
            for number in {*pyplot.get_fignums()} - others:  # the caller's own stay open
                pyplot.close(number)

    def _drawn(self, name: str, figure: Figure, text: str) -> str:
        # Laid out once: each file would do it again, which takes longer than the drawing.
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
        figure.set_layout_engine("none")
        box, buffer = figure.get_tightbbox().padded(rcParams["savefig.pad_inches"]), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, bbox_inches=box)
        for path in [] if self._folder is None else [self._folder / f"{name}.{form}" for form in self._formats]:
            if path.suffix == ".png":
                path.write_bytes(buffer.getvalue())
            else:
                figure.savefig(path, bbox_inches=box)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}" '
            f'width="{round(figure.get_figwidth() * 96)}"><figcaption>{text}</figcaption></figure>'
        )


def render_report(
    comparison: Comparison, about: About, *, folder: Path | None = None, formats: Sequence[str] = ("png", "svg")
) -> str:
    """The report as one HTML file, figures embedded; those go into a folder too, as files of these formats."""
    x, names, found = comparison.x, comparison.feature_names, provenance()
    columns = about.columns or f"{len(x)} rows of {few_of(names)}"
    units = f" (units: {about.units})" if about.units else ""
    lead = (
        f"{columns}{units}; a mixture of {counted(comparison.num_components, 'Gaussian component')} of family "
        f"{comparison.base.family} in {counted(x.shape[1], 'dimension')}, fitted by {listed(comparison.fits)} on one "
        "likelihood."
    )
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    device = f"{found['device']['count']} × {found['device']['kind']}"
    seed = "" if about.seed is None else f"Seed {about.seed}. "
    figure = _Figures(folder, formats)
    sections = {
        "Summary": [_summary(comparison.summary())],
        "The fit": [figure(*picture) for picture in _pictures_of_fit(comparison)],
        "The engines side by side": list(_engines(comparison, figure)),
        "Parameters": list(_parameters(comparison, figure)),
        "Diagnostics": list(_diagnostics(comparison, about.notes, figure)),
        "Prior": [f"<pre>{html.escape(comparison.prior.describe(names))}</pre>"],
    }
    if about.settings:
        sections["Settings"] = [_folded("All settings of the run", f"<pre>{html.escape(about.settings)}</pre>")]
    return Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        title=html.escape(about.title),
        lead=html.escape(lead),
        contents="\n".join(f'<a href="#{_anchor(heading)}">{heading}</a>' for heading in sections),
        sections="\n".join(
            f'<section id="{_anchor(heading)}">\n<h2>{heading}</h2>\n{"\n".join(parts)}\n</section>'
            for heading, parts in sections.items()
        ),
        footer=html.escape(f"{about.source} {seed}{device}. {versions}. {found['time']}.".strip()),
    )


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _summary(summary: Summary) -> str:
    """The sentences by heading, those of clusters as a table."""
    parts = []
    for heading, sentences in summary.sections.items():
        parts.append(f"<h3>{html.escape(heading)}</h3>")
        if heading.startswith("Clusters"):
            parts.append(_html_table(tables.cluster_table(summary)))
            continue
        parts.append(f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>")
        if heading == "Known classes" and summary.cross_table is not None:
            frame = summary.cross_table.reset_index().astype(str)
            parts.append(_html_table(frame.rename(columns=lambda name: name if name == "class" else f"cluster {name}")))
    return "\n".join(parts)


def _pictures_of_fit(comparison: Comparison) -> Iterator[tuple[str, Drawing, str]]:
    """The fit with its uncertainty, then its assignments, and those of k-means: names, figures and captions."""
    x, names, fits, base = comparison.x, comparison.feature_names, comparison.fits, comparison.base
    label, one = ENGINES[base.engine].label, x.shape[1] == 1
    em = f"the {label} fit"
    shown = _fit_with_draws(comparison)
    if shown is not None:
        yield "fit", *picture_of_fit(comparison)
    named: dict[str, Any] = {"feature_names": names}
    drawn = f"density of {em}" if one else f"components of {em}: ellipses hold 50% and 90% of each one's mass"
    caption = f"Rows coloured by hard assignment, with the {drawn}.{_chosen_columns(comparison)}"
    yield "assignments", lambda: plots.plot_assignments(base.mixture, x, **named), caption
    if x.shape[1] > 2 and base.mixture.num_components > 1:
        plane = "The plane in which components differ most in means and shapes (Scrucca 2010); its axes are named by"
        yield (
            "discriminant_plane",
            lambda: plots.plot_assignments(base.mixture, x, columns="discriminant", **named),
            f"{plane} the largest coefficients of the columns, in units of their standard deviations.",
        )
    averaged = f", averaged over posterior draws ({shown})" if shown is not None else ""
    yield (
        "uncertainty",
        lambda: plots.plot_responsibility_uncertainty(base if shown is None else fits[shown], x, **named),
        f"Uncertainty of each row's assignment: one minus its largest responsibility{averaged}.",
    )
    for name, partition in comparison.partitions.items():
        ringed = "" if one else "; rows that it assigns otherwise than the mixture are ringed"
        draw = functools.partial(plots.plot_partitions, base, x, partition, **named)
        yield f"partition_{name}", draw, f"Hard assignments by {em} and by {ENGINES[name].label}{ringed}."


def _fit_with_draws(comparison: Comparison) -> str | None:
    """The sampler, the reference for pictures of uncertainty; an approximation stands in where none was run."""
    posteriors = [name for name, fit in comparison.fits.items() if fit.draws is not None]
    return comparison.parameters.reference or (posteriors[-1] if posteriors else None)


def _chosen_columns(comparison: Comparison) -> str:
    """Which columns a picture of rows shows where it cannot show all, as a further sentence."""
    names, num_features = comparison.feature_names, comparison.x.shape[1]
    if num_features <= MAX_COLUMNS:
        return ""
    columns = listed(names[column] for column in best_columns(comparison.base.mixture))
    return f" The {MAX_COLUMNS} of {num_features} columns that separate the components best: {columns}."


def picture_of_fit(comparison: Comparison) -> tuple[Drawing, str]:
    """The fit with its uncertainty, and what the picture shows."""
    x, names, base = comparison.x, comparison.feature_names, comparison.base
    shown, one, em = _fit_with_draws(comparison), x.shape[1] == 1, f"the {ENGINES[base.engine].label} fit"
    if shown is None:
        draw = functools.partial(plots.plot_assignments, base.mixture, x, feature_names=names)
        return draw, f"Rows by hard assignment of {em}.{_chosen_columns(comparison)}"
    draw = functools.partial(plots.plot_posterior_ellipses, comparison.fits[shown], x, point=base, feature_names=names)
    what = "Densities" if one else "Components"
    return draw, f"{what} of posterior draws ({shown}), thin, and of {em}, bold.{_chosen_columns(comparison)}"


def _engines(comparison: Comparison, figure: _Figures) -> Iterator[str]:
    """The tables of the engines, of the numbers of components and of hard assignments."""
    yield _html_table(tables.engine_table(comparison))
    yield (
        "<p class='note'>Log-likelihood and criteria are those of each engine's point (for posteriors: the mixture of "
        "posterior means). Smaller BIC, AIC and ICL are better, larger ELPD-LOO is better.</p>"
    )
    if comparison.selected_by is not None:
        yield f"<h3>Number of components</h3>\n{_html_table(tables.candidate_table(comparison))}"
        draw = functools.partial(plots.plot_criteria, comparison.candidates, selected=comparison.num_components)
        caption = f"Smaller is better; {comparison.selected_by.upper()} selected k = {comparison.num_components}."
        yield figure("criteria", draw, caption)
    if (over_k := comparison.loo_over_k) is not None:
        name = over_k["engine"].iloc[0]
        yield f"<h3>Leave-one-out over the number of components</h3>\n{_html_table(tables.loo_table(comparison))}"
        draw = functools.partial(plots.plot_loo_over_k, over_k, selected=comparison.num_components)
        caption = (
            f"Expected log predictive density by {ENGINES[name].label} at each number of components; larger is better."
        )
        yield figure("loo_over_k", draw, caption)
    if comparison.has_agreement:
        yield _agreement(comparison)


def _agreement(comparison: Comparison) -> str:
    """How far hard assignments agree, where there is k-means or known classes to compare them with."""
    labels = [ENGINES[name].label for name in comparison.partitions]
    of_kmeans = f", which {listed(labels)} minimises," if labels else ""
    return (
        f"<h3>Hard assignments</h3>\n{_html_table(tables.agreement_table(comparison))}\n"
        f"<p class='note'>The inertia{of_kmeans} is the sum of squared distances of the rows from the means of their "
        "clusters. The adjusted Rand index (ARI) is 1 where two partitions are the same and about 0 "
        "where they agree as by chance. Mixtures assign rows to their most probable component.</p>"
    )


def _parameters(comparison: Comparison, figure: _Figures) -> Iterator[str]:
    """A table for each cluster, with correlations and columns folded away where there are many, and pictures of all."""
    table, frame = comparison.parameters, tables.component_table(comparison)
    many = comparison.x.shape[1] >= _MANY_COLUMNS
    telling = best_columns(comparison.base.mixture, _MOST_TABULATED)
    names = [name for column, name in enumerate(comparison.feature_names) if column not in telling]
    others = [f"{what} {name}" for name in names for what in ("mean", "sd")]
    for cluster, lines in frame.groupby("cluster", sort=False):
        lines = lines.drop(columns="cluster")
        shape = lines["quantity"].str.startswith("corr ") & many
        beside = lines["quantity"].isin(others)
        yield f"<h3>Cluster {html.escape(str(cluster))}</h3>"
        yield from map(_html_table, tables.in_parts(lines.loc[~shape & ~beside], _MOST_ENGINES))
        for heading, chosen in {"Columns that tell the components apart less": beside, "Correlations": shape}.items():
            if chosen.any():
                yield _folded(heading, "\n".join(map(_html_table, tables.in_parts(lines.loc[chosen], _MOST_ENGINES))))
    yield (
        "<p class='note'>Maximum likelihood ± standard error (observed information); posterior mean ± standard "
        f"deviation where the engine has draws. {html.escape(tables.flag_legend(table))}</p>"
    )
    yield from (f'<p class="warning">{html.escape(remark)}.</p>' for remark in table.remarks)
    if table.measured_by is not None:
        hollow = f"; hollow markers are far from {table.reference}" if any(table.frame["flagged"]) else ""
        caption = (
            f"Estimates and posterior means with 95% intervals by every engine, as distances from {table.measured_by}"
        )
        yield figure("parameters", lambda: plots.plot_parameter_forest(table), f"{caption}{hollow}.")
    if any(fit.draws is not None for fit in comparison.fits.values()):
        draw = functools.partial(
            plots.plot_posterior_parameters, comparison.fits, feature_names=comparison.feature_names
        )
        points = listed(ENGINES[fit.engine].label for fit in comparison.fits.values() if fit.draws is None)
        yield figure("posteriors", draw, f"Marginal posterior densities; vertical lines mark the {points} values.")


def _diagnostics(comparison: Comparison, notes: Sequence[str], figure: _Figures) -> Iterator[str]:
    """Findings folded by engine, what the engines watched, and ArviZ's tables and pictures of the reference."""
    noted: dict[str, list[str]] = {}
    for name, sentence in (*(("data", note) for note in notes), *comparison.cautions):
        noted.setdefault(name, []).append(sentence)
    for name, sentences in noted.items():
        items = "".join(f"<li>{html.escape(sentence)}.</li>" for sentence in sentences)
        heading = f"{html.escape(name)}: {counted(len(sentences), 'remark')}"
        yield f'<details class="warning"><summary>{heading}</summary><ul>{items}</ul></details>'
    if not noted:
        yield "<p>No problems found.</p>"
    em = ENGINES[comparison.base.engine].label
    caption = f"Log-likelihood of {em}, log posterior density of MAP and of every draw, ELBO of the variational fits."
    yield figure("traces", lambda: plots.plot_traces(comparison.fits), caption)
    reference = comparison.parameters.reference
    tree = None if reference is None else comparison.trees.get(reference)
    # ArviZ judges chains of some draws, all finite.
    if (
        tree is not None
        and tree["posterior"].sizes["draw"] > MIN_DRAWS
        and np.isfinite(tree["posterior"]["means"]).all()
    ):
        yield from _by_arviz(tree, str(reference), best_columns(comparison.base.mixture, _MOST_COMPARED), figure)


def _by_arviz(tree: "DataTree", name: str, columns: tuple[int, ...], figure: _Figures) -> Iterator[str]:
    """What users of ArviZ look for, of one sampler: in pictures, of these columns."""
    import arviz

    posterior = tree["posterior"]
    names = [one for one in ("weights", "means", "scales") if bool((posterior[one].std(("chain", "draw")) > 0).all())]
    frame = arviz.summary(tree, var_names=names, kind="diagnostics")
    cells = {name: frame[name].map(_STYLES.get(name, "{:.2g}").format) for name in frame}
    frame = pd.DataFrame(cells).rename_axis("quantity").reset_index()
    yield f"<h3>Chains of {html.escape(name)}</h3>"
    yield _folded("R-hat, effective draws and Monte Carlo errors by parameter", _html_table(frame))
    if "log_prior" in tree.children and not tree.attrs.get("relabelled"):
        with contextlib.suppress(InputError):  # of densities that are not finite; a finding reports it
            found = prior_sensitivity(tree).astype(str).rename_axis("quantity").reset_index()
            yield _folded("Sensitivity to the prior and to the likelihood", _html_table(found))
    features, clusters = (posterior[name].to_numpy() for name in ("feature", "cluster"))
    of = f", of {counted(len(columns), 'column')} that separate the components best"
    of = of if len(columns) < len(features) else ""
    num_means = max(0, _MOST_DRAWN - len(clusters)) // len(clusters)
    var_names = ("weights", "means") if num_means else ("weights",)
    first = list(features[list(columns[:num_means])])
    coords = {"cluster": list(clusters[:_MOST_DRAWN]), **({"feature": first} if first else {})}
    means = f" and of the means of {listed(first)}" if first else ""
    few = f" Of the weights{means}." if len(clusters) * (1 + len(features)) > _MOST_DRAWN else ""
    caption = f"Densities by chain, and ranks of their draws: uniform where chains agree.{few}"
    yield figure("ranks", lambda: plots.plot_chain_ranks(tree, var_names=var_names, coords=coords), caption)
    caption = f"The columns, and replicated data sets from the posterior{of}."
    yield figure("posterior_predictive", lambda: plots.plot_posterior_predictive(_of_columns(tree, columns)), caption)
    if "log_likelihood" in tree.children:
        caption = "Pareto k of leave-one-out by row; above the line a row is unreliable."
        yield figure("pareto_k", lambda: plots.plot_pareto_k(tree), caption)


def _of_columns(tree: "DataTree", columns: tuple[int, ...]) -> "DataTree":
    """What is needed of a tree to compare replicates of these columns."""
    import xarray

    groups = {name: tree[name].dataset for name in ("posterior", "posterior_predictive", "observed_data")}
    return xarray.DataTree.from_dict(
        {name: group if name == "posterior" else group.isel(feature=list(columns)) for name, group in groups.items()}
    )


def _folded(heading: str, content: str) -> str:
    return f"<details><summary>{html.escape(heading)}</summary>\n{content}\n</details>"


def _html_table(frame: pd.DataFrame) -> str:
    def line(tag: str, cells: tuple[str, ...], kind: str = "") -> str:
        kinds = [" class=left" if name in tables.LEFT else "" for name in frame]
        texts = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr{kind}>{''.join(texts)}</tr>"

    rows = zip(frame.itertuples(index=False), tables.first_of_cluster(frame), strict=True)
    lines = [line("th", tuple(frame)), *(line("td", row, " class=new" if is_first else "") for row, is_first in rows)]
    return f'<div class="scroll"><table>{"\n".join(lines)}</table></div>'
