"""The model of what a step over many GPUs takes, against sums by hand and what has to hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import __main__ as cli
from bench.distributed import command, cost, modelled
from bench.distributed.cost import Assumptions, Cluster
from bench.reporting.results import load
from tests.support.places import ROOT

# Numbers without latency that can be multiplied in the head.
ROUND = Assumptions(
    tflops=1e-6,  # a million operations a second
    node_gbps=1e-6,  # a thousand bytes a second
    between_gbps=1e-7,
    gpus_per_node=4,
    node_us=0,
    between_us=0,
    depth=50,
    itemsize=2,
    classes=1000,
)
ROWS = 100
UNIT = 1.0  # 2 * 100 * 100 * 50 operations


def test_unit_is_one_product() -> None:
    assert Cluster(4, ROUND).unit(ROWS, ROWS) == UNIT


def test_whole_batch_by_hand() -> None:
    found = cost.whole_batch(Cluster(4, ROUND), ROWS)
    gathered = 400 * (100 + 8)
    assert found.product_seconds == pytest.approx(2 * 16 * UNIT)
    assert found.sent_bytes == pytest.approx(3 / 4 * gathered)
    assert found.seconds == pytest.approx(32 + 3 / 4 * gathered / 1000)
    assert found.memory_bytes == gathered + 400 * 100


def test_gather_by_hand() -> None:
    found = cost.gather(Cluster(4, ROUND), ROWS)
    gathered = 400 * (100 + 8 + 16)
    assert found.product_seconds == pytest.approx(3 * 4 - 1)  # the own block is half in both passes
    assert found.seconds == pytest.approx(11 + 3 / 4 * gathered / 1000)
    assert found.memory_bytes == gathered


def test_gradients_that_travel_by_hand() -> None:
    found = cost.gradients_travel(Cluster(4, ROUND), ROWS)
    moved = 400 * (100 + 8) + 400 * 50 * 4
    assert found.product_seconds == pytest.approx(4 * 4)
    assert found.seconds == pytest.approx(16 + 3 / 4 * moved / 1000)


def test_ring_takes_the_longer_of_products_and_transfers() -> None:
    # A block of 108 or 124 bytes a row arrives in 10.8 and 12.4 seconds, a product takes 1 or 2.
    slow = cost.ring(Cluster(4, ROUND), ROWS)
    assert slow.seconds == pytest.approx(3 * 10.8 + 1 + 3 * 12.4 + 2)
    fast = cost.ring(Cluster(4, replace(ROUND, node_gbps=1)), ROWS)
    assert fast.seconds == pytest.approx(0.5 + 3 + 1.5 + 6, rel=1e-3)
    assert fast.product_seconds == slow.product_seconds == pytest.approx(11)
    assert fast.memory_bytes == 2 * ROWS * 124


def test_class_heads_by_hand() -> None:
    cluster = Cluster(4, ROUND)
    replicated = cost.replicated_classes(cluster, ROWS)
    shards = cost.class_shards(cluster, ROWS)
    weight = 1000 * 50 * 4
    assert replicated.product_seconds == shards.product_seconds == pytest.approx(4 * 10)
    assert replicated.seconds == pytest.approx(40 + 2 * 3 / 4 * weight / 1000)
    moved = 400 * (100 + 8) + 2 * 400 * 16 + 400 * 50 * 4
    assert shards.seconds == pytest.approx(40 + 3 / 4 * moved / 1000)
    assert replicated.memory_bytes == 2 * weight


def test_latency_counts_per_doubling_and_per_hop() -> None:
    late = replace(ROUND, between_us=1e6, node_us=0, tflops=1e9, between_gbps=1e9)
    assert cost.gather(Cluster(16, late), ROWS).seconds == pytest.approx(2 * 4, rel=1e-3)
    assert cost.ring(Cluster(16, late), ROWS).seconds == pytest.approx(2 * 15, rel=1e-3)


def test_slowest_link_is_that_between_nodes_where_there_are_several() -> None:
    inside, across = Cluster(4, ROUND), Cluster(5, ROUND)
    assert across.hop(1000) == pytest.approx(10 * inside.hop(1000))


@pytest.mark.parametrize("method", cost.PAIR_METHODS.values(), ids=cost.PAIR_METHODS)
def test_one_gpu_sends_nothing(method: cost.Method) -> None:
    found = method(Cluster(1), 1024)
    assert found.sent_bytes == 0
    assert found.seconds == pytest.approx(found.product_seconds)
    if method is not cost.gradients_travel:  # which knows of no half
        assert found.product_seconds == pytest.approx(2 * Cluster(1).unit(1024, 1024))


def test_figures_that_are_known_of_64_gpus() -> None:
    """From sums on paper: 65,536 rows, without latencies, in milliseconds."""
    cluster = Cluster(64, replace(Assumptions(), node_us=0, between_us=0))
    expected = {"whole batch": 23, "gradients travel": 4.7, "gather": 1.9}
    for name, milliseconds in expected.items():
        found = cost.PAIR_METHODS[name](cluster, 1024).seconds
        assert found * 1e3 == pytest.approx(milliseconds, rel=0.02), name


def test_from_which_size_on_a_method_is_faster() -> None:
    cluster = Cluster(64)
    rows = cost.faster_from(cluster, cost.ring, cost.gather)
    assert rows is not None
    assert cost.ring(cluster, rows).seconds < cost.gather(cluster, rows).seconds
    assert cost.ring(cluster, rows // 2).seconds >= cost.gather(cluster, rows // 2).seconds
    assert cost.faster_from(cluster, cost.whole_batch, cost.gather) is None


def test_page_shows_the_model_as_it_is_now() -> None:
    committed = load(ROOT / "bench" / "results" / "distributed-model.json")
    now = modelled.model(Assumptions(), modelled.GPUS, modelled.ROWS_PER_GPU)
    assert now.rows == committed.rows, "run python -m bench distributed --model"
    page = (ROOT / "docs" / "distributed.md").read_text("utf-8")
    for name, content in command.MODEL_PRESENTATION.blocks(committed).items():
        assert f"<!-- bench:{name} -->\n{content}\n<!-- /bench:{name} -->" in page


def test_other_assumptions_are_printed_and_leave_the_page_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "distributed.md").read_text("utf-8")
    path = tmp_path / "model.json"
    arguments = ["--gpus", "16", "--rows-per-gpu", "512", "--tflops", "800", "--out", str(path)]
    assert cli.main(["distributed", "--model", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "`--tflops 800`" in shown
    assert re.search(r"│ 16 +│ 512 +│ 8,192 ", shown)
    assert json.loads(path.read_text())["settings"]["assumptions"]["tflops"] == 800
    assert (ROOT / "docs" / "distributed.md").read_text("utf-8") == page


@pytest.mark.parametrize("arguments", [["--tflops", "0"], ["--gpus", "-1"]])
def test_assumptions_that_cannot_be_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["distributed", "--model", *arguments]) == 1
    assert "must be greater than 0" in capsys.readouterr().err
