"""What the pages for contributors name between backticks exists: paths, names, make's targets."""

from __future__ import annotations

import ast
import functools
import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest

from tests.support.places import ROOT

PAGES = [
    page for page in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md") if page.is_file()
]
# Of the table of functions, those that its columns begin in.
COLUMNS = ("circle_kernels", "circle_kernels/backends/triton", "csrc/kernels")
FOLDERS = ("circle_kernels", "csrc", "bench", "tests", "docs", "examples", "recipes", "tools")
# What is run and not looked up, but for make's targets and the paths among its words.
COMMANDS = ("git", "make", "mypy", "pip", "pytest", "python", "ruff")
# Other people's names, with what follows a dot.
OTHERS = ("eps", "numpy", "torch", "triton", "pytest", "unittest")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
PATH = re.compile(r"[\w*./-]+")
SUFFIXES = (".py", ".h", ".cpp", ".md", ".json", ".toml", ".txt", ".cmake")


@functools.cache
def paths() -> frozenset[str]:
    """Files and folders of the checkout; folders end with a slash."""
    found = [each for each in ROOT.iterdir() if each.is_file()]
    for folder in FOLDERS:
        found += [ROOT / folder, *(ROOT / folder).rglob("*")]
    return frozenset(
        f"{each.relative_to(ROOT).as_posix()}{'/' * each.is_dir()}"
        for each in found
        if "__pycache__" not in each.parts
    )


@functools.cache
def names() -> frozenset[str]:
    """What is defined in Python or C++: functions, classes, parameters, fields, variables; modules;
    and what is passed by its name, such as an environment variable."""
    found: set[str] = set()
    for path in paths():
        if path.endswith((".py", ".pyi")):
            tree = ast.parse((ROOT / path).read_text("utf-8"))
            found |= _defined(tree)
            if not path.startswith("tests/"):
                found |= _passed_by_name(tree)
        elif path.endswith((".h", ".cpp", ".cmake", "CMakeLists.txt")):
            text = re.sub(r"(//|# ).*", "", (ROOT / path).read_text("utf-8"))
            found |= set(re.findall(r"[A-Za-z_]\w*", text))
        else:
            continue
        found |= {PurePosixPath(path).stem, *PurePosixPath(path).parent.parts}
    return frozenset(found)


