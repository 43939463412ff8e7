"""What data sets consist of: pictures with labels, and what is asked of their embeddings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

# A picture is a file, or the bytes of one.
Encoded = Path | bytes


@dataclass(frozen=True)
class Pictures:
    """Pictures and their labels."""

    files: Sequence[Encoded]
    labels: Tensor  # (N,) int64
    landmarks: Tensor | None = None  # (N, 5, 2): eyes, nose and corners of the mouth, x and y

    @classmethod
    def of(cls, records: Sequence[tuple[Path, int]]) -> Pictures:
        """Of pairs of a file and its label."""
        labels = torch.tensor([label for _, label in records], dtype=torch.int64)
        return cls([file for file, _ in records], labels)

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        """The picture in RGB, decoded."""
        file = self.files[index]
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file)) as picture:
            return picture.convert("RGB")


@dataclass(frozen=True)
class Retrieval:
    """Each picture is a query, all others are its gallery."""

    pictures: Pictures


@dataclass(frozen=True)
class Reidentification:
    """Queries in a gallery, where persons are to be found again on other cameras."""

    query: Pictures
    gallery: Pictures
    cameras: tuple[Tensor, Tensor]  # (N,) and (M,) int64


@dataclass(frozen=True)
class Verification:
    """Whether the pictures 2i and 2i + 1 show the same person."""

    name: str
    pictures: Pictures
    same: Tensor  # (P,) bool


@dataclass(frozen=True)
class Templates:
    """Whether two templates, sets of pictures, show the same person."""

    name: str
    pictures: Pictures  # the labels are those of the templates, from 0 on
    media: Tensor  # (N,) int64: frames of one video have one number
    pairs: Tensor  # (P, 2) int64: templates
    same: Tensor  # (P,) bool


Task = Retrieval | Reidentification | Verification | Templates


@dataclass(frozen=True)
class DataSet:
    """What to train on, with labels from 0 to ``classes`` - 1, and what to measure."""

    train: Pictures
    tasks: tuple[Task, ...]

    @property
    def classes(self) -> int:
        """How many labels there are to train on."""
        return int(self.train.labels.max()) + 1


def from_zero(pictures: Pictures) -> Pictures:
    """The same pictures with labels that leave no number out."""
    labels = torch.unique(pictures.labels, return_inverse=True)[1]
    return Pictures(pictures.files, labels, pictures.landmarks)
