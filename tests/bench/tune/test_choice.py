"""Which settings ``python -m bench tune`` chooses, and for which reasons others are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from bench.measuring.timing import CapturedStep, CpuClock, Effort
from bench.tune import choice as tune_choice
from bench.tune import command as tune
from bench.tune import passes as tune_passes
from bench.tune.grid import Size
from bench.tune.passes import Job, NotLaunchedError, Pass, TimedPass, time_ratios, why_unusable
from circle_kernels.backends.triton.settings import Settings
from tests.bench.tune.tuning import BASE, FAST, FASTER
from tests.support.targets import INTERPRETED


def test_fastest_is_chosen_if_it_is_faster_by_more_than_the_margin() -> None:
    def choose(ratios: dict[Settings, float], rejected: Sequence[Settings] = (), **kwargs: Any):
        return tune_choice.choose(BASE, ratios, lambda settings: settings in rejected, **kwargs)

    assert choose({FAST: 0.96, FASTER: 0.9}) == FASTER
    assert choose({FAST: 0.975, FASTER: 0.97}) == BASE
    assert choose({FAST: 0.96, FASTER: 0.9}, rejected=[FASTER]) == FAST
    assert choose({FAST: 0.98, FASTER: 0.9}, rejected=[FASTER]) == BASE
    assert choose({}) == BASE
    # Where the current settings do not run, there is nothing to keep.
    assert choose({FAST: 0.99, FASTER: 1.2}, keeps_baseline=False) == FAST


def test_settings_hold_from_the_depth_at_which_they_change() -> None:
    assert tune.by_smallest_depth({128: BASE, 512: BASE, 1024: FAST}) == [(1, BASE), (1024, FAST)]
    assert tune.by_smallest_depth({1024: BASE, 512: FAST}) == [(1, FAST), (1024, BASE)]
    assert tune.by_smallest_depth({}) == []


def test_ratios_are_taken_in_groups_beside_the_baseline_and_over_all_problems() -> None:
    others = [Settings(64, 64, 32, warps, stages) for warps in (1, 2, 4, 8) for stages in (5, 6)]
    groups = []

    def measure(steps: Mapping[str, TimedPass], effort: Effort) -> dict[str, list[float]]:
        groups.append(len(steps))
        # Every group is slower than the one before, and so is its baseline.
        unit = float(len(groups))
        # On the second problem others take four times as long.
        slower = 4.0 if next(iter(steps.values())).of == "second" else 1.0
        return {
            name: [unit * (1.0 if step.settings == BASE else slower * step.settings.num_stages)] * 5
            for name, step in steps.items()
        }

    passes: list[Any] = ["first", "second"]
    ratios, seconds = time_ratios(passes, BASE, others, measure, Effort())
    assert groups == [7, 3, 7, 3]
    assert list(ratios) == others
    for settings, found in ratios.items():
        assert found == pytest.approx(2 * settings.num_stages)
    assert seconds == [1.0, 3.0]


class _Replay:
    """What a CUDA graph does, without one."""

    def __init__(self, step: TimedPass) -> None:
        self.replay = step.forward


class _Sleeps:
    """Stands for a pass."""

    def __init__(self) -> None:
        self.ran: list[Settings] = []

    def run(self, settings: Settings) -> tuple[torch.Tensor, ...]:
        self.ran.append(settings)
        return (torch.zeros(()),)


def test_steps_are_captured_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tune_passes, "capture", lambda step: CapturedStep(step, _Replay(step), torch.zeros(()))
    )
    monkeypatch.setattr(tune_passes, "clock_for", lambda device: CpuClock())
    one: Any = _Sleeps()
    steps = {str(settings): TimedPass(one, settings) for settings in (BASE, FAST)}
    effort = Effort(seconds=0.0, min_rounds=5, max_rounds=5, sample_seconds=0.0)
    samples = tune_passes.measure(steps, effort)
    assert {name: len(sample) for name, sample in samples.items()} == dict.fromkeys(steps, 5)
    assert one.ran[-10:] == [BASE, FAST] * 5


class _Inspected:
    """Stands for a pass whose results and spills are known."""

    job = Job("triangle", "sm_90", torch.float32, 64, "cpu")

    def __init__(self, result: float = 1.0, spills: int = 0, error: Exception | None = None):
        self.result, self.spills, self.error = torch.full((4,), result), spills, error

    def inspect(self, settings: Settings) -> tuple[tuple[torch.Tensor, ...], int]:
        if self.error is not None:
            raise self.error
        return (self.result,), self.spills


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (_Inspected(), None),
        (_Inspected(1 + 1e-5), None),
        (_Inspected(spills=12), None),
        (_Inspected(spills=120), "120 spills"),
        (_Inspected(1.001), "results differ from those of the current settings"),
        (_Inspected(float("nan")), "results differ from those of the current settings"),
        (
            _Inspected(error=RuntimeError("out of resource: shared memory\nRequired: 3")),
            "failed: RuntimeError: out of resource: shared memory",
        ),
    ],
)
def test_settings_are_left_out_for_a_reason(one: Any, reason: str | None) -> None:
    expected = [(torch.ones(4),)]
    assert why_unusable([one], BASE, expected)[0] == reason


def test_pass_that_launches_no_tiles_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_passes.triton_backend, "forward", lambda problem: (torch.ones(8),) * 3)
    with pytest.raises(NotLaunchedError, match=r"got \[\]"):
        Pass(Job("rectangle", "sm_90", torch.float32, 16, "cpu"), Size(8)).inspect(BASE)


def test_problem_of_another_kernel_is_no_fault_of_the_settings() -> None:
    broken: Any = _Inspected(error=NotLaunchedError("wanted"))
    with pytest.raises(NotLaunchedError):
        why_unusable([broken], BASE, None)


def test_broken_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    broken: Any = _Inspected(error=RuntimeError("CUDA error"))
    broken.job = Job("triangle", "sm_90", torch.float32, 64, "cuda")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        why_unusable([broken], BASE, None)


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter lane")
@pytest.mark.parametrize("kernel", ["rectangle_in_any_order", "weights_in_any_order"])
def test_results_do_not_depend_on_settings_and_wrong_ones_are_seen(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(kernel, "interpreter", torch.float32, 32, "cpu")
    one = Pass(job, Size(140, 130) if kernel.startswith("weights") else Size(300, 250))
    reason, expected = why_unusable([one], Settings(64, 64, 32, 4, 1), None)
    assert reason is None
    assert why_unusable([one], Settings(64, 32, 32, 4, 2), expected)[0] is None
    backend = tune_passes.triton_backend
    name = "backward" if kernel.startswith("weights") else "forward"
    right = getattr(backend, name)

    def wrong(*args: Any, **kwargs: Any) -> list[torch.Tensor | None]:
        results = list(right(*args, **kwargs))
        results[0][0] *= 1.1
        return results

    monkeypatch.setattr(backend, name, wrong)
    assert why_unusable([one], Settings(64, 32, 32, 4, 2), expected)[0].startswith("results differ")
