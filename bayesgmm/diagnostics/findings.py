"""Findings of a diagnosis in plain words, and their list."""

import enum
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from bayesgmm.runtime.printing import Lines, Printable

_WIDTH = 100
_INDENT = " " * 10


class Severity(enum.IntEnum):
    """How bad a finding is; larger is worse."""

    note = 1
    caution = 2
    serious = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a fit.

    Attributes:
        cause: what it is, in a word or two; the same for every finding of its kind.
        severity: note (know it), caution (some numbers may be off) or serious (do not use the fit as it is).
        detail: the evidence, with its numbers.
        advice: what to try.
    """

    cause: str
    severity: Severity
    detail: str
    advice: str

    def __str__(self) -> str:
        lines = textwrap.wrap(f"{self.cause}: {self.detail}", _WIDTH - len(_INDENT))
        lines += textwrap.wrap(f"try: {self.advice}", _WIDTH - len(_INDENT), subsequent_indent=" " * 5)
        first = f"{self.severity.name:<{len(_INDENT)}}"
        return "\n".join(f"{_INDENT if number else first}{line}" for number, line in enumerate(lines))


@dataclass(frozen=True)
class Diagnosis(Printable, Sequence[Finding]):
    """The findings of one fit, worst first: a sequence that is false when empty, and prints as a list.

    Attributes:
        title: which fit it is.
        findings: what is wrong with it.
    """

    title: str
    findings: tuple[Finding, ...]

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self.findings[index]

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def worst(self) -> Severity | None:
        """The largest severity; None when there are no findings."""
        return max((finding.severity for finding in self.findings), default=None)

    @property
    def causes(self) -> tuple[str, ...]:
        """The causes, worst first."""
        return tuple(finding.cause for finding in self.findings)

    def shown(self) -> tuple[str, Lines]:
        """Which fit it is, and each finding with what to try."""
        number = f"{len(self)} finding{'s' if len(self) > 1 else ''}" if self.findings else "no problems found"
        lines = [(one.severity.name, f"{one.cause}: {one.detail}\ntry: {one.advice}") for one in self.findings]
        return f"{self.title}: {number}", lines

    def __str__(self) -> str:
        return "\n".join([self.shown()[0], *map(str, self.findings)])


def percent(share: float | np.floating) -> str:
    """A share of 1, in words, with two digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def listed(noun: str, indices: Iterable[object]) -> str:
    """`chain 2`, or `chains 0, 2`."""
    names = [str(index) for index in indices]
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"
