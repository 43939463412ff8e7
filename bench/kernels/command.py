"""``python -m bench kernels``: what every Triton kernel costs, read from its machine code.

Compiles for GPUs that need not be there: what would be launched is recorded on a pretended device.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.kernels.budgets import COMMITTED, exceeded_budgets, got_worse
from bench.kernels.compilation import DEPTHS, compile_all
from bench.kernels.tables import environment, kernel_tables
from bench.places import DOCS
from bench.reporting.errors import UserError
from bench.reporting.publish import Presentation
from bench.reporting.results import FOLDER, destination, is_whole, load, save, start_results

HELP = (
    "registers, spills, instructions per pair and cycles per tile of the Triton kernels, without a "
    "GPU (about ten minutes)"
)

PRESENTATION = Presentation(kernel_tables, environment)

_RESULTS = FOLDER / COMMITTED
_DOCUMENT = DOCS / "kernels.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument(
        "--targets",
        type=lambda text: text.split(","),
        help="of sm_80,sm_86,sm_89,sm_90,sm_100,sm_120,gfx942 (default all)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"results file (default bench/results/{_RESULTS.name}, with --targets "
        f"{_RESULTS.stem}-partial.json)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail where a budget is exceeded or a figure is more than 5%% worse "
        "than in the committed results",
    )


def run(arguments: argparse.Namespace) -> None:
    """Compile, print, and write docs/kernels.md, or check against what is committed."""
    targets = arguments.targets
    where = destination(_RESULTS.name, arguments.out, whole=is_whole(arguments, add_arguments))
    rows = compile_all(targets)
    if arguments.check:
        committed = load(_RESULTS)
        problems = [*exceeded_budgets(rows), *got_worse(rows, committed.rows)]
        if problems:
            raise UserError("kernels got worse:\n" + "\n".join(problems))
        print(f"{len(rows)} rows: within their budgets, none worse than in {_RESULTS.name}")
        return
    results = start_results("kernels", "cuda", {"depths": list(DEPTHS), "targets": targets})
    results.rows = rows
    save(results, where.path)
    PRESENTATION.show(results)
    print(f"wrote {where.finish()}")
    if where.replaces is not None:
        PRESENTATION.rewrite(_DOCUMENT, results)
    problems = exceeded_budgets(rows)
    if problems:
        raise UserError("budgets exceeded:\n" + "\n".join(problems))
