"""What is minimised, and how: losses by name, optimizers, rates."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circle_kernels import CircleLoss, ClassCircleLoss, ClassUnifiedLoss
from circle_kernels.losses import ArcFaceLoss
from recipes.configuration import Loss, Training
from recipes.models import Embedder

_MOMENTUM = 0.9
_DECAY = 0.1  # at each milestone


class Objective(nn.Module):
    """The loss of a batch, with the class weights where it has any.

    A batch of several processes has one pair-wise loss (``group="world"``); losses with class
    weights are means over rows, and parts of a batch are equal in size, so that the mean of the
    processes' losses is that of the batch.

    Raises:
        ValueError: a margin or scale that the loss refuses.
    """

    def __init__(self, settings: Loss, classes: int, embedding: int, processes: int) -> None:
        super().__init__()
        if settings.name == "circle":
            self.main: nn.Module = CircleLoss(
                settings.m, settings.gamma, group="world" if processes > 1 else None
            )
        else:
            losses: dict[str, Any] = {
                "class-circle": ClassCircleLoss,
                "am-softmax": ClassUnifiedLoss,
                "arcface": ArcFaceLoss,
            }
            self.main = losses[settings.name](classes, embedding, settings.m, settings.gamma)
        self.softmax_weight = settings.softmax_weight
        has_softmax = settings.softmax_weight > 0
        self.softmax = nn.Linear(embedding, classes, bias=False) if has_softmax else None

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:  # (N, D) and (N,) to ()
        loss = self.main(embeddings, labels)
        if self.softmax is not None:
            logits = self.softmax(embeddings)
            loss = loss + self.softmax_weight * F.cross_entropy(logits, labels)
        return loss


def make_optimizer(
    network: Embedder, objective: Objective, training: Training
) -> torch.optim.Optimizer:
    """The optimizer; groups remember their full rate as ``"full_rate"``."""
    new = training.new_learning_rate or training.learning_rate
    groups = [
        {"params": list(network.backbone.parameters()), "full_rate": training.learning_rate},
        {"params": [*network.head.parameters(), *objective.parameters()], "full_rate": new},
    ]
    options: dict[str, Any] = {
        "lr": training.learning_rate,
        "weight_decay": training.weight_decay,
    }
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=_MOMENTUM, **options)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[training.optimizer](groups, **options)


def set_rates(optimizer: torch.optim.Optimizer, training: Training, step: int) -> float:
    """Give each group its rate for a step, from 0 on; returns the share of the full rates."""
    share = rate_share(training, step)
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * share
    return share


def rate_share(training: Training, step: int) -> float:
    """The share of the full rate in a step, a function of the step alone."""
    done = step / training.steps
    share = 1.0
    if training.schedule == "steps":
        share = _DECAY ** sum(done >= milestone for milestone in training.milestones)
    elif training.schedule == "cosine":
        share = (1 + math.cos(math.pi * done)) / 2
    if step < training.warmup:
        share *= (step + 1) / training.warmup
    return share
