"""``python -m bench kernels``: what every Triton kernel costs, read from its machine code.

Compiles for GPUs that need not be there: what would be launched is recorded on a pretended device.
From the same counts a model tells how long whole steps would take.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from bench.kernels.budgets import COMMITTED, exceeded_budgets, got_worse, slow_steps
from bench.kernels.compilation import DEPTHS, compile_all
from bench.kernels.model import Assumptions
from bench.kernels.steps import COMMAND, step_environment, step_rows, step_settings, step_tables
from bench.kernels.tables import environment, kernel_tables
from bench.places import DOCS
from bench.reporting.errors import UserError
from bench.reporting.publish import Presentation
from bench.reporting.results import (
    FOLDER,
    Results,
    destination,
    is_whole,
    load,
    save,
    start_results,
)

HELP = (
    "registers, spills, instructions per pair and cycles per tile of the Triton kernels, and the "
    "modelled time of whole steps, without a GPU (about ten minutes; --model: one)"
)

PRESENTATION = Presentation(kernel_tables, environment)
STEPS_PRESENTATION = Presentation(step_tables, step_environment, shown=3)

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
    parser.add_argument(
        "--model",
        action="store_true",
        help="only the modelled time of steps; with what is assumed as it is by default, written "
        f"to bench/results/{COMMAND}.json and docs/kernels.md",
    )
    model = parser.add_argument_group("what the model assumes (for an H100)")
    for assumed in fields(Assumptions):
        model.add_argument(
            f"--{assumed.name.replace('_', '-')}",
            type=float,
            default=assumed.default,
            help=f"{assumed.metadata['meaning']} (default {assumed.default:g})",
        )


def run(arguments: argparse.Namespace) -> None:
    """Compile, print, and write docs/kernels.md, or check against what is committed."""
    if arguments.model:
        _show_steps(arguments, model_steps(_assumptions(arguments)))
        return
    targets = arguments.targets
    where = destination(_RESULTS.name, arguments.out, whole=is_whole(arguments, add_arguments))
    rows = compile_all(targets)
    if arguments.check:
        committed = load(_RESULTS)
        problems = [*exceeded_budgets(rows), *got_worse(rows, committed.rows)]
        if targets is None:
            problems += slow_steps(model_steps(Assumptions()))
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
    if targets is None:
        steps = model_steps(_assumptions(arguments))
        _show_steps(arguments, steps)
        problems += slow_steps(steps)
    if problems:
        raise UserError("budgets exceeded:\n" + "\n".join(problems))


def model_steps(assumptions: Assumptions) -> Results:
    """The modelled times of the steps in ``planned.STEPS``.

    Raises:
        UserError: no Triton, or a kernel that the model does not know.
    """
    from bench.kernels.planned import DTYPE, STEPS, TARGET, planned_step

    steps = {key: planned_step(key) for key in STEPS}
    results = start_results(COMMAND, "cuda", step_settings(steps, assumptions, TARGET, DTYPE))
    results.rows = [row for key, step in steps.items() for row in step_rows(key, step, assumptions)]
    return results


def _assumptions(arguments: argparse.Namespace) -> Assumptions:
    return Assumptions(**{each.name: getattr(arguments, each.name) for each in fields(Assumptions)})


def _show_steps(arguments: argparse.Namespace, results: Results) -> None:
    """Print the modelled steps; where they are under the usual assumptions, write them down."""
    usual = _assumptions(arguments) == Assumptions()
    out = arguments.out if arguments.model else None
    where = destination(f"{COMMAND}.json", out, whole=usual)
    save(results, where.path)
    STEPS_PRESENTATION.show(results)
    print(f"wrote {where.finish()}")
    if where.replaces is not None:
        STEPS_PRESENTATION.rewrite(_DOCUMENT, results)
