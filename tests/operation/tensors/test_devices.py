"""Devices without memory, and default devices."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from circle_kernels import circle_loss, class_circle_loss
from tests.support.batches import ROWS, batch, batch_with_references, leaves_of, value_and_gradients
from tests.support.public_losses import (
    LOSSES,
    SAMPLED,
    drop_in,
    for_every_list,
    for_every_loss,
    miners_tuple,
)


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@for_every_loss
def test_meta_tensors_give_the_shape_of_the_loss_and_of_the_gradients(
    loss: str, backend: str
) -> None:
    tensors = list(batch_with_references(device="meta", requires_grad=False))
    leaves = leaves_of(tensors)
    results = value_and_gradients(LOSSES[loss](*tensors, backend=backend), leaves)
    assert [each.shape for each in results] == [(), *(leaf.shape for leaf in leaves)]
    assert {(each.device.type, each.dtype) for each in results} == {("meta", torch.float32)}


def test_meta_tensors_give_the_shape_of_every_reduction() -> None:
    x, labels, references, ref_labels = batch_with_references(device="meta", requires_grad=False)
    for shape, options in (((ROWS,), {"reduction": "none"}), ((), {"reduction": "sum"})):
        assert circle_loss(x, labels, **options).shape == shape
        assert circle_loss(x, labels, references, ref_labels, **options).shape == shape
        for sampling in SAMPLED:
            assert class_circle_loss(x, labels, references, **sampling, **options).shape == shape


@for_every_list
def test_default_device_changes_no_listed_pairs(short: bool) -> None:
    x, labels, *_ = batch_with_references()
    for arguments in ((x, labels, miners_tuple(short)), (x, labels)):
        for options in (arguments, (x, labels, miners_tuple(False)[:2] + miners_tuple(True)[2:])):
            expected = value_and_gradients(drop_in()(*options), x)
            with torch.device("meta"):
                ours = value_and_gradients(drop_in()(*options), x)
            assert all(map(torch.equal, ours, expected))


def test_default_device_changes_no_listed_pairs_that_are_those_of_labels() -> None:
    x, labels, *_ = batch_with_references()
    same = labels[:, None] == labels
    pairs = [*same.clone().fill_diagonal_(False).nonzero().T, *(~same).nonzero().T]
    expected = value_and_gradients(drop_in()(x, labels, tuple(pairs)), x)
    with torch.device("meta"):
        ours = value_and_gradients(drop_in()(x, labels, tuple(pairs)), x)
    assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@for_every_loss
def test_default_device_changes_no_loss(loss: str, backend: str) -> None:
    tensors = list(batch_with_references())
    options: dict = {"backend": backend}
    for more in SAMPLED if loss.startswith("class") else [{}]:
        if "smoothed" in loss and "sample_rate" in more:  # which it refuses
            continue
        torch.manual_seed(0)
        expected = value_and_gradients(LOSSES[loss](*tensors, **options, **more), tensors[::2])
        torch.manual_seed(0)
        with torch.device("meta"):
            ours = value_and_gradients(LOSSES[loss](*tensors, **options, **more), tensors[::2])
        for value, other in zip(ours, expected, strict=True):
            assert torch.equal(value.to_dense(), other.to_dense())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_fake_tensors_give_shapes(backend: str, reduction: str) -> None:
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(value) for value in batch(24, requires_grad=False)]
    tensors[0].requires_grad_()
    losses = circle_loss(*tensors, reduction=reduction, backend=backend)
    losses.sum().backward()
    assert losses.shape == ((24,) if reduction == "none" else ())
    assert tensors[0].grad is not None
    assert tensors[0].grad.shape == (24, 8)
