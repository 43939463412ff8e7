"""The adapter makes no matrix of similarities."""

from __future__ import annotations

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("pytorch_metric_learning")
from circle_kernels.backends import choice, tiled
from circle_kernels.integrations.pytorch_metric_learning import CircleLoss
from tests.integrations.pytorch_metric_learning.comparison import MINERS, batch


class LargestFloatTensor(TorchDispatchMode):
    """Numbers in the largest floating-point tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, Tensor) and each.is_floating_point():
                self.numbers = max(self.numbers, each.numel())
        return result


@pytest.mark.parametrize("miner", MINERS)
def test_no_matrix_of_floats(miner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_BEST_BACKEND", {})
    monkeypatch.setattr(tiled, "_CPU_TILE", 64)
    embeddings, labels = batch("random", 256)
    mine = MINERS[miner]()
    indices = None if mine is None else mine(embeddings, labels)
    leaf = embeddings.clone().requires_grad_()
    with LargestFloatTensor() as largest:
        CircleLoss()(leaf, labels, indices).backward()
    assert 0 < largest.numbers < 256 * 256
