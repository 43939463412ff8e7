"""What has to be true before a release is uploaded: ``python tools/check_release.py v1.2.3``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def missing(tag: str, root: Path = ROOT) -> list[str]:
    """What is not as it has to be for a release with this tag, in words."""
    project = (root / "pyproject.toml").read_text("utf-8")
    found = re.search('"(.*)"', (root / "circle_kernels" / "_version.py").read_text("utf-8"))
    version = found[1] if found else "nothing"
    wrong = []
    if tag != f"v{version}":
        wrong.append(f"the tag is {tag!r}, circle_kernels/_version.py says {version}")
    if f"\nversion: {version}\n" not in (root / "CITATION.cff").read_text("utf-8"):
        wrong.append(f"CITATION.cff has another version than {version}")
    newest = re.search(r"^## (.*)$", (root / "CHANGELOG.md").read_text("utf-8"), re.M)
    if newest is None or not re.fullmatch(
        rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", newest[1]
    ):
        wrong.append(f"CHANGELOG.md does not begin with '## {version} (its date)'")
    if ".example" in project:
        wrong.append("the maintainers' address in pyproject.toml is not one")
    if not re.search(r'^Repository = "https://', project, re.M):
        wrong.append("pyproject.toml has no Repository among its urls")
    return wrong


def main() -> int:
    """0 where nothing is missing; else 1, with a line for each."""
    if len(sys.argv) != 2:
        print("usage: check_release.py TAG", file=sys.stderr)
        return 2
    wrong = missing(sys.argv[1])
    for each in wrong:
        print(f"not ready: {each}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
