"""What checkers of types know of the public API, and that the checks at run time know the same."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from circle_kernels import options
from circle_kernels.backends.choice import AUTO, BACKENDS
from circle_kernels.integrations import pytorch_metric_learning as drop_ins
from tests.support.places import ROOT

SCRIPT = Path(__file__).with_name("misuses.txt")
STUB = ROOT / "circle_kernels/integrations/pytorch_metric_learning/library.pyi"
MISTAKE = re.compile(r".*  # (?:found: (?P<code>[a-z-]+)|not found: (?P<why>.+))")


LINES = SCRIPT.read_text("utf-8").splitlines()
MISTAKES = {at: found for at, line in enumerate(LINES, 1) if (found := MISTAKE.match(line))}


def test_mypy_finds_in_a_script_what_types_can_find(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    expected = {at: found["code"] for at, found in MISTAKES.items() if found["code"]}
    assert (len(MISTAKES), len(expected)) == (20, 16)
    script = tmp_path / "script.py"
    script.write_text("\n".join(LINES) + "\n", "utf-8")
    # The package is somebody else's, as it is where it is installed.
    arguments = ("--strict", "--follow-imports=silent", "--config-file=", "--no-error-summary")
    process = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, "--cache-dir", str(tmp_path), str(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    told = re.findall(r"^.*script\.py:(\d+): error: .* \[([a-z-]+)\]$", process.stdout, re.M)
    assert {int(at): code for at, code in told} == expected, process.stdout + process.stderr
    assert len(told) == len(expected)


@pytest.mark.parametrize("at", MISTAKES)
def test_every_mistake_fails_when_it_runs(at: int) -> None:
    right = [line for number, line in enumerate(LINES, 1) if number not in MISTAKES]
    names: dict[str, object] = {}
    exec("\n".join(right), names)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        exec(f"{LINES[at - 1]}\nloss(x, y)", names)  # what is set is looked at by the call


def test_backends_that_types_know_are_those_of_the_table() -> None:
    assert set(get_args(options.BackendName)) == {AUTO, *BACKENDS}
    assert set(get_args(options.CountingBackend)) <= set(get_args(options.BackendName))


def test_library_takes_what_the_stub_says() -> None:
    """All names of all constructors, with the defaults that the library's own have."""
    library = pytest.importorskip("pytorch_metric_learning.losses")
    stub: dict[str, Any] = {}
    exec(compile(STUB.read_text("utf-8"), STUB, "exec", dont_inherit=True), stub)
    for name in drop_ins.__all__:
        sizes, numbers, options = {}, {}, {}
        for each in inspect.signature(stub[name]).parameters.values():
            if each.kind is each.VAR_KEYWORD:
                (names,) = get_args(each.annotation)
                options = {
                    key: 1 if key.endswith("_weight") else None for key in names.__annotations__
                }
            elif each.default is each.empty:
                sizes[each.name] = 7
            else:
                numbers[each.name] = each.default
        usual = vars(getattr(library, name)(**sizes))
        made = vars(getattr(library, name)(**sizes, **numbers, **options))
        shown = {key: made[key] for key, value in usual.items() if type(value) in (int, float)}
        assert shown.items() <= usual.items()
        assert len(shown) >= len(sizes) + len(numbers) > 0 or name == "NPairsLoss"
