"""docs/losses.md: its Python runs as it stands there, and it names all drop-ins and functions."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("pytorch_metric_learning")

from circle_kernels import losses
from circle_kernels.integrations import pytorch_metric_learning as drop_ins
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "losses.md").read_text("utf-8")


@pytest.mark.filterwarnings("ignore:circle_kernels. the tiled backend")
def test_drop_in_trains_as_the_page_has_it() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    embeddings = torch.randn(24, 8, requires_grad=True)
    namespace = {"embeddings": embeddings, "labels": torch.arange(24) // 4}
    exec(code, namespace)
    namespace["loss"].backward()
    assert namespace["loss"] > 0
    assert embeddings.grad.abs().sum() > 0


def test_every_drop_in_and_its_function_are_on_the_page() -> None:
    words = set(re.findall(r"`(\w+)`", PAGE))
    assert set(drop_ins.__all__) <= words
    of_library = {"clip_loss"}  # which that library has not
    functions = {name for name in losses.__all__ if name.endswith("_loss")} - of_library
    assert functions - words == set()
