"""Train the network with one loss and, on the same embeddings, compare it with another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from circle_kernels.evaluation import retrieval_metrics
from glyphs.batches import pk_batch
from glyphs.data import ClassSplit, GlyphSet
from glyphs.network import GlyphNetwork, embed


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a run is, on which batches, and how fast it learns."""

    steps: int
    learning_rate: float  # the first; of the network
    class_learning_rate: float | None = None  # of the loss's parameters; None: the network's
    classes_per_batch: int = 64
    pictures_per_class: int = 4
    seed: int = 0


@dataclass(frozen=True)
class LossResult:
    """A loss, its gradient with respect to the embeddings, and how long both took."""

    value: float
    gradient: Tensor  # (N, D)
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Another loss on the embeddings of a step, beside the one that drove it."""

    loss: float
    seconds: float
    loss_difference: float  # relative
    gradient_difference: float  # relative, in the Euclidean norm


@dataclass(frozen=True)
class Step:
    """One training step."""

    loss: float
    seconds: float  # of the loss, forward and backward to the embeddings
    rest_seconds: float  # of the rest: batch, network, optimizer
    compared: Comparison | None = None


@dataclass
class History:
    """What happened in a run."""

    steps: list[Step] = field(default_factory=list)
    # (steps done, metrics on the validation classes)
    validations: list[tuple[int, dict[str, float]]] = field(default_factory=list)


def new_network(seed: int, batch_norm: bool = False) -> GlyphNetwork:
    """An untrained network, always the same one for the same seed."""
    torch.manual_seed(seed)
    return GlyphNetwork(batch_norm)


def evaluate(network: nn.Module, glyphs: GlyphSet) -> dict[str, float]:
    """Retrieval metrics of the network's embeddings of all pictures, undistorted."""
    images, labels = glyphs.images_and_labels()
    return retrieval_metrics(embed(network, images), labels)


def timed_loss(criterion: nn.Module, embeddings: Tensor, labels: Tensor) -> LossResult:
    """Loss and gradient of (N, D) embeddings, cut off from the network, and the time they take.

    The gradients of the criterion's own parameters, if it has any, are added to their ``grad``.
    """
    leaf = embeddings.detach().requires_grad_()
    start = time.perf_counter()
    value = criterion(leaf, labels)
    value.backward()
    seconds = time.perf_counter() - start
    return LossResult(value.item(), leaf.grad, seconds)


def compare(result: LossResult, other: LossResult) -> Comparison:
    """How far another loss lies from the one that drives the training."""
    tiny = torch.finfo(torch.float32).tiny  # a loss of 0 has no relative difference
    gradient_difference = (result.gradient - other.gradient).norm()
    return Comparison(
        other.value,
        other.seconds,
        loss_difference=abs(result.value - other.value) / max(abs(result.value), tiny),
        gradient_difference=float(gradient_difference / result.gradient.norm().clamp_min(tiny)),
    )


def optimizer_of(
    parameters: Any,  # as optimizers take them
    schedule: Schedule,
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.CosineAnnealingLR]:
    """Adam, and what lets its rate fall to 0 along a cosine."""
    optimizer = torch.optim.Adam(parameters, lr=schedule.learning_rate)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)


def train(
    network: nn.Module,
    split: ClassSplit,
    schedule: Schedule,
    criterion: nn.Module,  # (embeddings, labels) to a scalar; its parameters are trained as well
    *,
    compared: nn.Module | None = None,  # evaluated on each step's embeddings, without any effect
    validations: int = 10,  # evenly spaced, after the one before the first step
    title: str = "training",
) -> History:
    """Train ``network`` in place with ``criterion``: Adam, its rate falling to 0 along a cosine."""
    generator = torch.Generator().manual_seed(schedule.seed)
    groups: list[dict[str, Any]] = [{"params": network.parameters()}]
    if class_weights := list(criterion.parameters()):
        rate = schedule.class_learning_rate or schedule.learning_rate
        groups.append({"params": class_weights, "lr": rate})
    optimizer, falling_rate = optimizer_of(groups, schedule)
    interval = max(schedule.steps // validations, 1)
    history = History()
    history.validations.append((0, evaluate(network, split.validation)))
    network.train()
    progress = tqdm(range(1, schedule.steps + 1), desc=title, unit="step")
    for done in progress:
        start = time.perf_counter()
        images, labels = pk_batch(
            split.train, schedule.classes_per_batch, schedule.pictures_per_class, generator
        )
        embeddings = network(images)
        optimizer.zero_grad()
        result = timed_loss(criterion, embeddings, labels)
        embeddings.backward(result.gradient)
        optimizer.step()
        falling_rate.step()
        rest_seconds = time.perf_counter() - start - result.seconds
        comparison = compared and compare(result, timed_loss(compared, embeddings, labels))
        history.steps.append(Step(result.value, result.seconds, rest_seconds, comparison))
        if done % interval == 0 or done == schedule.steps:
            metrics = evaluate(network, split.validation)
            history.validations.append((done, metrics))
            progress.set_postfix(loss=f"{result.value:.2f}", val_map=f"{metrics['map@r']:.3f}")
    return history
