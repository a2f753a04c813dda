"""What JobManager and TaskManagers say to each other. All values, all picklable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from dataflow.errors import DataflowError
from dataflow.graph.cached_files import CachedFile
from dataflow.graph.job_graph import JobEdge, JobVertex
from state.checkpoint_options import CHECKPOINT, CheckpointOptions
from state.checkpoint_store import CommitPermit, StateHandle
from taskmanager.elements import Attempt, ChannelId
from taskmanager.latency import LatencyHistogram, LatencyPath


class TaskId(NamedTuple):
    """A subtask of a vertex (Flink's ExecutionVertexID); an attempt makes it an execution."""

    vertex_id: str
    subtask: int


# ------------------------------------------------------------------------------------ deployment


@dataclass(frozen=True)
class InputDescriptor:
    """The channels of one incoming edge: from consecutive upstream subtasks to ``subtask``.

    Only what differs is written down, and every task of an all-to-all edge has the same
    ``peers``: an edge of 500 by 500 subtasks has 250,000 channels, each described at both ends.
    """

    edge_id: str
    input_index: int
    subtask: int
    first: int  # upstream subtask
    peers: tuple[str, ...]  # the TaskManager of each, from the first on
    feedback: bool = False
    overtakable: bool = False  # see Partitioning

    @property
    def channels(self) -> list[tuple[ChannelId, str]]:
        """With the TaskManager at the other end of each."""
        return [
            (ChannelId(self.edge_id, up, self.subtask), peer)
            for up, peer in enumerate(self.peers, self.first)
        ]


@dataclass(frozen=True)
class OutputDescriptor:
    """The channels of one outgoing edge, from ``subtask`` to consecutive downstream subtasks."""

    edge: JobEdge
    max_parallelism: int  # of the target
    subtask: int
    first: int  # downstream subtask
    peers: tuple[str, ...]  # the TaskManager of each, from the first on; "" where not known yet
    blocking: bool = False  # kept on disk: the other end is deployed when all is there

    @property
    def channels(self) -> list[tuple[ChannelId, str]]:
        """With the TaskManager at the other end of each, in the order of the subtasks."""
        return [
            (ChannelId(self.edge.id, self.subtask, down), peer)
            for down, peer in enumerate(self.peers, self.first)
        ]


@dataclass(frozen=True)
class RestoreDescriptor:
    """What one task needs of one vertex of the checkpoint that holds state of its operators.

    Only its own snapshot if the parallelism is what it was, and no state is shared, else those of
    all subtasks.
    """

    checkpoint_id: int
    parallelism: int  # of that vertex, at the time of the checkpoint
    handles: tuple[tuple[int, StateHandle | None], ...]  # (old subtask, its state)
    shares_state: bool = False
    folder: str | None = None  # to which the handles are relative, if not that of the job
    renamed: tuple[tuple[str, str], ...] = ()  # operators: old uid, new uid
    #: All sinks have committed what belongs to this checkpoint and those before, perhaps long ago.
    settled: int = 0
    #: All subtasks of the old vertex had processed their last input. If only some had, splits and
    #: keys may be dealt out anew, and so those have more to do again.
    ended: bool = False


@dataclass(frozen=True)
class InFlightDescriptor:
    """Where a checkpoint has elements of one input edge of a task that a barrier has overtaken.

    ``inputs`` and ``outputs`` are the snapshots of old subtasks at either end of the edge.
    """

    checkpoint_id: int
    edge: JobEdge
    receivers: int  # old parallelism
    max_parallelism: int  # and that of the receiver
    inputs: tuple[StateHandle, ...]
    outputs: tuple[StateHandle, ...]
    #: The job is as it was: what a watermark promised for a channel, it promises again.
    unchanged: bool
    folder: str | None = None  # see RestoreDescriptor


@dataclass(frozen=True)
class TaskDeploymentDescriptor:
    """Everything a TaskManager needs to run one execution."""

    job_id: str
    job_name: str
    task: TaskId
    attempt: Attempt
    attempt_number: int  # how many times the job was restarted before
    vertex: JobVertex
    inputs: tuple[InputDescriptor, ...]
    outputs: tuple[OutputDescriptor, ...]
    configuration: dict[str, str]
    restore: tuple[RestoreDescriptor, ...] = ()  # empty: a fresh start
    main_classes: bytes = b""
    history_id: str = ""
    in_flight: tuple[InFlightDescriptor, ...] = ()
    cached_files: tuple[CachedFile, ...] = ()
    #: Without checkpoints: what the task left when it had drained (see TaskDrained).
    drained: bytes | None = None


@dataclass(frozen=True)
class ResultDescriptor:
    """A blocking result of a task that has drained, and which of its channels are wanted where."""

    producer: TaskId
    produced_by: Attempt
    edge_id: str
    first: int  # downstream subtask of the producer
    downstream: tuple[int, ...]  # those that want it
    peers: tuple[str, ...]  # the TaskManager of each

    @property
    def channels(self) -> list[tuple[ChannelId, str]]:
        """With the TaskManager at the other end of each."""
        return [
            (ChannelId(self.edge_id, self.producer.subtask, down), peer)
            for down, peer in zip(self.downstream, self.peers, strict=True)
        ]


# ---------------------------------------------------------------------- JobManager to TaskManager


@dataclass(frozen=True)
class Deploy:
    """Build the tasks, restore their state and open them, but do not run yet."""

    descriptors: tuple[TaskDeploymentDescriptor, ...]


@dataclass(frozen=True)
class Start:
    """Every task of the region is ready: run."""

    tasks: tuple[TaskId, ...]
    attempt: Attempt


@dataclass(frozen=True)
class SendResults:
    """Send blocking results that are here to tasks of that attempt, which are ready for them."""

    results: tuple[ResultDescriptor, ...]
    attempt: Attempt


@dataclass(frozen=True)
class ReleaseResults:
    """Nobody needs the blocking results of these tasks any more."""

    tasks: tuple[TaskId, ...]
    attempt: Attempt


@dataclass(frozen=True)
class TriggerCheckpoint:
    """Sources: snapshot and send the barrier."""

    tasks: tuple[TaskId, ...]
    attempt: Attempt
    checkpoint_id: int
    options: CheckpointOptions = CHECKPOINT


@dataclass(frozen=True)
class Drain:
    """Sources: the input ends here, whatever there is still to read."""

    tasks: tuple[TaskId, ...]
    attempt: Attempt


@dataclass(frozen=True)
class Resume:
    """Go on, although the barrier of that checkpoint said to stop."""

    tasks: tuple[TaskId, ...]
    attempt: Attempt
    checkpoint_id: int


@dataclass(frozen=True)
class CommitCheckpoint:
    """The checkpoint is complete: tell the functions and commit what it covers.

    ``settled`` says that an earlier checkpoint of these attempts has been committed by all tasks:
    nothing that older attempts have left uncommitted can be committed any more.
    """

    tasks: tuple[TaskId, ...]
    attempt: Attempt
    permit: CommitPermit
    settled: bool = False


@dataclass(frozen=True)
class AbortCheckpoint:
    """The checkpoint will not complete: stop aligning and uploading for it."""

    tasks: tuple[TaskId, ...]
    attempt: Attempt
    checkpoint_id: int


@dataclass(frozen=True)
class Finish:
    """Every task has drained, or stopped for good, and everything is committed: end.

    In BATCH mode tasks without a sink end when their region has drained.
    """

    tasks: tuple[TaskId, ...]
    attempt: Attempt


@dataclass(frozen=True)
class Cancel:
    """Stop at once. Answered by TaskCanceled, also for tasks that are gone already."""

    tasks: tuple[TaskId, ...]
    attempt: Attempt


@dataclass(frozen=True)
class AlignWatermark:
    """Sources: the lowest watermark of your group, None if nobody has one; answers a report."""

    tasks: tuple[TaskId, ...]
    attempt: Attempt
    watermark: int | None


@dataclass(frozen=True)
class QueryState:
    """Say what an operator's state holds for a key. Answered by StateQueried.

    ``question`` is pickled: the name of the state, the key, and a window's start and end or None.
    """

    task: TaskId
    request_id: str
    uid: str
    question: bytes


@dataclass(frozen=True)
class ClientAcknowledged:
    """The client has taken the chunk with that number (see ``ClientChunk``)."""

    task: TaskId
    attempt: Attempt
    number: int


ControlMessage = (
    Deploy
    | Start
    | SendResults
    | ReleaseResults
    | TriggerCheckpoint
    | Drain
    | Resume
    | CommitCheckpoint
    | AbortCheckpoint
    | Finish
    | Cancel
    | AlignWatermark
    | QueryState
    | ClientAcknowledged
)

# ---------------------------------------------------------------------- TaskManager to JobManager


@dataclass(frozen=True)
class TaskReady:
    """Deployed, restored and open."""

    task: TaskId
    attempt: Attempt


@dataclass(frozen=True)
class TaskDrained:
    """Processed its last input; it still takes part in checkpoints.

    Without checkpoints ``snapshot`` is what its sinks have to commit: who gets it, instead of the
    input, commits the same.
    """

    task: TaskId
    attempt: Attempt
    snapshot: bytes | None = None
    metrics: TaskMetrics | None = None


@dataclass(frozen=True)
class TaskFinished:
    """Ended by itself, after Finish; its output is committed. ``metrics`` are its last ones."""

    task: TaskId
    attempt: Attempt
    metrics: TaskMetrics | None = None


@dataclass(frozen=True)
class TaskCanceled:
    """Not there (any more); the answer to every Cancel."""

    task: TaskId
    attempt: Attempt


@dataclass(frozen=True)
class TaskFailed:
    """``error`` is for people: operator, position, the user's traceback; bounded in size."""

    task: TaskId
    attempt: Attempt
    error: str
    final: type[DataflowError] | None = None  # its kind, if no restart would help
    corrupt_checkpoint: int | None = None  # its state could not be read back as it was written


@dataclass(frozen=True)
class ResultLost:
    """The blocking results of the task cannot be read (any more)."""

    task: TaskId
    attempt: Attempt  # that produced them
    error: str


@dataclass(frozen=True)
class CheckpointAcknowledged:
    """The subtask's snapshot is durable in the store; it holds state of ``stateful_uids``."""

    task: TaskId
    attempt: Attempt
    checkpoint_id: int
    handle: StateHandle
    stateful_uids: tuple[str, ...]
    drained: bool
    has_committables: bool
    shares_state: bool = False  # see TaskSnapshot
    in_flight_inputs: tuple[str, ...] = ()  # see SubtaskState
    in_flight_outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointDeclined:
    """The subtask cannot take part in this checkpoint; the task itself goes on."""

    task: TaskId
    attempt: Attempt
    checkpoint_id: int
    reason: str


@dataclass(frozen=True)
class CommitSucceeded:
    """Everything the checkpoint covers in this subtask is visible."""

    task: TaskId
    attempt: Attempt
    checkpoint_id: int


@dataclass(frozen=True)
class WatermarkReached:
    """How far a source is that is aligned with its group; None: nobody need wait for it.

    Answered by AlignWatermark.
    """

    task: TaskId
    attempt: Attempt
    group: str
    watermark: int | None


@dataclass(frozen=True)
class StateQueried:
    """``value`` is pickled, None if the key has none; or why there is no answer."""

    request_id: str
    value: bytes | None = None
    error: str | None = None


@dataclass(frozen=True)
class ClientChunk:
    """Output for the client: of ``print`` and ``collect``."""

    task: TaskId
    attempt: Attempt
    number: int  # counts up per execution
    channel: str
    payload: bytes
    acknowledge: bool


#: Among the ``extra`` of a task that restores state: bytes that it has read of it so far.
RESTORED_SIZE = "restoredStateSizeBytes"


@dataclass(frozen=True)
class TaskMetrics:
    """Counters since the execution started; ``watermark`` None before the first one.

    ``records_read`` is what the task's source produced, ``records_written`` what its sinks took:
    both 0 for tasks in between, so that their sums are the job's input and output.
    """

    records_in: int
    records_read: int
    records_written: int
    watermark: int | None
    extra: dict[str, float] = field(default_factory=dict)
    latencies: dict[LatencyPath, LatencyHistogram] = field(default_factory=dict)
    accumulators: tuple[tuple[str, bytes], ...] = ()  # name, pickled


@dataclass(frozen=True)
class Heartbeat:
    """A TaskManager is alive; its tasks' metrics."""

    taskmanager_id: str
    metrics: dict[tuple[TaskId, Attempt], TaskMetrics]


@dataclass(frozen=True)
class PeerUnreachable:
    """A data message could not be delivered after the bounded retries."""

    taskmanager_id: str
    peer_id: str
    attempt: Attempt
    error: str


Report = (
    TaskReady
    | TaskDrained
    | TaskFinished
    | TaskCanceled
    | TaskFailed
    | ResultLost
    | CheckpointAcknowledged
    | CheckpointDeclined
    | CommitSucceeded
    | WatermarkReached
    | StateQueried
    | ClientChunk
    | Heartbeat
    | PeerUnreachable
)

# --------------------------------------------------------------------- TaskManager to TaskManager


@dataclass(frozen=True, slots=True)
class DataMessage:
    """Consecutive elements of one channel, numbered from ``first``; bytes between processes."""

    attempt: Attempt
    channel: ChannelId
    first: int
    items: list[object]
    sizes: list[int]


@dataclass(frozen=True, slots=True)
class Feedback:
    """The receiver's cumulative books on one channel."""

    attempt: Attempt
    channel: ChannelId
    consumed: int
    demand: int
