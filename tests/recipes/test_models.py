"""Backbones by name, and what is said where one is not there."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.recipes.programs  # noqa: F401  # isort: skip

from recipes.configuration import ConfigurationError, Model
from recipes.models import Embedder, SmallResNet, make_backbone


class Pooled(nn.Module):
    """Features of five numbers, and a classifier behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.features = nn.Linear(3, 5)
        self.fc = nn.Linear(5, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(self.norm(images).mean((2, 3))))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """timm and torchvision as far as they are used; returns the calls."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        calls.append((f"timm:{name}", options))
        network = Pooled()
        network.fc = nn.Identity()  # num_classes=0
        return network

    def get_model(name: str, **options: Any) -> nn.Module:
        calls.append((f"torchvision:{name}", options))
        return Pooled()

    def stand_in(name: str, **content: Any) -> None:
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # what find_spec gives of a loaded module
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    stand_in("timm", create_model=create_model, list_models=lambda pretrained: ["net"])
    stand_in("torchvision")
    stand_in("torchvision.models", get_model=get_model, list_models=lambda module: ["net"])
    return calls


@pytest.mark.parametrize(
    ("name", "called", "options"),
    [
        ("net", "timm:net", {"pretrained": True, "num_classes": 0}),
        ("timm:net.tv_in1k", "timm:net.tv_in1k", {"pretrained": True, "num_classes": 0}),
        ("torchvision:net", "torchvision:net", {"weights": "DEFAULT"}),
    ],
)
def test_backbone_of_a_library_has_no_classifier(
    name: str,
    called: str,
    options: dict[str, Any],
    libraries: list[tuple[str, dict[str, Any]]],
) -> None:
    backbone, features = make_backbone(name, pretrained=True)
    assert libraries == [(called, options)]
    assert features == 5
    assert backbone(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert backbone.training


@pytest.mark.parametrize("name", ["timm:nothing", "torchvision:nothing", "json:nothing"])
def test_unknown_network_is_an_error(name: str, libraries: list[Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"a network that there is, got '{name}'"):
        make_backbone(name, pretrained=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "'resnet50' takes timm or torchvision: pip install timm"),
        ("timm:resnet50", "takes timm: pip install timm"),
        ("torchvision:resnet50", "takes torchvision: pip install torchvision"),
        ("no_such_package.models:net", "takes no_such_package.models: pip install no_such_package"),
    ],
)
def test_missing_library_says_what_to_install(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=message):
        make_backbone(name, pretrained=True)


def test_network_without_features_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"shape \(N, F\), and .* makes \(1, 16, 220, 220"):
        make_backbone("tests.recipes.networks:without_pooling", pretrained=False)


def test_small_network_has_no_weights_to_load() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.pretrained must be false"):
        make_backbone("small", pretrained=True)


def test_small_network_sees_each_picture_alone() -> None:
    torch.manual_seed(0)
    network, images = SmallResNet().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    whole = network(images)
    assert whole.shape == (4, 128)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("head", "embedding", "kinds"),
    [
        ("linear", 64, [nn.Linear]),
        ("linear-norm", 64, [nn.Linear, nn.BatchNorm1d]),
        ("norm", 128, [nn.BatchNorm1d]),
        ("norm", 64, [nn.Linear, nn.BatchNorm1d]),
    ],
)
def test_head_makes_embeddings_of_the_size_asked_for(
    head: str, embedding: int, kinds: list[type]
) -> None:
    network = Embedder(Model(backbone="small", head=head, embedding=embedding))
    assert [type(each) for each in network.head] == kinds
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, embedding)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_statistics_stay_as_they_were(frozen: bool, libraries: list[Any]) -> None:
    network = Embedder(Model(backbone="net", head="linear-norm", freeze_norms=frozen)).train()
    network(torch.randn(4, 3, 8, 8))
    assert (network.backbone.norm.num_batches_tracked.item() == 0) is frozen
    assert network.head[1].num_batches_tracked.item() == 1  # the head's own is trained
    assert not network.eval().backbone.norm.training
