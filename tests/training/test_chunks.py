"""in_chunks is plain training in chunks, bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from circle_kernels import in_chunks
from circle_kernels.training import chunks
from tests.training.networks import (
    CHUNK_SIZE,
    CHUNKS,
    NETWORKS,
    ROWS,
    convolutions,
    images,
    plain,
    step_of,
)


def chunked(network: nn.Module, rows: Tensor) -> Tensor:
    return in_chunks(network, rows, chunk_size=CHUNK_SIZE)


def assert_trains_as_plain_does(ours: nn.Module, theirs: nn.Module, steps: int = 3) -> None:
    for seed in range(steps):
        step_of(ours, chunked, images(), seed).assert_same(step_of(theirs, plain, images(), seed))


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_plain_training_bit_by_bit(name: str) -> None:
    network = NETWORKS[name]()
    before = copy.deepcopy(network.state_dict())
    assert_trains_as_plain_does(network, copy.deepcopy(network))
    changed = {key for key, value in network.state_dict().items() if not value.equal(before[key])}
    assert any("running_" in key for key in changed) == (name != "no momentum")
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            assert int(module.num_batches_tracked) == 3 * CHUNKS * module.training


class Writer(nn.Module):
    """Updates a buffer that others read."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("same", mean)

    def forward(self, rows: Tensor) -> Tensor:
        self.mean.lerp_(rows.detach().mean(0), 0.3)
        return rows * self.same.clone()


class Reader(nn.Module):
    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, rows: Tensor) -> Tensor:
        return rows * self.mean.clone()


