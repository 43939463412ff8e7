"""What a training needs to go on, written so that an interruption never leaves half of it.

Batches, augmentation, rates and what a network draws follow from the seed and the step; so the step
and the states of the network, the class weights and the optimizer are all there is to keep.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.configuration import ConfigurationError, Recipe

NAME = "checkpoint.pt"


@dataclass
class State:
    """What changes in a training."""

    network: nn.Module
    objective: nn.Module
    optimizer: torch.optim.Optimizer

    def save(self, folder: Path, step: int, loss: float, recipe: Recipe) -> None:
        """Write a checkpoint after ``step`` steps, the last with ``loss``, in place of another."""
        content = {
            "step": step,
            "loss": loss,
            "settings": recipe.computed(),
            "network": self.network.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        path = folder / NAME
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def load(self, folder: Path, recipe: Recipe) -> tuple[int, float]:
        """Take over the checkpoint of a folder; returns how many steps it has, and the last loss.

        Raises:
            FileNotFoundError: there is none.
            ConfigurationError: it is one of other settings; the message names them.
        """
        path = folder / NAME
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint to resume from: {path}")
        content = torch.load(path, map_location="cpu", weights_only=True)
        differences = _differences(content["settings"], recipe.computed())
        if differences:
            raise ConfigurationError(
                f"{path} is of a run with other settings: {'; '.join(differences)}"
            )
        self.network.load_state_dict(content["network"])
        self.objective.load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        return content["step"], content["loss"]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{key} was {before.get(section, {}).get(key)!r} and is {value!r}"
        for section, values in now.items()
        for key, value in values.items()
        if before.get(section, {}).get(key) != value
    ]
