"""The stopwatch, the memory gauge, and the variants that they are for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("psutil")

from bench.measuring import memory
from bench.measuring.cases import Case
from bench.measuring.data import REGIMES, make_data
from bench.measuring.sweep import Method, time_case
from bench.measuring.timing import CpuClock, Effort, time_interleaved
from bench.measuring.variants import SMALL_STEPS, VARIANTS, Function, Variant, naive_loss


class _FakeWork:
    compiles = False

    def __init__(self, name: str, log: list[str], has_backward: bool = True) -> None:
        self.name, self.log, self.has_backward = name, log, has_backward

    def reset(self) -> None:
        self.log.append(f"{self.name} reset")

    def forward(self) -> torch.Tensor:
        self.log.append(f"{self.name} forward")
        return torch.zeros(())

    def backward(self, loss: torch.Tensor) -> None:
        self.log.append(f"{self.name} backward")


def test_rounds_go_through_all_variants_in_turn() -> None:
    log: list[str] = []
    works = {name: _FakeWork(name, log) for name in "ab"}
    effort = Effort(seconds=1e-9, min_rounds=3, max_rounds=9)
    time_interleaved(works, {"a": 1.0, "b": 1.0}, effort, CpuClock())
    one_round = [f"{name} {step}" for name in "ab" for step in ("reset", "forward", "backward")]
    assert log == one_round * 3


def test_short_steps_are_repeated_and_a_product_has_no_backward() -> None:
    log: list[str] = []
    works = {"mm": _FakeWork("mm", log, has_backward=False)}
    effort = Effort(min_rounds=2, max_rounds=2, sample_seconds=0.01)
    samples = time_interleaved(works, {"mm": 0.0025}, effort, CpuClock())["mm"]
    assert samples.repeats == 4
    assert log.count("mm forward") == 8
    assert len(samples.forward) == 2
    assert samples.forward_backward == []


@pytest.mark.parametrize("regime", REGIMES)
def test_every_variant_computes_the_same_loss(regime: str) -> None:
    case = Case(64, 16, regime)
    embeddings, labels = make_data(regime, 64, 16)
    wanted = naive_loss(embeddings, labels)
    for name, variant in {**VARIANTS, **SMALL_STEPS}.items():
        # What torch.compile compiles is naive_loss itself, or ours; compiling takes too long here.
        # And cpu-skip is measured with hyper-parameters of its own.
        if variant.compiles or name in ("mm", "cpu-skip") or variant.missing(case):
            continue
        torch.testing.assert_close(variant.work(case).forward(), wanted, rtol=1e-4, atol=1e-4)


def test_too_large_case_is_skipped_with_the_memory_it_would_need() -> None:
    reason = VARIANTS["pml"].unusable(Case(16384, 128), memory_limit=4e9)
    if "pml" in VARIANTS and VARIANTS["pml"].missing(Case(2, 2)):
        assert reason == "unavailable: pytorch-metric-learning is not installed"
    else:
        assert reason == "skipped: would need about 17.4 GB"
    assert VARIANTS["tiled"].unusable(Case(16384, 128), memory_limit=4e9) is None


def test_variant_that_fails_is_recorded_with_the_reason_and_the_others_are_timed() -> None:
    def build() -> Function:
        raise RuntimeError("no compiler\nmore lines")

    broken = Variant("broken", build, missing=lambda case: None)
    method = Method(
        {"broken": broken, "mm": VARIANTS["mm"]},
        effort=Effort(min_rounds=2, max_rounds=2),
        memory_limit=1e9,
    )
    rows = {row["variant"]: row for row in time_case(method, Case(16, 4), {})}
    assert rows["broken"]["status"] == "failed: RuntimeError: no compiler"
    assert rows["mm"]["status"] == "ok"
    assert len(rows["mm"]["forward"]) == 2


def test_memory_gauge_measures_a_known_allocation() -> None:
    peak = memory.peak_above_baseline(lambda: torch.ones(50_000_000))
    assert peak.bytes == pytest.approx(200e6, rel=0.1)


def test_memory_of_the_product_in_a_fresh_process_is_one_matrix() -> None:
    peak = memory.measure("mm", Case(7072, 4))
    assert peak.bytes == pytest.approx(200e6, rel=0.1)


def test_memory_of_a_failing_child_names_the_error() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        memory.measure("nothing", Case(16, 4))
