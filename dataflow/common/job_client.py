"""The handle of a submitted job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflow.common.job_execution_result import JobExecutionResult
    from dataflow.common.job_id import JobID
    from dataflow.common.job_status import JobStatus


class JobClient(ABC):
    """What a program can ask of a job that runs; every answer is a future with ``result()``."""

    @abstractmethod
    def get_job_id(self) -> JobID:
        """The id under which another process finds the job again."""

    @abstractmethod
    def get_job_status(self) -> Future[JobStatus]:
        """Where the job stands."""

    @abstractmethod
    def cancel(self) -> Future[None]:
        """Ask the job to stop; done once it has reached a terminal state."""

    @abstractmethod
    def get_accumulators(self) -> Future[dict[str, Any]]:
        """The job's counters so far, by name."""

    @abstractmethod
    def get_job_execution_result(self) -> Future[JobExecutionResult]:
        """Done when the job is; fails with JobExecutionError if the job does."""

    @abstractmethod
    def receive(self, channel: str) -> Iterator[bytes]:
        """What the job's sinks send to this client on ``channel``, in order, until it ends.

        A chunk counts as taken, and the sink goes on, when the next one is asked for. Raises
        JobExecutionError if the job fails.
        """
