"""The data sets as they are published: one loader for each layout.

A loader takes what a configuration says of its data and the folder that holds them, and returns a
:class:`recipes.data.pictures.DataSet`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recipes.configuration import Data
from recipes.data import faces, people, retrieval
from recipes.data.pictures import DataSet

LAYOUTS: dict[str, Callable[[Data, Path], DataSet]] = {
    "cub": retrieval.cub,
    "cars": retrieval.cars,
    "sop": retrieval.sop,
    "market": people.market,
    "msmt17": people.msmt17,
    "faces": faces.faces,
}


def load(data: Data, root: Path) -> DataSet:
    """The data set that a configuration names, in the folder ``root``.

    Raises:
        MissingData: a file is not there; the message says where to get it and where to put it.
        BrokenData: a file says something else than its layout.
    """
    return LAYOUTS[data.layout](data, root)
