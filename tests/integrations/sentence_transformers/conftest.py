"""The model that most tests train."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@pytest.fixture
def model() -> SentenceTransformer:
    from tests.integrations.sentence_transformers.models import word_model

    return word_model()
