"""``python -m bench report``: tables and pictures from a results file, nothing measured anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.classes import tables as class_tables
from bench.gpu import tables as gpu_tables
from bench.kernels import tables as kernel_tables
from bench.launches import tables as launch_tables
from bench.loss import tables as loss_tables
from bench.reporting import markers
from bench.reporting.errors import UserError
from bench.reporting.results import Results, load
from bench.reporting.tables import Table, environment, markdown_table, print_table

HELP = "print a results file again, rewrite the tables in Markdown files, draw the picture"

# Per command that writes results: its tables, the first of which is the one to print, where its
# numbers come from, and its picture if it has one.
TABLES = {
    "loss": loss_tables.loss_tables,
    "class": class_tables.class_tables,
    "kernels": kernel_tables.kernel_tables,
    "gpu": gpu_tables.gpu_tables,
    "launches": launch_tables.launch_tables,
}
ENVIRONMENTS = {
    "loss": environment,
    "class": environment,
    "kernels": kernel_tables.environment,
    "gpu": environment,
    "launches": launch_tables.environment,
}
COMMANDS_WITH_PICTURE = ("loss",)


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
    show(results)
    for path in arguments.write:
        written = markers.rewrite(path, blocks(results))
        print(f"wrote {', '.join(written)} in {path}")
    if arguments.plot:
        draw(results, arguments.plot)
        print(f"wrote {arguments.plot}")


def tables(results: Results) -> list[Table]:
    """All tables of a results file.

    Raises:
        UserError: the file comes from a command without tables.
    """
    if results.command not in TABLES:
        raise UserError(f"no tables are known for the command {results.command!r}")
    return TABLES[results.command](results)


def blocks(results: Results) -> dict[str, str]:
    """Markdown by marker name: every table, and the sentence on where the numbers come from."""
    content = {table.name: markdown_table(table) for table in tables(results)}
    content[f"{results.command}-{results.device}-environment"] = _environment(results)
    return content


def show(results: Results) -> None:
    """Print the first table and where the numbers come from."""
    print_table(tables(results)[0])
    print(_environment(results))


def _environment(results: Results) -> str:
    return ENVIRONMENTS[results.command](results)


def draw(results: Results, path: Path) -> None:
    """Write the picture of a results file as PNG.

    Raises:
        UserError: the file comes from a command without a picture.
    """
    if results.command not in COMMANDS_WITH_PICTURE:
        raise UserError(f"no picture is known for the command {results.command!r}")
    try:
        from bench.loss.plot import plot_loss
    except ImportError as error:
        raise UserError(
            f"the picture needs matplotlib (pip install matplotlib): {error}"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_loss(results, path)
