"""Who may import whom: every import of the package, and of the C++ kernel, against one table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.places import ROOT

PACKAGE = "circle_kernels"

# Of each room those whose modules it may import, beside its own. A room is a module or a folder,
# and a module belongs to the narrowest that is listed. Imports inside functions count, too.
BOTTOM = ("formula", "options", "arguments", "precision", "logsumexp")
OF_BACKENDS = ("formula", "backends.problem", "backends.rows", "backends.saved_bytes")
OPERATION = ("operation", *BOTTOM, "backends.problem", "backends.addressable")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "_version": (),
    "_later": (),
    "_requirements": (),
    "_cpu": (),
    "precision": (),
    "logsumexp": (),
    "top_k": (),
    "backends.addressable": (),
    "arguments": ("backends.addressable",),
    "options": ("arguments",),
    "pair_formula": ("options", "pointwise"),
    "formula": ("pair_formula", "pointwise"),
    "pointwise": ("pair_formula", "arguments"),  # loaded when a formula of functions is first made
    "reference": ("formula", "logsumexp"),
    "backends": (),
    "backends.problem": ("formula",),
    "backends.rows": ("backends.problem",),
    "backends.saved_bytes": ("backends.problem",),
    "backends.remembered": (),
    "backends.trial": ("formula", "backends.problem", "backends.reference", "backends.saved_bytes"),
    # No backend imports another.
    "backends.reference": ("backends.problem", "backends.saved_bytes", "formula", "reference"),
    "backends.tiled": (*OF_BACKENDS, "logsumexp"),
    "backends.gathered": OF_BACKENDS,
    "backends.cpu": (*OF_BACKENDS, "backends.cpu_arguments", "_cpu"),
    "backends.cpu_counts": ("backends.cpu",),
    "backends.cpu_arguments": ("formula", "pointwise", "backends.problem"),
    "backends.triton": (
        *OF_BACKENDS,
        "_version",
        "pointwise",
        "backends.remembered",
        "backends.trial",
    ),
    "backends.choice": (
        *OF_BACKENDS,
        "options",
        "backends.addressable",
        "backends.reference",
        "backends.tiled",
        "backends.cpu",
        "backends.triton",
    ),
    "distributed": ("arguments", "options", "backends.addressable"),
    "operation": (
        *OPERATION,
        "distributed",
        "backends.saved_bytes",
        "backends.choice",
        "backends.tiled",
        "backends.cpu",
        "backends.gathered",
    ),
    "training": ("options", "arguments", "distributed", "operation"),
    "losses": ("_later", *OPERATION, "distributed", "classes", "backends.choice"),
    "classes": (
        *OPERATION,
        "top_k",
        "distributed",
        "backends.choice",
        "backends.rows",
        "reference",
    ),
    "evaluation": (
        "_later",
        "arguments",
        "options",
        "top_k",
        "distributed",
        "backends.rows",
        "backends.cpu",
        "backends.cpu_counts",
    ),
    # Nobody imports integrations.
    "integrations": (*OPERATION, "losses", "distributed", "training"),
    "__main__": (
        "_version",
        "formula",
        "options",
        "losses",
        "backends.choice",
        "backends.cpu",
        "backends.trial",
    ),
    "": (  # what users import
        "_later",
        "_requirements",
        "_version",
        "formula",
        "backends.choice",
        "operation",
        "losses",
        "evaluation",
        "classes",
        "distributed",
        "training",
    ),
}
# The same for folders of csrc; files of csrc itself may include everything.
MAY_INCLUDE: dict[str, tuple[str, ...]] = {
    "common": (),  # compiled once, without instruction sets
    "kernels": ("common",),  # compiled for each instruction set
    "bindings": ("common",),  # what Python calls
}

PATHS = {
    ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts).removesuffix("__init__"): path
    for suffix in ("*.py", "*.pyi")
    for path in (ROOT / PACKAGE).rglob(suffix)
}
MODULES = {name.rstrip("."): path for name, path in PATHS.items()}


def room(module: str) -> str:
    """The narrowest one of the table that has the module."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in MAY_IMPORT:
            return ".".join(parts[:length])
    return "" if module == "" else "not in the table"


