"""What only a device can show: races, streams, CUDA graphs, waiting, and sizes beyond 32 bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from circle_kernels import (
    CircleFormula,
    CircleLoss,
    ClassCircleLoss,
    circle_loss,
    pair_logsumexp,
)
from tests.support.cases import Case
from tests.support.targets import ON_GPU
from tests.support.yardstick import Yardstick, gradients, yardsticks

pytestmark = ON_GPU

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
for_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _rows_in_label_order() -> int:
    """Just enough rows for the kernels in label order, and no multiple of a tile."""
    if not torch.cuda.is_available():
        return 8_001
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    return 128 * math.ceil(math.sqrt(24 * multiprocessors)) + 1


# Rows, references and depth. The large ones take the kernels in label order, in self mode over the
# triangle; depths are a multiple of a tile's and not.
MANY = _rows_in_label_order()
SMALL = [(300, None, 64), (300, 200, 64), (300, None, 600), (300, 200, 600)]
LARGE = [(MANY, None, 64), (MANY - 500, MANY + 1_000, 64), (MANY, None, 600)]
for_every_size = pytest.mark.parametrize(("n", "m", "d"), [*SMALL, *LARGE])


def batch(
    n: int, m: int | None, d: int, dtype: torch.dtype, *, device: str = "cuda", seed: int = 0
) -> list[Tensor]:
    """Embeddings and labels, and those of references where there are some; four to a class."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for size in (n,) if m is None else (n, m):
        embeddings = torch.randn(size, d, generator=generator).to(device, dtype)
        labels = torch.randint(0, n // 4, (size,), generator=generator)
        result += [embeddings.requires_grad_(), labels.to(device)]
    return result


def loss_and_gradients(inputs: list[Tensor], **options) -> list[Tensor]:
    loss = circle_loss(*inputs, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), inputs[::2])]


def assert_bitwise_equal(results: list[Tensor], expected: list[Tensor]) -> None:
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert wanted.isfinite().all()
        assert torch.equal(result, wanted)


@pytest.fixture(autouse=True)
def _memory_for_others():
    """Several processes test on one device, and none may keep what it does not use."""
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize(("n", "m", "d"), LARGE)
def test_large_sizes_are_in_label_order(n: int, m: int | None, d: int) -> None:
    """Or the sizes here would no longer test what they are for."""
    pytest.importorskip("triton")
    from circle_kernels.backends.triton.launch import device_family, num_multiprocessors
    from circle_kernels.backends.triton.plan import plan_walk

    device = torch.device("cuda")
    for dtype in DTYPES:
        walk = plan_walk(
            n, m or n, m is None, dtype, d, device_family(device), num_multiprocessors(device)
        )
        assert walk.by_label
        assert walk.triangle == (m is None)


@for_every_dtype
@for_every_size
def test_results_are_bitwise_the_same_from_run_to_run(
    n: int, m: int | None, d: int, dtype: torch.dtype
) -> None:
    inputs = batch(n, m, d, dtype)
    first = loss_and_gradients(inputs)
    for _ in range(4):
        # Other memory, with something else in it, and a device that is busy when the kernels start.
        noise = torch.full((n, 3 * d), torch.nan, device="cuda")
        noise = noise @ noise.T
        assert_bitwise_equal(loss_and_gradients(inputs), first)
        del noise


@for_every_dtype
@pytest.mark.parametrize(
    "case",
    [
        Case("random", n=MANY, d=64),
        Case("random", n=MANY, d=600),
        Case("clusters", n=MANY, d=64),
        Case("mixed_empty_rows", n=MANY, d=64),
        Case("random", n=MANY - 500, m=MANY + 1_000, d=64),
        Case("clusters", n=MANY - 500, m=MANY + 1_000, d=600),
        Case("random", n=MANY, d=64, formula=CircleFormula(m=0.25, gamma=256.0)),
    ],
    ids=str,
)
def test_sizes_in_label_order_are_as_exact_as_eager(case: Case, dtype: torch.dtype) -> None:
    # The float64 oracle with its gradient holds about ten matrices.
    needed = 10 * 8 * case.n * (case.m or case.n)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"the oracle needs {needed / 1e9:.1f} GB")
    inputs = case.tensors(dtype, "cuda")
    lse_pos, lse_neg = pair_logsumexp(*inputs, formula=case.formula, backend="triton")
    grads = gradients(lse_pos, lse_neg, inputs)
    lse_yardsticks, grad_yardsticks = yardsticks(case, dtype, "cuda")
    for ours, yardstick in zip((lse_pos, lse_neg), lse_yardsticks, strict=True):
        yardstick.assert_close(ours, torch.finfo(torch.float32).eps, case.formula.gamma)
    for ours, yardstick in zip(grads, grad_yardsticks, strict=True):
        yardstick.assert_close(ours, torch.finfo(dtype).eps, case.formula.gamma)


