"""Deliberate bugs, put in from outside: a simulator that misses one proves nothing.

Each canary is a context manager around ``run_seed``, with the options that give it its chance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from dataflow.common.batch import MIN_TIMESTAMP
from dataflow.common.keys import KeyGroupMemo
from dataflow.datastream import iteration
from dataflow.errors import StorageError
from jobmanager import in_flight as plan
from jobmanager.checkpoint_coordinator import CheckpointCoordinator
from jobmanager.watermark_alignment import WatermarkAlignment
from state import checkpoint_protocol as protocol
from state.broadcast_state import BroadcastStates
from state.checkpoint_metadata import EpochRecord, encode_epoch
from state.checkpoint_paths import JobPaths
from state.checkpoint_store import (
    CheckpointManifest,
    CheckpointStore,
    PublishOutcome,
    StateHandle,
)
from state.columnar_state import ColumnarState, Runs
from state.heap_backend import HeapKeyedStateBackend
from state.snapshot import OperatorSnapshot
from state.snapshot_format import Block, SnapshotFile
from taskmanager import in_flight
from taskmanager.channel import ChannelLimits, InputChannel, OutputChannel
from taskmanager.messages import CheckpointAcknowledged, DataMessage, Feedback, TaskId
from taskmanager.operators.async_wait import AsyncWaitOperator
from taskmanager.operators.columnar.pre_aggregate import PreAggregateOperator
from taskmanager.operators.interval_join import IntervalJoinOperator
from taskmanager.operators.iteration import IterationHeadOperator
from taskmanager.operators.sink import SinkOperator
from taskmanager.operators.source_alignment import SourceAlignment
from taskmanager.processing_time import ProcessingTime
from taskmanager.subtask_checkpoints import SubtaskCheckpoints
from taskmanager.task import Task
from tests.sim import ledger, stage_canaries
from tests.sim.jobs import SimReader, SimSplit
from tests.sim.nemesis import Rates
from tests.sim.run import Options, run_seed
from tests.sim.world import MS, SECOND


def _busy(rates: Rates) -> Rates:
    """Kills between checkpoints, nothing that hides what comes of them."""
    return replace(
        rates,
        enabled=frozenset({"F01"}),
        store_crash=0.0,
        store_slow=0.0,
        failpoint=0.01,
        strike_every_us=1_500 * MS,
        steady=False,
    )


def _often(rates: Rates) -> Rates:
    """Kills in the middle of stages, which are short, and of commits."""
    often = replace(_busy(rates), failpoint=0.003, strike_every_us=1_200 * MS, damage=0.0)
    return replace(often, steady=True)


def _late_messages(rates: Rates) -> Rates:
    """Tasks fail while their TaskManagers live on, and messages survive them."""
    return replace(
        rates,
        enabled=frozenset({"F13"}),
        store_crash=0.0,
        poison=0.02,
        message_repeat=0.3,
        slow_message_us=3 * SECOND,
    )


def _only(fault: str) -> Callable[[Rates], Rates]:
    """One fault of the list, and no other."""

    def rates_of(rates: Rates) -> Rates:
        return Rates(
            enabled=frozenset({fault}),
            torn_upload=0.1 if fault == "F09" else 0.0,
            skew_ms=3_600_000 if fault == "F19" else 0,
            strike_every_us=1 * SECOND,
            heal_at_us=rates.heal_at_us,
        )

    return rates_of


def _deposed(rates: Rates) -> Rates:
    """Two JobManagers at once."""
    return replace(
        rates,
        enabled=frozenset({"F12"}),
        interleave=0.0,
        overtake=0.0,
        strike_every_us=2 * SECOND,
        steady=False,
    )


@dataclass(frozen=True)
class Canary:
    """``plant`` puts the bug in; ``options`` say where it would show.

    ``seed`` is the first to be tried: one that shows it soon.
    """

    name: str
    plant: Callable[[], AbstractContextManager[Any]]
    options: Options = field(default_factory=lambda: Options(scenario="faults", rates=_busy))
    seed: int = 0

    def is_noticed(self, seeds: int) -> bool:
        """Whether one of so many seeds finds a violation."""
        options = replace(self.options, until_violation=True)
        with self.plant():
            return any(run_seed(self.seed + n, options).violations for n in range(seeds))


# -------------------------------------------------------------------------------------- the bugs


@contextmanager
def skip_alignment_blocking() -> Iterator[None]:
    """1: records behind the barrier are processed before the snapshot."""
    original = Task.__init__

    def init(self: Task, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._checkpoints._aligned_exactly = False

    with mock.patch.object(Task, "__init__", init):
        yield


@contextmanager
def acknowledge_before_upload() -> Iterator[None]:
    """2: the handle is handed out although the write may still fail."""
    original = CheckpointStore.write_state

    def write_state(self: CheckpointStore, *arguments: Any) -> StateHandle:
        discarded = mock.Mock()
        with mock.patch.object(self, "_fs", discarded):
            handle = original(self, *arguments)

        def upload() -> None:
            with suppress(StorageError):
                original(self, *arguments)

        ledger.current().later(upload)
        return handle

    with mock.patch.object(CheckpointStore, "write_state", write_state):
        yield


@contextmanager
def publish_before_last_ack() -> Iterator[None]:
    """3: the last subtask's state is taken from the checkpoint before."""
    original = CheckpointCoordinator.acknowledge
    before: dict[TaskId, CheckpointAcknowledged] = {}

    def acknowledge(self: CheckpointCoordinator, ack: CheckpointAcknowledged, now: int) -> Any:
        result, actions = original(self, ack, now)
        pending = self._pending
        missing = [] if pending is None else [t for t in self._tasks if t not in pending.acks]
        if pending is not None and len(missing) == 1 and missing[0] in before:
            late = replace(
                before[missing[0]],
                attempt=ack.attempt,
                checkpoint_id=pending.checkpoint_id,
            )
            return original(self, late, now)
        before[ack.task] = ack
        return result, actions

    with mock.patch.object(CheckpointCoordinator, "acknowledge", acknowledge):
        yield


