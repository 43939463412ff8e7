"""The pair formulas: one similarity in, one logit and its slope out.

This is the mathematics of the package, once, in ordinary PyTorch; the kernels hold the same few
lines in their own language and a test compares the two. Derivations: docs/derivation.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from circle_kernels.options import check_flag, real_number

_LARGEST = sys.float_info.max
_CONSTANTS = ("optimum_pos", "optimum_neg", "margin_pos", "margin_neg")


class PairFormula:
    """What every formula offers: logits ``z(s)`` and slopes ``dz/ds`` for both kinds of pair.

    All methods are elementwise, take a tensor of similarities of any shape and floating dtype and
    return a tensor of the same shape and dtype. ``positive_slopes`` and ``negative_slopes`` are
    what the backward pass uses; differentiating the logits with autograd gives the same values.
    """

    name: ClassVar[str]
    m: float
    gamma: float
    detach_weights: bool

    def _check(self, *names: str) -> None:
        """Check the numbers of these names, ``gamma`` and ``detach_weights``."""
        for name in (*names, "gamma"):
            value = getattr(self, name)
            # Formulas are made at every call, so what is usual comes first.
            if type(value) not in (float, int):
                if isinstance(value, Tensor):
                    # One that is trained would silently be held constant.
                    raise TypeError(
                        f"{name} must be a real number, got {type(value).__name__}; "
                        "its .item() is one, without a gradient"
                    )
                value = real_number(name, value)
                object.__setattr__(self, name, value)
            # Not math.isfinite: compilers with symbolic floats cannot trace it.
            if not -_LARGEST <= value <= _LARGEST:
                real_number(name, value)  # says of large integers what it can
                raise ValueError(f"{name} must be finite, got {value!r}")
        if self.gamma <= 0:
            raise ValueError(f"gamma must be greater than 0, got {self.gamma!r}")
        if type(self.detach_weights) is not bool:
            flag = check_flag("detach_weights", self.detach_weights)
            object.__setattr__(self, "detach_weights", flag)

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
        m: relaxation margin, greater than -1 and less than 1; gives the paper's optima and margins
            where they are not given. At -1 no negative pair has a weight any more, at 1 every one
            is beyond its margin.
        gamma: scale, greater than 0.
        optimum_pos, optimum_neg: ``O_p`` and ``O_n``; by default ``1 + m`` and ``-m``.
        margin_pos, margin_neg: ``Delta_p`` and ``Delta_n``; by default ``1 - m`` and ``m``.
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
    detach_weights: bool = True

    def __post_init__(self) -> None:
        given = [name for name in _CONSTANTS if getattr(self, name) is not None]
        self._check("m", *given)
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

    def parameters(self) -> list[float]:
        given = [getattr(self, name) for name in _CONSTANTS]
        constants = [] if given.count(None) == len(given) else self.constants
        return [float(self.m), float(self.gamma), *map(float, constants)]

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
        m: margin between positive and negative similarity, any finite number.
        gamma: scale, greater than 0.
        detach_weights: no effect, since every pair has weight 1; kept so that formulas can be
            exchanged.

    Raises:
        TypeError, ValueError: a number that is not real or not finite, ``gamma <= 0``, or a
            ``detach_weights`` that is no boolean.
    """

    name: ClassVar[str] = "unified"

    m: float = 0.0
    gamma: float = 80.0
    detach_weights: bool = True

    def __post_init__(self) -> None:
        self._check("m")

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
