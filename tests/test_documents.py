"""README and `docs/`: every block of code runs, every link leads somewhere, every public name is in the reference."""

import importlib
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import jax
import pytest
import yaml
from markdown_it import MarkdownIt

import bayesgmm
from bayesgmm import plots
from bayesgmm.cli.config import Config, load_config
from bayesgmm.engines.registry import ENGINES
from bayesgmm.numerics.thresholds import thresholds

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def tokens(page):
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page, language):
    """Blocks of code in a language: (line of the page before the first of the code, code)."""
    return [(token.map[0] + 1, token.content) for token in tokens(page) if token.info == language]


def with_blocks(language):
    found = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", found, ids=lambda page: str(page.relative_to(ROOT)))


def lines_of_shell():
    """Every command of every shell block, with its page."""
    for page in PAGES:
        for _, text in blocks(page, "sh"):
            for line in text.splitlines():
                for command in line.split("&&"):
                    yield pytest.param(shlex.split(command), id=f"{page.name}: {command.strip()}")


@each_page
def test_blocks_say_their_language(page):
    """So that none of them escapes the tests below: indented blocks have no language."""
    code = [token for token in tokens(page) if token.type in ("fence", "code_block")]
    assert {token.info for token in code} <= {"python", "sh", "toml"}


@with_blocks("python")
def test_python_runs(page, tmp_path, monkeypatch, pictures_alone):
    """All blocks of a page, in one fresh namespace, in a folder of their own; JAX's settings are left as they were."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
    assert not jax.config.jax_enable_x64


@with_blocks("toml")
def test_settings_are_settings(page, tmp_path):
    for _, text in blocks(page, "toml"):
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        load_config(path)


@pytest.mark.parametrize("words", list(lines_of_shell()))
def test_commands_parse(words, request):
    """The program is there and takes these arguments; it is not run."""
    check_command(words, request.config)


def check_command(words, config):
    program, *rest = words
    assert program in CHECKS, f"{program} is unknown here; teach this test to check it"
    CHECKS[program](rest, config)


def _check_pip(rest, config):
    assert rest[0] == "install"
    assert set(rest[1:]) <= {"uv", PROJECT["project"]["name"]}


def _check_uv(rest, config):
    assert rest[0] == "run"
    rest = rest[1:]
    while rest[0] == "--group":
        assert rest[1] in PROJECT["dependency-groups"]
        rest = rest[2:]
    check_command(rest, config)


def _check_bayesgmm(rest, config):
    """By the command line's own parser. Settings that are named are in the repository."""
    import typer.main

    from bayesgmm.cli.main import app

    group = typer.main.get_command(app)
    with group.make_context("bayesgmm", list(rest)) as context:
        command = group.get_command(context, rest[0])
        assert command is not None, rest[0]
        command.make_context(rest[0], list(rest[1:]), parent=context).close()
    assert all((ROOT / word).exists() for word in rest if word.endswith(".toml"))


def _check_pytest(rest, config):
    options = config._parser.parse(list(rest))
    assert all((ROOT / name).exists() for name in options.file_or_dir)


def _check_with_help(program):
    def check(rest, config):
        where = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        subprocess.run([str(where), *rest, "--help"], check=True, capture_output=True, cwd=ROOT)

    return check


def _check_mkdocs(rest, config):
    """It is of another group of dependencies, and run by continuous integration."""
    assert any(wanted.startswith("mkdocs>") for wanted in PROJECT["dependency-groups"]["docs"])
    assert rest in (["build", "--strict"], ["serve"])


def _check_python(rest, config):
    if rest[0] == "-m":
        assert importlib.util.find_spec(f"{rest[1]}.__main__")
        options = rest[2:]
        source = Path(ROOT, *rest[1].split("."), "__main__.py").read_text(encoding="utf-8")
    else:
        options = rest[1:]
        source = (ROOT / rest[0]).read_text(encoding="utf-8")
    assert all(f'add_argument("{option}"' in source for option in options if option.startswith("-"))


CHECKS = {
    "pip": _check_pip,
    "uv": _check_uv,
    "bayesgmm": _check_bayesgmm,
    "pytest": _check_pytest,
    "ruff": _check_with_help("ruff"),
    "pyright": _check_with_help("pyright"),
    "mkdocs": _check_mkdocs,
    "python": _check_python,
}