def _defined(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def _passed_by_name(tree: ast.Module) -> set[str]:
    constants = [str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {each for each in constants if re.fullmatch(r"[A-Z_]{4,}", each)}


@functools.cache
def commands_of_bench() -> frozenset[str]:
    tree = ast.parse((ROOT / "bench" / "__main__.py").read_text("utf-8"))
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    return frozenset(str(key.value) for key in tables[0].keys if isinstance(key, ast.Constant))


def missing(text: str) -> list[str]:
    """What the text names and the checkout does not have: between backticks, then in blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    for line in re.findall(r"^    (.+)$", text, re.M):
        spans += named_in_block(line.partition("  #")[0])
    return [span for span in spans if not exists(span)]


def named_in_block(line: str) -> list[str]:
    """A command; or of a drawing paths, what is called, and names that no word of English is."""
    words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    if words and words[0] in COMMANDS:
        return [" ".join(words)]
    return re.findall(r"(?:\w+/)+[\w.]*|\w+\.py|\w+(?=\()|[A-Za-z]+_\w+", line)


def misplaced(table: str) -> list[str]:
    """Names of a table of functions that the file in parentheses after them does not define."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    wrong = []
    for cells in rows:
        for folder, cell in zip(COLUMNS, cells[1:], strict=True):
            for named, file in re.findall(r"((?:`\w+`[, ]*)+)\(`([\w./]+)`", cell):
                places = [ROOT / folder / file, ROOT / file]
                defined = next((_names_in(each) for each in places if each.is_file()), set())
                wrong += [
                    f"{each} ({file})" for each in named.split("`")[1::2] if each not in defined
                ]
    return wrong


def _names_in(path: Path) -> set[str]:
    text = path.read_text("utf-8")
    return _defined(ast.parse(text)) if path.suffix == ".py" else set(re.findall(r"\w+", text))


def exists(span: str) -> bool:
    """Whether what stands between two backticks is there; other things than names always are."""
    first, *words = span.split()
    if first.startswith("-"):  # an option of a command
        return True
    if first in COMMANDS and words:
        words = [word for word in words if not word.startswith("-")]
        if first == "make":
            return all(is_target(word) for word in words)
        if words[:1] == ["bench"] and not set(words[1:2]) <= commands_of_bench():
            return False
        return all(is_path(word) for word in words if "/" in word)
    called = re.sub(r"\(.*\)$|=.*$", "", span)  # a call, or a parameter with its value
    if NAME.fullmatch(called) and not called.endswith(SUFFIXES):
        parts = called.split(".")
        return parts[0] in OTHERS or set(parts) <= names()
    return is_path(span) if PATH.fullmatch(span) and re.search(r"[a-z]", span) else True


def is_path(span: str) -> bool:
    """From the root or from any folder; folders also without their slash, and files without what
    follows their dot; * for anything."""
    patterns = [f"*/{span.removeprefix('./')}{end}" for end in ("", "/", ".*")]
    return any(fnmatch(f"/{path}", pattern) for path in paths() for pattern in patterns)


def is_target(word: str) -> bool:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return re.search(rf"^{re.escape(word)}:", makefile, re.M) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_a_page_names_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(re.findall(r"`[^`]+`", text)) > 20
    names_of_nothing = missing(text)
    assert not names_of_nothing, "not in the checkout:\n" + "\n".join(names_of_nothing)


def test_functions_are_in_the_files_that_the_architecture_gives() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("## From equation")[2]
    assert misplaced(table) == []
    assert len(re.findall(r"`\w+`[, ]*\(`", table)) > 15
    row = "| x | `unit_rows`, `forward` (`backends/rows.py`) | `load` (`launch.py`) | `C` (`c.h`) |"
    assert misplaced(row) == ["forward (backends/rows.py)", "load (launch.py)", "C (c.h)"]


def test_blocks_are_looked_up() -> None:
    block = """
    python -m bench tunes --out tuned.json    # words_that_are_none
    CIRCLE_KERNELS_TRITON_SETTINGS=tuned.json python -m bench gpu

    circle_loss(embeddings, ...)      losses/functionals.py
      reduced_rows                    eager.py, eagr.py -> all others
    """
    assert missing(block) == [
        "python -m bench tunes --out tuned.json",
        "losses/functionals.py",
        "reduced_rows",
        "eagr.py",
    ]


@pytest.mark.parametrize(
    "span",
    [
        "csrc/",
        "formula.py",
        "circle_kernels/formula.py",
        "triton/",
        "backends/triton",
        "triton/launch",
        "kernels/*.cpp",
        "pair_logsumexp",
        "pair_logsumexp()",
        "PairProblem.embeddings",
        "formula.CircleFormula",
        "CIRCLE_KERNELS_TRITON_SETTINGS",
        "CIRCLE_IMITATE_AMX",
        'backend="tiled"',
        "torch.func",
        "make test-main",
        "make lint test",
        "python tests/conftest.py",
        "python -m bench loss",
        "-DCIRCLE_IMITATE_AMX=ON",
        "eps · (16 + 2 gamma)",
        "s_n - s_p",
        "(N, D)",
    ],
)
def test_what_exists_is_found(span: str) -> None:
    assert missing(f"Look at `{span}`.") == []


@pytest.mark.parametrize(
    "span",
    [
        "csrcs/",
        "more_formulas.py",
        "csrc/formula.py",
        "ernels/formula.py",
        "circle_kernels/no_folder",
        "kernels/*.rs",
        "pair_logsumexps",
        "pair_logsumexps(embeddings, labels)",
        "PairProblem.no_such_field",
        "formula.NoSuchFormula",
        "CIRCLE_KERNELS_NO_SUCH_VARIABLE",
        'no_such_option="tiled"',
        "make no-such-target",
        "make lint tests",
        "python no/such.py",
    ],
)
def test_made_up_names_are_missing(span: str) -> None:
    """Each one that is missing is named, whatever stands beside it and where lines end."""
    text = f"See `formula.py`,\n`{span.replace(' ', chr(10))}` and\n`no_such_thing`."
    assert missing(text) == [span, "no_such_thing"]
