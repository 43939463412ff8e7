"""The pair formulas: one similarity in, one logit and its slope out.

This is the mathematics of the package, once, in ordinary PyTorch; the kernels hold the same few
lines in their own language and a test compares the two. Derivations: docs/derivation.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from circle_kernels.pair_formula import GAMMAS, PairFormula

_CONSTANTS = ("optimum_pos", "optimum_neg", "margin_pos", "margin_neg")
_MARGINS = ("margin_pos", "margin_neg")


@dataclass(frozen=True, repr=False)
class CircleFormula(PairFormula):
    """Circle loss' pair logits (Sun et al., CVPR 2020, arXiv 2002.10857, Eq. 5 and 6).

    ``z_p(s) = -gamma_p [O_p - s]_+ (s - Delta_p)`` and
    ``z_n(s) = gamma_n [s - O_n]_+ (s - Delta_n)``.

    Args:
        m: relaxation margin, greater than -1 and less than 1; gives the paper's optima and margins
            where they are not given. At -1 no negative pair has a weight any more, at 1 every one
            is beyond its margin.
        gamma: scale, greater than 0.
        optimum_pos, optimum_neg: ``O_p`` and ``O_n``; by default ``1 + m`` and ``-m``.
        margin_pos, margin_neg: ``Delta_p`` and ``Delta_n``; by default ``1 - m`` and ``m``.
        gamma_pos, gamma_neg: ``gamma_p`` and ``gamma_n``; by default both ``gamma``.
        detach_weights: treat ``[.]_+`` as a constant in the gradient, as the paper's Eq. 9 and 10
            do. ``False`` differentiates it too (Keras' convention).

    Raises:
        TypeError, ValueError: a number that is not real or not finite or out of range, or a
            ``detach_weights`` that is no boolean.
    """

    name: ClassVar[str] = "circle"

    m: float = 0.4
    gamma: float = 80.0
    optimum_pos: float | None = None
    optimum_neg: float | None = None
    margin_pos: float | None = None
    margin_neg: float | None = None
    gamma_pos: float | None = None
    gamma_neg: float | None = None
    detach_weights: bool = True

    def __repr__(self) -> str:
        return _numbers_given(self)

    def __post_init__(self) -> None:
        given = self._given(*_CONSTANTS)
        self._check("m", *given, *self._given(*GAMMAS))
        if len(given) < len(_CONSTANTS) and not -1 < self.m < 1:
            raise ValueError(f"m must be greater than -1 and less than 1, got {self.m!r}")

    @property
    def constants(self) -> tuple[float, float, float, float]:
        return (
            1 + self.m if self.optimum_pos is None else self.optimum_pos,
            -self.m if self.optimum_neg is None else self.optimum_neg,
            1 - self.m if self.margin_pos is None else self.margin_pos,
            self.m if self.margin_neg is None else self.margin_neg,
        )

    @property
    def gammas(self) -> tuple[float, float]:
        return _gammas(self)

    def parameters(self) -> list[float]:
        scales = self.gammas if self._given(*GAMMAS) else ()
        constants = self.constants if scales or self._given(*_CONSTANTS) else ()
        return [*map(float, (self.m, self.gamma, *constants, *scales))]

    def positive_logits(self, similarity: Tensor) -> Tensor:
        optimum_pos, _, margin_pos, _ = self.constants
        weight = torch.relu(optimum_pos - similarity)
        if self.detach_weights:
            weight = weight.detach()
        return weight * (margin_pos - similarity) * self.gammas[0]

    def negative_logits(self, similarity: Tensor) -> Tensor:
        _, optimum_neg, _, margin_neg = self.constants
        weight = torch.relu(similarity - optimum_neg)
        if self.detach_weights:
            weight = weight.detach()
        return weight * (similarity - margin_neg) * self.gammas[1]

    def positive_slopes(self, similarity: Tensor) -> Tensor:
        optimum_pos, _, margin_pos, _ = self.constants
        weight = torch.relu(optimum_pos - similarity)
        if not self.detach_weights:
            weight = weight + (weight > 0) * (margin_pos - similarity)
        return weight * -self.gammas[0]

    def negative_slopes(self, similarity: Tensor) -> Tensor:
        _, optimum_neg, _, margin_neg = self.constants
        weight = torch.relu(similarity - optimum_neg)
        if not self.detach_weights:
            weight = weight + (weight > 0) * (similarity - margin_neg)
        return weight * self.gammas[1]

    def max_slope(self, max_similarity: float = 1.0) -> float:
        optimum_pos, optimum_neg, margin_pos, margin_neg = self.constants
        weight = max(max_similarity + optimum_pos, max_similarity - optimum_neg, 0.0)
        if not self.detach_weights:
            weight += max_similarity + max(abs(margin_pos), abs(margin_neg))
        return max(self.gammas) * weight


@dataclass(frozen=True, repr=False)
class UnifiedFormula(PairFormula):
    """The unified loss' pair logits (same paper, Eq. 1).

    ``z_p(s) = -gamma_p (s - Delta_p)`` and ``z_n(s) = gamma_n (s - Delta_n)``; as the paper has it,
    with one ``gamma``, ``-gamma s`` and ``gamma (s + m)``.

    With one positive per row and class weights as references this is AM-Softmax; with ``m = 0``,
    NormFace.

    Args:
        m: margin between positive and negative similarity, any finite number.
        gamma: scale, greater than 0.
        margin_pos, margin_neg: ``Delta_p`` and ``Delta_n``; by default ``0`` and ``-m``.
        gamma_pos, gamma_neg: ``gamma_p`` and ``gamma_n``; by default both ``gamma``. The former may
            be less than 0: positives then count as negatives do, as in the denominators of
            contrastive losses.
        detach_weights: no effect, since every pair has weight 1; kept so that formulas can be
            exchanged.

    Raises:
        TypeError, ValueError: a number that is not real or not finite, ``gamma <= 0``, or a
            ``detach_weights`` that is no boolean.
    """

    name: ClassVar[str] = "unified"
    greater_than_0: ClassVar[tuple[str, ...]] = ("gamma_neg",)

    m: float = 0.0
    gamma: float = 80.0
    margin_pos: float | None = None
    margin_neg: float | None = None
    gamma_pos: float | None = None
    gamma_neg: float | None = None
    detach_weights: bool = True

    def __repr__(self) -> str:
        return _numbers_given(self)

    def __post_init__(self) -> None:
        self._check("m", *self._given(*_MARGINS, *GAMMAS))

    @property
    def constants(self) -> tuple[float, float, float, float]:
        return (
            0.0,
            0.0,
            0.0 if self.margin_pos is None else self.margin_pos,
            -self.m if self.margin_neg is None else self.margin_neg,
        )

    @property
    def gammas(self) -> tuple[float, float]:
        return _gammas(self)

    def parameters(self) -> list[float]:
        given = self._given(*_MARGINS, *GAMMAS)
        numbers = (*self.constants[2:], *self.gammas) if given else ()
        return [*map(float, (self.m, self.gamma, *numbers))]

    def positive_logits(self, similarity: Tensor) -> Tensor:
        return (similarity - self.constants[2]) * -self.gammas[0]

    def negative_logits(self, similarity: Tensor) -> Tensor:
        return (similarity - self.constants[3]) * self.gammas[1]

    def positive_slopes(self, similarity: Tensor) -> Tensor:
        return torch.full_like(similarity, -self.gammas[0])

    def negative_slopes(self, similarity: Tensor) -> Tensor:
        return torch.full_like(similarity, self.gammas[1])

    def max_slope(self, max_similarity: float = 1.0) -> float:
        return max(map(abs, self.gammas))


def _numbers_given(formula: CircleFormula | UnifiedFormula) -> str:
    """What is shown: margin and scale, and what is not as it is by default."""
    shown = [
        f"{each.name}={getattr(formula, each.name)!r}"
        for each in fields(formula)
        if each.name in ("m", "gamma") or getattr(formula, each.name) != each.default
    ]
    return f"{type(formula).__name__}({', '.join(shown)})"


def _gammas(formula: CircleFormula | UnifiedFormula) -> tuple[float, float]:
    return (
        formula.gamma if formula.gamma_pos is None else formula.gamma_pos,
        formula.gamma if formula.gamma_neg is None else formula.gamma_neg,
    )


FORMULAS: dict[str, Callable[..., PairFormula]] = {
    formula.name: formula for formula in (CircleFormula, UnifiedFormula)
}


def formula_from_parameters(
    name: str, parameters: list[float], detach_weights: bool
) -> PairFormula:
    """Rebuild a formula from what custom ops carry: its name and ``parameters()``."""
    if name not in FORMULAS:
        from circle_kernels.pointwise.formula import FunctionFormula

        return FunctionFormula.from_name(name, *parameters)
    return FORMULAS[name](*parameters, detach_weights=detach_weights)


def is_known(formula: object) -> bool:
    """Whether ops can carry it: one of :data:`FORMULAS`, or of functions."""
    of_functions = isinstance(formula, PairFormula) and formula.is_of_functions
    return of_functions or type(formula) in FORMULAS.values()
