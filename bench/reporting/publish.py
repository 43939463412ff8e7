"""What a results file is shown as: on the terminal, in Markdown files, as a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.reporting import markers
from bench.reporting.errors import UserError
from bench.reporting.results import Results
from bench.reporting.tables import Table, environment, markdown_table, print_table


@dataclass(frozen=True)
class Presentation:
    """How the results of one command are shown.

    Args:
        tables: makes all of its tables, those to print first.
        environment: one sentence that says where the numbers come from.
        picture: writes it as PNG; None for a command without one.
        shown: how many of the tables are printed.
    """

    tables: Callable[[Results], list[Table]]
    environment: Callable[[Results], str] = environment
    picture: Callable[[Results, Path], None] | None = None
    shown: int = 1

    def show(self, results: Results) -> None:
        """Print the first tables, but those without rows, and where the numbers come from."""
        for table in self.tables(results)[: self.shown]:
            if table.rows:
                print_table(table)
        print(self.environment(results))

    def blocks(self, results: Results) -> dict[str, str]:
        """Markdown by marker name: every table, and where the numbers come from."""
        content = {table.name: markdown_table(table) for table in self.tables(results)}
        content[f"{results.command}-{results.device}-environment"] = self.environment(results)
        return content

    def rewrite(self, path: Path, results: Results) -> None:
        """Put the blocks between their markers in a Markdown file.

        Raises:
            UserError: the file cannot be read, or has none of the markers.
        """
        written = markers.rewrite(path, self.blocks(results))
        print(f"wrote {', '.join(written)} in {path}")

    def draw(self, results: Results, path: Path) -> None:
        """Write the picture.

        Raises:
            UserError: there is none, or no matplotlib.
        """
        if self.picture is None:
            raise UserError(f"no picture is known for the command {results.command!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.picture(results, path)
        except ImportError as error:
            raise UserError(
                f"the picture needs matplotlib (pip install matplotlib): {error}"
            ) from error
        print(f"wrote {path}")
