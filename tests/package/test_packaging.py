"""What goes into a distribution, and what a package index shows of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from circle_kernels.backends import cpu
from tests.support.places import ROOT
from tools.index_readme import index_readme

README = (ROOT / "README.md").read_text("utf-8")
RELATIVE = re.compile(r"\]\((?!https?://|#)")


def test_readme_of_an_index_has_no_link_that_leads_nowhere() -> None:
    assert RELATIVE.search(README)
    alone = index_readme(README, None, "1.2.3")
    assert not RELATIVE.search(alone)
    assert "![" not in alone
    assert "all tables: docs/benchmarks.md" in alone
    linked = index_readme(README, "https://example.org/circle", "1.2.3")
    assert not RELATIVE.search(linked)
    assert "](https://example.org/circle/raw/v1.2.3/docs/speed.png)" in linked
    assert "](https://example.org/circle/blob/v1.2.3/docs/evaluation.md)" in linked


def test_code_and_links_elsewhere_stay_as_they_are() -> None:
    assert index_readme("`[a](b.md)`\n```\n[a](b.md)\n```\n", None, "1") == (
        "`[a](b.md)`\n```\n[a](b.md)\n```\n"
    )
    text = "`x[i](y)` has no target; [a](https://b.org/c) and [d](#e) do; ![f [g]](h.png)"
    changed = index_readme(text, "https://r.org", "1")
    assert "[a](https://b.org/c) and [d](#e)" in changed
    assert "![f [g]](https://r.org/raw/v1/h.png)" in changed


def test_files_that_the_readme_links_to_exist() -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert len(targets) > 10
    assert [each for each in targets if not (ROOT / each).exists()] == []


def test_source_distribution_has_what_the_repository_has() -> None:
    """But for what only makes sense in a repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("an unpacked source distribution is the distribution")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {Path(each).parts[0] for each in tracked}
    grafted = re.findall(r"^graft (\S+)$", (ROOT / "MANIFEST.in").read_text("utf-8"), re.M)
    included = re.findall(r"^include (.*)$", (ROOT / "MANIFEST.in").read_text("utf-8"), re.M)
    by_itself = {"circle_kernels", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    listed = {*grafted, *" ".join(included).split(), *by_itself}
    of_a_repository = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "MANIFEST.in"}
    assert folders - listed <= of_a_repository
    assert [each for each in listed if not (ROOT / each).exists()] == []


@pytest.mark.skipif(not cpu.supported_levels(), reason="CIRCLE_KERNELS_NO_CPU_KERNEL is set")
def test_an_installed_package_computes_with_one_openmp_runtime() -> None:
    smoke = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "smoke_wheel.py")], capture_output=True, text=True
    )
    assert (smoke.returncode, smoke.stderr) == (0, "")
    assert "works" in smoke.stdout
