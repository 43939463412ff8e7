"""What importing the package costs and loads."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

OPTIONAL = (
    "triton",
    "pytorch_metric_learning",
    "numpy.testing",
    "matplotlib",
    "torchmetrics",
    "sentence_transformers",
    "lightning",
    "tqdm",
    "rich",
    "PIL",
)


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_import_loads_neither_triton_nor_any_optional_library() -> None:
    code = (
        "import json, sys, torch; before = set(sys.modules)\n"
        "import circle_kernels\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = json.loads(run(code))
    assert "circle_kernels" in loaded
    assert [name for name in loaded if name.startswith(OPTIONAL)] == []
    assert "circle_kernels.backends.triton" not in loaded


def test_use_on_the_cpu_does_not_load_triton() -> None:
    code = (
        "import sys, torch, circle_kernels\n"
        "x = torch.randn(8, 4, requires_grad=True)\n"
        "circle_kernels.CircleLoss()(x, torch.arange(8) // 2).backward()\n"
        "print('triton' in sys.modules)"
    )
    assert run(code).strip() == "False"


def test_import_takes_less_than_50_ms_more_than_torch() -> None:
    code = (
        "import time, torch; start = time.perf_counter()\n"
        "import circle_kernels\n"
        "print(time.perf_counter() - start)"
    )
    seconds = statistics.median(float(run(code)) for _ in range(5))
    assert seconds < 0.050, f"import circle_kernels takes {seconds * 1e3:.0f} ms beside torch"
