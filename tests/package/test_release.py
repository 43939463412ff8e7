"""What a release needs: its checks, its workflows and their targets, its citation."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from circle_kernels import __version__
from tests.support.places import ROOT
from tools.check_release import missing

yaml = pytest.importorskip("yaml")

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A copy of what is asked, as a release has it."""
    for name in ("pyproject.toml", "CITATION.cff", "circle_kernels/_version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    project = tmp_path / "pyproject.toml"
    text = re.sub(r"@[\w.-]+\.example", "@circle.org", project.read_text())
    text = re.sub(r"^Repository = .*\n", "", text, flags=re.M)
    address = '[project.urls]\nRepository = "https://circle.org/r"'
    project.write_text(text.replace("[project.urls]", address))
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__} (2026-11-28)\n")
    return tmp_path


def test_a_release_that_is_ready_lacks_nothing(ready: Path) -> None:
    assert missing(f"v{__version__}", ready) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("CITATION.cff", f"version: {__version__}", "version: 9.9", "CITATION.cff has another"),
        ("CHANGELOG.md", "(2026-11-28)", "", "does not begin with"),
        ("CHANGELOG.md", f"## {__version__}", "## Unreleased", "does not begin with"),
        ("pyproject.toml", "@circle.org", "@a.example", "is not one"),
        ("pyproject.toml", "Repository", "Homepage", "no Repository"),
    ],
)
def test_what_is_missing_is_said(ready: Path, name: str, old: str, new: str, said: str) -> None:
    path = ready / name
    path.write_text(path.read_text().replace(old, new))
    (found,) = missing(f"v{__version__}", ready)
    assert said in found
    assert len(missing("v0", ready)) == 2


def test_version_is_the_citation_s() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    assert citation["references"][0]["authors"][0]["family-names"] == "Sun"


def _commands(workflow: dict[str, Any]) -> list[str]:
    steps = [step for job in workflow["jobs"].values() for step in job.get("steps", [])]
    return [step["run"] for step in steps if "run" in step]


@pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")
def test_workflows_call_targets_of_the_makefile_and_nothing_else() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    called = set()
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text("utf-8"))
        matrix = [
            each
            for job in workflow["jobs"].values()
            for each in job.get("strategy", {}).get("matrix", {}).get("target", [])
        ]
        for command in _commands(workflow):
            if command.startswith("sudo apt-get"):
                continue
            words = command.split()
            assert words[0] == "make", command
            called |= set(matrix) if "matrix.target" in command else {words[1]}
    assert called - targets == set()
    assert {"lint", "test-main", "test-interpreter", "docs", "wheels", "check-release"} <= called


@pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")
def test_everything_that_make_test_runs_is_run_by_a_workflow() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (lanes,) = re.findall(r"^test: (.*)$", makefile, re.M)
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))
    assert set(lanes.split()) <= set(tests["jobs"]["test"]["strategy"]["matrix"]["target"])


@pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")
def test_issue_templates_ask_for_the_environment() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    for name in ("bug.yml", "slow.yml"):
        body = yaml.safe_load((folder / name).read_text("utf-8"))["body"]
        (asked,) = [each for each in body if each["id"] == "environment"]
        assert "python -m circle_kernels" in asked["attributes"]["description"]
        assert asked["validations"]["required"]
