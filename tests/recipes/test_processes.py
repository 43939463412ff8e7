"""Two processes that share batches train as one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tests.recipes.programs  # noqa: F401  # isort: skip

from recipes.__main__ import main
from recipes.configuration import ConfigurationError
from recipes.engine.checkpoint import NAME
from recipes.engine.processes import Processes
from tests.distributed.processes import run_processes
from tests.recipes.drawn import changes


def train(rank: int, words: list[str]) -> None:
    main(words)


@pytest.mark.parametrize("config", ["cub", "market", "faces_circle"])
def test_two_processes_train_as_one(
    config: str, data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    options = changes(config, "model.head=linear", "loss.softmax_weight=0.5", "data.erase=0.5")
    results, weights = [], []
    for count in (1, 2):
        out = tmp_path / str(count)
        words = [config, f"--data={data_of(config)}", f"--out={out}", *options]
        run_processes(count, train, words)
        results.append(json.loads((out / "results.json").read_text("utf-8")))
        content = torch.load(out / NAME, weights_only=True)
        weights.append(list({**content["network"], **content["objective"]}.items()))
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=1e-3)
    for (name, one), (other, two) in zip(*weights, strict=True):
        assert name == other
        torch.testing.assert_close(two, one, rtol=1e-2, atol=2e-3)


def test_batch_has_to_be_a_multiple_of_the_processes() -> None:
    with pytest.raises(ConfigurationError, match="a multiple of the 3 processes, got 80"):
        Processes(0, 3, torch.device("cpu")).part(80)
    assert Processes(2, 3, torch.device("cpu")).part(81) == slice(54, 81)
