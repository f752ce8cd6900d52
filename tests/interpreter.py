"""Triton's interpreter, in less time and without a defect, for processes in which every kernel is interpreted."""

from types import ModuleType
from typing import Any

import numpy as np
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


def spread_truth_as_truth() -> None:
    """A comparison of scalars, spread to a block, is to remain one: it becomes integers, which Triton 3.9 refuses as a mask.

    The interpreter notes the type of what was compared with the result, in place of `int1`.
    """
    splat = interpreter.InterpreterBuilder.create_splat

    def splat_truth(self: Any, ret_ty: Any, arg: Any) -> Any:
        return splat(self, ret_ty, interpreter.TensorHandle(arg.data, tl.int1) if arg.data.dtype == np.bool_ else arg)

    interpreter.InterpreterBuilder.create_splat = splat_truth
