"""What a training left, and whether two left the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recipes.engine.checkpoint import NAME


def content(folder: Path) -> dict[str, Any]:
    return torch.load(folder / NAME, weights_only=True)


def assert_same_bits(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        left, right = list(left.values()), list(right.values())
    if isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for ours, theirs in zip(left, right, strict=True):
            assert_same_bits(ours, theirs)
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right
