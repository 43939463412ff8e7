"""The tables that the examples print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from glyphs.metrics import RetrievalMetrics
from glyphs.training import Settings, Step
from glyphs.verification import Roc, Verification


def metrics_table(title: str, rows: Sequence[tuple[str, RetrievalMetrics]]) -> Table:
    """One row per way to embed the pictures."""
    table = Table(title=title)
    table.add_column("embedding")
    for name in ("Recall@1", "R-precision", "MAP@R"):
        table.add_column(name, justify="right")
    for name, metrics in rows:
        table.add_row(
            name,
            f"{metrics.recall_at_1:.3f}",
            f"{metrics.r_precision:.3f}",
            f"{metrics.map_at_r:.3f}",
        )
    return table


def mean_milliseconds(seconds: Sequence[float]) -> float:
    return 1000 * sum(seconds) / len(seconds)


def time_table(steps: Sequence[Step], name: str, compared_name: str | None = None) -> Table:
    """Mean time of each loss, and its share of a step that uses it and not the other."""
    rest = mean_milliseconds([step.rest_seconds for step in steps])
    table = Table(title=f"Mean time of a loss, forward and backward, over {len(steps)} steps")
    table.add_column("loss")
    for column in ("loss", "rest of step", "share of step"):
        table.add_column(column, justify="right")

    def add_row(label: str, seconds: Sequence[float]) -> None:
        loss = mean_milliseconds(seconds)
        table.add_row(label, f"{loss:.2f} ms", f"{rest:.2f} ms", f"{loss / (loss + rest):.1%}")

    add_row(f"{name} (drove the training)", [step.seconds for step in steps])
    if compared_name is not None:
        compared_seconds = [step.compared_seconds or 0.0 for step in steps]
        add_row(f"{compared_name} (same embeddings)", compared_seconds)
    return table


def agreement_table(steps: Sequence[Step], name: str, compared_name: str, rows: int = 8) -> Table:
    """Both losses and their largest differences over consecutive ranges that cover every step."""
    table = Table(title="Both losses at every step: means and largest relative differences")
    table.add_column("steps", justify="right")
    for column in (name, compared_name, "loss differs by", "gradient differs by"):
        table.add_column(column, justify="right")
    length = -(-len(steps) // rows)

    def add_row(label: str, part: Sequence[Step]) -> None:
        table.add_row(
            label,
            f"{sum(step.value for step in part) / len(part):.4f}",
            f"{sum(step.compared_value or 0.0 for step in part) / len(part):.4f}",
            f"{max(step.value_difference or 0.0 for step in part):.1e}",
            f"{max(step.gradient_difference or 0.0 for step in part):.1e}",
        )

    for first in range(0, len(steps), length):
        part = steps[first : first + length]
        add_row(f"{first + 1} to {first + len(part)}", part)
    table.add_section()
    add_row("all", steps)
    return table


def search_table(results: Sequence[tuple[Settings, RetrievalMetrics]]) -> Table:
    """One row per setting tried, in the order tried."""
    table = Table(title="Validation classes (of the training half, not trained on)")
    columns = ("m", "gamma", "steps", "learning rate", "Recall@1", "R-precision", "MAP@R")
    for column in columns:
        table.add_column(column, justify="right")
    for settings, metrics in results:
        table.add_row(
            f"{settings.m:g}",
            f"{settings.gamma:g}",
            str(settings.steps),
            f"{settings.learning_rate:g}",
            f"{metrics.recall_at_1:.3f}",
            f"{metrics.r_precision:.3f}",
            f"{metrics.map_at_r:.3f}",
        )
    return table


@dataclass(frozen=True)
class VerificationRow:
    """What the verification table says of one way to embed the pictures."""

    name: str
    verification: Verification
    retrieval: RetrievalMetrics
    steps: Sequence[Step] = ()  # none: nothing was trained


def verification_table(title: str, rows: Sequence[VerificationRow], fars: Sequence[float]) -> Table:
    """One row per way to embed the pictures; "n/a" where the pairs cannot resolve a rate."""
    table = Table(title=title)
    table.add_column("")
    tars = (f"TAR\n@{_short(far)}" for far in fars)
    for column in ("ms/step\n(loss)", "accuracy %\n± std", *tars, "Recall\n@1"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        accuracies = 100 * row.verification.accuracies
        table.add_row(
            row.name,
            _step_and_loss(row.steps),
            f"{accuracies.mean():.1f} ± {accuracies.std(ddof=1):.1f}",
            *(_rate(row.verification.roc.tar_at_far(far)) for far in fars),
            f"{row.retrieval.recall_at_1:.3f}",
        )
    return table


def _step_and_loss(steps: Sequence[Step]) -> str:
    """Median milliseconds of a whole step and, within it, of the loss."""
    if not steps:
        return ""
    whole = 1000 * median(step.seconds + step.rest_seconds for step in steps)
    loss = 1000 * median(step.seconds for step in steps)
    return f"{whole:.0f} ({loss:.1f})"


def _rate(rate: float) -> str:
    return "n/a" if math.isnan(rate) else f"{rate:.3f}"


def _short(far: float) -> str:
    """As 1e-3, not 1e-03."""
    return f"{far:.0e}".replace("e-0", "e-")


def resolution_note(roc: Roc, fars: Sequence[float]) -> str:
    """On how many pairs the rates of the verification table rest."""
    allowed = ", ".join(f"{roc.allowed_false_accepts(far):,} at {_short(far)}" for far in fars)
    return (
        f"{len(roc.positives):,} positive and {len(roc.negatives):,} negative pairs. False accepts "
        f"allowed: {allowed}; no FAR below {_short(1 / len(roc.negatives))} can be told from 0."
    )


def rates_table(results: Mapping[str, Mapping[float, float]], far: float) -> Table:
    """One row per loss and learning rate of its class weights, in the order tried."""
    table = Table(title="Validation classes (of the training half, not trained on)")
    table.add_column("loss")
    for column in ("class weights' learning rate", f"TAR@{_short(far)}"):
        table.add_column(column, justify="right")
    for name, tars in results.items():
        for rate, tar in tars.items():
            table.add_row(name, f"{rate:g}", _rate(tar))
    return table
