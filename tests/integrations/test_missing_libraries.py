"""Without the library that an adapter is for, its import says what to install."""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.support.apart import apart


@pytest.mark.parametrize(
    ("library", "requirement"),
    [
        ("pytorch_metric_learning", "pytorch-metric-learning>=2.8"),
        ("sentence_transformers", "sentence-transformers>=6"),
    ],
)
@apart
def test_import_of_an_adapter_says_what_to_install(library: str, requirement: str) -> None:
    sys.modules[library] = None
    importlib.import_module("circle_kernels.integrations")
    adapter = f"circle_kernels.integrations.{library}"
    assert adapter not in sys.modules
    with pytest.raises(ImportError, match=f"^{adapter} needs .*pip install '{requirement}'"):
        importlib.import_module(adapter)
