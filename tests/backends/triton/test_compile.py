"""The kernels compiled for real targets with no GPU: no spills, shared memory within limits.

What is compiled is what the package would launch: it plans on fake tensors of a pretended device.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from bench.kernels.compilation import DTYPES, PROBLEMS
from bench.offline.compiled import Specialization, compile_for, specialize
from bench.offline.pretended import DEVICES, plan_launches
from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.backends.triton.settings import INTERPRETER, settings_family
from circle_kernels.backends.triton.settings_table import Settings, load_table
from circle_kernels.formula import PairFormula
from tests.support.formulas import FUNCTIONS, TWO_SCALES

# Those that entries begin at among them.
DEPTHS = sorted(
    {64, 128, 256, 512}
    | {depth for entries in load_table().values() for depth, _ in entries if depth > 64}
)
TILE_KERNELS = (
    "small_backward_kernel",
    "small_forward_kernel",
    "sum_exactly_kernel",
    "sum_logits_kernel",
    "sum_rows_kernel",
    "sum_triangle_kernel",
    "write_weights_kernel",
)


@dataclass(frozen=True)
class Problem:
    dtype: torch.dtype
    depth: int
    self_mode: bool = True
    num_rows: int = 4096
    formula: PairFormula = CircleFormula()  # noqa: RUF009, a frozen value
    precision: str = "highest"
    normalize: bool = True
    classes: bool = False
    listed: bool = False
    one_batch: bool = False
    own_columns: bool = False
    both_sides: bool = False
    learned_scale: bool = False


# One of each maker: every device's settings are compiled by ``python -m bench kernels --check``.
TARGETS = ("sm_90", "gfx942")


def problems() -> list[Problem]:
    """Every table entry: all dtypes and depths in both modes, formulas and precisions once each."""
    chosen = [
        Problem(dtype, depth, self_mode)
        for dtype, depth, self_mode in itertools.product(
            (torch.bfloat16, torch.float32), DEPTHS, (True, False)
        )
    ]
    # Small tiles, and the triangle in several bands.
    for num_rows, depth in ((256, 64), (100_000, 128)):
        for dtype in (torch.bfloat16, torch.float32):
            chosen += [Problem(dtype, depth, self_mode, num_rows) for self_mode in (True, False)]
    for num_rows, dtype in itertools.product((256, 4096), (torch.bfloat16, torch.float32)):
        chosen += [Problem(dtype, 64, False, num_rows, classes=True)]
    chosen += options() + of_functions() + of_one_batch() + of_other_pairs()
    return chosen + of_learned_scales()


def options() -> list[Problem]:
    """Formulas, precisions, dtypes and kinds of depths once each."""
    chosen = [Problem(torch.float16, depth) for depth in (64, 512)]
    chosen += [Problem(torch.float32, depth, precision="high") for depth in (64, 512)]
    undetached = CircleFormula(detach_weights=False)
    for formula in (undetached, UnifiedFormula(m=0.35), *TWO_SCALES.values()):
        chosen += [Problem(torch.bfloat16, depth, formula=formula) for depth in (64, 512)]
        chosen += [Problem(torch.float32, 512, formula=formula)]
    for self_mode in (True, False):
        chosen += [Problem(torch.bfloat16, 128, self_mode, 30_000, undetached)]
    # A depth that needs masking and has no aligned rows, and the smallest.
    chosen += [Problem(torch.bfloat16, depth) for depth in (1, 100, 515)]
    chosen += [Problem(torch.float16, 64, normalize=False)]
    for dtype, self_mode in itertools.product((torch.bfloat16, torch.float32), (True, False)):
        chosen += [Problem(dtype, 512, self_mode, listed=True)]
    for num_rows in (256, 30_000):
        chosen += [Problem(torch.bfloat16, 128, num_rows=num_rows, formula=UnifiedFormula(m=0.35))]
        chosen += [Problem(torch.float32, 128, num_rows=num_rows, precision="high")]
    return chosen


def of_functions() -> list[Problem]:
    """Both modes and a small batch."""
    chosen = []
    for formula in FUNCTIONS.values():
        chosen += [Problem(torch.bfloat16, 128, each, formula=formula) for each in (True, False)]
        chosen += [Problem(torch.float32, 128, formula=formula)]
        chosen += [Problem(torch.float32, 512, num_rows=256, formula=formula)]
    return chosen


def of_other_pairs() -> list[Problem]:
    """Own copies, and columns that count pairs, as do rows."""
    chosen = []
    for num_rows in (256, 4096, 30_000):
        chosen += [Problem(torch.bfloat16, 512, False, num_rows, own_columns=True, both_sides=True)]
    chosen += [Problem(torch.float32, 512, False, 30_000, own_columns=True, both_sides=True)]
    for formula in (UnifiedFormula(), FUNCTIONS["with where"]):
        chosen += [
            Problem(
                torch.bfloat16, 512, False, formula=formula, own_columns=True, both_sides=both_sides
            )
            for both_sides in (False, True)
        ]
    return chosen


def of_learned_scales() -> list[Problem]:
    """One more walk, for each kind of formula."""
    chosen = [
        Problem(torch.bfloat16, 128, formula=formula, learned_scale=True)
        for formula in (UnifiedFormula(), *TWO_SCALES.values(), *FUNCTIONS.values())
    ]
    for dtype, num_rows in itertools.product((torch.bfloat16, torch.float32), (4096, 30_000)):
        chosen += [Problem(dtype, 512, num_rows=num_rows, learned_scale=True)]
    return chosen


def of_one_batch() -> list[Problem]:
    """Sums that are known, of a small batch, too, and pairs that count for references."""
    chosen = [Problem(torch.bfloat16, 64, num_rows=256, one_batch=True)]
    for dtype, num_rows in itertools.product((torch.bfloat16, torch.float32), (4096, 30_000)):
        chosen += [Problem(dtype, 128, False, num_rows, one_batch=True)]
    chosen += [
        Problem(torch.float16, 512, False, num_rows, one_batch=True) for num_rows in (256, 30_000)
    ]
    for formula in (CircleFormula(detach_weights=False), UnifiedFormula(m=0.35)):
        chosen += [Problem(torch.bfloat16, 512, False, 30_000, formula, one_batch=True)]
    return chosen


@functools.cache
def kernels(target: str) -> dict[Specialization, Settings | None]:
    """The different kernels of all problems on one device, and the settings of those on tiles."""
    found: dict[Specialization, Settings | None] = {}
    previous = torch.get_float32_matmul_precision()
    try:
        for problem in problems():
            torch.set_float32_matmul_precision(problem.precision)
            recorded = plan_launches(
                DEVICES[target],
                dtype=problem.dtype,
                num_rows=problem.num_rows,
                depth=problem.depth,
                formula=problem.formula,
                num_references=None if problem.self_mode else 2 * problem.num_rows,
                normalize=problem.normalize,
                classes=problem.classes,
                listed=problem.listed,
                one_batch=problem.one_batch,
                own_columns=problem.own_columns,
                both_sides=problem.both_sides,
                learned_scale=problem.learned_scale,
            )
            found.update((specialize(launch), launch.settings) for launch in recorded)
    finally:
        torch.set_float32_matmul_precision(previous)
    return found


def multiplies(kernel: Specialization) -> bool:
    return kernel.kernel.__name__ in TILE_KERNELS


@pytest.mark.parametrize("name", [*TILE_KERNELS, "others"])
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_without_spills_within_shared_memory(target: str, name: str) -> None:
    device = DEVICES[target]
    chosen = [
        kernel
        for kernel in kernels(target)
        if kernel.kernel.__name__ == name
        or (name == "others" and kernel.kernel.__name__ not in TILE_KERNELS)
    ]
    assert chosen
    failures = []
    for kernel in chosen:
        resources = compile_for(device, kernel)
        uses_matrix_units = resources.matrix_instructions > 0
        if (
            resources.spills
            or resources.shared_memory > device.shared_memory
            or uses_matrix_units != multiplies(kernel)
        ):
            failures.append(f"{kernel}: {resources}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    "sizes",
    [
        [(1, 1), (16, 16), (1000, 300), (3, 10_000)],
        [(4096, 4000), (5001, 3999), (300, 100_000)],
        [(20_000, 20_000), (30_001, 25_003)],
    ],
    ids=["small", "large", "sorted"],
)
@pytest.mark.parametrize("depth", [64, 100, 600])
def test_batch_sizes_share_compiled_kernels(depth: int, sizes: list[tuple[int, int]]) -> None:
    """N and M are run-time values: there are three kinds of sizes, and a kind is compiled once."""

    def compiled(num_rows: int, num_references: int) -> set[Specialization]:
        launches = plan_launches(
            DEVICES["sm_90"],
            dtype=torch.bfloat16,
            num_rows=num_rows,
            depth=depth,
            formula=CircleFormula(),
            num_references=num_references,
        )
        return {specialize(launch) for launch in launches}

    expected = compiled(*sizes[0])
    for num_rows, num_references in sizes[1:]:
        assert compiled(num_rows, num_references) == expected


def test_gamma_is_no_constant_of_kernels() -> None:
    """As one that is learned would have them compiled at each step."""

    def compiled(formula: PairFormula) -> set[Specialization]:
        device = DEVICES["sm_90"]
        launches = plan_launches(
            device, dtype=torch.float16, num_rows=300, depth=64, formula=formula
        )
        return {specialize(launch) for launch in launches}

    for formula in (CircleFormula(), UnifiedFormula(), *FUNCTIONS.values()):
        assert compiled(formula) == compiled(replace(formula, gamma=17.3))


def test_every_settings_entry_is_compiled() -> None:
    """The problems of ``python -m bench kernels`` reach all of the table; none goes unchecked."""
    seen = set()
    for target, dtype, problem in itertools.product(DEVICES, DTYPES.values(), PROBLEMS):
        launches = plan_launches(
            DEVICES[target], dtype=dtype, formula=CircleFormula(), **problem._asdict()
        )
        for family in (target, settings_family(target)):
            seen |= {(family, launch.settings) for launch in launches}
    listed = {
        (family, settings)
        for (_, family, _), entries in load_table().items()
        for _, settings in entries
        if family != INTERPRETER
    }
    assert listed <= seen, f"not compiled: {listed - seen}"
