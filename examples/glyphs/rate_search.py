"""Choose learning rates of class losses on the validation classes, not looking at the test ones."""

from __future__ import annotations

import itertools
from dataclasses import replace

from glyphs.data import ClassSplit
from glyphs.heads import LOSSES
from glyphs.network import EMBEDDING_SIZE, embed
from glyphs.training import Schedule, new_network, train
from glyphs.verification import all_pairs

Rates = tuple[float, float]  # of the network and of the class weights

# The same for every loss.
CANDIDATES: tuple[Rates, ...] = tuple(
    itertools.product((1e-3, 2e-3, 4e-3), (1e-4, 1e-3, 1e-2)),
)


def validation_tar(name: str, schedule: Schedule, split: ClassSplit, far: float) -> float:
    """Train with the loss of that name; TAR at ``far`` over all pairs of validation pictures."""
    network = new_network(schedule.seed)
    criterion = LOSSES[name](len(split.train.characters), EMBEDDING_SIZE)
    title = f"{name} {schedule.learning_rate:g} {schedule.class_learning_rate:g}"
    train(network, split.train, split.validation, schedule, criterion, validations=1, title=title)
    images, labels = split.validation.images_and_labels()
    return all_pairs(embed(network, images), labels).tar_at_far(far)


def try_rates(name: str, schedule: Schedule, split: ClassSplit, far: float) -> dict[Rates, float]:
    """Validation TAR of every candidate, the rest of the schedule being as given."""
    return {
        (rate, class_rate): validation_tar(
            name, replace(schedule, learning_rate=rate, class_learning_rate=class_rate), split, far
        )
        for rate, class_rate in CANDIDATES
    }
