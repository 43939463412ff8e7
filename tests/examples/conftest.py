"""Rendering the letters takes half a second: once is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:  # at run time only where the packages of the examples are installed
    from glyphs.data import ClassSplit, GlyphSet


@pytest.fixture(scope="session")
def glyphs() -> GlyphSet:
    from glyphs.data import render_glyphs

    return render_glyphs()


@pytest.fixture(scope="session")
def small_split(glyphs: GlyphSet) -> ClassSplit:
    from glyphs.data import split_classes

    return split_classes(glyphs.select(torch.arange(60)))
