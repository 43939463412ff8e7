"""Tensors without memory give the truth, or an error that names them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from circle_kernels import (
    ClassCircleLoss,
    class_circle_loss,
)
from tests.support.apart import apart
from tests.support.batches import (
    DEPTH,
    REFERENCES,
    ROWS,
    batch_with_references,
)
from tests.support.public_losses import (
    LOSSES,
    REFUSALS,
    assert_close,
    listed_logsumexps,
    truth,
)
from tests.support.tensor_kinds import Wrapper


def fake(value: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(value.detach())


def zeros(value: Tensor) -> Tensor:
    return torch._efficientzerotensor(value.shape, dtype=value.dtype)


def wrap(value: Tensor) -> Tensor:
    return Wrapper(value.detach())


MEMORYLESS = {"fake": fake, "zero": zeros, "wrapper": wrap}
ARGUMENTS = ("embeddings", "labels", "ref_emb", "ref_labels")


def result_or_refusal(compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], str | None]:
    try:
        return compute(), None
    except REFUSALS as error:
        return [], str(error)


def expect_truth_or_refusal(name: str, compute: Callable[[], list[Tensor]], expected) -> None:
    """The right numbers, or an error that names the argument."""
    results, refusal = result_or_refusal(compute)
    if refusal is not None:
        assert name in refusal
    else:
        assert expected is not None, "numbers from a tensor that has none"
        assert_close([getattr(each, "wrapped", each) for each in results], expected)


@pytest.mark.parametrize("kind", MEMORYLESS)
@pytest.mark.parametrize("position", range(4), ids=ARGUMENTS)
@apart
def test_tensor_without_memory_gives_the_truth_or_an_error_that_names_it(
    position: int, kind: str
) -> None:
    for loss, function in LOSSES.items():
        tensors = list(batch_with_references(requires_grad=False))
        name = ARGUMENTS[position]
        if loss.startswith("class"):
            if name == "ref_labels":
                continue
            name = {"ref_emb": "weight"}.get(name, name)
        plain = list(tensors)
        if kind == "zero":
            plain[position] = torch.zeros_like(tensors[position])
        expected = None if kind == "fake" else truth(loss, plain)[:1]
        tensors[position] = MEMORYLESS[kind](tensors[position])
        compute = partial(lambda function, tensors: [function(*tensors)], function, tensors)
        expect_truth_or_refusal(name, compute, expected)


@pytest.mark.parametrize("kind", MEMORYLESS)
@apart
def test_upstream_gradient_without_memory_gives_the_truth_or_an_error_that_names_it(
    kind: str,
) -> None:
    scale = {"fake": None, "zero": 0.0, "wrapper": 0.7}[kind]

    def compute(loss: str) -> list[Tensor]:
        tensors, upstream = batch_with_references(), MEMORYLESS[kind](torch.tensor(0.7))
        return list(torch.autograd.grad(LOSSES[loss](*tensors), tensors[::2], upstream))

    for loss in LOSSES:
        if loss in ("batch", "logsumexp"):
            continue  # operations of torch get the upstream gradient first
        gradients = truth(loss, batch_with_references())[1:]
        expected = None if scale is None else [scale * each for each in gradients]
        expect_truth_or_refusal("grad", partial(compute, loss), expected)


@apart
def test_sharded_class_weight_gives_the_truth_or_an_error_that_names_it() -> None:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    x, y, *_ = batch_with_references()
    head = ClassCircleLoss(REFERENCES, DEPTH, gamma=16)
    expected = [class_circle_loss(x, y, head.weight.detach().clone(), gamma=16).detach()]
    fully_shard(head, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    expect_truth_or_refusal(
        "weight", lambda: [class_circle_loss(x, y, head.weight, gamma=16).detach()], expected
    )


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("kind", MEMORYLESS)
@apart
def test_listed_pairs_of_tensors_without_memory_are_right_or_named(kind: str, short: bool) -> None:
    x, _, references, _ = batch_with_references(requires_grad=False)
    plain = zeros(references).clone() if kind == "zero" else references
    expected = None
    if kind != "fake":
        expected = list(listed_logsumexps(x.double(), plain.double(), short))
    unlike = MEMORYLESS[kind](references)
    # What the two functions are given has names only where the drop-in calls them.
    names = ("", "") if kind == "fake" else ("ref_emb", "grad")
    expect_truth_or_refusal(names[0], lambda: list(listed_logsumexps(x, unlike, short)), expected)
    leaf = x.clone().requires_grad_()
    upstream = torch.rand(ROWS)
    scale = {"fake": None, "zero": 0.0, "wrapper": 1.0}[kind]

    def compute(values: Tensor, scaled: Tensor) -> list[Tensor]:
        lse_pos, _ = listed_logsumexps(values, None, short)
        return list(torch.autograd.grad(lse_pos, values, scaled))

    if scale is not None:
        wide = x.double().requires_grad_()
        expected = compute(wide, scale * upstream.double())
    expect_truth_or_refusal(names[1], lambda: compute(leaf, MEMORYLESS[kind](upstream)), expected)
