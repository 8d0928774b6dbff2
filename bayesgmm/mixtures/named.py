"""Names of the features, which travel with what was made of a table, and are no part of what JAX computes with."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Named:
    """What may know the names of its features.

    To JAX they are not there: another name compiles nothing, and what comes out of a `jax.tree.map` or of a `jit` has
    none.

    Attributes:
        feature_names: of all d features, as the columns of the data frame were called; empty where none were given.
    """

    feature_names: tuple[str, ...] = dataclasses.field(default=(), kw_only=True, compare=False, repr=False)

    def named(self, names: Iterable[str]) -> Self:
        """The same, with these names, if there are any."""
        names = tuple(names)
        return dataclasses.replace(self, feature_names=names) if names else self


NOT_OF_JAX = ("feature_names",)
"""Fields that a pytree leaves out."""
