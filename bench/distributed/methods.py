"""What is compared: ways to compute one loss over the rows of several processes."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import circle_kernels
from bench.measuring.data import make_data

M = 0.4
GAMMA = 80.0

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SharedCase:
    """A batch that processes share; every field can be written to JSON.

    Args:
        rows: of all processes together.
        dim: D.
        classes: of a class head; 0 where rows are compared with one another.
        dtype: of the embeddings, by name.
    """

    rows: int
    dim: int
    classes: int = 0
    dtype: str = "float32"

    def __str__(self) -> str:
        classes = f" C={self.classes}" if self.classes else ""
        return f"N={self.rows} D={self.dim}{classes} {self.dtype}"

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a results file."""
        return asdict(self)

    def data(self) -> tuple[Tensor, Tensor]:
        """The whole batch, the same in every process."""
        embeddings, labels = make_data(
            "random", self.rows, self.dim, dtype=getattr(torch, self.dtype)
        )
        return embeddings.detach(), labels % self.classes if self.classes else labels


@dataclass(frozen=True)
class Method:
    """A way to compute the loss of a shared batch, from a process's own rows.

    Args:
        name: as in tables.
        description: what it is.
        build: makes the loss for a case.
        missing: why it cannot be used here, or None.
        alone: the whole batch in one process: the unit of the others.
    """

    name: str
    description: str
    build: Callable[[SharedCase], Function]
    missing: Callable[[], str | None] = lambda: None
    alone: bool = False


class SharedWork:
    """One method on a process's part of a case; gradients are averaged as trainers do."""

    def __init__(self, method: Method, case: SharedCase, rank: int, processes: int) -> None:
        embeddings, labels = case.data()
        if not method.alone:
            embeddings = embeddings.tensor_split(processes)[rank].clone()
            labels = labels.tensor_split(processes)[rank].clone()
        self.embeddings, self.labels = embeddings.requires_grad_(), labels
        self.function = method.build(case)

    def reset(self) -> None:
        """Drop the gradients, of a head's weight as well."""
        self.embeddings.grad = None
        if isinstance(self.function, nn.Module):
            self.function.zero_grad()

    def step(self) -> Tensor:
        """Loss and gradients."""
        self.reset()
        loss = self.function(self.embeddings, self.labels)
        loss.backward()
        if isinstance(self.function, ReplicatedHead):
            self.function.average()
        return loss.detach()


# Rows with one another


class _GatherRows(torch.autograd.Function):
    """All rows; of the whole batch's gradient, times the processes, one's own rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rank, ctx.processes = dist.get_rank(), dist.get_world_size()
        return _gather(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(ctx.processes)[ctx.rank] * ctx.processes


def _gather(local: Tensor) -> Tensor:
    """The rows of all processes, which have as many each."""
    gathered = local.new_empty(dist.get_world_size() * len(local), *local.shape[1:])
    if hasattr(dist, "all_gather_single"):  # the older name warns where the newer is there
        dist.all_gather_single(gathered, local)
    else:
        dist.all_gather_into_tensor(gathered, local)
    return gathered


def _whole_batch(case: SharedCase) -> Function:
    def loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        rows = _GatherRows.apply(embeddings)
        return circle_kernels.circle_loss(rows, _gather(labels), m=M, gamma=GAMMA)

    return loss


def _exchanging(exchange: str) -> Callable[[SharedCase], Function]:
    def build(case: SharedCase) -> Function:
        return circle_kernels.CircleLoss(m=M, gamma=GAMMA, group="world", **_chosen(exchange))

    return build


def _chosen(exchange: str) -> dict[str, Any]:
    return {"exchange": exchange} if _has_exchange() is None else {}


def _has_exchange() -> str | None:
    if "exchange" in inspect.signature(circle_kernels.circle_loss).parameters:
        return None
    return "this version has no exchange="


def _pml(case: SharedCase) -> Function:
    from pytorch_metric_learning.losses import CircleLoss
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    return DistributedLossWrapper(CircleLoss(m=M, gamma=GAMMA))


def _has_pml() -> str | None:
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return "pytorch-metric-learning is not installed"
    return None


def _one_process(case: SharedCase) -> Function:
    return circle_kernels.CircleLoss(m=M, gamma=GAMMA)


# Class heads


class ReplicatedHead(nn.Module):
    """All classes in every process; own rows against them, the weight's gradient averaged."""

    def __init__(self, case: SharedCase) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = circle_kernels.ClassCircleLoss(case.classes, case.dim)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.head(embeddings, labels)

    def average(self) -> None:
        circle_kernels.average_gradients(self.head.parameters())


def _whole_head(case: SharedCase) -> Function:
    torch.manual_seed(0)
    return circle_kernels.ClassCircleLoss(case.classes, case.dim)


def _class_shards(case: SharedCase) -> Function:
    torch.manual_seed(0)
    head = circle_kernels.ShardedClassCircleLoss  # type: ignore[attr-defined]
    return head(case.classes, case.dim, group="world")


def _has_shards() -> str | None:
    if hasattr(circle_kernels, "ShardedClassCircleLoss"):
        return None
    return "this version has no ShardedClassCircleLoss"


ALONE = "one process"

PAIR_METHODS = (
    Method(ALONE, "the whole batch, no group", _one_process, alone=True),
    Method("whole batch", "gathered rows, the whole batch's loss in every process", _whole_batch),
    Method("gather", 'group="world", exchange="gather"', _exchanging("gather")),
    Method("ring", 'group="world", exchange="ring"', _exchanging("ring"), _has_exchange),
    Method("pml", "pytorch-metric-learning's DistributedLossWrapper", _pml, _has_pml),
)
CLASS_METHODS = (
    Method(ALONE, "all rows and classes, no group", _whole_head, alone=True),
    Method("replicated", "ClassCircleLoss and average_gradients", ReplicatedHead),
    Method("class shards", "ShardedClassCircleLoss", _class_shards, _has_shards),
)


def methods_of(case: SharedCase) -> tuple[Method, ...]:
    """What can be compared on a case, the unit first."""
    return CLASS_METHODS if case.classes else PAIR_METHODS


def method_named(case: SharedCase, name: str) -> Method:
    """One of them."""
    return next(method for method in methods_of(case) if method.name == name)
