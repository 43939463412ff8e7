"""What a result is held to: the float64 truth, and how far naive PyTorch is from it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circle_kernels.reference import pair_logsumexp_reference
from tests.support.cases import Case


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
