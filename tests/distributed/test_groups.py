"""Which processes a loss gathers from, and what is said of those that it cannot."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from circle_kernels import CircleLoss, circle_loss, unified_loss
from tests.distributed.processes import batch, run_processes


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
    torch.testing.assert_close(alone, circle_loss(embeddings[own], labels[own]), rtol=1e-14, atol=0)


def test_a_group_is_a_name_a_handle_or_a_mesh_and_the_name_may_come_before_the_processes() -> None:
    run_processes(2, _compare_groups, CircleLoss(group="world"))


def _use_group_of_others(rank: int) -> None:
    """Only rank 0 is a member."""
    handle, mesh = dist.new_group([0]), DeviceMesh("cpu", [0])
    for group, message in (
        (handle, r"NON_GROUP_MEMBER.*this process is not part of the group"),
        (mesh, r"group DeviceMesh\(.*does not have this process"),
    ):
        if rank == 0:
            ours = CircleLoss(group=group)(*batch(9))
            torch.testing.assert_close(ours, circle_loss(*batch(9)), rtol=1e-14, atol=0)
            continue
        for use in (lambda: CircleLoss(group=group), lambda: circle_loss(*batch(9), group=group)):  # noqa: B023
            with pytest.raises(ValueError, match=message):
                use()


def test_group_without_this_process_is_refused() -> None:
    run_processes(2, _use_group_of_others)


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
    with pytest.raises(ValueError, match=r"mesh of 2 dim.*mesh\['replicas'\]; .*_flatten\(\)$"):
        use(square)
    with pytest.raises(ValueError, match=r"_flatten\(\), once they have names"):
        use(DeviceMesh("cpu", [[0]]))


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
