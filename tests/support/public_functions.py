"""Every public function with the tensors that it takes, and what it is worth in float64."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circle_kernels import (
    CircleFormula,
    CircleLoss,
    ClassCircleLoss,
    SparseSGD,
    circle_loss,
    circle_loss_from_similarity,
    class_circle_loss,
    class_unified_loss,
    losses,
    pair_logsumexp,
    unified_loss,
)
from tests.support.raw_ops import call_op

OPTIONS: dict[str, Any] = {"m": 0.25, "gamma": 16.0}
FORMULA = CircleFormula(**OPTIONS)
ROWS, REFERENCES, CLASSES, DEPTH = 18, 5, 7, 4
SELF = ("embeddings", "labels")
PAIRS = (*SELF, "ref_emb", "ref_labels")
HEAD = (*SELF, "weight")
PROXIES = (*SELF, "proxies")
LISTED = ("anchors_pos", "positives", "anchors_neg", "negatives")
FEW_LISTED = tuple(f"few_{name}" for name in LISTED)
KEPT = ("lse_pos", "lse_neg", "saved", "precision")  # what a backward pass gets of its forward pass


def inputs(names: tuple[str, ...]) -> dict[str, Tensor]:
    """A plain tensor for each of these arguments."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels, ref_labels = torch.arange(ROWS) % 3, torch.arange(REFERENCES) % 3
    same = labels[:, None] == labels
    negative = (~same).nonzero().T.contiguous()
    pairs = [*same.fill_diagonal_(False).nonzero().T.contiguous(), *negative]
    inputs = {
        "embeddings": draw(ROWS, DEPTH),
        "labels": labels,
        "ref_emb": draw(REFERENCES, DEPTH),
        "ref_labels": ref_labels,
        "weight": draw(CLASSES, DEPTH),
        "sp": draw(8) / 4,
        "sn": draw(9) / 4,
        **dict(zip(LISTED, pairs, strict=True)),
        # Few enough to be worked off one by one.
        **{f"few_{name}": each[::40] for name, each in zip(LISTED, pairs, strict=True)},
        "parameter": draw(CLASSES, DEPTH),
        "values": draw(3, DEPTH),
        "grad_lse_pos": torch.full((ROWS,), 0.7),
        "grad_lse_neg": torch.full((ROWS,), -0.4),
        "proxies": draw(CLASSES, DEPTH),
        "image_emb": draw(REFERENCES, DEPTH),
        "text_emb": draw(REFERENCES, DEPTH),
        "self_index": torch.arange(ROWS) % (REFERENCES + 1) - 1,
    }
    if "saved" in names:
        made = _raw_forward("auto", **{name: inputs[name] for name in PAIRS})
        inputs.update(zip(KEPT, made, strict=True))
    return {name: inputs[name] for name in names}


@dataclass(frozen=True)
class Function:
    """A public function.

    Args:
        arguments: the tensors that it takes, by name.
        call: computes one output, or several.
        truth: the same for numbers in float64.
        called: what the user calls arguments that have no name of their own.
        own_refusal: an error may come from code that is not ours.
        differentiable: there is a backward pass.
    """

    arguments: tuple[str, ...]
    call: Callable[..., Any]
    truth: Callable[..., Any]
    called: str = ""
    own_refusal: bool = False
    differentiable: bool = True


def _with_reference(arguments: tuple[str, ...], call: Callable[..., Any]) -> Function:
    return Function(arguments, call, functools.partial(call, backend="reference"))


def _head(embeddings: Tensor, labels: Tensor, weight: Tensor, **options: Any) -> Tensor:
    head = ClassCircleLoss(CLASSES, DEPTH, **OPTIONS, **options)
    del head.weight
    head.weight = weight
    return head(embeddings, labels)


