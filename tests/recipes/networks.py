"""Networks for ``model.backbone="tests.recipes.networks:NAME"``."""

from __future__ import annotations

from torch import nn


def forgetful(pretrained: bool) -> nn.Module:
    """Draws random numbers and keeps statistics."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def without_pooling(pretrained: bool) -> nn.Module:
    return nn.Conv2d(3, 16, 5)
