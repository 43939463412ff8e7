"""Trainings on letters that Figures 3, 4 and 5 are drawn from, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from glyphs.data import ClassSplit, GlyphSet
from glyphs.network import EMBEDDING_SIZE, GlyphNetwork, embed
from glyphs.training import Schedule, evaluate, new_network, train
from torch import Tensor, nn

from circle_kernels import (
    CircleFormula,
    ClassCircleLoss,
    ClassUnifiedLoss,
    PairFormula,
    UnifiedFormula,
)
from circle_kernels.losses import ArcFaceLoss
from paper.planes import decision

SCHEDULE = Schedule(steps=200, learning_rate=2e-3, classes_per_batch=128, pictures_per_class=1)


@dataclass(frozen=True)
class Setting:
    """A loss and its numbers."""

    loss: str  # a key of HEADS
    m: float
    gamma: float

    def __str__(self) -> str:
        return f"{self.loss} m={self.m:g} gamma={self.gamma:g}"

    @property
    def formula(self) -> PairFormula | None:
        """That of its pairs; ArcFace has none, since its margin is one of angles."""
        formula = {"circle": CircleFormula, "AM-Softmax": UnifiedFormula}.get(self.loss)
        return formula and formula(m=self.m, gamma=self.gamma)


# Learning rates of class weights are those that glyph_classification.py found.
HEADS: dict[str, tuple[Callable[[int, Setting], nn.Module], float]] = {
    "circle": (
        lambda classes, own: ClassCircleLoss(classes, EMBEDDING_SIZE, m=own.m, gamma=own.gamma),
        1e-2,
    ),
    "AM-Softmax": (
        lambda classes, own: ClassUnifiedLoss(classes, EMBEDDING_SIZE, m=own.m, gamma=own.gamma),
        2e-3,
    ),
    "ArcFace": (
        lambda classes, own: ArcFaceLoss(classes, EMBEDDING_SIZE, margin=own.m, scale=own.gamma),
        2e-3,
    ),
}

# Fig. 3: scales of three losses at the paper's margins, and margins of circle loss.
SCALES = {"circle": (32, 64, 128, 256, 512, 1024), "AM-Softmax": (32, 64, 128, 256, 512, 1024)}
SCALES["ArcFace"] = (32, 64, 128)
MARGINS = {"circle": 0.25, "AM-Softmax": 0.35, "ArcFace": 0.5}
SWEPT_MARGINS = tuple(round(-0.2 + 0.05 * step, 2) for step in range(11))
SWEPT_GAMMA = 256.0


def sweep_settings() -> list[Setting]:
    """Every setting of Fig. 3 once."""
    chosen = [
        Setting(loss, MARGINS[loss], float(gamma))
        for loss, scales in SCALES.items()
        for gamma in scales
    ]
    chosen += [Setting("circle", m, SWEPT_GAMMA) for m in SWEPT_MARGINS]
    return list(dict.fromkeys(chosen))


def similarities(head: nn.Module, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """s_p, the cosine to the own class weight, and s_n, the largest to another; (N,) each."""
    weight = head.weight
    cosines = F.normalize(embeddings.detach()) @ F.normalize(weight.detach()).T
    own = cosines.gather(1, labels[:, None])
    others = cosines.scatter(1, labels[:, None], -torch.inf)
    return own.squeeze(1), others.amax(1)


class Recording(nn.Module):
    """A loss that keeps what happens to s_p and s_n in training.

    ``means`` has both of each step, averaged over the batch. ``crossings`` has s_n and s_p, (P, 2)
    of each step, of pictures inside the decision boundary whose class's last picture was outside.
    """

    def __init__(self, head: nn.Module, formula: PairFormula | None, classes: int) -> None:
        super().__init__()
        self.head = head
        self.formula = formula
        self.outside = torch.ones(classes, dtype=torch.bool)
        self.means: list[tuple[float, float]] = []
        self.crossings: list[Tensor] = []

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        s_p, s_n = similarities(self.head, embeddings, labels)
        self.means.append((float(s_p.mean()), float(s_n.mean())))
        if self.formula is not None:
            outside = decision(self.formula, s_n, s_p) > 0
            self.crossings.append(torch.stack([s_n, s_p], 1)[self.outside[labels] & ~outside])
            self.outside[labels] = outside
        return self.head(embeddings, labels)


def trained(
    setting: Setting, split: ClassSplit, schedule: Schedule
) -> tuple[GlyphNetwork, Recording]:
    """A network trained with a loss, and what was recorded."""
    make, rate = HEADS[setting.loss]
    network = new_network(schedule.seed, batch_norm=True)
    classes = len(split.train.characters)
    criterion = Recording(make(classes, setting), setting.formula, classes)
    own = replace(schedule, class_learning_rate=schedule.class_learning_rate or rate)
    train(network, split, own, criterion, validations=1, title=str(setting))
    return network, criterion


def sweep(
    split: ClassSplit, schedule: Schedule, settings: Sequence[Setting], seeds: int
) -> Iterator[dict[str, Any]]:
    """Train with each setting from each seed; what unseen letters retrieve."""
    for seed in range(seeds):
        for setting in settings:
            network, _ = trained(setting, split, replace(schedule, seed=seed))
            found = evaluate(network, split.test)
            yield {
                **asdict(setting),
                "steps": schedule.steps,
                "seed": seed,
                **{name: round(found[name], 5) for name in ("recall@1", "map@r")},
            }


def converged(network: GlyphNetwork, criterion: Recording, glyphs: GlyphSet) -> Tensor:
    """s_n and s_p of all training pictures after training, undistorted, (N, 2)."""
    images, labels = glyphs.images_and_labels()
    s_p, s_n = similarities(criterion.head, embed(network, images), labels)
    return torch.stack([s_n, s_p], dim=1)
