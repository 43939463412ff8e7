"""The table of docs/choosing.md is what the page's own code prints."""

from __future__ import annotations

import re

import pytest

from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "choosing.md").read_text("utf-8")
SCRIPT = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)


def cells(line: str) -> list[float | str]:
    values = line.strip("| ").split(" | ")
    return [value if value in ("anchor", "batch") else float(value) for value in values]


def test_table_is_what_the_code_prints(capsys: pytest.CaptureFixture[str]) -> None:
    exec(SCRIPT, {})
    printed = capsys.readouterr().out.splitlines()
    table = [line for line in PAGE.splitlines() if re.search(r"\| (anchor|batch) \| \d", line)]
    assert len(table) == len(printed) == 10
    for line, expected in zip(table, printed, strict=True):
        for column, (ours, value) in enumerate(zip(cells(line), cells(expected), strict=True)):
            # Sums in another order may move the last digit of a loss, or a number of rows by one.
            rows = column in (4, 6)
            assert ours == value or ours == pytest.approx(value, rel=0.01, abs=int(rows))
