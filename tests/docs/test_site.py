"""The site has every page and every public name; `make docs` finds what is broken in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import DOCS, ROOT
from tools.site.pages import ELSEWHERE, public_modules

griffe = pytest.importorskip("griffe")
mkdocs_config = pytest.importorskip("mkdocs.config")
pytest.importorskip("material")

PACKAGE = ROOT / "circle_kernels"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build

    folder = tmp_path_factory.mktemp("site")
    config = mkdocs_config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


def pages_of(nav: Any) -> Iterator[str]:
    """The leaves of the nav."""
    if isinstance(nav, str):
        yield nav
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from pages_of(each)


def test_nav_names_every_page_and_every_public_module() -> None:
    nav = [*pages_of(mkdocs_config.load_config(str(ROOT / "mkdocs.yml")).nav)]
    assert len(nav) == len({*nav})
    written = {each.name for each in DOCS.glob("*.md")}
    elsewhere = {place for place in ELSEWHERE if place.endswith(".md")}
    reference = {f"reference/{module}.md" for module in public_modules()}
    assert {*nav} == written | elsewhere | reference


def test_public_modules_are_those_that_users_import_from() -> None:
    """Rooms with a list of their names; those of the kernels are for the rest of the package."""
    lists = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in PACKAGE.rglob("__init__.py")
        if "__all__" in file.read_text("utf-8")
    }
    assert {each for each in lists if not each.startswith("circle_kernels.backends")} == {
        *public_modules()
    }


@pytest.mark.parametrize(("module", "names"), public_modules().items())
def test_every_public_name_is_in_the_reference(site: Path, module: str, names: list[str]) -> None:
    page = (site / "reference" / f"{module}.html").read_text("utf-8")
    assert names
    assert [each for each in names if f'id="{module}.{each}"' not in page] == []


def test_nothing_is_fetched(site: Path) -> None:
    """Scripts, styles, fonts and pictures of every page lie beside it."""
    pages = [*site.rglob("*.html")]
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"?([^\s\">]+)|<link[^>]* href=\"?([^\s\">]+)",
            page.read_text("utf-8"),
        )
        for each in map("".join, loaded):
            assert "//" not in each, (page.name, each)
            assert (page.parent / each.partition("?")[0]).exists(), (page.name, each)


def test_pages_lead_to_where_the_site_has_what_they_name(site: Path) -> None:
    text = (site / "index.html").read_text("utf-8")
    assert 'href="choosing.html"' in text
    assert 'href="contributing.html"' in text
    assert 'src="name_retrieval.png"' in text
    assert "docs/choosing" not in text
    title = (DOCS / "choosing.md").read_text("utf-8").split("\n")[0].removeprefix("# ")
    assert f'<a href="choosing.html">{title}</a>' in text
    assert 'href="../' not in (site / "experiments.html").read_text("utf-8")


PUBLIC = [
    "circle_kernels.CircleLoss",
    "circle_kernels.circle_loss",
    "circle_kernels.integrations.CircleLoss",
    "circle_kernels.losses.clip_loss",
]


def docstring(text: str, owner: str = "circle_kernels.losses") -> str:
    from tools.site.docstrings import rewritten

    return rewritten(text, owner, PUBLIC)


def test_arguments_described_together_have_entries_of_their_own() -> None:
    text = "Sum\nof two.\n\nArgs:\n    a, *b: one\n        of two.\n    c: a, b: no.\n\na, b: text"
    assert docstring(text) == (
        "Sum of two.\n\nArgs:\n    a: one\n        of two.\n    *b: one\n        of two.\n"
        "    c: a, b: no.\n\na, b: text"
    )
    assert docstring("Sum.\n\nArgs:\n    a, b,\n        c: one.") == (
        "Sum.\n\nArgs:\n    a: one.\n    b: one.\n    c: one."
    )


def drawn(folder: Path, code: str) -> Any:
    """A module of a package that exports two names, as the site reads it."""
    from tools.site.docstrings import Docstrings

    room = folder / "drawn"
    room.mkdir()
    (room / "__init__.py").write_text('__all__ = ["told", "silent"]\nfrom drawn.a import *\n')
    (room / "a.py").write_text(code)
    extensions = griffe.load_extensions(Docstrings)
    options = {"search_paths": [folder], "docstring_parser": "google"}
    return griffe.load("drawn", extensions=extensions, **options)["a"]


OPTIONS = '''
from typing import TypedDict
from typing_extensions import Unpack

class Few(TypedDict, total=False):
    b: int

class More(Few, total=False):
    c: int

def told(a: int, **options: Unpack[More]) -> None:
    """Does.

    Args:
        a: one.
        **options: two.
    """

class silent:
    """Is."""
    def __init__(self, **options: Unpack[Few]) -> None: ...
'''


def test_options_are_arguments_and_described_as_they_were(tmp_path: Path) -> None:
    module = drawn(tmp_path, OPTIONS)
    assert {each.name for each in module["told"].parameters} == {"a", "b", "c"}
    arguments = module["told"].docstring.parsed[1].value
    assert [(each.name, each.description) for each in arguments] == [
        ("a", "one."),
        ("**options", "two."),
    ]
    init = module["silent"]["__init__"]
    assert [each.name for each in init.parameters] == ["self", "b"]
    assert init.docstring is None


def test_roles_lead_to_what_is_public() -> None:
    assert docstring("See :func:`clip_loss`.") == (
        "See [`clip_loss`][circle_kernels.losses.clip_loss]."
    )
    assert docstring(":func:`circle_kernels.circle_loss`, :meth:`row_losses`") == (
        "[`circle_loss`][circle_kernels.circle_loss], `row_losses`"
    )


def test_the_nearest_of_one_name_is_meant() -> None:
    for owner, place in (
        ("losses", "CircleLoss"),
        ("integrations.fused", "integrations.CircleLoss"),
    ):
        found = docstring("As :class:`CircleLoss`.", f"circle_kernels.{owner}")
        assert found == f"As [`CircleLoss`][circle_kernels.{place}]."
    whole = docstring(":class:`circle_kernels.CircleLoss`", "circle_kernels.integrations.fused")
    assert whole == "[`CircleLoss`][circle_kernels.CircleLoss]"


def test_errors_are_a_list() -> None:
    text = "Sum.\n\nRaises:\n    TypeError, ValueError: a\n        of b.\n    RuntimeError: c."
    assert docstring(text) == (
        "Sum.\n\n**Raises:**\n\n- TypeError, ValueError: a\n    of b.\n- RuntimeError: c."
    )
    assert docstring("Sum.\n\nRaises:\n    As the loss.") == "Sum.\n\n**Raises:**\n\n- As the loss."


def test_formulas_are_set_or_told(caplog: pytest.LogCaptureFixture) -> None:
    from latex2mathml.exceptions import MissingEndError

    from tools.site.formulas import formula

    for page in DOCS.glob("*.md"):
        for source in re.findall(r"```math\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            assert "</math>" in formula(source)
    assert not caplog.records
    assert "<mfrac>" in formula(r"\frac{a}{b}")
    formula(r"\nosuchcommand")
    with pytest.raises(MissingEndError):
        formula("\\begin{split}\n[a")
    assert [each.name for each in caplog.records] == ["mkdocs.hooks.formulas"] * 2


def test_public_name_without_a_docstring_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn(tmp_path, 'def told():\n    """Says what."""\n\n\ndef silent(): ...\n')
    assert [each.getMessage() for each in caplog.records if each.name.startswith("mkdocs")] == [
        "drawn.silent is public and has no docstring"
    ]
