"""Docstrings as the site renders them: this package's way to write them, in terms of Markdown."""

from __future__ import annotations

import itertools
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
NAMES = re.compile(r"^ {4}(\*{0,2}\w+(?:,\s+\*{0,2}\w+)+)(:.*(?:\n {5,}.*)*)", re.MULTILINE)
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
            if is_options(each):
                # Inherited ones, too, which the base class may have taken out of theirs by then.
                for name, option in each.attributes.items():
                    own = griffe.Attribute(name, annotation=option.annotation)
                    each.set_member(name, own)
        for each in objects(pkg):
            if each.docstring is not None:
                each.docstring.value = rewritten(each.docstring.value, each.path, public)
                each.docstring.parser_options = {
                    **each.docstring.parser_options,
                    "warn_unknown_params": is_closed(each),
                }

    def on_function(self, *, func: griffe.Function, **rest: Any) -> None:
        """Options as arguments of the signature; the docstring describes them as it did."""
        last = [*func.parameters][-1:]
        if not last or not str(last[0].annotation).startswith("Unpack["):
            return
        docstring = func.docstring
        described = [each for each in docstring.parsed if is_arguments(each)] if docstring else []
        kept = [list(each.value) for each in described]
        super().on_function(func=func, **rest)
        func.docstring = docstring
        for each, value in zip(described, kept, strict=True):
            each.value[:] = value


def is_arguments(section: griffe.DocstringSection) -> bool:
    """Whether a part of a docstring is its arguments."""
    return section.kind is griffe.DocstringSectionKind.parameters


def is_options(each: griffe.Object) -> bool:
    """Whether this is a TypedDict, or inherits from one."""
    return each.is_class and (
        any(str(base) == "TypedDict" for base in each.bases)
        or any(is_options(base) for base in each.resolved_bases)
    )


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


def is_closed(documented: griffe.Object) -> bool:
    """Whether the signature has the names of all arguments: not those of a library's class."""
    parameters = list(getattr(documented, "parameters", ()))
    return bool(parameters) and parameters[-1].kind is not griffe.ParameterKind.var_keyword


def rewritten(text: str, owner: str, public: Iterable[str]) -> str:
    """The docstring: a summary of one line, one entry for each argument, Markdown's links."""
    summary, blank, rest = text.partition("\n\n")
    text = " ".join(summary.split()) + blank + rest
    text = ARGUMENTS.sub(lambda section: NAMES.sub(one_by_one, section[0]), text)
    text = RAISES.sub(errors, text)
    return ROLE.sub(lambda role: reference(role[1], owner, public), text)


def one_by_one(found: re.Match[str]) -> str:
    """``a, b: text`` as two entries: griffe knows one name for each."""
    return "\n".join(f"    {name}{found[2]}" for name in re.split(r",\s+", found[1]))


def errors(section: re.Match[str]) -> str:
    """What is raised as a list: several exceptions may share an entry, and ``As ...`` has none."""
    return f"**Raises:**\n\n{ERROR.sub('- ', textwrap.dedent(section[1]))}"


def reference(target: str, owner: str, public: Iterable[str]) -> str:
    """A link to what is public, by its full name or by the last part; code for all else.

    Several have the same last part: the one meant is the nearest to who names it.
    """
    matches = [path for path in public if path == target] or [
        path for path in public if path.endswith(f".{target}")
    ]
    place = max(matches, key=lambda path: rooms_shared(path, owner), default=None)
    name = target.rpartition(".")[2]
    return f"[`{name}`][{place}]" if place else f"`{name}`"


def rooms_shared(path: str, owner: str) -> int:
    """With how many equal parts two dotted names begin."""
    pairs = zip(path.split("."), owner.split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], pairs))
