"""Hands the C++ kernel over to CMake; everything else about the package is in pyproject.toml."""

import os

from setuptools import setup

# For machines without a compiler: everything but backend="cpu" works without the kernel.
if os.environ.get("CIRCLE_KERNELS_NO_CPU_KERNEL", "0") not in ("", "0"):
    setup()
else:
    from scikit_build_core.errors import (
        FailedLiveProcessError,
        FailedProcessError,
        ScikitBuildError,
    )

    try:
        setup(cmake_source_dir=".")
    except (FailedLiveProcessError, FailedProcessError, ScikitBuildError) as error:
        # Instead of a traceback, above which nobody would look for what CMake has to say.
        raise SystemExit(
            f"circle_kernels: the C++ kernel was not built ({error}); see the messages above.\n"
            "It takes CMake, Ninja, and GCC or Clang. To install without the kernel, set the\n"
            "environment variable CIRCLE_KERNELS_NO_CPU_KERNEL=1: CPU tensors then take the tiled\n"
            "backend."
        ) from None
