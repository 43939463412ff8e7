"""No tensor that Python can construct ends the process, hangs it or silently gives wrong numbers.

Every kind of tensor as every tensor argument of every public function, as all of them at once, and
as the upstream gradient: the result is the float64 truth for the numbers that the tensor stands
for, or an error that names the argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import circle_kernels
from circle_kernels.arguments import FLOATING_DTYPES
from circle_kernels.operation.reductions import softplus
from tests.support.apart import Ended, answers
from tests.support.public_functions import FUNCTIONS, Function, inputs
from tests.support.tensor_kinds import KINDS, Kind, same

pytestmark = pytest.mark.sanitized

PACKAGE = str(Path(circle_kernels.__file__).parent)


class NoSuchTensorError(Exception):
    """Torch has no tensor of this kind."""


def _made(kind: Kind, value: Tensor) -> Tensor:
    try:
        return kind.make(value)
    except Exception as error:
        raise NoSuchTensorError from error


def _values_and_gradients(
    call: Callable[..., Any],
    tensors: dict[str, Tensor],
    leaves: list[str],
    make_upstream: Callable[[Tensor], Tensor] = same,
) -> list[Tensor]:
    outputs = call(**tensors)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    results = [each.detach() for each in outputs]
    if leaves and all(each.requires_grad for each in outputs):
        # Other numbers for every output, so that no mix-up can cancel.
        upstream = [
            make_upstream(torch.full_like(each.detach(), 0.7 - 0.3 * index))
            for index, each in enumerate(outputs)
        ]
        wanted = [tensors[name] for name in leaves]
        # torch would make a subclass of a sparse gradient, which it cannot.
        with torch._C.DisableTorchFunctionSubclass():
            results += torch.autograd.grad(outputs, wanted, upstream, allow_unused=True)
    return results


def _leaves(tensors: dict[str, Tensor], candidates: list[str]) -> list[str]:
    """Which of these tensors require a gradient, after asking all that can to do so."""
    for name in candidates:
        with contextlib.suppress(RuntimeError, ValueError):
            tensors[name].requires_grad_()
    return [name for name in candidates if tensors[name].requires_grad and tensors[name].is_leaf]


def _plain(value: Tensor) -> Tensor:
    """The numbers of a result, which may be of the kind of an argument."""
    if isinstance(value, torch.masked.MaskedTensor):
        value = value.get_data()
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    if torch._is_functional_tensor(value):
        torch._sync(value)
        value = torch._from_functional_tensor(value)
    value = getattr(value, "wrapped", value)
    if value.layout is not torch.strided:
        value = value.to_dense()
    if any(name is not None for name in getattr(value, "names", ())):
        value = value.rename(None)
    return value.detach().resolve_conj().resolve_neg().as_subclass(Tensor)


def _difference(ours: list[Tensor], expected: list[Tensor], digits: float) -> str | None:
    """What is wrong with results; None where they are the truth."""
    for place, (value, truth) in enumerate(zip(ours, expected, strict=True)):
        if value is None or truth is None:
            if value is not truth and (truth if value is None else _plain(value)).any():
                return f"result {place} is {value}, the truth {truth}"
            continue
        value, truth = _plain(value), _plain(truth)
        if value.shape != truth.shape:
            return f"result {place} has the shape {tuple(value.shape)}, not {tuple(truth.shape)}"
        scale = truth[truth.isfinite()].abs().sum().item() + 0.1  # where terms cancel to nothing
        if not torch.allclose(
            value.double(), truth.double(), rtol=0, atol=digits * scale, equal_nan=True
        ):
            return f"result {place} is {value.flatten()[:4]}, the truth {truth.flatten()[:4]}"
    return None


def _unnamed(error: Exception, names: str) -> str | None:
    """What is wrong with an error; None where it names the argument, or did not pass our code."""
    frames = traceback.extract_tb(error.__traceback__)
    if re.search(names, str(error)) or not any(f.filename.startswith(PACKAGE) for f in frames):
        return None
    words = (str(error).strip() or "no words").splitlines()[0][:120]
    where = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
    return f"no {names} in {type(error).__name__} of {where}: {words}"


def _attempt(
    function: Function, kind: Kind, of_kind: tuple[str, ...], upstream: bool = False
) -> str | None:
    """What is wrong with a function given these arguments as this kind; None if nothing is."""
    if kind.torch_dies and (function.own_refusal or upstream):
        return None
    plain = inputs(function.arguments)
    try:
        made = {name: _made(kind, plain[name]) for name in of_kind}
    except NoSuchTensorError:
        return None
    numbers = {name: kind.numbers(plain[name]) for name in of_kind}
    unlike = [name for name in of_kind if numbers[name] is not plain[name]]
    wide = {
        name: value.detach().double() if value.is_floating_point() else value.detach().clone()
        for name, value in {**plain, **numbers}.items()
        if value is not None
    }
    tensors: dict[str, Any] = {**plain, **made}
    leaves = []
    if function.differentiable:
        floating = [name for name, value in plain.items() if value.is_floating_point()]
        leaves = _leaves(tensors, [x for x in floating if kind.leaf or x not in of_kind])
    make_upstream = functools.partial(_made, kind) if upstream else same
    try:
        with kind.within():
            ours = _values_and_gradients(function.call, tensors, leaves, make_upstream)
    except NoSuchTensorError:
        return None
    except Exception as error:
        if kind.works and (not function.own_refusal or kind is KINDS["plain"]):
            return f"no result, but {error}"
        if function.own_refusal or kind.own_refusal:
            return None
        names = (*of_kind, "grad" if upstream else "", function.called, kind.names, "backend=")
        return _unnamed(error, "|".join(filter(None, names)))
    if unlike and "saved" in function.arguments:
        return None  # a backward pass of what no forward pass left has no truth
    if kind.shapes_only:
        for name in leaves:
            plain[name].requires_grad_()
        shapes = [
            [x if x is None else (x.shape, x.dtype) for x in results]
            for results in (ours, _values_and_gradients(function.call, plain, leaves))
        ]
        return None if shapes[0] == shapes[1] else f"shapes {shapes[0]}, not {shapes[1]}"
    if None in numbers.values() or (upstream and kind.numbers(torch.zeros(3)) is None):
        return "a result of numbers that are none"
    try:
        for name in leaves:
            wide[name].requires_grad_()
        expected = _values_and_gradients(
            function.truth, wide, leaves, kind.numbers if upstream else same
        )
    except Exception as error:
        return f"a result, where there is none: {error}"
    if len(ours) != len(expected):
        return f"{len(ours)} results, not {len(expected)}: no gradient of what has one"
    dtypes = {each.dtype for each in (*tensors.values(), *ours) if each is not None}
    rounding = [8 * torch.finfo(each).eps for each in dtypes if each in FLOATING_DTYPES]
    return _difference(ours, expected, max([1e-4, *rounding]))


def _attempts(kind: Kind) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Everything to try with one kind, each under a name."""
    for name, function in FUNCTIONS.items():
        for argument in function.arguments:
            yield f"{name}: {argument}", functools.partial(_attempt, function, kind, (argument,))
        yield f"{name}: all", functools.partial(_attempt, function, kind, function.arguments)
        if function.differentiable:
            passed = functools.partial(_attempt, function, kind, (), upstream=True)
            yield f"{name}: upstream", passed


