"""What the kernels were built to hold on a GPU, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.tasks import LARGE, MAIN, SMALL
from bench.reporting.loss_tables import BASELINES, Entry, Key, LossData, read_loss
from bench.reporting.results import Results
from bench.reporting.spread import Spread, ratio
from bench.reporting.tables import MISSING, number, spread_text

OURS = "triton"


@dataclass(frozen=True)
class Figures:
    """The rows of a results file by case (N, D, regime, dtype), and the figures that have bounds.

    Each figure is None where it was not measured.
    """

    loss: LossData
    graphs: dict[Key, dict[str, dict[str, Any]]]

    @property
    def is_measured(self) -> bool:
        """Whether there is any."""
        return bool(self.loss.timed or self.loss.gauged or self.graphs)

    def entry(self, case: Key) -> Entry | None:
        """Our times on a case."""
        return next((e for e in self.loss.timed.get(case, []) if e.variant == OURS), None)

    def forward_ratio(self, case: Key) -> Spread | None:
        """Our forward pass over the bare product."""
        entry = self.entry(case)
        return None if entry is None else entry.forward_ratio

    def whole_ratio(self, case: Key) -> Spread | None:
        """Our forward and backward pass over the bare product."""
        entry = self.entry(case)
        return None if entry is None else entry.whole_ratio

    def over_compile(self, case: Key) -> Spread | None:
        """A step of torch.compile over ours."""
        return self._speedup(case, "compile")

    def over_eager(self, case: Key) -> Spread | None:
        """A step of eager over ours."""
        return self._speedup(case, "eager")

    def captured_ratio(self, case: Key) -> Spread | None:
        """Our captured step over that of eager."""
        rows = self.graphs.get(case, {})
        ours, eager = (rows.get(name, {}).get("forward_backward", []) for name in (OURS, "eager"))
        return ratio(ours, eager)

    def peak_beyond_gradient(self, case: Key) -> Spread | None:
        """Our peak memory above inputs and gradient, in MB; every step has the same."""
        rows, dim, _, dtype = case
        peak = self.loss.peak_mb(rows, dim, dtype, OURS)
        if peak is None:
            return None
        gradient = rows * dim * getattr(torch, dtype).itemsize / 1e6
        return Spread(*[max(peak - gradient, 0.0)] * 3)

    def _speedup(self, case: Key, over: str) -> Spread | None:
        entry = self.entry(case)
        return None if entry is None else entry.speedups[BASELINES.index(over)]


@dataclass(frozen=True)
class Bound:
    """What a figure is held to.

    Args:
        name: of the figure, in words.
        case: N, D, regime, dtype.
        figure: finds it.
        most, least: the limit; neither where the figure is only reported.
    """

    name: str
    case: Key
    figure: Callable[[Figures, Key], Spread | None]
    most: float | None = None
    least: float | None = None

    def cells(self, figures: Figures) -> list[str]:
        """A row of a table: figure, case, bound, measured, whether it is held."""
        rows, dim, regime, dtype = self.case
        found = self.figure(figures, self.case)
        case = f"N={rows} D={dim} {dtype} {regime}"
        return [self.name, case, self._limit(), spread_text(found), self._verdict(found)]

    def _limit(self) -> str:
        if self.most is not None:
            return f"at most {number(self.most)}"
        return MISSING if self.least is None else f"at least {number(self.least)}"

    def _verdict(self, found: Spread | None) -> str:
        if found is None:
            return "not measured"
        if self.most is not None:
            return "held" if found.median <= self.most else "**not held**"
        if self.least is not None:
            return "held" if found.median >= self.least else "**not held**"
        return MISSING


def bounds() -> list[Bound]:
    """All of them, in the order of the table."""
    found = []
    for regime in ("random", "trained"):
        main = (*MAIN, regime, "bfloat16")
        found += [
            Bound("forward / product", main, Figures.forward_ratio, most=1.0),
            Bound("forward + backward / product", main, Figures.whole_ratio, most=2.6),
            Bound("speed-up over torch.compile", main, Figures.over_compile, least=3.0),
            Bound("speed-up over eager", main, Figures.over_eager, least=10.0),
        ]
    for dtype in ("bfloat16", "float32"):
        small = (*SMALL, "random", dtype)
        found.append(
            Bound("captured step / captured eager", small, Figures.captured_ratio, most=1 / 3)
        )
    large = (*LARGE, "random", "bfloat16")
    found.append(Bound("peak MB above inputs and gradient", large, Figures.peak_beyond_gradient))
    return found


def read_figures(results: Results) -> Figures:
    """Group a results file."""
    graphs: dict[Key, dict[str, dict[str, Any]]] = {}
    for row in results.rows:
        if row["kind"] == "graph":
            key = (row["rows"], row["dim"], row["regime"], row["dtype"])
            graphs.setdefault(key, {})[row["variant"]] = row
    return Figures(read_loss(results), graphs)
