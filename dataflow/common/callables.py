"""Judging the callables a program passes in, before anything is submitted."""

from __future__ import annotations

import inspect
import operator
from typing import Any

from dataflow.errors import JobGraphError

#: They show no signature before Python 3.13.
_OF_ONE_ARGUMENT = (operator.attrgetter, operator.itemgetter, operator.methodcaller)


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
