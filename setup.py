"""Hands the C++ kernel over to CMake; everything else about the package is in pyproject.toml."""

import os

from setuptools import setup

# For machines without a compiler: everything but backend="cpu" works without the kernel.
if os.environ.get("CIRCLE_KERNELS_NO_CPU_KERNEL", "0") not in ("", "0"):
    setup()
else:
    setup(cmake_source_dir=".")
