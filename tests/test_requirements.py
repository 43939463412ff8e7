"""What a user without PyTorch, or with one that is too old, is told."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run_without(code: str) -> str:
    """Standard error of a process that hides or changes torch before it imports the package."""
    process = subprocess.run(
        [sys.executable, "-c", code + "\nimport circle_kernels"], capture_output=True, text=True
    )
    assert process.returncode == 1
    return process.stderr


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)",
            "ImportError: torch is not installed. circle_kernels needs PyTorch 2.7 or newer",
        ),
        (
            "import torch; torch.__version__ = '2.6.1+cpu'",
            "ImportError: torch is 2.6.1+cpu. circle_kernels needs PyTorch 2.7 or newer",
        ),
    ],
    ids=["missing", "old"],
)
def test_torch_that_cannot_serve_is_named_with_advice(code: str, message: str) -> None:
    error = run_without(code).splitlines()[-1]
    assert error.startswith(message)
    assert "pip install torch" in error
