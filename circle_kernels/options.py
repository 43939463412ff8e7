"""Checks of what users give beside tensors: each error names the argument and what is wanted."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Container
from numbers import Real
from typing import Literal, ParamSpec, SupportsFloat, SupportsIndex, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from circle_kernels.arguments import (
    FLOATING_DTYPES,
    INT64,
    MINERS,
    SIGNED_DTYPES,
    UNSIGNED_DTYPES,
    describe,
)

# Every choice that users have, once: what type checkers know, and what is checked at run time.
Reduction: TypeAlias = Literal["mean", "mean_all", "sum", "none"]
ScalarReduction: TypeAlias = Literal["mean", "mean_all", "sum"]
ProxyReduction: TypeAlias = Literal["mean", "sum", "none"]
Scope: TypeAlias = Literal["anchor", "batch"]
Exchange: TypeAlias = Literal["gather", "ring"]
GradReduction: TypeAlias = Literal["mean", "sum"]
BackendName: TypeAlias = Literal["auto", "triton", "cpu", "tiled", "reference"]
CountingBackend: TypeAlias = Literal["auto", "cpu", "tiled"]
Ties: TypeAlias = Literal["pessimistic", "optimistic", "mean"]

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
SCALAR_REDUCTIONS: tuple[ScalarReduction, ...] = get_args(ScalarReduction)
PROXY_REDUCTIONS: tuple[ProxyReduction, ...] = get_args(ProxyReduction)
SCOPES: tuple[Scope, ...] = get_args(Scope)
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)
GRAD_REDUCTIONS: tuple[GradReduction, ...] = get_args(GradReduction)
COUNTING_BACKENDS: tuple[CountingBackend, ...] = get_args(CountingBackend)
TIES: tuple[Ties, ...] = get_args(Ties)

NO_SMOOTHING = (
    "it takes the mean of all logits, which is that of the similarities for class_unified_loss "
    "alone; for ClassCircleLoss take torch.nn.functional.cross_entropy of "
    "get_logits(embeddings, labels), which stores the (N, C) logits"
)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Require one of a few strings."""
    if value not in choices:
        wanted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {wanted}; got {value!r}")


def check_skip_below(skip_below: float) -> float:
    """The share as a float; it has to be in [0, 1)."""
    share = real_number("skip_below", skip_below)
    if not 0 <= share < 1:
        raise ValueError(f"skip_below must be in [0, 1), got {skip_below!r}")
    return share


def check_sample_rate(sample_rate: float) -> float:
    """The share as a float; it has to be in (0, 1]."""
    share = real_number("sample_rate", sample_rate)
    if not 0 < share <= 1:
        raise ValueError(f"sample_rate must be in (0, 1], got {sample_rate!r}")
    return share


def real_number(name: str, value: SupportsFloat) -> float:
    """The value of a number, NumPy's too, or of a tensor with one that has no gradient to lose.

    Raises:
        TypeError: something else, among it booleans.
        ValueError: an integer or fraction beyond the range of floats.
    """
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        wanted = (*FLOATING_DTYPES, *SIGNED_DTYPES, *UNSIGNED_DTYPES[1:])
        is_number = value.dim() == 0 and value.dtype in wanted and not value.requires_grad
    else:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        raise TypeError(f"{name} must be a real number, got {describe(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite as a float, got {describe(value)}") from None


def finite_number(name: str, value: SupportsFloat) -> float:
    """:func:`real_number` that is neither infinite nor NaN."""
    number = real_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def positive_number(name: str, value: SupportsFloat) -> float:
    """:func:`real_number` that is finite and greater than 0."""
    number = real_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be greater than 0 and finite, got {value!r}")
    return number


def check_integer(name: str, value: SupportsIndex, smallest: int = INT64.min) -> int:
    """The value as an ``int`` from ``smallest`` to the largest of int64.

    NumPy's integers and 0-d tensors of one are taken, too; booleans are not.
    """
    number = None
    if type(value) is int:
        number = value
    elif not isinstance(value, bool) and not (
        isinstance(value, Tensor) and (value.dtype == torch.bool or value.dim() > 0)
    ):
        with contextlib.suppress(TypeError):
            number = operator.index(value)
    if number is None:
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    if not smallest <= number <= INT64.max:
        wanted = f"at least {smallest}" if number < smallest else "at most 2**63 - 1"
        raise ValueError(f"{name} must be {wanted}, got {describe(number).removeprefix('int ')}")
    return number


def check_flag(name: str, value: bool) -> bool:
    """The value of a boolean, NumPy's too. A string like ``"false"`` would count as true."""
    if isinstance(value, bool):
        return value
    kind = type(value)
    if kind.__module__ != "numpy" or kind.__name__ not in ("bool", "bool_"):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return bool(value)


def describe_scale(scale: float | Tensor) -> str:
    """What the repr of a module shows of its gamma."""
    if not isinstance(scale, Tensor):
        return str(scale)
    learned = " (learned)" if scale.requires_grad else ""
    return f"{scale.detach()!r}{learned}".replace("Parameter containing:\n", "")


def changed_settings(
    module: object, constructor: Callable[..., None], *, but: Container[str] = ()
) -> list[str]:
    """``name=value`` of each keyword of a constructor, ``but`` some, which the module has as an
    attribute of another value than the default."""
    parameters = inspect.signature(constructor).parameters.values()
    keywords = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    values = {name: getattr(module, name, default) for name, default in keywords.items()}
    return [
        f"{name}={value!r}"
        for name, value in values.items()
        if name not in but and value != keywords[name]
    ]


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def explain_other_names(
    function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """The function, with a TypeError that names the right argument for what others call it."""
    smooths = "label_smoothing" in inspect.signature(function).parameters

    @functools.wraps(function)
    def explained(*args: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        if (
            "scale" in options
            or "margin" in options
            or "indices_tuple" in options
            or (not smooths and "label_smoothing" in options)
        ):
            name = function.__qualname__
            if name.endswith(".__init__"):
                name = type(args[0]).__name__  # which may have inherited it
            for other, words in (
                ("scale", "it is called gamma here"),
                ("margin", "it is called m here"),
                ("indices_tuple", MINERS),
                ("label_smoothing", NO_SMOOTHING),
            ):
                if other in options and not (smooths and other == "label_smoothing"):
                    raise TypeError(f"{name}() takes no {other}: {words}")
        return function(*args, **options)

    # Compilers count recompiles by code, of which all functions would share one.
    explained.__code__ = explained.__code__.replace(  # type: ignore[attr-defined]
        co_name=function.__name__
    )
    return explained
