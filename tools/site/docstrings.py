"""Docstrings as the site renders them: this package's way to write them, in terms of Markdown."""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import griffe

# mkdocs counts warnings of its own loggers: make docs fails on any.
logger = logging.getLogger("mkdocs.hooks.docstrings")

SECTION = r"^(?:{}):\n((?:(?: {{4}}.*)?(?:\n|\Z))+)"
ARGUMENTS = re.compile(SECTION.format("Args|Attributes"), re.MULTILINE)
RAISES = re.compile(SECTION.format("Raises"), re.MULTILINE)
NAMES = re.compile(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)+)(:.*(?:\n {5,}.*)*)", re.MULTILINE)
ERROR = re.compile(r"\A|^(?=\w+(?:, \w+)*: )", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([\w.]+)`")


class Docstrings(griffe.UnpackTypedDictExtension):
    """Splits what is described together, links what roles name, misses no docstring.

    Options that a function takes as a TypedDict become arguments of its own, as in the base class.
    """

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Rewrite all docstrings of the package."""
        public = dict(exported(pkg))
        for path, each in public.items():
            if not each.has_docstring:
                logger.warning("%s is public and has no docstring", path)
        for each in objects(pkg):
            if each.is_class and any(str(base) == "TypedDict" for base in each.bases):
                document_options(each)
        for each in objects(pkg):
            if each.docstring is not None:
                each.docstring.value = rewritten(each.docstring.value, public)
                each.docstring.parser_options = {
                    **each.docstring.parser_options,
                    "warn_unknown_params": is_closed(each),
                }

    def on_function(self, *, func: griffe.Function, **rest: Any) -> None:
        """Options as arguments; where the docstring describes one, its words count."""
        names = [each.name for each in func.parameters]
        super().on_function(func=func, **rest)
        if names == [each.name for each in func.parameters] or func.docstring is None:
            return
        for section in func.docstring.parsed:
            if section.kind is griffe.DocstringSectionKind.parameters:
                described: dict[str, griffe.DocstringParameter] = {}
                for each in section.value:
                    known = described.setdefault(each.name, each)
                    known.annotation, known.value = each.annotation, each.value
                section.value = list(described.values())


def exported(module: griffe.Module) -> Iterator[tuple[str, griffe.Object | griffe.Alias]]:
    """What ``__all__`` of a module and of those in it names, by path."""
    for name in module.exports or ():
        yield f"{module.path}.{name}", module.members[str(name)]
    for each in module.modules.values():
        if not each.is_alias and each.is_init_module and each.name != "backends":
            yield from exported(each)


def objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """The object and everything that is defined in it."""
    yield parent
    for each in parent.members.values():
        if not each.is_alias:
            yield from objects(each)


def document_options(options: griffe.Class) -> None:
    """Lead from each option, of which griffe makes an argument, to where they are all described."""
    (described,) = ROLE.findall(options.docstring.value)
    for each in options.attributes.values():
        each.docstring = griffe.Docstring(f"as for :func:`{described}`.", parent=each)


def is_closed(documented: griffe.Object) -> bool:
    """Whether the signature has the names of all arguments: not those of a library's class."""
    parameters = list(getattr(documented, "parameters", ()))
    return bool(parameters) and parameters[-1].kind is not griffe.ParameterKind.var_keyword


def rewritten(text: str, public: Iterable[str]) -> str:
    """The docstring: a summary of one line, one entry for each argument, Markdown's links."""
    summary, blank, rest = text.partition("\n\n")
    text = " ".join(summary.split()) + blank + rest
    text = ARGUMENTS.sub(lambda section: NAMES.sub(one_by_one, section[0]), text)
    text = RAISES.sub(errors, text)
    return ROLE.sub(lambda role: reference(role[1], public), text)


def one_by_one(found: re.Match[str]) -> str:
    """``a, b: text`` as two entries: griffe knows one name for each."""
    return "\n".join(f"    {name}{found[2]}" for name in found[1].split(", "))


def errors(section: re.Match[str]) -> str:
    """What is raised as a list: several exceptions may share an entry, and ``As ...`` has none."""
    return f"**Raises:**\n\n{ERROR.sub('- ', textwrap.dedent(section[1]))}"


def reference(target: str, public: Iterable[str]) -> str:
    """A link to what is public, by its full name or by the last part; code for all else."""
    matches = [path for path in public if path == target or path.endswith(f".{target}")]
    place = min(matches, key=len, default=None)
    name = target.rpartition(".")[2]
    return f"[`{name}`][{place}]" if place else f"`{name}`"
