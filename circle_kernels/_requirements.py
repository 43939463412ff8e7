"""Raises an ImportError that says what to do where PyTorch is missing or too old.

pip does not install PyTorch with the package: which build is right depends on the machine.
"""

from __future__ import annotations

import importlib.util

OLDEST_TORCH = (2, 7)


def _check_torch() -> None:
    wanted = ".".join(map(str, OLDEST_TORCH))
    advice = (
        f"circle_kernels needs PyTorch {wanted} or newer, which pip does not install with it: "
        "the right build depends on your machine. See https://pytorch.org/get-started/locally/ "
        "or run 'pip install torch'."
    )
    if importlib.util.find_spec("torch") is None:
        raise ImportError(f"torch is not installed. {advice}", name="torch")
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        raise ImportError(f"torch is {torch.__version__}. {advice}", name="torch")


_check_torch()
