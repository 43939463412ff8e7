"""Who may import whom among the benchmarks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.places import ROOT

BENCH = ROOT / "bench"
FOLDERS = sorted(path.parent.name for path in BENCH.glob("*/__init__.py"))
SHARED = {"measuring", "reporting", "offline"}
# A command shows what all others write, one has another as its last stage, and one is a cut of
# another.
ALLOWED = {
    "report": {
        *(
            "reporting",
            "loss",
            "losses",
            "classes",
            "distributed",
            "evaluate",
            "kernels",
            "launches",
            "quick",
        ),
        "gpu",
    },
    "gpu": {*SHARED, "tune"},
    "quick": {*SHARED, "losses"},
}


def imported_folders(path: Path) -> set[str]:
    """Folders of bench that a file imports from."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names if name.startswith("bench.")]
    return {part[1] for part in parts if part[1] in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_commands_do_not_import_one_another(folder: str) -> None:
    allowed = ALLOWED.get(folder, set() if folder in SHARED else SHARED)
    for path in (BENCH / folder).glob("*.py"):
        assert imported_folders(path) - {folder} <= allowed, path
