"""What an installed wheel has to do: be whole, compute, and bring no second OpenMP runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import circle_kernels
from circle_kernels.evaluation import retrieval_metrics


def main() -> int:
    """0 if all is well; else 1, with what is not."""
    wrong = [*_missing_files(), *_wrong_numbers(), *_wrong_runtimes()]
    for each in wrong:
        print(f"wrong: {each}", file=sys.stderr)
    if not wrong:
        print(f"circle_kernels {circle_kernels.__version__} works: {circle_kernels.__file__}")
    return 1 if wrong else 0


def _missing_files() -> list[str]:
    """What a wheel has beside modules."""
    folder = Path(circle_kernels.__file__).parent
    wanted = (
        "py.typed",
        "_cpu.pyi",
        "integrations/pytorch_metric_learning/library.pyi",
        "backends/triton/settings_table/settings.json",
    )
    return [f"there is no {name}" for name in wanted if not (folder / name).exists()]


def _wrong_numbers() -> list[str]:
    """Losses, gradients and counts of the C++ kernel that are not PyTorch's."""
    status = circle_kernels.available_backends()["cpu"]
    if not status.startswith("usable"):
        return [f"the C++ kernel is {status}"]
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(512) % 64
    embeddings = torch.randn(64, 96, generator=generator)[labels]
    embeddings = embeddings + torch.randn(512, 96, generator=generator)
    found = {}
    for backend in ("cpu", "reference"):
        leaf = embeddings.double().requires_grad_()
        loss = circle_kernels.circle_loss(leaf, labels, backend=backend)
        (gradient,) = torch.autograd.grad(loss, leaf)
        found[backend] = (loss.detach(), gradient)
    wrong = [
        f"{what} of the C++ kernel differs by {float((ours - theirs).abs().max()):.1e}"
        for what, ours, theirs in zip(("loss", "gradient"), *found.values(), strict=True)
        if not torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    ]
    metrics = [
        retrieval_metrics(embeddings, labels, backend=backend) for backend in ("cpu", "tiled")
    ]
    if metrics[0] != metrics[1]:
        wrong.append(f"metrics of the C++ kernel: {metrics[0]}, of PyTorch: {metrics[1]}")
    return wrong


def _wrong_runtimes() -> list[str]:
    """More than one OpenMP runtime in this process, where the system says what is loaded."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {Path(line.split()[-1]) for line in maps.read_text().splitlines() if "/" in line}
    runtimes = sorted(str(path) for path in paths if path.name.startswith(("libgomp", "libomp")))
    return [f"OpenMP runtimes: {', '.join(runtimes)}"] if len(runtimes) > 1 else []


if __name__ == "__main__":
    sys.exit(main())