@contextmanager
def plain_put_of_epoch_record() -> Iterator[None]:
    """4: who comes last wins, and whoever came first believes to have won.

    Looking at the claims before publishing already keeps two JobManagers from one checkpoint id
    (that is why it is done), so this bug shows only without that. With put-if-absent the output
    is right even then.
    """
    original = CheckpointStore.publish

    def publish(self: CheckpointStore, manifest: CheckpointManifest) -> PublishOutcome:
        with mock.patch.object(self, "is_current", return_value=True):
            return original(self, manifest)

    def put_epoch(
        self: CheckpointStore, attempt: tuple[int, int], manifest_sha256: str | None
    ) -> bool:
        record = EpochRecord(attempt[1], attempt[0], manifest_sha256)
        self._fs.put(self._path(JobPaths.epoch(attempt[1])), encode_epoch(record, self._key))
        return True

    with mock.patch.object(CheckpointStore, "publish", publish):
        with mock.patch.object(CheckpointStore, "_put_epoch", put_epoch):
            yield


@contextmanager
def commit_without_permit() -> Iterator[None]:
    """5: the sink commits when it has been snapshotted."""
    original = SinkOperator.snapshot

    def snapshot(self: SinkOperator, checkpoint_id: int) -> Any:
        result = original(self, checkpoint_id)
        self.commit(checkpoint_id, lambda error: None)
        return result

    with mock.patch.object(SinkOperator, "snapshot", snapshot):
        yield


@contextmanager
def drop_attempt_check() -> Iterator[None]:
    """6: batches of an older attempt are taken for the present one's."""
    original = Task.receive

    def receive(self: Task, message: DataMessage) -> Feedback | None:
        return original(self, replace(message, attempt=self.attempt))

    with mock.patch.object(Task, "receive", receive):
        yield


