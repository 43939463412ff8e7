"""Random training batches: P classes with K pictures each, distorted and with noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphs.data import GlyphSet, to_images

MAX_ROTATION = math.radians(12)
MAX_SHEAR = 0.15
MAX_RESIZE = 0.15
MAX_SHIFT = 2 / 32  # of the picture's side
NOISE_STD = 0.1


def pk_batch(
    glyphs: GlyphSet, classes_per_batch: int, pictures_per_class: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """P different classes, and K different pictures of each.

    Returns (P * K, 1, H, W) float32 images, distorted, and their (P * K,) labels, the indices of
    the classes.
    """
    number_of_classes, number_of_faces = glyphs.pictures.shape[:2]
    classes = torch.randperm(number_of_classes, generator=generator)[:classes_per_batch]
    labels = classes.repeat_interleave(pictures_per_class)
    shuffled_faces = torch.rand(len(classes), number_of_faces, generator=generator).argsort(dim=1)
    faces = shuffled_faces[:, :pictures_per_class].flatten()
    return distort(to_images(glyphs.pictures[labels, faces]), generator), labels


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random affine map and Gaussian noise, drawn anew for each of the (N, 1, H, W) images."""

    def uniform(bound: float) -> Tensor:  # (N,) in [-bound, bound]
        return (2 * torch.rand(len(images), generator=generator) - 1) * bound

    angle, shear = uniform(MAX_ROTATION), uniform(MAX_SHEAR)
    width, height = 1 + uniform(MAX_RESIZE), 1 + uniform(MAX_RESIZE)
    # affine_grid's coordinates run from -1 to 1, hence twice the share of the side.
    shift_x, shift_y = uniform(2 * MAX_SHIFT), uniform(2 * MAX_SHIFT)
    cosine, sine = angle.cos(), angle.sin()
    first_row = torch.stack([cosine / width, (shear * cosine - sine) / width, shift_x], dim=1)
    second_row = torch.stack([sine / height, (shear * sine + cosine) / height, shift_y], dim=1)
    grid = F.affine_grid(
        torch.stack([first_row, second_row], dim=1), list(images.shape), align_corners=False
    )
    distorted = F.grid_sample(images, grid, align_corners=False)
    return distorted + NOISE_STD * torch.randn(images.shape, generator=generator)
