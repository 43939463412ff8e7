"""Importing this makes the examples importable, or skips the file where their packages are not."""

import sys
from pathlib import Path

import pytest

PACKAGES = (
    *("babel", "fontTools", "matplotlib", "PIL", "pytorch_metric_learning"),
    *("rich", "scipy", "sklearn", "tqdm"),
)
for package in PACKAGES:
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
