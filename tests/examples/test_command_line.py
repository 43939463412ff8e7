"""What examples say to arguments that make no sense, and without their packages."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from tests.examples.programs import EXAMPLES, PACKAGES  # isort: skip

import glyph_classification
import glyph_retrieval
import name_retrieval
from glyphs import data

PROGRAMS = pytest.mark.parametrize(
    "program", [glyph_retrieval, glyph_classification], ids=lambda program: program.__name__
)
BAD_OF_BOTH = [
    (["--steps", "0"], "--steps: must be at least 1, got 0"),
    (["--classes-per-batch", "1"], "--classes-per-batch: a negative pair takes at least 2"),
    (["--pictures-per-class", "13"], "a class has 12, got 13"),
    (["--seed", "-1"], "--seed: must be in 0 to"),
    (["--out", __file__], "is not a folder"),
]
BAD_OF_ONE = [
    (glyph_classification, ["--pictures-per-class", "0"], "the loss takes at least 1 and a class"),
    (glyph_retrieval, ["--pictures-per-class", "1"], "the loss takes at least 2 and a class"),
    (glyph_retrieval, ["--gamma", "-1"], "gamma must be greater than 0, got -1.0"),
    (glyph_retrieval, ["--m", "nan"], "m must be finite"),
    (glyph_retrieval, ["--lr", "0"], "--lr: must be positive and finite, got 0.0"),
    (glyph_retrieval, ["--loss", "triplet"], "invalid choice: 'triplet'"),
    (name_retrieval, ["--steps", "0"], "--steps: must be at least 1, got 0"),
    (name_retrieval, ["--seeds", "0"], "--seeds: must be at least 1, got 0"),
    (name_retrieval, ["--seed", "-1"], "--seed: must be in 0 to"),
    (name_retrieval, ["--gamma", "0"], "gamma must be greater than 0, got 0.0"),
    (name_retrieval, ["--split", "halves"], "invalid choice: 'halves'"),
    (name_retrieval, ["--out", __file__], "is not a folder"),
    (name_retrieval, ["--all-names", f"{__file__}/file"], "is not a folder"),
    (name_retrieval, ["--all-names", "."], "is a folder"),
]


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        *((glyph_retrieval, *bad) for bad in BAD_OF_BOTH),
        *((glyph_classification, *bad) for bad in BAD_OF_BOTH),
        *BAD_OF_ONE,
    ],
)
def test_bad_argument_is_named(
    program: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        program.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_arguments_become_the_settings(
    small_split: data.ClassSplit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    runs = []
    monkeypatch.setattr(glyph_retrieval, "render_glyphs", lambda: small_split.test)
    monkeypatch.setattr(glyph_retrieval, "run", lambda *given: runs.append(given[:2]))
    numbers = {"m": 0.4, "gamma": 16.0, "steps": 3, "seed": 6}
    numbers |= {"classes_per_batch": 4, "pictures_per_class": 5}
    arguments = [f"--{name.replace('_', '-')}={number}" for name, number in numbers.items()]
    glyph_retrieval.main(["--loss=naive", "--lr=0.1", *arguments])
    expected = glyph_retrieval.Settings(**numbers, learning_rate=0.1)
    assert runs == [(expected, "naive")]
    assert "30 letters x 12 faces: 13 to train on, 2 to validate, 15 to test" in (
        capsys.readouterr().out
    )


@PROGRAMS
def test_batch_of_more_classes_than_there_are_is_refused(
    program: ModuleType, glyphs: data.GlyphSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "render_glyphs", lambda: glyphs)
    with pytest.raises(SystemExit, match=r"--classes-per-batch must be at most 5\d\d, the"):
        program.main(["--classes-per-batch", "5000"])


@pytest.mark.parametrize(
    "program",
    [glyph_retrieval, glyph_classification, name_retrieval],
    ids=lambda program: program.__name__,
)
def test_missing_package_is_named_with_what_to_install(program: ModuleType) -> None:
    packages = ("torch", "circle_kernels", *PACKAGES)
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
        f"sys.path.insert(0, {str(EXAMPLES)!r}); runpy.run_path({program.__file__!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert any(f"The package {package!r} is missing" in done.stderr for package in packages)
    assert "pip install 'circle-kernels[examples]'" in done.stderr
