"""``python -m bench class``: its data, the tiles that it counts, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import __main__ as cli
from bench.classes import tiles as class_tiles
from bench.classes.heads import HEADS, HeadCase, HeadWork
from bench.measuring.data import COSINE_TO_CENTRE
from bench.reporting import results
from circle_kernels import CircleFormula, pair_logsumexp
from tests.support.targets import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for kernels")


def test_trained_embeddings_lie_near_their_class_weight() -> None:
    embeddings, labels, weight = HeadCase(50, 201, 24, "trained").data()
    assert weight.shape == (201, 24)
    cosines = (embeddings * weight[labels]).sum(1)
    torch.testing.assert_close(cosines, torch.full((50,), COSINE_TO_CENTRE))


@pytest.mark.parametrize("regime", ["random", "trained"])
def test_every_head_computes_the_same_loss(regime: str) -> None:
    data = HeadCase(40, 90, 16, regime).data()
    losses = {name: HeadWork(head, *data).forward().item() for name, head in HEADS.items()}
    for loss in losses.values():
        assert loss == pytest.approx(losses["eager"], rel=1e-4, abs=1e-4)


def test_tiles_that_survive_are_those_that_hold_a_pair_worth_keeping(monkeypatch) -> None:
    case = HeadCase(10, 50, 16, "trained")
    monkeypatch.setattr(class_tiles, "_STRIP", 24)
    monkeypatch.setattr(class_tiles, "SHAPES", ((4, 8),))
    monkeypatch.setattr(class_tiles, "THRESHOLDS", (0.05,))
    embeddings, labels, weight = case.data()
    order = labels.argsort()
    embeddings, labels = embeddings[order].detach(), labels[order]
    cosine = embeddings @ torch.nn.functional.normalize(weight.detach()).T
    for row, gamma in zip(class_tiles.surviving_shares(case), class_tiles.GAMMAS, strict=True):
        formula = CircleFormula(m=0.25, gamma=gamma)
        _, lse_neg = pair_logsumexp(
            embeddings, labels, weight.detach(), torch.arange(50), formula=formula
        )
        share = (formula.negative_logits(cosine) - lse_neg[:, None]).exp()
        kept = share > 0.05 / 50
        kept[torch.arange(10), labels] = True
        tiles = [
            kept[i : i + 4, j : min(j + 8, end)].any()
            for begin, end in ((0, 24), (24, 48), (48, 50))
            for i in range(0, 10, 4)
            for j in range(begin, end, 8)
        ]
        assert 0 < row["share"] < 1
        assert row["share"] == pytest.approx(sum(tiles).item() / len(tiles))


def test_quick_run_writes_results_and_prints_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "class.json"
    assert cli.main(["class", "--quick", "--out", str(path)]) == 0
    kinds = {row["kind"] for row in json.loads(path.read_text())["rows"]}
    assert kinds == {"time", "step", "memory", "tiles"}
    document = tmp_path / "page.md"
    names = ("class-cpu", "class-cpu-steps", "class-cpu-memory", "class-tiles")
    document.write_text("".join(f"<!-- bench:{n} -->\n<!-- /bench:{n} -->\n" for n in names))
    assert cli.main(["report", str(path), "--write", str(document)]) == 0
    text = document.read_text()
    assert "| 64 | 1000 | 32 | sampled |" in text
    assert "2^-12" in text
    assert "speed-up over eager" in capsys.readouterr().out
    assert results.load(path).command == "class"
