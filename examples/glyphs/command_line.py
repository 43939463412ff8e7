"""The arguments that every glyph example takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from glyphs.data import ClassSplit
from glyphs.training import Schedule

OUTPUT = Path(__file__).parents[1] / "output"
AnySchedule = TypeVar("AnySchedule", bound=Schedule)


def parse(
    parser: argparse.ArgumentParser,  # with the example's own arguments
    arguments: Sequence[str] | None,  # None: those of the process
    defaults: Schedule,
    fewest_pictures: int,  # of a class in a batch; what the loss needs
    *,
    draws: bool = True,  # whether it leaves a figure
) -> argparse.Namespace:
    """Parse the example's own arguments and the common ones, and check the common ones."""
    add = parser.add_argument
    add("--steps", type=int, help="training steps")
    add("--classes-per-batch", type=int, help="P of P x K")
    add("--pictures-per-class", type=int, help="K of P x K")
    add("--seed", type=int, help="of the network and the batches")
    if draws:
        add("--out", type=Path, default=OUTPUT, help="folder for the figure")
    parser.set_defaults(**vars(defaults))
    parsed = parser.parse_args(arguments)
    if parsed.steps < 1:
        parser.error(f"argument --steps: must be at least 1, got {parsed.steps}")
    if parsed.classes_per_batch < 2:
        parser.error(
            "argument --classes-per-batch: a negative pair takes at least 2, "
            f"got {parsed.classes_per_batch}"
        )
    if not fewest_pictures <= parsed.pictures_per_class <= 12:
        parser.error(
            f"argument --pictures-per-class: the loss takes at least {fewest_pictures} and a class "
            f"has 12, got {parsed.pictures_per_class}"
        )
    if not 0 <= parsed.seed < 2**63:
        parser.error(f"argument --seed: must be in 0 to 2**63 - 1, got {parsed.seed}")
    if draws and parsed.out.exists() and not parsed.out.is_dir():
        parser.error(f"argument --out: {parsed.out} is not a folder")
    return parsed


def schedule(parsed: argparse.Namespace, defaults: AnySchedule, split: ClassSplit) -> AnySchedule:
    """The parsed schedule; ends the program where a batch needs more classes than there are."""
    train_classes = len(split.train.characters)
    if parsed.classes_per_batch > train_classes:
        sys.exit(
            f"--classes-per-batch must be at most {train_classes}, the number of "
            f"training classes, got {parsed.classes_per_batch}"
        )
    return replace(defaults, **{name: getattr(parsed, name) for name in vars(defaults)})
