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
_MARGINS = ("margin_pos", "margin_neg")
_GAMMAS = ("gamma_pos", "gamma_neg")


class PairFormula:
    """What every formula offers: logits ``z(s)`` and slopes ``dz/ds`` for both kinds of pair.

    All methods are elementwise, take a tensor of similarities of any shape and floating dtype and
    return a tensor of the same shape and dtype. ``positive_slopes`` and ``negative_slopes`` are
    what the backward pass uses; differentiating the logits with autograd gives the same values.
    """

    name: ClassVar[str]
    is_of_functions: ClassVar[bool] = False
    greater_than_0: ClassVar[tuple[str, ...]] = _GAMMAS  # numbers beside gamma
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
        for name in ("gamma", *(name for name in names if name in self.greater_than_0)):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)!r}")
        if type(self.detach_weights) is not bool:
            flag = check_flag("detach_weights", self.detach_weights)
            object.__setattr__(self, "detach_weights", flag)

    @staticmethod
    def from_functions(
        positive: Callable[[Tensor], Tensor],
        negative: Callable[[Tensor], Tensor],
        *,
        gamma: float = 1.0,
    ) -> PairFormula:
        """A formula of your own: ``z_p(s) = gamma positive(s)`` and ``z_n(s) = gamma negative(s)``.

        The functions are traced once, here, and run fused on every backend: as generated source in
        the Triton kernels, as byte code in the C++ kernel. Their derivatives are those of autograd;
        what a function detaches is a constant to them, as the weights of Eq. 9 and 10 are.

        Args:
            positive, negative: functions of a tensor of similarities, elementwise, written in
                torch; they may use arithmetic, comparisons, ``where``, ``relu``, ``clamp``,
                ``abs``, ``exp``, ``log``, ``sqrt``, powers, ``sin``, ``cos``, ``tanh``, ``sigmoid``
                and what is made of these. Python numbers in them become constants.
            gamma: scale of the logits, greater than 0.

        Raises:
            TypeError, ValueError: what is not such a function; the message names the operation.

        Example:
            >>> lifted = PairFormula.from_functions(lambda s: 1 - s, lambda s: s)
            >>> lse_pos, lse_neg = pair_logsumexp(embeddings, labels, formula=lifted)
        """
        from circle_kernels.pointwise.formula import FunctionFormula

        return FunctionFormula.of(positive, negative, gamma)

    @property
    def constants(self) -> tuple[float, float, float, float]:
        """``(O_p, O_n, Delta_p, Delta_n)``; zeros for optima where a formula has none."""
        raise NotImplementedError

    @property
    def gammas(self) -> tuple[float, float]:
        """``(gamma_p, gamma_n)``: the scales of both kinds' logits."""
        return self.gamma, self.gamma

    def _given(self, *names: str) -> list[str]:
        """Those of the numbers that were given."""
        return [name for name in names if getattr(self, name) is not None]

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

    def __post_init__(self) -> None:
        given = self._given(*_CONSTANTS)
        self._check("m", *given, *self._given(*_GAMMAS))
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
        scales = self.gammas if self._given(*_GAMMAS) else ()
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


@dataclass(frozen=True)
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

    def __post_init__(self) -> None:
        self._check("m", *self._given(*_MARGINS, *_GAMMAS))

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
        given = self._given(*_MARGINS, *_GAMMAS)
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
