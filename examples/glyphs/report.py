"""The tables that the examples print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from rich.table import Table
from torch import Tensor

from glyphs.data import GlyphSet
from glyphs.evaluation import AllPairs
from glyphs.training import Step

# Of retrieval_metrics, and what tables call them.
METRICS = {"recall@1": "Recall@1", "r_precision": "R-precision", "map@r": "MAP@R"}
VALIDATION = "Validation classes (of the training half, not trained on)"


def unseen(glyphs: GlyphSet) -> str:
    """Title of a table on the test classes."""
    classes, faces = glyphs.pictures.shape[:2]
    return f"{classes} letters never seen in training, {classes * faces:,} pictures"


def table(
    title: str, *columns: str, rows: Iterable[Iterable[str]] = (), names: bool = True
) -> Table:
    """Numbers in the columns, but in the first one names, if it has any."""
    result = Table(title=title)
    for index, column in enumerate(columns):
        named = names and index == 0
        result.add_column(column, justify="left" if named else "right", no_wrap=not named)
    for row in rows:
        result.add_row(*row)
    return result


def rate(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def rates(metrics: Mapping[str, float]) -> list[str]:
    """What tables show of :data:`METRICS`."""
    return [rate(metrics[name]) for name in METRICS]


def retrieval_table(title: str, metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """Each way to embed the pictures, and what it retrieves."""
    rows = ((name, *rates(found)) for name, found in metrics.items())
    return table(title, "embedding", *METRICS.values(), rows=rows)


def short(far: float) -> str:
    """As 1e-3, not 1e-03."""
    return f"{far:.0e}".replace("e-0", "e-")


def time_table(steps: Sequence[Step], name: str, compared_name: str | None = None) -> Table:
    """Mean time of each loss, and its share of a step that uses it and not the other."""
    rest = 1000 * fmean(step.rest_seconds for step in steps)
    result = table(
        f"Mean time of a loss, forward and backward, over {len(steps)} steps",
        *("loss", "loss", "rest of step", "share of step"),
    )

    def add_row(label: str, seconds: Iterable[float]) -> None:
        loss = 1000 * fmean(seconds)
        result.add_row(label, f"{loss:.2f} ms", f"{rest:.2f} ms", f"{loss / (loss + rest):.1%}")

    add_row(f"{name} (drove the training)", (step.seconds for step in steps))
    if compared_name is not None:
        add_row(f"{compared_name} (same embeddings)", (step.compared.seconds for step in steps))
    return result


def agreement_table(steps: Sequence[Step], name: str, compared_name: str, rows: int = 8) -> Table:
    """Both losses and their largest differences over consecutive ranges that cover every step."""
    result = table(
        "Both losses at every step: means and largest relative differences",
        *("steps", name, compared_name, "loss differs by", "gradient differs by"),
        names=False,
    )

    def add_row(label: str, part: Sequence[Step]) -> None:
        compared = [step.compared for step in part]
        result.add_row(
            label,
            f"{fmean(step.loss for step in part):.4f}",
            f"{fmean(other.loss for other in compared):.4f}",
            f"{max(other.loss_difference for other in compared):.1e}",
            f"{max(other.gradient_difference for other in compared):.1e}",
        )

    length = math.ceil(len(steps) / rows)
    for first in range(0, len(steps), length):
        part = steps[first : first + length]
        add_row(f"{first + 1} to {first + len(part)}", part)
    result.add_section()
    add_row("all", steps)
    return result


class VerificationRow(NamedTuple):
    """What the verification table says of one way to embed the pictures."""

    name: str
    accuracies: Tensor  # (folds,)
    pairs: AllPairs
    recall_at_1: float
    steps: Sequence[Step] = ()  # none: nothing was trained


def verification_table(title: str, rows: Iterable[VerificationRow], fars: Sequence[float]) -> Table:
    """One row per way to embed the pictures; "n/a" where the pairs cannot resolve a rate."""
    tar_columns = (f"TAR\n@{short(far)}" for far in fars)
    result = table(title, "", "ms/step\n(loss)", "accuracy %\n± std", *tar_columns, "Recall\n@1")
    for name, accuracies, pairs, recall_at_1, steps in rows:
        result.add_row(
            name,
            _step_and_loss(steps),
            f"{100 * accuracies.mean():.1f} ± {100 * accuracies.std():.1f}",
            *map(rate, pairs.tars(fars)),
            rate(recall_at_1),
        )
    return result


def _step_and_loss(steps: Sequence[Step]) -> str:
    """Median milliseconds of a whole step and, within it, of the loss."""
    if not steps:
        return ""
    whole = 1000 * median(step.seconds + step.rest_seconds for step in steps)
    loss = 1000 * median(step.seconds for step in steps)
    return f"{whole:.0f} ({loss:.1f})"


def resolution_note(pairs: AllPairs, fars: Sequence[float]) -> str:
    """On how many pairs the rates of the verification table rest."""
    positives, negatives = len(pairs.positives), len(pairs.negatives)
    allowed = ", ".join(f"{pairs.false_accepts(far):,} at {short(far)}" for far in fars)
    return (
        f"{positives:,} positive and {negatives:,} negative pairs. False accepts allowed: "
        f"{allowed}; no FAR below {short(1 / negatives)} can be told from 0."
    )