@for_every_dtype
def test_more_than_2_31_pairs_are_as_exact_as_the_tiled_backend(dtype: torch.dtype) -> None:
    """Loss and gradient in self mode, in several bands; the matrix would not fit for the oracle."""
    inputs = batch(50_000, None, 64, dtype)
    formula = CircleFormula()
    results = {}
    for backend, compute in (("triton", dtype), ("tiled", dtype), ("tiled", torch.float64)):
        value = [inputs[0].detach().to(compute).requires_grad_(), inputs[1]]
        statistics = pair_logsumexp(*value, formula=formula, backend=backend)
        results[backend, compute] = [*statistics, *gradients(*statistics, value)]
    for index, ours in enumerate(results["triton", dtype]):
        truth, tiled = (
            results["tiled", compute][index].detach().cpu() for compute in (torch.float64, dtype)
        )
        Yardstick(truth, tiled).assert_close(ours, torch.finfo(ours.dtype).eps, formula.gamma)


@pytest.mark.parametrize("shape", [(70_000, 32, 40_000), (1_100_000, 2048, None)])
def test_offsets_beyond_32_bits(shape: tuple[int, int, int | None]) -> None:
    """N·M, and N·D, beyond 2**31 entries: the last rows are right."""
    n, d, m = shape
    generator = torch.Generator("cuda").manual_seed(0)
    embeddings = torch.randn(n, d, device="cuda", dtype=torch.bfloat16, generator=generator)
    if m is None:
        references, rows = embeddings[-512:], embeddings[-4096:]
        big = torch.arange(n, device="cuda") // 4
        lse = pair_logsumexp(
            references, big[-512:], embeddings, big, formula=CircleFormula(), backend="triton"
        )
        part = pair_logsumexp(
            references, big[-512:], rows, big[-4096:], formula=CircleFormula(), backend="triton"
        )
        torch.testing.assert_close(lse[0], part[0], rtol=1e-5, atol=1e-3)
        return
    references = torch.randn(m, d, device="cuda", dtype=torch.bfloat16, generator=generator)
    labels, ref_labels = torch.arange(n, device="cuda") // 4, torch.arange(m, device="cuda") // 4
    whole = pair_logsumexp(
        embeddings, labels, references, ref_labels, formula=CircleFormula(), backend="triton"
    )
    tail = pair_logsumexp(
        embeddings[-300:].float(),
        labels[-300:],
        references.float(),
        ref_labels,
        formula=CircleFormula(),
        backend="reference",
    )
    for ours, expected in zip(whole, tail, strict=True):
        torch.testing.assert_close(ours[-300:], expected, rtol=1e-4, atol=1e-2)


