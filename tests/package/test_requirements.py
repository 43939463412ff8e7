"""What is installed, and what a user is told without PyTorch, with an old one, or no compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from circle_kernels import available_backends
from circle_kernels.backends import cpu
from tests.support.places import ROOT

SETUP = ROOT / "setup.py"


def test_every_folder_of_the_package_is_installed() -> None:
    """An editable installation, as the tests have, finds those that are not listed, too."""
    listed = re.findall(
        r'^  "(circle_kernels[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.M
    )
    folders = (ROOT / "circle_kernels").rglob("__init__.py")
    assert sorted(listed) == sorted(
        ".".join(each.parent.relative_to(ROOT).parts) for each in folders
    )


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
            "import sys, types; torch = sys.modules['torch'] = types.ModuleType('torch')\n"
            "torch.__version__ = '2.6.1+cpu'; torch.__spec__ = sys.__spec__",
            "ImportError: torch is 2.6.1+cpu. circle_kernels needs PyTorch 2.7 or newer",
        ),
    ],
    ids=["missing", "old"],
)
def test_torch_that_cannot_serve_is_named_with_advice(code: str, message: str) -> None:
    error = run_without(code).splitlines()[-1]
    assert error.startswith(message)
    assert "pip install torch" in error


# What builds is installed only while it builds, so its errors are imitated here.
BUILD = """
import runpy, sys, types
class FailedLiveProcessError(Exception): pass
class FailedProcessError(Exception): pass
class ScikitBuildError(Exception): pass
errors = types.ModuleType("scikit_build_core.errors")
for error in (FailedLiveProcessError, FailedProcessError, ScikitBuildError):
    setattr(errors, error.__name__, error)
sys.modules["scikit_build_core"] = types.ModuleType("scikit_build_core")
sys.modules["scikit_build_core.errors"] = errors
setuptools = types.ModuleType("setuptools")
def setup(**options):
    if "cmake_source_dir" in options:
        raise FailedLiveProcessError("CMake configuration failed")
    print("without the kernel")
setuptools.setup = setup
sys.modules["setuptools"] = setuptools
runpy.run_path(sys.argv[1])
"""


@pytest.mark.parametrize("variable", ["", "0", "1"])
def test_build_that_fails_names_the_variable_that_leaves_the_kernel_out(variable: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", BUILD, str(SETUP)],
        env={**os.environ, "CIRCLE_KERNELS_NO_CPU_KERNEL": variable},
        capture_output=True,
        text=True,
    )
    if variable == "1":
        assert (process.returncode, process.stdout.strip()) == (0, "without the kernel")
        return
    assert process.returncode == 1
    assert "not built (CMake configuration failed)" in process.stderr
    assert "CIRCLE_KERNELS_NO_CPU_KERNEL=1" in process.stderr
    assert "Traceback" not in process.stderr


def test_backend_without_openmp_is_said_to_have_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    extension = pytest.importorskip("circle_kernels._cpu")
    assert type(extension.has_openmp) is bool
    for has_openmp in (True, False):
        monkeypatch.setattr(extension, "has_openmp", has_openmp)
        assert cpu.status().startswith("usable")
        assert ("one thread" in available_backends()["cpu"]) is not has_openmp
        assert ("no OpenMP" in available_backends()["cpu"]) is not has_openmp
