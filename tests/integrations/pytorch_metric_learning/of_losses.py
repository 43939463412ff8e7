"""Every drop-in beside the library's own class, in float64: values and all gradients."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.regimes import REGIMES

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import losses, miners

from circle_kernels.integrations import pytorch_metric_learning as drop_ins

DIM = 16
CLASSES = 40
OVER_PAIRS = ("MultiSimilarityLoss", "SupConLoss", "NTXentLoss")
WITH_PROXIES = ("ProxyAnchorLoss", "ProxyNCALoss", "ArcFaceLoss", "CosFaceLoss")
LOSSES = (*OVER_PAIRS, "NPairsLoss", *WITH_PROXIES)
MINERS: dict[str, Any] = {
    "labels": None,
    "multi-similarity": miners.MultiSimilarityMiner(),
    "batch-hard": miners.BatchHardMiner(),
    "triplet-margin": miners.TripletMarginMiner(),
}


def batch(regime: str, rows: int = 28, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings, and labels from 0 on."""
    embeddings, labels = REGIMES[regime](rows, DIM, torch.Generator().manual_seed(seed))
    return embeddings, labels.unique(return_inverse=True)[1]


def make(module: Any, name: str, **settings: Any) -> Any:
    """A loss of the library or its drop-in, with the same proxies."""
    if name in WITH_PROXIES:
        settings = {"num_classes": CLASSES, "embedding_size": DIM, **settings}
    torch.manual_seed(3)
    return getattr(module, name)(**copy.deepcopy(settings)).double()


def both(name: str, **settings: Any) -> tuple[Any, Any]:
    """The library's loss, then ours."""
    return make(losses, name, **settings), make(drop_ins, name, **settings)


def outcome(
    loss: Any,
    embeddings: Tensor,
    labels: Tensor | None,
    indices: tuple[Tensor, ...] | None = None,
    references: tuple[Tensor | None, Tensor | None] = (None, None),
) -> dict[str, Tensor]:
    """Losses of rows or pairs where the reducer leaves them, or the one; and its gradients."""
    leaves = [embeddings.detach().requires_grad_(), *loss.parameters()]
    given = references
    if references[0] is not None:
        leaves.append(references[0].detach().requires_grad_())
        given = (leaves[-1], references[1])
    result = loss(leaves[0], labels, indices, *given)
    found: dict[str, Tensor] = {}
    if isinstance(result, dict):
        for part, content in result.items():
            values = torch.as_tensor(content["losses"], dtype=torch.float64)
            found |= {part: values, f"{part} indices": _flat(content["indices"])}
        result = sum(values.mean() for part, values in found.items() if "indices" not in part)
    found["loss"] = result
    gradients: Any = [None] * len(leaves)
    if result.requires_grad:
        gradients = torch.autograd.grad(result, leaves, allow_unused=True)
    for place, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        found[f"gradient {place}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return {name: value.detach() for name, value in found.items()}


def _flat(indices: Any) -> Tensor:
    if indices is None:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat(indices) if isinstance(indices, tuple) else indices


def assert_same(theirs: Any, ours: Any, *batch: Any, fused: bool = True) -> None:
    """To 1e-12 of the largest number, and of 1; nothing is left to the library if ``fused``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error" if fused else "ignore", message=".*is not fused")
        found = outcome(ours, *batch)
    wanted = outcome(theirs, *batch)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = value.nan_to_num(0).abs().max().clamp_min(1).item() if value.numel() else 1.0
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0,
            atol=1e-12 * scale,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
