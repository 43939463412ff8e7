"""Rendering the letters takes half a second, reading the names some: once is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:  # at run time only where the packages of the examples are installed
    from glyphs.data import ClassSplit, GlyphSet
    from names.data import NameSet


@pytest.fixture(scope="session")
def glyphs() -> GlyphSet:
    from glyphs.data import render_glyphs

    return render_glyphs()


@pytest.fixture(scope="session")
def small_split(glyphs: GlyphSet) -> ClassSplit:
    from glyphs.data import split_classes

    return split_classes(glyphs.select(torch.arange(60)))


@pytest.fixture(scope="session")
def all_names() -> NameSet:
    from names.data import load_locales, name_set

    return name_set(load_locales())
