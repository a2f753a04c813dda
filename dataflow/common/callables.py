"""Judging the callables a program passes in, before anything is submitted."""

from __future__ import annotations

import inspect
import operator
from typing import Any

from dataflow.errors import JobGraphError

#: They show no signature before Python 3.13.
_OF_ONE_ARGUMENT = (operator.attrgetter, operator.itemgetter, operator.methodcaller)
_OURS = f"{__name__.partition('.')[0]}."
#: What a function of any kind may have besides.
_OF_ALL_FUNCTIONS = (
    *("open", "close", "initialize_state", "snapshot_state"),
    *("notify_checkpoint_complete", "notify_checkpoint_aborted"),
)


def require_arity(where: str, function: Any, *counts: int) -> int:
    """The first of ``counts`` with which ``function`` can be called positionally.

    Raises JobGraphError if it is not callable or takes none of them. Callables without a readable
    signature (some builtins) are taken at their word.
    """
    if isinstance(function, _OF_ONE_ARGUMENT) and 1 in counts:
        return 1
    if not callable(function):
        raise JobGraphError(
            f"{where}: a callable is needed, and {function!r:.60} is a {type(function).__name__}"
        )
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return counts[0]
    for count in counts:
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count
    allowed = " or ".join(map(str, counts))
    plural = "" if counts == (1,) else "s"
    name = getattr(function, "__name__", type(function).__name__)
    raise JobGraphError(
        f"{where}: {name}{signature} is called with {allowed} argument{plural}, which it does not "
        "take"
    )


def require_overrides(where: str, value: Any, *methods: str) -> None:
    """Raise JobGraphError where ``value`` has a method that cannot be called as its class promises.

    Some are called late, on the first timer or checkpoint, and it is a pity to learn of it then.
    """
    kind = type(value)
    for method in methods:
        definitions = [each for each in kind.__mro__ if method in vars(each)]
        ours = next((each for each in definitions if each.__module__.startswith(_OURS)), None)
        if ours is None or ours is definitions[0]:
            continue
        try:
            promised = [*inspect.signature(getattr(ours, method)).parameters][1:]
            signature = inspect.signature(getattr(value, method))
        except (ValueError, TypeError):
            continue
        try:
            signature.bind(*promised)
        except TypeError:
            raise JobGraphError(
                f"{where}: {kind.__name__}.{method}{signature} is called with "
                f"({', '.join(promised)}), which it does not take"
            ) from None


def require_plain(operation: str, function: Any, *methods: str, may_yield: bool = False) -> Any:
    """``function`` unless it, or one of its ``methods``, is asynchronous or yields.

    Nor may a method take other arguments than its class promises.

    A generator function returns at once, whatever it is given: as a filter it would let everything
    pass. ``may_yield`` is for operations that take any number of results. Raises JobGraphError.
    """
    judged = [function, *(getattr(function, method, None) for method in methods)]
    if callable(function) and not isinstance(function, type):
        judged.append(function.__call__)
    name = getattr(function, "__name__", type(function).__name__)
    require_overrides(f"{operation}({name})", function, *methods, *_OF_ALL_FUNCTIONS)
    for candidate in judged:
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise JobGraphError(
                f"{operation}({name}): an async function is not possible here; make it a plain def"
            )
        if inspect.isgeneratorfunction(candidate) and not may_yield:
            hint = "; flat_map() takes any number of them" if operation == "map" else ""
            raise JobGraphError(
                f"{operation}({name}): a generator function is not possible here; return one "
                f"result instead of yielding{hint}"
            )
    return function
