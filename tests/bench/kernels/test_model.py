"""The model of a step's time: by hand on made-up launches, and what it must not do."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from bench.kernels.model import (
    Assumptions,
    Body,
    Launch,
    Programs,
    Step,
    Touched,
    launch_cost,
    launch_microseconds,
    product_microseconds,
    step_microseconds,
)

# Round numbers: a millisecond is a million cycles, memory moves 1000 bytes a cycle.
ROUND = Assumptions(
    bytes_per_cycle=50,
    overlap=0,
    overlap_of_several=0.5,
    latency=100,
    product_efficiency=0.5,
    cache_megabytes=1,
    memory_gigabytes=1000,
    clock=1,
    launch_microseconds=3,
    sort_launches=4,
)
# 5,000 cycles of loads beside 4,000 of the product; 1,000 of instructions beside 400 of stores.
TILE = Body(matrix=4000, issue=1000, loads=250_000, others=20_000, looks=1)
FOUR = 4  # multiprocessors


def tiles(*programs: tuple[int, int], blocks: int = 1) -> Launch:
    """A launch of programs (how many, tiles of each)."""
    groups = tuple(Programs(number, (each,)) for number, each in programs)
    return Launch("tiles", (TILE,), groups, blocks=blocks)


def cycles(launch: Launch, assumptions: Assumptions = ROUND) -> float:
    return launch_cost(launch, FOUR, assumptions).cycles


def test_tile_takes_the_longer_of_each_half() -> None:
    assert cycles(tiles((1, 1))) == 100 + 5000 + 1000
    fast = replace(ROUND, bytes_per_cycle=1000)
    assert cycles(tiles((1, 1)), fast) == 100 + 4000 + 1000
    slow = replace(ROUND, bytes_per_cycle=10)
    assert cycles(tiles((1, 1)), slow) == 100 + 25_000 + 2000


def test_overlap_goes_from_the_sum_to_the_longest() -> None:
    # All bytes of the tile take 5,400 cycles.
    assert cycles(tiles((1, 1)), replace(ROUND, overlap=1)) == 5400
    assert cycles(tiles((1, 1)), replace(ROUND, overlap=0.5)) == (6100 + 5400) / 2


def test_programs_that_share_a_multiprocessor_overlap_otherwise() -> None:
    # Four on four do not share, though there would be room.
    assert cycles(tiles((4, 1), blocks=2)) == 6100
    assert cycles(tiles((8, 1), blocks=2)) == 2 * (6100 + 5400) / 2
    assert cycles(tiles((8, 1), blocks=1)) == 2 * 6100


@pytest.mark.parametrize(("programs", "in_turn"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_last_programs_take_as_long_as_a_full_wave(programs: int, in_turn: int) -> None:
    assert cycles(tiles((programs, 3))) == in_turn * 3 * 6100
    cost = launch_cost(tiles((programs, 3)), FOUR, ROUND)
    assert cost.waves == programs / 4
    assert cost.filled == pytest.approx(programs / (4 * in_turn))


def test_unequal_programs_go_to_who_is_free_first() -> None:
    # Ends: 1, 1, 1, 3, then 2, 2, 2 more on the first three: 3 tiles each.
    cost = launch_cost(tiles((3, 1), (1, 3), (3, 2)), FOUR, ROUND)
    assert cost.cycles == 3 * 6100
    assert cost.filled == pytest.approx(1)
    # In another order the long one comes last.
    assert cycles(tiles((3, 1), (3, 2), (1, 3))) == 4 * 6100


def test_programs_without_tiles_take_no_time() -> None:
    assert cycles(tiles((100, 0), (4, 1))) == 6100
    assert launch_cost(tiles((100, 0)), FOUR, ROUND).filled == 1


def test_bodies_are_added_up() -> None:
    launch = Launch(
        "two bodies",
        (TILE, Body(issue=3000, looks=1), Body(looks=1)),
        (Programs(4, (2, 1, 5)),),
    )
    cost = launch_cost(launch, FOUR, ROUND)
    assert cost.cycles == 2 * 6100 + 3100 + 500
    assert cost.matrix == 2 * 4000
    assert cost.issue == 2 * 1000 + 3000
    assert cost.loads == 2 * 5000
    assert cost.others == 2 * 400


def test_torchs_products_run_at_their_own_rate() -> None:
    launch = Launch("mm", (Body(matrix=4000),), (Programs(5, (1,)),), kind="product")
    cost = launch_cost(launch, FOUR, ROUND)
    assert cost.cycles == 2 * 4000 / 0.5
    assert cost.matrix == 5 / 4 * 4000 / 0.5


def test_memory_moves_what_the_cache_cannot_hold() -> None:
    small = replace(tiles((1, 1)), tensors=(Touched(500_000, 500_000), Touched(400_000, 400_000)))
    assert launch_cost(small, FOUR, ROUND).memory == 0
    # Of a large tensor what is used of it, and of several what they are together.
    part = replace(small, tensors=(Touched(500_000, 9_000_000), Touched(400_000, 400_000)))
    assert launch_cost(part, FOUR, ROUND).memory == 500
    together = replace(small, tensors=(Touched(900_000, 900_000), Touched(400_000, 400_000)))
    assert launch_cost(together, FOUR, ROUND).memory == 1300
    whole = replace(small, tensors=(Touched(9_000_000, 9_000_000),))
    assert cycles(whole) == 9000


def made_up() -> Step:
    product = Launch("mm", (Body(matrix=4000),), (Programs(5, (1,)),), kind="product", times=2)
    copied = Launch(
        "copy", (Body(others=1000),), (Programs(4, (1,)),), (Touched(1_100_000, 1_100_000),)
    )
    return Step(
        "made up",
        FOUR,
        50_000,
        (
            replace(copied, name="sort", kind="sort", tensors=()),
            tiles((9, 3)),
            tiles((9, 3), blocks=2),
            replace(tiles((2, 5)), tensors=(Touched(1_500_000, 1_500_000),)),
            product,
            copied,
        ),
    )


def test_step_by_hand() -> None:
    parts = [
        0.02 + 4 * 3,  # a sort is four launches
        3 * 3 * 6.1 + 3,
        3 * 3 * (6.1 + 5.4) / 2 + 3,
        5 * 6.1 + 3,  # in which memory moves its 1.5
        2 * (2 * 8 + 3),
        1.1 + 3,
    ]
    step = made_up()
    for launch, microseconds in zip(step.launches, parts, strict=True):
        cost = launch_cost(launch, FOUR, ROUND)
        assert launch_microseconds(launch, cost, ROUND) == pytest.approx(microseconds)
    assert step_microseconds(step, ROUND) == pytest.approx(sum(parts))
    assert product_microseconds(step, ROUND) == 50


def test_more_bytes_per_cycle_never_take_longer() -> None:
    times = [
        step_microseconds(made_up(), replace(ROUND, bytes_per_cycle=rate))
        for rate in (5, 12, 25, 48, 50, 62.5, 64, 1000)
    ]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == len(times)


@pytest.mark.parametrize("name", [each.name for each in fields(Assumptions)])
def test_every_assumption_matters(name: str) -> None:
    changed = replace(ROUND, **{name: 1.25 * getattr(ROUND, name) + 0.2})
    step = made_up()
    assert step_microseconds(step, changed) != pytest.approx(step_microseconds(step, ROUND))
