"""Formulas beside the paper's: of two scales, and of functions that a user wrote."""

from __future__ import annotations

import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.formula import PairFormula

TWO_SCALES = {
    "multi-similarity": UnifiedFormula(
        gamma_pos=2.0, gamma_neg=50.0, margin_pos=0.5, margin_neg=0.5
    ),
    "unified of two scales": UnifiedFormula(m=0.2, gamma=16.0, gamma_pos=64.0, margin_pos=0.1),
    "contrastive": UnifiedFormula(gamma=20.0, gamma_pos=-20.0),
    "circle of two scales": CircleFormula(m=0.25, gamma_pos=16.0, gamma_neg=100.0),
    "undetached circle of two scales": CircleFormula(
        m=0.25, gamma_pos=50.0, gamma_neg=20.0, detach_weights=False
    ),
}


def _circle(detach: bool) -> PairFormula:
    def weight(value: Tensor) -> Tensor:
        value = torch.relu(value)
        return value.detach() if detach else value

    return PairFormula.from_functions(
        lambda s: -64 * weight(1.25 - s) * (s - 0.75), lambda s: 64 * weight(s + 0.25) * (s - 0.25)
    )


FUNCTIONS = {
    "circle by functions": _circle(detach=True),
    "undetached circle by functions": _circle(detach=False),
    "multi-similarity by functions": PairFormula.from_functions(
        lambda s: -2 * (s - 0.5), lambda s: 50 * (s - 0.5)
    ),
    "lifted structure": PairFormula.from_functions(lambda s: 1 - s, lambda s: s, gamma=8.0),
    "with where": PairFormula.from_functions(
        lambda s: torch.where(s < 0.6, 20 * (0.6 - s) ** 2, 3 * (0.6 - s)),
        lambda s: torch.where((s > 0.1) & (s < 0.9), torch.exp(3 * s), s.abs() * 10),
    ),
    # With its highest logit inside of the range of similarities.
    "with a peak": PairFormula.from_functions(
        lambda s: 30 * torch.cos(4 * s), lambda s: -80 * (s - 0.1) ** 2 + torch.tanh(s)
    ),
}
OTHER_FORMULAS = {**TWO_SCALES, **FUNCTIONS}


def steepness(formula: PairFormula) -> float:
    """What stands for gamma in what rounding costs: how large logits are."""
    similarity = torch.linspace(-1, 1, 101, dtype=torch.float64)
    logits = (formula.positive_logits(similarity), formula.negative_logits(similarity))
    return max(*formula.gammas, *(each.abs().max().item() / 2 for each in logits))
