"""The Python of docs/evaluation.md, as it stands there."""

from __future__ import annotations

import re

import pytest
import torch

from circle_kernels.evaluation import reid_metrics, retrieval_metrics
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: block.split("import ")[1].split("\n")[0]
)
def test_every_block_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = {"embeddings": 60, "queries": 20, "gallery": 50}
    given = {name: torch.randn(rows, 8, generator=generator) for name, rows in drawn.items()}
    given["labels"] = torch.arange(60) % 12
    given["query_labels"] = given["query_cameras"] = torch.arange(20) % 5
    given["gallery_labels"], given["gallery_cameras"] = torch.arange(50) % 5, torch.arange(50) % 3
    given["similarity"] = torch.rand(200, generator=generator)
    given["same"] = torch.rand(200, generator=generator) < given["similarity"]
    exec(compile(block, "docs/evaluation.md", "exec"), given)
    assert capsys.readouterr().out


def test_table_has_every_metric() -> None:
    x, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    names = {re.sub(r"\d+", "K", name) for name in retrieval_metrics(x, labels)}
    names |= {
        re.sub(r"\d+", "K", name) for name in reid_metrics(x, labels, labels, x, labels, labels + 1)
    }
    assert names == set(
        re.findall(r"`([a-z@_]+K?)`", PAGE.split("| --- | --- |")[1].split("\n\n")[0])
    )
