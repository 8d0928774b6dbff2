"""How results are shown to people: a title and lines, as text in a terminal and as HTML in a notebook."""

import abc
import html
import math
import textwrap
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

Lines = Sequence[tuple[str, str]]
"""What a line is about, and what it says."""

_WIDTH = 118


@runtime_checkable
class _Printer(Protocol):
    """What IPython hands to `_repr_pretty_`."""

    def text(self, obj: str) -> None: ...


class Readable:
    """Shows its text in a terminal of IPython too, where `repr` would be shown."""

    def _repr_pretty_(self, printer: _Printer, cycle: bool) -> None:
        printer.text(str(self))


class Printable(Readable, abc.ABC):
    """Prints as its title and its lines; `repr` keeps every field."""

    @abc.abstractmethod
    def shown(self) -> tuple[str, Lines] | None:
        """The title and the lines; None where there is nothing to show, as inside `jit`."""

    def __str__(self) -> str:
        found = self.shown()
        return repr(self) if found is None else as_text(*found)

    def _repr_html_(self) -> str:
        found = self.shown()
        return f"<pre>{html.escape(repr(self))}</pre>" if found is None else as_html(*found)


def as_text(title: str, lines: Lines) -> str:
    """A title, and lines under it that are wrapped and aligned."""
    start = max((len(about) for about, _ in lines), default=0) + 4
    wrapped = [
        textwrap.fill(text, _WIDTH, initial_indent=f"  {about}:".ljust(start), subsequent_indent=" " * start)
        for about, text in lines
    ]
    return "\n".join([textwrap.fill(title, _WIDTH, subsequent_indent="  "), *wrapped])


def as_html(title: str, lines: Lines) -> str:
    """A title and a table of lines."""
    cell = '<td style="text-align: left; white-space: pre-wrap">'
    rows = "".join(f"<tr><th>{html.escape(about)}</th>{cell}{html.escape(text)}</td></tr>" for about, text in lines)
    return f"<p>{html.escape(title)}</p><table>{rows}</table>"


def with_uncertainty(value: float, sd: float | None) -> str:
    """`value ± sd`, both with the decimals that show two significant digits of the sd."""
    if sd is None or not math.isfinite(sd) or sd <= 0:
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(sd)))
    return f"{value:.{decimals}f} ± {sd:.{decimals}f}"
