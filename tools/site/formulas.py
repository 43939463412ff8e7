"""Formulas in LaTeX, in fences called math, become MathML at build time: no script, no font."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from latex2mathml.converter import convert

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

# mkdocs counts warnings of its own loggers: make docs fails on any.
logger = logging.getLogger("mkdocs.hooks.formulas")


def on_config(config: MkDocsConfig) -> None:
    """Have fences called math set as formulas."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]


def formula(source: str, *_: Any, **__: Any) -> str:
    """HTML of a fence's text.

    A formula that cannot be set is a warning of mkdocs: exceptions end in the fence as plain code.
    """
    try:
        html = convert(source, display="block")
    except Exception:
        logger.warning("no formula: %s", source)
        raise
    if "\\" in html:  # what the converter does not know stays as it is
        logger.warning("a command that is not known in the formula %s", source)
    return f'<div class="math">{html}</div>'
