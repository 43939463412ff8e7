"""Tables, for the terminal and for Markdown, and the numbers in them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

from bench.reporting.results import Results
from bench.reporting.spread import Spread

MISSING = "-"


@dataclass
class Table:
    """A table of strings.

    Args:
        name: what Markdown markers call it.
        title: what it shows and in which units.
        columns: the headings; the first ``keys`` columns say what a row is.
        rows: one list of cells per row.
        notes: sentences that belong below it.
    """

    name: str
    title: str
    columns: list[str]
    keys: int
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# Wide enough for the full table where output goes to a file.
_WIDTH_WITHOUT_TERMINAL = 190


def print_table(table: Table) -> None:
    """Print for people; a line between rows whose keys, but for the last, differ."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print(markdown_table(table))
        return
    rich = RichTable(title=table.title, title_justify="left", caption_justify="left")
    for index, column in enumerate(table.columns):
        rich.add_column(column, justify="left" if index < table.keys else "right")
    for row, following in zip(table.rows, [*table.rows[1:], None], strict=False):
        group = slice(table.keys - 1)
        rich.add_row(*row, end_section=following is not None and following[group] != row[group])
    rich.caption = "\n".join(table.notes)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
    console.print(rich)


def markdown_table(table: Table) -> str:
    """The table with its title and notes as GitHub-flavoured Markdown."""
    lines = [table.title + ".", "", _markdown_row(table.columns)]
    ruler = ["---" if index < table.keys else "---:" for index in range(len(table.columns))]
    lines.append(_markdown_row(ruler))
    lines.extend(_markdown_row(row) for row in table.rows)
    for note in table.notes:
        lines.extend(["", note])
    return "\n".join(lines)


def environment(results: Results) -> str:
    """One sentence that says where the numbers come from."""
    machine, versions = results.machine, results.versions
    hardware = (
        machine["gpu"]
        if results.device == "cuda" and machine["gpu"]
        else f"{machine['cpu']} ({machine['cpu_capability']}, {machine['cores']} cores, "
        f"{results.torch_threads} threads, {machine['memory_gb']:.0f} GB)"
    )
    software = ", ".join(
        f"{name} {version}" for name, version in versions.items() if version is not None
    )
    commit = results.git.get("commit")
    source = f"commit {commit[:10]}" if commit else "no commit recorded"
    if results.git.get("dirty"):
        source += " with uncommitted changes"
    return f"Measured {results.created[:10]} on {hardware}; {software}; {source}."


def number(value: float) -> str:
    """Three significant digits, never in exponent notation, whole from 100 on."""
    if value == 0:
        return "0"
    # Of the rounded value, so that 9.996 becomes 10.0 and not 10.00.
    exponent = math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return f"{value:.{max(2 - exponent, 0)}f}"


def spread_text(spread: Spread | None) -> str:
    """``median (20th-80th percentile)``."""
    if spread is None:
        return MISSING
    return f"{number(spread.median)} ({number(spread.low)}-{number(spread.high)})"


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
