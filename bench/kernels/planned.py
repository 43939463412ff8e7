"""The launches of a step as they are planned for a device, as the model takes them.

Both passes run on fake tensors of a pretended device. Kernels come with what their machine code
takes for a tile, torch's operators with their products or their bytes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.kernels.compilation import DTYPES, Problem, describe_kernel
from bench.kernels.geometry import Exceptions, tiles_of_programs
from bench.kernels.model import Body, Launch, Programs, Step, Touched
from bench.measuring.operators import computes, tensors_in
from bench.reporting.errors import UserError
from circle_kernels import CircleFormula

TARGET = "sm_90"
DTYPE = "bfloat16"  # that the rate of a device's matrix units is given for
STEPS = {
    "self": ("N=16384, D=512", Problem(16_384, 512)),
    "classes": ("class head of 4096x1M, D=512", Problem(4096, 512, 1_000_000, classes=True)),
}

# Of a product's result that one program of torch's computes.
_PRODUCT_TILE = 128
# Where an operator's two factors are among its arguments.
_FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


class Operator(NamedTuple):
    """One of torch's that computes something."""

    name: str
    arguments: tuple[Tensor, ...]
    results: tuple[Tensor, ...]


class Counted(NamedTuple):
    """Of a compiled tile kernel."""

    plain: float  # instructions per pair, of the body for tiles without exceptions
    exact: float  # and of the other, where it has both
    blocks: int  # programs that a multiprocessor has room for


def planned_step(key: str) -> Step:
    """What the model is asked about, by its key in STEPS.

    Raises:
        UserError: no Triton, or a kernel that is not known to geometry.py.
    """
    name, problem = STEPS[key]
    return plan_step(name, problem, compiled_kernel)


def plan_step(name: str, problem: Problem, count: Any) -> Step:
    """A step of any problem; ``count(launch)`` says what its machine code takes: Counted."""
    try:
        from bench.offline.pretended import DEVICES
    except ImportError as error:
        raise UserError(f"the model needs Triton (pip install triton): {error}") from error
    device = DEVICES[TARGET]
    exceptions = Exceptions(problem)
    rate = device.multiply_adds
    launches = []
    for each in record_step(problem):
        if isinstance(each, Operator):
            launches.append(_operator(each, rate, device.multiprocessors))
        elif each.settings is None:
            launches.append(_plain_kernel(each))
        else:
            launches.append(_tile_kernel(each, rate, exceptions, count(each)))
    num_columns = problem.num_references or problem.num_rows
    return Step(
        name,
        device.multiprocessors,
        problem.num_rows * num_columns * problem.depth / (rate * device.multiprocessors),
        tuple(_merged(launches)),
    )


def record_step(problem: Problem) -> list[Any]:
    """Launches of kernels, and Operators, in the order of a forward and a backward pass."""
    from bench.offline.pretended import DEVICES, pretend_device
    from circle_kernels.backends import triton as triton_backend
    from circle_kernels.backends.addressable import stand_ins
    from circle_kernels.backends.problem import Needs, PairProblem, Passed
    from circle_kernels.operation.reductions import row_losses

    def side(length: int) -> tuple[Tensor, Tensor]:
        embeddings = torch.empty(length, problem.depth, dtype=DTYPES[DTYPE], device="cuda")
        return embeddings, torch.empty(length, dtype=torch.int64, device="cuda")

    with pretend_device(DEVICES[TARGET]) as launches, stand_ins():
        references = None if problem.num_references is None else side(problem.num_references)
        ref_emb, ref_labels = references or (None, None)
        given = PairProblem(
            *side(problem.num_rows),
            ref_emb,
            None if problem.classes else ref_labels,
            CircleFormula(),
            normalize=True,
        )
        with _RecordOperators(launches) as seen:
            lse_pos, lse_neg, saved = triton_backend.forward(given)
            loss, slopes = row_losses(triton_backend, lse_pos, lse_neg, "mean")
            upstream = slopes * torch.ones_like(loss)
            triton_backend.backward(
                given,
                Passed(saved, upstream, upstream),
                Needs(embeddings=True, references=references is not None),
            )
    return seen.everything()


class _RecordOperators(TorchDispatchMode):
    """Torch's operators between the launches that are recorded elsewhere."""

    def __init__(self, launches: Sequence[Any]) -> None:
        super().__init__()
        self._launches = launches
        self._before: list[tuple[int, Operator]] = []  # with the number of launches before it

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace != "prim" and computes(func, args, result):
            name = func.__name__.partition(".")[0]
            operator = Operator(name, tuple(tensors_in(args)), tuple(tensors_in(result)))
            self._before.append((len(self._launches), operator))
        return result

    def everything(self) -> list[Any]:
        """Launches and operators in their order."""
        found, taken = [], 0
        for number, operator in self._before:
            found += [*self._launches[taken:number], operator]
            taken = number
        return [*found, *self._launches[taken:]]


@functools.cache
def _described(kernel: Any) -> tuple[dict[str, Any], ...]:
    return tuple(describe_kernel(TARGET, DTYPE, kernel))


def compiled_kernel(launch: Any) -> Counted:
    """What the machine code of a tile kernel takes."""
    from bench.offline.compiled import specialize

    rows = [row for row in _described(specialize(launch)) if "body" in row]
    if not rows:
        raise UserError(f"no body of {launch.kernel.__name__} was found in its machine code")
    per_pair = {row["body"]: row["instructions_per_pair"] for row in rows}
    exact = per_pair.pop("exact", None)
    plain = next(iter(per_pair.values()), exact)
    return Counted(plain, plain if exact is None else exact, rows[0]["blocks"])


