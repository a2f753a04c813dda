"""Sources and sinks as a user writes them: Flink's FLIP-27 Source and Sink V2, in Python.

A **source** is split in two. The ``SplitEnumerator`` runs once per source and finds the work
(files, partitions, ranges) as *splits*; a ``SourceReader`` runs in every subtask and reads the
splits assigned to it. A split carries its own position, so that a snapshot of a reader is the
list of its unfinished splits and restoring is adding them back.

A **sink** is a ``SinkWriter`` per subtask. If it is to be exactly-once, the writer is a
``CommittingSinkWriter`` whose ``prepare_commit`` turns everything written since the last
checkpoint into *committables*, and the sink has a ``Committer`` that makes them visible once the
checkpoint is complete. A committer may be asked to commit the same committable again after a
failure and must then answer as if it were the first time.

Nothing here may block a task: readers that do I/O use ``FetchingReader`` (I/O threads behind a
bounded queue), enumerators ``SplitEnumeratorContext.call_async``.
Snapshots, splits and committables are pickled. A split with an attribute ``split_id`` (text) holds
the watermark back from the moment it is assigned, otherwise from its first record.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from dataflow.common.batch import Batch, RowBatch
from dataflow.common.typeinfo import TypeInformation

T = TypeVar("T")
SplitT = TypeVar("SplitT")
CommT = TypeVar("CommT")
T_contra = TypeVar("T_contra", contravariant=True)
SplitT_contra = TypeVar("SplitT_contra", contravariant=True)


class Boundedness(Enum):
    """Whether a source ends by itself."""

    BOUNDED = "bounded"
    CONTINUOUS_UNBOUNDED = "continuous_unbounded"


class DeliveryGuarantee(Enum):
    """What a sink promises when the job fails and recovers."""

    EXACTLY_ONCE = "exactly_once"
    AT_LEAST_ONCE = "at_least_once"
    NONE = "none"


class InputStatus(Enum):
    """What a reader's ``poll_next`` answers."""

    MORE_AVAILABLE = "more_available"
    NOTHING_AVAILABLE = "nothing_available"
    END_OF_INPUT = "end_of_input"


# ---------------------------------------------------------------------------------------- source


class SplitEnumeratorContext(Protocol[SplitT_contra]):
    """What the engine gives an enumerator. Not thread-safe: handlers run on the task."""

    @property
    def current_parallelism(self) -> int:
        """Number of reader subtasks, 0 .. current_parallelism - 1."""

    def assign_split(self, split: SplitT_contra, subtask_id: int) -> None:
        """Send a split to a reader; ordered with the checkpoints by the engine."""

    def signal_no_more_splits(self, subtask_id: int) -> None:
        """Tell a reader that what it has is all it will ever get."""

    def call_async(
        self,
        work: Callable[[], T],
        handler: Callable[[T | None, BaseException | None], None],
        period_ms: int | None = None,
    ) -> None:
        """Run blocking ``work`` on another thread, then ``handler(result, error)`` on the task.

        With ``period_ms`` it is repeated that long after each completion, until close.
        """


class SplitEnumerator(ABC, Generic[SplitT]):
    """Finds splits and hands them to the readers that ask."""

    def start(self) -> None:
        """Called once before any request."""

    @abstractmethod
    def handle_split_request(self, subtask_id: int) -> None:
        """A reader has nothing left to read: assign a split, remember it, or say no more."""

    @abstractmethod
    def snapshot_state(self, checkpoint_id: int) -> Any:
        """What ``Source.create_enumerator`` needs to go on: everything not yet assigned."""

    def close(self) -> None:
        """Called once at the end, also after a failure."""


class ReaderOutput(Protocol[T_contra]):
    """Where a reader puts what it has read."""

    @property
    def batch_records(self) -> int:
        """How many records ``collect_batch`` should get at a time, where a reader can choose.

        The engine follows the time that the functions behind the source take.
        """

    def collect(self, record: T_contra, timestamp: int | None = None, split_id: str = "") -> None:
        """One record. Prefer ``collect_batch``: the cost per call is then paid per batch."""

    def collect_batch(self, batch: Batch, split_id: str = "") -> None:
        """Many records of one split; watermarks are tracked per ``split_id``."""

    def emit_watermark(self, timestamp: int, split_id: str = "") -> None:
        """Event time of a split has reached ``timestamp``, known from the source itself."""

    def mark_split_finished(self, split_id: str) -> None:
        """The split no longer holds the watermark back."""


