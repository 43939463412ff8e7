"""Results files, numbers with their spread, and blocks in Markdown files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.report import command as report
from bench.reporting import results
from bench.reporting.errors import UserError
from bench.reporting.markers import replace_blocks
from bench.reporting.spread import ratio, spread
from bench.reporting.tables import number


def test_ratios_are_taken_round_by_round() -> None:
    # The second round was slow for both, which a ratio of medians would not see.
    found = ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert found is not None
    assert (found.median, found.low, found.high) == (2, 2, 2)
    assert spread([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (9.996, "10.0"), (99.96, "100"), (1234, "1234")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_results_survive_the_way_through_a_file(tmp_path: Path) -> None:
    made = results.start_results("loss", "cpu", {"m": 0.4})
    made.rows = [{"kind": "time", "forward": [0.1, 0.25]}, {"kind": "memory", "peak_bytes": 7}]
    path = tmp_path / "new folder" / "results.json"
    results.save(made, path)
    assert results.load(path) == made
    assert made.machine["cores"] >= 1
    assert made.versions["torch"] == torch.__version__
    # Without rows the file must be JSON, too: a run may end before its first case does.
    made.rows = []
    results.save(made, path)
    assert results.load(path) == made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "not a results file of schema"),
        ('{"schema": 1, "else": 2}', "is not a results file"),
    ],
)
def test_file_that_is_no_results_file_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        results.load(path)


def test_blocks_are_replaced_between_markers_and_nothing_else_changes() -> None:
    text = (
        "# Title\n\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nbetween\n"
        "<!-- bench:other -->kept<!-- /bench:other -->\n<!-- bench:a --><!-- /bench:a -->end"
    )
    assert replace_blocks(text, {"a": r"new \1", "unused": "x"}, "doc") == (
        "# Title\n\n<!-- bench:a -->\nnew \\1\n<!-- /bench:a -->\nbetween\n"
        "<!-- bench:other -->kept<!-- /bench:other -->\n"
        "<!-- bench:a -->\nnew \\1\n<!-- /bench:a -->end"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no markers", r"README\.md has none of the markers <!-- bench:a -->"),
        ("<!-- bench:a --> open", r"README\.md: <!-- bench:a --> has no <!-- /bench:a -->"),
        (
            "<!-- bench:a --> x <!-- bench:a --> y <!-- /bench:a -->",
            r"README\.md: <!-- bench:a --> has no",
        ),
    ],
)
def test_missing_marker_is_a_clear_error(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_blocks(text, {"a": "new"}, "README.md")


def test_results_of_an_unknown_command_are_refused() -> None:
    with pytest.raises(UserError, match="'weather'"):
        report.presentation_of(results.start_results("weather", "cpu", {}))
