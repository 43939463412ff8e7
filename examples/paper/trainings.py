"""Trainings on letters that Figures 3, 4 and 5 are drawn from, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from glyphs.data import ClassSplit
from glyphs.network import EMBEDDING_SIZE, GlyphNetwork, embed
from glyphs.training import Schedule, evaluate, new_network, train
from torch import Tensor, nn

from circle_kernels import ClassCircleLoss, ClassUnifiedLoss
from circle_kernels.losses import ArcFaceLoss

SCHEDULE = Schedule(steps=80, learning_rate=2e-3, classes_per_batch=128, pictures_per_class=1)


@dataclass(frozen=True)
class Setting:
    """A loss and its numbers."""

    loss: str  # a key of HEADS
    m: float
    gamma: float

    def __str__(self) -> str:
        return f"{self.loss} m={self.m:g} gamma={self.gamma:g}"


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
    """A loss that keeps the mean s_p and s_n of each step's batch."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.means: list[tuple[float, float]] = []  # s_p and s_n of each step

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        s_p, s_n = similarities(self.head, embeddings, labels)
        self.means.append((float(s_p.mean()), float(s_n.mean())))
        return self.head(embeddings, labels)


def trained(
    setting: Setting, split: ClassSplit, schedule: Schedule
) -> tuple[GlyphNetwork, Recording]:
    """A network trained with a loss, and what was recorded."""
    make, rate = HEADS[setting.loss]
    network = new_network(schedule.seed, batch_norm=True)
    criterion = Recording(make(len(split.train.characters), setting))
    own = replace(schedule, class_learning_rate=rate)
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
                "seed": seed,
                **{name: round(found[name], 5) for name in ("recall@1", "map@r")},
            }


def scatter(setting: Setting, split: ClassSplit, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """s_n and s_p of all training pictures after training, (N,) each."""
    network, criterion = trained(setting, split, schedule)
    images, labels = split.train.images_and_labels()
    s_p, s_n = similarities(criterion.head, embed(network, images), labels)
    return s_n, s_p
