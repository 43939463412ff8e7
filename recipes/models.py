"""Networks by name: those of timm and torchvision where they are installed, yours, ours."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from recipes.configuration import ConfigurationError, Model

_LIBRARIES = ("timm", "torchvision")
# What torchvision's networks call their classifier.
_CLASSIFIERS = ("fc", "classifier", "head", "heads")
_WIDTHS = (32, 64, 128)
_GROUPS = 8


class Embedder(nn.Module):
    """A backbone, and what makes (N, D) embeddings of its (N, F) features.

    The head is ``"linear"``; ``"linear-norm"``, with batch normalisation behind it, as usual for
    faces; or ``"norm"``, batch normalisation alone, as usual for persons: D is F then, or the head
    is linear first all the same.
    """

    def __init__(self, settings: Model) -> None:
        super().__init__()
        self.backbone, features = make_backbone(settings.backbone, settings.pretrained)
        self.freeze_norms = settings.freeze_norms
        parts: list[nn.Module] = []
        if settings.head != "norm" or features != settings.embedding:
            parts.append(nn.Linear(features, settings.embedding))
        if settings.head != "linear":
            parts.append(nn.BatchNorm1d(settings.embedding))
        self.head = nn.Sequential(*parts)

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) to (N, D)
        return self.head(self.backbone(images))

    def train(self, mode: bool = True) -> Embedder:
        """With frozen statistics the backbone's batch normalisation stays in evaluation mode."""
        super().train(mode)
        if mode and self.freeze_norms:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def make_backbone(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    """A network from (N, 3, H, W) to (N, F), and F.

    Args:
        name: ``"small"``, ours; ``"timm:NAME"`` or ``"torchvision:NAME"``; ``NAME`` alone is timm's
            where that is installed, else torchvision's. ``"PACKAGE.MODULE:FUNCTION"`` is called as
            ``FUNCTION(pretrained=...)`` and has to return such a network.
        pretrained: with weights of ImageNet, which the library may download.

    Raises:
        ModuleNotFoundError: a library is missing; the message says what to install.
        ConfigurationError: there is no such network.
    """
    if name == "small":
        if pretrained:
            raise ConfigurationError("model.pretrained must be false for model.backbone='small'")
        return SmallResNet(), _WIDTHS[-1]
    library, colon, network = name.rpartition(":")
    if not colon:
        library = next(filter(importlib.util.find_spec, _LIBRARIES), "")
    try:
        module = importlib.import_module(library) if library else None
    except ModuleNotFoundError as error:
        if error.name != library.partition(".")[0]:
            raise
        module = None
    if module is None:
        raise ModuleNotFoundError(
            f"model.backbone={name!r} takes {library or ' or '.join(_LIBRARIES)}: pip install "
            f"{library.partition('.')[0] or _LIBRARIES[0]}, or use model.backbone='small'",
            name=library or _LIBRARIES[0],
        )
    return _made(module, network, name, pretrained)


def _made(module: ModuleType, network: str, name: str, pretrained: bool) -> tuple[nn.Module, int]:
    if module.__name__ == "timm":
        _check_known(name, network in module.list_models(pretrained=False) or "." in network)
        backbone: Any = module.create_model(network, pretrained=pretrained, num_classes=0)
    elif module.__name__ == "torchvision":
        models = importlib.import_module("torchvision.models")
        _check_known(name, network in models.list_models(module=models))
        options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
        if network in ("googlenet", "inception_v3") and not pretrained:
            options["aux_logits"] = False  # weights come without the auxiliary classifiers anyway
        backbone = models.get_model(network, **options)
        for classifier in filter(lambda each: hasattr(backbone, each), _CLASSIFIERS):
            setattr(backbone, classifier, nn.Identity())
    else:
        _check_known(name, callable(getattr(module, network, None)))
        backbone = getattr(module, network)(pretrained=pretrained)
    return backbone, _features(backbone, name)


def _check_known(name: str, known: bool) -> None:
    if not known:
        raise ConfigurationError(f"model.backbone must be a network that there is, got {name!r}")


def _features(backbone: nn.Module, name: str) -> int:
    """F, by trying."""
    was_training = backbone.training
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, 224, 224))
    finally:
        backbone.train(was_training)
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise ConfigurationError(
            f"model.backbone must make features of shape (N, F), and {name!r} makes "
            f"{tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__}"
        )
    return features.shape[1]


class SmallResNet(nn.Module):
    """A residual network of three stages for small pictures and quick trials, F = 128.

    Group normalisation: what it computes of a picture does not depend on the batch, the chunk or
    the process that the picture is in.
    """

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, _WIDTHS[0], 3, stride=2, padding=1, bias=False)]
        for before, after in zip((_WIDTHS[0], *_WIDTHS), _WIDTHS, strict=False):
            stages.append(_Block(before, after, stride=1 if before == after else 2))
        self.stages = nn.Sequential(*stages, nn.GroupNorm(_GROUPS, _WIDTHS[-1]), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images).mean((2, 3))


class _Block(nn.Module):
    """Two convolutions, each after normalisation (He et al., "Identity Mappings", ECCV 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.GroupNorm(_GROUPS, before),
            nn.ReLU(),
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return self.shortcut(values) + self.convolutions(values)
