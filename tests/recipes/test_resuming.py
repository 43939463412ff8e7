"""An interrupted and resumed training is the one that was not interrupted, bit by bit."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.recipes.programs  # noqa: F401  # isort: skip

from recipes.__main__ import INTERRUPTED, main
from recipes.engine import checkpoint, training
from recipes.engine.checkpoint import NAME
from tests.recipes.checkpoints import assert_same_bits, content
from tests.recipes.drawn import changes
from tests.support.apart import Ended, answers

STEPS, EVERY = 9, 2
KINDS = ("cub", "market", "faces_circle")  # pair-wise labels, class weights with Adam and with SGD


def arguments(config: str, data: Path, out: Path, *more: str) -> list[str]:
    options = changes(
        config,
        f"training.steps={STEPS}",
        f"run.checkpoint_every={EVERY}",
        "model.backbone=tests.recipes.networks:forgetful",
        "data.erase=0.5",
        "data.templates=[]",
        "training.schedule=cosine",
        "training.milestones=[]",
    )
    return [config, f"--data={data}", f"--out={out}", *options, *more]


def train_and_die(send: Callable[[Any], None], words: list[str], step: int, writing: bool) -> None:
    """Killed at the start of a step, or halfway through writing the checkpoint after it."""
    set_rates, save = training.set_rates, torch.save

    def killed_at_step(optimizer: Any, settings: Any, at: int) -> float:
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return set_rates(optimizer, settings, at)

    def killed_while_writing(values: Any, file: Any) -> None:
        save(values, file)
        if values["step"] > step:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    if writing:
        checkpoint.torch.save = killed_while_writing
    else:
        training.set_rates = killed_at_step
    main(words)
    send("came to its end")


@pytest.mark.parametrize("writing", [False, True], ids=["computing", "writing"])
@pytest.mark.parametrize("config", KINDS)
def test_killed_training_goes_on_bit_by_bit(
    config: str, writing: bool, data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    data, whole, broken = data_of(config), tmp_path / "whole", tmp_path / "broken"
    main(arguments(config, data, whole))
    # Any step behind the first checkpoint; random, but the same in every run.
    step = random.Random(f"{config}/{writing}").randrange(EVERY, STEPS - 1)
    words = arguments(config, data, broken)
    assert list(answers(train_and_die, words, step, writing)) == [Ended("SIGKILL")]
    done = content(broken)["step"]
    assert done == step // EVERY * EVERY
    main(arguments(config, data, broken, "--resume"))
    assert content(broken)["step"] == STEPS
    assert_same_bits(content(broken), content(whole))
    results = [(folder / "results.json").read_text("utf-8") for folder in (whole, broken)]
    assert results[0] == results[1]


def test_interrupted_training_says_how_to_go_on(
    data_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, whole, broken = data_of("cub"), tmp_path / "whole", tmp_path / "broken"
    main(arguments("cub", data, whole))
    with monkeypatch.context() as patched:

        def interrupted(*given: Any) -> float:
            if given[2] == 5:
                raise KeyboardInterrupt
            return set_rates(*given)

        set_rates = training.set_rates
        patched.setattr(training, "set_rates", interrupted)
        with pytest.raises(SystemExit) as ended:
            main(arguments("cub", data, broken))
    assert ended.value.code == INTERRUPTED
    assert f"--resume (checkpoint in {broken})" in capsys.readouterr().err
    assert content(broken)["step"] == 4
    main(arguments("cub", data, broken, "--resume"))
    assert_same_bits(content(broken), content(whole))


def test_finished_training_is_evaluated_again(
    data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    data = data_of("cub")
    main(arguments("cub", data, tmp_path))
    before = (tmp_path / "results.json").read_text("utf-8")
    (tmp_path / "results.json").unlink()
    main(arguments("cub", data, tmp_path, "--resume"))
    assert (tmp_path / "results.json").read_text("utf-8") == before


def test_checkpoint_is_neither_overwritten_nor_resumed_with_other_settings(
    data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    words = arguments("cub", data_of("cub"), tmp_path)
    main(words)
    with pytest.raises(SystemExit, match=r"is there already: go on with --resume"):
        main(words)
    changed = ["--set", "loss.gamma=70", "--set", "training.seed=1"]
    with pytest.raises(SystemExit) as error:
        main([*words, "--resume", *changed])
    assert "loss.gamma was 80.0 and is 70.0; training.seed was 0 and is 1" in str(error.value)
    main([*words, "--resume", "--set", "run.checkpoint_every=5", "--set", "evaluation.batch=3"])


def test_resuming_without_a_checkpoint_is_an_error(
    data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="there is no checkpoint to resume from"):
        main(arguments("cub", data_of("cub"), tmp_path, "--resume"))


def test_checkpoint_with_code_is_not_loaded(data_of: Callable[[str], Path], tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"settings": Hostile()}, tmp_path / NAME)
    with pytest.raises(Exception, match="mkdir"):
        main(arguments("cub", data_of("cub"), tmp_path, "--resume"))
    assert not (tmp_path / "executed").exists()