def imported(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Lines and modules of the package that are imported there, or named in a string."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                is_package = module in MODULES and MODULES[module].name == "__init__.py"
                own = [PACKAGE, *module.split(".")] if module else [PACKAGE]
                above = own[: len(own) + is_package - node.level]
                source = ".".join([*above, source]).rstrip(".")
            # What is imported may be a module itself.
            names = [f"{source}.{each.name}" for each in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # For importlib.
            names = [node.value] if node.value.removeprefix(f"{PACKAGE}.") in MODULES else []
        for name in names:
            if name == PACKAGE or name.startswith(f"{PACKAGE}."):
                parts = name.split(".")[1:]
                while parts and ".".join(parts) not in MODULES:
                    parts.pop()
                yield node.lineno, ".".join(parts)


def forbidden(code: str, module: str) -> list[str]:
    """Imports of a module's code that the table does not have."""
    own = room(module)
    found = {
        f"{module}:{line} imports {target or PACKAGE}, "
        f"which {own or PACKAGE} may not ({room(target) or PACKAGE})": None
        for line, target in imported(ast.parse(code), module)
        if room(target) not in (own, *MAY_IMPORT.get(own, ()))
    }
    return list(found)


def test_every_module_imports_only_what_its_room_may() -> None:
    assert len(MODULES) > 40
    broken = [
        line
        for module, path in MODULES.items()
        for line in forbidden(path.read_text("utf-8"), module)
    ]
    assert not broken, "\n".join(["against the table:", *broken])


def test_table_has_a_room_for_every_module_and_no_others() -> None:
    assert [module for module in MODULES if room(module) not in MAY_IMPORT] == []
    assert set(MAY_IMPORT) - {"_cpu"} <= set(MODULES)
    assert set().union(*MAY_IMPORT.values()) <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("backends.tiled", "from circle_kernels.backends import problem, cpu"),
        ("backends.cpu", "def f():\n    import circle_kernels.backends.triton.launch"),
        ("backends.triton.launch", "from circle_kernels.backends.tiled import forward"),
        ("backends.triton.forward_pass.forward", "from circle_kernels.backends import choice"),
        ("backends.triton.launch", "from ..cpu import forward"),
        ("backends", "from . import tiled"),
        ("formula", "from circle_kernels.operation.batch import Batch"),
        ("operation.eager", "from circle_kernels.losses.functional import REDUCTIONS"),
        ("operation.eager", "if x:\n    from ..losses import functional"),
        ("distributed.groups", "from circle_kernels.operation import batch"),
        (
            "operation.shared.band",
            "import importlib\nimportlib.import_module('circle_kernels.classes')",
        ),
        ("classes.modules", "from circle_kernels import CircleLoss"),
        ("classes.prediction", "from circle_kernels.evaluation.neighbours import nearest"),
        ("top_k", "from circle_kernels.evaluation import exact"),
        ("", "from circle_kernels.integrations import pytorch_metric_learning"),
        ("new", "from circle_kernels import formula"),
    ],
)
def test_import_in_the_wrong_direction_is_found(module: str, code: str) -> None:
    assert len(forbidden(code, module)) == 1
    assert forbidden("import torch, triton\nfrom collections import abc", module) == []


def wrong_includes(folder: Path) -> list[str]:
    """Includes in a folder like csrc that the table does not have, or that do not begin there."""
    return [
        f"{path.relative_to(folder)} includes {target}"
        for own, others in MAY_INCLUDE.items()
        for path in sorted((folder / own).rglob("*"))
        if path.suffix in (".h", ".cpp")
        for target in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text("utf-8"), re.M)
        if target.partition("/")[0] in {"..", *MAY_INCLUDE} - {own, *others}
    ]


def test_what_is_compiled_once_includes_nothing_of_an_instruction_set() -> None:
    assert wrong_includes(ROOT / "csrc") == []


def test_include_in_the_wrong_direction_is_found(tmp_path: Path) -> None:
    for name, text in {
        "common/order/ranks.h": '#include <vector>\n#include "common/problem.h"\n',
        "common/problem.h": '  #include "kernels/tiles/tiles.h"\n',
        "kernels/level.h": '#include "common/problem.h"\n#include "kernels/simd.h"\n',
        "common/memory.h": '#include "../kernels/level.h"\n',
        "bindings.cpp": '#include "kernels/level.h"\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert wrong_includes(tmp_path) == [
        "common/memory.h includes ../kernels/level.h",
        "common/problem.h includes kernels/tiles/tiles.h",
    ]
