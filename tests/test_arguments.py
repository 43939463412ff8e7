"""Bad arguments: every error names the argument, what came and what was wanted."""

from __future__ import annotations

import re

import pytest
import torch

from circle_kernels import (
    CircleFormula,
    CircleLoss,
    circle_loss,
    circle_loss_from_similarity,
    pair_logsumexp,
    unified_loss,
)

X = torch.randn(4, 3)
Y = torch.arange(4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], Y), TypeError, "embeddings must be a tensor of shape (rows, D), got list"),
        ((X.int(), Y), TypeError, "embeddings must be float16, bfloat16, float32 or float64, got"),
        ((X[0], Y), ValueError, "embeddings must have shape (rows, D) with D >= 1, got a"),
        ((X[:, :0], Y), ValueError, "embeddings must have shape (rows, D) with D >= 1"),
        ((X[None], Y), ValueError, "of shape (1, 4, 3) on cpu"),
        ((X, None), TypeError, "labels must be an integer tensor of shape (rows,), got NoneType"),
        ((X, Y.tolist()), TypeError, "labels must be an integer tensor"),
        ((X, Y.float()), TypeError, "labels must be integers (one class number per row)"),
        ((X, Y.bool()), TypeError, "labels must be integers"),
        ((X, Y[:, None]), ValueError, "labels of shape (rows, 1) need .squeeze(1)"),
        ((X, Y[:3]), ValueError, "one entry per row of embeddings: wanted 4, got 3"),
        ((X, Y, X), ValueError, "ref_emb was given without ref_labels"),
        ((X, Y, None, Y), ValueError, "ref_labels was given without ref_emb"),
        ((X, Y, X[:, :2], Y), ValueError, "as many columns as embeddings: wanted 3, got 2"),
        ((X, Y, X.to("meta"), Y), ValueError, "ref_emb must be on the device of embeddings"),
        ((X, Y, X, Y[:2]), ValueError, "one entry per row of ref_emb: wanted 4, got 2"),
        ((X, Y, X, Y.float()), TypeError, "ref_labels must be integers"),
        ((X, Y, X, Y[:, None]), ValueError, "ref_labels must have shape (rows,)"),
        ((X, Y, X[0], Y), ValueError, "ref_emb must have shape (rows, D)"),
    ],
)
def test_bad_tensors_are_named(arguments: tuple, error: type[Exception], message: str) -> None:
    for function in (
        lambda *tensors: circle_loss(*tensors),
        lambda *tensors: CircleLoss()(*tensors),
        lambda *tensors: unified_loss(*tensors, m=0.1, gamma=8),
        lambda *tensors: pair_logsumexp(*tensors, formula=CircleFormula()),
    ):
        with pytest.raises(error, match=re.escape(message)):
            function(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"m": float("nan")}, ValueError, "m must be finite, got nan"),
        ({"gamma": float("inf")}, ValueError, "gamma must be finite, got inf"),
        ({"gamma": 0}, ValueError, "gamma must be greater than 0, got 0"),
        ({"gamma": True}, TypeError, "gamma must be a real number, got bool"),
        ({"scope": "rows"}, ValueError, "scope must be one of 'anchor', 'batch'; got 'rows'"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'mean_all', 'sum'"),
        ({"reduction": None}, ValueError, "reduction must be one of"),
        ({"skip_below": 1.0}, ValueError, "skip_below must be in [0, 1), got 1.0"),
        ({"skip_below": -0.1}, ValueError, "skip_below must be in [0, 1)"),
        ({"skip_below": "1"}, TypeError, "skip_below must be a number, got str"),
        (
            {"backend": "cuda"},
            ValueError,
            "backend must be one of 'auto', 'triton', 'cpu', 'tiled'",
        ),
    ],
)
def test_bad_options_are_named_at_the_call_and_at_construction(
    options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        circle_loss(X, Y, **options)
    with pytest.raises(error, match=re.escape(message)):
        CircleLoss(**options)


def test_formula_of_another_type_is_named() -> None:
    with pytest.raises(
        TypeError, match="formula must be a CircleFormula or UnifiedFormula, got st"
    ):
        pair_logsumexp(X, Y, formula="circle")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], Y), TypeError, "sn must be a floating-point tensor"),
        (([0.1], X[0]), TypeError, "sp must be a floating-point tensor, got list"),
        ((X, X[0]), ValueError, "sp must have shape (pairs,)"),
        ((X[0], X[0].double()), TypeError, "sn must have the dtype of sp"),
        ((X[0], X[0].to("meta")), ValueError, "sn must be on the device of sp"),
    ],
)
def test_bad_similarities_are_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        circle_loss_from_similarity(*arguments, m=0.25, gamma=80)
