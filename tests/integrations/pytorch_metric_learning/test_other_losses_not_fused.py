"""What the drop-ins of other losses leave to the library, what they say, and what they store."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses, reducers
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

from circle_kernels.backends import choice, tiled
from circle_kernels.integrations import pytorch_metric_learning as drop_ins
from circle_kernels.integrations.pytorch_metric_learning import pair_losses, pairs
from circle_kernels.operation import softplus_sums
from tests.integrations.pytorch_metric_learning.of_losses import (
    LOSSES,
    MINERS,
    OVER_PAIRS,
    WITH_PROXIES,
    assert_same,
    batch,
    both,
    make,
)
from tests.integrations.pytorch_metric_learning.test_memory import LargestFloatTensor

pytestmark = pytest.mark.filterwarnings("ignore:circle_kernels. the tiled backend")


LEARNED = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))


def told_of(loss, *batches) -> list[str]:
    """What is said of several calls."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for each in batches:
            loss(*each)
    return [str(each.message) for each in caught if "not fused" in str(each.message)]


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("MultiSimilarityLoss", {"distance": distances.LpDistance()}, "LpDistance"),
        ("MultiSimilarityLoss", {"distance": distances.CosineSimilarity(power=2)}, "power=2"),
        ("MultiSimilarityLoss", {"alpha": LEARNED}, "alpha"),
        ("SupConLoss", {"distance": distances.CosineSimilarity(p=1)}, "p=1"),
        ("SupConLoss", {"temperature": LEARNED}, "temperature"),
        ("NTXentLoss", {"distance": distances.SNRDistance()}, "SNRDistance"),
        ("NTXentLoss", {"temperature": LEARNED}, "temperature"),
        ("NPairsLoss", {"distance": distances.LpDistance()}, "LpDistance"),
        ("ProxyAnchorLoss", {"distance": distances.LpDistance()}, "LpDistance"),
        ("ProxyNCALoss", {"distance": distances.LpDistance(power=1)}, "power=1"),
        ("ProxyNCALoss", {"softmax_scale": LEARNED}, "softmax_scale"),
        ("ArcFaceLoss", {"scale": LEARNED}, "scale"),
        ("CosFaceLoss", {"distance": distances.CosineSimilarity(power=2)}, "power=2"),
    ],
)
def test_what_cannot_be_fused_is_the_librarys_with_one_warning(
    name: str, settings: dict, reason: str
) -> None:
    embeddings, labels = batch("random")
    theirs, ours = both(name, **settings)
    told = told_of(ours, (embeddings, labels), (embeddings, labels))
    assert len(told) == 1
    assert told[0].startswith(f"{name} is not fused")
    assert reason in told[0]
    assert_same(theirs, ours, embeddings, labels, fused=False)


def test_learned_numbers_are_told_of_once() -> None:
    embeddings, labels = batch("random")
    temperature = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    for name in ("SupConLoss", "NTXentLoss"):
        loss = make(drop_ins, name)
        loss.temperature = temperature
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(4):
                loss(embeddings, labels).backward()
                with torch.no_grad():
                    temperature += 0.01
        assert len([each for each in caught if "not fused" in str(each.message)]) == 1
        assert temperature.grad != 0


def test_scheduled_plain_numbers_stay_fused() -> None:
    embeddings, labels = batch("random")
    theirs, ours = both("NTXentLoss")
    for temperature in (0.5, 0.2, 0.1):
        theirs.temperature = ours.temperature = temperature
        assert_same(theirs, ours, embeddings, labels)


@pytest.mark.parametrize("name", WITH_PROXIES)
def test_labels_that_are_no_classes_are_what_the_library_makes_of_them(name: str) -> None:
    embeddings, labels = batch("random")
    for wrong in (labels - 5, labels + 38, labels.float()):
        results = []
        for loss in both(name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    results.append(loss(embeddings, wrong).item())
                except (RuntimeError, IndexError) as error:
                    results.append(type(error))
        assert results[0] == results[1]


@pytest.mark.parametrize("name", [*WITH_PROXIES, "NPairsLoss"])
def test_references_are_refused_as_in_the_library(name: str) -> None:
    embeddings, labels = batch("random")
    for loss in both(name):
        with pytest.raises(ValueError, match="ref_emb is not supported"):
            loss(embeddings, labels, None, embeddings.clone(), labels)
        with pytest.raises(ValueError, match="labels are required"):
            loss(embeddings)


def test_weights_of_a_miner_are_added_to_logits_by_the_library() -> None:
    embeddings, labels = batch("random")
    theirs, ours = both("ProxyAnchorLoss")
    indices = MINERS["batch-hard"](embeddings, labels)
    few = tuple(each[:4] for each in indices)
    told = told_of(ours, (embeddings, labels, few), (embeddings, labels, few))
    assert len(told) == 1
    assert "weighs" in told[0]
    assert_same(theirs, ours, embeddings, labels, few, fused=False)
    everyone = tuple(torch.arange(len(labels)) for _ in range(3))  # all weigh the same
    assert_same(theirs, ours, embeddings, labels, everyone)


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "SupConLoss"])
def test_pair_that_is_positive_and_negative_is_the_librarys(name: str) -> None:
    embeddings, labels = batch("random")
    pairs = tuple(torch.tensor(each) for each in ([0, 1, 2], [1, 2, 3], [0, 1, 4], [1, 3, 5]))
    with pytest.raises(AssertionError), pytest.warns(UserWarning, match="both as positive"):
        make(drop_ins, name)(embeddings, labels, pairs)
    # One loss for each pair: there it is the user's business.
    assert_same(*both("NTXentLoss"), embeddings, labels, pairs)


