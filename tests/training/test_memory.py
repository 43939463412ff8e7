"""EmbeddingMemory holds the last rows that it was given, in their places."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import EmbeddingMemory, circle_loss

DIM = 3


def rows(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, DIM, generator=generator).to(dtype)
    return embeddings, torch.randint(4, (count,), generator=generator)


def contents(memory: EmbeddingMemory) -> list[tuple[float, ...]]:
    embeddings, labels = memory.references()
    return sorted(zip(*embeddings.T.tolist(), labels.tolist(), strict=True))


def assert_same_memory(ours: EmbeddingMemory, theirs: EmbeddingMemory) -> None:
    assert ours.filled == theirs.filled
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


@pytest.mark.parametrize("size", [1, 2, 7, 8, 64])
def test_holds_the_last_rows_and_says_where_each_is(size: int) -> None:
    memory = EmbeddingMemory(size, DIM)
    last: deque = deque(maxlen=size)
    came = 0
    for step, count in enumerate((3, 0, 5, 1, 8, 2, 20, 7, 7)):
        embeddings, labels = rows(count, step)
        self_index = memory.enqueue(embeddings, labels)
        last.extend(zip(*embeddings.T.tolist(), labels.tolist(), strict=True))
        came += count
        assert memory.filled == min(came, size)
        assert memory.is_full == (came >= size)
        assert contents(memory) == sorted(last)
        ref_emb, ref_labels = memory.references()
        assert (self_index.dtype, self_index.shape) == (torch.int64, (count,))
        kept = self_index >= 0
        assert int(kept.sum()) == min(count, size)
        assert bool(kept[count - min(count, size) :].all())  # the last rows of a large batch
        assert torch.equal(ref_emb[self_index[kept]], embeddings[kept])
        assert torch.equal(ref_labels[self_index[kept]], labels[kept])
        assert self_index.tolist() == [-1] * int((~kept).sum()) + self_index[kept].tolist()
        assert not memory.embeddings[memory.filled :].any()


def test_call_takes_in_a_batch_and_returns_what_losses_take() -> None:
    memory, other = EmbeddingMemory(8, DIM), EmbeddingMemory(8, DIM)
    for step in range(4):
        batch = rows(3, step)
        named = memory(*batch)
        assert list(named) == ["ref_emb", "ref_labels", "self_index"]
        assert torch.equal(named["self_index"], other.enqueue(*batch))
        for ours, theirs in zip(list(named.values())[:2], other.references(), strict=True):
            assert torch.equal(ours, theirs)


def test_evaluation_takes_nothing_in() -> None:
    memory = EmbeddingMemory(8, DIM)
    memory.enqueue(*rows(5))
    before = copy.deepcopy(memory)
    named = memory.eval()(*rows(3, 1))
    assert named["self_index"].tolist() == [-1, -1, -1]
    assert len(named["ref_emb"]) == len(named["ref_labels"]) == 5
    assert_same_memory(memory, before)


def test_class_0_counts_as_any_other() -> None:
    memory = EmbeddingMemory(4, DIM)
    assert (memory.filled, memory.is_full) == (0, False)
    assert memory.references()[0].shape == (0, DIM)
    memory.enqueue(torch.zeros(3, DIM), torch.zeros(3, dtype=torch.int64))
    assert (memory.filled, memory.is_full) == (3, False)
    memory.enqueue(torch.zeros(1, DIM), torch.zeros(1, dtype=torch.int64))
    assert (memory.filled, memory.is_full) == (4, True)
    memory.clear()
    assert (memory.filled, memory.is_full) == (0, False)
    assert memory.enqueue(*rows(2)).tolist() == [0, 1]


def test_references_are_views_and_no_graph_is_kept() -> None:
    memory = EmbeddingMemory(8, DIM)
    embeddings, labels = rows(5)
    weight = torch.eye(DIM, requires_grad=True)
    produced = embeddings @ weight
    memory(produced, labels)
    ref_emb, ref_labels = memory.references()
    assert ref_emb.data_ptr() == memory.embeddings.data_ptr()
    assert ref_labels.data_ptr() == memory.labels.data_ptr()
    assert not ref_emb.requires_grad
    assert memory.embeddings.grad_fn is None
    memory(*rows(3, 1))
    produced.sum().backward()  # autograd saw nothing of what was enqueued


def test_references_stay_as_they_are_for_whoever_has_them() -> None:
    memory = EmbeddingMemory(8, DIM)
    memory.enqueue(*rows(8))
    embeddings = rows(4, 1)[0].requires_grad_()
    before = memory.references()[0].clone()
    similarities = embeddings @ memory.references()[0].T
    memory.enqueue(*rows(4, 2))
    similarities.sum().backward()
    torch.testing.assert_close(embeddings.grad, before.sum(0).expand(4, -1))
    kept, _ = memory.references()
    memory.enqueue(*rows(4, 3))
    assert not torch.equal(kept, memory.references()[0])


def test_usual_step_copies_nothing() -> None:
    memory = EmbeddingMemory(64, DIM)
    places = set()
    for seed in range(5):
        embeddings, labels = rows(9, seed)
        embeddings.requires_grad_()
        # Not computed at once, so that references are kept for the backward pass.
        loss = circle_loss(embeddings, labels, **memory(embeddings, labels), reduction="none")
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            loss.sum().backward()
        del loss
        places.add(memory.embeddings.data_ptr())
    assert len(places) == 1


def test_loss_keeps_references_and_no_copy() -> None:
    memory = EmbeddingMemory(64, DIM)
    memory.enqueue(*rows(64))
    embeddings, labels = rows(9, 1)
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        arguments = memory(embeddings.requires_grad_(), labels)
        circle_loss(embeddings, labels, **arguments, reduction="none")
    assert memory.embeddings.data_ptr() in kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
def test_rows_are_kept_in_the_dtype_of_the_memory(dtype: torch.dtype, given: torch.dtype) -> None:
    memory = EmbeddingMemory(4, DIM, dtype=dtype)
    embeddings, labels = rows(6, dtype=given)
    memory.enqueue(embeddings, labels)
    assert memory.references()[0].dtype == dtype
    assert torch.equal(memory.references()[0], embeddings.to(dtype)[[4, 5, 2, 3]])


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32],
)
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    memory = EmbeddingMemory(4, DIM)
    labels = torch.tensor([1, 0, 1]).to(dtype)
    memory.enqueue(torch.ones(3, DIM), labels)
    assert memory.references()[1].tolist() == [1, 0, 1]
    assert memory.references()[1].dtype == torch.int64


@pytest.mark.parametrize("came", [3, 8, 13])
@pytest.mark.parametrize("how", ["state dict", "assigned", "in place", "pickled", "copied"])
def test_run_that_was_saved_goes_on_as_it_would_have(came: int, how: str) -> None:
    memory = EmbeddingMemory(8, DIM)
    for step in range(came):
        memory.enqueue(*rows(1, step))
    file = io.BytesIO()
    other = EmbeddingMemory(8, DIM)
    other.enqueue(*rows(5, 77))  # which is to be forgotten
    if how in ("state dict", "assigned", "in place"):
        torch.save(memory.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        assert sorted(saved) == ["embeddings", "enqueued", "labels"]
        if how == "in place":  # as distributed checkpoints and broadcasts write
            for name, value in saved.items():
                other.state_dict()[name].copy_(value)
        else:
            other.load_state_dict(saved, assign=how == "assigned")
    elif how == "pickled":
        other = pickle.loads(pickle.dumps(memory))
    else:
        other = copy.deepcopy(memory)
    assert_same_memory(other, memory)
    for step in range(3):
        batch = rows(4, 100 + step)
        assert torch.equal(other.enqueue(*batch), memory.enqueue(*batch))
        assert_same_memory(other, memory)
    memory.enqueue(*rows(1, 200))  # they share nothing
    assert not torch.equal(memory.embeddings, other.embeddings)


def test_moves_and_converts_as_modules_do() -> None:
    memory = EmbeddingMemory(4, DIM)
    memory.enqueue(*rows(3))
    memory.to(torch.float64)
    assert memory.embeddings.dtype == torch.float64
    assert memory.labels.dtype == memory.enqueued.dtype == torch.int64
    assert memory.enqueue(*rows(2)).tolist() == [3, 0]
    meta = EmbeddingMemory(4, DIM, device="meta")
    assert all(buffer.is_meta for buffer in meta.buffers())


def test_repr_says_what_it_is() -> None:
    memory = EmbeddingMemory(4, DIM, group="world")
    assert repr(memory) == "EmbeddingMemory(4, 3, dtype=torch.float32, group='world')"


def test_compiled_step_goes_around_the_memory() -> None:
    torch._dynamo.reset()
    memory, other = EmbeddingMemory(8, DIM), EmbeddingMemory(8, DIM)

    def step(embeddings: Tensor, labels: Tensor) -> Tensor:
        named = memory(embeddings * 2, labels)
        return named["self_index"] * 2

    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, backend="aot_eager")
    for seed in range(12):
        embeddings, labels = rows(3, seed)
        expected = 2 * other.enqueue(embeddings * 2, labels)
        assert torch.equal(compiled(embeddings, labels), expected)
    assert_same_memory(memory, other)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


BATCH = rows(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((BATCH[0][:, :2], BATCH[1]), ValueError, "as many columns as the memory: wanted 3, got 2"),
        ((BATCH[0].long(), BATCH[1]), TypeError, "embeddings must be float16, bfloat16, float32"),
        ((BATCH[0][0], BATCH[1]), ValueError, r"embeddings must have shape \(rows, D\)"),
        ((BATCH[0].to("meta"), BATCH[1]), ValueError, "on the device of the memory: wanted cpu"),
        ((BATCH[0], BATCH[1][:2]), ValueError, "one entry per row of embeddings: wanted 3, got 2"),
        ((BATCH[0], BATCH[1].float()), TypeError, "labels must be integers"),
        ((BATCH[0], BATCH[1].to(torch.uint64)), TypeError, "labels must be of a dtype that int64"),
        ((BATCH[0].to_sparse(), BATCH[1]), TypeError, "embeddings must be a dense tensor"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_rows_that_do_not_fit_are_named(
    arguments: Any, error: type[Exception], message: str, training: bool
) -> None:
    memory = EmbeddingMemory(4, DIM).train(training)
    with pytest.raises(error, match=message):
        memory(*arguments)
    assert memory.filled == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 3), {}, ValueError, "size must be at least 1, got 0"),
        ((3, 0), {}, ValueError, "dim must be at least 1, got 0"),
        ((3.0, 3), {}, TypeError, "size must be an integer, got float 3.0"),
        ((3, 3), {"dtype": torch.int64}, TypeError, "dtype must be float16, .* got dtype torch.i"),
        ((3, 3), {"group": "all"}, ValueError, "group must be 'world'"),
        ((3, 3), {"group": 3}, TypeError, "group must be 'world'"),
    ],
)
def test_arguments_are_checked(
    arguments: tuple, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        EmbeddingMemory(*arguments, **options)


def test_group_world_before_there_are_processes() -> None:
    memory = EmbeddingMemory(4, DIM, group="world")
    with pytest.raises(RuntimeError, match=re.escape("init_process_group")):
        memory.enqueue(*BATCH)
