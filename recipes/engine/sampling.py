"""Which pictures are in which batch: a function of the seed and the step, so nothing is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recipes.configuration import ConfigurationError, Training
from recipes.data.images import Drawn


def drawn_batches(
    labels: Tensor,  # (N,)
    training: Training,
    first_step: int,
    part: slice,
) -> Iterator[list[Drawn]]:
    """The part of each batch, from a step to the last.

    Raises:
        ConfigurationError: the pictures are too few for a batch.
    """
    per_epoch = batches_per_epoch(labels, training)
    epoch, begun = divmod(first_step, per_epoch)
    left = training.steps - first_step
    while left > 0:
        batches = _epoch(labels, training, epoch)[begun:][:left]
        for number, indices in enumerate(batches.tolist(), begun):
            places = enumerate(indices, number * training.batch)
            whole = [Drawn(picture, epoch, place) for place, picture in places]
            yield whole[part]
        left -= len(batches)
        epoch, begun = epoch + 1, 0


def batches_per_epoch(labels: Tensor, training: Training) -> int:
    """How many batches have every class once (with ``per_class``) or every picture; at least one.

    What is too little for another batch waits for the next epoch.
    """
    if training.per_class:
        available, wanted = len(labels.unique()), training.batch // training.per_class
    else:
        available, wanted = len(labels), training.batch
    if wanted > available:
        raise ConfigurationError(
            f"training.batch={training.batch} with training.per_class={training.per_class} takes "
            f"{wanted} {'classes' if training.per_class else 'pictures'}, and there are {available}"
        )
    return available // wanted


def _epoch(labels: Tensor, training: Training, epoch: int) -> Tensor:  # (batches, batch)
    seed = random.Random(f"{training.seed}/{epoch}/order").getrandbits(63)
    generator = torch.Generator().manual_seed(seed)
    count = batches_per_epoch(labels, training)
    if not training.per_class:
        order = torch.randperm(len(labels), generator=generator)
        return order[: count * training.batch].view(count, training.batch)
    members = labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist())
    classes = torch.randperm(len(members), generator=generator)
    classes = classes[: count * (training.batch // training.per_class)]
    return torch.cat(
        [_of_class(members[each], training.per_class, generator) for each in classes.tolist()]
    ).view(count, training.batch)


def _of_class(members: Tensor, count: int, generator: torch.Generator) -> Tensor:  # (count,)
    """Different pictures while there are any, then the same again."""
    order = torch.randperm(len(members), generator=generator)
    return members[order[torch.arange(count) % len(order)]]


def step_seed(training: Training, step: int, rank: int) -> int:
    """For what a network draws in a step, such as dropout."""
    return random.Random(f"{training.seed}/{step}/{rank}/network").getrandbits(63)


def evaluated_batches(rows: Sequence[int], size: int) -> list[list[int]]:
    """Runs of at most ``size``."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