def _search(send: Callable[[Any], None], kind: str, first: int) -> None:
    """All attempts from one on: its name before each, what is wrong with it after it."""
    warnings.simplefilter("ignore")
    for name, attempt in list(_attempts(KINDS[kind]))[first:]:
        send(name)
        send((attempt(),))


@pytest.mark.parametrize("kind", KINDS)
def test_result_is_the_truth_or_an_error_names_the_argument(kind: str) -> None:
    wrong: dict[str, list[str]] = {}
    tried, name, finished = 0, "", False
    while not finished:
        finished = True
        for answer in answers(_search, kind, tried):
            if isinstance(answer, str):
                name, tried = answer, tried + 1
            elif isinstance(answer, Ended):
                wrong.setdefault(answer.how, []).append(name)
                finished = False  # a new process goes on behind it
            elif answer[0] is not None:
                wrong.setdefault(answer[0], []).append(name)
    assert tried == len(list(_attempts(KINDS[kind])))
    if wrong:
        text = "\n".join(f"{what}\n    {'; '.join(names)}" for what, names in wrong.items())
        pytest.fail(f"{sum(map(len, wrong.values()))} of {tried}:\n{text}", pytrace=False)


def test_the_search_sees_a_wrong_number_an_unnamed_error_and_a_death() -> None:
    right, kind = FUNCTIONS["circle_loss alone"], KINDS["expanded"]

    def found(call: Callable[..., Any], truth: Callable[..., Any]) -> str:
        function = Function(right.arguments, call, truth)
        return str(_attempt(function, kind, ("embeddings",)))

    assert found(right.call, right.truth) == "None"
    assert "the truth" in found(right.call, lambda **t: 2 * right.truth(**t))
    assert "where there is none" in found(right.call, lambda **t: [][1])
    assert "no embeddings" in found(lambda **t: softplus(None), right.truth)
    assert list(answers(_die)) == [Ended("SIGSEGV")]


def _die(send: Callable[[Any], None]) -> None:
    ctypes.string_at(0)
