"""KeySelectors and Partitioners as functions: opened and closed wherever they are called.

That is at both ends of an exchange by key, where records are dealt out and where their keys have
state, and where records in flight are dealt out anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dataflow.datastream.functions import Function, KeySelector, Partitioner
from taskmanager.operators.base import OperatorContext
from taskmanager.operators.runtime_context import OperatorRuntimeContext


class Selectors:
    """The functions behind the methods that are called per record, if they have any."""

    def __init__(self, methods: Iterable[Callable[..., Any]]) -> None:
        found = (getattr(method, "__self__", None) for method in methods)
        # Of one that selects the keys of two inputs there is one to open.
        kinds = (KeySelector, Partitioner)
        functions = {id(each): each for each in found if isinstance(each, kinds)}
        self._functions = [
            each
            for each in functions.values()
            if type(each).open is not Function.open or type(each).close is not Function.close
        ]
        self._opened: list[tuple[Function, OperatorRuntimeContext]] = []

    def open(self, context: OperatorContext) -> None:
        """Those of them that have something to open or close."""
        for function in self._functions:
            runtime_context = OperatorRuntimeContext(context, None)
            self._opened.append((function, runtime_context))
            function.open(runtime_context)

    def close(self) -> None:
        """All that were opened, once; the first error is raised."""
        first: BaseException | None = None
        while self._opened:
            function, runtime_context = self._opened.pop()
            try:
                function.close()
            except BaseException as error:  # user code may raise anything
                first = first or error
            runtime_context.release()
        if first is not None:
            raise first
