"""What is said and done where the C++ kernel is missing."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from circle_kernels import available_backends, circle_loss
from circle_kernels.backends import choice, cpu
from tests.backends.cpu.steps import NEEDS_KERNEL, batch

pytestmark = NEEDS_KERNEL


@pytest.fixture
def _no_warning_yet():
    choice._warn_once.cache_clear()
    yield
    choice._warn_once.cache_clear()


@pytest.mark.usefixtures("_no_warning_yet")
def test_without_the_extension_auto_is_tiled_and_says_so_once(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "_extension", lambda: "the C++ kernel was not built: no compiler")
    assert available_backends()["cpu"] == "not usable: the C++ kernel was not built: no compiler"
    with pytest.raises(RuntimeError, match=r"cannot serve .*: the C\+\+ kernel was not built"):
        circle_loss(*batch(8, 4), backend="cpu")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        losses = [circle_loss(*batch(8, 4)) for _ in range(3)]
    assert [str(each.message).partition("since ")[2][:40] for each in seen] == [
        "cpu cannot: the C++ kernel was not built"
    ]
    torch.testing.assert_close(losses[2], circle_loss(*batch(8, 4), backend="tiled"))


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (["csrc/bindings.cpp"], "run 'pip install -e .' there"),
        (["csrc/bindings.cpp", "circle_kernels/_cpu.of-another-python.so"], "for another Python"),
        (["circle_kernels/_cpu.abi3.so"], "compiles it for this machine"),
        ([], "without CIRCLE_KERNELS_NO_CPU_KERNEL"),
    ],
    ids=["checkout", "built for another Python", "does not load", "installed"],
)
def test_missing_extension_is_explained_where_it_is_missing(
    files: list[str], remedy: str, tmp_path: Path, monkeypatch
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "circle_kernels/backends/cpu.py"))
    assert remedy in cpu._why_missing(ImportError("no module"))
