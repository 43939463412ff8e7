"""How long a step would take: a model over the launches of a plan. Arithmetic alone, no torch.

A multiprocessor has three things to do for a tile: multiply, issue the instructions around the
product, and move bytes from and to the second-level cache. Loads go on beside the product that
needs them, stores beside the instructions around it; whether these two halves overlap is assumed,
like all that no compiler tells. Everything is in cycles of a multiprocessor unless it says so.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


def _assumed(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted. The defaults are for an H100 and nobody's measurements."""

    bytes_per_cycle: float = _assumed(
        48, "bytes that a multiprocessor moves from or to the second-level cache in a cycle"
    )
    overlap: float = _assumed(
        0,
        "of a multiprocessor that holds one program: 0 if product and instructions around it take "
        "turns, 1 if only the longer of them counts",
    )
    overlap_of_several: float = _assumed(
        0.5,
        "the same of one that holds several programs, which come to their products at "
        "different times",
    )
    latency: float = _assumed(
        0, "cycles from a program's first look at a tile to the first operands of its product"
    )
    product_efficiency: float = _assumed(
        0.9, "share of the full matrix rate that a multiprocessor reaches in torch's products"
    )
    cache_megabytes: float = _assumed(
        50, "of the second-level cache: what is larger comes from memory whenever it is read"
    )
    memory_gigabytes: float = _assumed(3350, "that memory moves in a second")
    clock: float = _assumed(1.755, "GHz")
    launch_microseconds: float = _assumed(1, "from the end of a launch's work to the next one's")
    sort_launches: float = _assumed(10, "of torch's sort of labels")


class Body(NamedTuple):
    """What one tile (or of kernels without tiles, one program) asks of a multiprocessor."""

    matrix: float = 0  # cycles at full rate
    issue: float = 0  # cycles: instructions of all threads over those issued in one
    loads: float = 0  # bytes, for the product
    others: float = 0  # bytes, beside the product
    looks: int = 0  # 1 if it begins with a wait for memory


class Programs(NamedTuple):
    """Programs that come one after the other in a launch and have as much to do."""

    number: int
    tiles: tuple[int, ...]  # of each of the launch's bodies


class Touched(NamedTuple):
    """A tensor that a launch reads or writes: bytes of it, and how large all of it is."""

    used: int
    whole: int


@dataclass(frozen=True)
class Launch:
    """One launch, or several that are the same in everything that counts here."""

    name: str
    bodies: tuple[Body, ...]
    programs: tuple[Programs, ...]
    tensors: tuple[Touched, ...] = ()
    # Torch's products run at the rate assumed for them; its sorts are several launches.
    kind: Literal["kernel", "product", "sort"] = "kernel"
    blocks: int = 1  # programs that a multiprocessor has room for
    times: int = 1

    @property
    def number_of_programs(self) -> int:
        return sum(each.number for each in self.programs)


@dataclass(frozen=True)
class Step:
    """The launches of a forward and a backward pass, in order."""

    name: str
    multiprocessors: int
    # Of one product of both sides at full matrix rate on all multiprocessors: the unit mm.
    product_cycles: float
    launches: tuple[Launch, ...]


class Cost(NamedTuple):
    """Of one launch. The first five are as if its work were spread evenly and nothing else were."""

    matrix: float
    issue: float
    loads: float
    others: float
    memory: float
    waves: float
    filled: float  # share of the multiprocessors' time between the first tile and the last
    cycles: float  # the result, without the time between launches


def launch_cost(launch: Launch, multiprocessors: int, assumptions: Assumptions) -> Cost:
    """What one launch costs, not all of ``times``."""
    numbers = [
        sum(each.number * each.tiles[index] for each in launch.programs) / multiprocessors
        for index in range(len(launch.bodies))
    ]
    efficiency = assumptions.product_efficiency if launch.kind == "product" else 1

    def evenly(figures: list[float]) -> float:
        return sum(number * figure for number, figure in zip(numbers, figures, strict=True))

    tiles = [tile_cycles(body, launch, multiprocessors, assumptions) for body in launch.bodies]
    longest = _last_end(
        [
            (each.number, sum(n * cycles for n, cycles in zip(each.tiles, tiles, strict=True)))
            for each in launch.programs
        ],
        multiprocessors,
    )
    memory = _memory_cycles(launch, assumptions)
    return Cost(
        matrix=evenly([body.matrix / efficiency for body in launch.bodies]),
        issue=evenly([body.issue for body in launch.bodies]),
        loads=evenly([body.loads / assumptions.bytes_per_cycle for body in launch.bodies]),
        others=evenly([body.others / assumptions.bytes_per_cycle for body in launch.bodies]),
        memory=memory,
        waves=launch.number_of_programs / (multiprocessors * launch.blocks),
        filled=evenly(tiles) / longest if longest else 1.0,
        cycles=max(longest, memory),
    )


def tile_cycles(
    body: Body, launch: Launch, multiprocessors: int, assumptions: Assumptions
) -> float:
    """What one tile takes of a multiprocessor, alone or beside other programs."""
    rate = assumptions.bytes_per_cycle
    if launch.kind == "product":
        return body.matrix / assumptions.product_efficiency
    # Programs are spread before they share.
    shared = launch.blocks > 1 and launch.number_of_programs > multiprocessors
    overlap = assumptions.overlap_of_several if shared else assumptions.overlap
    product = max(body.matrix, body.loads / rate)
    around = max(body.issue, body.others / rate)
    in_turns = product + around + body.looks * assumptions.latency
    longest = max(body.matrix, body.issue, (body.loads + body.others) / rate)
    return in_turns + overlap * (longest - in_turns)


def _last_end(programs: list[tuple[int, float]], multiprocessors: int) -> float:
    """When the last program ends, if each goes, in order, to the multiprocessor that is free first.

    Programs that share one are taken one after the other: together they take as long.
    """
    if len({cycles for _, cycles in programs}) == 1:
        number = sum(number for number, _ in programs)
        return math.ceil(number / multiprocessors) * programs[0][1]
    ends = [0.0] * multiprocessors
    for number, cycles in programs:
        for _ in range(number):
            heapq.heapreplace(ends, ends[0] + cycles)
    return max(ends)


def _memory_cycles(launch: Launch, assumptions: Assumptions) -> float:
    """Cycles in which memory moves what the cache cannot hold, each byte once."""
    cache = assumptions.cache_megabytes * 1e6
    together = sum(tensor.used for tensor in launch.tensors)
    moved = sum(
        tensor.used for tensor in launch.tensors if together > cache or tensor.whole > cache
    )
    return moved / (assumptions.memory_gigabytes / assumptions.clock)


def launch_microseconds(launch: Launch, cost: Cost, assumptions: Assumptions) -> float:
    """Of a launch, all of ``times``, with what lies between it and the next one."""
    number = assumptions.sort_launches if launch.kind == "sort" else 1
    each = cost.cycles / (1000 * assumptions.clock) + number * assumptions.launch_microseconds
    return launch.times * each


def product_microseconds(step: Step, assumptions: Assumptions) -> float:
    """The unit mm."""
    return step.product_cycles / (1000 * assumptions.clock)


def step_microseconds(step: Step, assumptions: Assumptions) -> float:
    """Of the whole step."""
    return sum(
        launch_microseconds(
            launch, launch_cost(launch, step.multiprocessors, assumptions), assumptions
        )
        for launch in step.launches
    )
