"""What cannot wait for other processes: tracers, which run the code once and maybe here alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from circle_kernels.backends.addressable import under_transforms


def refuse_to_be_traced(who: str, embeddings: Tensor) -> None:
    """Raise where the computation is only traced, on tensors without numbers.

    Raises:
        RuntimeError: it is; ``who`` waits for other processes.
    """
    here = torch.empty(0, device=embeddings.device)  # fake wherever the collectives' own would be
    if (
        any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in (embeddings, here))
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or under_transforms()
    ):
        raise RuntimeError(
            f"{who} waits for the other processes' rows, which cannot be had while the computation "
            "is only traced (torch.export, make_fx, torch.func, fake or meta tensors): call it "
            "outside of what is traced"
        )