class SourceReaderContext(Protocol):
    """What the engine gives a reader."""

    @property
    def subtask_index(self) -> int: ...

    @property
    def parallelism(self) -> int: ...

    @property
    def attempt_number(self) -> int:
        """How often this subtask was restarted before, from 0."""

    def send_split_request(self) -> None:
        """Ask the enumerator for a split; the answer is ``add_splits`` or ``no_more_splits``."""

    def wake_up(self) -> None:
        """Thread-safe: poll again although ``poll_next`` had answered NOTHING_AVAILABLE."""

    def call_async(
        self,
        work: Callable[[], T],
        handler: Callable[[T | None, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        """Run blocking ``work`` on another thread, then ``handler(result, error)`` on the task."""

    def processing_time(self) -> int:
        """In milliseconds since the epoch; it never jumps (virtual in a simulation)."""

    def add_metric(self, name: str, value: Callable[[], float]) -> None:
        """Publish a number with the task's heartbeat."""


class SourceReader(ABC, Generic[T, SplitT]):
    """Reads the splits of one subtask. All methods run on the task's thread and do not block."""

    def start(self) -> None:
        """Called once before the first poll, after restored splits were added."""

    @abstractmethod
    def poll_next(self, output: ReaderOutput[T]) -> InputStatus:
        """Emit about one batch (1,000 records or 64 KiB are good sizes) and return.

        END_OF_INPUT is final. After NOTHING_AVAILABLE the engine polls again on ``wake_up``, on
        new splits, or at ``next_poll_at``.
        """

    @abstractmethod
    def snapshot_state(self, checkpoint_id: int) -> list[SplitT]:
        """The unfinished splits, each at the position AFTER the last emitted record."""

    @abstractmethod
    def add_splits(self, splits: Sequence[SplitT]) -> None:
        """More work, from the enumerator or from a restored snapshot."""

    def notify_no_more_splits(self) -> None:
        """No further ``add_splits`` will come."""

    def next_poll_at(self) -> int | None:
        """Processing time (ms) at which to poll again after NOTHING_AVAILABLE."""
        return None

    def pause_or_resume_splits(
        self, splits_to_pause: Sequence[str], splits_to_resume: Sequence[str]
    ) -> None:
        """Emit nothing of these splits until they are resumed (see ``with_watermark_alignment``).

        To be overridden by readers whose splits have a ``split_id`` and go on independently of
        each other. All others are not polled at all while what they have read is too far ahead.
        """
        raise NotImplementedError

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        """The snapshot taken for this checkpoint is durable."""

    def close(self) -> None:
        """Called once at the end, also after a failure."""


class Source(ABC, Generic[T, SplitT]):
    """A factory for enumerator and readers; it is pickled, so it opens nothing itself."""

    @property
    def boundedness(self) -> Boundedness:
        return Boundedness.BOUNDED

    @abstractmethod
    def create_reader(self, context: SourceReaderContext) -> SourceReader[T, SplitT]:
        """A reader without splits."""

    def static_splits(self, parallelism: int) -> list[SplitT] | None:
        """All splits, when they are few and known in advance; reader *i* gets ``[i::parallelism]``.

        Such a source has no enumerator, so its subtasks fail and recover independently.
        """
        return None

    def create_enumerator(
        self, context: SplitEnumeratorContext[SplitT], checkpoint: Any = None
    ) -> SplitEnumerator[SplitT]:
        """A new enumerator, or with ``checkpoint`` (its ``snapshot_state``) a restored one."""
        raise NotImplementedError(
            f"{type(self).__name__} needs either static_splits() or create_enumerator()"
        )


# ------------------------------------------------------------------------------------------ sink


class WriterInitContext(Protocol):
    """What the engine gives a writer and a committer."""

    @property
    def subtask_index(self) -> int: ...

    @property
    def parallelism(self) -> int: ...

    @property
    def job_id(self) -> str: ...

    @property
    def history_id(self) -> str:
        """Names the checkpoint history that the job goes on with.

        The same for all runs that recover from each other's checkpoints; another one when a job
        begins anew, also under the same id. Attempts can be compared within one history only.
        """

    @property
    def operator_uid(self) -> str:
        """Names the operator within the job."""

    @property
    def attempt(self) -> str:
        """Differs for every attempt to run this subtask, also across JobManager restarts.

        "GENERATION.NUMBER": as a pair of numbers, that of a later attempt is greater.
        """

    @property
    def checkpointing(self) -> bool:
        """Whether the job takes checkpoints; without them all commits come at its end."""

    def call_async(
        self,
        work: Callable[[], T],
        done: Callable[[T | None, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        """Run blocking ``work`` on another thread, then ``done(result, error)`` on the task."""

    def processing_time(self) -> int:
        """In milliseconds since the epoch; it never jumps (virtual in a simulation)."""

    def send_to_client(self, channel: str, payload: bytes, done: Callable[[], None] | None) -> None:
        """Hand a chunk to whoever waits for the job (print, collect); only from the task.

        ``done`` is called on the task once the client has taken it; None does not wait.
        """

    def add_metric(self, name: str, value: Callable[[], float]) -> None:
        """Publish a number with the task's heartbeat."""


class SinkWriter(ABC, Generic[T]):
    """Writes the records of one subtask."""

    @abstractmethod
    def write(self, element: T, timestamp: int | None) -> None:
        """One record with its event timestamp in ms, or None."""

    def write_batch(self, batch: Batch) -> None:
        """Many records; override it to write a batch at a time (it may be Arrow)."""
        rows = batch if isinstance(batch, RowBatch) else batch.to_rows()
        if rows.timestamps is None:
            for row in rows.rows:
                self.write(row, None)
        else:
            for row, timestamp in zip(rows.rows, rows.timestamps, strict=True):
                self.write(row, timestamp)

    def write_watermark(self, timestamp: int) -> None:
        """Event time has reached ``timestamp``."""

    def blocked(self) -> bool:
        """True while the writer cannot take another batch; this is how a sink pushes back."""
        return False

    def next_timer_at(self) -> int | None:
        """Processing time (ms) at which ``on_processing_time`` wants to be called."""
        return None

    def on_processing_time(self, now: int) -> None:
        """Processing time has reached ``next_timer_at``."""

    def flush(self, end_of_input: bool) -> None:
        """Called before each checkpoint and at the end: nothing may stay buffered in memory."""

    def snapshot_state(self, checkpoint_id: int) -> list[Any]:
        """State of the writer itself (such as an open part); restored by ``restore_writer``."""
        return []

    def close(self) -> None:
        """Called once at the end, also after a failure; uncommitted output must stay invisible."""


class CommittingSinkWriter(SinkWriter[T], Generic[T, CommT]):
    """A writer whose output becomes visible by a commit."""

    @abstractmethod
    def prepare_commit(self) -> list[CommT] | Callable[[], list[CommT]]:
        """Pre-commit everything written so far; called after ``flush``, before the snapshot.

        What has to wait for I/O is better done in a function that is returned instead of the
        committables, and returns them. It is called on an I/O thread while the task goes on
        writing; those of one writer one after the other. Should it raise, the checkpoint is
        declined and it is called again for the next one, so it must go on where it has failed.
        """


class Committer(ABC, Generic[CommT]):
    """Second phase. Runs on an I/O thread."""

    @abstractmethod
    def commit(self, committables: Sequence[CommT]) -> None:
        """Make them visible. Idempotent: "already committed" is success.

        An exception is retried a bounded number of times, then fails the job, which commits
        again after its restart.
        """

    def abort_abandoned(self) -> None:
        """Drop what earlier attempts to run this subtask have pre-committed in vain.

        Called on an I/O thread, once, when everything that can still be committed of them has
        been, by all subtasks. With fewer subtasks than before, subtask *i* of *n* also sees to
        the former subtasks *i + n*, *i + 2n*, ... Only of *earlier* attempts: this one may have
        been replaced without having noticed. An exception is logged.
        """

    def close(self) -> None:
        """Called once at the end, also after a failure."""


class AsyncCommitter(ABC, Generic[CommT]):
    """Second phase for those who wait for somebody else, not for I/O. Runs on the task."""

    @abstractmethod
    def commit(
        self, committables: Sequence[CommT], done: Callable[[BaseException | None], None]
    ) -> None:
        """As ``Committer.commit``, but return at once and call ``done`` on the task."""

    def close(self) -> None:
        """Called once at the end, also after a failure."""


class Sink(ABC, Generic[T]):
    """A factory for writers; it is pickled, so it opens nothing itself."""

    def for_type(self, type_info: TypeInformation | None) -> Sink[T]:
        """The sink for records of that declared type; what is written as text depends on it."""
        return self

    @abstractmethod
    def create_writer(self, context: WriterInitContext) -> SinkWriter[T]:
        """A writer with no state."""

    def restore_writer(self, context: WriterInitContext, states: list[Any]) -> SinkWriter[T]:
        """A writer that goes on from ``states``, what earlier writers' snapshots returned."""
        if states:
            raise NotImplementedError(f"{type(self).__name__} has state but no restore_writer()")
        return self.create_writer(context)

    def create_committer(
        self, context: WriterInitContext
    ) -> Committer[Any] | AsyncCommitter[Any] | None:
        """The second phase, for sinks whose writers are ``CommittingSinkWriter``."""
        return None
