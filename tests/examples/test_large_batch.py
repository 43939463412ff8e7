"""The large-batch example: both ways agree, one in less memory, and a difference is reported."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
import torch

import tests.examples.programs  # noqa: F401  # isort: skip

import large_batch
from glyphs.data import ClassSplit, GlyphSet
from glyphs.memory import LiveBytes
from glyphs.training import Comparison, Step
from rich.console import Console
from torch import Tensor, nn

SHORT = large_batch.Settings(
    steps=2,
    learning_rate=4e-3,
    classes_per_batch=16,
    pictures_per_class=4,
    parts=4,
    chunk_size=32,
    compared_steps=2,
)


def run(split: ClassSplit) -> tuple[str | None, str]:
    printed = io.StringIO()
    wrong = large_batch.run(SHORT, split, Console(file=printed, width=100))
    return wrong, printed.getvalue()


def test_both_ways_agree_and_chunks_take_less_memory(small_split: ClassSplit) -> None:
    wrong, text = run(small_split)
    assert wrong is None
    assert "Both ways agree bit by bit" in text
    assert "2 steps with 256 letters each" in text
    assert "network, trained" in text
    megabytes = {
        way: [float(found) for found in re.findall(rf"│ +256 │ +{way} │ +([\d,]+) MB", text)]
        for way in ("all activations", "in_chunks")
    }
    assert 0 < 3 * megabytes["in_chunks"][0] < megabytes["all activations"][0]


def test_ways_that_differ_are_reported(
    small_split: ClassSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(network: nn.Module, images: Tensor, chunk_size: int) -> Tensor:
        return network(images * 1.001)

    monkeypatch.setattr(large_batch, "in_chunks", scaled)
    wrong, text = run(small_split)
    assert "The runs differ by" in wrong
    assert "Both ways agree" not in text


def test_a_difference_that_is_no_number_is_no_agreement() -> None:
    broken = Comparison(1.0, 0.0, loss_difference=0.0, gradient_difference=torch.nan)
    assert not large_batch.largest_difference([Step(1.0, 0.0, 0.0, broken)]) <= 0


def test_batch_is_made_of_parts(small_split: ClassSplit) -> None:
    settings = replace(SHORT, classes_per_batch=8, parts=3)
    generator = torch.Generator().manual_seed(0)
    images, labels = large_batch.large_batch(small_split.train, settings, 3, generator)
    assert images.shape == (96, 1, 32, 32)
    assert settings.batch_size == len(labels) == 96
    for part in labels.split(32):
        assert part.unique(return_counts=True)[1].tolist() == [4] * 8


def test_quick_run_is_short(glyphs: GlyphSet, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(large_batch, "render_glyphs", lambda: glyphs)
    monkeypatch.setattr(large_batch, "run", lambda settings, *_: given.append(settings))
    for arguments in ([], ["--quick", "--steps=1"], ["--parts=3", "--chunk-size=7", "--steps=5"]):
        with pytest.raises(SystemExit) as ended:
            large_batch.main(arguments)
        assert not ended.value.code
    assert given[0].batch_size == 16384
    assert given[1].batch_size < 4096
    assert given[1].steps == 1
    assert (given[2].parts, given[2].chunk_size, given[2].steps) == (3, 7, 5)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--parts=0", "--parts: must be at least 1, got 0"),
        ("--chunk-size=-1", "--chunk-size: must be at least 1, got -1"),
        ("--pictures-per-class=1", "the loss takes at least 2"),
    ],
)
def test_bad_argument_is_named(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        large_batch.main([argument])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_live_bytes_are_those_of_tensors_that_are_alive() -> None:
    given = torch.ones(1000)
    with LiveBytes() as live:
        first = given + 1
        second = first.view(10, 100)[1:]
        del first
        third = second * 2
        del second, third
        fourth = given.mul(3)
    assert live.peak == 4 * (1000 + 900)
    assert fourth.shape == (1000,)
