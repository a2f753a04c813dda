"""Functions that call something outside, many at once; see ``AsyncDataStream``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dataflow.datastream.function import Function


class AsyncFunction(Function):
    """Calls something outside for every record, many at once; see ``AsyncDataStream``.

    It has no state, and ``open`` runs before there is an event loop: what needs one (a session of
    an HTTP client) is made by the first ``async_invoke``. The record must not be changed.
    """

    @abstractmethod
    async def async_invoke(self, value: Any) -> list[Any]:
        """The results of one record, any number of them; an exception fails the job."""

    def timeout(self, value: Any) -> list[Any]:
        """The results of a record whose call took too long; here, that fails the job.

        The record, which may be confidential, is not in the error.
        """
        raise TimeoutError(
            "the asynchronous call for a record has timed out; override timeout() to go on without"
        )


class AsyncRetryPredicate(ABC):
    """Which outcomes of an asynchronous call are reasons to make it again."""

    @abstractmethod
    def result_predicate(self) -> Callable[[list[Any]], bool] | None:
        """True for results that are not good enough; None: all are."""

    @abstractmethod
    def exception_predicate(self) -> Callable[[Exception], bool] | None:
        """True for exceptions that may go away; None: none does."""


class AsyncRetryStrategy(ABC):
    """Whether and when an asynchronous call is made again."""

    @abstractmethod
    def can_retry(self, current_attempts: int) -> bool:
        """Whether there may be one more, after this many attempts."""

    @abstractmethod
    def get_backoff_time_millis(self, current_attempts: int) -> int:
        """How long to wait before the next attempt, in ms."""

    @abstractmethod
    def get_retry_predicate(self) -> AsyncRetryPredicate: ...

    @staticmethod
    def no_restart() -> AsyncRetryStrategy:
        """One attempt."""
        from dataflow.datastream.async_retry_strategies import NO_RETRY_STRATEGY

        return NO_RETRY_STRATEGY

    @staticmethod
    def fixed_delay(
        max_attempts: int,
        backoff_time_millis: int,
        result_predicate: Callable[[list[Any]], bool] | None = None,
        exception_predicate: Callable[[Exception], bool] | None = None,
    ) -> AsyncRetryStrategy:
        """Up to ``max_attempts`` more attempts, ``backoff_time_millis`` ms apart."""
        from dataflow.datastream.async_retry_strategies import FixedDelayRetryStrategy

        return FixedDelayRetryStrategy(
            max_attempts, backoff_time_millis, result_predicate, exception_predicate
        )

    @staticmethod
    def exponential_backoff(
        max_attempts: int,
        initial_delay: int,
        max_retry_delay: int,
        multiplier: float,
        result_predicate: Callable[[list[Any]], bool] | None = None,
        exception_predicate: Callable[[Exception], bool] | None = None,
    ) -> AsyncRetryStrategy:
        """Up to ``max_attempts`` more attempts, with growing delays between them (ms)."""
        from dataflow.datastream.async_retry_strategies import ExponentialBackoffDelayRetryStrategy

        return ExponentialBackoffDelayRetryStrategy(
            max_attempts,
            initial_delay,
            max_retry_delay,
            multiplier,
            result_predicate,
            exception_predicate,
        )
