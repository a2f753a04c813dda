"""Asynchronous calls for the records of a stream: many in flight at once, none blocks the others.

    async def enrich(user_id):
        async with session.get(f"/users/{user_id}") as response:
            return [await response.json()]

    users = AsyncDataStream.unordered_wait(ids, enrich, Duration.of_seconds(5), capacity=200)

The coroutines of a TaskManager run on one event loop in a thread of its own, so a call that blocks
it stops all of them. Records in flight are in every checkpoint and are asked for again after a
failure, so what a call does outside may happen more than once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from dataflow.common.callables import require_arity, require_overrides
from dataflow.common.time import DurationLike, to_millis
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.arguments import instance_of, title_of
from dataflow.datastream.async_retry_strategies import NO_RETRY_STRATEGY, NoRetryStrategy
from dataflow.datastream.data_stream import DataStream
from dataflow.datastream.functions import AsyncFunction, AsyncRetryPredicate, AsyncRetryStrategy
from dataflow.errors import JobGraphError
from dataflow.graph.specs import AsyncWaitSpec

AsyncCallable = Callable[[Any], Coroutine[Any, Any, Any]]


class AsyncDataStream:
    """Apply an AsyncFunction, or an ``async def`` of one record that returns a list, to a stream.

    Every result has the timestamp of its record. At most ``capacity`` records are in flight, which
    counts those whose results wait for their turn; beyond that the stream is held back. A record
    that takes longer than ``timeout``, retries included, is given to ``AsyncFunction.timeout``,
    which fails the job unless it is overridden; a timeout of 0 never ends a call.
    """

    @staticmethod
    def unordered_wait(
        data_stream: DataStream,
        async_function: AsyncFunction | AsyncCallable,
        timeout: DurationLike,
        capacity: int = 100,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Results as they come, though never on the other side of a watermark."""
        return AsyncDataStream.unordered_wait_with_retry(
            data_stream, async_function, timeout, NO_RETRY_STRATEGY, capacity, output_type
        )

    @staticmethod
    def unordered_wait_with_retry(
        data_stream: DataStream,
        async_function: AsyncFunction | AsyncCallable,
        timeout: DurationLike,
        async_retry_strategy: AsyncRetryStrategy,
        capacity: int = 100,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """``unordered_wait``, where the strategy says which calls are made again, and when."""
        return _wait(
            "unordered_wait",
            data_stream,
            async_function,
            timeout,
            async_retry_strategy,
            capacity,
            output_type,
        )

    @staticmethod
    def ordered_wait(
        data_stream: DataStream,
        async_function: AsyncFunction | AsyncCallable,
        timeout: DurationLike,
        capacity: int = 100,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Results in the order of their records: one that is late holds those behind it back."""
        return AsyncDataStream.ordered_wait_with_retry(
            data_stream, async_function, timeout, NO_RETRY_STRATEGY, capacity, output_type
        )

    @staticmethod
    def ordered_wait_with_retry(
        data_stream: DataStream,
        async_function: AsyncFunction | AsyncCallable,
        timeout: DurationLike,
        async_retry_strategy: AsyncRetryStrategy,
        capacity: int = 100,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """``ordered_wait``, where the strategy says which calls are made again, and when."""
        return _wait(
            "ordered_wait",
            data_stream,
            async_function,
            timeout,
            async_retry_strategy,
            capacity,
            output_type,
        )


def _wait(
    method: str,
    stream: DataStream,
    function: Any,
    timeout: DurationLike,
    retry: Any,
    capacity: Any,
    output_type: TypeInformation | None,
) -> DataStream:
    instance_of(method, stream, DataStream)
    timeout_ms = to_millis(timeout, f"{method}: timeout")
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
        raise JobGraphError(f"{method}(): capacity must be an int of at least 1, not {capacity!r}")
    instance_of(method, retry, AsyncRetryStrategy)
    instance_of(method, retry.get_retry_predicate(), AsyncRetryPredicate)
    if timeout_ms == 0 and not isinstance(retry, NoRetryStrategy):
        raise JobGraphError(
            f"{method}_with_retry(): a timeout above 0 is needed, so that retrying comes to an end"
        )
    spec = AsyncWaitSpec(
        _as_async_function(method, function),
        ordered=method == "ordered_wait",
        timeout_ms=timeout_ms,
        capacity=capacity,
        retry=retry,
    )
    title = title_of("Async Wait", function)
    return stream._operate("async_wait", title, spec, output_type, stateful=True)


class _Async(AsyncFunction):
    """An ``async def`` as a function object."""

    def __init__(self, function: AsyncCallable) -> None:
        vars(self).update(async_invoke=function)

    async def async_invoke(self, value: Any) -> list[Any]:
        raise NotImplementedError


def _as_async_function(method: str, function: Any) -> AsyncFunction:
    plain = not isinstance(function, AsyncFunction)
    called = function if plain else function.async_invoke
    name = getattr(function, "__name__", type(function).__name__)
    if isinstance(function, type):
        instance_of(method, function, AsyncFunction)
    if not callable(called):
        raise JobGraphError(
            f"{method}(): an AsyncFunction or an async def is needed, and {function!r:.60} is a "
            f"{type(function).__name__}"
        )
    if not any(map(inspect.iscoroutinefunction, (called, called.__call__))):
        where = name if plain else f"{name}.async_invoke"
        raise JobGraphError(
            f"{method}(): {where} must be an `async def` that returns a list of results"
        )
    require_arity(f"{method}()", called, 1)
    require_overrides(f"{method}({name})", function, "open", "close", "timeout")
    return _Async(called) if plain else function