@contextmanager
def source_offset_one_off() -> Iterator[None]:
    """7: the position of the last record instead of the one after it."""
    original = SimReader.snapshot_state

    def snapshot_state(self: SimReader, checkpoint_id: int) -> list[SimSplit]:
        splits = original(self, checkpoint_id)
        return [replace(split, next=max(0, split.next - 1)) for split in splits]

    with mock.patch.object(SimReader, "snapshot_state", snapshot_state):
        yield


@contextmanager
def lose_timers() -> Iterator[None]:
    """8: timers are not part of the snapshot."""
    original = HeapKeyedStateBackend.snapshot_state

    def snapshot_state(self: HeapKeyedStateBackend, *arguments: Any) -> OperatorSnapshot:
        kept = {n: t for n, t in self._tables.items() if not n.startswith("$event")}
        with mock.patch.object(self, "_tables", kept):
            return original(self, *arguments)

    with mock.patch.object(HeapKeyedStateBackend, "snapshot_state", snapshot_state):
        yield


@contextmanager
def builtin_hash_for_keys() -> Iterator[None]:
    """9: ``hash()``, which every process salts with its own number."""
    original = KeyGroupMemo.__init__
    processes = iter(range(1, 1 << 30))

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.salt = next(processes)

    def learn(self: Any, key: Any) -> int:
        group = (key * 31 + self.salt * 17) % self._max_parallelism
        result = group if self._of_group is None else self._of_group(group)
        self.known[key] = result
        return int(result)

    with mock.patch.object(KeyGroupMemo, "__init__", init):
        with mock.patch.object(KeyGroupMemo, "learn", learn):
            yield


@contextmanager
def collect_a_retained_file() -> Iterator[None]:
    """10: garbage collection deletes state that a retained manifest refers to."""
    original = protocol.plan_garbage

    def plan_garbage(
        listing: Any, records: Any, manifests: Any, generation: int, retain: int, keep: Any = None
    ) -> list[str]:
        doomed = original(listing, records, manifests, generation, retain, keep)
        newest = max(manifests, default=None)
        if doomed and newest is not None:
            doomed += [handle.path for handle in list(manifests[newest].handles())[:1]]
        return doomed

    with mock.patch.object(protocol, "plan_garbage", plan_garbage):
        yield


@contextmanager
def failed_upload_fails_the_task() -> Iterator[None]:
    """11: instead of declining the checkpoint, although the task could go on."""
    original = SubtaskCheckpoints.decline

    def decline(self: SubtaskCheckpoints, checkpoint_id: int, reason: str) -> None:
        if "upload failed" in reason:
            raise StorageError(reason)
        original(self, checkpoint_id, reason)

    with mock.patch.object(SubtaskCheckpoints, "decline", decline):
        yield


@contextmanager
def processing_time_jumps() -> Iterator[None]:
    """12: tasks look at the wall clock, which somebody sets."""
    original = ProcessingTime.__init__

    def init(self: ProcessingTime, wall_clock: Any, monotonic: Any) -> None:
        original(self, wall_clock, monotonic)
        self.wall_clock = wall_clock  # type: ignore[attr-defined]

    with mock.patch.object(ProcessingTime, "__init__", init):
        with mock.patch.object(ProcessingTime, "__call__", lambda self: self.wall_clock()):
            yield


@contextmanager
def restore_unverified_state() -> Iterator[None]:
    """13: nobody looks at sizes, or at the checksums of a snapshot's blocks."""

    def unverified(self: SnapshotFile, data: bytes, start: int, block: Block) -> bytes:
        return data[start : start + block.length]

    with (
        mock.patch.object(CheckpointStore, "_check_sizes", return_value=None),
        mock.patch.object(SnapshotFile, "_verified", unverified),
    ):
        yield


@contextmanager
def leave_garbage() -> Iterator[None]:
    """14: what failed uploads and lost checkpoints have left stays for ever."""

    def plan_garbage(*arguments: Any) -> list[str]:
        return []

    with mock.patch.object(protocol, "plan_garbage", plan_garbage):
        yield


