"""What ``python -m bench kernels`` holds the kernels to."""

from __future__ import annotations

from typing import Any

from bench.kernels.steps import step_totals
from bench.kernels.tables import cycle_ratio
from bench.reporting.results import Results

# The results file that is committed.
COMMITTED = "kernels.json"

# What --check holds for large tiles on sm_90, in bfloat16.
_LARGE_TILES = ("128x128", "128x256", "256x128")
MOST_INSTRUCTIONS = {"only negatives": 9.0, "both kinds": 17.5}
MOST_CYCLES = {512: 1.35, 1024: 1.2}  # of tiles with only negatives, beside the matrix product
# Of the modelled time of a step, in units of mm, as usually assumed; 2.9 of "self" is wanted.
MOST_OF_STEP = {"self": 2.95, "classes": 5.9}
# How much worse than the committed table a figure may get.
TOLERANCE = 1.05


def exceeded_budgets(rows: list[dict[str, Any]]) -> list[str]:
    """What breaks a bound, in words."""
    problems = []
    for row in rows:
        name = _name(row)
        if row["spills"]:
            problems.append(f"{name}: {row['spills']} spills, none are allowed")
        if row["shared_memory"] > row["shared_memory_limit"]:
            problems.append(
                f"{name}: {row['shared_memory']} bytes of shared memory, "
                f"a block may take {row['shared_memory_limit']}"
            )
        held = row["target"] == "sm_90" and row["dtype"] == "bfloat16"
        if not held or not row["tile"].startswith(_LARGE_TILES) or "body" not in row:
            continue
        if not row["kernel"].startswith("sum_"):
            continue
        most = MOST_INSTRUCTIONS.get(row["body"])
        if most is not None and row["instructions_per_pair"] > most:
            problems.append(
                f"{name}: {row['instructions_per_pair']} instructions per pair, at most {most}"
            )
        if row["body"] == "only negatives":
            for depth, most_ratio in MOST_CYCLES.items():
                ratio = cycle_ratio(row, depth)
                if ratio is not None and ratio > most_ratio:
                    problems.append(
                        f"{name}: {ratio:.2f} of the matrix product's cycles at D={depth}, "
                        f"at most {most_ratio}"
                    )
    return problems


def slow_steps(results: Results) -> list[str]:
    """Steps that the model finds slower than they may be, in words."""
    return [
        f"step {key}: {units:.2f} mm, at most {MOST_OF_STEP[key]}"
        for key, units in step_totals(results).items()
        if units > MOST_OF_STEP[key]
    ]


def got_worse(rows: list[dict[str, Any]], committed: list[dict[str, Any]]) -> list[str]:
    """Figures more than TOLERANCE of the committed ones, and rows that have none."""
    known = {_name(row): row for row in committed}
    problems = []
    for row in rows:
        before = known.get(_name(row))
        if before is None:
            problems.append(f"{_name(row)}: not in {COMMITTED}; run python -m bench kernels")
            continue
        for figure in ("registers", "shared_memory", "instructions_per_pair"):
            if figure in row and row[figure] > before[figure] * TOLERANCE:
                problems.append(f"{_name(row)}: {figure} {row[figure]}, was {before[figure]}")
    return problems


def _name(row: dict[str, Any]) -> str:
    keys = ("target", "dtype", "kernel", "mode", "tile", "num_warps", "body")
    return " ".join(str(row[key]) for key in keys if key in row)
