"""The pair formulas: one similarity in, one logit and its slope out.

This is the mathematics of the package, once, in ordinary PyTorch; the kernels hold the same few
lines in their own language and a test compares the two. Derivations: docs/derivation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor


def _check_finite(name: str, value: float) -> None:
    # Plain floats first: the abstract class is slow to ask, and formulas are made at every call.
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}: {value!r}")
    # Not math.isfinite: compilers with symbolic floats cannot trace it.
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value!r}")


def _check_gamma(gamma: float) -> None:
    _check_finite("gamma", gamma)
    if gamma <= 0:
        raise ValueError(f"gamma must be greater than 0, got {gamma!r}")


class PairFormula:
    """What every formula offers: logits ``z(s)`` and slopes ``dz/ds`` for both kinds of pair.

    All methods are elementwise, take a tensor of similarities of any shape and floating dtype and
    return a tensor of the same shape and dtype. ``positive_slopes`` and ``negative_slopes`` are
    what the backward pass uses; differentiating the logits with autograd gives the same values.
    """

    name: ClassVar[str]
    gamma: float
    detach_weights: bool

    @property
    def constants(self) -> tuple[float, float, float, float]:
        """``(O_p, O_n, Delta_p, Delta_n)``; zeros for optima where a formula has none."""
        raise NotImplementedError

    def positive_logits(self, similarity: Tensor) -> Tensor:
        raise NotImplementedError

    def negative_logits(self, similarity: Tensor) -> Tensor:
        raise NotImplementedError

    def positive_slopes(self, similarity: Tensor) -> Tensor:
        raise NotImplementedError

    def negative_slopes(self, similarity: Tensor) -> Tensor:
        raise NotImplementedError

    def pair_logits(self, similarity: Tensor, positive: Tensor) -> Tensor:
        """Each pair's logit: that of a positive where ``positive`` is true, else of a negative."""
        return torch.where(
            positive, self.positive_logits(similarity), self.negative_logits(similarity)
        )

    def pair_slopes(self, similarity: Tensor, positive: Tensor) -> Tensor:
        """Each pair's slope: that of a positive where ``positive`` is true, else of a negative."""
        return torch.where(
            positive, self.positive_slopes(similarity), self.negative_slopes(similarity)
        )

    def parameters(self) -> list[float]:
        """The formula's numbers in the order of its constructor, without ``detach_weights``."""
        raise NotImplementedError

    def max_slope(self, max_similarity: float = 1.0) -> float:
        """An upper bound of ``|dz/ds|`` over similarities in ``[-max_similarity, max_similarity]``.

        The kernels use it to keep half-precision operands in range.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CircleFormula(PairFormula):
    """Circle loss' pair logits (Sun et al., CVPR 2020, arXiv 2002.10857, Eq. 5 and 6).

    ``z_p(s) = -gamma [O_p - s]_+ (s - Delta_p)`` and ``z_n(s) = gamma [s - O_n]_+ (s - Delta_n)``.

    Args:
        m: relaxation margin; gives the paper's optima and margins where they are not given.
        gamma: scale, greater than 0.
        optimum_pos, optimum_neg: ``O_p`` and ``O_n``; by default ``1 + m`` and ``-m``.
        margin_pos, margin_neg: ``Delta_p`` and ``Delta_n``; by default ``1 - m`` and ``m``.
        detach_weights: treat ``[.]_+`` as a constant in the gradient, as the paper's Eq. 9 and 10
            do. ``False`` differentiates it too (Keras' convention).

    Raises:
        TypeError, ValueError: a number that is not real or not finite, or ``gamma <= 0``.
    """

    name: ClassVar[str] = "circle"

    m: float = 0.4
    gamma: float = 80.0
    optimum_pos: float | None = None
    optimum_neg: float | None = None
    margin_pos: float | None = None
    margin_neg: float | None = None
    detach_weights: bool = True

    def __post_init__(self) -> None:
        _check_finite("m", self.m)
        _check_gamma(self.gamma)
        for name in ("optimum_pos", "optimum_neg", "margin_pos", "margin_neg"):
            if getattr(self, name) is not None:
                _check_finite(name, getattr(self, name))

    @property
    def constants(self) -> tuple[float, float, float, float]:
        return (
            1 + self.m if self.optimum_pos is None else self.optimum_pos,
            -self.m if self.optimum_neg is None else self.optimum_neg,
            1 - self.m if self.margin_pos is None else self.margin_pos,
            self.m if self.margin_neg is None else self.margin_neg,
        )

    def parameters(self) -> list[float]:
        return [float(self.m), float(self.gamma), *(float(value) for value in self.constants)]

    def positive_logits(self, similarity: Tensor) -> Tensor:
        optimum_pos, _, margin_pos, _ = self.constants
        weight = torch.relu(optimum_pos - similarity)
        if self.detach_weights:
            weight = weight.detach()
        return weight * (margin_pos - similarity) * self.gamma

    def negative_logits(self, similarity: Tensor) -> Tensor:
        _, optimum_neg, _, margin_neg = self.constants
        weight = torch.relu(similarity - optimum_neg)
        if self.detach_weights:
            weight = weight.detach()
        return weight * (similarity - margin_neg) * self.gamma

    def positive_slopes(self, similarity: Tensor) -> Tensor:
        optimum_pos, _, margin_pos, _ = self.constants
        weight = torch.relu(optimum_pos - similarity)
        if not self.detach_weights:
            weight = weight + (weight > 0) * (margin_pos - similarity)
        return weight * -self.gamma

    def negative_slopes(self, similarity: Tensor) -> Tensor:
        _, optimum_neg, _, margin_neg = self.constants
        weight = torch.relu(similarity - optimum_neg)
        if not self.detach_weights:
            weight = weight + (weight > 0) * (similarity - margin_neg)
        return weight * self.gamma

    def max_slope(self, max_similarity: float = 1.0) -> float:
        optimum_pos, optimum_neg, margin_pos, margin_neg = self.constants
        weight = max(max_similarity + optimum_pos, max_similarity - optimum_neg, 0.0)
        if not self.detach_weights:
            weight += max_similarity + max(abs(margin_pos), abs(margin_neg))
        return self.gamma * weight


@dataclass(frozen=True)
class UnifiedFormula(PairFormula):
    """The unified loss' pair logits (same paper, Eq. 1).

    ``z_p(s) = -gamma s`` and ``z_n(s) = gamma (s + m)``.

    With one positive per row and class weights as references this is AM-Softmax; with ``m = 0``,
    NormFace.

    Args:
        m: margin between positive and negative similarity.
        gamma: scale, greater than 0.
        detach_weights: no effect, since every pair has weight 1; kept so that formulas can be
            exchanged.

    Raises:
        TypeError, ValueError: a number that is not real or not finite, or ``gamma <= 0``.
    """

    name: ClassVar[str] = "unified"

    m: float = 0.0
    gamma: float = 80.0
    detach_weights: bool = True

    def __post_init__(self) -> None:
        _check_finite("m", self.m)
        _check_gamma(self.gamma)

    @property
    def constants(self) -> tuple[float, float, float, float]:
        return 0.0, 0.0, 0.0, -self.m

    def parameters(self) -> list[float]:
        return [float(self.m), float(self.gamma)]

    def positive_logits(self, similarity: Tensor) -> Tensor:
        return similarity * -self.gamma

    def negative_logits(self, similarity: Tensor) -> Tensor:
        return (similarity + self.m) * self.gamma

    def positive_slopes(self, similarity: Tensor) -> Tensor:
        return torch.full_like(similarity, -self.gamma)

    def negative_slopes(self, similarity: Tensor) -> Tensor:
        return torch.full_like(similarity, self.gamma)

    def max_slope(self, max_similarity: float = 1.0) -> float:
        return self.gamma


FORMULAS: dict[str, Callable[..., PairFormula]] = {
    formula.name: formula for formula in (CircleFormula, UnifiedFormula)
}


def formula_from_parameters(
    name: str, parameters: list[float], detach_weights: bool
) -> PairFormula:
    """Rebuild a formula from what custom ops carry: its name and ``parameters()``."""
    return FORMULAS[name](*parameters, detach_weights=detach_weights)
