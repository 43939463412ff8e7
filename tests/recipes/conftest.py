"""Drawing a data set takes a moment: once for all tests of a layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the data set of a configuration."""
    from tests.recipes.drawn import DRAWN

    folders: dict[str, Path] = {}

    def get(config: str) -> Path:
        if config not in folders:
            folders[config] = tmp_path_factory.mktemp(config)
            DRAWN[config](folders[config])
        return folders[config]

    return get
