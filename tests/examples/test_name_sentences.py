"""The example on names with sentence-transformers."""

from __future__ import annotations

import io

import pytest
import torch

import tests.examples.programs  # noqa: F401  # isort: skip

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

import name_sentences
from names import data
from names.network import embed, new_network
from rich.console import Console
from sentence_transformers import SentenceTransformer


def test_short_run_trains_and_prints_metrics_before_and_after(all_names: data.NameSet) -> None:
    split = data.split_entities(all_names)
    few = data.EntitySplit(
        train=split.train.select(torch.arange(40)),
        validation=split.validation,
        test=split.test.select(torch.arange(20)),
    )
    printed = io.StringIO()
    name_sentences.run(few, steps=20, seed=0, console=Console(file=printed, width=100))
    before, after = (
        float(line.split("│")[2])
        for line in printed.getvalue().splitlines()
        if "untrained" in line or "circle loss" in line
    )
    assert after > before + 0.03


def test_model_embeds_as_the_network_does() -> None:
    model = SentenceTransformer(modules=[name_sentences.Characters(3)], device="cpu")
    names = ["Zulu", "зулу", "a name that is longer than the others"]
    torch.testing.assert_close(
        model.encode(names, batch_size=2, convert_to_tensor=True), embed(new_network(3), names)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: must be at least 1, got 0"),
        (["--seed", "-1"], "--seed: must be in 0 to 2**32 - 1, got -1"),
    ],
    ids=["steps", "seed"],
)
def test_bad_argument_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        name_sentences.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
