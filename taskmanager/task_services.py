"""What surrounds a task: clocks, I/O, the way out; a task itself has none of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from state.checkpoint_store import CheckpointStore
from taskmanager.messages import Report, TaskDeploymentDescriptor
from taskmanager.result_partition import Transport

if TYPE_CHECKING:
    from taskmanager.task import Task


class TaskServices(Protocol):
    """One implementation per way to run: threads, and the simulator."""

    @property
    def transport(self) -> Transport: ...

    def processing_time(self) -> int:
        """In milliseconds; see ``ProcessingTime``."""

    def latency_clock(self) -> int:
        """The wall clock in nanoseconds: comparable between machines, and it may jump."""

    def run_async(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        """Run blocking work elsewhere; ``done`` is called on any thread."""

    def run_coroutine(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> Callable[[], None]:
        """Run what ``start`` makes on an event loop; ``done`` is called on any thread.

        What is returned cancels it, from any thread.
        """

    def report(self, report: Report) -> None:
        """To the JobManager, in order."""

    def checkpoint_store(self, descriptor: TaskDeploymentDescriptor) -> CheckpointStore | None:
        """Where this job's checkpoints live; None when checkpointing is off."""

    def state_folder(self, folder: str) -> CheckpointStore:
        """For state that lies elsewhere: of a savepoint, or of another job."""

    def wake_up(self, task: Task) -> None:
        """Step the task soon; callable from any thread."""
