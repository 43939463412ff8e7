# ruff: noqa: E402
"""``python -m bench evaluate``: that all ways find the same, its cases, and its tables."""

from __future__ import annotations

from pathlib import Path

import pytest

for _module in ("psutil", "pytorch_metric_learning", "rich", "tqdm"):
    pytest.importorskip(_module)

from bench import __main__ as cli
from bench.evaluate import command
from bench.evaluate.tables import evaluate_tables
from bench.evaluate.ways import METRICS, WAYS, EvaluateCase, EvaluateWork, drawn
from bench.reporting import results
from tests.support.targets import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for kernels")

SMALL = EvaluateCase("clusters", 400, 24)


@pytest.mark.parametrize("name", WAYS)
def test_every_way_finds_the_same(name: str) -> None:
    given = drawn(SMALL)
    reason = WAYS[name].unusable(SMALL.rows, int(given[1].bincount().max()), 1e12)
    if reason is not None:
        pytest.skip(reason)
    found, ours = (EvaluateWork(WAYS[each], *given).forward() for each in (name, "ours"))
    known = ~found.isnan()
    assert known.sum() == (2 if name == "torchmetrics" else 3)
    assert found[known].tolist() == pytest.approx(ours[known].tolist(), abs=1e-6)


def test_what_takes_too_much_is_skipped_with_what_it_would_take() -> None:
    assert WAYS["numpy"].unusable(60_000, 98, 5e9) == "skipped: would need about 144.0 GB"
    assert WAYS["torchmetrics"].unusable(10_000, 98, 1e12) == "skipped: asked up to N=4,000"
    assert WAYS["ours"].unusable(60_000, 98, 5e9) is None


def test_whole_run_goes_up_to_sixty_thousand_names() -> None:
    sizes = [case.rows for case in command.cases(quick=False)]
    assert (sizes[0], sizes[-1]) == (4000, 60_000)
    assert {case.data for case in command.cases(quick=False)} == {"names"}


def test_quick_run_has_times_and_memory_of_every_way(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.json"
    assert cli.main(["evaluate", "--quick", "--out", str(path)]) == 0
    run = results.load(path)
    assert {(row["kind"], row["way"]) for row in run.rows} == {
        (kind, name) for kind in ("time", "memory") for name in WAYS
    }
    ours = next(row for row in run.rows if row["way"] == "ours")
    assert set(ours["metrics"]) == set(METRICS)
    costs, found = evaluate_tables(run)
    assert [row[2] for row in costs.rows] == [way.what for way in WAYS.values()]
    assert costs.rows[0][4].startswith("1.00")
    assert len(found.rows) == sum(
        row["status"] == "ok" for row in run.rows if row["kind"] == "time"
    )
