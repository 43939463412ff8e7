"""Class losses: the identities that define them, ignored rows, labels out of range, modules."""

from __future__ import annotations

import copy
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels import (
    ClassCircleLoss,
    ClassUnifiedLoss,
    class_circle_loss,
    class_unified_loss,
)
from circle_kernels.arguments import (
    INTEGER_DTYPES,
)

HEADS = (ClassCircleLoss, ClassUnifiedLoss)
LOSSES = {
    "circle": class_circle_loss,
    "unified": lambda *tensors, **options: class_unified_loss(
        *tensors, **{"m": 0.35, "gamma": 64.0, **options}
    ),
}
for_every_head = pytest.mark.parametrize("head_type", HEADS)
for_every_loss = pytest.mark.parametrize("name", LOSSES)


def problem(n: int = 40, num_classes: int = 21, d: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and weight in float64; both matrices require gradients."""
    generator = torch.Generator().manual_seed(5)
    embeddings, weight = (
        torch.randn(rows, d, generator=generator, dtype=torch.float64).requires_grad_()
        for rows in (n, num_classes)
    )
    return embeddings, torch.randint(0, num_classes, (n,), generator=generator), weight


def head_like(head_type: type, weight: Tensor, **options) -> ClassCircleLoss | ClassUnifiedLoss:
    head = head_type(*weight.shape, dtype=weight.dtype, **options)
    head.weight.data.copy_(weight.detach())
    return head


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def assert_same(results: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for ours, truth in zip(results, expected, strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours, truth, rtol=0, atol=tolerance * scale)


def cross_entropy_by_hand(
    embeddings: Tensor, labels: Tensor, weight: Tensor, m: float, gamma: float, name: str
) -> Tensor:
    """Each row's loss as heads in use write it: margins at the target, then cross-entropy."""
    cosine = F.normalize(embeddings) @ F.normalize(weight).T
    target = F.one_hot(labels, len(weight)).bool()
    if name == "unified":  # CosFace
        logits = gamma * torch.where(target, cosine - m, cosine)
    else:
        weight_p = torch.relu(1 + m - cosine.detach())
        weight_n = torch.relu(cosine.detach() + m)
        logits = gamma * torch.where(target, weight_p * (cosine - (1 - m)), weight_n * (cosine - m))
    return F.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize(
    ("name", "m", "gamma"),
    [
        ("circle", 0.25, 256.0),
        ("circle", -0.1, 32.0),
        ("unified", 0.0, 64.0),  # NormFace
        ("unified", 0.35, 64.0),  # AM-Softmax
        ("unified", -0.2, 16.0),
    ],
)
def test_loss_is_the_cross_entropy_of_its_logits(name: str, m: float, gamma: float) -> None:
    embeddings, labels, weight = problem()
    ours = LOSSES[name](embeddings, labels, weight, m=m, gamma=gamma, reduction="none")
    expected = cross_entropy_by_hand(embeddings, labels, weight, m, gamma, name)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.linspace(0.5, 2, len(labels), dtype=torch.float64)
    gradients = [
        torch.autograd.grad(loss, (embeddings, weight), upstream) for loss in (ours, expected)
    ]
    assert_same(*gradients)


@for_every_head
@pytest.mark.parametrize("normalize", [True, False])
def test_logits_of_a_head_give_its_loss_and_gradient(head_type: type, normalize: bool) -> None:
    embeddings, labels, weight = problem()
    labels[::7] = -100
    head = head_like(head_type, weight, m=0.2, gamma=24.0, normalize=normalize)
    leaves = (embeddings, head.weight)
    logits = head.get_logits(embeddings, labels)
    assert logits.shape == (40, 21)
    assert_same(
        value_and_gradients(head(embeddings, labels), *leaves),
        value_and_gradients(F.cross_entropy(logits, labels), *leaves),
    )


def test_undetached_logits_give_the_full_derivative() -> None:
    embeddings, labels, weight = problem()
    head = head_like(ClassCircleLoss, weight, gamma=24.0, detach_weights=False)
    logits = head.get_logits(embeddings, labels)
    leaves = (embeddings, head.weight)
    ours = value_and_gradients(head(embeddings, labels), *leaves)
    assert_same(ours, value_and_gradients(F.cross_entropy(logits, labels), *leaves))
    detached = class_circle_loss(embeddings, labels, head.weight, gamma=24.0)
    assert not torch.allclose(ours[1], torch.autograd.grad(detached, embeddings)[0])


@for_every_head
def test_logits_without_labels_are_scaled_cosines(head_type: type) -> None:
    embeddings, _, weight = problem()
    head = head_like(head_type, weight)
    cosine = F.normalize(embeddings) @ F.normalize(weight).T
    torch.testing.assert_close(head.get_logits(embeddings), head.gamma * cosine)
    half = head.half().get_logits(embeddings.half())
    assert half.dtype == torch.float32  # at gamma 256 half precision has no digits left


@pytest.mark.parametrize("gamma", [1e3, 1e5])
def test_large_gamma_approaches_the_hard_triplet_loss(gamma: float) -> None:
    """Eq. 3 of the paper: loss / gamma tends to [max s_n - min s_p + m]_+."""
    embeddings, labels, weight = (value.detach() for value in problem())
    embeddings[::2] = weight[labels[::2]]  # half of the rows are where they belong
    m = 0.1
    losses = class_unified_loss(embeddings, labels, weight, m=m, gamma=gamma, reduction="none")
    cosine = F.normalize(embeddings) @ F.normalize(weight).T
    target = F.one_hot(labels, 21).bool()
    hardest = cosine.masked_fill(target, -math.inf).max(1).values
    triplet = torch.relu(hardest - cosine[target] + m)
    assert (triplet == 0).any()
    assert (triplet > 0).any()
    # A log-sum-exp of 20 exponents exceeds its largest by no more than log 20.
    bound = math.log(21) / gamma
    assert ((losses / gamma - triplet).abs() <= bound).all()


@for_every_loss
def test_ignored_rows_have_no_loss_and_no_gradient(name: str) -> None:
    embeddings, labels, weight = problem()
    for ignore_index in (-100, 3):
        changed = labels.clone()
        changed[5:15] = ignore_index
        kept = changed != ignore_index
        for reduction in ("none", "mean", "sum", "mean_all"):
            loss = LOSSES[name](
                embeddings, changed, weight, reduction=reduction, ignore_index=ignore_index
            )
            ours = value_and_gradients(loss, embeddings, weight)
            alone = LOSSES[name](embeddings[kept], changed[kept], weight, reduction="none")
            if reduction == "none":
                assert (ours[0][~kept] == 0).all()
                ours[0] = ours[0][kept]
            elif reduction == "mean_all":
                alone = alone.sum() / len(labels)
            else:
                alone = getattr(alone, reduction)()
            assert (ours[1][~kept] == 0).all()
            assert_same(ours, value_and_gradients(alone, embeddings, weight))


@for_every_loss
@pytest.mark.parametrize("num_classes", [1, 5])
@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_compare_is_zero_attached_to_the_graph(
    name: str, num_classes: int, n: int
) -> None:
    """No rows; all rows ignored; one class and so no negatives."""
    embeddings, labels, weight = problem(n, num_classes)
    labels = torch.full_like(labels, 0 if num_classes == 1 else -100)
    loss, *gradients = value_and_gradients(
        LOSSES[name](embeddings, labels, weight), embeddings, weight
    )
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("wrong", [21, -1, 2**40, -(2**63)])
def test_label_out_of_range_is_named(wrong: int) -> None:
    embeddings, labels, weight = problem()
    labels[6] = wrong
    message = re.escape(f"labels must be in [0, 21) or ignore_index=-100, got {wrong} in row 6")
    with pytest.raises(ValueError, match=message):
        class_circle_loss(embeddings, labels, weight)
    with pytest.raises(ValueError, match=message):
        head_like(ClassUnifiedLoss, weight).get_logits(embeddings, labels)


def test_label_out_of_range_is_nan_where_the_host_does_not_look() -> None:
    """Under a compiler as on a device: the row's loss is not finite, and so is no sum with it."""
    embeddings, labels, weight = problem()
    labels[6] = 21
    rows = torch.arange(len(labels))
    for reduction in ("none", "mean", "sum", "mean_all"):
        loss = torch.compile(class_circle_loss, fullgraph=True, backend="aot_eager")(
            embeddings, labels, weight, reduction=reduction
        )
        if reduction == "none":
            assert loss[6].isnan()
            assert loss[rows != 6].isfinite().all()
        else:
            assert loss.isnan()
        assert torch.autograd.grad(loss.sum(), embeddings)[0][6].isnan().all()


def test_narrower_embeddings_are_widened_to_the_weight() -> None:
    """As under autocast: the network's output is half, the parameter is not."""
    embeddings, labels, weight = (value.detach() for value in problem())
    half, weight = embeddings.bfloat16().requires_grad_(), weight.float()
    loss = class_circle_loss(half, labels, weight)
    assert torch.equal(loss, class_circle_loss(half.float(), labels, weight))
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


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


@for_every_head
@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_labels_of_any_integer_dtype_are_indices(dtype: torch.dtype, head_type: type) -> None:
    head = head_type(7, 5, dtype=torch.float64, ignore_index=1)
    embeddings, labels, _ = problem(9, 7, 5)
    labels = (labels % 2 if dtype == torch.bool else labels).to(dtype)
    expected = head(embeddings, labels.long())
    assert torch.equal(head(embeddings, labels), expected)
    assert torch.equal(
        head.get_logits(embeddings, labels), head.get_logits(embeddings, labels.long())
    )


@pytest.mark.parametrize("number", [2**63, 2**64 - 100, 2**64 - 1, 7])
@pytest.mark.parametrize("ignore_index", [-100, -1, 2**63 - 1])
def test_label_beyond_int64_is_neither_a_class_nor_ignored(number: int, ignore_index: int) -> None:
    """As int64 the number -100 has the bits of the uint64 2^64 - 100."""
    embeddings, labels, weight = problem(9, 7, 5)
    labels = torch.tensor([*labels[:4].tolist(), number, *labels[5:].tolist()], dtype=torch.uint64)
    with pytest.raises(ValueError, match=f"got {number} in row 4"):
        class_circle_loss(embeddings, labels, weight, ignore_index=ignore_index)
    unseen = torch.compile(class_circle_loss, fullgraph=True, backend="aot_eager")
    rows = unseen(embeddings, labels, weight, ignore_index=ignore_index, reduction="none")
    assert rows.isnan().tolist() == [row == 4 for row in range(9)]
