"""The Python of README.md runs as it stands there, block after block, as somebody pastes it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.support.places import ROOT

TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def pasted() -> list[dict[str, Any]]:
    """What is known after each block."""
    pytest.importorskip("pytorch_metric_learning")
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    after = []
    for code in BLOCKS:
        exec(code, namespace)
        after.append(dict(namespace))
    return after


def test_first_block_runs_alone_and_trains() -> None:
    first: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(BLOCKS[0], first)
    untrained = first["loss_function"](torch.nn.Linear(64, 16)(first["images"]), first["labels"])
    assert first["loss"] < 0.5 * untrained


def test_drop_in_gives_what_the_library_does(pasted: list[dict[str, Any]]) -> None:
    from pytorch_metric_learning.losses import CircleLoss

    known = pasted[1]
    embeddings, labels = known["embeddings"], known["labels"]
    expected = CircleLoss(m=0.4, gamma=80)(embeddings, labels, known["miner"](embeddings, labels))
    torch.testing.assert_close(known["loss"], expected)


def test_the_trained_network_retrieves(pasted: list[dict[str, Any]]) -> None:
    assert pasted[2]["found"]["recall@1"] > 0.9


def test_class_labels_give_gradients_and_predictions(pasted: list[dict[str, Any]]) -> None:
    known = pasted[3]
    assert known["head"].weight.grad.abs().sum() > 0
    assert known["classes"].shape == (256, 5)


def test_chunks_give_the_gradient_of_the_whole(pasted: list[dict[str, Any]]) -> None:
    known = pasted[4]
    whole = known["network"](known["images"])
    torch.testing.assert_close(known["embeddings"], whole)


def test_other_losses_are_finite(pasted: list[dict[str, Any]]) -> None:
    assert torch.isfinite(pasted[5]["loss"])


def test_every_block_is_looked_at() -> None:
    assert len(BLOCKS) == 6


def test_it_is_short() -> None:
    assert len(TEXT.split()) < 1200


def test_how_much_faster_is_what_was_measured() -> None:
    """The first sentence, from the results that the chart shows."""
    pytest.importorskip("rich")
    from bench.quick.tables import read_sizes
    from bench.reporting.results import load
    from bench.reporting.spread import ratio

    lowest, highest = map(int, re.findall(r"(\d+) to (\d+) times faster", TEXT)[0])
    sizes = read_sizes(load(ROOT / "bench" / "results" / "quick-cpu.json"))
    found = [
        ratio(*(size.times[name]["forward_backward"] for name in ("pml", "core")))
        for size in sizes
        if size.times["pml"]["status"] == "ok"
    ]
    medians = [each.median for each in found if each is not None]
    assert len(medians) == 3
    assert lowest <= min(medians)
    assert highest <= max(medians) < highest + 1
