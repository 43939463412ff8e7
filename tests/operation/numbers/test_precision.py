"""Settings for the precision of float32 products: read whatever set them, once for both passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from circle_kernels import precision
from circle_kernels.backends import choice, cpu
from circle_kernels.precision import PRECISIONS, float32_precision
from tests.support.apart import apart
from tests.support.batches import batch_with_references, value_and_gradients
from tests.support.public_losses import LOSSES, assert_close, drop_in, listed_logsumexps, truth
from tests.support.targets import WITH_BFLOAT
from tests.support.toys import backend as toy_backend

# How each is set, and what float32 products on the CPU and on CUDA devices are in then.
SETTINGS = {
    "legacy-high": ("torch.set_float32_matmul_precision('high')", "high", "high"),
    # To PyTorch bfloat16 products are no more than tf32's on CUDA devices.
    "legacy-medium": ("torch.set_float32_matmul_precision('medium')", "medium", "high"),
}
if hasattr(torch.backends, "fp32_precision"):  # PyTorch 2.9
    _CUDA, _MKLDNN = "torch.backends.cuda.matmul", "torch.backends.mkldnn"
    SETTINGS |= {
        # Before 2.9 this and the first one set the same.
        "legacy-cuda": (f"{_CUDA}.allow_tf32 = True", "highest", "high"),
        "cuda": (f"{_CUDA}.fp32_precision = 'tf32'", "highest", "high"),
        "cuda-ieee": (
            f"torch.backends.fp32_precision = 'tf32'; {_CUDA}.fp32_precision = 'ieee'",
            "high",
            "highest",
        ),
        "mkldnn": (f"{_MKLDNN}.matmul.fp32_precision = 'tf32'", "high", "highest"),
        "mkldnn-bf16": (f"{_MKLDNN}.matmul.fp32_precision = 'bf16'", "medium", "highest"),
        "mkldnn-all": (f"{_MKLDNN}.fp32_precision = 'tf32'", "high", None),
        "all": ("torch.backends.fp32_precision = 'tf32'", "high", "high"),
        "all-bf16": ("torch.backends.fp32_precision = 'bf16'", "medium", "highest"),
        "ieee": ("torch.backends.fp32_precision = 'ieee'", "highest", "highest"),
        "old-after-new": (
            f"{_CUDA}.fp32_precision = 'tf32'; torch.set_float32_matmul_precision('highest')",
            "highest",
            "highest",
        ),
    }


def set_as(code: str) -> None:
    """Run a line that sets the precision, in a process apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line in code.split("; "):
            exec(line, {"torch": torch})


@pytest.mark.parametrize("setting", SETTINGS)
@apart
def test_every_way_to_set_the_precision_is_taken(setting: str) -> None:
    code, on_cpu, on_cuda = SETTINGS[setting]
    tensors = list(batch_with_references())
    exact = [value_and_gradients(loss(*tensors), tensors[::2]) for loss in LOSSES.values()]
    set_as(code)
    assert float32_precision("cpu") == on_cpu
    assert on_cuda in (None, float32_precision("cuda"))
    digits = 0.1 if on_cpu == "medium" else 1e-3
    for (name, loss), expected in zip(LOSSES.items(), exact, strict=True):
        results = value_and_gradients(loss(*tensors), tensors[::2])
        if on_cpu == "highest":  # nothing of it concerns the CPU
            assert all(map(torch.equal, results, expected)), name
        assert_close(results, truth(name, tensors), digits)


