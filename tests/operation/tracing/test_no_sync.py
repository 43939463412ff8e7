"""Nothing on the path makes the host wait for the device: read off the operations it runs."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bench.measuring.operators import CountOperators, waits
from circle_kernels import CircleFormula, circle_loss


class RecordOperators(CountOperators):
    """Also collects moves to the host, which copy nothing where tensors are there already."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith("aten._to_copy") and str((kwargs or {}).get("device")) == "cpu":
            self.waiting.append("copy to the CPU")
        return super().__torch_dispatch__(func, types, args, kwargs)


def run_loss(embeddings, labels, references=None, ref_labels=None) -> None:
    for options in ({}, {"scope": "batch"}, {"reduction": "sum"}, {"reduction": "mean_all"}):
        loss = circle_loss(embeddings, labels, references, ref_labels, backend="tiled", **options)
        loss.backward()


@pytest.mark.parametrize("m", [None, 30])
def test_traced_graph_of_loss_and_gradient_never_waits(m: int | None) -> None:
    embeddings = torch.randn(40, 8)
    labels = torch.arange(40) % 7
    references = () if m is None else (torch.randn(m, 8), torch.arange(m) % 7)

    def step(embeddings, labels, *references):
        leaves = [embeddings.requires_grad_()]
        if references:
            leaves.append(references[0].requires_grad_())
        loss = circle_loss(embeddings, labels, *references, backend="tiled")
        return torch.autograd.grad(loss, leaves)

    graph = make_fx(step)(embeddings, labels, *references).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    names = [str(node.target) for node in calls]
    assert "aten.mm.default" in names or "aten.addmm.default" in names  # the path was traced
    assert "aten.logsumexp.default" in names
    assert [name for name in names if waits(name)] == []
    for node in calls:
        assert node.target is not torch.ops.aten._to_copy.default or "device" not in node.kwargs


@pytest.mark.parametrize("m", [None, 30])
def test_no_operation_of_the_loss_waits(m: int | None) -> None:
    embeddings = torch.randn(40, 8, requires_grad=True)
    labels = torch.arange(40) % 7
    references = () if m is None else (torch.randn(m, 8), torch.arange(m) % 7)
    with RecordOperators() as recorded:
        run_loss(embeddings, labels, *references)
    assert len(recorded.names) > 50
    assert recorded.waiting == []


def test_the_check_sees_a_synchronisation() -> None:
    values = torch.arange(4.0)
    with RecordOperators() as recorded:
        values.sum().item()
        values.nonzero()
        values[values > 1]
        values[values > 1] = torch.arange(2.0)
        values[values > 1] = 0.0  # the same number wherever the mask is
    assert recorded.waiting == [
        "aten._local_scalar_dense.default",
        "aten.nonzero.default",
        "aten.index.Tensor",
        "aten.index_put_.default",
    ]


@pytest.mark.parametrize(
    ("num_rows", "num_references", "kernel"),
    [
        (500, None, "small_forward_kernel"),
        (1500, None, "sum_rows_kernel"),
        (500, 700, "sum_rows_kernel"),
        (20_000, None, "sum_triangle_kernel"),  # sorted by label
        (20_000, 30_000, "sum_rows_kernel"),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "depth"),
    [(torch.float32, 64), (torch.float32, 600), (torch.float16, 64), (torch.bfloat16, 600)],
)
def test_triton_launches_without_waiting(
    dtype: torch.dtype, depth: int, num_rows: int, num_references: int | None, kernel: str
) -> None:
    """Planned on fake CUDA tensors, which hold no data: whatever needs data raises."""
    pytest.importorskip("triton")
    from bench.offline.pretended import DEVICES, plan_launches

    launches = plan_launches(
        DEVICES["sm_90"],
        dtype=dtype,
        num_rows=num_rows,
        depth=depth,
        formula=CircleFormula(),
        num_references=num_references,
    )
    launched = {launch.kernel.__name__ for launch in launches}
    if kernel == "small_forward_kernel" and depth * dtype.itemsize <= 2048:
        assert launched == {kernel, "small_backward_kernel"}
    elif kernel != "small_forward_kernel":
        assert {"prepare_operand_kernel", kernel, "finish_gradient_kernel"} <= launched
