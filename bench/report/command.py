"""``python -m bench report``: tables and pictures from a results file, nothing measured anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.classes import command as classes
from bench.distributed import command as distributed
from bench.evaluate import command as evaluate
from bench.gpu import command as gpu
from bench.kernels import command as kernels
from bench.launches import command as launches
from bench.loss import command as loss
from bench.losses import command as losses
from bench.quick import command as quick
from bench.reporting.errors import UserError
from bench.reporting.publish import Presentation
from bench.reporting.results import Results, load

HELP = (
    "print a results file again, rewrite the tables in Markdown files, draw the picture (seconds)"
)

# By the command that wrote the results: this one shows what all of them write.
PRESENTATIONS = {
    "quick": quick.PRESENTATION,
    "loss": loss.PRESENTATION,
    "evaluate": evaluate.PRESENTATION,
    "losses": losses.PRESENTATION,
    "class": classes.PRESENTATION,
    "distributed": distributed.PRESENTATION,
    "distributed-model": distributed.MODEL_PRESENTATION,
    "kernels": kernels.PRESENTATION,
    "steps": kernels.STEPS_PRESENTATION,
    "gpu": gpu.PRESENTATION,
    "launches": launches.PRESENTATION,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("results", type=Path, help="a JSON file that a benchmark wrote")
    parser.add_argument(
        "--write",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE.md",
        help="rewrite what stands between <!-- bench:NAME --> and <!-- /bench:NAME -->; "
        "NAME is loss-cpu, loss-cpu-times, loss-cpu-memory, loss-cpu-environment and so on",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the picture")


def run(arguments: argparse.Namespace) -> None:
    """Print, and rewrite and draw where asked to."""
    results = load(arguments.results)
    presentation = presentation_of(results)
    presentation.show(results)
    for path in arguments.write:
        presentation.rewrite(path, results)
    if arguments.plot:
        presentation.draw(results, arguments.plot)


def presentation_of(results: Results) -> Presentation:
    """How a results file is shown.

    Raises:
        UserError: the file comes from a command without tables.
    """
    if results.command not in PRESENTATIONS:
        raise UserError(f"no tables are known for the command {results.command!r}")
    return PRESENTATIONS[results.command]