def test_wrong_commands_are_noticed(request):
    """The checks above can fail."""
    for command in (
        "uv run bayesgmm compare configs/old_faithful.toml --seeds 1",
        "uv run bayesgmm compare configs/missing.toml",
        "uv run bayesgmm report configs/iris.toml",
        "uv run bayesgmm fit petals.csv --component 3",
        "uv run --group nowhere pytest",
        "uv run pytest --no-such-option",
        "uv run pytest tests/test_missing.py",
        "uv run ruff check . --no-such-option",
        "uv run python .ci/notebooks.py --no-such-option",
        "uv run python -m tests.nowhere",
        "conda install bayesgmm",
    ):
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            check_command(shlex.split(command), request.config)
        assert not isinstance(caught.value, KeyboardInterrupt), command


def anchor_of(heading):
    """The anchor that a heading has in code browsers and on the site."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def headings(page):
    pairs = itertools.pairwise(tokens(page))
    return [content.content for opening, content in pairs if opening.type == "heading_open"]


@each_page
def test_links_lead_somewhere(page):
    children = [child for token in tokens(page) for child in token.children or ()]
    targets = [child.attrs[name] for child in children for name in ("href", "src") if name in child.attrs]
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page if not path else (page.parent / path).resolve()
        assert found.exists(), target
        assert not anchor or anchor in map(anchor_of, headings(found)), target


def listed_in_reference():
    """What the reference shows, by the dotted name of its module: names of members, or of the thing itself."""
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for block in re.findall(r"^::: (.+(?:\n    .*)*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            name, _, options = block.partition("\n")
            members = ((yaml.safe_load(options) or {}).get("options") or {}).get("members")
            if members is None:
                module, _, member = name.rpartition(".")
                yield module, member
            else:
                yield from ((name, member) for member in members)


def test_reference_has_every_public_name():
    listed = list(listed_in_reference())
    assert len(set(listed)) == len(listed)
    shown = [getattr(importlib.import_module(module), member) for module, member in listed]
    for package in (bayesgmm, plots):
        missing = [name for name in package.__all__ if not any(getattr(package, name) is thing for thing in shown)]
        assert not missing, f"{package.__name__}: add {missing} to a page of docs/reference"


def settings_table():
    """The page of settings, from the classes that check them."""

    def rows(model):
        yield "| key | default | meaning |\n|---|---|---|"
        for name, field in model.model_fields.items():
            if field.description:
                default = "required" if field.is_required() else shown(field.default)
                known = ", ".join(f'`"{choice}"`' for choice in choices(field.annotation))
                meaning = field.description.replace("<", "&lt;") + (f" ({known})" if known else "")
                yield f"| `{name}` | {default} | {meaning} |"

    parts = ["\n".join(rows(Config))]
    for name, field in Config.model_fields.items():
        if not field.description:
            about = field.annotation.__doc__.removeprefix(f"`[{name}]`: ")
            parts.append(f"## `[{name}]`\n\n{about[0].upper()}{about[1:]}\n\n" + "\n".join(rows(field.annotation)))
    return "\n\n".join(parts)


def choices(annotation):
    """The words that an annotation allows."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return tuple(choice for part in typing.get_args(annotation) for choice in choices(part))


def shown(value):
    """A default as TOML would have it."""
    if value is None or value == "":
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(shown(item).strip('`') for item in value)}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str | Path) else f"`{value}`"


def test_settings_page_is_current():
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert settings_table() in page, f"docs/reference/settings.md should hold\n\n{settings_table()}"


def thresholds_table():
    """The page of thresholds, from their table."""
    rows = [
        f"| `{name}` | {value:.3g} | {value.unit} | {value.reason} | {value.source} |"
        for name, value in thresholds().items()
    ]
    return "\n".join(["| name | value | unit | reason | source |", "|---|---|---|---|---|", *rows])


def test_thresholds_page_is_current():
    page = (ROOT / "docs" / "reference" / "thresholds.md").read_text(encoding="utf-8")
    assert thresholds_table() in page, f"docs/reference/thresholds.md should hold\n\n{thresholds_table()}"


def test_first_page_names_every_engine():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`fit_{engine}`" in text for engine in ENGINES)
    assert all(f"`{family.name}` ({family.mclust})" in text for family in bayesgmm.FAMILIES.values())


def test_version_and_licence_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert citation["version"] == project["version"] == bayesgmm.__version__
    assert citation["license"] == project["license"] == "BSD-3-Clause"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("BSD 3-Clause License")
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (Path(bayesgmm.__file__).parent / "py.typed").exists()