@contextmanager
def ignore_the_window() -> Iterator[None]:
    """15: a sender that does not wait for a slow receiver."""
    original = OutputChannel.__init__

    def init(self: OutputChannel, channel_id: Any, limits: ChannelLimits) -> None:
        original(self, channel_id, replace(limits, elements_max=1_000))

    with mock.patch.object(OutputChannel, "__init__", init):
        yield


@contextmanager
def hold_records_across_the_barrier() -> Iterator[None]:
    """16: what waits to be merged before the shuffle is in no checkpoint."""
    with mock.patch.object(PreAggregateOperator, "prepare_barrier"):
        yield


@contextmanager
def forget_gathered_rows() -> Iterator[None]:
    """17: of the rows of a window, only those that came first are in the snapshot."""
    original = ColumnarState.snapshot

    def snapshot(self: ColumnarState, watermarks: Any) -> Any:
        with mock.patch.object(Runs, "tables", lambda runs: runs._gathered[:1]):
            return original(self, watermarks)

    with mock.patch.object(ColumnarState, "snapshot", snapshot):
        yield


@contextmanager
def forget_watermarks() -> Iterator[None]:
    """18: windows that have fired fire again for records that were late before the restart."""
    original = ColumnarState.snapshot

    def snapshot(self: ColumnarState, watermarks: Any) -> Any:
        return original(self, dict.fromkeys(watermarks, MIN_TIMESTAMP))

    with mock.patch.object(ColumnarState, "snapshot", snapshot):
        yield


@contextmanager
def forget_what_is_in_flight() -> Iterator[None]:
    """19: a checkpoint without the records that wait for their answers."""
    with mock.patch.object(AsyncWaitOperator, "snapshot", return_value=OperatorSnapshot()):
        yield


@contextmanager
def broadcast_state_forgotten() -> Iterator[None]:
    """22: a restart empties the broadcast state."""
    with mock.patch.object(BroadcastStates, "restore"):
        yield


@contextmanager
def overtake_what_is_in_flight() -> Iterator[None]:
    """20: watermarks do not wait for the records before them."""

    def process_watermark(self: AsyncWaitOperator, timestamp: int) -> None:
        self.output.emit_watermark(timestamp)

    with mock.patch.object(AsyncWaitOperator, "process_watermark", process_watermark):
        yield


@contextmanager
def end_with_answers_missing() -> Iterator[None]:
    """21: the end of input does not wait for them."""
    with mock.patch.object(AsyncWaitOperator, "has_in_flight", return_value=False):
        yield


@contextmanager
def records_waiting_for_a_match_forgotten() -> Iterator[None]:
    """23: after a restart nobody knows when the records of an interval join go."""
    original = IntervalJoinOperator.open

    def open_(self: IntervalJoinOperator) -> None:
        original(self)
        self._left._due.clear()
        self._right._due.clear()

    with mock.patch.object(IntervalJoinOperator, "open", open_):
        yield


@contextmanager
def wait_for_the_dead() -> Iterator[None]:
    """24: what a former attempt has reported is the lowest watermark for ever."""

    def forget(self: WatermarkAlignment, tasks: Collection[TaskId]) -> None:
        for members in self._members.values():
            for task in tasks:
                if task in members:
                    members[TaskId(f"former {task.vertex_id}", task.subtask)] = members.pop(task)

    with mock.patch.object(WatermarkAlignment, "forget", forget):
        yield


@contextmanager
def rounds_mixed_by_a_fast_head() -> Iterator[None]:
    """27: what is fed back is for the head's next round, although another one is ahead of it."""

    def process_feedback(self: IterationHeadOperator, batch: Any) -> None:
        if not self._ended:
            self._store(batch, self._round + 1)

    with mock.patch.object(IterationHeadOperator, "_process_feedback", process_feedback):
        yield


@contextmanager
def wait_for_the_ended() -> Iterator[None]:
    """25: a source that has ended holds the others back."""
    original = WatermarkAlignment.reached

    def reached(
        self: WatermarkAlignment, group: str, task: TaskId, watermark: int | None
    ) -> int | None:
        if watermark is None:
            watermark = self._members.get(group, {}).get(task)
        return original(self, group, task, watermark)

    with mock.patch.object(WatermarkAlignment, "reached", reached):
        with mock.patch.object(WatermarkAlignment, "forget"):
            yield