def _sampled(embeddings: Tensor, labels: Tensor, weight: Tensor, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options.update(OPTIONS, sample_rate=0.9, generator=generator)
    return class_circle_loss(embeddings, labels, weight, **options)


def _drop_in(
    embeddings: Tensor,
    labels: Tensor | None = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    library: bool = False,
    **listed: Tensor,
) -> Tensor:
    from pytorch_metric_learning import losses as theirs

    from circle_kernels.integrations.pytorch_metric_learning import CircleLoss as DropIn

    loss = theirs.CircleLoss if library else DropIn
    indices = tuple(listed.values()) or None
    return loss(**OPTIONS)(embeddings, labels, indices, ref_emb, ref_labels)


def _supcon_of_lists(embeddings: Tensor, backend: str = "auto", **lists: Tensor) -> Tensor:
    mask = tuple(lists.values())
    return losses.supcon_loss(embeddings, None, pair_mask=mask, backend=backend)


def _sgd(parameter: Tensor, values: Tensor) -> Tensor:
    rows = torch.tensor([[0, 2, 5]])
    parameter.grad = torch.sparse_coo_tensor(rows, values, parameter.shape)
    SparseSGD([parameter], lr=0.1, momentum=0.9).step()
    return parameter.detach()


def _sgd_by_hand(parameter: Tensor, values: Tensor) -> Tensor:
    return parameter.index_add(0, torch.tensor([0, 2, 5]), values, alpha=-0.1)


def _raw_forward(backend: str, **tensors: Tensor) -> Any:
    return call_op("pair_logsumexp", FORMULA, backend=backend, **tensors)


def _raw_logsumexps(backend: str, **tensors: Tensor) -> Any:
    return _raw_forward(backend, **tensors)[:2]


def _raw_backward(backend: str, **tensors: Tensor) -> Any:
    return call_op("pair_logsumexp_backward", FORMULA, backend=backend, **tensors)


def _gradients_by_autograd(**tensors: Tensor) -> Any:
    inputs = [tensors[name] for name in PAIRS]
    leaves = [each.requires_grad_() for each in inputs[::2]]
    statistics = pair_logsumexp(*inputs, formula=FORMULA, backend="reference")
    return torch.autograd.grad(
        statistics, leaves, (tensors["grad_lse_pos"], tensors["grad_lse_neg"])
    )


FUNCTIONS = {
    **{
        f"circle_loss {backend}": _with_reference(
            PAIRS,
            lambda backend=backend, **t: circle_loss(*t.values(), **OPTIONS, backend=backend),
        )
        for backend in ("auto", "cpu", "tiled")
    },
    "circle_loss alone": _with_reference(
        SELF, lambda backend="auto", **t: circle_loss(*t.values(), **OPTIONS, backend=backend)
    ),
    "circle_loss rows": _with_reference(
        PAIRS,
        lambda backend="auto", **t: circle_loss(
            *t.values(), **OPTIONS, backend=backend, reduction="none"
        ),
    ),
    "circle_loss batch": _with_reference(
        PAIRS,
        lambda backend="auto", **t: circle_loss(
            *t.values(), **OPTIONS, backend=backend, scope="batch"
        ),
    ),
    "unified_loss": _with_reference(
        PAIRS, lambda backend="auto", **t: unified_loss(*t.values(), **OPTIONS, backend=backend)
    ),
    "CircleLoss": _with_reference(
        PAIRS, lambda backend="auto", **t: CircleLoss(**OPTIONS, backend=backend)(*t.values())
    ),
    "pair_logsumexp": _with_reference(
        PAIRS,
        lambda backend="auto", **t: pair_logsumexp(*t.values(), formula=FORMULA, backend=backend),
    ),
    "class_circle_loss": _with_reference(
        HEAD,
        lambda backend="auto", **t: class_circle_loss(*t.values(), **OPTIONS, backend=backend),
    ),
    "class_circle_loss sampled": _with_reference(
        HEAD, lambda backend="auto", **t: _sampled(*t.values(), backend=backend)
    ),
    "class_circle_loss sparse": _with_reference(
        HEAD,
        lambda backend="auto", **t: _sampled(*t.values(), backend=backend, sparse_grad=True),
    ),
    "class_unified_loss": _with_reference(
        HEAD,
        lambda backend="auto", **t: class_unified_loss(*t.values(), **OPTIONS, backend=backend),
    ),
    "class_unified_loss smoothed": _with_reference(
        HEAD,
        lambda backend="auto", **t: class_unified_loss(
            *t.values(), **OPTIONS, backend=backend, label_smoothing=0.2
        ),
    ),
    "ClassCircleLoss": _with_reference(
        HEAD, lambda backend="auto", **t: _head(*t.values(), backend=backend)
    ),
    **{
        f"{function.__name__}{of}": _with_reference(
            arguments,
            lambda backend="auto", function=function, **t: function(*t.values(), backend=backend),
        )
        for function, arguments, of in (
            (losses.multi_similarity_loss, PAIRS, ""),
            (losses.supcon_loss, PAIRS, ""),
            (losses.ntxent_loss, PAIRS, ""),
            (losses.ntxent_loss, SELF, " alone"),
            (losses.n_pairs_loss, SELF, ""),
            (losses.proxy_anchor_loss, PROXIES, ""),
            (losses.proxy_nca_loss, HEAD, ""),
            (losses.arcface_loss, HEAD, ""),
        )
    },
    "clip_loss": _with_reference(
        ("image_emb", "text_emb"),
        lambda backend="auto", **t: losses.clip_loss(*t.values(), 3.0, backend=backend),
    ),
    "circle_loss of chosen pairs": _with_reference(
        (*PAIRS, "self_index"),
        lambda self_index, backend="auto", **t: circle_loss(
            *t.values(), **OPTIONS, self_index=self_index, ignore_label=2, backend=backend
        ),
    ),
    "supcon_loss of lists": Function(
        ("embeddings", *LISTED),
        _supcon_of_lists,
        functools.partial(_supcon_of_lists, backend="reference"),
        called="pair_mask",
    ),
    "circle_loss_from_similarity": Function(
        ("sp", "sn"),
        lambda **t: circle_loss_from_similarity(*t.values(), **OPTIONS),
        lambda **t: circle_loss_from_similarity(*t.values(), **OPTIONS),
        own_refusal=True,
    ),
    "SparseSGD": Function(
        ("parameter", "values"), _sgd, _sgd_by_hand, own_refusal=True, differentiable=False
    ),
    **(
        {
            f"drop-in {name}": Function(
                arguments,
                _drop_in,
                functools.partial(_drop_in, library=True),
                called="indices_tuple",
                own_refusal=True,
            )
            for name, arguments in (
                ("with labels", SELF),
                ("with references", PAIRS),
                ("with many pairs", ("embeddings", *LISTED)),
                ("with few pairs", ("embeddings", *FEW_LISTED)),
            )
        }
        if importlib.util.find_spec("pytorch_metric_learning")
        else {}
    ),
    **{
        f"forward op {backend}": Function(
            PAIRS,
            functools.partial(_raw_logsumexps, backend),
            lambda **t: pair_logsumexp(*t.values(), formula=FORMULA, backend="reference"),
            own_refusal=True,
        )
        for backend in ("auto", "tiled")
    },
    **{
        f"backward op {backend}": Function(
            (*PAIRS, *KEPT, "grad_lse_pos", "grad_lse_neg"),
            functools.partial(_raw_backward, backend),
            _gradients_by_autograd,
            own_refusal=True,
            differentiable=False,
        )
        for backend in ("auto", "tiled")
    },
}
