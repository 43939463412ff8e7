"""Hands the C++ kernel over to CMake, and makes the README that a package index shows.

Everything else about the package is in pyproject.toml.
"""

import os
import re
import runpy
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def described() -> dict[str, str]:
    """What setuptools is told of the README."""
    repository = re.search(
        r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M
    )
    version = re.search(r'"(.*)"', (ROOT / "circle_kernels" / "_version.py").read_text("utf-8"))
    assert version is not None
    index_readme = runpy.run_path(str(ROOT / "tools" / "index_readme.py"))["index_readme"]
    text = index_readme(
        (ROOT / "README.md").read_text("utf-8"), repository and repository[1], version[1]
    )
    return {"long_description": text, "long_description_content_type": "text/markdown"}


# For machines without a compiler: everything but backend="cpu" works without the kernel.
if os.environ.get("CIRCLE_KERNELS_NO_CPU_KERNEL", "0") not in ("", "0"):
    setup(**described())
else:
    from scikit_build_core.errors import (
        FailedLiveProcessError,
        FailedProcessError,
        ScikitBuildError,
    )

    try:
        setup(cmake_source_dir=".", **described())
    except (FailedLiveProcessError, FailedProcessError, ScikitBuildError) as error:
        # Instead of a traceback, above which nobody would look for what CMake has to say.
        raise SystemExit(
            f"circle_kernels: the C++ kernel was not built ({error}): install CMake, Ninja and GCC "
            "or Clang, or set CIRCLE_KERNELS_NO_CPU_KERNEL=1 to install without it (CPU tensors "
            "then take the slower tiled backend)"
        ) from None