@contextmanager
def wait_for_nobody() -> Iterator[None]:
    """26: sources read on however far they are ahead."""
    with mock.patch.object(SourceAlignment, "_hold"):
        yield


@contextmanager
def rounds_end_too_early() -> Iterator[None]:
    """28: a round does not wait for operators of the body that feed nothing back."""
    with mock.patch.object(iteration, "_ways_that_end", return_value=()):
        yield


@contextmanager
def in_flight_data_lost_on_rescale() -> Iterator[None]:
    """29: each subtask replays its own in-flight data, as if the parallelism were what it was."""
    original = in_flight.old_receivers

    def old_receivers(partitioning: Any, before: Any, now: Any, subtask: int) -> list[int]:
        return [old for old in original(partitioning, before, now, subtask) if old == subtask]

    with mock.patch.object(in_flight, "old_receivers", old_receivers):
        with mock.patch.object(plan, "old_receivers", old_receivers):
            yield


@contextmanager
def in_flight_input_replayed_twice() -> Iterator[None]:
    """30: whoever reads in-flight data of others does not look whose key it is."""
    with mock.patch.object(in_flight, "_is_dealt_by_record", return_value=False):
        yield


@contextmanager
def in_flight_data_forgotten() -> Iterator[None]:
    """31: what the barrier has overtaken is not in the snapshot."""
    with mock.patch.object(in_flight.InFlightCapture, "content", return_value={}):
        yield


@contextmanager
def records_in_flight_that_were_processed() -> Iterator[None]:
    """32: of a batch that was begun, what was processed is in the snapshot too."""
    original = InputChannel.capture

    def capture(self: InputChannel, checkpoint_id: int) -> None:
        begun, self._begun = self._begun, 0
        original(self, checkpoint_id)
        self._begun = begun

    with mock.patch.object(InputChannel, "capture", capture):
        yield


def _rescaled(rates: Rates) -> Rates:
    """Restarts at other parallelisms, of a job whose records wait for slow tasks."""
    return replace(
        _busy(rates),
        enabled=frozenset({"F01", "F04", "F14", "F22"}),
        rescale=0.7,
        slowness=40,
        strike_every_us=700 * MS,
    )


def in_rounds(rates: Rates) -> Rates:
    """What a job without checkpoints has an answer to, often enough to strike amid its rounds."""
    return Rates(
        enabled=frozenset({"F01", "F13", "F14", "F15"}),
        message_repeat=0.1,
        poison=0.0003,
        slow_message_us=200 * MS,
        strike_every_us=1_500 * MS,
        heal_at_us=min(rates.heal_at_us, 10 * SECOND),
    )


ITERATE = Options(scenario="faults", kind="iterate", rates=in_rounds)
UNALIGNED = Options(
    scenario="faults",
    kind="ledger",
    rates=_rescaled,
    settings={
        "execution.checkpointing.unaligned.enabled": "true",
        "execution.checkpointing.aligned-checkpoint-timeout": "0 ms",
    },
)
_ASYNC = Options(scenario="faults", kind="async", rates=_busy)
_ALIGNED = Options(scenario="faults", kind="aligned", rates=_busy)
_LEDGER = Options(scenario="faults", kind="ledger", rates=_busy)
_JOINS = Options(scenario="faults", kind="joins", rates=_busy)
_COLUMNS = Options(scenario="faults", kind="columns", rates=_busy)
_WINDOWS = Options(scenario="faults", kind="windows", rates=_busy)
_STAGES = Options(scenario="faults", kind="batch", rates=_often)
_COMMITS = Options(
    scenario="faults",
    kind="batch",
    rates=lambda rates: replace(
        _often(rates), failpoint=0.0, at_the_end=0.1, steady=False, strike_every_us=60 * SECOND
    ),
)
_DAMAGE = Options(
    scenario="faults", kind="batch", rates=lambda rates: replace(_often(rates), damage=0.7)
)

