"""Wrong arguments of the other losses are errors that name them, what came and what was wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from circle_kernels import losses
from tests.losses.others.naive import OTHER_PAIR_LOSSES, PAIR_LOSSES, SIDE_LOSSES, side_batch
from tests.support.batches import batch_with_references

X, Y, REFS, REF_LABELS = batch_with_references(requires_grad=False)
NAMES = [*OTHER_PAIR_LOSSES, *SIDE_LOSSES, "n-pairs"]
for_every_loss = pytest.mark.parametrize("name", NAMES)
WITH_GROUP = [each for each in NAMES if each in (*OTHER_PAIR_LOSSES, "proxy-anchor", "clip")]


def call(name: str, **options: Any) -> Tensor:
    if name == "n-pairs":
        return losses.n_pairs_loss(X, Y, **options)
    if name in SIDE_LOSSES:
        return SIDE_LOSSES[name].function(*side_batch(name), **options)
    return PAIR_LOSSES[name].function(X, Y, REFS, REF_LABELS, **options)


@for_every_loss
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduction": "avg"}, ValueError, "reduction must be one of .*; got 'avg'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*cuda"),
        ({"backend": 3}, (TypeError, ValueError), "backend"),
        ({"skip_below": 1.0}, ValueError, r"skip_below must be in \[0, 1\), got 1.0"),
        ({"gamma": 3}, TypeError, "unexpected keyword argument 'gamma'"),
        ({"detach_weights": True}, TypeError, "unexpected keyword argument 'detach_weights'"),
    ],
    ids=str,
)
def test_wrong_options_are_named(name: str, options: dict, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(name, **options)


@pytest.mark.parametrize("name", [*WITH_GROUP, "n-pairs"])
def test_normalize_has_to_be_a_flag(name: str) -> None:
    with pytest.raises(TypeError, match="normalize must be"):
        call(name, normalize=2)


@pytest.mark.parametrize("name", WITH_GROUP)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exchange": "star"}, "exchange must be one of"),
        ({"grad_reduction": "avg"}, "grad_reduction must be one of"),
        ({"same_sizes": 2}, "same_sizes must be"),
        ({"group": "wrld"}, "group must be"),
    ],
    ids=str,
)
def test_wrong_options_of_sharing_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(name, **options)


NUMBERS = [
    (name, number)
    for name, numbers in {
        "multi-similarity": ("alpha", "beta"),
        "supcon": ("temperature",),
        "ntxent": ("temperature",),
        "proxy-anchor": ("alpha",),
        "proxy-nca": ("scale",),
        "arcface": ("scale",),
        "cosface": ("scale",),
        "clip": ("logit_scale",),
    }.items()
    for number in numbers
]


@pytest.mark.parametrize(("name", "number"), NUMBERS)
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0.0, ValueError),
        (-1, ValueError),
        (math.inf, ValueError),
        (math.nan, ValueError),
        ("1", TypeError),
        (True, TypeError),
        (None, TypeError),
        (10**400, ValueError),
    ],
    ids=["0", "negative", "inf", "nan", "str", "bool", "None", "huge"],
)
def test_scales_are_finite_and_above_0(name: str, number: str, value: Any, error: type) -> None:
    with pytest.raises(error, match=f"^{number} must be"):
        call(name, **{number: value})


@pytest.mark.parametrize(
    ("name", "number"),
    [("multi-similarity", "base"), ("proxy-anchor", "margin"), ("cosface", "margin")],
)
def test_margins_are_finite_numbers(name: str, number: str) -> None:
    assert call(name, **{number: -3}).isfinite()
    for value, error in ((math.inf, ValueError), (math.nan, ValueError), ("1", TypeError)):
        with pytest.raises(error, match=f"^{number} must be"):
            call(name, **{number: value})


@pytest.mark.parametrize(
    ("margin", "error"),
    [(-0.1, ValueError), (28.6, ValueError), (math.nan, ValueError), ("0.5", TypeError)],
)
def test_margin_of_arcface_is_in_radians_or_a_function(margin: Any, error: type) -> None:
    with pytest.raises(error, match="margin must be"):
        call("arcface", margin=margin)


@pytest.mark.parametrize("name", OTHER_PAIR_LOSSES)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.long(), Y), TypeError, "embeddings must be float16"),
        ((X[0], Y), ValueError, r"embeddings must have shape \(rows, D\)"),
        ((X, Y[:-1]), ValueError, "labels must have one entry per row of embeddings"),
        ((X, Y.double()), TypeError, "labels must be integers"),
        ((X, Y[:, None]), ValueError, r"labels must have shape \(rows,\)"),
        ((X, Y.tolist()), TypeError, "labels must be an integer tensor"),
        ((Y, X), TypeError, "embeddings and labels are swapped"),
        ((X, Y, REFS), ValueError, "ref_emb was given without ref_labels"),
        ((X, Y, None, REF_LABELS), ValueError, "ref_labels was given without ref_emb"),
        ((X, Y, REFS[:, 1:], REF_LABELS), ValueError, "ref_emb must have as many columns"),
        ((X, Y, REFS.to("meta"), REF_LABELS), ValueError, "ref_emb must be on the device"),
        ((X, Y.to("meta")), ValueError, "labels must hold numbers"),
        ((X, None), TypeError, "wants labels, or pair_mask in their place"),
        ((X.to_sparse(), Y), TypeError, "embeddings must be a dense tensor"),
    ],
)
def test_wrong_tensors_of_pair_losses_are_named(
    name: str, arguments: tuple, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        PAIR_LOSSES[name].function(*arguments)


@pytest.mark.parametrize("name", ["proxy-anchor", "proxy-nca", "arcface", "cosface"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y, w: (x, y, w[:, 1:]), ValueError, "must have as many columns"),
        (lambda x, y, w: (x, y, w.long()), TypeError, "must be float16"),
        (lambda x, y, w: (x, y + 7, w), ValueError, r"labels must be in \[0, 7\)"),
        (lambda x, y, w: (x, -1 - y, w), ValueError, r"labels must be in \[0, 7\)"),
        (lambda x, y, w: (x, y[1:], w), ValueError, "labels must have one entry per row"),
        (lambda x, y, w: (x, None, w), TypeError, "labels must be an integer tensor"),
        (lambda x, y, w: (x, y, w.to("meta")), ValueError, "must be on the device"),
        (lambda x, y, w: (y, x, w), TypeError, "swapped"),
    ],
    ids=["depth", "dtype", "too large", "negative", "length", "none", "meta", "swapped"],
)
def test_wrong_tensors_of_losses_with_class_vectors_are_named(
    name: str, change: Callable, error: type, message: str
) -> None:
    named = "proxies " if name == "proxy-anchor" else "weight "
    start = named if message.startswith("must") else ""
    with pytest.raises(error, match=start + message):
        SIDE_LOSSES[name].function(*change(*side_batch(name)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, t: (x, t[1:], 1.0), ValueError, "text_emb must have one row for each row"),
        (lambda x, t: (x, t[:, 1:], 1.0), ValueError, "text_emb must have as many columns"),
        (lambda x, t: (x.long(), t, 1.0), TypeError, "image_emb must be float16"),
        (lambda x, t: (x, None, 1.0), TypeError, "text_emb must be a tensor"),
        (lambda x, t: (x, t.to("meta"), 1.0), ValueError, "text_emb must be on the device of im"),
        (lambda x, t: (x, t, torch.ones(2)), TypeError, "logit_scale must be a number or"),
        (lambda x, t: (x, t, torch.tensor(3)), TypeError, "logit_scale must be a number or"),
        (lambda x, t: (x, t, None), TypeError, "logit_scale must be"),
    ],
    ids=["rows", "depth", "dtype", "none", "meta", "two scales", "integer", "no scale"],
)
def test_wrong_tensors_of_clip_are_named(change: Callable, error: type, message: str) -> None:
    images, _, texts = side_batch("clip")
    with pytest.raises(error, match=message):
        losses.clip_loss(*change(images, texts))


def test_clip_takes_nothing_that_chooses_pairs() -> None:
    for name in ("ignore_label", "pair_mask", "self_index"):
        with pytest.raises(TypeError, match=f"clip_loss\\(\\) takes no {name}"):
            call("clip", **{name: None})


def test_proxy_anchor_has_no_mean_over_all() -> None:
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none'"):
        call("proxy-anchor", reduction="mean_all")


def test_n_pairs_takes_no_references() -> None:
    with pytest.raises(TypeError):
        losses.n_pairs_loss(X, Y, REFS, REF_LABELS)
    with pytest.raises(TypeError, match="labels must be an integer tensor"):
        losses.n_pairs_loss(X, None)
    with pytest.raises(TypeError, match="normalize must be"):
        losses.n_pairs_loss(X, Y, normalize="yes")


@pytest.mark.parametrize("name", [*OTHER_PAIR_LOSSES, *SIDE_LOSSES])
def test_meta_tensors_have_shapes_and_no_numbers(name: str) -> None:
    """As fake tensors do: for who plans a step."""
    tensors = side_batch(name) if name in SIDE_LOSSES else [X, Y, REFS, REF_LABELS]
    function = SIDE_LOSSES[name].function if name in SIDE_LOSSES else PAIR_LOSSES[name].function
    expected = function(*tensors, reduction="none")
    meta = [each.to("meta") for each in tensors]
    loss = function(*meta, reduction="none")
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", expected.shape, expected.dtype)


def test_names_that_are_not_there_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'triplet_loss'"):
        losses.triplet_loss  # noqa: B018
    assert set(losses.__all__) <= set(dir(losses))
    for name in losses.__all__:
        assert getattr(losses, name).__name__ == name


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, r"\), got"), ({"ignore_label": -1}, r"\) or ignore_label=-1, got")],
)
def test_proxy_anchor_says_which_labels_it_takes(options: dict, message: str) -> None:
    x, y, proxies = side_batch("proxy-anchor")
    with pytest.raises(ValueError, match=r"^labels must be in \[0, 7" + message):
        losses.proxy_anchor_loss(x, y + 7, proxies, **options)
