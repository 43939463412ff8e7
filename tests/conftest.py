"""Fixtures that every test file shares."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from circle_kernels.backends import cpu, tiled
from tests.support.targets import INTERPRETED, Target


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Where only pytest is installed, what its plugins read from pyproject.toml does nothing."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds per test, for pytest-timeout")


def pytest_configure(config: pytest.Config) -> None:
    """In the lane of interpreted kernels the interpreter is faster, and right in bfloat16."""
    if INTERPRETED:
        # The interpreter needs numpy, which is not where only pytest is installed.
        from tests.support.interpreter.bfloat16 import correct_bfloat16
        from tests.support.interpreter.language import replace_the_language_once

        replace_the_language_once()
        correct_bfloat16()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where the C++ kernel is missing its tests are, and the others are no proof of it."""
    if not cpu.supported_levels() and not os.environ.get("CIRCLE_KERNELS_NO_CPU_KERNEL"):
        raise pytest.UsageError(
            f"{cpu.status()}. CIRCLE_KERNELS_NO_CPU_KERNEL=1 runs the tests without it."
        )


@pytest.fixture(autouse=True, scope="module")
def _compiler_of_the_file() -> None:
    """What other files compiled in this process does not count against the limit of recompiles."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _settings_of_the_target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Small tiles make small problems cross many tile borders; levels are instruction sets."""
    callspec = getattr(request.node, "callspec", None)
    target = callspec.params.get("target") if callspec is not None else None
    if isinstance(target, Target) and target.tile is not None:
        monkeypatch.setattr(tiled, "_CPU_TILE", target.tile)
    if isinstance(target, Target) and target.level:
        monkeypatch.setenv(cpu.LEVEL_VARIABLE, target.level)
