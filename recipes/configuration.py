"""What a configuration file says, checked.

Unknown keys, values of another type and combinations that make no sense are errors that name the
key. ``--set section.key=value`` changes one; what is not said has the defaults here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

CONFIGS = Path(__file__).parent / "configs"


class ConfigurationError(ValueError):
    """A configuration that cannot be; the message names the keys."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(_Section):
    """Which pictures, and what is done to them."""

    layout: Literal["cub", "cars", "sop", "market", "msmt17", "faces"]
    height: int = Field(default=224, ge=8)
    width: int = Field(default=224, ge=8)
    augmentation: Literal["crop", "pad", "flip"] = "crop"  # see recipes/data/images.py
    erase: float = Field(default=0.0, ge=0, le=1)  # probability that a rectangle is erased
    evaluated_share: float = Field(default=1.0, gt=0, le=1)  # of the sides, the centre
    normalization: Literal["imagenet", "half"] = "imagenet"
    pairs: list[str] = []  # faces: verification sets
    templates: list[Literal["ijbc"]] = []


class Model(_Section):
    """The network; see recipes/models.py."""

    backbone: str = "small"
    pretrained: bool = False
    embedding: int = Field(default=512, ge=1)
    head: Literal["linear", "linear-norm", "norm"] = "linear"
    freeze_norms: bool = False  # keep the statistics of batch normalisation as they were


class Loss(_Section):
    """The loss; ``circle`` has pair-wise labels, the others have class weights."""

    name: Literal["circle", "class-circle", "am-softmax", "arcface"]
    m: float
    gamma: float = Field(gt=0)
    softmax_weight: float = Field(default=0.0, ge=0)  # of cross-entropy over the classes beside it


class Training(_Section):
    """Batches, steps and rates."""

    batch: int = Field(ge=1)  # of all processes together
    per_class: int = Field(default=0, ge=0)  # K pictures of a class; 0: any pictures
    steps: int = Field(ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0)
    new_learning_rate: float | None = Field(default=None, gt=0)  # of what is not pretrained
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "steps", "cosine"] = "constant"
    milestones: list[float] = []  # shares of the steps after which the rate is a tenth
    warmup: int = Field(default=0, ge=0)  # steps in which the rate grows to what it should be
    seed: int = 0

    @model_validator(mode="after")
    def _whole_classes(self) -> Training:
        if self.per_class and self.batch % self.per_class:
            raise ValueError(
                f"training.batch must be a multiple of training.per_class, got {self.batch} and "
                f"{self.per_class}"
            )
        if self.milestones and self.schedule != "steps":
            raise ValueError(
                f"training.milestones are those of training.schedule='steps', got {self.schedule!r}"
            )
        return self


class Evaluation(_Section):
    """What is measured at the end."""

    batch: int = Field(default=256, ge=1)
    mirrored: bool = False  # add the embedding of the mirrored picture
    recall_at: list[PositiveInt] = [1, 2, 4, 8]
    rank_at: list[PositiveInt] = [1, 5, 10]
    fars: list[Annotated[float, Field(ge=0, le=1)]] = [1e-3, 1e-4, 1e-5]


class Run(_Section):
    """How it is run, which leaves what is computed as it is, but for ``amp`` and ``chunk``."""

    amp: bool = False  # bfloat16
    chunk: int = Field(default=0, ge=0)  # pictures whose activations are kept at a time; 0: all
    workers: int = Field(default=0, ge=0)  # that decode pictures, of each process
    device: str = ""  # "": a GPU if there is one
    checkpoint_every: int = Field(default=500, ge=1)
    evaluate_every: int = Field(default=0, ge=0)  # steps; 0: only at the end
    tensorboard: bool = False


class Recipe(_Section):
    """A whole configuration."""

    title: str
    data: Data
    model: Model = Model()
    loss: Loss
    training: Training
    evaluation: Evaluation = Evaluation()
    run: Run = Run()
    paper: dict[str, dict[str, float]] = {}  # what the paper reports, in percent

    def computed(self) -> dict[str, Any]:
        """What has to be the same for a run to go on: plain values by section."""
        given = self.model_dump(include={"data", "model", "loss", "training", "run"})
        given["run"] = {name: given["run"][name] for name in ("amp", "chunk")}
        return given


def read(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The configuration in a file, or of that name among ``recipes/configs``.

    Args:
        name: a path, or one of :func:`names`.
        changes: ``section.key=value``, the value as in TOML; what is no value there is a string.

    Raises:
        ConfigurationError: no such file, no TOML, an unknown key or a value of the wrong kind.
    """
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.is_file():
        raise ConfigurationError(
            f"there is no configuration {name!r}: give a file, or one of {', '.join(names())}"
        )
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
    for change in changes:
        _apply(content, change)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(
            f"{path}: " + "; ".join(_explained(each) for each in error.errors())
        ) from error


def names() -> list[str]:
    """The configurations that are here."""
    return sorted(each.stem for each in CONFIGS.glob("*.toml"))


def _apply(content: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise ConfigurationError(f"--set takes section.key=value, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    fields = content.setdefault(section, {})
    if not isinstance(fields, dict):
        raise ConfigurationError(f"--set {change}: {section} has no keys")
    fields[name] = value


def _explained(error: Any) -> str:
    """An error of pydantic in one line: the key, what came and what was wanted."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{key} is not a key"
    if error["type"] == "missing":
        return f"{key} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    wanted = message[:1].lower() + message[1:]
    return f"{key}: {wanted}, got {error['input']!r}"
