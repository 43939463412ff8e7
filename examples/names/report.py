"""The table that the examples on names print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from glyphs.report import table
from rich.table import Table

from names.data import FEWEST_NAMES, NameSet

METRICS = {"recall@1": "Recall@1", "r_precision": "R-precision", "map@r": "MAP@R"}

Runs = Sequence[Mapping[str, float]]  # of each seed its metrics; one where seeds change nothing


def metrics_table(names: NameSet, rows: Mapping[str, Runs]) -> Table:
    """Each way's metrics: mean and standard deviation over the seeds."""
    title = f"{len(names)} entities never seen in training, {FEWEST_NAMES} names of each"
    cells = ((way, *(_over_seeds(runs, key) for key in METRICS)) for way, runs in rows.items())
    return table(title, "", *METRICS.values(), rows=cells)


def _over_seeds(runs: Runs, key: str) -> str:
    values = [run[key] for run in runs]
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"
