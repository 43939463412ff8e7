"""``python -m bench``: its commands, and arguments that cannot be."""

from __future__ import annotations

import re

import pytest

from bench import __main__ as cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--sizes", "64"], "a size must be ROWSxDIM such as 1024x128, got '64'"),
        (["loss", "--sizes", "64x0"], "at least 2 rows and 2 dimensions, got '64x0'"),
        (["loss", "--sizes", "64x16,axb"], "got 'axb'"),
        (["loss", "--regimes", "easy"], "regimes must be among random, trained; got 'easy'"),
        (["loss", "--dtypes", "int8"], "dtypes must be among"),
        (["loss", "--variants", "keras"], "variants must be among"),
        (["lossy"], "invalid choice: 'lossy'"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["loss", "--rounds", "0"], "--rounds must be greater than 0, got 0"),
        (["quick", "--rows", "31"], "--rows must be at least 32, got 31"),
        (["report", "no-such-file.json"], "cannot read no-such-file.json"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    assert f"error: {message}" in capsys.readouterr().err


def test_help_lists_every_command_with_what_it_does_and_how_long_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, command in cli.COMMANDS.items():
        assert f"{name} {command.HELP}" in shown
        assert re.search(r" \([^()]*(second|minute|hour)[^()]*\)$", command.HELP), name
