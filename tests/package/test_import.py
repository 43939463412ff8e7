"""What importing the package costs and loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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


@pytest.fixture(scope="module")
def loaded() -> tuple[list[str], list[str]]:
    """Modules beside torch's after the import, and those that a step on the CPU adds."""
    code = (
        "import json, sys, torch; before = set(sys.modules)\n"
        "import circle_kernels; imported = set(sys.modules)\n"
        "x = torch.randn(8, 4, requires_grad=True)\n"
        "circle_kernels.CircleLoss()(x, torch.arange(8) // 2).backward()\n"
        "print(json.dumps([sorted(imported - before), sorted(set(sys.modules) - imported)]))"
    )
    imported, used = json.loads(run(code))
    assert "circle_kernels" in imported
    return imported, used


def test_import_loads_neither_triton_nor_any_optional_library(loaded) -> None:
    imported, _ = loaded
    assert [name for name in imported if name.startswith(OPTIONAL)] == []
    assert "circle_kernels.backends.triton" not in imported


def test_use_on_the_cpu_does_not_load_triton(loaded) -> None:
    _, used = loaded
    assert [name for name in used if "triton" in name] == []


def test_import_loads_nothing_but_the_package_beside_torch(loaded) -> None:
    imported, _ = loaded
    known = {"circle_kernels", "torch", *sys.stdlib_module_names}
    assert [name for name in imported if name.partition(".")[0] not in known] == []


# Counted after the modules were compiled once. Today it is 252,000: what ten milliseconds hold.
MOST_INSTRUCTIONS = 300_000


@pytest.mark.usefixtures("loaded")  # which compiles them
def test_import_executes_few_instructions_beside_torch() -> None:
    """Instructions of Python's, which are the same however busy the machine is."""
    code = (
        "import sys, torch\n"
        "executed = 0\n"
        "def trace(frame, event, _):\n"
        "    global executed\n"
        "    frame.f_trace_opcodes, frame.f_trace_lines = True, False\n"
        "    executed += event == 'opcode'\n"
        "    return trace\n"
        "sys.settrace(trace)\n"
        "import circle_kernels\n"
        "sys.settrace(None)\n"
        "print(executed)"
    )
    assert 10_000 < int(run(code)) < MOST_INSTRUCTIONS


def test_dir_shows_what_is_public_and_all_of_it_is_there() -> None:
    code = (
        "import importlib, circle_kernels\n"
        "assert sorted(dir(circle_kernels)) == sorted({*circle_kernels.__all__, "
        "'evaluation', 'integrations', 'losses'})\n"
        "for name in dir(circle_kernels):\n"
        "    getattr(circle_kernels, name)\n"
        "for package in (circle_kernels.losses, circle_kernels.evaluation):\n"
        "    assert dir(package) == sorted(package.__all__)\n"
        "assert not hasattr(circle_kernels, 'circle_los')\n"
        "assert circle_kernels.evaluation is importlib.import_module('circle_kernels.evaluation')\n"
        "print('fine')"
    )
    assert run(code) == "fine\n"
