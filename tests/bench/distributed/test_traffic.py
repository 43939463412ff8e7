"""Collectives of real processes: what is counted, what is played back, and what the system saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bench.distributed.methods import SharedCase, SharedWork, method_named, methods_of
from bench.distributed.traffic import COLLECTIVES, Watch
from circle_kernels import circle_loss
from tests.distributed.processes import run_processes

CASE = SharedCase(24, 8)
FLOATS = 1000
BYTES = 4 * FLOATS


def _call_each(rank: int) -> None:
    processes = dist.get_world_size()
    local, whole = torch.full((FLOATS,), float(rank)), torch.empty(processes * FLOATS)
    parts = list(torch.empty(processes, FLOATS))
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    with Watch() as watch:
        getattr(dist, gather.__name__)(whole, local)
        dist.all_gather(parts, local, async_op=True).wait()
        dist.all_reduce(local.clone())
        dist.broadcast(local.clone(), src=0)
        dist.reduce_scatter(torch.empty(FLOATS), parts)
        following, previous = (rank + 1) % processes, (rank - 1) % processes
        received = torch.empty(FLOATS)
        operations = [
            dist.P2POp(dist.isend, local, following),
            dist.P2POp(dist.irecv, received, previous),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    dist.all_reduce(local.clone())  # outside: not counted
    assert received.unique().tolist() == [previous]
    assert torch.cat(parts).equal(whole)
    assert watch.traffic.sent_bytes == pytest.approx(
        {
            gather.__name__: (processes - 1) * BYTES,
            "all_gather": (processes - 1) * BYTES,
            "all_reduce": 2 * (processes - 1) / processes * BYTES,
            "broadcast": BYTES,
            "reduce_scatter": (processes - 1) / processes * processes * BYTES,
            "messages": BYTES,
        }
    )
    assert set(watch.traffic.calls.values()) == {1}
    assert not hasattr(getattr(dist, "all_gather", None), "func"), "still watched"


def test_each_collective_counts_at_what_a_ring_moves() -> None:
    run_processes(3, _call_each)


def _loopback() -> int | None:
    """Bytes that this machine sent to itself, if the system tells."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    counts = [line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")]
    return int(counts[0][8]) if counts else None


def _send_much(rank: int) -> None:
    local = torch.zeros(500_000)
    whole = torch.empty(dist.get_world_size() * len(local))
    dist.barrier()
    before = _loopback()
    dist.barrier()
    with Watch() as watch:
        for _ in range(5):
            dist.all_gather(list(whole.chunk(dist.get_world_size())), local)
            dist.all_reduce(local)
    dist.barrier()
    after = _loopback()
    counted = torch.tensor(sum(watch.traffic.sent_bytes.values()), dtype=torch.float64)
    dist.all_reduce(counted)
    # Others use it, too, so that it shows only whether too much is counted.
    assert after is None or before is None or after - before >= 0.95 * counted.item()


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="the system does not tell")
def test_no_more_is_counted_than_went_over_the_network() -> None:
    run_processes(2, _send_much)


def _same_as_one_process(rank: int, names: list[str]) -> None:
    processes = dist.get_world_size()
    embeddings, labels = CASE.data()
    whole = embeddings.requires_grad_()
    loss = circle_loss(whole, labels, m=0.4, gamma=80)
    loss.backward()
    own = whole.grad.tensor_split(processes)[rank]
    for name in names:
        work = SharedWork(method_named(CASE, name), CASE, rank, processes)
        value = work.step()
        # That wrapper's value is the sum over processes.
        expected = loss * processes if name == "pml" else loss
        torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(
            work.embeddings.grad / processes, own, rtol=1e-4, atol=1e-5 * own.abs().max().item()
        )


def test_every_method_has_the_loss_and_the_gradient_of_one_process() -> None:
    names = [
        method.name for method in methods_of(CASE) if method.missing() is None and not method.alone
    ]
    assert {"whole batch", "gather"} <= set(names)
    run_processes(2, _same_as_one_process, names)


def _play_back(rank: int) -> None:
    work = SharedWork(method_named(CASE, "gather"), CASE, rank, dist.get_world_size())
    with Watch(record=True) as recording:
        work.step()
    expected = work.embeddings.grad
    assert expected is not None
    dist.barrier()
    if rank == 0:  # alone: nobody answers
        with Watch(play=recording.recorded) as playing:
            work.step()
        assert torch.equal(work.embeddings.grad, expected)
        assert playing.traffic.sent_bytes == recording.traffic.sent_bytes
        with pytest.raises(RuntimeError, match="were not made"), Watch(play=recording.recorded):
            pass
        with pytest.raises(RuntimeError, match="more calls"), Watch(play=recording.recorded[:1]):
            work.step()


def test_step_is_played_back_without_the_others() -> None:
    run_processes(2, _play_back)


def test_every_name_of_a_collective_is_one_of_torch() -> None:
    assert {name for name in COLLECTIVES if not hasattr(dist, name)} <= {
        "all_gather_single",
        "reduce_scatter_single",
    }
