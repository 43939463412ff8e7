"""The pair formula of two functions that a user wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from circle_kernels.pair_formula import PairFormula
from circle_kernels.pointwise.program import Program
from circle_kernels.pointwise.tracing import trace

_NAME = "functions"
_SAMPLES = 4097


@dataclass(frozen=True)
class FunctionFormula(PairFormula):
    """See :meth:`circle_kernels.PairFormula.from_functions`. The programs are those of the logits
    and slopes over ``gamma``."""

    is_of_functions: ClassVar[bool] = True
    place_of_gamma: ClassVar[int] = 0

    positive: Program
    negative: Program
    positive_slope: Program = field(repr=False)
    negative_slope: Program = field(repr=False)
    gamma: float = 1.0
    # What other formulas have: no margin, and what is detached the functions say.
    m: float = field(default=0.0, init=False, repr=False)
    detach_weights: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()

    @staticmethod
    def of(
        positive: Callable[[Tensor], Tensor], negative: Callable[[Tensor], Tensor], gamma: float
    ) -> FunctionFormula:
        """The formula of two functions."""
        positive_program, positive_slope = trace("positive", positive)
        negative_program, negative_slope = trace("negative", negative)
        return FunctionFormula(
            positive_program, negative_program, positive_slope, negative_slope, gamma
        )

    @property
    def programs(self) -> tuple[Program, Program, Program, Program]:
        """Logits of positives and of negatives, then slopes."""
        return self.positive, self.negative, self.positive_slope, self.negative_slope

    @property
    def name(self) -> str:  # type: ignore[override]
        """All of it but ``gamma``, so that graphs which hold it need nothing else to run."""
        return " | ".join((_NAME, *(program.text for program in self.programs)))

    @staticmethod
    def from_name(name: str, gamma: float = 1.0) -> FunctionFormula:
        """The formula that has a name."""
        kind, *texts = name.split(" | ")
        if kind != _NAME or len(texts) != 4:
            raise ValueError(f"circle_kernels: there is no formula {name!r}")
        positive, negative, positive_slope, negative_slope = map(Program, texts)
        return FunctionFormula(positive, negative, positive_slope, negative_slope, gamma)

    @property
    def constants(self) -> tuple[float, float, float, float]:
        return 0.0, 0.0, 0.0, 0.0

    def parameters(self) -> list[float]:
        return [float(self.gamma)]

    def positive_logits(self, similarity: Tensor) -> Tensor:
        return self.positive(similarity) * self.gamma

    def negative_logits(self, similarity: Tensor) -> Tensor:
        return self.negative(similarity) * self.gamma

    def positive_slopes(self, similarity: Tensor) -> Tensor:
        return self.positive_slope(similarity) * self.gamma

    def negative_slopes(self, similarity: Tensor) -> Tensor:
        return self.negative_slope(similarity) * self.gamma

    def max_slope(self, max_similarity: float = 1.0) -> float:
        """From slopes at so many similarities, the finite ones, with room for those between."""
        # Numbers, also where all tensors that are made are fake.
        with _python_dispatch._disable_current_modes():
            similarity = torch.linspace(
                -max_similarity, max_similarity, _SAMPLES, dtype=torch.float64, device="cpu"
            )
            slopes = torch.stack((self.positive_slope(similarity), self.negative_slope(similarity)))
            largest = slopes.abs().nan_to_num(0.0, 0.0).max().item()
        return 1.25 * self.gamma * largest
