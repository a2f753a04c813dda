"""When an asynchronous call is made again, and after which delay; see ``AsyncDataStream``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataflow.common.callables import require_arity, require_plain
from dataflow.datastream.functions import AsyncRetryPredicate, AsyncRetryStrategy
from dataflow.errors import JobGraphError

OfResult = Callable[[list[Any]], bool]
OfError = Callable[[Exception], bool]


@dataclass(frozen=True)
class RetryPredicate(AsyncRetryPredicate):
    """Two functions, or None where there is nothing to retry."""

    of_result: OfResult | None
    of_error: OfError | None

    def result_predicate(self) -> OfResult | None:
        return self.of_result

    def exception_predicate(self) -> OfError | None:
        return self.of_error


class NoRetryStrategy(AsyncRetryStrategy):
    """One attempt."""

    def can_retry(self, current_attempts: int) -> bool:
        return False

    def get_backoff_time_millis(self, current_attempts: int) -> int:
        return -1

    def get_retry_predicate(self) -> AsyncRetryPredicate:
        return RetryPredicate(None, None)


class ExponentialBackoffDelayRetryStrategy(AsyncRetryStrategy):
    """Up to ``max_attempts`` more attempts; each delay is ``multiplier`` times the one before.

    Delays are in ms, from ``initial_delay`` up to ``max_retry_delay``, and counted for every record
    by itself. Without a predicate for results no result is retried, without one for exceptions no
    exception is.
    """

    def __init__(
        self,
        max_attempts: int,
        initial_delay: int,
        max_retry_delay: int,
        multiplier: float,
        result_predicate: OfResult | None = None,
        exception_predicate: OfError | None = None,
    ) -> None:
        self._max_attempts = _whole("max_attempts", max_attempts)
        self._initial_delay = _whole("initial_delay", initial_delay)
        self._max_retry_delay = _whole("max_retry_delay", max_retry_delay)
        if isinstance(multiplier, bool) or not isinstance(multiplier, (int, float)):
            raise JobGraphError(f"a retry strategy's multiplier must be a number: {multiplier!r}")
        if not multiplier > 0:
            raise JobGraphError(f"a retry strategy's multiplier must be above 0, not {multiplier}")
        self._multiplier = multiplier
        for predicate in (result_predicate, exception_predicate):
            if predicate is not None:
                require_arity("retry predicate", require_plain("retry predicate", predicate), 1)
        self._predicate = RetryPredicate(result_predicate, exception_predicate)

    def can_retry(self, current_attempts: int) -> bool:
        return current_attempts <= self._max_attempts

    def get_backoff_time_millis(self, current_attempts: int) -> int:
        longest = self._max_retry_delay
        try:
            delay = self._initial_delay * self._multiplier ** (current_attempts - 1)
        except OverflowError:
            return longest
        return int(min(delay, longest))

    def get_retry_predicate(self) -> AsyncRetryPredicate:
        return self._predicate


class FixedDelayRetryStrategy(ExponentialBackoffDelayRetryStrategy):
    """Up to ``max_attempts`` more attempts, ``backoff_time_millis`` ms apart."""

    def __init__(
        self,
        max_attempts: int,
        backoff_time_millis: int,
        result_predicate: OfResult | None = None,
        exception_predicate: OfError | None = None,
    ) -> None:
        delay = _whole("backoff_time_millis", backoff_time_millis)
        super().__init__(max_attempts, delay, delay, 1, result_predicate, exception_predicate)


def _whole(what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise JobGraphError(
            f"a retry strategy's {what} must be an int of at least 1, not {value!r}"
        )
    return value


NO_RETRY_STRATEGY: AsyncRetryStrategy = NoRetryStrategy()
