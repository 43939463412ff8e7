"""What a step over many GPUs would take: a model of products and transfers. Arithmetic alone.

A *unit* is one product of all rows that a GPU computes with all columns, 2 * rows * columns * depth
operations. What a pass takes is told in units:

* forward: one, the similarities. Of a batch with itself half, where each pair is visited once.
* backward: one, the similarities once more, and one for the gradient of either side that is asked
  for. Of a batch with itself half and one.

Products and transfers of one call take turns, but for the ring, whose whole point is that they do
not. Every GPU computes at one rate, every message goes over the slowest link that it has to take,
and what else a kernel does beside its products is not counted, nor is that small products are
slower than large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LABEL_BYTES = 8
STATISTICS_BYTES = 16  # two log-sum-exps and two upstream gradients, float32
FLOAT_BYTES = 4
# Rows per GPU, tried in powers of two.
FEWEST_ROWS, MOST_ROWS = 16, 2**20


def _assumed(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted; the defaults are nobody's measurements."""

    tflops: float = _assumed(400, "10^12 operations of a product that a GPU does in a second")
    node_gbps: float = _assumed(300, "10^9 bytes that a GPU sends in a second within its node")
    between_gbps: float = _assumed(
        50,
        "the same between nodes, for each GPU; where one ring uses all network cards of a node, "
        "it is more",
    )
    gpus_per_node: float = _assumed(8, "GPUs in a node")
    node_us: float = _assumed(5, "microseconds until a message within a node begins to arrive")
    between_us: float = _assumed(15, "the same between nodes")
    depth: float = _assumed(512, "D, numbers of an embedding")
    itemsize: float = _assumed(2, "bytes of one of them")
    classes: float = _assumed(1_000_000, "C, of a class head")


@dataclass(frozen=True)
class Cost:
    """What one GPU does in a step, forward and backward.

    Args:
        seconds: of the step.
        product_seconds: of these, its products alone.
        sent_bytes: what it sends.
        memory_bytes: what it holds beside its own rows and their gradient.
    """

    seconds: float
    product_seconds: float
    sent_bytes: float
    memory_bytes: float


@dataclass(frozen=True)
class Cluster:
    """Some GPUs that share a batch."""

    gpus: int
    assumed: Assumptions = Assumptions()

    @property
    def row_bytes(self) -> float:
        """One embedding."""
        return self.assumed.depth * self.assumed.itemsize

    @property
    def others(self) -> float:
        """The share of a batch that lies on other GPUs."""
        return (self.gpus - 1) / self.gpus

    def unit(self, rows: float, columns: float) -> float:
        """Seconds of one product: 2 * rows * columns * depth operations."""
        return 2 * rows * columns * self.assumed.depth / (self.assumed.tflops * 1e12)

    def gather(self, total_bytes: float) -> float:
        """Seconds of an all-gather that leaves ``total_bytes`` on every GPU.

        Every GPU receives what it does not have; the latency is that of as many hops as there are
        doublings from one GPU to all.
        """
        return self.others * total_bytes / self._bandwidth + self._doublings * self._latency

    def reduce_scatter(self, total_bytes: float) -> float:
        """Seconds of a reduce-scatter of ``total_bytes`` on every GPU: a gather backwards."""
        return self.gather(total_bytes)

    def all_reduce(self, total_bytes: float) -> float:
        """Seconds of an all-reduce: a reduce-scatter, then a gather."""
        return self.reduce_scatter(total_bytes) + self.gather(total_bytes)

    def hop(self, message_bytes: float) -> float:
        """Seconds of a message from each GPU to its neighbour."""
        return message_bytes / self._bandwidth + self._latency

    @property
    def _in_one_node(self) -> bool:
        return self.gpus <= self.assumed.gpus_per_node

    @property
    def _bandwidth(self) -> float:
        assumed = self.assumed
        return 1e9 * (assumed.node_gbps if self._in_one_node else assumed.between_gbps)

    @property
    def _latency(self) -> float:
        return 1e-6 * (self.assumed.node_us if self._in_one_node else self.assumed.between_us)

    @property
    def _doublings(self) -> int:
        return math.ceil(math.log2(self.gpus))


def whole_batch(cluster: Cluster, rows: int) -> Cost:
    """Every GPU gathers all rows and computes the loss of the whole batch with itself.

    Two units of N x N: half forward, half and one backward. One gather of rows and labels. The
    gradient of all rows lies beside the rows, though only that of its own is used.
    """
    total = rows * cluster.gpus
    gathered = total * (cluster.row_bytes + LABEL_BYTES)
    products = 2 * cluster.unit(total, total)
    return Cost(
        products + cluster.gather(gathered),
        products,
        cluster.others * gathered,
        gathered + total * cluster.row_bytes,
    )


