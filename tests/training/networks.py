"""Networks with everything that a second run could get wrong, and one step with each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from circle_kernels import circle_loss

ROWS, CHUNKS, CHUNK_SIZE = 37, 5, 8


class MovingCodebook(nn.Module):
    """Computes with what it updates, as vector quantisation and batch renormalisation do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("running_mean", torch.ones(16))

    def forward(self, rows: Tensor) -> Tensor:
        self.mean.lerp_(rows.detach().mean(0), 0.3)
        self.calls = self.calls + 1  # another tensor, not another number in the same
        with torch.no_grad():
            self.running_mean.data.mul_(1.25)  # a change that does not count as one
        weights = torch.tanh(rows * self.running_mean.clone())  # which autograd keeps
        return (rows - self.mean) * weights / self.calls


def convolutions(*tail: nn.Module, momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(8 * 36, 16),
        nn.BatchNorm1d(16, momentum=momentum),
        *tail,
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norm and dropout": convolutions,
    "average of all batches": lambda: convolutions(momentum=None),
    "no momentum": lambda: convolutions(momentum=0.0),
    "instance norm": lambda: nn.Sequential(
        nn.InstanceNorm2d(3, track_running_stats=True, affine=True), convolutions()
    ),
    "evaluation": lambda: convolutions(MovingCodebook()).eval(),
    "frozen statistics": lambda: convolutions().apply(
        lambda module: module.eval() if isinstance(module, nn.BatchNorm2d) else None
    ),
    "no statistics": lambda: nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), convolutions()
    ),
    "spectral norm": lambda: convolutions(spectral_norm(nn.Linear(16, 16))),
    "reads what it updates": lambda: convolutions(MovingCodebook()),
}


def images(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 3, 6, 6, generator=torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class Step:
    """What a step leaves behind."""

    embeddings: Tensor
    loss: Tensor
    gradients: list[Tensor | None]
    buffers: list[Tensor]
    random: Tensor  # the state of the generator

    def assert_same(self, other: Step) -> None:
        """Bit by bit."""
        for name in ("embeddings", "loss", "random"):
            assert torch.equal(getattr(self, name), getattr(other, name)), name
        for name in ("gradients", "buffers"):
            pairs = zip(getattr(self, name), getattr(other, name), strict=True)
            for place, (ours, theirs) in enumerate(pairs):
                assert (ours is None) == (theirs is None), (name, place)
                assert ours is None or torch.equal(ours, theirs), (name, place)


def step_of(
    network: nn.Module, embed: Callable[[nn.Module, Tensor], Tensor], rows: Tensor, seed: int = 1
) -> Step:
    """Loss and gradient with the embeddings that ``embed`` computes."""
    torch.manual_seed(seed)
    network.zero_grad()
    embeddings = embed(network, rows)
    loss = circle_loss(embeddings, torch.arange(len(rows)) % 6, m=0.25, gamma=8)
    loss.backward()
    return Step(
        embeddings.detach(),
        loss.detach(),
        [each.grad for each in network.parameters()],
        [each.clone() for each in network.buffers()],
        torch.get_rng_state(),
    )


def plain(network: nn.Module, rows: Tensor) -> Tensor:
    """What in_chunks has to be equal to, with all activations alive."""
    return torch.cat([network(chunk) for chunk in rows.tensor_split(CHUNKS)])
