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
    def trigger_savepoint(self, savepoint_directory: str | None = None) -> Future[str]:
        """Write a savepoint into a new folder below the directory; its path, once it is complete.

        Without a directory, into that of ``execution.checkpointing.savepoint-dir``. The future
        fails with JobRequestError if there is no savepoint; the job goes on.
        """

    @abstractmethod
    def stop_with_savepoint(
        self, advance_to_end_of_event_time: bool, savepoint_directory: str | None = None
    ) -> Future[str]:
        """End the job with a savepoint; its path, once the job has FINISHED.

        No record is processed behind the savepoint, and all output is committed. With
        ``advance_to_end_of_event_time`` the input ends first, so every window and event timer
        fires: that is for jobs that will not go on from the savepoint. As ``trigger_savepoint``.
        """

    @abstractmethod
    def trigger_checkpoint(self) -> Future[int]:
        """Take a checkpoint besides those that are due; its id. Fails with JobRequestError."""

    @abstractmethod
    def rescale(self, parallelism: int) -> Future[str]:
        """Let the job go on at another parallelism, from a checkpoint taken now.

        As if it had been started with ``-p parallelism``: operators with a parallelism of their
        own keep it. Done when it runs again, with a sentence that says what has changed. Fails
        with JobRequestError, and then the job goes on as it was.
        """

    @abstractmethod
    def query_state(
        self, uid: str, state_name: str, key: Any, window: tuple[int, int] | None = None
    ) -> Future[Any]:
        """What a state of the operator with that uid holds for a key now; None if nothing.

        A list for a list state, a dict for a map state, what has been reduced or accumulated so
        far for the others. ``window`` is the start and end (ms) of state that is of a window. The
        task answers between two batches, and goes on; what it answers may not be in a checkpoint
        yet. Fails with JobRequestError if the job is not RUNNING, there is no such operator or
        state, a value is larger than 1 MiB, or no answer comes within 10 s. Raises KeyTypeError for
        what cannot be a key, ValueError for what is no window.
        """

    @abstractmethod
    def get_accumulators(self) -> Future[dict[str, Any]]:
        """What the job's functions have added, as far as they are, by name."""

    @abstractmethod
    def get_job_execution_result(self) -> Future[JobExecutionResult]:
        """Done when the job is; fails with JobExecutionError if the job does."""

    @abstractmethod
    def receive(self, channel: str) -> Iterator[bytes]:
        """What the job's sinks send to this client on ``channel``, in order, until it ends.

        A chunk counts as taken, and the sink goes on, when the next one is asked for. Raises
        JobExecutionError if the job fails.
        """
