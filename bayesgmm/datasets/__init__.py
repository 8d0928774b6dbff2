"""Small classic data sets as files, and tables that users have.

Importing this module is light; pandas is loaded when the first table is read.
"""

from pathlib import Path

import numpy as np

from bayesgmm.datasets.tables import DataError, Dataset, read_table

__all__ = ["SHIPPED", "DataError", "Dataset", "load_dataset", "read_table"]

SHIPPED: dict[str, tuple[str, str]] = {
    "faithful": ("minutes", "Azzalini & Bowman 1990, Applied Statistics 39 (R `datasets`)"),
    "galaxies": (
        "1000 km/s",
        "Roeder 1990, JASA 85; Postman et al. 1986; 78th value 26.960 as Richardson & Green 1997 used it",
    ),
    "iris": ("cm", "Fisher 1936; Anderson 1935"),
}
"""Units and source of every shipped data set, by name."""


def load_dataset(name: str) -> Dataset:
    """One of the data sets shipped with the package.

    - "faithful": 272 eruptions of Old Faithful, their duration and the waiting time to the next, in minutes;
    - "galaxies": velocities of 82 galaxies, in 1000 km/s (R's MASS misprints the 78th as 26.690);
    - "iris": four lengths of 150 flowers in cm, with their species as labels.

    Raises:
        DataError: for an unknown name, listing the known ones.
    """
    if name not in SHIPPED:
        raise DataError(
            f"name={name!r} is not a shipped data set; choose one of {', '.join(SHIPPED)}, or read a file of your own "
            "with read_table(path)"
        )
    units, source = SHIPPED[name]
    # Our own files are well formed: reading them needs neither pandas nor its time to import.
    table = np.loadtxt(Path(__file__).with_name(f"{name}.csv"), str, delimiter=",", ndmin=2, encoding="utf-8")
    is_label = table[0] == "label"
    x, feature_names = table[1:, ~is_label].astype(np.float64), tuple(table[0, ~is_label].tolist())
    labels = table[1:, is_label][:, 0] if is_label.any() else None
    return Dataset(name, x, feature_names, labels, units, source, label_name="label" if is_label.any() else "")