def _tile_kernel(launch: Any, rate: float, exceptions: Exceptions, counted: Counted) -> Launch:
    name, constants, arguments = launch.kernel.__name__, launch.constants, launch.arguments
    block_rows, block_columns = constants["BLOCK_ROWS"], constants["BLOCK_COLUMNS"]
    pairs = block_rows * block_columns
    rows_ptr = arguments["rows_ptr"]
    depth, itemsize = rows_ptr.shape[1], rows_ptr.element_size()
    stores = _stored_per_tile(launch, pairs)
    bodies = tuple(
        Body(
            matrix=pairs * depth / rate,
            issue=per_pair * pairs / 128,  # instructions that are issued in a cycle
            loads=(block_rows + block_columns) * depth * itemsize,
            others=stores,
            looks=1,
        )
        for per_pair in (counted.plain, counted.exact)
    )
    programs = tiles_of_programs(name, launch.programs, arguments, constants, exceptions)
    which = constants.get("TILES", "")  # of the tiles, where two launches share them
    where = "on the diagonal" if constants.get("MIRROR") else ""
    return Launch(
        " ".join(filter(None, (name.removesuffix("_kernel"), which, where))),
        (*bodies, Body(looks=1)),
        tuple(Programs(len(list(same)), tiles) for tiles, same in itertools.groupby(programs)),
        tuple(_touched_by_tiles(launch)),
        blocks=counted.blocks,
    )


def _stored_per_tile(launch: Any, pairs: int) -> float:
    """Bytes: weights of every pair (twice where the mirrored tile is written too) or sums."""
    arguments = launch.arguments
    if "weights_ptr" in arguments:
        each = pairs * arguments["weights_ptr"].element_size()
        return 2 * each if launch.constants.get("MIRROR") else each
    # Those of runs and of tiles, spread over all tiles: little beside the operands.
    sums = sum(
        value.nbytes
        for name, value in arguments.items()
        if name.endswith("sums_ptr") and isinstance(value, Tensor)
    )
    all_pairs = arguments["num_rows"] * arguments.get("num_columns", arguments["num_rows"])
    bands = arguments.get("band_rows", arguments.get("band_columns"))
    if bands is not None:
        all_pairs = all_pairs // arguments["num_rows"] * bands
    return sums * pairs / all_pairs


def _touched_by_tiles(launch: Any) -> Iterable[Touched]:
    """Operands of the rows and columns that a launch is about, and what it writes of weights."""
    arguments, constants = launch.arguments, launch.constants
    rows, columns = arguments["rows_ptr"], arguments.get("columns_ptr")
    weights = arguments.get("weights_ptr")
    for name, operand in (("row", rows), ("column", columns)):
        if operand is None or (name == "column" and operand is rows):
            continue
        used = operand.nbytes
        if weights is not None:
            chunk = weights.shape[0 if name == "row" else 1]
            used = min(chunk, operand.shape[0]) * operand.shape[1] * operand.element_size()
        yield Touched(used, _whole(operand))
    if weights is not None:
        width = arguments["num_column_tiles"] * constants["TILE_COLUMNS"]
        height = arguments["num_row_blocks"] * constants["BLOCK_ROWS"]
        yield Touched(height * width * weights.element_size(), _whole(weights))


def _plain_kernel(launch: Any) -> Launch:
    """A kernel without tiles of pairs: it moves what its arguments hold, shared by its programs."""
    # All of a gradient may be given of which one chunk is written.
    given = tensors_in(list(launch.arguments.values()))
    tensors = _touched(given, launch.arguments.get("num_rows"))
    return Launch(
        launch.kernel.__name__.removesuffix("_kernel"),
        (Body(others=sum(tensor.used for tensor in tensors) / launch.programs),),
        (Programs(launch.programs, (1,)),),
        tensors,
    )


def _operator(operator: Operator, rate: float, multiprocessors: int) -> Launch:
    tensors = _touched([*operator.arguments, *operator.results])
    if operator.name in _FACTORS:
        place = _FACTORS[operator.name]
        left, right = operator.arguments[place : place + 2]
        (*batch, rows, inner), columns = left.shape, right.shape[-1]
        tiles = math.prod(batch) * math.prod(
            math.ceil(length / _PRODUCT_TILE) for length in (rows, columns)
        )
        return Launch(
            f"{operator.name} {rows}x{inner}x{columns}",
            (Body(matrix=_PRODUCT_TILE**2 * inner / rate),),
            (Programs(tiles, (1,)),),
            tensors,
            kind="product",
        )
    # A result in the place of an argument is read and written.
    moved = sum(tensor.nbytes for tensor in (*operator.arguments, *operator.results))
    return Launch(
        operator.name,
        (Body(others=moved / multiprocessors),),
        (Programs(multiprocessors, (1,)),),
        tensors,
        kind="sort" if operator.name == "sort" else "kernel",
    )


def _touched(tensors: Iterable[Tensor], most_rows: int | None = None) -> tuple[Touched, ...]:
    """Tensors, each once: one can be argument and result, or stand for others that are not there.

    Of matrices ``most_rows`` at most.
    """
    found = {}
    for tensor in tensors:
        used = tensor.nbytes
        if most_rows is not None and tensor.dim() == 2 and tensor.shape[0] > most_rows:
            used = used // tensor.shape[0] * most_rows
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape)
        found[place] = Touched(used, _whole(tensor))
    return tuple(found.values())


def _whole(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _merged(launches: Iterable[Launch]) -> Iterable[Launch]:
    """Equal launches as one, in the order of the first of each."""
    for launch, times in Counter(launches).items():
        yield replace(launch, times=times)
