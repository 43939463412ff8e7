"""Options and modules of class losses: what is taken, kept, and named as wrong."""

from __future__ import annotations

import copy
import math
import pickle
import re

import pytest
import torch

from circle_kernels import ClassCircleLoss, ClassUnifiedLoss, class_circle_loss, class_unified_loss
from tests.classes.problems import for_every_head, problem


@for_every_head
def test_module_holds_the_weight_and_survives_copies(head_type: type) -> None:
    head = head_type(7, 5, gamma=8.0, ignore_index=-1, dtype=torch.float64)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert list(head.state_dict()) == ["weight"]
    assert head.weight.shape == (7, 5)
    assert head.weight.std() > 0
    embeddings, labels, _ = problem(9, 7, 5)
    labels[0] = -1
    expected = head(embeddings, labels)
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(copied(embeddings, labels), expected)
    assert "7, 5, m=" in repr(head)
    assert "gamma=8.0" in repr(head)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"m": math.nan}, ValueError, "m must be finite"),
        ({"gamma": 0.0}, ValueError, "gamma must be greater than 0"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer, got float 0.5"),
        ({"sample_rate": 0.0}, ValueError, "sample_rate must be in (0, 1], got 0.0"),
        ({"sample_rate": 1.5}, ValueError, "sample_rate must be in (0, 1], got 1.5"),
        ({"sample_rate": "all"}, TypeError, "sample_rate must be a real number, got str"),
        ({"sample_rate": True}, TypeError, "sample_rate must be a real number, got bool True"),
        ({"sample_rate": torch.ones(1)}, TypeError, "sample_rate must be a real number, got a tor"),
        ({"ignore_index": True}, TypeError, "ignore_index must be an integer, got bool True"),
        ({"ignore_index": 2**70}, ValueError, "ignore_index must be at most 2**63 - 1, got 11805"),
        ({"ignore_index": -(10**5000)}, ValueError, "ignore_index must be at least -922337203685"),
        ({"ignore_index": torch.tensor(1.0)}, TypeError, "ignore_index must be an integer, got a"),
        ({"m": -2}, ValueError, "m must be greater than -1 and less than 1, got -2"),
        ({"normalize": "false"}, TypeError, "normalize must be True or False, got str 'false'"),
        ({"detach_weights": 0}, TypeError, "detach_weights must be True or False, got int 0"),
        ({"sparse_grad": "no"}, TypeError, "sparse_grad must be True or False, got str 'no'"),
        ({"sample_correction": 1}, TypeError, "sample_correction must be True or False, got int"),
        ({"scale": 64}, TypeError, "() takes no scale: it is called gamma here"),
        ({"margin": 0.3}, TypeError, "() takes no margin: it is called m here"),
        ({"skip_below": 1.0}, ValueError, "skip_below must be in [0, 1)"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_options_are_named_at_the_call_and_at_construction(
    options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        ClassCircleLoss(7, 5, **options)
    embeddings, labels, weight = problem()
    with pytest.raises(error, match=re.escape(message)):
        class_circle_loss(embeddings, labels, weight, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y, w: (x, y, w[:, :3]), ValueError, "weight must have as many columns as"),
        (lambda x, y, w: (x, y, None), TypeError, "weight must be a tensor of shape (rows, D)"),
        (lambda x, y, w: (x, y[1:], w), ValueError, "labels must have one entry per row"),
        (lambda x, y, w: (x, y.double(), w), TypeError, "labels must be integers"),
        (lambda x, y, w: (x[0], y, w), ValueError, "embeddings must have shape (rows, D)"),
        (
            lambda x, y, w: (y, x, w),
            TypeError,
            "embeddings and labels are swapped: got a torch.int",
        ),
        (lambda x, y, w: (x, w, y), TypeError, "weight and labels are swapped: got a torch.int64"),
        (
            lambda x, y, w: (x, y, w[: x.shape[1], :3]),
            ValueError,
            "weight must have as many columns as embeddings (a module's embedding_dim): wanted 12, "
            "got 3; are num_classes and embedding_dim swapped?",
        ),
    ],
)
def test_bad_tensors_are_named(change, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        class_circle_loss(*change(*problem()))


@pytest.mark.parametrize(("sizes", "name"), [((0, 4), "num_classes"), ((4, 0), "embedding_dim")])
def test_sizes_of_a_head_are_checked(sizes: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ClassCircleLoss(*sizes)


@for_every_head
def test_head_with_swapped_arguments_names_them(head_type: type) -> None:
    embeddings, labels, _ = problem(9, 7, 5)
    with pytest.raises(TypeError, match="embeddings and labels are swapped"):
        head_type(7, 5)(labels, embeddings)
    with pytest.raises(
        ValueError, match=r"\(a module's embedding_dim\): wanted 5, got 7; are num_cl"
    ):
        head_type(5, 7, dtype=torch.float64)(embeddings, labels)
    with pytest.raises(TypeError, match="takes no scale: it is called gamma here"):
        head_type(7, 5, scale=8)


def test_unified_loss_takes_any_margin() -> None:
    embeddings, labels, weight = problem()
    near, far = (class_unified_loss(embeddings, labels, weight, m=m, gamma=1.0) for m in (0, 9))
    assert far > near + 8
    assert ClassUnifiedLoss(7, 5, m=9).m == 9


@pytest.mark.parametrize("kind", ["numpy", "tensor"])
def test_numbers_of_other_libraries_are_taken(kind: str) -> None:
    if kind == "numpy":
        numpy = pytest.importorskip("numpy")
        integer, real, flag = numpy.int32, numpy.float32, numpy.bool_
    else:
        integer, real, flag = torch.tensor, torch.tensor, bool
    embeddings, labels, weight = problem(9, 7, 5)
    labels[0] = 3
    settings = {"sample_rate": 0.5, "skip_below": 0.25, "normalize": False, "ignore_index": 3}
    others = {
        "sample_rate": real(0.5),
        "skip_below": real(0.25),
        "normalize": flag(False),
        "ignore_index": integer(3),
    }
    torch.manual_seed(0)
    expected = class_circle_loss(embeddings, labels, weight, **settings)
    torch.manual_seed(0)
    assert torch.equal(class_circle_loss(embeddings, labels, weight, **others), expected)
    head, other = (
        ClassCircleLoss(7, 5, **settings),
        ClassCircleLoss(integer(7), integer(5), **others),
    )
    assert repr(head) == repr(other)
    assert class_circle_loss(embeddings, labels, weight, sample_rate=integer(1)) > 0


def test_margin_and_scale_of_numpy_are_those_of_python() -> None:
    numpy = pytest.importorskip("numpy")
    embeddings, labels, weight = problem()
    m, gamma = numpy.float32(0.3), numpy.float16(48)
    ours = class_circle_loss(embeddings, labels, weight, m=m, gamma=gamma)
    assert torch.equal(ours, class_circle_loss(embeddings, labels, weight, m=float(m), gamma=48.0))
