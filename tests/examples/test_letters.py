"""The letters of the glyph examples: their pictures, their split, and batches of them."""

from __future__ import annotations

import pytest
import torch

import tests.examples.programs  # noqa: F401  # isort: skip

from glyphs import batches, data


def test_about_1200_letters_in_12_faces(glyphs: data.GlyphSet) -> None:
    assert 1100 <= len(glyphs.characters) <= 1300
    assert glyphs.pictures.shape == (len(glyphs.characters), 12, 32, 32)
    assert glyphs.pictures.dtype == torch.uint8
    assert len(set(glyphs.faces)) == 12
    assert len(set(glyphs.characters)) == len(glyphs.characters)


def test_no_two_pictures_have_the_same_ink(glyphs: data.GlyphSet) -> None:
    inks = set()
    for picture in glyphs.pictures.flatten(0, 1).numpy():
        rows, columns = picture.any(axis=1).nonzero()[0], picture.any(axis=0).nonzero()[0]
        cropped = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inks.add((cropped.shape, cropped.tobytes()))
    assert len(inks) == glyphs.pictures.shape[0] * glyphs.pictures.shape[1]


def test_every_picture_has_ink_and_none_is_cut_off(glyphs: data.GlyphSet) -> None:
    assert glyphs.pictures.flatten(2).amax(dim=2).min() > 0
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    assert glyphs.pictures[:, :, ~inside].max() == 0


def test_letters_with_identical_pictures_are_one_class(glyphs: data.GlyphSet) -> None:
    latin, greek, cyrillic = "A", "\u0391", "\u0410"
    assert latin in glyphs.characters
    assert greek not in glyphs.characters
    assert cyrillic not in glyphs.characters


def test_classes_are_split_disjointly_and_completely(glyphs: data.GlyphSet) -> None:
    split = data.split_classes(glyphs)
    parts = [set(part.characters) for part in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(glyphs.characters)
    assert abs(len(parts[2]) - (len(parts[0]) + len(parts[1]))) <= 1
    assert len(parts[1]) > 50


def test_split_does_not_depend_on_the_global_seed(glyphs: data.GlyphSet) -> None:
    torch.manual_seed(1)
    first = data.split_classes(glyphs)
    torch.manual_seed(2)
    assert data.split_classes(glyphs).test.characters == first.test.characters


def test_selected_class_keeps_its_pictures(glyphs: data.GlyphSet) -> None:
    selected = glyphs.select(torch.tensor([7, 3]))
    assert selected.characters == (glyphs.characters[7], glyphs.characters[3])
    images, labels = selected.images_and_labels()
    assert labels.tolist() == [0] * 12 + [1] * 12
    torch.testing.assert_close(images[12, 0] * 255, glyphs.pictures[3, 0].float())


def test_batch_has_p_classes_with_k_different_pictures(
    glyphs: data.GlyphSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "distort", lambda images, generator: images)
    images, labels = batches.pk_batch(glyphs, 16, 5, torch.Generator().manual_seed(0))
    assert images.shape == (80, 1, 32, 32)
    values, counts = labels.unique(return_counts=True)
    assert len(values) == 16
    assert counts.tolist() == [5] * 16
    assert len(images.flatten(1).unique(dim=0)) == 80
    for image, label in zip(images, labels, strict=True):
        same = (glyphs.pictures[label] == (image[0] * 255).round()).flatten(1).all(dim=1)
        assert same.sum() == 1


def test_distortion_keeps_the_letter_recognisable(glyphs: data.GlyphSet) -> None:
    images = data.to_images(glyphs.pictures[:50, 0])
    distorted = batches.distort(images, torch.Generator().manual_seed(0))
    assert distorted.shape == images.shape
    assert not torch.equal(distorted[0], distorted[1])
    correlations = torch.stack(
        [
            torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
            for first, second in zip(images, distorted, strict=True)
        ]
    )
    assert 0.3 < correlations.mean() < 0.95
