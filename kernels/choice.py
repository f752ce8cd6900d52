"""Functions of which Numba compiles another one for each type of an argument. Importing this module needs Numba."""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from numba.extending import overload


def choose_by_type(
    function: Callable[..., Any], argument: str, modules: Mapping[type, ModuleType], alone: dict[str, Any] | None = None
) -> None:
    """Makes calls of a function, in what Numba compiles, calls of that of the same name in a module.

    Args:
        function: says what it does; its body is not used.
        argument: whose type, a named tuple's, says which module.
        modules: of each type.
        alone: Numba's options, to compile what is called by itself; by default it becomes a part of what calls it.
    """
    place = list(inspect.signature(function).parameters).index(argument)

    def chosen(*types: Any) -> Callable[..., Any]:
        return getattr(modules[types[place].instance_class], function.__name__)

    how: Any = {"inline": "always"} if alone is None else {"jit_options": alone}
    overload(function, strict=False, **how)(chosen)  # not strict: annotations differ
