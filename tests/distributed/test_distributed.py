"""One batch over several real processes (gloo): the value and the gradient of one process."""

from __future__ import annotations

import copy
import io
import pickle
import re
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.fx.experimental.proxy_tensor import make_fx

from circle_kernels import CircleLoss, circle_loss, unified_loss

# A process that waits in vain fails after this; the other may be compiling on a busy machine.
TIMEOUT = timedelta(seconds=240)


def batch(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    embeddings = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(0, 4, (n,), generator=generator)


def _process(rank: int, world_size: int, folder: str, function, arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        function(rank, *arguments)
        dist.barrier()
    except BaseException:
        Path(folder, f"error-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def run_processes(tmp_path: Path, world_size: int, function, *arguments) -> None:
    """Run ``function(rank, *arguments)`` in ``world_size`` processes of one gloo group."""
    mp.spawn(_process, (world_size, str(tmp_path), function, arguments), nprocs=world_size)


def _compare_with_one_process(rank: int, sizes: tuple[int, ...], options: dict) -> None:
    embeddings, labels = batch(sum(sizes))
    first = sum(sizes[:rank])
    # A parameter shared by all rows stands for the network that DDP would average.
    results = []
    for group in ("world", None):
        weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
        rows = slice(first, first + sizes[rank]) if group is not None else slice(None)
        loss = circle_loss(embeddings[rows] @ weight, labels[rows], group=group, **options)
        loss.backward()
        gradient = weight.grad
        if group is not None:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        results.append((loss.detach(), gradient))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def _compare_each(rank: int, cases: list[tuple[tuple[int, ...], dict]]) -> None:
    for sizes, options in cases:
        _compare_with_one_process(rank, sizes, options)


@pytest.mark.parametrize("all_sizes", [[(5, 9), (0, 0)], [(5, 3, 0), (1, 1, 7)]])
def test_value_and_averaged_gradient_are_those_of_one_process(
    tmp_path: Path, all_sizes: list[tuple[int, ...]]
) -> None:
    cases = [(sizes, {}) for sizes in all_sizes]
    run_processes(tmp_path, len(all_sizes[0]), _compare_each, cases)


def test_every_scope_and_reduction(tmp_path: Path) -> None:
    options = (
        {"scope": "batch"},
        {"reduction": "sum"},
        {"reduction": "mean_all"},
        {"gamma": 256.0},
    )
    run_processes(tmp_path, 2, _compare_each, [((4, 8), each) for each in options])


def _compare_with_references(rank: int) -> None:
    rows, labels = batch(7)
    references, ref_labels = batch(11)
    own, own_refs = (slice(0, 3), slice(0, 9)) if rank == 0 else (slice(3, 7), slice(9, 11))
    options = {"m": 0.1, "gamma": 8.0}
    loss = unified_loss(
        rows[own], labels[own], references[own_refs], ref_labels[own_refs],
        group="world", **options,
    )  # fmt: skip
    expected = unified_loss(rows, labels, references, ref_labels, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


def test_references_of_all_processes_are_compared_with(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, _compare_with_references)


def _expect_errors(rank: int) -> None:
    embeddings, labels = batch(4)
    with pytest.raises(ValueError, match="reduction='none' cannot be combined with group"):
        circle_loss(embeddings, labels, reduction="none", group="world")


def test_unreduced_losses_are_refused(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, _expect_errors)


def _compare_groups(rank: int, loss: CircleLoss) -> None:
    """``loss`` came here by pickle, before this process knew of the others."""
    embeddings, labels = batch(9)
    own = slice(0, 2) if rank == 0 else slice(2, 9)
    expected = circle_loss(embeddings, labels)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))
    for group in (
        "world",
        dist.group.WORLD,
        dist.new_group([0, 1]),
        init_device_mesh("cpu", (2,)),
        mesh["replicas"],
        mesh._flatten(),
    ):
        ours = circle_loss(embeddings[own], labels[own], group=group)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss(embeddings[own], labels[own]), expected)
    alone = circle_loss(embeddings[own], labels[own], group=mesh["shards"])
    assert torch.equal(alone, circle_loss(embeddings[own], labels[own]))


def test_a_group_is_a_name_a_handle_or_a_mesh_and_the_name_may_come_before_the_processes(
    tmp_path: Path,
) -> None:
    run_processes(tmp_path, 2, _compare_groups, CircleLoss(group="world"))


def _use_group_of_others(rank: int) -> None:
    """Only rank 0 is a member."""
    handle, mesh = dist.new_group([0]), DeviceMesh("cpu", [0])
    for group, message in (
        (handle, r"NON_GROUP_MEMBER.*this process is not part of the group"),
        (mesh, r"group DeviceMesh\(.*does not have this process"),
    ):
        if rank == 0:
            ours = CircleLoss(group=group)(*batch(9))
            assert torch.equal(ours, circle_loss(*batch(9)))
            continue
        for use in (lambda: CircleLoss(group=group), lambda: circle_loss(*batch(9), group=group)):  # noqa: B023
            with pytest.raises(ValueError, match=message):
                use()


def test_group_without_this_process_is_refused(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, _use_group_of_others)


def _differ(rank: int) -> None:
    """Rank 1 has something else; both learn it, and are ready for the next call."""
    embeddings, labels = batch(4)
    other = embeddings[:, :5], labels, None, None
    narrow = embeddings.float(), labels, None, None
    both = embeddings, labels, embeddings, labels
    alone = embeddings, labels, None, None
    float64 = r"torch\.float64 of shape \(rows, 6\)"
    for first, second, message in (
        (alone, other, rf"^embeddings must .* {float64} on rank 0, .*\(rows, 5\) on rank 1$"),
        (narrow, alone, rf"^embeddings must .* torch\.float32 .* on rank 0, {float64} on rank 1$"),
        (alone, both, rf"^ref_emb must .* got none on rank 0, {float64} on rank 1$"),
    ):
        with pytest.raises(ValueError, match=message):
            circle_loss(*(first, second)[rank], group="world")
    whole = torch.cat([embeddings, embeddings]), torch.cat([labels, labels])
    torch.testing.assert_close(circle_loss(*alone, group="world"), circle_loss(*whole))


def test_where_processes_differ_all_of_them_raise_the_same_error(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, _differ)


def _compile(rank: int) -> None:
    def function(rows: Tensor, labels: Tensor, weight: Tensor, group: str | None) -> Tensor:
        return 2 * circle_loss(rows @ weight, labels, group=group).sqrt()

    compiled = torch.compile(function, backend="aot_eager")
    for sizes in ((5, 9), (7, 0), (1, 6), (0, 0), (12, 3)):
        embeddings, labels = batch(sum(sizes))
        own = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        results = []
        for call, rows, group in ((compiled, own, "world"), (function, slice(None), None)):
            weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
            loss = call(embeddings[rows], labels[rows], weight, group)
            (gradient,) = torch.autograd.grad(loss, weight)
            if group is not None:
                dist.all_reduce(gradient)
                gradient /= 2
            results.append((loss.detach(), gradient))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(
                ours, expected, rtol=1e-12, atol=1e-12, equal_nan=sum(sizes) == 0
            )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
    # Nothing inside of the gather was looked at, which hangs only now and then.
    (only_break,) = torch._dynamo.utils.counters["graph_break"]
    assert "gather_batch_now" in only_break


def test_compiled_function_gathers_between_two_graphs(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, _compile)


def _trace_in_one_process(rank: int) -> None:
    """A collective here would wait for rank 1, which makes none before it is done."""
    rows, labels = batch(8)
    rows.requires_grad_()

    class Loss(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return circle_loss(rows, labels, group="world")

    loss = Loss()
    if rank == 0:
        fake = FakeTensorMode()
        for trace in (
            lambda: make_fx(loss, tracing_mode="real")(rows),
            lambda: make_fx(loss, tracing_mode="fake")(rows),
            lambda: torch.export.export(loss, (rows,), strict=False),
            lambda: torch.func.grad(loss)(rows),
            lambda: circle_loss(*map(fake.from_tensor, (rows, labels)), group="world"),
            lambda: circle_loss(rows.to("meta"), labels.to("meta"), group="world"),
        ):
            with pytest.raises(RuntimeError, match="group waits for the other processes' rows"):
                trace()
        for trace in (
            lambda: torch.compile(loss, fullgraph=True, backend="eager")(rows),
            lambda: torch.export.export(loss, (rows,), strict=True),
        ):
            with pytest.raises(torch._dynamo.exc.Unsupported, match="gather_batch_now"):
                trace()
    assert torch.isfinite(loss(rows))


def test_tracing_runs_no_collective_and_says_why(tmp_path: Path) -> None:
    run_processes(tmp_path, 2, _trace_in_one_process)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def adapter(**options) -> nn.Module:
    """The loss for sentence-transformers, which takes a model that it does not look at."""
    pytest.importorskip("sentence_transformers")
    from circle_kernels.integrations.sentence_transformers import CircleLoss as Adapter

    return Adapter(nn.Identity(), **options)


USES = {
    "CircleLoss": lambda group: CircleLoss(group=group),
    "sentence-transformers": lambda group: adapter(group=group),
    "circle_loss": lambda group: circle_loss(*batch(4), group=group),
    "unified_loss": lambda group: unified_loss(*batch(4), m=0.1, gamma=8, group=group),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_wrong_group_is_named(use, one_process) -> None:
    for group, error, got in (
        ("wrold", ValueError, "got 'wrold'"),
        (3, TypeError, "got int 3"),
        (True, TypeError, "got bool True"),
        ([dist.group.WORLD], TypeError, "got list"),
        (nn.Identity(), TypeError, "got Identity Identity()"),
    ):
        with pytest.raises(error, match=r"^group must be 'world' .*; " + re.escape(got)):
            use(group)
    square = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicas", "shards"))
    with pytest.raises(ValueError, match=r"mesh of 2 dim.*mesh\['replicas'\], or .*_flatten\(\)$"):
        use(square)
    with pytest.raises(ValueError, match=r"_flatten\(\), once they have names"):
        use(DeviceMesh("cpu", [[0]]))


def test_losses_of_rows_are_refused_by_the_constructor() -> None:
    with pytest.raises(ValueError, match="reduction='none' cannot be combined with group"):
        CircleLoss(reduction="none", group="world")


def test_world_without_processes_says_what_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = CircleLoss(group="world")
    with pytest.raises(RuntimeError, match=r"init_process_group .* before the loss is computed"):
        loss(*batch(4))
    monkeypatch.setattr(dist, "is_available", lambda: False)
    assert "group='world'" in repr(CircleLoss(group="world"))
    with pytest.raises(RuntimeError, match="this build of PyTorch does not have"):
        loss(*batch(4))
    with pytest.raises(TypeError, match=r"^group must be .* got object"):
        CircleLoss(group=object())


def test_destroyed_group_raises() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    loss = CircleLoss(group=dist.group.WORLD)
    dist.destroy_process_group()
    with pytest.raises(ValueError, match="process group has not been initialized"):
        loss(*batch(4))


def test_repr_shows_the_group(one_process) -> None:
    assert "group=None" in repr(CircleLoss())
    assert "group='world'" in repr(CircleLoss(group="world"))
    assert "group=<ProcessGroup '0' of size 1>" in repr(CircleLoss(group=dist.group.WORLD)).replace(
        repr(dist.group.WORLD.group_name), "'0'"
    )
    assert "group=DeviceMesh(" in repr(CircleLoss(group=init_device_mesh("cpu", (1,))))


def save(module: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(module, file)
    return file.getvalue()


@pytest.mark.parametrize("make", [CircleLoss, adapter])
def test_module_is_saved_with_the_name_of_its_group(make) -> None:
    module = make(gamma=32, group="world")
    for loaded in (
        pickle.loads(pickle.dumps(module)),
        torch.load(io.BytesIO(save(module)), weights_only=False),
        copy.deepcopy(module),
        copy.copy(module),
    ):
        assert repr(loaded) == repr(module)
        assert "group='world'" in repr(loaded)


@pytest.mark.parametrize("make", [CircleLoss, adapter])
def test_module_with_a_handle_is_copied_but_not_saved(make, one_process) -> None:
    for group in (dist.group.WORLD, init_device_mesh("cpu", (1,))):
        module = nn.Sequential(make(gamma=32, group=group))
        loss = next(each for each in module.modules() if isinstance(each, CircleLoss))
        for write in (pickle.dumps, save):
            with pytest.raises(TypeError, match=r"^CircleLoss with group=.* use group='world'"):
                write(module)
        copies = copy.deepcopy(module).modules()
        for copied in (copy.copy(loss), next(x for x in copies if isinstance(x, CircleLoss))):
            assert copied.group is group
            assert repr(copied) == repr(loss)
            assert torch.equal(copied(*batch(9)), loss(*batch(9)))
        assert module.state_dict() == {}
