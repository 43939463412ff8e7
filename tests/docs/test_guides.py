"""The Python of the guides runs as it stands there, and does what they say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from circle_kernels import (
    CircleLoss,
    ClassCircleLoss,
    ClassUnifiedLoss,
    EmbeddingMemory,
    circle_loss,
    clip_grad_norm_,
    losses,
    nonfinite_rows,
    valid_rows,
)
from circle_kernels.evaluation import retrieval_metrics
from tests.support.places import DOCS

CLASSES = 6


def pasted(page: str, **known: Any) -> dict[str, Any]:
    """What is known after all blocks of a page, pasted one after the other."""
    torch.manual_seed(0)
    known = {
        "embeddings": torch.randn(24, 64, requires_grad=True),
        "labels": torch.arange(24) % CLASSES,
        "network": nn.Linear(8, 64),
        "images": torch.randn(24, 8),
        **known,
    }
    for code in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL):
        exec(compile(code, page, "exec"), known)
    return known


# miners-and-memory.md


@pytest.fixture(scope="module")
def mined() -> dict[str, Any]:
    pytest.importorskip("pytorch_metric_learning")
    return pasted("miners-and-memory.md", scenes=torch.arange(24) % 4)


def test_matrix_of_kinds_says_which_pairs_count(mined: dict[str, Any]) -> None:
    kinds = mined["kinds"]
    assert {*kinds.unique().tolist()} == {-1, 0, 1}
    of_whole = circle_loss(mined["embeddings"], mined["labels"], m=0.25, gamma=128)
    assert 0 < mined["loss"] < of_whole
    assert mined["embeddings"].grad.abs().sum() > 0


def test_miners_and_memories_are_the_librarys(mined: dict[str, Any]) -> None:
    from pytorch_metric_learning import losses as library
    from pytorch_metric_learning import miners

    theirs = library.CircleLoss(m=0.25, gamma=128)
    embeddings, labels = mined["embeddings"], mined["labels"]
    expected = {
        "mined": theirs(embeddings, labels, mined["miner"](embeddings, labels)),
        "of_pairs": theirs(embeddings, labels, miners.BatchEasyHardMiner()(embeddings, labels)),
        "of_triplets": theirs(
            embeddings, labels, miners.TripletMarginMiner(margin=0.2)(embeddings, labels)
        ),
        "of_memory": library.CrossBatchMemory(theirs, 64, memory_size=1024)(embeddings, labels),
    }
    for name, value in expected.items():
        assert value > 0
        torch.testing.assert_close(mined[name], value, msg=name)
    torch.testing.assert_close(mined["with_memory"], mined["of_memory"])


def test_memory_goes_on_as_the_librarys(mined: dict[str, Any]) -> None:
    embeddings, labels = mined["embeddings"].detach() + 0.1, mined["labels"]
    expected = mined["cross_batch"](embeddings, labels)
    found = mined["loss_function"](embeddings, labels, **mined["memory"](embeddings, labels))
    torch.testing.assert_close(found, expected)
    assert expected != mined["of_memory"]


def test_triplets_are_an_error_of_the_mask(mined: dict[str, Any]) -> None:
    triplets = (torch.arange(3), torch.arange(3), torch.arange(3))
    with pytest.raises(TypeError, match="pair_mask"):
        circle_loss(mined["embeddings"], None, pair_mask=triplets)


# class-heads.md


@pytest.fixture(scope="module")
def heads() -> dict[str, Any]:
    return pasted("class-heads.md")


def test_loss_is_the_cross_entropy_of_the_logits(heads: dict[str, Any]) -> None:
    logits = heads["logits"]
    assert logits.shape == (24, 1_000)
    torch.testing.assert_close(heads["loss"], F.cross_entropy(logits, heads["labels"]))
    of_all = -logits.log_softmax(1).mean(1).mean()
    torch.testing.assert_close(heads["smoothed"], 0.9 * heads["loss"] + 0.1 * of_all)
    assert heads["classes"].shape == heads["similarities"].shape == (24, 5)
    assert 0 <= heads["accuracy"] <= 1


def test_sampled_head_moves_sampled_rows_alone(heads: dict[str, Any]) -> None:
    sampled, optimizer = heads["sampled"], heads["optimizers"][1]
    before = sampled.weight.detach().clone()
    sampled(heads["network"](heads["images"]), heads["labels"]).backward()
    rows = sampled.weight.grad.coalesce().indices()[0]
    optimizer.step()
    moved = (sampled.weight != before).any(1).nonzero()[:, 0]
    assert len(rows) == 1_000
    assert CLASSES < len(moved) <= len(rows)  # some gradients underflow
    assert torch.isin(moved, rows).all()


def test_scale_is_learned(heads: dict[str, Any]) -> None:
    assert heads["learned"].gamma.grad != 0


def test_label_that_is_no_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="labels must be in"):
        ClassCircleLoss(5, 4)(torch.randn(2, 4), torch.tensor([0, 5]))


def test_defaults_are_those_of_the_table() -> None:
    page = (DOCS / "class-heads.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(?:losses\.)?(\w+Loss)` \| [^|]+ \| ([^|]+) \|$", page, re.M))
    circle, unified = ClassCircleLoss(9, 4), ClassUnifiedLoss(9, 4)
    cosface, arcface = losses.CosFaceLoss(9, 4), losses.ArcFaceLoss(9, 4)
    proxy_nca, proxy_anchor = losses.ProxyNCALoss(9, 4), losses.ProxyAnchorLoss(9, 4)
    assert rows == {
        "ClassCircleLoss": f"m {circle.m}, gamma {circle.gamma:g}",
        "ClassUnifiedLoss": f"m {unified.m}, gamma {unified.gamma:g}",
        "ArcFaceLoss": f"margin {arcface.margin}, scale {arcface.gamma:g}",
        "CosFaceLoss": f"margin {cosface.m}, scale {cosface.gamma:g}",
        "ProxyNCALoss": f"scale {proxy_nca.gamma / 2:g}",
        "ProxyAnchorLoss": f"margin {proxy_anchor.margin}, alpha {proxy_anchor.alpha:g}",
    }


# nan-and-zero.md


def test_rows_without_pairs_and_rows_of_nan_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{row}.png" for row in range(24)]
    with torch.no_grad():
        alone = torch.randn(24, 64)
        pasted("nan-and-zero.md", embeddings=alone, labels=torch.arange(24), names=names)
        assert capsys.readouterr().out.startswith("0 of 24 rows count, 0 have a loss\nmean simil")
        alone[3, 5] = math.nan
        pasted("nan-and-zero.md", embeddings=alone, names=names)
        assert "rows [3], of the images ['3.png']" in capsys.readouterr().out
        pasted("nan-and-zero.md", embeddings=torch.ones(24, 64), names=names)
        assert capsys.readouterr().out.endswith("collapsed\n")


def test_one_point_has_the_value_of_the_page_and_retrieves_nothing() -> None:
    point = torch.ones(24, 8, requires_grad=True)
    labels = torch.arange(24) % CLASSES
    loss = circle_loss(point, labels, m=0.25, gamma=128)
    loss.backward()
    expected = 128 * (1 - 2 * 0.25**2) + math.log(3 * 20)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert point.grad.abs().max() < 1e-6
    assert retrieval_metrics(point.detach(), labels)["recall@1"] == 0


def test_perfect_batch_is_nearly_zero() -> None:
    labels = torch.arange(80) // 5
    assert 1e-9 < circle_loss(torch.eye(16)[labels], labels, m=0.4, gamma=80) < 4e-9


def test_row_of_zeros_has_a_finite_loss_and_a_huge_gradient() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(24, 8)
    embeddings[0] = 0
    embeddings.requires_grad_()
    loss = circle_loss(embeddings, torch.arange(24) % CLASSES)
    loss.backward()
    assert loss.isfinite()
    assert 1e10 < embeddings.grad[0].norm() < 1e15
    assert clip_grad_norm_([embeddings], 1.0).isfinite()


def test_one_row_of_nan_is_in_all_losses_and_in_a_memory_until_it_is_cleared() -> None:
    torch.manual_seed(0)
    embeddings, labels = torch.randn(24, 8), torch.arange(24) % CLASSES
    spoiled = embeddings.clone()
    spoiled[3] = math.inf
    assert circle_loss(spoiled, labels, reduction="none").isnan().all()
    assert nonfinite_rows(spoiled).tolist() == [3]
    memory, loss_function = EmbeddingMemory(100, 8), CircleLoss()
    memory(spoiled, labels)
    assert loss_function(embeddings, labels, **memory(embeddings, labels)).isnan()
    memory.clear()
    assert loss_function(embeddings, labels, **memory(embeddings, labels)).isfinite()


def test_one_class_and_one_of_each_have_no_rows() -> None:
    for labels in (torch.zeros(9, dtype=torch.int64), torch.arange(9)):
        assert not valid_rows(labels).any()
        assert circle_loss(torch.randn(9, 4), labels) == 0


# saving.md


def resumable() -> dict[str, Any]:
    pytest.importorskip("pytorch_metric_learning")
    return pasted("saving.md", network=nn.Linear(8, 16))


def test_resumed_run_is_the_one_that_went_on(tmp_path: Path) -> None:
    batches = [(torch.randn(24, 8), torch.randint(0, 40, (24,))) for _ in range(6)]
    whole, resumed = resumable(), resumable()
    for number, batch in enumerate(batches):
        loss = whole["step"](*batch)
        if number == 2:
            whole["save"](tmp_path / "checkpoint.pt", number)
    torch.manual_seed(7)  # another sample of the classes, but for what resume() restores
    number = resumed["resume"](tmp_path / "checkpoint.pt")
    assert number == 2
    for batch in batches[number + 1 :]:
        again = resumed["step"](*batch)
    assert torch.equal(loss, again)
    for name in ("network", "head", "memory"):
        states = (part["parts"][name].state_dict().values() for part in (whole, resumed))
        assert all(torch.equal(*both) for both in zip(*states, strict=True))


def test_weights_of_the_library_give_its_losses() -> None:
    known = resumable()
    embeddings, labels = torch.randn(24, 16), torch.arange(24) % 10
    expected = known["trained"](embeddings, labels)
    torch.testing.assert_close(known["drop_in"](embeddings, labels), expected)
    torch.testing.assert_close(known["own"](embeddings, labels), expected, rtol=1e-4, atol=0)


def test_states_are_those_of_the_table() -> None:
    scale = nn.Parameter(torch.tensor(8.0))
    assert not CircleLoss().state_dict()
    assert [*CircleLoss(gamma=scale).state_dict()] == ["gamma"]
    assert [*losses.CLIPLoss().state_dict()] == ["log_scale"]
    assert {*ClassUnifiedLoss(9, 4, gamma=scale).state_dict()} == {"weight", "gamma"}
    assert [*losses.ProxyAnchorLoss(9, 4).state_dict()] == ["proxies"]


# other-libraries.md


def test_what_replaces_others_gives_their_values() -> None:
    pytest.importorskip("pytorch_metric_learning")
    page = (DOCS / "other-libraries.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    torch.manual_seed(0)
    known: dict[str, Any] = {
        "embeddings": torch.randn(24, 16),
        "labels": torch.arange(24) % CLASSES,
        "weight": torch.randn(CLASSES, 16),
        "images": torch.randn(24, 16),
        "texts": torch.randn(24, 16),
    }
    assert len(blocks) == 3
    for code in blocks:
        exec(code, known)
        assert known["theirs"] > 0
        torch.testing.assert_close(known["ours"], known["theirs"], rtol=1e-4, atol=1e-4)
    scale = torch.tensor(1 / 0.07)
    expected = losses.clip_loss(known["images"], known["texts"], scale)
    torch.testing.assert_close(known["learned"], expected)


def test_names_of_others_are_errors_that_say_what_they_are_called_here() -> None:
    with pytest.raises(TypeError, match="it is called m here"):
        CircleLoss(margin=0.3)
    with pytest.raises(TypeError, match="it is called gamma here"):
        CircleLoss(scale=30)
