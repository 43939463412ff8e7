"""The arguments that every glyph example takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from glyphs.data import ClassSplit
from glyphs.training import Schedule


def add_arguments(parser: argparse.ArgumentParser, defaults: Schedule, file_name: str) -> None:
    """The arguments that :func:`check_arguments` checks.

    Args:
        parser: gets the arguments.
        defaults: what holds where an argument is not given.
        file_name: of the figure.
    """
    parser.add_argument("--steps", type=int, default=defaults.steps, help="training steps")
    parser.add_argument(
        "--classes-per-batch", type=int, default=defaults.classes_per_batch, help="P of P x K"
    )
    parser.add_argument(
        "--pictures-per-class", type=int, default=defaults.pictures_per_class, help="K of P x K"
    )
    parser.add_argument(
        "--seed", type=int, default=defaults.seed, help="of the network and the batches"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[1] / "output",
        help=f"folder for {file_name}",
    )


def check_arguments(
    parser: argparse.ArgumentParser, parsed: argparse.Namespace, fewest_pictures: int
) -> None:
    """Ends the program with a message where the arguments of :func:`add_arguments` make no sense.

    Args:
        parser: that parsed them.
        parsed: the arguments.
        fewest_pictures: of a class in a batch; what the loss needs.
    """
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
    if parsed.out.exists() and not parsed.out.is_dir():
        parser.error(f"argument --out: {parsed.out} is not a folder")


def check_classes_per_batch(classes_per_batch: int, split: ClassSplit) -> None:
    """Ends the program with a message where a batch would need more classes than there are."""
    train_classes = len(split.train.characters)
    if classes_per_batch > train_classes:
        sys.exit(
            f"--classes-per-batch must be at most {train_classes}, the number of "
            f"training classes, got {classes_per_batch}"
        )
