"""What ``python -m bench gpu`` measures, and in which order."""

from __future__ import annotations

from bench.gpu import command as gpu
from bench.gpu.bounds import bounds
from bench.gpu.tasks import EVERY, MAIN, Task, all_tasks
from bench.measuring.cases import Case


def tasks_by_kind(kind: str) -> list[Task]:
    return [task for task in all_tasks("cuda") if task.kind == kind]


def test_no_case_is_measured_twice() -> None:
    measured = [(task.kind, task.case) for task in all_tasks("cuda")]
    assert len(measured) == len(set(measured))


def test_cases_span_what_was_asked_for() -> None:
    timed = tasks_by_kind("time")
    for dtype in ("bfloat16", "float32"):
        cases = [task.case for task in timed if task.case.dtype == dtype]
        rows = {case.rows for case in cases if case.dim == 512}
        assert {128, 256, 1_024, 16_384, 65_536} <= rows
        assert {case.dim for case in cases if case.rows == 8_192} == {64, 128, 256, 512, 1024, 2048}
        assert {case.regime for case in cases} == {"random", "trained"}
    assert {task.case.rows for task in tasks_by_kind("graph")} == {64, 128, 256, 512, 1_024}


def test_what_bounds_are_stated_for_comes_first_and_with_every_peer() -> None:
    tasks = all_tasks("cuda")
    wanted = {bound.case for bound in bounds()}
    begun = 0.0
    for task in tasks:
        case = task.case
        wanted.discard((case.rows, case.dim, case.regime, case.dtype))
        begun += task.expected_seconds
        if not wanted:
            break
    assert not wanted
    # All of it fits into half of a stage.
    assert begun < 0.5 * gpu.DEFAULT_SECONDS
    assert tasks[0].case == Case(*MAIN, "random", "bfloat16", "cuda")
    assert tasks[0].variants == tasks[1].variants == EVERY


def test_tasks_that_compile_for_the_same_size_follow_one_another() -> None:
    places: dict[tuple[int, int, str], list[int]] = {}
    for index, task in enumerate(all_tasks("cuda")):
        if task.kind == "time" and "compile" in task.variants:
            size = (task.case.rows, task.case.dim, task.case.dtype)
            places.setdefault(size, []).append(index)
    assert len(places) > 1
    for indices in places.values():
        assert indices == list(range(indices[0], indices[0] + len(indices)))