CANARIES = (
    Canary("skip alignment blocking", skip_alignment_blocking, _LEDGER, 9),
    Canary("acknowledge before the upload", acknowledge_before_upload, _LEDGER),
    Canary("publish before the last acknowledgement", publish_before_last_ack, _LEDGER, 1),
    Canary(
        "epoch record by plain put",
        plain_put_of_epoch_record,
        Options(scenario="faults", kind="ledger", rates=_deposed),
        1,
    ),
    Canary("commit without permit", commit_without_permit, _LEDGER),
    Canary(
        "no attempt check on data",
        drop_attempt_check,
        Options(scenario="faults", kind="ledger", rates=_late_messages),
        2,
    ),
    Canary("source offset one off", source_offset_one_off, _LEDGER),
    Canary("lose timers", lose_timers, _LEDGER, 3),
    Canary("builtin hash of keys", builtin_hash_for_keys, _LEDGER),
    Canary("collect a retained file", collect_a_retained_file, _LEDGER),
    Canary(
        "a failed upload fails the task",
        failed_upload_fails_the_task,
        Options(scenario="faults", rates=_only("F17")),
    ),
    Canary(
        "processing time jumps",
        processing_time_jumps,
        Options(scenario="faults", rates=_only("F19")),
        11,
    ),
    Canary("unverified state", restore_unverified_state, Options(scenario="corrupt"), 45),
    Canary(
        "garbage stays",
        leave_garbage,
        Options(scenario="faults", rates=_only("F09")),
    ),
    Canary(
        "no window",
        ignore_the_window,
        Options(scenario="faults", rates=_only("F14")),
        1,
    ),
    Canary("records held across the barrier", hold_records_across_the_barrier, _COLUMNS),
    Canary("gathered rows forgotten", forget_gathered_rows, _COLUMNS),
    Canary("watermarks of windows forgotten", forget_watermarks, _WINDOWS, 7),
    Canary("records in flight forgotten", forget_what_is_in_flight, _ASYNC),
    Canary("records in flight overtaken", overtake_what_is_in_flight, _ASYNC, 1),
    Canary("an end with answers missing", end_with_answers_missing, _ASYNC),
    Canary("broadcast state forgotten", broadcast_state_forgotten, _JOINS),
    Canary("no match is ever given up", records_waiting_for_a_match_forgotten, _JOINS),
    Canary("sources wait for the dead", wait_for_the_dead, _ALIGNED),
    Canary("sources wait for those that have ended", wait_for_the_ended, _ALIGNED),
    Canary(
        "sources wait for nobody",
        wait_for_nobody,
        Options(scenario="faults", kind="aligned", rates=lambda _: Rates(heal_at_us=1 * MS)),
    ),
    Canary("rounds mixed by a fast head", rounds_mixed_by_a_fast_head, ITERATE),
    Canary("rounds end too early", rounds_end_too_early, ITERATE, 1),
    Canary("in-flight data lost on rescale", in_flight_data_lost_on_rescale, UNALIGNED, 12),
    Canary("in-flight input replayed twice", in_flight_input_replayed_twice, UNALIGNED, 12),
    Canary("in-flight data forgotten", in_flight_data_forgotten, UNALIGNED, 8),
    Canary("begun batches captured whole", records_in_flight_that_were_processed, UNALIGNED, 11),
    Canary("consumers of lost results go on", stage_canaries.consumers_go_on, _STAGES, 5),
    Canary("results of any attempt", stage_canaries.any_attempt_will_do, _STAGES),
    Canary("results dropped too early", stage_canaries.released_after_the_first, _STAGES),
    Canary("commits before the end", stage_canaries.sinks_commit_with_their_stage, _STAGES),
    Canary("commits made anew", stage_canaries.commits_are_made_anew, _COMMITS, 1),
    Canary("unverified results", stage_canaries.unverified_results, _DAMAGE),
)
