"""Two processes that share batches train as one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tests.recipes.programs  # noqa: F401  # isort: skip

from recipes.__main__ import main
from recipes.configuration import ConfigurationError
from recipes.engine import training
from recipes.engine.processes import Processes
from tests.distributed.processes import run_processes
from tests.recipes.checkpoints import assert_same_bits, content
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
        left = content(out)
        weights.append(list({**left["network"], **left["objective"]}.items()))
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=1e-3)
    for (name, one), (other, two) in zip(*weights, strict=True):
        assert name == other
        torch.testing.assert_close(two, one, rtol=1e-2, atol=2e-3)


def train_until(rank: int, words: list[str], step: int) -> None:
    """Interrupted, in every process, at the start of a step."""
    set_rates = training.set_rates

    def interrupted(optimizer: Any, settings: Any, at: int) -> float:
        if at == step:
            raise KeyboardInterrupt
        return set_rates(optimizer, settings, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "set_rates", interrupted)
        with pytest.raises(SystemExit):
            main(words)


def test_two_processes_go_on_bit_by_bit(data_of: Callable[[str], Path], tmp_path: Path) -> None:
    network = "model.backbone=tests.recipes.networks:forgetful"
    options = changes("market", network, "training.steps=5", "run.checkpoint_every=2")
    whole, broken = (
        ["market", f"--data={data_of('market')}", f"--out={tmp_path / name}", *options]
        for name in ("whole", "broken")
    )
    run_processes(2, train, whole)
    run_processes(2, train_until, broken, 3)
    assert content(tmp_path / "broken")["step"] == 2
    run_processes(2, train, [*broken, "--resume"])
    assert_same_bits(content(tmp_path / "broken"), content(tmp_path / "whole"))
    # Once more from the end: every process measures with what the first one saved.
    run_processes(2, train, [*broken, "--resume"])
    results = [(tmp_path / name / "results.json").read_text() for name in ("whole", "broken")]
    assert results[0] == results[1]


def test_all_processes_measure_with_the_statistics_of_the_first() -> None:
    run_processes(2, measure_with_buffers)


def measure_with_buffers(rank: int) -> None:
    network = nn.BatchNorm1d(3)
    network(torch.arange(12.0).view(4, 3) * (rank + 1))
    own = network.running_mean.clone()
    Processes(rank, 2, torch.device("cpu")).take_buffers_of_first(network)
    assert torch.equal(network.running_mean, own / (rank + 1))
    assert network.num_batches_tracked == 1


def test_batch_has_to_be_a_multiple_of_the_processes() -> None:
    with pytest.raises(ConfigurationError, match="a multiple of the 3 processes, got 80"):
        Processes(0, 3, torch.device("cpu")).part(80)
    assert Processes(2, 3, torch.device("cpu")).part(81) == slice(54, 81)
