"""Other losses as modules: the functions with their numbers, and the vectors that they learn."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circle_kernels import losses
from tests.losses.others.naive import assert_near, side_batch
from tests.support.batches import batch_with_references, value_and_gradients

PAIRS: dict[str, tuple[type[nn.Module], Callable[..., Tensor], dict[str, Any]]] = {
    "multi-similarity": (
        losses.MultiSimilarityLoss,
        losses.multi_similarity_loss,
        {"alpha": 3.0, "beta": 20.0, "base": 0.1},
    ),
    "supcon": (losses.SupConLoss, losses.supcon_loss, {"temperature": 0.3}),
    "ntxent": (losses.NTXentLoss, losses.ntxent_loss, {"temperature": 0.3}),
    "n-pairs": (losses.NPairsLoss, losses.n_pairs_loss, {"normalize": False}),
}
HEADS: dict[str, tuple[type[nn.Module], Callable[..., Tensor], dict[str, Any]]] = {
    "proxy-anchor": (
        losses.ProxyAnchorLoss,
        losses.proxy_anchor_loss,
        {"margin": 0.2, "alpha": 8.0},
    ),
    "proxy-nca": (losses.ProxyNCALoss, losses.proxy_nca_loss, {"scale": 3.0}),
    "arcface": (losses.ArcFaceLoss, losses.arcface_loss, {"margin": 0.3, "scale": 12.0}),
    "cosface": (losses.CosFaceLoss, losses.cosface_loss, {"margin": 0.3, "scale": 12.0}),
}
CLASS_HEADS = ("proxy-nca", "arcface", "cosface")
for_every_pair_module = pytest.mark.parametrize("name", PAIRS)
for_every_head = pytest.mark.parametrize("name", HEADS)


def head(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    module, _, numbers = HEADS[name]
    return module(7, 8, **{**numbers, **options}).double()


def every_module() -> list[nn.Module]:
    return [
        *(module(**numbers) for module, _, numbers in PAIRS.values()),
        *(head(name) for name in HEADS),
        losses.CLIPLoss(),
    ]


def weight_of(module: nn.Module) -> Tensor:
    return module.proxies if hasattr(module, "proxies") else module.weight


@for_every_pair_module
def test_module_is_its_function(name: str) -> None:
    module, function, numbers = PAIRS[name]
    for options in ({}, {"reduction": "sum", "skip_below": 0.1, "backend": "tiled"}):
        tensors = batch_with_references(dtype=torch.float64)
        if name == "n-pairs":
            tensors = tensors[:2]
        ours = module(**numbers, **options)(*tensors)
        assert torch.equal(ours, function(*tensors, **numbers, **options))
        defaults = module()(*tensors)
        assert torch.equal(defaults, function(*tensors))


@for_every_head
def test_head_is_its_function_of_its_own_vectors(name: str) -> None:
    _, function, numbers = HEADS[name]
    x, y, _ = side_batch("arcface")
    for options in ({}, {"reduction": "sum", "backend": "tiled"}):
        module = head(name, **options)
        weight = weight_of(module)
        assert isinstance(weight, nn.Parameter)
        assert weight.shape == (7, 8)
        ours = value_and_gradients(module(x, y), [x, weight])
        expected = value_and_gradients(function(x, y, weight, **numbers, **options), [x, weight])
        for value, truth in zip(ours, expected, strict=True):
            assert_near(value, truth)


@pytest.mark.parametrize("name", CLASS_HEADS)
def test_logits_of_a_class_head_give_its_loss(name: str) -> None:
    module = head(name)
    x, y, _ = side_batch("arcface")
    leaves = [x, module.weight]
    logits = module.get_logits(x, y)
    expected = value_and_gradients(F.cross_entropy(logits, y), leaves)
    for value, truth in zip(value_and_gradients(module(x, y), leaves), expected, strict=True):
        assert_near(value, truth)
    cosines = F.normalize(x) @ F.normalize(module.weight).T
    assert_near(module.get_logits(x), module.gamma * cosines)
    similarities, classes = module.predict(x, k=2)
    assert torch.equal(classes, cosines.topk(2).indices)
    assert_near(similarities, cosines.topk(2).values)
    hits = (cosines.argmax(1) == y).double().mean()
    assert module.accuracy(x, y).item() == pytest.approx(hits.item())


def test_arcface_takes_a_function_as_its_margin() -> None:
    """MagFace's shape: the angle grows with the row's length."""
    x, y, weight = side_batch("arcface")
    lengths = x.detach().norm(dim=1)
    angles = 0.1 + 0.2 * lengths / lengths.max()

    def margin(similarity: Tensor) -> Tensor:
        return (similarity.clamp(-1, 1).acos() + angles).cos()

    ours = losses.arcface_loss(x, y, weight, margin=margin, scale=16.0)
    cosines = F.normalize(x) @ F.normalize(weight).T
    own = F.one_hot(y, 7) > 0
    logits = torch.where(own, (cosines.acos() + angles[:, None]).cos(), cosines) * 16
    module = losses.ArcFaceLoss(7, 8, margin, 16.0).double()
    module.weight = torch.nn.Parameter(weight.detach().clone())
    assert_near(module.get_logits(x, y), logits)
    leaves = [x, weight]
    expected = value_and_gradients(F.cross_entropy(logits, y), leaves)
    for value, truth in zip(value_and_gradients(ours, leaves), expected, strict=True):
        assert_near(value, truth)


@pytest.mark.parametrize("moved", [lambda s: s.sum(), lambda s: s[:, None], lambda s: 0.5])
def test_arcface_margin_that_would_be_broadcast_is_named(moved: Any) -> None:
    x, y, weight = side_batch("arcface")
    message = rf"margin must return .* shape \({len(x)},\), got"
    with pytest.raises(ValueError, match=message):
        losses.arcface_loss(x, y, weight, margin=moved)
    with pytest.raises(ValueError, match=message):
        losses.ArcFaceLoss(7, 8, moved).get_logits(x.float(), y)


@pytest.mark.parametrize("name", ["ArcFaceLoss", "CosFaceLoss", "ProxyNCALoss"])
@pytest.mark.parametrize("other", ["m", "gamma"])
def test_heads_name_what_they_take_for_the_paper_s_numbers(name: str, other: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes no {other}: it "):
        getattr(losses, name)(7, 8, **{other: 0.3})


def test_arcface_without_an_angle_is_normface() -> None:
    x, y, weight = side_batch("arcface")
    same = losses.arcface_loss(x, y, weight, margin=lambda similarity: similarity)
    assert_near(same, losses.cosface_loss(x, y, weight, margin=0.0))
    assert_near(same, losses.arcface_loss(x, y, weight, margin=0.0))
    easier = losses.arcface_loss(x, y, weight, margin=lambda similarity: similarity - 0.35)
    assert_near(easier, losses.cosface_loss(x, y, weight))


def test_clip_module_learns_the_logarithm_of_its_scale() -> None:
    images, _, texts = side_batch("clip")
    module = losses.CLIPLoss(20.0).double()
    assert [name for name, _ in module.named_parameters()] == ["log_scale"]
    assert module.logit_scale.item() == pytest.approx(20.0)
    scale = torch.tensor(module.logit_scale.item(), dtype=torch.float64, requires_grad=True)
    expected = value_and_gradients(losses.clip_loss(images, texts, scale), [images, scale])
    ours = value_and_gradients(module(images, texts), [images, module.log_scale])
    assert_near(ours[0], expected[0])
    assert_near(ours[1], expected[1])
    assert_near(ours[2], expected[2] * scale.detach())
    assert losses.CLIPLoss(300.0).logit_scale.item() == pytest.approx(100)
    fixed = losses.CLIPLoss(20.0, learned=False)
    assert list(fixed.parameters()) == []
    assert list(fixed.state_dict()) == ["log_scale"]
    assert losses.CLIPLoss().logit_scale.item() == pytest.approx(1 / 0.07)


def test_modules_can_be_copied_pickled_and_printed() -> None:
    for module in every_module():
        for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
            assert repr(other) == repr(module)
            states = module.state_dict(), other.state_dict()
            assert all(map(torch.equal, *(state.values() for state in states)))
    text = repr(losses.MultiSimilarityLoss(3.0, base=0.25, group="world"))
    for part in ("alpha=3.0", "beta=50.0", "base=0.25", "reduction='mean'", "group='world'"):
        assert part in text
    assert "temperature=0.3" in repr(losses.SupConLoss(0.3))
    assert "margin=0.3" in repr(losses.ArcFaceLoss(7, 8, 0.3))
    assert "7, 8" in repr(losses.ArcFaceLoss(7, 8, 0.3))


def test_deep_copies_learn_on_their_own() -> None:
    x, y, _ = side_batch("arcface")
    for name in HEADS:
        module = head(name)
        before = module(x, y).item()
        other = copy.deepcopy(module)
        with torch.no_grad():
            weight_of(other).neg_()
        assert module(x, y).item() == before
        assert other(x, y).item() != before
        other.load_state_dict(module.state_dict())
        assert other(x, y).item() == before


def test_numbers_can_be_changed_between_steps() -> None:
    tensors = batch_with_references(dtype=torch.float64)
    module = losses.SupConLoss()
    module.temperature = 0.5
    assert torch.equal(module(*tensors), losses.supcon_loss(*tensors, temperature=0.5))
    module.temperature = -1
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        module(*tensors)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: losses.SupConLoss(0.0), ValueError, "temperature must be greater than 0"),
        (lambda: losses.NTXentLoss(reduction="avg"), ValueError, "reduction must be one of"),
        (lambda: losses.NTXentLoss(gamma=1), TypeError, "unexpected keyword argument 'gamma'"),
        (lambda: losses.SupConLoss(backend="x"), ValueError, "backend must be one of"),
        (lambda: losses.SupConLoss(exchange="x"), ValueError, "exchange must be one of"),
        (lambda: losses.SupConLoss(ignore_label=0.5), TypeError, "ignore_label must be"),
        (lambda: losses.SupConLoss(pair_mask=None), TypeError, "takes no pair_mask"),
        (lambda: losses.SupConLoss(self_index=None), TypeError, "takes no self_index"),
        (lambda: losses.MultiSimilarityLoss(beta=-1), ValueError, "beta must be greater than 0"),
        (lambda: losses.MultiSimilarityLoss(base=math.nan), ValueError, "base must be finite"),
        (lambda: losses.NPairsLoss(reduction="avg"), ValueError, "reduction must be one of"),
        (lambda: losses.NPairsLoss(skip_below=1), ValueError, "skip_below must be in"),
        (lambda: losses.ProxyAnchorLoss(0, 8), ValueError, "num_classes must be"),
        (lambda: losses.ProxyAnchorLoss(7, 8.5), TypeError, "embedding_dim must be"),
        (lambda: losses.ProxyAnchorLoss(7, 8, alpha=0), ValueError, "alpha must be greater"),
        (lambda: losses.ProxyAnchorLoss(7, 8, reduction="mean_all"), ValueError, "reduction"),
        (lambda: losses.ProxyNCALoss(7, 8, scale=0), ValueError, "scale|gamma"),
        (lambda: losses.CosFaceLoss(7, 0), ValueError, "embedding_dim must be"),
        (lambda: losses.CosFaceLoss(7, 8, colour=1), TypeError, "colour"),
        (lambda: losses.ArcFaceLoss(7, 8, margin=28.6), ValueError, "margin must be in radians"),
        (lambda: losses.ArcFaceLoss(7, 8, label_smoothing=0.1), TypeError, "label_smoothing"),
        (lambda: losses.ArcFaceLoss(7, 8, normalize=False), TypeError, "takes no normalize"),
        (lambda: losses.CLIPLoss(0.0), ValueError, "logit_scale must be greater than 0"),
        (lambda: losses.CLIPLoss(largest="x"), TypeError, "largest must be"),
        (lambda: losses.CLIPLoss(ignore_label=3), TypeError, "clip_loss.. takes no ignore_label"),
        (lambda: losses.CLIPLoss(reduction="x"), ValueError, "reduction must be one of"),
    ],
)
def test_wrong_numbers_fail_where_the_module_is_made(
    make: Callable[[], nn.Module], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_vectors_lie_where_and_in_what_dtype_they_are_asked_for() -> None:
    for module in (losses.ProxyAnchorLoss, losses.CosFaceLoss):
        weight = weight_of(module(7, 8, device="meta", dtype=torch.bfloat16))
        assert (weight.device.type, weight.dtype) == ("meta", torch.bfloat16)
    module = losses.ProxyAnchorLoss(70, 80)
    before = module.proxies.detach().clone()
    module.reset_parameters()
    assert not torch.equal(module.proxies, before)
    # Kaiming's: of variance 2 / 70.
    assert module.proxies.std().item() == pytest.approx(math.sqrt(2 / 70), rel=0.05)
