"""Pictures of letters in the DejaVu fonts that matplotlib ships, and the split of their classes.

A class is a letter, its pictures are the letter in each of twelve faces (Sans, Sans Mono and
Serif, each regular, bold, oblique and bold oblique). A letter becomes a class if

* all twelve faces have it, and its Unicode category is Lu, Ll, Lt or Lo. The modifier letters
  (Lm) are left out: most are small raised copies of other letters;
* none of its pictures is blank or the font's box for missing characters;
* no two of its pictures are identical, so that retrieval cannot find a mere copy;
* none of its pictures is identical to one of a class before it, in code point order. Latin A,
  Greek Alpha and Cyrillic A are therefore one class.

Pictures are compared after cropping them to their ink: a shift does not make a difference.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PICTURE_SIZE = 32
# At this size the largest letter, 29 pixels, fits the picture in every face.
FONT_SIZE = 20
BASELINE = 23
CATEGORIES = ("Lu", "Ll", "Lt", "Lo")
# U+FFFF is never assigned, so that every font draws its box for missing characters.
MISSING_CHARACTER = "\uffff"
# Not the run's seed: the examples' hyper-parameters were chosen on this split's validation
# classes, and under another split some of those would be test classes.
SPLIT_SEED = 0


@dataclass(frozen=True)
class GlyphSet:
    """Pictures of C letters in F faces."""

    pictures: Tensor  # (C, F, 32, 32) uint8, 255 is ink
    characters: tuple[str, ...]  # C
    faces: tuple[str, ...]  # F, the names of the font files

    def select(self, classes: Tensor) -> GlyphSet:
        """The given classes only, (C',) integers, in that order."""
        return GlyphSet(
            self.pictures[classes], tuple(self.characters[i] for i in classes), self.faces
        )

    def images_and_labels(self) -> tuple[Tensor, Tensor]:
        """Every picture once: (C * F, 1, 32, 32) float32 in [0, 1], and its class, (C * F,)."""
        number_of_classes, number_of_faces = self.pictures.shape[:2]
        labels = torch.arange(number_of_classes).repeat_interleave(number_of_faces)
        return to_images(self.pictures.flatten(0, 1)), labels


def to_images(pictures: Tensor) -> Tensor:
    """(N, H, W) uint8 pictures as a network's input: (N, 1, H, W) float32 in [0, 1]."""
    return pictures.unsqueeze(1).float() / 255


def font_files() -> list[Path]:
    """The twelve DejaVu faces in matplotlib's data folder; its two Display fonts are not letters.

    Raises:
        FileNotFoundError: this matplotlib has other fonts.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(file for file in folder.glob("DejaVu*.ttf") if "Display" not in file.name)
    if len(files) != 12:
        raise FileNotFoundError(f"expected 12 DejaVu faces in {folder}, found {len(files)}")
    return files


def draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One letter in white on black, its advance centred, all letters on the same baseline."""
    picture = Image.new("L", (PICTURE_SIZE, PICTURE_SIZE))
    position = (PICTURE_SIZE // 2, BASELINE)
    ImageDraw.Draw(picture).text(position, character, fill=255, font=font, anchor="ms")
    return picture


def ink(picture: Image.Image) -> bytes:
    """What makes two pictures identical: size and pixels of the ink; empty for a blank picture."""
    box = picture.getbbox()
    if box is None:
        return b""
    cropped = picture.crop(box)
    return bytes(cropped.size) + cropped.tobytes()


def common_letters(files: list[Path]) -> list[str]:
    """The letters that every one of the fonts maps to a glyph, in code point order."""
    code_points = set.intersection(*(set(TTFont(file, lazy=True).getBestCmap()) for file in files))
    letters = (chr(code_point) for code_point in sorted(code_points))
    return [letter for letter in letters if unicodedata.category(letter) in CATEGORIES]


def render_glyphs() -> GlyphSet:
    """Draw all classes, about 1,200 letters in 12 faces; takes a second."""
    files = font_files()
    # The basic layout engine is part of every Pillow; others may place a letter differently.
    fonts = [
        ImageFont.truetype(str(file), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        for file in files
    ]
    taken = {b""} | {ink(draw(MISSING_CHARACTER, font)) for font in fonts}
    characters, pictures = [], []
    for letter in common_letters(files):
        drawn = [draw(letter, font) for font in fonts]
        inks = {ink(picture) for picture in drawn}
        if len(inks) == len(drawn) and taken.isdisjoint(inks):
            taken |= inks
            characters.append(letter)
            pictures.append(np.stack([np.asarray(picture) for picture in drawn]))
    faces = tuple(file.stem for file in files)
    return GlyphSet(torch.from_numpy(np.stack(pictures)), tuple(characters), faces)


@dataclass(frozen=True)
class ClassSplit:
    """Disjoint sets of classes."""

    train: GlyphSet
    validation: GlyphSet
    test: GlyphSet

    def __str__(self) -> str:
        train, validation, test = (
            len(part.characters) for part in (self.train, self.validation, self.test)
        )
        return (
            f"{train + validation + test:,} letters x {len(self.train.faces)} faces: {train} to "
            f"train on, {validation} to validate, {test} to test"
        )


def split_classes(glyphs: GlyphSet, validation_share: float = 1 / 6) -> ClassSplit:
    """Half of the classes, at random, for testing; of the other half a share for validation."""
    number_of_classes = len(glyphs.characters)
    order = torch.randperm(number_of_classes, generator=torch.Generator().manual_seed(SPLIT_SEED))
    test = number_of_classes // 2
    validation = round((number_of_classes - test) * validation_share)
    return ClassSplit(
        train=glyphs.select(order[test + validation :]),
        validation=glyphs.select(order[test : test + validation]),
        test=glyphs.select(order[:test]),
    )
