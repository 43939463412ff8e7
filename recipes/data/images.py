"""From files to tensors: decoding, augmentation, batches.

What is drawn for a picture follows from the seed, the epoch and its place in the epoch alone, so
that neither the number of workers nor an interruption changes it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.configuration import Data
from recipes.data.alignment import aligned
from recipes.data.pictures import Pictures

# Mean and standard deviation of the channels, which networks were trained with.
_NORMALIZATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_Box = tuple[int, int, int, int]  # left, top, right, bottom
_CROPPED = (0.2, 1.0)  # share of the area
_STRETCHED = (3 / 4, 4 / 3)  # width to height
_TRIES = 10
_PADDING = 10  # pixels
_ERASED = (0.02, 0.4)  # share of the area
_ERASED_RATIO = (0.3, 1 / 0.3)


class Drawn(NamedTuple):
    """A picture of a batch, and where in the training it stands."""

    picture: int
    epoch: int
    place: int


@dataclass(frozen=True)
class TrainingPictures(Dataset[tuple[Tensor, Tensor]]):
    """Augmented pictures and their labels, by :class:`Drawn`.

    ``data.augmentation`` is one of

    * ``"crop"``: a part of random size and shape, resized (Szegedy et al., CVPR 2015), mirrored;
    * ``"pad"``: ten pixels around it and a part of the right size, mirrored;
    * ``"flip"``: mirrored.

    ``data.erase`` sets a rectangle to the mean (Zhong et al., "Random Erasing", AAAI 2020).
    """

    pictures: Pictures
    data: Data
    seed: int

    def __getitem__(self, drawn: Drawn) -> tuple[Tensor, Tensor]:  # (3, H, W) and ()
        # A string is hashed by SHA-512, so that neighbours have nothing in common.
        generator = random.Random(f"{self.seed}/{drawn.epoch}/{drawn.place}")
        picture = _augmented(self.pictures.open(drawn.picture), self.data, generator)
        if generator.random() < 0.5:
            picture = ImageOps.mirror(picture)
        values = _normalized(picture, self.data)
        if generator.random() < self.data.erase:
            _erase(values, self.data, generator)
        return values, self.pictures.labels[drawn.picture]


@dataclass(frozen=True)
class EvaluatedPictures(Dataset[Tensor]):
    """Pictures as they are, by their numbers: aligned where there are landmarks, resized."""

    pictures: Pictures
    data: Data

    def __getitem__(self, index: int) -> Tensor:  # (3, H, W)
        picture, landmarks = self.pictures.open(index), self.pictures.landmarks
        size = (self.data.width, self.data.height)
        if landmarks is not None:
            return _normalized(aligned(picture, landmarks[index], size), self.data)
        if self.data.evaluated_share < 1:
            # What resizing the shorter side, say to 256, and cutting out 224 leaves, in one.
            sides = [side / self.data.evaluated_share for side in size]
            scale = min(picture.width / sides[0], picture.height / sides[1])
            across, down = scale * size[0], scale * size[1]
            left, top = (picture.width - across) / 2, (picture.height - down) / 2
            box = (left, top, left + across, top + down)
            return _normalized(picture.resize(size, Image.Resampling.BILINEAR, box), self.data)
        return _normalized(_resized(picture, self.data), self.data)


def batches_of(
    dataset: Dataset[tuple[Tensor, Tensor]] | Dataset[Tensor],
    batches: Iterable[list[Any]],
    workers: int,
    device: torch.device,
) -> DataLoader:
    """Loads one batch after the other, in ``workers`` processes (0: in this one)."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it draws from that of the training
    )


def _augmented(picture: Image.Image, data: Data, generator: random.Random) -> Image.Image:
    if data.augmentation == "crop":
        size = (data.width, data.height)
        box = _random_box(picture.size, _CROPPED, _STRETCHED, generator)
        return picture.resize(size, Image.Resampling.BILINEAR, box)
    picture = _resized(picture, data)
    if data.augmentation == "pad":
        left, top = (generator.randint(0, 2 * _PADDING) for _ in range(2))
        padded = ImageOps.expand(picture, _PADDING)
        return padded.crop((left, top, left + data.width, top + data.height))
    return picture


def _resized(picture: Image.Image, data: Data) -> Image.Image:
    size = (data.width, data.height)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


def _random_box(
    size: tuple[int, int],
    shares: tuple[float, float],
    ratios: tuple[float, float],
    generator: random.Random,
) -> _Box | None:
    """A part with a random share of the area and ratio of its sides; None where none was found."""
    width, height = size
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*shares)
        ratio = math.exp(generator.uniform(*map(math.log, ratios)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = generator.randint(0, width - across), generator.randint(0, height - down)
            return left, top, left + across, top + down
    return None


def _normalized(picture: Image.Image, data: Data) -> Tensor:
    mean, std = _NORMALIZATION[data.normalization]
    pixels = np.asarray(picture, np.float32) / 255
    values = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def _erase(values: Tensor, data: Data, generator: random.Random) -> None:
    """In place; 0 is the mean."""
    box = _random_box((data.width, data.height), _ERASED, _ERASED_RATIO, generator)
    if box is not None:
        values[:, box[1] : box[3], box[0] : box[2]] = 0
