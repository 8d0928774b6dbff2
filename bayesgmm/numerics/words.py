"""Numbers and names in sentences."""

from collections.abc import Iterable, Sequence


def listed(words: Iterable[str], last: str = "and") -> str:
    """Words as a sentence has them: "a, b and c"."""
    *others, final = words
    return f"{', '.join(others)} {last} {final}" if others else final


def counted(count: int, noun: str) -> str:
    """A number of things: "1 row", "2 rows"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def few_of(names: Sequence[str], most: int = 12) -> str:
    """Names in one line; of very many the first, and how many more there are."""
    more = len(names) - most
    return ", ".join(names if more <= 1 else [*names[:most], f"and {more} more"])
