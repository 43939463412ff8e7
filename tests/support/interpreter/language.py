"""The interpreter's language, replaced once for each launch."""

from __future__ import annotations

import functools
from typing import Any


def replace_the_language_once() -> None:
    """Have the interpreter replace the functions of ``triton.language`` once for each launch.

    It looks through all of them at every call inside a kernel, and finds them replaced: a third of
    the time that interpreted kernels take.
    """
    from triton import language
    from triton.runtime import interpreter

    replace, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[Any] = set()  # modules, by the launch that runs

    @functools.cache
    def modules_of(function: Any) -> set[Any]:
        return {language, language.core}.intersection(
            value for value in function.__globals__.values() if isinstance(value, type(language))
        )

    def replace_once(function: Any) -> Any:
        new = modules_of(function) - replaced
        replaced.update(new)
        return replace(function) if new else interpreter._LangPatchScope()

    def launch_anew(self: Any, *args: Any, **options: Any) -> None:
        replaced.clear()
        launch(self, *args, **options)

    interpreter._patch_lang = replace_once
    interpreter.GridExecutor.__call__ = launch_anew
