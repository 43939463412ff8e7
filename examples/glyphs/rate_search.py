"""Choose the class weights' learning rate; the test classes are not looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from glyphs.data import ClassSplit
from glyphs.network import EMBEDDING_SIZE, embed
from glyphs.training import Schedule, new_network, train
from glyphs.verification import all_pairs

Loss = Callable[[int, int], nn.Module]
CANDIDATES = (1e-4, 5e-4, 2e-3, 1e-2, 5e-2)  # the same for every loss


def validation_tar(
    name: str, loss: Loss, schedule: Schedule, split: ClassSplit, far: float
) -> float:
    """Train with the loss of that name; TAR at ``far`` over all pairs of validation pictures."""
    network = new_network(schedule.seed, batch_norm=True)
    criterion = loss(len(split.train.characters), EMBEDDING_SIZE)
    title = f"{name}, {schedule.class_learning_rate:g}"
    train(network, split.train, split.validation, schedule, criterion, validations=1, title=title)
    images, labels = split.validation.images_and_labels()
    return all_pairs(embed(network, images), labels).tar_at_far(far)


def try_rates(
    name: str, loss: Loss, schedule: Schedule, split: ClassSplit, far: float
) -> dict[float, float]:
    """Validation TAR by the class weights' learning rate, the rest of the schedule as given."""
    return {
        rate: validation_tar(name, loss, replace(schedule, class_learning_rate=rate), split, far)
        for rate in CANDIDATES
    }
