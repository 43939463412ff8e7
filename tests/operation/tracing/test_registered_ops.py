"""The registered ops, as tracers see them and as users may call them."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from circle_kernels import CircleFormula, circle_loss
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.registered import SAVED_LAYOUT, encode
from tests.support.apart import apart
from tests.support.batches import batch, batch_with_references, randn
from tests.support.public_losses import REFUSALS
from tests.support.raw_ops import call_op


@pytest.mark.parametrize(("backend", "m"), [("cpu", 14), ("cpu", None), ("tiled", 14)])
def test_registered_ops_are_well_formed(backend: str, m: int | None) -> None:
    tensors = Batch(*batch_with_references(24, references=m))
    plain = Batch(*(value if value is None else value.detach() for value in tensors.tensors))
    ops = torch.ops.circle_kernels
    for skip_below, keep in ((0.25, True), (0.0, False)):
        operation = Operation(CircleFormula(), True, skip_below, backend)
        for op, given in ((ops.pair_logsumexp, tensors), (ops.pair_logsumexp_forward, plain)):
            torch.library.opcheck(op.default, (*encode(given, operation), keep, SAVED_LAYOUT))
    encoded = encode(plain, Operation(CircleFormula(), backend=backend))
    *_, saved, precision = ops.pair_logsumexp_forward(*encoded, True, SAVED_LAYOUT)
    grads = (torch.rand(24), torch.rand(24))
    for needs in ((True, True), (True, False), (False, True)) if m else ((True, False),):
        torch.library.opcheck(
            ops.pair_logsumexp_backward.default, (*encoded, precision, saved, *grads, *needs)
        )


def test_traced_without_a_compiler_keeps_the_operation() -> None:
    """A tracer that saw only the C++ kernel's empty outputs would return what lies in memory."""
    tensors = batch(24, requires_grad=False)
    graph = make_fx(lambda x, labels: circle_loss(x, labels))(*tensors)
    assert "circle_kernels.pair_logsumexp_forward" in graph.code
    other = torch.randn(24, 8)
    torch.testing.assert_close(graph(other, tensors[1]), circle_loss(other, tensors[1]))


def test_graph_that_was_traced_without_a_gradient_has_one() -> None:
    embeddings, labels = batch(24, requires_grad=False)
    graph = make_fx(lambda x: circle_loss(x, labels))(embeddings)
    gradients = []
    for loss in (graph, lambda x: circle_loss(x, labels)):
        leaf = embeddings.clone().requires_grad_()
        gradients += torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(*gradients)


@apart
def test_registered_op_refuses_labels_that_it_would_misread() -> None:
    labels = torch.arange(40_000) % 1000
    x = randn(len(labels), 2)
    given = {"embeddings": x, "labels": labels, "ref_emb": x, "ref_labels": labels}
    options = {"backend": "cpu", "keep_for_backward": False}
    for name in ("labels", "ref_labels"):
        for wrong in (labels.int(), labels[:3], labels.double()):
            with pytest.raises(REFUSALS, match=rf"^{name}\b"):
                call_op(
                    "pair_logsumexp_forward", CircleFormula(), **options, **{**given, name: wrong}
                )


@pytest.mark.parametrize("reduction", ["none", "men"])
@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_op_that_returns_a_scalar_refuses_other_reductions(backend: str, reduction: str) -> None:
    """The kernel would write a loss for each row where there is memory for one."""
    embeddings, labels = batch(24, requires_grad=False)
    given = {"embeddings": embeddings, "labels": labels, "backend": backend}
    with pytest.raises(ValueError, match="reduction must be one of"):
        call_op("pair_loss_and_gradients", CircleFormula(), reduction=reduction, **given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_traced_by_torch_jit_computes_with_what_it_is_given(reduction: str) -> None:
    embeddings, labels = batch(24, requires_grad=False)
    traced = torch.jit.trace(
        lambda *tensors: circle_loss(*tensors, reduction=reduction),
        (embeddings, labels),
        check_trace=False,
    )
    other, others = torch.randn(24, embeddings.shape[1]), labels.flip(0) // 2
    expected = circle_loss(other, others, reduction=reduction)
    torch.testing.assert_close(traced(other, others), expected)


def test_reference_says_where_it_has_no_gradient() -> None:
    embeddings, labels = batch(24, requires_grad=False)
    given = {"embeddings": embeddings, "labels": labels, "reduction": "mean"}
    with torch.inference_mode(), pytest.raises(RuntimeError, match="differentiated by autograd"):
        call_op("pair_loss_and_gradients", CircleFormula(), backend="reference", **given)