class LateBuffers(nn.Module):
    """Has its buffers from the first chunk on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", None)

    def forward(self, rows: Tensor) -> Tensor:
        mean = rows.detach().mean(0)
        self.scale = mean.abs() if self.scale is None else self.scale + 0.1 * mean
        if hasattr(self, "shift"):
            self.shift.add_(mean)
        else:
            self.register_buffer("shift", mean)
        return (rows - self.shift.clone()) * self.scale * self.shift.clone()


def sharing_buffers() -> nn.Module:
    mean = torch.ones(16)
    return convolutions(Writer(mean), Reader(mean))


@pytest.mark.parametrize("make", [sharing_buffers, lambda: convolutions(LateBuffers())])
def test_buffers_with_several_places_or_none_at_first(make: Callable[[], nn.Module]) -> None:
    network = make()
    assert_trains_as_plain_does(network, copy.deepcopy(network))


def test_recomputation_that_updates_statistics_would_be_seen() -> None:
    def checkpointed(network: nn.Module, rows: Tensor) -> Tensor:
        parts = rows.tensor_split(CHUNKS)
        run = torch.utils.checkpoint.checkpoint
        return torch.cat([run(network, part, use_reentrant=False) for part in parts])

    ours = step_of(convolutions(), checkpointed, images())
    expected = step_of(convolutions(), plain, images())
    with pytest.raises(AssertionError, match="buffers"):
        ours.assert_same(expected)


def test_statistics_that_are_no_numbers_stay_what_they_were() -> None:
    network, other = convolutions(), convolutions()
    rows = images()
    rows[3] = float("inf")
    for each, embed in ((network, chunked), (other, plain)):
        torch.manual_seed(0)
        embed(each, rows).sum().backward()
    for ours, expected in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


def test_several_backward_passes_through_one_graph() -> None:
    network, other = convolutions(), convolutions()
    outputs = []
    for each, embed in ((network, chunked), (other, plain)):
        torch.manual_seed(0)
        outputs.append(embed(each, images()))
    for output in outputs:
        for power in (2, 3):
            output.pow(power).sum().backward(retain_graph=True)
    for ours, expected in zip(
        (*network.parameters(), *network.buffers()),
        (*other.parameters(), *other.buffers()),
        strict=True,
    ):
        assert torch.equal(ours, expected)
        assert ours.grad is None or torch.equal(ours.grad, expected.grad)


def test_beside_a_plain_call_of_the_same_network() -> None:
    """Who writes to running statistics in the backward pass breaks that of the plain call."""

    def both(network: nn.Module, rows: Tensor) -> Tensor:
        first = network(rows)
        return first + chunked(network, rows) * network(rows)

    def expected(network: nn.Module, rows: Tensor) -> Tensor:
        first = network(rows)
        return first + plain(network, rows) * network(rows)

    step_of(convolutions(), both, images()).assert_same(step_of(convolutions(), expected, images()))


def test_inputs_get_gradients() -> None:
    gradients = []
    for embed in (chunked, plain):
        torch.manual_seed(0)
        rows = images().requires_grad_()
        embed(convolutions(), rows).pow(2).sum().backward()
        gradients.append(rows.grad)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_without_gradients_nothing_is_recomputed() -> None:
    network, other = convolutions(), convolutions()
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    with torch.no_grad():
        ours = chunked(network, images())
    torch.manual_seed(0)
    assert torch.equal(ours, plain(other, images()))
    assert not ours.requires_grad
    assert len(calls) == CHUNKS
    with torch.inference_mode():
        assert chunked(network.eval(), images()).shape == (ROWS, 16)


def test_hooks_run_twice_and_parts_that_are_frozen_get_no_gradient() -> None:
    network, other = convolutions(), convolutions()
    for each in (network, other):
        each[0].requires_grad_(False)
    calls = []
    network[0].register_forward_hook(lambda *_: calls.append(1))
    assert_trains_as_plain_does(network, other, steps=1)
    assert len(calls) == 2 * CHUNKS
    assert network[0].weight.grad is None


@pytest.mark.parametrize("backward", ["inside", "outside"])
def test_under_autocast(backward: str) -> None:
    def step(embed: Any) -> tuple[nn.Module, Tensor]:
        network = convolutions()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            output = embed(network, images())
            if backward == "inside":
                output.float().pow(2).sum().backward()
        if backward == "outside":
            output.float().pow(2).sum().backward()
        return network, output

    (network, ours), (other, expected) = step(chunked), step(plain)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, expected)
    for parameter, wanted in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter.grad, wanted.grad)
    for buffer, wanted in zip(network.buffers(), other.buffers(), strict=True):
        assert torch.equal(buffer, wanted)


@pytest.mark.parametrize(
    ("rows", "chunk_size", "sizes"),
    [
        (9, 4, [3, 3, 3]),
        (65, 64, [33, 32]),
        (10, 4, [4, 3, 3]),
        (8, 4, [4, 4]),
        (3, 8, [3]),
        (8, 8, [8]),
        (5, 1, [1] * 5),
        (0, 4, [0]),
    ],
)
def test_chunks_are_even(rows: int, chunk_size: int, sizes: list[int]) -> None:
    network = nn.Linear(4, 2)
    seen = []
    handle = network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    output = in_chunks(network, torch.ones(rows, 4), chunk_size=chunk_size)
    handle.remove()
    assert seen == sizes
    assert output.shape == (rows, 2)
    output.sum().backward()
    assert torch.equal(network.weight.grad, torch.full((2, 4), float(rows)))


def test_change_of_an_input_before_the_backward_pass_is_reported() -> None:
    rows = images()
    output = chunked(convolutions(), rows)
    rows.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_network_that_writes_to_its_input_is_reported() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, rows: Tensor) -> Tensor:
            return self.linear(F.relu_(rows))

    output = in_chunks(InPlace(), torch.randn(6, 4), chunk_size=3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_mode_of_the_first_run_counts() -> None:
    networks = [convolutions(), convolutions()]
    for network, embed in zip(networks, (chunked, plain), strict=True):
        torch.manual_seed(0)
        output = embed(network, images())
        network.eval()
        network[1].train()
        output.pow(2).sum().backward()
    for ours, expected in zip(*(each.parameters() for each in networks), strict=True):
        assert torch.equal(ours.grad, expected.grad)
    assert [each.training for each in networks[0].children()] == [
        each.training for each in networks[1].children()
    ]


def test_devices_of_the_network_draw_again_wherever_the_rows_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Moving(nn.Module):
        def __init__(self, *devices: str) -> None:
            super().__init__()
            for device in devices:
                self.register_parameter(device[-1], nn.Parameter(torch.empty(2, device=device)))

        def forward(self, rows: Tensor) -> Tensor:
            return rows

    given = []

    def spy(run: Any, *arguments: Any, use_reentrant: bool) -> Any:
        assert not use_reentrant
        given.append([str(each.device) for each in arguments])
        return run(*arguments)

    monkeypatch.setattr(chunks, "checkpoint", spy)
    with FakeTensorMode():  # there is no such device here
        for devices in ((), ("cpu:0",), ("cuda:0", "cuda:1")):
            in_chunks(Moving(*devices), torch.ones(2, 3), chunk_size=2)
    assert [sorted(each) for each in given] == [["cpu"], ["cpu"], ["cpu", "cuda:0", "cuda:1"]]


def test_error_of_the_network_leaves_its_buffers_in_place() -> None:
    network = convolutions()
    buffers = dict(network.named_buffers())
    rows = images()
    output = chunked(network, rows)
    network[5].weight.data = network[5].weight.data[:, :3]  # no second run with that
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        output.sum().backward()
    assert all(each is buffers[name] for name, each in network.named_buffers())
