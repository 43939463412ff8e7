"""Nothing on the path makes the host wait for the device: read off the operations it runs."""

from __future__ import annotations

import pytest
import torch
from cases import INTERPRETED
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from circle_kernels import CircleFormula, circle_loss

# Operations whose result, or whose result's shape, the host has to wait for.
SYNCHRONISING = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "unique",
    "is_nonzero",
    "equal",
    "bincount",
    "repeat_interleave.Tensor",
)


def synchronising(names: list[str]) -> list[str]:
    bad = tuple(f"aten.{name}" + ("." if "." not in name else "") for name in SYNCHRONISING)
    return [name for name in names if name.startswith(bad)]


def is_boolean_index(arguments: tuple) -> bool:
    """Whether an ``aten.index`` selects by a mask, whose count the host would have to know."""
    return any(
        isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
        for index in arguments[1]
        if index is not None
    )


class RecordOperations(TorchDispatchMode):
    """Collects the names of all operations, and masks used as indices, and moves to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.offences: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.names.append(str(func))
        if str(func).startswith(("aten.index.", "aten.index_put")) and is_boolean_index(args):
            self.offences.append(f"boolean {func}")
        if str(func).startswith("aten._to_copy") and str(kwargs.get("device")) == "cpu":
            self.offences.append("copy to the CPU")
        return func(*args, **kwargs)


def run_loss(embeddings, labels, references=None, ref_labels=None) -> None:
    for options in ({}, {"scope": "batch"}, {"reduction": "sum"}, {"reduction": "mean_all"}):
        loss = circle_loss(embeddings, labels, references, ref_labels, backend="tiled", **options)
        loss.backward()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs kernels as host code")
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
    assert synchronising(names) == []
    for node in calls:
        assert node.target is not torch.ops.aten._to_copy.default or "device" not in node.kwargs


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs kernels as host code")
@pytest.mark.parametrize("m", [None, 30])
def test_no_operation_of_the_loss_waits(m: int | None) -> None:
    embeddings = torch.randn(40, 8, requires_grad=True)
    labels = torch.arange(40) % 7
    references = () if m is None else (torch.randn(m, 8), torch.arange(m) % 7)
    with RecordOperations() as recorded:
        run_loss(embeddings, labels, *references)
    assert len(recorded.names) > 50
    assert synchronising(recorded.names) == []
    assert recorded.offences == []


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs kernels as host code")
def test_the_check_sees_a_synchronisation() -> None:
    values = torch.arange(4.0)
    with RecordOperations() as recorded:
        values.sum().item()
        values.nonzero()
        values[values > 1]
    assert len(synchronising(recorded.names)) >= 2
    assert recorded.offences == ["boolean aten.index.Tensor"]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs kernels as host code")
@pytest.mark.parametrize(
    ("num_rows", "num_references", "kernel"),
    [
        (500, None, "sum_rows_kernel"),
        (500, 700, "sum_rows_kernel"),
        (20_000, None, "sum_triangle_kernel"),  # sorted by label
        (20_000, 30_000, "sum_rows_kernel"),
    ],
)
@pytest.mark.parametrize("depth", [64, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_launches_without_waiting(
    dtype: torch.dtype, depth: int, num_rows: int, num_references: int | None, kernel: str
) -> None:
    """Planned on fake CUDA tensors, which hold no data: whatever needs data raises."""
    pytest.importorskip("triton")
    from bench.offline import DEVICES, plan_launches

    launches = plan_launches(
        DEVICES["sm_90"],
        dtype=dtype,
        num_rows=num_rows,
        depth=depth,
        formula=CircleFormula(),
        num_references=num_references,
    )
    assert {"prepare_operand_kernel", kernel, "finish_gradient_kernel"} <= {
        launch.kernel.__name__ for launch in launches
    }