def gradients_travel(cluster: Cluster, rows: int) -> Cost:
    """Every GPU compares its rows with all; gradients of the columns go back to their owners.

    Four units of n x N: one forward, three backward, since both sides have a gradient. One gather
    of rows and labels, one reduce-scatter of an (N, D) gradient in float32.
    """
    total = rows * cluster.gpus
    gathered = total * (cluster.row_bytes + LABEL_BYTES)
    gradient = total * cluster.assumed.depth * FLOAT_BYTES
    products = 4 * cluster.unit(rows, total)
    return Cost(
        products + cluster.gather(gathered) + cluster.reduce_scatter(gradient),
        products,
        cluster.others * (gathered + gradient),
        gathered + gradient,
    )


def gather(cluster: Cluster, rows: int) -> Cost:
    """``exchange="gather"``: rows once, then four floats of each row.

    Three units of n x N, less one of n x n, since a GPU's own block is a triangle in either pass:
    one forward, two backward. One gather of rows and labels, one of four floats a row.
    """
    total = rows * cluster.gpus
    gathered = total * (cluster.row_bytes + LABEL_BYTES)
    statistics = total * STATISTICS_BYTES
    products = 3 * cluster.unit(rows, total) - cluster.unit(rows, rows)
    return Cost(
        products + cluster.gather(gathered) + cluster.gather(statistics),
        products,
        cluster.others * (gathered + statistics),
        gathered + statistics,
    )


def ring(cluster: Cluster, rows: int) -> Cost:
    """``exchange="ring"``: the same products, block by block, while the next block arrives.

    Of each block but the last the longer of its products and the transfer of the next one counts,
    in either pass. Blocks are rows and labels, in the backward pass their four floats as well.
    One block is held while another arrives.
    """
    block, steps = cluster.unit(rows, rows), cluster.gpus - 1
    row = cluster.row_bytes + LABEL_BYTES
    seconds = products = 0.0
    # (units of a block, units of a GPU's own block, bytes of a row)
    for units, own_units, row_bytes in ((1, 0.5, row), (2, 1.5, row + STATISTICS_BYTES)):
        own, other = own_units * block, units * block
        products += own + steps * other
        if steps == 0:
            seconds += own
            continue
        transfer = cluster.hop(rows * row_bytes)
        seconds += max(own, transfer) + (steps - 1) * max(other, transfer) + other
    return Cost(
        seconds,
        products,
        steps * rows * (2 * row + STATISTICS_BYTES),
        min(steps, 2) * rows * (row + STATISTICS_BYTES),
    )


def replicated_classes(cluster: Cluster, rows: int) -> Cost:
    """A class head on every GPU: its rows against all classes, the weight's gradient averaged.

    Four units of n x C, and an all-reduce of the (C, D) gradient in float32. Weight and gradient
    count as memory, what an optimizer keeps of them does not.
    """
    classes = cluster.assumed.classes
    weight = classes * cluster.assumed.depth * FLOAT_BYTES
    products = 4 * cluster.unit(rows, classes)
    return Cost(
        products + cluster.all_reduce(weight), products, 2 * cluster.others * weight, 2 * weight
    )


def class_shards(cluster: Cluster, rows: int) -> Cost:
    """Classes spread over the GPUs: all rows against a GPU's own classes.

    Four units of N x C/W, which are as many operations. One gather of rows and labels, one
    all-reduce of four floats a row that merges the log-sum-exps, one reduce-scatter of the (N, D)
    gradient in float32.
    """
    total, classes = rows * cluster.gpus, cluster.assumed.classes / cluster.gpus
    gathered = total * (cluster.row_bytes + LABEL_BYTES)
    statistics = total * STATISTICS_BYTES
    gradient = total * cluster.assumed.depth * FLOAT_BYTES
    weight = classes * cluster.assumed.depth * FLOAT_BYTES
    products = 4 * cluster.unit(total, classes)
    transfers = (
        cluster.gather(gathered) + cluster.all_reduce(statistics) + cluster.reduce_scatter(gradient)
    )
    return Cost(
        products + transfers,
        products,
        cluster.others * (gathered + 2 * statistics + gradient),
        gathered + statistics + gradient + 2 * weight,
    )


Method = Callable[[Cluster, int], Cost]

PAIR_METHODS: dict[str, Method] = {
    "whole batch": whole_batch,
    "gradients travel": gradients_travel,
    "gather": gather,
    "ring": ring,
}
CLASS_METHODS: dict[str, Method] = {
    "replicated": replicated_classes,
    "shards": class_shards,
}


def faster_from(cluster: Cluster, one: Method, other: Method) -> int | None:
    """Rows per GPU from which on one method is faster than another, a power of two.

    None where it is not even with the most rows that are tried.
    """
    found, rows = None, MOST_ROWS
    while rows >= FEWEST_ROWS and one(cluster, rows).seconds < other(cluster, rows).seconds:
        found, rows = rows, rows // 2
    return found
