"""What every pair formula offers, whoever wrote it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from circle_kernels.options import check_flag, real_number

_LARGEST = sys.float_info.max
GAMMAS = ("gamma_pos", "gamma_neg")


class PairFormula:
    """What every formula offers: logits ``z(s)`` and slopes ``dz/ds`` for both kinds of pair.

    All methods are elementwise, take a tensor of similarities of any shape and floating dtype and
    return a tensor of the same shape and dtype. ``positive_slopes`` and ``negative_slopes`` are
    what the backward pass uses; differentiating the logits with autograd gives the same values.
    """

    name: ClassVar[str]
    is_of_functions: ClassVar[bool] = False
    place_of_gamma: ClassVar[int] = 1  # among parameters()
    greater_than_0: ClassVar[tuple[str, ...]] = GAMMAS  # numbers beside gamma
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