@for_every_dtype
@for_every_size
def test_step_in_a_cuda_graph_gives_the_same_for_new_data(
    n: int, m: int | None, d: int, dtype: torch.dtype
) -> None:
    static = batch(n, m, d, dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # where kernels compile, which a capture does not allow
        for _ in range(3):
            loss_and_gradients(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_gradients(static)
    for seed in (1, 2):
        new = batch(n, m, d, dtype, seed=seed)
        with torch.no_grad():
            for into, value in zip(static, new, strict=True):
                into.copy_(value)
        graph.replay()
        assert_bitwise_equal(captured, loss_and_gradients(new))


class _LayerAndLoss(nn.Module):
    """The last layer of a network and its loss, as one step that is captured."""

    def __init__(self, width: int, depth: int, **options) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(width, depth, generator=generator))
        self.loss = CircleLoss(**options)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.loss(inputs @ self.weight, labels)


@pytest.mark.parametrize("options", [{}, {"scope": "batch"}, {"reduction": "sum"}], ids=str)
@pytest.mark.parametrize(("n", "d"), [(256, 64), (MANY, 64)])
def test_make_graphed_callables_trains_as_without(n: int, d: int, options: dict) -> None:
    eager, graphed = (_LayerAndLoss(32, d, **options).cuda() for _ in range(2))
    sample, labels = batch(n, None, 32, torch.float32)
    graphed_step = torch.cuda.make_graphed_callables(graphed, (sample, labels))
    for seed in (1, 2):
        inputs, labels = batch(n, None, 32, torch.float32, seed=seed)
        results = []
        for module, step in ((eager, eager), (graphed, graphed_step)):
            module.zero_grad()
            leaf = inputs.detach().requires_grad_()
            loss = step(leaf, labels)
            loss.backward()
            results.append([loss.detach(), leaf.grad, module.weight.grad])
        for ours, expected in zip(results[1], results[0], strict=True):
            # Not bitwise: the layer's products may add up differently in a graph.
            scale = expected.abs().max().item()
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("backend", ["triton", "tiled"])
@for_every_dtype
@for_every_size
def test_no_synchronisation_on_the_device(
    n: int, m: int | None, d: int, dtype: torch.dtype, backend: str
) -> None:
    inputs = batch(n, m, d, dtype)
    settings = [
        {"scope": scope, "reduction": reduction, "backend": backend}
        for scope in ("anchor", "batch")
        for reduction in ("mean", "mean_all", "sum", "none")
    ]
    for options in settings:
        loss_and_gradients(inputs, **options)  # kernels compile
    torch.cuda.set_sync_debug_mode("error")
    try:
        for options in settings:
            loss_and_gradients(inputs, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("num_classes", [1_000, 30_000])
@for_every_dtype
def test_class_loss_and_sampling_do_not_wait(num_classes: int, dtype: torch.dtype) -> None:
    head = ClassCircleLoss(num_classes, 64, device="cuda", dtype=dtype)
    embeddings = torch.randn(300, 64, device="cuda", dtype=dtype).requires_grad_()
    labels = torch.randint(0, num_classes, (300,), device="cuda")
    try:
        for mode in ("default", "error"):  # kernels compile in the first
            torch.cuda.set_sync_debug_mode(mode)
            for sample_rate, sparse_grad in ((1.0, False), (0.4, False), (0.4, True)):
                head.sample_rate, head.sparse_grad = sample_rate, sparse_grad
                head.weight.grad = None
                head(embeddings, labels).backward()
                assert head.weight.grad.is_sparse == sparse_grad
    finally:
        torch.cuda.set_sync_debug_mode("default")


@for_every_dtype
def test_class_loss_is_the_cross_entropy_of_its_logits(dtype: torch.dtype) -> None:
    head = ClassCircleLoss(30_001, 64, gamma=16.0, reduction="none", device="cuda", dtype=dtype)
    embeddings = torch.randn(300, 64, device="cuda", dtype=dtype)
    labels = torch.randint(0, 30_001, (300,), device="cuda")
    losses = head(embeddings, labels)
    logits = head.double().get_logits(embeddings.double(), labels)
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=0, atol=3e-2)
    labels[7] = 30_001
    assert head.to(dtype)(embeddings, labels).isnan().nonzero().tolist() == [[7]]


def test_the_check_sees_a_synchronisation() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(3, device="cuda").sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@for_every_size
def test_kernels_run_on_the_current_stream(n: int, m: int | None, d: int) -> None:
    source = batch(n, m, d, torch.bfloat16)
    expected = loss_and_gradients(source)
    inputs = [torch.zeros_like(value).requires_grad_(value.requires_grad) for value in source]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second in which others would run
        with torch.no_grad():
            for into, value in zip(inputs, source, strict=True):
                into.copy_(value)
        results = loss_and_gradients(inputs)
    stream.synchronize()
    assert_bitwise_equal(results, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize(("current", "other"), [(0, 1), (1, 0)])
@for_every_dtype
@for_every_size
def test_tensors_on_a_device_that_is_not_the_current_one(
    n: int, m: int | None, d: int, dtype: torch.dtype, current: int, other: int
) -> None:
    with torch.cuda.device(other):
        expected = loss_and_gradients(batch(n, m, d, dtype, device=f"cuda:{other}"))
    with torch.cuda.device(current):
        results = loss_and_gradients(batch(n, m, d, dtype, device=f"cuda:{other}"))
        assert torch.cuda.current_device() == current
    assert all(result.device.index == other for result in results)
    assert_bitwise_equal(results, expected)
