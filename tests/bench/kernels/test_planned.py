# ruff: noqa: E402
"""The launches that the model is given: those of the plan, with all of its tiles."""

from __future__ import annotations

import pytest

for _module in ("matplotlib", "psutil", "rich", "tqdm"):
    pytest.importorskip(_module)
pytest.importorskip("triton", minversion="3.3")

from bench.kernels.compilation import Problem
from bench.kernels.geometry import Exceptions, Tile, tiles_of_programs
from bench.kernels.model import Launch, Step
from bench.kernels.planned import Counted, Operator, plan_step, record_step
from bench.offline.pretended import DEVICES, plan_launches
from bench.reporting.errors import UserError
from circle_kernels import CircleFormula

SELF = Problem(4096, 256)
LARGE = Problem(8192, 256)
CLASSES = Problem(512, 128, 20_000, classes=True)


def plan(problem: Problem) -> Step:
    return plan_step("a step", problem, lambda launch: Counted(plain=8, exact=32, blocks=2))


def tiled(step: Step) -> list[Launch]:
    return [launch for launch in step.launches if len(launch.bodies) == 3]


def pairs(launch: Launch, depth: int) -> float:
    """That a launch multiplies, at 2048 multiply-adds a cycle."""
    return launch.times * sum(
        each.number * tiles * body.matrix * 2048 / depth
        for each in launch.programs
        for tiles, body in zip(each.tiles, launch.bodies, strict=True)
    )


@pytest.mark.parametrize("problem", [SELF, LARGE, CLASSES], ids=["self", "large", "classes"])
def test_launches_are_those_of_the_plan(problem: Problem) -> None:
    recorded = record_step(problem)
    planned = plan_launches(
        DEVICES["sm_90"], dtype=_bfloat16(), formula=CircleFormula(), **problem._asdict()
    )
    launches = [each for each in recorded if not isinstance(each, Operator)]
    names = [each.kernel.__name__ for each in launches]
    assert [name for name in names if name != "row_losses_kernel"] == [
        each.kernel.__name__ for each in planned
    ]
    step = plan(problem)
    assert sum(launch.times for launch in step.launches) == len(recorded)
    assert sum(launch.times * launch.number_of_programs for launch in tiled(step)) == sum(
        each.programs for each in planned if each.settings is not None
    )


@pytest.mark.parametrize("problem", [SELF, LARGE, CLASSES], ids=["self", "large", "classes"])
def test_every_pair_is_multiplied_in_both_passes(problem: Problem) -> None:
    step = plan(problem)
    columns = problem.num_references or problem.num_rows
    all_pairs = problem.num_rows * columns
    blocks = problem.num_rows // 128
    halved = {"sum_triangle", "write_weights"} if problem.num_references is None else set()
    found = {"forward": 0.0, "backward": 0.0}
    for launch in tiled(step):
        weights = launch.name.startswith("write_weights")
        found["backward" if weights else "forward"] += pairs(launch, problem.depth)
    triangle = any(launch.name == "sum_triangle" for launch in step.launches)
    assert triangle == (problem is LARGE)
    expected = {"forward": all_pairs, "backward": all_pairs}
    if triangle:
        expected["forward"] = all_pairs * (blocks + 1) / (2 * blocks)
    if halved:
        expected["backward"] = all_pairs / 2
    for name, number in expected.items():
        # Tiles on the diagonal, whatever their size, are visited as a whole, as are those beyond
        # the edge.
        assert number <= found[name] * (1 + 1e-9)
        assert found[name] <= number * 1.07


def test_products_and_other_operators_are_there() -> None:
    step = plan(LARGE)
    products = [launch for launch in step.launches if launch.kind == "product"]
    # 8192 rows by 256 in 128x128 of products as deep as a chunk.
    cycles = sum(
        launch.times * launch.number_of_programs * launch.bodies[0].matrix for launch in products
    )
    assert cycles == 8192 * 8192 * 256 / 2048
    assert [launch.kind for launch in step.launches].count("sort") == 1
    assert step.product_cycles == pytest.approx(8192 * 8192 * 256 / (2048 * 132))


def test_figures_of_a_tile_are_those_of_its_block() -> None:
    (forward,) = (launch for launch in tiled(plan(CLASSES)) if launch.name == "sum_rows")
    plain, exact = forward.bodies[:2]
    tile = plain.matrix * 2048 / CLASSES.depth
    assert tile == 128 * 256
    assert plain.issue == 8 * tile / 128
    assert exact.issue == 32 * tile / 128
    assert plain.loads == (128 + 256) * CLASSES.depth * 2
    assert forward.blocks == 2
    weights = [launch for launch in tiled(plan(CLASSES)) if launch.name == "write_weights"]
    for launch in weights:
        assert launch.bodies[0].others == launch.bodies[0].matrix * 2048 / CLASSES.depth * 2


def test_exceptions_of_class_weights_hold_every_class_once() -> None:
    exceptions = Exceptions(CLASSES)
    columns = range(0, 20_000, 64)
    holding = [
        (row, column)
        for row in range(0, 512, 64)
        for column in columns
        if Tile(row, 64, column, 64) in exceptions
    ]
    # No more tiles than rows, but for those at the edge; spread over all of them.
    assert 0.7 * 512 <= len(holding) <= 512 + 8
    assert len({column for _, column in holding}) > 0.5 * len(columns)


def test_exceptions_in_self_mode_are_on_the_diagonal_and_at_the_edge() -> None:
    exceptions = Exceptions(Problem(300, 64))
    found = {
        (row, column)
        for row in (0, 128, 256)
        for column in (0, 64, 128, 192, 256)
        if Tile(row, 128, column, 64) in exceptions
    }
    diagonal = {(0, 0), (0, 64), (128, 128), (128, 192), (256, 256)}
    assert found == diagonal | {(0, 256), (128, 256)}


@pytest.mark.parametrize(
    ("name", "constants", "expected"),
    [
        # Kernels with both bodies, those that leave tiles to others, and the others.
        ("sum_triangle_kernel", {}, (1, 1, 0)),
        ("write_weights_kernel", {"MIRROR": True, "TILES": "served"}, (1, 0, 1)),
        ("write_weights_kernel", {"MIRROR": True, "TILES": "others"}, (0, 1, 1)),
        ("write_weights_kernel", {"MIRROR": True}, (1, 1, 0)),
        ("sum_exactly_kernel", {}, (0, 1, 1)),
    ],
)
def test_tiles_that_a_kernel_leaves_over_are_passed_over(
    name: str, constants: dict[str, object], expected: tuple[int, int, int]
) -> None:
    arguments = {
        "num_columns": 256,
        "num_row_blocks": 2,
        "num_column_blocks": 2,
        "num_column_tiles": 2,
        "num_runs": 1,
    }
    blocks = {"BLOCK_ROWS": 128, "BLOCK_COLUMNS": 128}
    programs = tiles_of_programs(
        name, 2, arguments, {**blocks, **constants}, Exceptions(Problem(256, 64))
    )
    # The block that sees both of its tiles: in a triangle the second, else the first.
    assert programs[1 if name == "sum_triangle_kernel" else 0] == expected


def test_unknown_kernel_is_named() -> None:
    arguments = {"num_row_blocks": 1, "num_runs": 1}
    blocks = {"BLOCK_ROWS": 128, "BLOCK_COLUMNS": 128}
    with pytest.raises(UserError, match="new_kernel"):
        tiles_of_programs("new_kernel", 1, arguments, blocks, Exceptions(SELF))


def _bfloat16():
    import torch

    return torch.bfloat16
