"""Counts what makes code hard to take in: long lists of arguments, long files, full folders.

    python tools/shape.py [folder of a checkout]

Prints every place that breaks a rule, and the counts; the exit status is 1 where there is any.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LONG_SIGNATURE = 8  # parameters
LONG_SIGNATURES = 5  # functions that may have so many
MOST_PARAMETERS = 10
MOST_POSITIONAL = 6  # arguments of a call
MOST_LINES = 320
MOST_FILES = 14

PACKAGE = PurePosixPath("circle_kernels")
# Kernels take flat lists: what a launcher passes them becomes part of their signature.
KERNELS = PACKAGE / "backends" / "triton"
INTEGRATIONS = PACKAGE / "integrations"
FOLDERS = ("circle_kernels", "csrc", "bench", "tests", "examples", "recipes", "tools")
SUFFIXES = (".py", ".pyi", ".h", ".hpp", ".cpp", ".cmake")
CMAKE = "CMakeLists.txt"


@dataclass(frozen=True)
class Place:
    """Where something stands, and how much of it there is."""

    file: PurePosixPath
    line: int
    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.name}"


def main(root: Path) -> int:
    """Print what breaks a rule, then the counts."""
    files = tracked_files(root)
    modules = {
        file: ast.parse((root / file).read_text("utf-8"))
        for file in files
        if file.suffix == ".py" and PACKAGE in file.parents and KERNELS not in file.parents
    }
    signatures = sorted(
        long_signatures(modules, exported_names(root)), key=lambda place: -place.count
    )
    calls = list(long_calls(modules))
    lines = sorted(lengths(root, files), key=lambda place: -place.count)
    folders = full_folders(files)

    broken = [
        f"{each} has {each.count} parameters, and {MOST_PARAMETERS} are the most"
        for each in signatures
        if each.count > MOST_PARAMETERS
    ]
    if len(signatures) > LONG_SIGNATURES:
        broken += [
            f"{each} has {each.count} parameters: one of {len(signatures)} functions with "
            f"{LONG_SIGNATURE} or more, of which there may be {LONG_SIGNATURES}"
            for each in signatures
        ]
    broken += [
        f"{each} is called with {each.count} positional arguments, and {MOST_POSITIONAL} are the "
        "most"
        for each in calls
    ]
    broken += [
        f"{each.file}:{MOST_LINES + 1}: {each.count} lines, and {MOST_LINES} are the most"
        for each in lines
        if each.count > MOST_LINES
    ]
    broken += [
        f"{folder}: {count} files, and {MOST_FILES} are the most"
        for folder, count in folders.most_common()
        if count > MOST_FILES
    ]
    for each in broken:
        print(each)
    most = max((each.count for each in signatures), default=0)
    longest = lines[0].count if lines else 0
    print(
        f"{len(signatures)} functions with {LONG_SIGNATURE} parameters or more (the most: {most}), "
        f"{len(calls)} calls with more than {MOST_POSITIONAL} positional arguments, "
        f"longest file {longest} lines, "
        f"fullest folder {max(folders.values(), default=0)} files; {len(broken)} to mend"
    )
    return int(bool(broken))


def tracked_files(root: Path) -> list[PurePosixPath]:
    """Source files that git knows of and that are there, anywhere in the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    names = sorted({PurePosixPath(name) for name in listed.split("\0") if name})
    return [
        name
        for name in names
        if (name.suffix in SUFFIXES or name.name == CMAKE) and (root / name).is_file()
    ]


def exported_names(root: Path) -> set[str]:
    """What users import from the package."""
    path = root / PACKAGE / "__init__.py"
    if not path.is_file():
        return set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def long_signatures(
    modules: dict[PurePosixPath, ast.Module], exported: set[str]
) -> Iterator[Place]:
    """Functions with many parameters, but for constructors and what users or libraries call."""
    for file, module in modules.items():
        top_level = {id(node) for node in module.body}
        for holder in ast.walk(module):
            in_class = isinstance(holder, ast.ClassDef)
            for node in ast.iter_child_nodes(holder):
                if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                count = parameters(node, method=in_class)
                public = (
                    node.name == "__init__"
                    or (id(node) in top_level and node.name in exported)
                    or (in_class and is_override(file, holder, node))
                )
                if count >= LONG_SIGNATURE and not public:
                    yield Place(file, node.lineno, node.name, count)


def is_override(
    file: PurePosixPath, holder: ast.ClassDef, function: ast.FunctionDef | ast.AsyncFunctionDef
) -> bool:
    """Whether another library says which parameters a method has."""
    return bool(INTEGRATIONS in file.parents and holder.bases and not function.name.startswith("_"))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> int:
    """How many there are, without the object of a method."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = (arguments.vararg, arguments.kwarg)
    static = any(getattr(each, "id", "") == "staticmethod" for each in function.decorator_list)
    return len(every) + sum(each is not None for each in starred) - (method and not static)


def long_calls(modules: dict[PurePosixPath, ast.Module]) -> Iterator[Place]:
    """Calls with many positional arguments, a starred one of which counts as one."""
    for file, module in modules.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and len(node.args) > MOST_POSITIONAL:
                yield Place(file, node.lineno, ast.unparse(node.func), len(node.args))


def lengths(root: Path, files: Iterable[PurePosixPath]) -> Iterator[Place]:
    """Lines of every file of Python or C++."""
    for file in files:
        if file.suffix in (".py", ".h", ".hpp", ".cpp"):
            count = len((root / file).read_text("utf-8").splitlines())
            yield Place(file, 1, file.name, count)


def full_folders(files: Iterable[PurePosixPath]) -> Counter[PurePosixPath]:
    """Files in each folder of code, without those in its subfolders."""
    return Counter(file.parent for file in files if file.parts[0] in FOLDERS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]))
