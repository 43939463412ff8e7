"""What was measured beside what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from recipes.configuration import Recipe


def table(recipe: Recipe, found: Mapping[str, float]) -> Table:
    """Each metric in percent: ours, then the paper's, a dash where the paper does not give it."""
    shown = Table("", "this run", *(f"paper: {each}" for each in recipe.paper), title=recipe.title)
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, value in found.items():
        reported = (each.get(name) for each in recipe.paper.values())
        cells = ("-" if each is None else f"{each:.2f}" for each in (100 * value, *reported))
        shown.add_row(name, *cells)
    return shown
