"""A formula that no kernel has code for: what has to be written to add one, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from circle_kernels.formula import PairFormula


@dataclass(frozen=True)
class SquaredFormula(PairFormula):
    """``z_p(s) = gamma (1 - s)^2`` and ``z_n(s) = gamma (s - m)``, with the weight ``[1 - s]``
    detached where asked for."""

    name: ClassVar[str] = "squared"

    m: float = 0.1
    gamma: float = 8.0
    detach_weights: bool = True

    def __post_init__(self) -> None:
        self._check("m")

    def parameters(self) -> list[float]:
        return [float(self.m), float(self.gamma)]

    def positive_logits(self, similarity: Tensor) -> Tensor:
        weight = 1 - similarity
        return self.gamma * (weight.detach() if self.detach_weights else weight) * (1 - similarity)

    def negative_logits(self, similarity: Tensor) -> Tensor:
        return self.gamma * (similarity - self.m)

    def positive_slopes(self, similarity: Tensor) -> Tensor:
        return (1 if self.detach_weights else 2) * -self.gamma * (1 - similarity)

    def negative_slopes(self, similarity: Tensor) -> Tensor:
        return torch.full_like(similarity, self.gamma)
