"""What an editor shows of the public API: names, annotations and docstrings of its own."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from circle_kernels.classes import options
from circle_kernels.classes.prediction import TopClasses

PACKAGES = (
    "circle_kernels",
    "circle_kernels.losses",
    "circle_kernels.evaluation",
    "circle_kernels.integrations.pytorch_metric_learning",
    "circle_kernels.integrations.sentence_transformers",
)
# Its own is what the network takes.
PASSES_ON = ("in_chunks",)


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions and classes that users import, by where they do."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            if callable(getattr(module, name)):
                yield f"{package}.{name}", getattr(module, name)
    yield "TopClasses", TopClasses


def documented() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Everything that is called, and the docstring that lists its arguments."""
    for name, each in public():
        if not inspect.isclass(each):
            yield name, each, inspect.getdoc(each) or ""
            continue
        if is_ours(each.__init__) or issubclass(each, tuple):
            yield name, each, vars(each).get("__doc__") or ""
        if issubclass(each, nn.Module) and is_ours(each.forward):
            yield f"{name}.forward", each.forward, each.forward.__doc__ or ""


def is_ours(function: Callable[..., Any]) -> bool:
    return getattr(function, "__module__", "").startswith("circle_kernels")


def names_of(function: Callable[..., Any]) -> Iterator[str]:
    """What may be given by name, that which typed dictionaries hold among it."""
    code = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    for each in inspect.signature(function).parameters.values():
        assert each.annotation is not each.empty or each.name == "self", each
        if each.kind is each.VAR_KEYWORD:
            unpacked = re.fullmatch(r"Unpack\[(\w+)\]", str(each.annotation))
            assert unpacked is not None, f"{each} says no names"
            known = {**vars(options), **code.__globals__}  # there only for checkers
            yield from known[unpacked[1]].__annotations__
        elif each.name != "self":
            yield each.name


CALLS = {name: (function, doc) for name, function, doc in documented()}


def test_there_is_much_to_look_at() -> None:
    assert len(CALLS) > 70
    assert {"circle_kernels.circle_loss", "circle_kernels.losses.CLIPLoss.forward"} <= set(CALLS)


@pytest.mark.parametrize("name", [name for name in CALLS if not name.endswith(PASSES_ON)])
def test_every_argument_is_named_and_explained(name: str) -> None:
    function, doc = CALLS[name]
    assert doc.strip()
    # Of arguments the list, of results the sentence that says what they hold.
    words = set(re.findall(r"\w+", doc if "Args:" not in doc else doc.partition("Args:")[2]))
    assert [each for each in names_of(function) if each not in words] == []


@pytest.mark.parametrize("name", dict(public()))
def test_every_class_and_function_has_a_docstring_of_its_own(name: str) -> None:
    each = dict(public())[name]
    doc = vars(each).get("__doc__") if inspect.isclass(each) else each.__doc__
    assert doc is not None
    assert len(doc.split()) > 5
