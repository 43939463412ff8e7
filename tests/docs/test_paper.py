"""docs/paper.md: that its table of scales says what sweep.json holds."""

from __future__ import annotations

import json
import re
from statistics import fmean

import pytest

from tests.support.places import ROOT

DOCS = ROOT / "docs"
SCALES = (32, 64, 128, 256, 512, 1024)
ROWS = json.loads((DOCS / "paper" / "sweep.json").read_text("utf-8"))


@pytest.mark.parametrize("loss", ["circle", "AM-Softmax", "ArcFace"])
def test_table_has_the_means_of_the_sweep(loss: str) -> None:
    page = (DOCS / "paper.md").read_text("utf-8")
    (line,) = re.findall(rf"^\| {loss}, m = ([\d.]+) \| (0.*) \|$", page, re.MULTILINE)
    margin, cells = float(line[0]), [cell.strip() for cell in line[1].split("|")]
    for gamma, cell in zip(SCALES, cells, strict=True):
        found = [
            row["recall@1"]
            for row in ROWS
            if (row["loss"], row["m"], row["gamma"]) == (loss, margin, gamma)
        ]
        assert cell == (f"{fmean(found):.3f}" if found else "")
