"""What a benchmark reports: rows, each with its target, as a table for people and as plain values for JSON."""

import dataclasses
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Target:
    """A bound that a field of a row has to keep: "ratio", "seconds" or "megabytes"."""

    field: str
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return f"{self.field} {' and '.join(f'{sign} {bound:g}' for sign, bound in bounds if bound is not None)}"

    def holds(self, value: float | None) -> bool:
        if value is None:
            return False
        # A NaN keeps no bound.
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    `ratio` is what the target is about: peer over subject where the target asks for speed, subject over peer where it
    bounds a cost. `agrees` says whether both reached the same log-likelihood; a row that does not agree is wrong,
    whatever its time. `extra` holds further numbers for the JSON file, `note` what a reader of the table needs to know.
    """

    section: str
    what: str
    subject: str = "bayesgmm"
    peer: str | None = None
    dtype: str | None = None
    family: str | None = None
    shape: tuple[int, ...] | None = None
    seconds: float | None = None
    peer_seconds: float | None = None
    megabytes: float | None = None
    peer_megabytes: float | None = None
    ratio: float | None = None
    target: Target | None = None
    agrees: bool | None = None
    steps: int | None = None
    log_likelihood: float | None = None
    peer_log_likelihood: float | None = None
    result: str | None = None
    compile_seconds: float | None = None
    note: str = ""
    extra: dict = dataclasses.field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None where there is none. A wrong answer meets no target."""
        if self.agrees is False:
            return False
        return None if self.target is None else self.target.holds(getattr(self, self.target.field))

    @property
    def verdict(self) -> str:
        if self.agrees is False:
            return "[red]wrong"
        return {None: "", True: "[green]met", False: "[red]missed"}[self.reached]

    def to_dict(self) -> dict:
        target = None if self.target is None else str(self.target)
        return {**dataclasses.asdict(self), "target": target, "reached": self.reached}


def failed(section: str, error: BaseException) -> Row:
    """The row of a section that could not be run."""
    return Row(
        section=section,
        what="could not be run",
        agrees=False,
        result=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
    )


def table(title: str, rows: list[Row]) -> Table:
    """The rows of one section; columns that none of them fills are left out."""
    columns = {
        "what": lambda row: row.what,
        "peer": lambda row: row.peer,
        "dtype": lambda row: row.dtype,
        "family": lambda row: row.family,
        "shape": lambda row: None if row.shape is None else " ".join(map(str, row.shape)),
        "time": lambda row: duration(row.seconds),
        "peer's": lambda row: duration(row.peer_seconds),
        "MB": lambda row: number(row.megabytes),
        "peer's MB": lambda row: number(row.peer_megabytes),
        "ratio": lambda row: number(row.ratio),
        "target": lambda row: row.target,
        "": lambda row: row.verdict,
        "steps": lambda row: row.steps,
        "log-lik.": lambda row: None if row.log_likelihood is None else f"{row.log_likelihood:.8g}",
        "peer's ": lambda row: None if row.peer_log_likelihood is None else f"{row.peer_log_likelihood:.8g}",
        "result": lambda row: row.result,
        "compiling": lambda row: duration(row.compile_seconds),
        "note": lambda row: row.note,
    }
    shown = Table(title=title, title_justify="left")
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    cells = {name: column for name, column in cells.items() if any(value not in (None, "") for value in column)}
    for name in cells:
        numeric = name in ("time", "peer's", "MB", "peer's MB", "ratio", "steps", "log-lik.", "peer's ", "compiling")
        shown.add_column(name, justify="right" if numeric else "left", no_wrap=name not in ("what", "note", "result"))
    for values in zip(*cells.values(), strict=True):
        shown.add_row(*("" if value is None else str(value) for value in values))
    return shown


def summary(rows: list[Row]) -> Table:
    """Targets met and missed, section by section, with the rows that miss."""
    shown = Table(title="Targets", title_justify="left")
    for name in ("section", "met", "missed", "the rows that miss"):
        shown.add_column(name)
    for section in dict.fromkeys(row.section for row in rows):
        judged = [row for row in rows if row.section == section and row.reached is not None]
        missed = [row for row in judged if not row.reached]
        lines = "\n".join(f"{label(row)}: {reason(row)}" for row in missed)
        shown.add_row(section, str(len(judged) - len(missed)), str(len(missed)), lines)
    return shown


def label(row: Row) -> str:
    shape = "x".join(map(str, row.shape)) if row.shape else None
    return " ".join(part for part in (row.what, row.dtype, row.family, shape, row.peer and f"/ {row.peer}") if part)


def reason(row: Row) -> str:
    if row.agrees is False:
        return "wrong" if row.result is None else f"wrong ({row.result})"
    return f"{number(getattr(row, row.target.field))}, target {row.target}"


def number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if abs(seconds) < 1e-3:
        return f"{1e6 * seconds:.3g} us"
    return f"{1e3 * seconds:.3g} ms" if abs(seconds) < 1 else f"{seconds:.3g} s"
