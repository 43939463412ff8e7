"""What the ops of a batch that processes share are told, and what these agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels.backends.problem import Needs
from circle_kernels.distributed.collectives import gather_numbers
from circle_kernels.distributed.columns import Block, Columns, Spread
from circle_kernels.distributed.groups import group_of_name
from circle_kernels.distributed.headers import check_same, digest_of, exchange_headers
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.registered import decode
from circle_kernels.operation.shared.band import KEPT_BLOCKS, Band

# What beside a batch and an operation an op is told: the processes, how they exchange rows, what
# has to be alike in all of them (name=value in lines), and which gradients there will be.
SHARING = (
    "str group, bool ring, bool same_sizes, str alike, bool needs_embeddings, bool needs_references"
)
OF_SHARING = 6
_EITHER = 2  # what a process without rows says of a gradient, which it can do with and without
_WHY = "they do where the network is trained, and not inside of torch.no_grad"


@dataclass(frozen=True)
class SharedCall:
    """The arguments of the ops, decoded."""

    batch: Batch
    operation: Operation
    group: dist.ProcessGroup
    needs: Needs
    ring: bool
    same_sizes: bool
    alike: str

    @property
    def self_mode(self) -> bool:
        return self.batch.ref_emb is None

    @property
    def blocks_kept(self) -> int:
        """Those that leave something for a backward pass: in self mode own rows and those before
        and after. In a ring it would be as large as what all processes hold."""
        if self.ring or not any(self.needs):
            return 0
        return KEPT_BLOCKS if self.self_mode else 1

    @property
    def settings(self) -> dict[str, object]:
        """What has to be the same in all processes, in words."""
        said: dict[str, object] = {}
        said |= dict(line.split("=", 1) for line in self.alike.split("\n"))
        said |= settings_of(self.batch, self.operation)
        said["exchange"] = "ring" if self.ring else "gather"
        said["whether ref_emb needs a gradient"] = self.needs.references
        return said

    def sizes(self) -> list[tuple[int, ...]]:
        """How many rows and references each process has, and whether it wants the gradient of its
        embeddings: all tell, or are said to be alike."""
        rows, references = self.batch.embeddings, self.batch.ref_emb
        own = [len(rows), 0 if references is None else len(references), int(self.needs.embeddings)]
        if self.same_sizes:
            return [(size,) * dist.get_world_size(self.group) for size in own]
        if len(rows) == 0 and self.needs.embeddings:
            own[2] = _EITHER
        told = list(zip(*exchange_headers(own, self.settings, self.group), strict=True))
        wanting = [bool(each) for each in told[2] if each != _EITHER]
        if len(set(wanting)) > 1:
            kinds = [str(each != 0) for each in told[2]]
            check_same(f"whether embeddings need a gradient ({_WHY})", kinds, self.group)
        return told

    def agreement(self, like: Tensor) -> Tensor:
        """0, or NaN where processes that told nobody anything differ. The host does not wait."""
        word = torch.full((1,), digest_of(self.settings), device=like.device)
        agree = (gather_numbers(word, self.group) == word).all()
        return torch.where(agree, 0.0, math.nan).to(like.dtype)

    def band(self, sizes: Sequence[tuple[int, ...]], held: Block | None, precision: str) -> Band:
        """This process's part; ``held`` is what was gathered before."""
        embeddings, labels, ref_emb, ref_labels = self.batch[:4]
        local = (embeddings, labels)
        rows, references = (Spread(each, self.group, self.ring) for each in sizes)
        spread = rows
        if ref_emb is not None and ref_labels is not None:
            local, spread = (ref_emb, ref_labels), references
        columns = spread.columns(local) if held is None else Columns(held, spread)
        own = columns.own if self.self_mode else (embeddings, labels)
        return Band(own, rows, columns, self.self_mode, self.operation, precision)


def settings_of(batch: Batch, operation: Operation) -> dict[str, object]:
    """What processes that share a batch have to have alike of it, in words."""
    embeddings, ref_emb = batch.embeddings, batch.ref_emb
    columns = f"{embeddings.dtype} of {embeddings.shape[1]} columns"
    return {
        "the dtype and the columns of embeddings": columns,
        "the dtype of ref_emb, if there are any,": None if ref_emb is None else ref_emb.dtype,
        "formula": operation.formula.name,
        **vars(operation.formula),
        "normalize": operation.normalize,
        "skip_below": operation.skip_below,
    }


def decode_shared(
    arguments: Sequence[Any], *, fake: bool = False
) -> tuple[SharedCall, tuple[Any, ...]]:
    """The call, and the arguments that follow."""
    batch, operation, rest = decode(arguments, fake=fake)
    name, *how, needs_embeddings, needs_references = rest[:OF_SHARING]
    needs = Needs(needs_embeddings, needs_references)
    return SharedCall(batch, operation, group_of_name(name), needs, *how), rest[OF_SHARING:]