def test_ntxent_of_indices_from_the_end_or_out_of_range_is_the_librarys() -> None:
    embeddings, labels = batch("random")
    pairs = tuple(torch.tensor(each) for each in ([0, 1, 2], [1, 2, 3], [0, 1, -4], [2, 3, 5]))
    theirs, ours = both("NTXentLoss")
    assert len(told_of(ours, (embeddings, labels, pairs))) == 1
    assert_same(theirs, ours, embeddings, labels, pairs, fused=False)
    beyond = (*pairs[:2], pairs[2].abs(), torch.tensor([2, 3, len(labels)]))
    for loss in (theirs, ours):
        with pytest.raises(IndexError):
            loss(embeddings, labels, beyond)


@pytest.mark.parametrize("name", LOSSES)
def test_methods_of_a_subclass_are_called(name: str) -> None:
    embeddings, labels = batch("random")
    method = {
        "NPairsLoss": "cross_entropy",
        "ProxyAnchorLoss": "get_logits",
        "ProxyNCALoss": "nca_computation",
        "ArcFaceLoss": "modify_cosine_of_target_classes",
        "CosFaceLoss": "scale_logits",
    }.get(name, "_compute_loss")
    results = []
    for loss in both(name):
        if method == "cross_entropy":
            loss.cross_entropy = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=0.2)
        else:
            setattr(loss, method, _changed(getattr(loss, method)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(loss(embeddings, labels))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert results[1] != make(drop_ins, name)(embeddings, labels)


def _changed(method):
    def changed(*arguments):
        result = method(*arguments)
        if isinstance(result, Tensor):
            return 0.5 * result
        return {"loss": {**result["loss"], "losses": 2 * result["loss"]["losses"]}}

    return changed


def test_signatures_and_names_are_the_librarys() -> None:
    import inspect

    for name in LOSSES:
        ours, theirs = getattr(drop_ins, name), getattr(losses, name)
        assert issubclass(ours, theirs)
        assert ours.__name__ == name
        assert inspect.signature(ours) == inspect.signature(theirs)


@pytest.mark.parametrize("reducer", [None, reducers.DoNothingReducer()])
@pytest.mark.parametrize("name", LOSSES)
def test_no_matrix_of_floats(name: str, reducer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_BEST_BACKEND", {})
    monkeypatch.setattr(tiled, "_CPU_TILE", 64)
    for side in ("ROWS", "_COLUMNS"):
        monkeypatch.setattr(softplus_sums, side, 64)
    rows = 256
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(rows, 16, generator=generator).requires_grad_()
    # Each class has one row and then another, so that N-pairs has as many pairs as there are.
    labels = torch.arange(rows) % (rows // 2)
    settings = {"num_classes": rows, "embedding_size": 16} if name in WITH_PROXIES else {}
    loss = getattr(drop_ins, name)(reducer=reducer, **settings)
    columns = rows // 2 if name == "NPairsLoss" else rows
    with LargestFloatTensor() as largest:
        value = loss(leaf, labels)
        if isinstance(value, dict):
            value = sum(each["losses"].sum() for each in value.values())
        value.backward()
    assert 0 < largest.numbers < columns * columns


@pytest.mark.parametrize("name", OVER_PAIRS)
def test_short_lists_make_no_matrix_of_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = batch("random", 200)
    everything = lmu.get_all_pairs_indices(labels)
    short = tuple(each[5::101] for each in everything)
    theirs, ours = both(name)

    def matrix(*_):
        raise NotImplementedError

    for module in (pairs, pair_losses):
        monkeypatch.setattr(module, "pair_matrix", matrix)
    with pytest.raises(NotImplementedError):
        ours(embeddings, labels, everything)
    assert_same(theirs, ours, embeddings, labels, short)
