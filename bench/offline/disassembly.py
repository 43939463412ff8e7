"""What a kernel's machine code executes per tile: loops and paths of NVIDIA disassembly.

A kernel's tile loop is its outermost loop with exponentials. A path through the body is one way
that a tile can go. Loops in it (over the depth) are left out: their work is the matrix product's.
Every number is a count of instructions per thread.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import astuple, dataclass, field

import networkx as nx

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
# Calls of labels are long branches, or those of subroutines, which come back.
_BRANCH = re.compile(r"^(?:BRA|CALL)\b")
# A branch on a uniform predicate has it among its operands.
_CONDITION = re.compile(r"^\s*!?U?P\d")
# Taken where the threads of a warp have diverged.
_CONDITIONAL = "BRA.DIV"
_ENDS = re.compile(r"^(?:BRA|EXIT|RET)\b")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_EXPONENTIAL = "MUFU.EX2"
_MATRIX = re.compile(r"^(?:HMMA|HGMMA|UTC\w*MMA)\b")


@dataclass
class Block:
    """Instructions that are executed one after the other."""

    opcodes: list[str] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)

    @property
    def instructions(self) -> int:
        return sum(opcode != "NOP" for opcode in self.opcodes)

    @property
    def exponentials(self) -> int:
        return self.opcodes.count(_EXPONENTIAL)

    @property
    def matrix_instructions(self) -> int:
        return sum(_MATRIX.match(opcode) is not None for opcode in self.opcodes)


@dataclass(frozen=True, order=True)
class TilePath:
    """One way through the body of the tile loop."""

    instructions: int  # outside of inner loops
    exponentials: int

    def __add__(self, other: TilePath) -> TilePath:
        return TilePath(*(sum(pair) for pair in zip(astuple(self), astuple(other), strict=True)))


def parse_blocks(disassembly: str) -> list[Block]:
    """Basic blocks of ``nvdisasm``'s text, the entry first."""
    instructions: list[tuple[str, bool, str | None]] = []  # opcode, conditional, target label
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        label = _LABEL.match(line)
        if label is not None:
            labels[label[1]] = len(instructions)
            continue
        match = _INSTRUCTION.match(line)
        if match is not None:
            target = _TARGET.search(match[4]) if _BRANCH.match(match[3]) else None
            conditional = (
                match[2] is not None
                or match[3] == _CONDITIONAL
                or _CONDITION.match(match[4]) is not None
            )
            instructions.append((match[3], conditional, target[1] if target else None))

    def ends_block(opcode: str, target: str | None) -> bool:
        return target is not None or _ENDS.match(opcode) is not None

    leaders = {0, *labels.values()}
    leaders.update(
        index + 1
        for index, (opcode, _, target) in enumerate(instructions)
        if ends_block(opcode, target)
    )
    starts = sorted(leader for leader in leaders if leader < len(instructions))
    number = {start: index for index, start in enumerate(starts)}
    blocks = []
    for index, start in enumerate(starts):
        end = starts[index + 1] if index + 1 < len(starts) else len(instructions)
        block = Block([opcode for opcode, _, _ in instructions[start:end]])
        opcode, conditional, target = instructions[end - 1]
        if target is not None and labels[target] in number:
            block.successors.append(number[labels[target]])
        if (conditional or not ends_block(opcode, target)) and index + 1 < len(starts):
            block.successors.append(index + 1)
        blocks.append(block)
    return blocks


def find_loops(blocks: list[Block]) -> dict[int, set[int]]:
    """Loops, nested ones too: for each header the blocks of its body, the header among them.

    A loop is what can reach itself; without the way back to its header, what is left of it may
    still hold others. Where control can enter at several blocks, the first of them is the header.
    """
    edges = [(index, other) for index, block in enumerate(blocks) for other in block.successors]
    whole = nx.DiGraph(edges)
    loops: dict[int, set[int]] = {}
    pending = [whole]
    while pending:
        region = pending.pop()
        for body in nx.strongly_connected_components(region):
            graph = nx.DiGraph(region.subgraph(body))
            if graph.number_of_edges() == 0:
                continue
            # Subroutines are reached from nowhere.
            entries = {index for outside, index in whole.in_edges(body) if outside not in body}
            header = min(entries or body)
            loops[header] = body
            graph.remove_edges_from(list(graph.in_edges(header)))
            pending.append(graph)
    return loops


def tile_paths(disassembly: str) -> list[TilePath]:
    """The ways through the tile loop that take exponentials, cheapest first.

    One for each set of blocks with exponentials that can be passed together: its cheapest way. A
    kernel whose tiles are programs has no such loop; its whole code is then the body.
    """
    blocks = parse_blocks(disassembly)
    loops = {
        header: body
        for header, body in find_loops(blocks).items()
        if body != {header} or blocks[header].exponentials or blocks[header].matrix_instructions
    }
    with_exponentials = {
        header: body
        for header, body in loops.items()
        if any(blocks[index].exponentials for index in body)
    }
    outer = max(with_exponentials, key=lambda header: len(with_exponentials[header]), default=0)
    body = with_exponentials.get(outer, set(range(len(blocks))))
    inner = {header: part for header, part in loops.items() if part < body and header != outer}
    return _paths(blocks, body, outer, inner)


def _paths(
    blocks: list[Block], body: set[int], header: int, inner: dict[int, set[int]]
) -> list[TilePath]:
    # The outermost of the inner loops that a block belongs to stands for it.
    loop_of = {index: index for index in body}
    for loop, part in sorted(inner.items(), key=lambda item: len(item[1])):
        loop_of.update(dict.fromkeys(part, loop))
    successors: dict[int, set[int]] = defaultdict(set)
    ends: set[int] = set()
    for index in body:
        node = loop_of[index]
        for successor in blocks[index].successors:
            if successor == header:
                ends.add(node)
            elif successor in body and loop_of[successor] != node:
                successors[node].add(loop_of[successor])
        if not blocks[index].successors:
            ends.add(node)

    def cost(node: int) -> TilePath:
        if node in inner:
            return TilePath(0, 0)
        return TilePath(blocks[node].instructions, blocks[node].exponentials)

    # Cheapest ways to the end, for each set of nodes with exponentials passed on them.
    known: dict[int, dict[frozenset[int], TilePath]] = {}

    def cheapest(node: int) -> dict[frozenset[int], TilePath]:
        if node not in known:
            own = cost(node)
            mark = frozenset({node} if own.exponentials else ())
            ways = [(frozenset[int](), TilePath(0, 0))] if node in ends else []
            for successor in sorted(successors[node]):
                ways.extend(cheapest(successor).items())
            found: dict[frozenset[int], TilePath] = {}
            for passed, after in ways:
                path = min(own + after, found.get(passed | mark, own + after))
                found[passed | mark] = path
            known[node] = found
        return known[node]

    return sorted(path for passed, path in cheapest(loop_of[header]).items() if passed)
