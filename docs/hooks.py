"""What MkDocs is told beyond `mkdocs.yml`: pages that live outside `docs/`, links to them, and formulas.

README, CHANGELOG and CONTRIBUTING are pages as they are, and so is whatever lies in `notebooks/`, with the outputs that
were committed. Links are written for a reader of the repository, and turned here into links between pages. Formulas
become MathML, which browsers show by themselves.
"""

import contextlib
import html
import logging
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import nbformat
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
FILES = ("CITATION.cff",)  # that are there to be fetched
PICTURES = "tests/plots/pictures"  # which tests hold to what plots draw, so that they are never out of date
SECTION = "Notebooks"  # of the navigation

log = logging.getLogger("mkdocs.hooks")


class _DisplayInParagraph(InlineProcessor):
    """A displayed formula in the middle of a paragraph or of an entry of a list."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[ElementTree.Element, int, int]:  # noqa: N802
        element = ElementTree.Element("span", {"class": "arithmatex"})
        element.text = AtomicString(rf"\[{m[1]}\]")
        return element, m.start(0), m.end(0)


class _Formulas(Extension):
    """Displayed formulas wherever they stand, ahead of `pymdownx.arithmatex`, which wants blank lines about them."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.inlinePatterns.register(_DisplayInParagraph(r"\$\$(.+?)\$\$", md), "display-in-paragraph", 189.95)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the notebooks into the navigation, in the order of their names, under their own titles."""
    config.markdown_extensions.append(_Formulas())
    assert config.nav is not None
    for entry in config.nav:
        if SECTION in entry:
            entry[SECTION] = [{_title(path): f"notebooks/{path.stem}.md"} for path in _notebooks()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live outside `docs/`."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_links(text, source)))
    for name in FILES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for path in sorted((ROOT / PICTURES).glob("*.png")):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    for path in _notebooks():
        text, pictures = _markdown_of(path)
        files.append(
            File.generated(config, f"notebooks/{path.stem}.md", content=_links(text, f"notebooks/{path.name}"))
        )
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of pages in `docs/`; those of the others are turned already."""
    return markdown if page.file.generated_by else _links(markdown, f"docs/{page.file.src_uri}")


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML."""

    def formula(found: re.Match[str]) -> str:
        latex = html.unescape(found[2]).strip()
        try:
            return _tidy(convert(latex[2:-2].strip(), display="block" if latex.startswith(r"\[") else "inline"))
        except Exception as error:
            log.warning("%s: formula %r cannot be shown (%s)", page.file.src_uri, latex, error)
            return latex

    content = re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, content, flags=re.DOTALL)
    text = re.sub(r"<(code|pre)\b.*?</\1>", "", content, flags=re.DOTALL)
    for left in re.findall(r".*\$\$.*|.*\\(?:frac|sum|mathcal)\b.*", text):
        log.warning("%s: a formula was not understood: %s", page.file.src_uri, left.strip()[:120])
    return content


def _tidy(mathml: str) -> str:
    """What browsers make no sense of: script letters by attribute, a relation as a letter, names without room."""

    def script(found: re.Match[str]) -> str:
        names = (f"MATHEMATICAL SCRIPT CAPITAL {found[1]}", f"SCRIPT CAPITAL {found[1]}")
        return f"<mi>{next(letter for letter in map(_character, names) if letter)}</mi>"

    mathml = re.sub(r'<mi mathvariant="script">([A-Z])</mi>', script, mathml)
    mathml = mathml.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")
    named = r"(<m([io])>[a-z]{2,}</m\2>)(?!<mo stretchy=\"false\">&#x00028;|</)"
    return re.sub(named, r'\1<mspace width="0.17em"/>', mathml)


def _character(name: str) -> str:
    with contextlib.suppress(KeyError):
        return unicodedata.lookup(name)
    return ""


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _title(path: Path) -> str:
    """The first heading of a notebook."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    found = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    return found[1] if found else path.stem


def _markdown_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name."""
    exporter = MarkdownExporter()
    text, resources = exporter.from_filename(str(path), {"unique_key": path.stem, "output_files_dir": path.stem})
    text = re.sub(r"<style scoped>.*?</style>\n?", "", text, flags=re.DOTALL)  # of pandas, where the site has its own
    text = text.replace('<table border="1" class="dataframe">', '<table class="dataframe">')
    return text, dict(resources["outputs"])


def _links(markdown: str, source: str) -> str:
    """Links between files of the repository as links between pages."""
    here = PurePosixPath(source).parent
    page = PurePosixPath(_page_of(source) or source).parent

    def turned(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        wanted = _page_of(os.path.normpath(here / target))
        return found[0] if wanted is None else f"{found[1]}{os.path.relpath(wanted, page)}{anchor})"

    return re.sub(r"(\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", turned, markdown)


def _page_of(path: str) -> str | None:
    """The page, or the picture, that a file of the repository is on the site."""
    if path in PAGES or path in FILES:
        return PAGES.get(path, path)
    if path.startswith(f"{PICTURES}/"):
        return f"pictures/{PurePosixPath(path).name}"
    if path.startswith("notebooks/"):
        return re.sub(r"\.ipynb$", ".md", path)
    return path.removeprefix("docs/") if path.startswith("docs/") else None
