"""Configurations are checked, and errors name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

import tests.recipes.programs  # noqa: F401  # isort: skip

from recipes.__main__ import main
from recipes.configuration import ConfigurationError, read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loss.gama=80", "loss.gama is not a key"),
        ("run.nothing=1", "run.nothing is not a key"),
        ("runs.amp=true", "runs is not a key"),
        ("loss.gamma='80'", "loss.gamma: input should be a valid number, got '80'"),
        ("loss.gamma=-1", "loss.gamma: input should be greater than 0, got -1"),
        ("loss.gamma=inf", "loss.gamma: input should be a finite number, got inf"),
        ("loss.name=triplet", "loss.name: input should be 'circle', .* got 'triplet'"),
        ("training.batch=80.5", "training.batch: .*integer.*, got 80.5"),
        ("training.batch=true", "training.batch: .*integer.*, got True"),
        ("run.amp=1", "run.amp: .*boolean, got 1"),
        ("data.pairs='lfw'", "data.pairs: .*list, got 'lfw'"),
        ("evaluation.recall_at=[1, 'two']", r"evaluation.recall_at.1: .*integer, got 'two'"),
        ("evaluation.recall_at=[1, 0]", r"evaluation.recall_at.1: .*greater than 0, got 0"),
        ("evaluation.rank_at=[-5]", r"evaluation.rank_at.0: .*greater than 0, got -5"),
        ("evaluation.fars=[1e-3, 2.0]", r"evaluation.fars.1: .*less than or equal to 1, got 2.0"),
        ("training.batch=81", "training.batch must be a multiple of training.per_class, got 81"),
        ("training.schedule=cosine", "training.milestones are those of training.schedule='steps'"),
        ("gamma=80", "--set takes section.key=value, got 'gamma=80'"),
        ("loss.gamma", "--set takes section.key=value, got 'loss.gamma'"),
        ("title.x=1", "title has no keys"),
    ],
)
def test_bad_value_names_its_key(change: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read("cub", [change])


def test_changes_are_applied_in_order_and_words_need_no_quotes() -> None:
    recipe = read("cub", ["loss.gamma=7", "loss.gamma=8", "model.backbone=timm:resnet18"])
    assert recipe.loss.gamma == 8
    assert recipe.model.backbone == "timm:resnet18"
    assert recipe.loss.m == 0.4


def test_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "mine"\n[data]\nlayout = "cub"\n[loss]\nname = "circle"\n', "utf-8")
    with pytest.raises(ConfigurationError) as error:
        read(str(path))
    for key in ("loss.m", "loss.gamma", "training"):
        assert f"{key} is missing" in str(error.value)


def test_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("title = \n", "utf-8")
    with pytest.raises(ConfigurationError, match=r"mine\.toml is no TOML: Invalid value"):
        read(str(path))


def test_unknown_configuration_lists_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"no configuration 'cup': .*cub, faces_am"):
        read("cup")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cub", "--data=DIR", "--set", "loss.gama=1"], "loss.gama is not a key"),
        (["cup", "--data=DIR"], "no configuration 'cup'"),
        (["cub", "--data=DIR"], "CUB-200-2011 is missing"),
    ],
)
def test_error_of_the_user_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    words = [each.replace("DIR", str(tmp_path)) for each in words]
    with pytest.raises(SystemExit) as error:
        main([*words, f"--out={tmp_path / 'out'}"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        # Table 5: P = 16 classes of K = 5 pictures.
        ("cub", {"m": 0.4, "gamma": 80, "batch": 80, "per_class": 5}),
        ("cars", {"m": 0.4, "gamma": 80, "batch": 80, "per_class": 5}),
        ("sop", {"m": 0.4, "gamma": 80, "batch": 80, "per_class": 5}),
        ("market", {"m": 0.25, "gamma": 128}),
        ("msmt17", {"m": 0.25, "gamma": 128}),
        ("faces_circle", {"m": 0.25, "gamma": 256, "steps": 182_000}),
        ("faces_am_softmax", {"m": 0.35, "gamma": 64, "steps": 182_000}),
        ("faces_arcface", {"m": 0.5, "gamma": 64, "steps": 182_000}),
    ],
)
def test_settings_are_those_of_the_paper(config: str, values: dict[str, float]) -> None:
    recipe = read(config)
    given = recipe.loss.model_dump() | recipe.training.model_dump()
    assert {name: given[name] for name in values} == values
