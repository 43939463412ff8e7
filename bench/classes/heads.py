"""Class heads as the stopwatch and the memory gauge run them: data, losses, whole steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measuring.data import COSINE_TO_CENTRE, at_cosine, confusable_centres
from circle_kernels import CircleFormula, class_circle_loss
from circle_kernels.classes.losses import class_logits

M = 0.25
GAMMA = 256.0
SKIP_BELOW = 2.0**-12
SAMPLE_RATE = 0.1
LEARNING_RATE = 0.1

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HeadCase:
    """One input of a class head in float32 on the CPU; every field can be written to JSON."""

    rows: int
    classes: int
    dim: int
    regime: str = "random"

    def __str__(self) -> str:
        return f"N={self.rows} C={self.classes} D={self.dim} {self.regime}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (N, D), labels (N,) and weight (C, D); both matrices require gradients."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, self.classes, (self.rows,), generator=generator)
        if self.regime == "random":
            weight = torch.randn(self.classes, self.dim, generator=generator)
            embeddings = torch.randn(self.rows, self.dim, generator=generator)
        else:
            weight = confusable_centres(self.classes, self.dim, generator)
            weight = weight[torch.randperm(self.classes, generator=generator)]
            embeddings = at_cosine(weight[labels], COSINE_TO_CENTRE, generator)
        return embeddings.requires_grad_(), labels, weight.requires_grad_()


def eager_head(embeddings: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """The head as it is usually written: all logits, then cross-entropy."""
    logits = class_logits(embeddings, labels, weight, formula=CircleFormula(m=M, gamma=GAMMA))
    return F.cross_entropy(logits, labels)


def fused_head(**options: Any) -> Head:
    """``class_circle_loss`` with the paper's settings for faces."""

    def head(embeddings: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        return class_circle_loss(embeddings, labels, weight, m=M, gamma=GAMMA, **options)

    return head


HEADS: dict[str, Head] = {
    "cpu": fused_head(backend="cpu"),
    "tiled": fused_head(backend="tiled"),
    "cpu-skip": fused_head(backend="cpu", skip_below=SKIP_BELOW),
    "eager": eager_head,
}
STEPS: dict[str, Head] = {
    "dense": fused_head(backend="cpu"),
    "sampled": fused_head(backend="cpu", sample_rate=SAMPLE_RATE, sparse_grad=True),
}


@dataclass
class HeadWork:
    """A head on an input; with ``updates`` a backward pass ends with a step of SGD."""

    head: Head
    embeddings: Tensor
    labels: Tensor
    weight: Tensor
    updates: bool = False
    has_backward: bool = True
    compiles: bool = False

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.SGD([self.weight], lr=LEARNING_RATE)

    @property
    def gradient_bytes(self) -> int:
        """Of both dense gradients."""
        return sum(value.numel() * value.itemsize for value in (self.embeddings, self.weight))

    def reset(self) -> None:
        self.embeddings.grad = self.weight.grad = None

    def forward(self) -> Tensor:
        return self.head(self.embeddings, self.labels, self.weight)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        if self.updates:
            self._optimizer.step()

    def step(self) -> None:
        self.reset()
        self.backward(self.forward())
