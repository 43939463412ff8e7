"""What the lint's tools/shape.py finds, in small checkouts made up for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import shape

SIX, SEVEN, EIGHT, ELEVEN = (
    ", ".join("abcdefghijk"[:count]) for count in (6, 7, 8, 11)
)  # names of so many parameters or arguments


def checkout(root: Path, files: dict[str, str]) -> Path:
    """A repository that tracks these files, beside one that it does not."""
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / ".gitignore").write_text("ignored.py\n", encoding="utf-8")
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    (root / "ignored.py").write_text("x = 1\n" * 1000, encoding="utf-8")
    return root


def found(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is printed, without the counts; the exit status says whether that is anything."""
    status = shape.main(root)
    *broken, counts = capsys.readouterr().out.splitlines()
    assert status == bool(broken)
    assert counts.endswith(f"; {len(broken)} to mend")
    return broken


def functions(count: int, parameters: str) -> str:
    return "".join(f"def f{index}({parameters}): pass\n" for index in range(count))


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("circle_kernels/a.py", functions(5, EIGHT) + functions(9, SEVEN), []),
        (
            "circle_kernels/a.py",
            f"x = 1\ndef f(a, *, {ELEVEN[3:]}, **more): pass\n",
            ["a.py:2: f has 12 parameters, and 10 are the most"],
        ),
        ("circle_kernels/a.py", f"class A:\n def __init__(self, {ELEVEN}): pass\n", []),
        ("circle_kernels/a.py", f"class A:\n def f(self, {ELEVEN[:-6]}, j): pass\n", []),
        (
            "circle_kernels/a.py",
            f"class A:\n def f(self, {ELEVEN}): pass\n",
            ["a.py:2: f has 11 parameters, and 10 are the most"],
        ),
        ("circle_kernels/backends/triton/a.py", functions(9, ELEVEN) + f"f0({ELEVEN})\n", []),
        ("bench/a.py", functions(9, ELEVEN) + f"f0({ELEVEN})\n", []),
        (
            "circle_kernels/integrations/a.py",
            f"class A(B):\n def f(self, {ELEVEN}): pass\n def _f(self, {ELEVEN}): pass\n",
            ["a.py:3: _f has 11 parameters, and 10 are the most"],
        ),
        ("circle_kernels/a.py", f"f({SIX}, k=1, **more)\nf(*a, *b, c)\n", []),
        (
            "circle_kernels/a.py",
            f"f(1)\nx = [a.f({SIX}, *more)]\n",
            ["a.py:2: a.f is called with 7 positional arguments, and 6 are the most"],
        ),
        ("csrc/a.h", "//\n" * 320, []),
        ("csrc/a.h", "//\n" * 321, ["a.h:321: 321 lines, and 320 are the most"]),
        ("setup.py", "x = 1\n" * 400, ["setup.py:321: 400 lines, and 320 are the most"]),
        ("docs/a.md", "x\n" * 900, []),
    ],
)
def test_long_signatures_calls_and_files_are_found(
    file: str, text: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = found(checkout(tmp_path, {file: text}), capsys)
    assert len(broken) == len(expected)
    for line, end in zip(broken, expected, strict=True):
        assert line.endswith(end)


def test_more_than_five_long_signatures_are_all_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Public functions are not counted, but functions of the same name elsewhere are."""
    files = {
        "circle_kernels/__init__.py": '__all__ = ["f0", "f1"]\n',
        "circle_kernels/a.py": functions(7, EIGHT),
    }
    assert found(checkout(tmp_path, files), capsys) == []
    files["circle_kernels/b.py"] = "class A:\n" + "".join(
        f"  def {name}(self, {EIGHT}): pass\n" for name in ("f0", "f1")
    )
    broken = found(checkout(tmp_path, files), capsys)
    assert len(broken) == 7
    assert all("one of 7 functions with 8 or more" in line for line in broken)


@pytest.mark.parametrize(("folder", "full"), [("csrc/a", 15), ("docs/a", 0), ("bench/a/b", 15)])
def test_full_folders_are_found(
    folder: str, full: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{folder}/{index}.h": "" for index in range(14)} | {f"{folder}/deeper/x.py": ""}
    root = checkout(tmp_path, files | {f"{folder}/table.json": "{}"})
    assert found(root, capsys) == []
    root = checkout(tmp_path, {f"{folder}/{shape.CMAKE}": ""})
    assert found(root, capsys) == ([f"{folder}: {full} files, and 14 are the most"] if full else [])
