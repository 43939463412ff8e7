"""What is compared: our backends, the naive path, that path compiled, a peer, and the product."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import circle_kernels
from bench.measuring.cases import Case
from bench.measuring.data import make_data
from circle_kernels.backends.choice import BACKENDS, resolve_backend
from circle_kernels.reference import pair_logsumexp_reference

M = 0.4
GAMMA = 80.0

# What skip_below is for: the paper's settings for faces on embeddings that are already trained.
SKIPPING = {"m": 0.25, "gamma": 256.0, "skip_below": 2.0**-12}

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Work:
    """One variant on one input: what the stopwatch and the memory gauge run."""

    function: Function
    embeddings: Tensor
    labels: Tensor
    has_backward: bool = True
    compiles: bool = False

    def reset(self) -> None:
        """Drop the last gradient, so that a step never adds to one."""
        self.embeddings.grad = None

    def forward(self) -> Tensor:
        """The loss, with its graph."""
        return self.function(self.embeddings, self.labels)

    def backward(self, loss: Tensor) -> None:
        """The gradient with respect to the embeddings; nothing for a variant without one."""
        if self.has_backward:
            loss.backward()

    def step(self) -> None:
        """One training step, without an optimiser."""
        self.reset()
        self.backward(self.forward())


@dataclass(frozen=True)
class Variant:
    """A way to compute the loss, and when it can be used.

    Args:
        name: as in tables and on the command line.
        build: makes the function of embeddings and labels.
        missing: why it cannot run a case at all, or None.
        matrices: (N, N) matrices in the inputs' dtype that a training step holds at its peak, as
            measured; 0 where memory does not grow with N squared.
        has_backward: False for the bare product.
        compiles: its first call on a new shape compiles.
    """

    name: str
    build: Callable[[], Function]
    missing: Callable[[Case], str | None]
    matrices: float = 0.0
    has_backward: bool = True
    compiles: bool = False

    def unusable(self, case: Case, memory_limit: float) -> str | None:
        """Why this variant does not run this case, as it stands in tables; None where it does."""
        reason = self.missing(case)
        if reason is not None:
            return f"unavailable: {reason}"
        needed = self.matrices * case.matrix_bytes
        if needed > memory_limit:
            return f"skipped: would need about {needed / 1e9:.1f} GB"
        return None

    def work(self, case: Case, function: Function | None = None) -> Work:
        """The variant on the case's data; ``function`` takes an already built one again."""
        embeddings, labels = make_data(
            case.regime, case.rows, case.dim, dtype=case.torch_dtype, device=case.device
        )
        return Work(
            self.build() if function is None else function,
            embeddings,
            labels,
            self.has_backward,
            self.compiles,
        )


def naive_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Circle loss from the whole similarity matrix, mean over valid rows: what is compiled."""
    formula = circle_kernels.CircleFormula(m=M, gamma=GAMMA)
    lse_pos, lse_neg = pair_logsumexp_reference(embeddings, labels, formula=formula)
    losses = F.softplus(lse_pos + lse_neg)
    valid = (lse_pos != -math.inf) & (lse_neg != -math.inf)
    return losses.sum() / valid.sum().clamp_min(1)


def _product(embeddings: Tensor, labels: Tensor) -> Tensor:
    embeddings = embeddings.detach()
    return torch.mm(embeddings, embeddings.T)


def _package_loss(backend: str) -> Function:
    return functools.partial(circle_kernels.circle_loss, m=M, gamma=GAMMA, backend=backend)


def _skipping_loss() -> Function:
    return functools.partial(circle_kernels.circle_loss, backend="cpu", **SKIPPING)


def _compiled_loss() -> Function:
    return torch.compile(naive_loss, fullgraph=True, dynamic=False)


def _core_loss() -> Function:
    return circle_kernels.CircleLoss(m=M, gamma=GAMMA)


def _compiled_core_loss() -> Function:
    """Called in a compiled function, as the naive loss is and as both would be in a step."""
    loss = _core_loss()

    def step(embeddings: Tensor, labels: Tensor) -> Tensor:
        return loss(embeddings, labels)

    return torch.compile(step, fullgraph=True, dynamic=False)


def _drop_in_loss() -> Function:
    from circle_kernels.integrations.pytorch_metric_learning import CircleLoss

    return CircleLoss(m=M, gamma=GAMMA)


def _pml_loss() -> Function:
    from pytorch_metric_learning.losses import CircleLoss

    return CircleLoss(m=M, gamma=GAMMA)


def _backend_missing(backend: str, case: Case) -> str | None:
    if backend == "triton" and case.device == "cpu":
        return "Triton kernels need a GPU; times of its interpreter would mean nothing"
    try:
        resolve_backend(
            backend, torch.device(case.device), case.torch_dtype, circle_kernels.CircleFormula()
        )
    except (RuntimeError, ImportError) as error:
        return str(error)
    return None


def _skipping_missing(case: Case) -> str | None:
    if case.regime != "trained":
        return "for trained embeddings"
    return _backend_missing("cpu", case)


def _pml_missing(case: Case) -> str | None:
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return "pytorch-metric-learning is not installed"
    return None


def _never_missing(case: Case) -> str | None:
    return None


def _backend(name: str) -> Variant:
    return Variant(
        name,
        build=functools.partial(_package_loss, name),
        missing=functools.partial(_backend_missing, name),
    )


_OURS = tuple(_backend(name) for name in BACKENDS if name != "reference")
_SKIPPING = Variant("cpu-skip", _skipping_loss, _skipping_missing)
_PEERS = (
    Variant("eager", functools.partial(_package_loss, "reference"), _never_missing, matrices=8.2),
    Variant("compile", _compiled_loss, _never_missing, matrices=1.1, compiles=True),
    Variant("pml", _pml_loss, _pml_missing, matrices=16.2),
    Variant("mm", lambda: _product, _never_missing, matrices=1, has_backward=False),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in (*_OURS, _SKIPPING, *_PEERS)}

# Of steps so small that what surrounds the kernels is most of them: the loss as it is used, and
# what a library or a compiler around it takes, beside what it takes around the naive path.
SMALL_STEPS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("core", _core_loss, functools.partial(_backend_missing, "auto")),
        Variant("drop-in", _drop_in_loss, _pml_missing),
        Variant("core-compiled", _compiled_core_loss, _never_missing, compiles=True),
        VARIANTS["compile"],
    )
}

DESCRIPTIONS = {
    "triton": "circle_kernels, Triton kernels",
    "cpu": "circle_kernels, C++ kernel",
    "cpu-skip": "the same, m=0.25, gamma=256, skip_below=2⁻¹²",
    "tiled": "circle_kernels, PyTorch in tiles",
    "eager": "naive PyTorch",
    "compile": "torch.compile of naive PyTorch",
    "pml": "pytorch-metric-learning",
    "core": "circle_kernels.CircleLoss",
    "drop-in": "circle_kernels in place of pytorch-metric-learning's CircleLoss",
    "core-compiled": "circle_kernels.CircleLoss in a function that torch.compile has compiled",
    "mm": "the bare product torch.mm(x, x.T)",
}
