"""Triton's interpreter, in less time, for processes in which every kernel is interpreted."""

from types import ModuleType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


class _Kept:
    """What stands for the record of changes to a module that are to stay."""

    def restore(self) -> None:
        """Not."""


def prepare_language_once() -> None:
    """The interpreter puts its own functions into Triton's language whenever one kernel calls another: half of its time.

    It finds them there the second time. From now on each module is prepared for good when it is first used.
    """
    prepare, prepared = interpreter._patch_lang, set[tuple[str, ...]]()

    def prepare_new(function: Any) -> _Kept:
        modules = {value for value in function.__globals__.values() if isinstance(value, ModuleType)}
        names = tuple(sorted(module.__name__ for module in modules & {tl, tl.core}))
        if names not in prepared:
            prepare(function)
            prepared.add(names)
        return _Kept()

    interpreter._patch_lang = prepare_new
