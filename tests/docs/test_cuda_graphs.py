"""The recipes of docs/cuda-graphs.md, as they stand there, train as without a graph."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.places import ROOT
from tests.support.targets import INTERPRETED, ON_GPU

PAGE = ROOT / "docs" / "cuda-graphs.md"
SETUP, *RECIPES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def train_without_graph(start: dict[str, Any]) -> list[Tensor]:
    """Losses of all batches, then the last one's gradients."""
    backbone, head = copy.deepcopy((start["backbone"], start["head"]))
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=start["optimizer"].param_groups[0]["lr"])
    losses = []
    for inputs, labels in start["batches"]:
        optimizer.zero_grad()
        loss = start["loss_function"](head(backbone(inputs)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(parameter.grad for parameter in parameters)]


def imitate_graphs(monkeypatch: pytest.MonkeyPatch, namespace: dict[str, Any]) -> None:
    """Stand-ins for a device: what would be captured is run again at each replay."""

    def make_graphed_callables(
        module: nn.Module, sample_args: tuple[Tensor, ...]
    ) -> Callable[..., Tensor]:
        static_loss = module(*sample_args).detach()

        def graphed(*arguments: Tensor) -> Tensor:
            for given, sample in zip(arguments, sample_args, strict=True):
                assert (given.shape, given.dtype) == (sample.shape, sample.dtype)
                assert given.requires_grad == sample.requires_grad
            loss = module(*arguments)
            static_loss.copy_(loss.detach())
            loss.data = static_loss
            return loss

        return graphed

    class Graph:
        def replay(self) -> None:
            namespace["static_loss"].copy_(namespace["forward_and_backward"]())

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            assert isinstance(other, Stream)

    for name, stand_in in {
        "make_graphed_callables": make_graphed_callables,
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "graph": contextlib.nullcontext,
        "stream": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


@pytest.mark.skipif(INTERPRETED, reason="nothing of Triton is tested")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize("recipe", RECIPES, ids=["head and loss", "whole step"])
def test_recipe_trains_as_without_a_graph(
    recipe: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    exec(SETUP.replace('device = "cuda"', f'device = "{device}"'), namespace)
    expected = train_without_graph(namespace)
    if device == "cpu":
        imitate_graphs(monkeypatch, namespace)
    exec(recipe, namespace)
    parameters = [*namespace["backbone"].parameters(), *namespace["head"].parameters()]
    results = [*namespace["losses"], *(parameter.grad for parameter in parameters)]
    for ours, wanted in zip(results, expected, strict=True):
        # Not bitwise: the layers' products may add up differently in a graph.
        scale = wanted.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4 * scale)
    assert len({loss.item() for loss in namespace["losses"]}) == len(namespace["batches"])
