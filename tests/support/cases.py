"""Data regimes and shapes that every backend is tested in, and the yardstick for its error."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, UnifiedFormula
from circle_kernels.backends import cpu
from circle_kernels.formula import PairFormula
from circle_kernels.reference import pair_logsumexp_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INT64 = torch.iinfo(torch.int64)
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
WITH_BFLOAT = ("avx512_bf16", "amx")  # levels of the C++ kernel that only add bfloat16 products


@dataclass(frozen=True)
class Target:
    """A backend on a device, with the dtypes it is tested in."""

    backend: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    tile: int | None = None  # rows and columns of the tiled backend's tiles; None as it chooses
    level: str = ""  # instruction set of the C++ kernel; "" as it chooses

    def __str__(self) -> str:
        device = self.device if self.device != self.backend and self.device != "cpu" else ""
        parts = (self.backend, device, self.tile or "", self.level)
        return "-".join(str(part) for part in parts if part)


def _targets() -> list[object]:
    if INTERPRETED:
        # bfloat16 products are wrong in the interpreter of some Triton versions.
        return [Target("triton", "cpu", (torch.float32, torch.float16))]
    half = (torch.float16, torch.bfloat16)
    every = (torch.float64, torch.float32, *half)
    return [
        # Levels with bfloat16 products take the one below for every other dtype.
        *(
            Target("cpu", "cpu", (torch.bfloat16,) if level in WITH_BFLOAT else every, level=level)
            for level in cpu.supported_levels()
        ),
        Target("tiled", "cpu", every),
        Target("tiled", "cpu", every, tile=16),
        pytest.param(Target("tiled", "cuda", every), marks=ON_GPU),
        pytest.param(Target("triton", "cuda", (torch.float32, *half)), marks=ON_GPU),
    ]


TARGETS = _targets()
for_every_backend = pytest.mark.parametrize("target", TARGETS, ids=str)


def _random(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(n, d, generator=generator, dtype=torch.float64),
        torch.randint(0, max(1, n // 4), (n,), generator=generator),
    )


def _clusters(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tight and well separated, the state that training aims at."""
    _, labels = _random(n, d, generator)
    centres = torch.randn(max(1, n // 4), d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return centres[labels] + 0.05 * noise, labels


def _collapsed(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    embeddings, labels = _random(n, d, generator)
    return embeddings[:1].expand(n, d).clone(), labels


def _duplicates_and_antipodes(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Similarities of exactly 1 and -1, within and across classes."""
    embeddings, labels = _random(n, d, generator)
    embeddings[n // 3 : 2 * (n // 3)] = embeddings[: n // 3]
    embeddings[2 * (n // 3) : 3 * (n // 3)] = -embeddings[: n // 3]
    return embeddings, labels


def _one_class(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _random(n, d, generator)[0], torch.full((n,), 7)


def _distinct_classes(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _random(n, d, generator)[0], torch.randperm(n, generator=generator)


def _mixed_empty_rows(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some classes with one member only."""
    embeddings, labels = _random(n, d, generator)
    labels[::3] = 1000 + torch.arange(len(labels[::3]))
    return embeddings, labels


def _sorted_labels(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    embeddings, labels = _random(n, d, generator)
    return embeddings, labels.sort().values


def _extreme_labels(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ends of int64, and labels that are equal in their lower 32 bits."""
    embeddings, labels = _random(n, d, generator)
    values = torch.tensor([INT64.min, INT64.max, 0, -1, 2**32, -(2**32), INT64.min + 1])
    return embeddings, values[labels % len(values)]


def _unlike_norms(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Norms from 1e-3 to 1e3, as an unnormalised last layer gives."""
    embeddings, labels = _random(n, d, generator)
    return embeddings * torch.logspace(-3, 3, n, dtype=torch.float64)[:, None], labels


def _non_negative(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features behind a ReLU: every similarity is a sum of terms of one sign."""
    embeddings, labels = _random(n, d, generator)
    return embeddings.relu(), labels


def _one_direction(
    noise: float, n: int, d: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One vector and a little noise: what a network's last layer gives before it is trained.

    Gradients are what little is left of long sums after their part along the vector is taken away.
    """
    embeddings, labels = _random(n, d, generator)
    return embeddings[:1] + noise * embeddings.roll(1, 0), labels


Regime = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]

REGIMES: dict[str, Regime] = {
    regime.__name__.removeprefix("_"): regime
    for regime in (
        _random,
        _clusters,
        _collapsed,
        _duplicates_and_antipodes,
        _one_class,
        _distinct_classes,
        _mixed_empty_rows,
        _sorted_labels,
        _extreme_labels,
        _unlike_norms,
        _non_negative,
    )
}
REGIMES |= {
    f"one_direction_{noise:g}": functools.partial(_one_direction, noise)
    for noise in (3e-2, 1e-2, 1e-4, 1e-5)
}


PAPER = CircleFormula()


@dataclass(frozen=True)
class Case:
    """One problem: a regime, a shape and a formula."""

    regime: str
    n: int = 67
    m: int | None = None  # references; None for self mode
    d: int = 24
    formula: PairFormula = PAPER
    normalize: bool = True
    classes: bool = False  # references are class weights: one for each label, in order

    def __str__(self) -> str:
        mode = f"{self.n}" if self.m is None else f"{self.n}x{self.m}"
        formula = f"{self.formula.name}-m{self.formula.m}-g{self.formula.gamma:g}"
        flags = "" if self.normalize else "-unnormalised"
        flags += "" if self.formula.detach_weights else "-undetached"
        flags += "-classes" if self.classes else ""
        return f"{self.regime}-{mode}-D{self.d}-{formula}{flags}"

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> list[Tensor | None]:
        """``[embeddings, labels, ref_emb, ref_labels]``; the embeddings require gradients."""
        generator = torch.Generator().manual_seed(20020 + self.n + self.d)
        total = self.n + (self.m or 0)
        embeddings, labels = REGIMES[self.regime](total, self.d, generator)
        if not self.normalize:
            embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
        # References from the same draw, interleaved, so that they share the rows' classes.
        order = torch.randperm(total, generator=generator) if self.m else torch.arange(total)
        embeddings, labels = embeddings[order].to(dtype), labels[order]
        result: list[Tensor | None] = [embeddings[: self.n], labels[: self.n], None, None]
        if self.m is not None:
            result[2:] = [embeddings[self.n :], labels[self.n :]]
        if self.m is not None and self.classes:
            # The last row is to be ignored.
            result[1] = torch.randint(0, self.m, (self.n,), generator=generator)
            result[1][-1:] = -1
            result[3] = torch.arange(self.m)
        return [
            value if value is None else value.to(device).clone().requires_grad_(index % 2 == 0)
            for index, value in enumerate(result)
        ]


def _cases() -> list[Case]:
    cases = [Case(regime) for regime in REGIMES]
    cases += [Case(regime, m=41) for regime in REGIMES]
    # Gamma and m over the range that users and the paper's ablations span.
    for regime in ("random", "clusters"):
        cases += [
            Case(regime, formula=CircleFormula(m=m, gamma=gamma))
            for m, gamma in ((0.25, 1.0), (-0.1, 32.0), (0.25, 256.0), (0.5, 1024.0))
        ]
    # Every logit clamped: the truth is exactly 0, and nothing allows for an error.
    cases += [Case("collapsed", m=m, formula=CircleFormula(m=-0.1, gamma=16.0)) for m in (None, 9)]
    # Depths tiny, odd and large, on both sides of every switch between kernels.
    cases += [Case("random", n=35, d=d) for d in (1, 2, 3, 16, 65, 128, 129, 256, 257, 515)]
    cases += [Case("random", n=19, m=21, d=d) for d in (1, 7, 130, 300)]
    cases += [Case("random", n=5, d=4096)]
    # Sizes around tile edges.
    cases += [Case("random", n=n, d=8) for n in (1, 2, 16, 63, 64, 65, 128, 193)]
    cases += [Case("random", n=1, m=200, d=8), Case("random", n=200, m=1, d=8)]
    undetached = CircleFormula(m=0.25, gamma=64.0, detach_weights=False)
    general = CircleFormula(
        gamma=32.0, optimum_pos=0.9, optimum_neg=0.1, margin_pos=0.6, margin_neg=0.2
    )
    for formula in (undetached, general, UnifiedFormula(m=0.35, gamma=64.0)):
        cases += [Case("random", formula=formula), Case("clusters", m=41, formula=formula)]
    cases += [Case("random", normalize=False), Case("random", m=41, normalize=False)]
    faces = CircleFormula(m=0.25, gamma=256.0)
    cases += [
        Case("random", n=n, m=m, formula=formula, classes=True)
        for n, m in ((67, 500), (130, 11), (33, 96))
        for formula in (faces, UnifiedFormula(m=0.35, gamma=64.0))
    ]
    return cases


CASES = _cases()
for_every_case = pytest.mark.parametrize("case", CASES, ids=str)

# Sums over so many pairs, or values of d, that roundings which do not cancel are seen.
LARGE_CASES = [
    Case("non_negative", n=1500, d=32, formula=CircleFormula(gamma=1.0)),
    Case("one_direction_0.01", n=1500, d=32),
    Case("one_direction_1e-05", n=1200, d=16),
    Case("one_direction_0.01", n=100, m=8192, d=32),
    Case("one_direction_0.01", n=100, m=8192, formula=UnifiedFormula(m=0.35), classes=True),
    Case("non_negative", n=100, m=8192, normalize=False),
    Case("non_negative", n=200, d=4096),
    Case("clusters", n=200, d=4096, formula=CircleFormula(m=0.25, gamma=256.0)),
    Case("clusters", n=200, d=512, formula=CircleFormula(m=0.25, gamma=256.0)),
]
for_every_large_case = pytest.mark.parametrize("case", LARGE_CASES, ids=str)


def gradients(lse_pos: Tensor, lse_neg: Tensor, inputs: list[Tensor | None]) -> list[Tensor]:
    """Gradients with respect to each of the inputs that require one.

    What arrives from above differs between rows and between positives and negatives, so that no
    mix-up can cancel.
    """
    wanted = [value for value in inputs if value is not None and value.requires_grad]
    generator = torch.Generator().manual_seed(len(lse_pos))
    upstream = torch.rand(2, len(lse_pos), generator=generator, dtype=torch.float64) - 0.3
    upstream = upstream.to(lse_pos.device, lse_pos.dtype)
    return list(torch.autograd.grad((lse_pos, lse_neg), wanted, tuple(upstream)))


@dataclass(frozen=True)
class Yardstick:
    """What a result is held to: the float64 truth, and how far same-dtype eager is from it."""

    truth: Tensor
    eager: Tensor

    def assert_close(self, ours: Tensor, eps: float, gamma: float, scale: float = 0.0) -> None:
        """Fail where ``ours`` is more than twice as wrong as eager, beyond rounding.

        The allowance ``eps (16 + 2 gamma)`` of the scale is what rounding a stored log-sum-exp of
        size gamma costs.
        """
        truth, eager, result = self.truth, self.eager.double(), ours.detach().cpu().double()
        assert result.shape == truth.shape
        finite = truth.isfinite()
        # Where the truth is -inf (an empty set), so must the result be.
        assert torch.equal(result[~finite], truth[~finite])
        if not finite.any():
            return
        scale = max(scale, truth[finite].abs().max().item())
        eager_error = (eager - truth)[finite].abs()
        allowed = eps * (16 + 2 * gamma) * scale
        if eager_error.isfinite().all():
            allowed += 2 * eager_error.max().item()
        error = (result - truth)[finite].abs().max().item()
        assert math.isfinite(error)
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}, scale {scale:.3g}"

    def assert_as_exact_as_eager(self, ours: Tensor) -> None:
        """Fail where ``ours`` is more than twice as wrong as eager in the root mean square.

        Nothing is allowed beside: of many numbers, each rounded as often as eager rounds it.
        """
        result = ours.detach().cpu().double()
        finite = self.truth.isfinite()
        assert torch.equal(result[~finite], self.truth[~finite])
        error, allowed = (
            (value.double() - self.truth)[finite].square().mean().sqrt().item()
            for value in (result, self.eager)
        )
        assert error <= 2 * allowed, f"error {error:.3g}, eager's {allowed:.3g}"


# Tests run through the backends for one case after the other.
@functools.lru_cache(maxsize=4)
def yardsticks(
    case: Case, dtype: torch.dtype, device: str = "cpu"
) -> tuple[list[Yardstick], list[Yardstick]]:
    """For both log-sum-exps, and for each gradient: the truth for these inputs, and eager.

    Large cases want both computed on a GPU; the yardsticks lie on the CPU wherever they come from.
    """
    results = []
    for compute in (torch.float64, dtype):
        embeddings, labels, ref_emb, ref_labels = (
            value.detach().to(compute).requires_grad_()
            if value is not None and value.is_floating_point()
            else value
            for value in case.tensors(dtype, device)
        )
        statistics = pair_logsumexp_reference(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            formula=case.formula,
            normalize=case.normalize,
        )
        grads = gradients(statistics[0], statistics[1], [embeddings, ref_emb])
        results.append(
            ([value.detach().cpu() for value in statistics], [grad.cpu() for grad in grads])
        )
    (truth, truth_grads), (eager, eager_grads) = results
    return (
        [Yardstick(a, b) for a, b in zip(truth, eager, strict=True)],
        [Yardstick(a, b) for a, b in zip(truth_grads, eager_grads, strict=True)],
    )
