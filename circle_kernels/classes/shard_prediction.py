"""Most similar classes and accuracy where each process holds some of the classes.

Every process gathers the embeddings of all and compares them with its own classes; what it found
for a row travels to the process whose row it is: k similarities and classes, or two numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.classes.arguments import NO_CLASS, checked_labels, checked_sides
from circle_kernels.classes.prediction import (
    TopClasses,
    check_class_count,
    count_hits,
    own_and_best_other,
    top_classes,
)
from circle_kernels.distributed.collectives import exchange, gather_rows
from circle_kernels.distributed.columns import Spread
from circle_kernels.distributed.headers import CALL, exchange_headers, failing_together
from circle_kernels.distributed.shards import check_shards, own_part
from circle_kernels.distributed.traced import refuse_to_be_traced
from circle_kernels.top_k import merged_top

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class ShardedPrediction:
    """A collective call for the rows of all processes.

    Raises:
        TypeError, ValueError: in all processes, an argument of one of them is wrong, or they differ
            in what has to be alike.
        RuntimeError: the call is only traced.
    """

    name: str  # of the method
    weight: Tensor  # (C, D), a DTensor whose rows are spread over processes
    normalize: bool

    @torch.no_grad()
    def top(self, embeddings: Tensor, k: int) -> TopClasses:  # (n, D), (n, k) each
        """The k most similar of all classes to this process's rows."""
        group = self._group_for(embeddings)
        with failing_together(self.name, group):
            k = check_class_count("k", k, self.weight.shape[0])
            embeddings, own = checked_sides(embeddings, None, own_part(self.weight))
        spread, first = self._spread(embeddings, {"k": k})
        rows = gather_rows(embeddings, spread.sizes, spread.group)
        top = top_classes(rows, own, min(k, len(own)), normalize=self.normalize)
        missing = k - top.classes.shape[1]
        padded = (
            F.pad(top.similarities, (0, missing), value=-math.inf),
            F.pad(top.classes + first, (0, missing)),
        )
        similarities, classes = (_of_own_rows(each, spread) for each in padded)
        # In the order of ranks, which is that of classes.
        return TopClasses(*merged_top(list(zip(similarities, classes, strict=True)), k))

    @torch.no_grad()
    def accuracy(self, embeddings: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        """The share of the rows of all processes that are most similar to their own class alone."""
        group = self._group_for(embeddings)
        with failing_together(self.name, group):
            embeddings, own = checked_sides(embeddings, labels, own_part(self.weight))
            num_classes = self.weight.shape[0]
            labels, factors = checked_labels(labels, embeddings, num_classes, ignore_index)
        spread, first = self._spread(embeddings, {"ignore_index": ignore_index})
        rows = gather_rows(embeddings, spread.sizes, spread.group)
        places = gather_rows(labels, spread.sizes, spread.group) - first
        places = places.masked_fill(places >= len(own), NO_CLASS)
        both = own_and_best_other(rows, places, own, normalize=self.normalize)
        both = torch.stack(_of_own_rows(both, spread)).amax(0)
        counts = count_hits(both, labels).double()
        if factors is not None:
            counts *= factors.prod()
        dist.all_reduce(counts, group=group)
        return (counts[0] / counts[1]).float()

    def _group_for(self, embeddings: Tensor) -> ProcessGroup:
        """The processes of a call that nobody has checked."""
        group = check_shards("weight", self.weight)
        if isinstance(embeddings, Tensor):  # what else it is is said later
            refuse_to_be_traced(self.name, embeddings)
        return group

    def _spread(self, embeddings: Tensor, options: dict[str, object]) -> tuple[Spread, int]:
        """Who has how many rows, and the first class of this process."""
        group, own = check_shards("weight", self.weight), own_part(self.weight)
        alike = {
            CALL: self.name,
            "num_classes": self.weight.shape[0],
            "the number of columns of embeddings": embeddings.shape[1],
            "embeddings' dtype": embeddings.dtype,
            "weight's dtype": own.dtype,
            "the kind of device": embeddings.device.type,
            "normalize": self.normalize,
            **options,
        }
        headers = exchange_headers([len(embeddings), len(own)], alike, group)
        sizes, classes = (list(each) for each in zip(*headers, strict=True))
        spread = Spread(tuple(sizes), group, ring=False)
        return spread, sum(classes[: spread.rank])


def _of_own_rows(found: Tensor, spread: Spread) -> list[Tensor]:
    """What each process found (N, K) for this process's rows, in the order of ranks."""
    parts = [each.contiguous() for each in found.split(list(spread.sizes))]
    own = parts[spread.rank]
    received = [torch.empty_like(own) for _ in parts]
    received[spread.rank] = own
    others = [each for each in range(len(parts)) if each != spread.rank]
    exchange(
        [(parts[each], each) for each in others],
        [(received[each], each) for each in others],
        spread.group,
    )
    return received
