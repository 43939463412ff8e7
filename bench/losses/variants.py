"""The losses of other papers as the stopwatch and the memory gauge run them: data and variants."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import circle_kernels
from circle_kernels import losses

_PAIR_BYTES = 64  # that the library takes at its peak for each pair of the batch, as measured
_LOGIT_BYTES = 44  # and at most for each pair of an embedding and a class

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """One loss, by the name that it has in the library and here.

    Args:
        per_class: embeddings of each class in a batch, for losses over pairs.
        has_weights: whether it has a learned vector for each class.
        peak: bytes that the library takes for N embeddings and C classes.
    """

    per_class: int = 4
    has_weights: bool = False
    peak: Callable[[int, int], float] = lambda rows, classes: _PAIR_BYTES * rows**2


def _logits(rows: int, classes: int) -> float:
    return _LOGIT_BYTES * rows * classes


def _pairs_of_pairs(rows: int, classes: int) -> float:
    """Of NT-Xent: of each positive pair and each negative pair a boolean and four floats."""
    return 17 * rows * rows**2


LOSSES: dict[str, Loss] = {
    "CircleLoss": Loss(),
    "MultiSimilarityLoss": Loss(),
    "SupConLoss": Loss(),
    "NTXentLoss": Loss(per_class=2, peak=_pairs_of_pairs),
    "NPairsLoss": Loss(per_class=2),
    "ProxyAnchorLoss": Loss(has_weights=True, peak=_logits),
    "ProxyNCALoss": Loss(has_weights=True, peak=_logits),
    "ArcFaceLoss": Loss(has_weights=True, peak=_logits),
    "CosFaceLoss": Loss(has_weights=True, peak=_logits),
}


@dataclass(frozen=True)
class LossCase:
    """One input of a loss; every field can be written to JSON."""

    loss: str
    rows: int
    dim: int
    classes: int = 0  # of losses with a vector for each
    dtype: str = "float32"  # of the embeddings
    device: str = "cpu"

    def __str__(self) -> str:
        of_classes = f" C={self.classes}" if self.classes else ""
        return f"{self.loss} N={self.rows} D={self.dim}{of_classes}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def data(self) -> tuple[Tensor, Tensor]:
        """Standard normal embeddings (N, D) that require gradients, and labels (N,)."""
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(self.rows, self.dim, generator=generator)
        embeddings = embeddings.to(self.device, getattr(torch, self.dtype))
        if self.classes:
            labels = torch.randint(self.classes, (self.rows,), generator=generator)
        else:
            labels = torch.arange(self.rows) // LOSSES[self.loss].per_class
        return embeddings.requires_grad_(), labels.to(self.device)

    def make(self, module: Any) -> nn.Module:
        """The loss of the library, of its drop-ins or of this package, with the same numbers."""
        torch.manual_seed(0)
        size = (self.classes, self.dim) if self.classes else ()
        loss: nn.Module = getattr(module, self.loss)(*size)
        return loss.to(self.device)


class _Core:
    """All losses of this package under one name."""

    CircleLoss = circle_kernels.CircleLoss

    def __getattr__(self, name: str) -> Any:
        return getattr(losses, name)


_CORE = _Core()


@dataclass(frozen=True)
class Variant:
    """A way to compute a loss.

    Args:
        build: makes the function of a case.
        of_library: whether its memory is the library's.
        compiles: whether its first step does.
    """

    build: Callable[[LossCase], nn.Module]
    of_library: bool = False
    compiles: bool = False

    def unusable(self, case: LossCase, memory_limit: float) -> str | None:
        """Why it does not run a case, as it stands in tables; None where it does."""
        if importlib.util.find_spec("pytorch_metric_learning") is None and self is not CORE:
            return "unavailable: pytorch-metric-learning is not installed"
        needed = LOSSES[case.loss].peak(case.rows, case.classes)
        if self.of_library and needed > memory_limit:
            return f"skipped: would need about {needed / 1e9:.1f} GB"
        return None


def _of(name: str) -> Callable[[LossCase], nn.Module]:
    return lambda case: case.make(importlib.import_module(name))


def _compiled(case: LossCase) -> nn.Module:
    loss = _of("pytorch_metric_learning.losses")(case)
    loss.compile(dynamic=False)
    return loss


CORE = Variant(lambda case: case.make(_CORE))
VARIANTS: dict[str, Variant] = {
    "core": CORE,
    "drop-in": Variant(_of("circle_kernels.integrations.pytorch_metric_learning")),
    "pml": Variant(_of("pytorch_metric_learning.losses"), of_library=True),
    "pml-compile": Variant(_compiled, of_library=True, compiles=True),
}


class LossWork:
    """A variant on a case, as the stopwatch takes it."""

    has_backward = True

    def __init__(self, variant: Variant, case: LossCase) -> None:
        self.compiles = variant.compiles
        self._loss = variant.build(case)
        self._embeddings, self._labels = case.data()

    @property
    def gradient_bytes(self) -> int:
        """Of the gradients with respect to all that requires one."""
        return sum(each.numel() * each.itemsize for each in self._leaves())

    def _leaves(self) -> list[Tensor]:
        return [self._embeddings, *self._loss.parameters()]

    def reset(self) -> None:
        for leaf in self._leaves():
            leaf.grad = None

    def forward(self) -> Tensor:
        loss: Tensor = self._loss(self._embeddings, self._labels)
        return loss

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.reset()
        self.backward(self.forward())
