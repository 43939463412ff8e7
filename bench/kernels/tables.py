"""Tables of what ``python -m bench kernels`` found."""

from __future__ import annotations

from typing import Any

from bench.reporting.results import Results
from bench.reporting.tables import MISSING, Table, number

_BYTES = {"bfloat16": 2, "float32": 4}
_COLUMNS = (
    "kernel",
    "problem",
    "dtype",
    "tile",
    "warps",
    "registers",
    "spills",
    "shared KB",
    "blocks",
    "body",
    "instructions / pair",
    "exp2 / pair",
    "cycles",
    "L2 bytes / cycle",
)


def kernel_tables(results: Results) -> list[Table]:
    """One table per target."""
    depths = results.settings["depths"]
    tables = []
    for target in dict.fromkeys(row["target"] for row in results.rows):
        table = Table(
            name=f"kernels-{target}",
            title=f"Triton kernels compiled for {target}; cycles of the instructions around a "
            "tile's product, and both together over the product's alone",
            columns=[*_COLUMNS, *(f"D={depth}" for depth in depths)],
            keys=4,
        )
        for row in results.rows:
            if row["target"] == target:
                ratios = [cycle_ratio(row, depth) if "body" in row else None for depth in depths]
                table.rows.append([*_cells(row), *map(_number, ratios)])
        tables.append(table)
    return tables


def _number(value: float | None) -> str:
    return MISSING if value is None else number(value)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["kernel"].removesuffix("_kernel"),
        row["mode"],
        row["dtype"],
        row["tile"],
        str(row["num_warps"]),
        str(row["registers"]),
        str(row["spills"]),
        str(round(row["shared_memory"] / 1024)),
        str(row["blocks"]),
        row.get("body", MISSING),
        number(row["instructions_per_pair"]) if "body" in row else MISSING,
        number(row["exponentials_per_pair"]) if "body" in row else MISSING,
        str(row["cycles"]) if "body" in row else MISSING,
        _number(cache_rate(row)) if "body" in row else MISSING,
    ]


def cache_rate(row: dict[str, Any]) -> float | None:
    """Bytes per cycle that a tile's operands ask of the second-level cache at full matrix rate.

    Whatever the depth; None without a product.
    """
    depth, matrix = next(iter(row["matrix_cycles"].items()))
    if not matrix:
        return None
    block_rows, block_columns, _ = map(int, row["tile"].split("x"))
    return (block_rows + block_columns) * int(depth) * _BYTES[row["dtype"]] / matrix


def cycle_ratio(row: dict[str, Any], depth: int) -> float | None:
    """Cycles that a tile implies, without overlap, over those of its product; None without one."""
    matrix = row["matrix_cycles"][str(depth)]
    return (matrix + row["cycles"]) / matrix if matrix else None


def environment(results: Results) -> str:
    """One sentence that says where the numbers come from."""
    return (
        f"Compiled {results.created[:10]} by Triton {results.versions['triton']}, with no GPU: "
        "instructions are counted, nothing is timed."
    )
