# ruff: noqa: E402
"""``python -m bench kernels``: machine code read right, and budgets that can fail."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.places import ROOT

for _module in ("matplotlib", "psutil", "rich", "tqdm"):
    pytest.importorskip(_module)
pytest.importorskip("triton", minversion="3.3")

from bench import __main__ as cli
from bench.kernels import command as kernels
from bench.kernels.budgets import exceeded_budgets, got_worse
from bench.kernels.tables import cache_rate
from bench.offline.disassembly import find_loops, parse_blocks, tile_paths
from bench.reporting.results import load

# A tile loop as the compiler lays it out: a loop over the depth, then one of two ways.
TILE_LOOP = """
.text.kernel:
        /*0000*/                   S2R R0, SR_CTAID.X ;
        /*0010*/               @P0 EXIT ;
.L_x_0:
        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;
.L_x_1:
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/              @!P1 BRA `(.L_x_1) ;
        /*0050*/                   BRA.U UP0, `(.L_x_2) ;
        /*0060*/                   FMUL R2, R2, R2 ;
        /*0070*/                   MUFU.EX2 R3, R2 ;
        /*0080*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0090*/                   FFMA R2, R2, R2, R4 ;
        /*00a0*/                   NOP ;
        /*00b0*/                   MUFU.EX2 R3, R2 ;
        /*00c0*/                   FADD R5, R5, R3 ;
        /*00d0*/                   MUFU.EX2 R3, R2 ;
.L_x_3:
        /*00e0*/               @P3 CALL.REL.NOINC `(.L_x_4) ;
        /*00f0*/                   BRA `(.L_x_0) ;
.L_x_4:
        /*0100*/                   EXIT ;
.L_x_5:
        /*0110*/                   BRA `(.L_x_5);
"""


def test_blocks_end_at_branches_and_labels() -> None:
    blocks = parse_blocks(TILE_LOOP)
    assert [block.successors for block in blocks] == [
        [1],  # a guarded exit goes on
        [2],
        [2, 3],
        [5, 4],  # a branch on a uniform predicate
        [6],
        [6],
        [8, 7],  # a call of a label is a long branch
        [1],
        [],
        [9],
    ]
    loops = find_loops(blocks)
    assert loops[1] == {1, 2, 3, 4, 5, 6, 7}
    assert loops[2] == {2}


def test_paths_leave_out_the_loop_over_the_depth() -> None:
    plain, other = tile_paths(TILE_LOOP)
    # IADD3, BRA.U, FMUL, MUFU, BRA, CALL, BRA; on the other way NOP is no instruction.
    assert (plain.instructions, plain.exponentials) == (7, 1)
    assert (other.instructions, other.exponentials) == (8, 2)


def test_loop_that_is_entered_in_two_places_counts_once() -> None:
    jumped = TILE_LOOP.replace(
        "        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;\n",
        "        /*0020*/               @P2 BRA `(.L_x_7) ;\n",
    ).replace(
        "        /*0040*/              @!P1 BRA `(.L_x_1) ;\n",
        ".L_x_7:\n        /*0040*/              @!P1 BRA `(.L_x_1) ;\n",
    )
    loops = find_loops(parse_blocks(jumped))
    # Over the tiles, over the depth (entered at its top and at its end), and the trap at the end.
    assert loops == {1: set(range(1, 9)), 2: {2, 3}, 10: {10}}
    assert tile_paths(jumped) == tile_paths(TILE_LOOP)


def test_tile_loop_that_is_entered_in_two_places_is_found() -> None:
    jumped = TILE_LOOP.replace("@P0 EXIT ;", "@P0 BRA `(.L_x_3) ;")
    # The way from the second place to the first is passed once, and is no way of a tile.
    assert tile_paths(jumped) == tile_paths(TILE_LOOP)


def test_calls_of_subroutines_come_back() -> None:
    called = TILE_LOOP.replace(
        "FADD R5, R5, R3 ;",
        "CALL.REL.NOINC `($__internal_0_$__cuda_sm3x_div_rn_noftz_f32_slowpath) ;",
    )
    assert tile_paths(called) == tile_paths(TILE_LOOP)


def test_branches_of_threads_that_have_diverged_are_conditional() -> None:
    diverging = TILE_LOOP.replace("BRA.U UP0,", "BRA.DIV UR4,")
    assert tile_paths(diverging) == tile_paths(TILE_LOOP)


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "target": "sm_90",
        "dtype": "bfloat16",
        "kernel": "sum_triangle_kernel",
        "mode": "in label order",
        "tile": "128x128x64",
        "num_warps": 8,
        "registers": 230,
        "spills": 0,
        "shared_memory": 98_304,
        "shared_memory_limit": 232_448,
        "body": "only negatives",
        "instructions_per_pair": 8.9,
        "cycles": 1216,
        "matrix_cycles": {"128": 1024, "512": 4096, "1024": 8192},
    }
    return {**row, **changes}


def test_rows_within_their_budgets_pass() -> None:
    assert exceeded_budgets([_row(), _row(body="both kinds", cycles=9999)]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spills": 2}, "2 spills"),
        ({"shared_memory": 232_449}, "232449 bytes of shared memory"),
        ({"instructions_per_pair": 9.1}, "9.1 instructions per pair, at most 9"),
        ({"body": "both kinds", "instructions_per_pair": 17.6}, "at most 17.5"),
        ({"cycles": 1450}, "1.35 of the matrix product's cycles at D=512"),
    ],
)
def test_exceeded_budgets_are_named(changes: dict[str, Any], message: str) -> None:
    problems = exceeded_budgets([_row(**changes)])
    assert len(problems) == 1
    assert message in problems[0]
    assert "sm_90 bfloat16 sum_triangle_kernel" in problems[0]


def test_figures_may_get_five_percent_worse_and_no_more() -> None:
    committed = [_row()]
    assert got_worse([_row(instructions_per_pair=9.3)], committed) == []
    worse = got_worse([_row(instructions_per_pair=10.0)], committed)
    assert len(worse) == 1
    assert "instructions_per_pair 10.0, was 8.9" in worse[0]
    unknown = got_worse([_row(tile="64x64x64")], committed)
    assert "not in kernels.json" in unknown[0]


def test_bytes_per_cycle_that_a_tile_asks() -> None:
    row = {"tile": "128x128x64", "dtype": "bfloat16", "matrix_cycles": {"128": 1024, "512": 4096}}
    assert cache_rate(row) == 64
    assert cache_rate({**row, "tile": "128x256x64", "matrix_cycles": {"128": 2048}}) == 48
    assert cache_rate({**row, "matrix_cycles": {"128": 0}}) is None


def test_committed_results_are_what_the_page_shows() -> None:
    top = ROOT
    results = load(top / "bench" / "results" / "kernels.json")
    page = (top / "docs" / "kernels.md").read_text(encoding="utf-8")
    for name, content in kernels.PRESENTATION.blocks(results).items():
        assert f"<!-- bench:{name} -->\n{content}\n<!-- /bench:{name} -->" in page
    assert exceeded_budgets(results.rows) == []
    # Every row is compared with itself: names tell rows apart.
    assert got_worse(results.rows, results.rows) == []
    assert got_worse(results.rows, results.rows[::-1]) == []


def test_unknown_target_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "--targets", "sm_90,sm_12"]) == 1
    assert "got sm_12" in capsys.readouterr().err
