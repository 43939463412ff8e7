"""Pages of the site that do not lie in docs/, and links that serve the repository and the site.

A page is written for its place in the repository, where code-hosting sites show it. The site has
pages from other places too, so that relative links are resolved in the repository first, and then
lead to the page that the file has become.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PACKAGE = "circle_kernels"

# Files outside of docs/ by their place in the site.
ELSEWHERE = {
    "index.md": "README.md",
    "experiments.md": "recipes/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "assets/iframe-worker.js": "tools/site/iframe-worker.js",
    "assets/site.css": "tools/site/site.css",
}
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def public_modules() -> dict[str, list[str]]:
    """Names of the packages that users import from, and their ``__all__``."""
    modules = {}
    for file in sorted((ROOT / PACKAGE).rglob("__init__.py")):
        name = ".".join(file.parent.relative_to(ROOT).parts)
        for node in ast.parse(file.read_text("utf-8")).body:
            is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            if is_list and not name.startswith(f"{PACKAGE}.backends"):
                modules[name] = ast.literal_eval(node.value)
    return modules


def reference_page(module: str, names: list[str]) -> str:
    """Markdown of a module's page."""
    return f"---\ntitle: {module}\n---\n\n::: {module}\n    options:\n      members: {names}\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that do not lie in docs/."""
    from mkdocs.structure.files import File

    for place, source in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for module, names in public_modules().items():
        content = reference_page(module, names)
        files.append(File.generated(config, f"reference/{module}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the page's relative links to where the site has what they name."""
    place = page.file.src_uri
    source = PurePosixPath(ELSEWHERE.get(place, f"docs/{place}"))
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(lambda found: link(found, source, place), part) for part in parts[::2]]
    return "".join(parts)


def on_post_build(config: MkDocsConfig) -> None:
    """Take away the theme's page for missing ones: its links begin at a server's top."""
    (Path(config.site_dir) / "404.html").unlink()


def link(found: re.Match[str], source: PurePosixPath, place: str) -> str:
    """A link as the site has it; its text alone where it names a file that the site leaves out."""
    mark, text, target = found.groups()
    path, _, anchor = target.partition("#")
    named = os.path.normpath(source.parent / path)
    if not path or "://" in path or not (ROOT / named).exists():
        return found[0]  # what is broken is an error of mkdocs
    places = {file: site for site, file in ELSEWHERE.items()}
    inside = named.removeprefix("docs/") if named.startswith("docs/") else None
    goal = places.get(named, inside)
    if goal is None:
        return text
    if text == path and path.endswith(".md"):
        text = title(ROOT / named)
    relative = os.path.relpath(goal, PurePosixPath(place).parent)
    return f"{mark}[{text}]({relative}{'#' if anchor else ''}{anchor})"


def title(page: Path) -> str:
    """The first heading of a page."""
    return page.read_text("utf-8").partition("# ")[2].partition("\n")[0]
