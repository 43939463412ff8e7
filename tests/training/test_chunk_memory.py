"""Activations of one chunk at a time: live bytes, counted at every operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from circle_kernels import circle_loss, in_chunks

CHUNK, CHUNKS = 16, 8


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made since had at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # What an operation is given is not its own, even where it returns it.
        known = {each.untyped_storage()._cdata for each in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: each for key, each in self.live.items() if not each[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = []
    for channels in (1, 8, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def peak_of_step(rows: int, *, chunked: bool) -> int:
    """Of the network's forward and backward pass, with parameters' gradients."""
    model, inputs = network(), torch.randn(rows, 1, 24, 24)
    labels = torch.arange(rows) // 2
    with LiveBytes() as bytes_:
        embeddings = in_chunks(model, inputs, chunk_size=CHUNK) if chunked else model(inputs)
        circle_loss(embeddings, labels, m=0.25, gamma=8).backward()
    return bytes_.peak


def test_peak_is_that_of_one_chunk() -> None:
    one_chunk = peak_of_step(CHUNK, chunked=False)
    whole_batch = peak_of_step(CHUNK * CHUNKS, chunked=False)
    ours = peak_of_step(CHUNK * CHUNKS, chunked=True)
    assert whole_batch > 0.9 * CHUNKS * one_chunk  # the count sees activations
    assert one_chunk > 16 * 8 * 24 * 24 * 4 * 8
    assert ours < 1.1 * one_chunk


def test_peak_does_not_grow_with_the_batch() -> None:
    few, many = (peak_of_step(CHUNK * chunks, chunked=True) for chunks in (4, 16))
    assert many < 1.1 * few


def test_nothing_is_left_after_the_step() -> None:
    model, inputs = network(), torch.randn(2 * CHUNK, 1, 24, 24)
    with LiveBytes() as bytes_:
        output = in_chunks(model, inputs, chunk_size=CHUNK)
        output.sum().backward()
        del output
        model.zero_grad()
        torch.empty(())  # counts what is left
    assert sum(size for _, size in bytes_.live.values()) < 1024
