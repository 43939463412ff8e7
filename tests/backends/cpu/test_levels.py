"""Instruction sets: the one that is asked for, in both passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import available_backends, circle_loss
from circle_kernels.backends import cpu
from tests.backends.cpu.steps import LEVELS, NEEDS_KERNEL, batch, results, two_passes

pytestmark = NEEDS_KERNEL


@pytest.mark.parametrize("later", [*LEVELS, "avx1024"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_uses_the_level_of_the_forward_pass(level, later, dtype, monkeypatch) -> None:
    """Whatever the environment says meanwhile; levels round differently."""
    monkeypatch.setenv(cpu.LEVEL_VARIABLE, level)
    expected = two_passes(batch(300, 70, dtype))

    def between(saved: Tensor) -> Tensor:
        monkeypatch.setenv(cpu.LEVEL_VARIABLE, later)
        return saved

    assert torch.equal(two_passes(batch(300, 70, dtype), between), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_the_one_asked_for(level: str, monkeypatch) -> None:
    monkeypatch.setenv(cpu.LEVEL_VARIABLE, level)
    assert available_backends()["cpu"].endswith(f"instruction set {level}")
    for ours, expected in zip(
        results(batch(200, 30)), results(batch(200, 30), "tiled"), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_unknown_level_is_named_with_those_that_exist(monkeypatch) -> None:
    monkeypatch.setenv(cpu.LEVEL_VARIABLE, "avx1024")
    assert available_backends()["cpu"].startswith(
        f"not usable: {cpu.LEVEL_VARIABLE}: there is no 'avx1024'; this machine supports baseline"
    )
    with pytest.raises(RuntimeError, match="there is no 'avx1024'"):
        circle_loss(*batch(8, 4), backend="cpu")
    with pytest.raises(RuntimeError, match="there is no 'avx1024'"):
        circle_loss(*batch(8, 4))