@pytest.mark.parametrize("setting", SETTINGS)
@apart
def test_every_way_to_set_the_precision_is_taken_by_compiled_steps(setting: str) -> None:
    tensors = list(batch_with_references())
    compiled = torch.compile(LOSSES["logsumexp"], fullgraph=True, backend="aot_eager")
    set_as(SETTINGS[setting][0])
    results = value_and_gradients(compiled(*tensors), tensors[::2])
    expected = value_and_gradients(LOSSES["logsumexp"](*tensors), tensors[::2])
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("name", PRECISIONS)
def test_torch_without_the_newer_settings_is_asked_in_the_old_way(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_HAS_SETTINGS", False)
    torch.set_float32_matmul_precision(name)
    try:
        assert [float32_precision(device) for device in ("cpu", "cuda")] == [name, name]
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``auto`` is a backend that notes the precision of each of its passes."""
    backend = choice.Backend(
        "tests.support.toys.backend", lacks=("listed", "own_columns", "both_sides")
    )
    monkeypatch.setitem(choice.BACKENDS, "toy", backend)
    monkeypatch.setitem(choice._BEST_BACKEND, "cpu", "toy")
    toy_backend.precisions.clear()
    yield
    torch.set_float32_matmul_precision("highest")


def by_checkpoint(*tensors: Tensor) -> Tensor:
    return checkpoint(LOSSES["circle"], *tensors, use_reentrant=False)


def compiled(loss: str) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(LOSSES[loss], fullgraph=True, backend="aot_eager")


# Those that torch compiles are made where they run.
STEPS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    **{name: (lambda loss=loss: loss) for name, loss in LOSSES.items()},
    **{f"compiled {name}": (lambda name=name: compiled(name)) for name in LOSSES},
    "drop-in": lambda: lambda x, y, *_: drop_in()(x, y),
    "drop-in rows": lambda: lambda x, y, *_: drop_in(rows=True)(x, y),
    "torch.func": lambda: (
        lambda x, *rest: torch.func.vjp(lambda x: LOSSES["circle"](x, *rest), x)[0]
    ),
}


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize("name", STEPS)
def test_backward_pass_has_the_precision_of_its_forward_pass(name: str) -> None:
    if name.endswith("clip"):
        pytest.skip("it takes sums of columns, too, which the toy does not have")
    step, tensors = STEPS[name](), batch_with_references()
    for first, second in (("high", "highest"), ("highest", "medium"), ("medium", "high")):
        toy_backend.precisions.clear()
        torch.set_float32_matmul_precision(first)
        output = step(*tensors)
        torch.set_float32_matmul_precision(second)
        output.sum().backward()
        assert toy_backend.precisions == [first, first]


@pytest.mark.usefixtures("_toy")
def test_batches_of_gradients_have_the_precision_of_the_forward_pass() -> None:
    tensors = batch_with_references()
    torch.set_float32_matmul_precision("high")
    losses = LOSSES["logsumexp"](*tensors)
    torch.set_float32_matmul_precision("highest")
    torch.autograd.grad(
        losses, tensors[::2], torch.ones(2), is_grads_batched=True, retain_graph=True
    )
    assert toy_backend.precisions == ["high"] * 3


@pytest.mark.usefixtures("_toy")
def test_checkpoint_takes_the_precision_of_the_forward_pass_that_it_ran_again() -> None:
    torch.set_float32_matmul_precision("high")
    loss = by_checkpoint(*batch_with_references())
    torch.set_float32_matmul_precision("medium")
    loss.backward()
    assert toy_backend.precisions == ["high", "medium", "medium"]


STEPS_OF_THE_KERNEL = {
    **STEPS,
    "listed": lambda: (
        lambda x, _, references, *__: torch.stack(listed_logsumexps(x, references, short=False))
    ),
}


@pytest.mark.parametrize("name", STEPS_OF_THE_KERNEL)
@apart
def test_setting_that_changes_between_the_passes_changes_no_bit(name: str) -> None:
    """With the C++ kernel, where this machine has products in bfloat16; some of these batches are
    too large for a gradient that comes with the loss."""
    step = STEPS_OF_THE_KERNEL[name]()
    rows = {"listed": 12}.get(name, 160)
    tensors = batch_with_references(rows, 64, references=160, classes=7)

    def results(first: str, second: str) -> list[Tensor]:
        torch.set_float32_matmul_precision(first)
        output = step(*tensors)
        torch.set_float32_matmul_precision(second)
        alone = name.startswith(("drop-in", "torch.func"))
        return value_and_gradients(output, tensors[:1] if alone else tensors[::2])

    steady = {each: results(each, each) for each in PRECISIONS}
    for first in PRECISIONS:
        for second in PRECISIONS:
            changed = results(first, second)
            assert all(map(torch.equal, changed, steady[first])), (first, second)
    if any(level in WITH_BFLOAT for level in cpu.supported_levels()):
        assert not torch.equal(steady["medium"][1], steady["highest"][1])
