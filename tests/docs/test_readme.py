"""The Python of README.md runs as it stands there, and trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from circle_kernels import CircleLoss
from tests.support.places import ROOT

README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def block(marker: str) -> str:
    """The one block with these words."""
    (found,) = [code for code in BLOCKS if marker in code]
    return found


@pytest.fixture
def training() -> dict[str, Any]:
    """What the snippets take for granted: a network, and batches with several images of a class."""
    torch.manual_seed(0)
    labels = torch.arange(256) % 8
    images = torch.randn(8, 20)[labels] + torch.randn(256, 20)
    return {
        "network": nn.Linear(20, 16),
        "loader": DataLoader(TensorDataset(images, labels), batch_size=32),
    }


def loss_of(training: dict[str, Any]) -> float:
    images, labels = training["loader"].dataset.tensors
    return CircleLoss()(training["network"].to("cpu")(images), labels).item()


def test_first_block_gives_a_loss_and_its_gradient() -> None:
    embeddings = torch.randn(12, 8, requires_grad=True)
    namespace = {"embeddings": embeddings, "labels": torch.arange(12) // 3}
    exec(block("the paper's settings"), namespace)
    assert namespace["loss"] > 0
    assert embeddings.grad.abs().sum() > 0


def test_class_labels_give_a_gradient() -> None:
    embeddings = torch.randn(12, 512, requires_grad=True)
    namespace = {"embeddings": embeddings, "labels": torch.arange(12)}
    exec(block("ClassCircleLoss(").replace("1_000_000", "1_000"), namespace)
    assert embeddings.grad.abs().sum() > 0
    assert namespace["head"].weight.grad.abs().sum() > 0


def test_plain_loop_trains(training: dict[str, Any]) -> None:
    before = loss_of(training)
    for _ in range(5):
        exec(block("for images, labels in loader"), training)
    assert loss_of(training) < 0.8 * before


def test_metrics_are_those_of_the_embeddings() -> None:
    namespace = {"embeddings": torch.eye(4)[[0, 0, 1, 1]], "labels": torch.tensor([0, 0, 1, 1])}
    exec(block("import retrieval_metrics"), namespace)
    assert namespace["found"]["recall@1"] == 1


@pytest.mark.filterwarnings("ignore")
def test_lightning_module_trains(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)  # where it writes its logs
    before = loss_of(training)
    exec(block("LightningModule"), training)
    assert loss_of(training) < 0.8 * before


def test_every_block_is_run_here() -> None:
    here = Path(__file__).read_text("utf-8")
    markers = re.findall(r'exec\(block\("(.*?)"\)', here)
    assert sorted(map(block, markers)) == sorted(BLOCKS)
