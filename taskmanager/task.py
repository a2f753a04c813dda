"""A task: one subtask of a vertex, as a machine that is stepped.

``step`` handles waiting mail, due timers and then one batch of input, and never blocks. Mail is
how everything that happens elsewhere (control messages, finished I/O) reaches the task's thread,
which alone touches the operators. Blocking work goes through ``TaskServices.run_async`` and comes
back as mail. Who calls ``step`` decides what this is: a thread in a TaskManager, or a seeded
scheduler under virtual time in the simulator.

States: INITIALIZING (build, restore, open) → READY → RUNNING → DRAINED → FINISHED, and from any
of them CANCELED or FAILED. A drained task has processed its last input and has nothing in flight,
but stays: barriers still pass through it, so checkpoints go on until the whole job has drained, and
the last of them covers the end of everything.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.connectors.base import InputStatus
from dataflow.errors import (
    ConfigError,
    CorruptObject,
    ObjectNotFound,
    RestoreError,
    UserFunctionError,
)
from dataflow.graph.job_graph import OperatorNode
from dataflow.graph.pickling import install_main_classes
from state.checkpoint_options import CHECKPOINT, CheckpointOptions
from state.checkpoint_store import CheckpointStore, CommitPermit
from state.snapshot import TaskSnapshot
from state.snapshot_format import decode, encode
from state.snapshot_store import Written
from taskmanager.accumulators import TaskAccumulators
from taskmanager.channel import ChannelLimits
from taskmanager.completion import Start, when_all_done
from taskmanager.elements import (
    END_OF_INPUT,
    Barrier,
    ChannelId,
    Element,
    EndOfInput,
    LatencyMarker,
    Watermark,
    WatermarkStatus,
)
from taskmanager.error_report import describe_error, shorten
from taskmanager.in_flight import Replay, load_in_flight
from taskmanager.input_gate import InputGate
from taskmanager.latency_markers import LatencyMarkers
from taskmanager.messages import (
    RESTORED_SIZE,
    ClientChunk,
    CommitSucceeded,
    DataMessage,
    Feedback,
    QueryState,
    StateQueried,
    TaskCanceled,
    TaskDeploymentDescriptor,
    TaskDrained,
    TaskFailed,
    TaskFinished,
    TaskMetrics,
    TaskReady,
)
from taskmanager.operator_chain import OperatorChain
from taskmanager.operators.enumerator import EnumeratorOperator
from taskmanager.operators.metrics import measured
from taskmanager.operators.sink import SinkOperator, final_committables
from taskmanager.operators.source import SourceOperator
from taskmanager.partition_file import PartitionFile
from taskmanager.restore import load_snapshot
from taskmanager.result_partition import TaskOutputs
from taskmanager.state_query import answer
from taskmanager.subtask_checkpoints import SubtaskCheckpoints, overtakes_in
from taskmanager.task_context import TaskOperatorContext
from taskmanager.task_services import TaskServices
from taskmanager.task_state import TaskState
from taskmanager.watermark_valve import WatermarkValve

logger = logging.getLogger(__name__)

Mail = Callable[[], None]


class Task:
    """See the module's text. Methods are for the task's thread unless they say otherwise."""

    def __init__(
        self,
        descriptor: TaskDeploymentDescriptor,
        services: TaskServices,
        limits: ChannelLimits,
        files: Mapping[str, PartitionFile] | None = None,
    ) -> None:
        """``files``, by edge, are for blocking results; they outlive the task if it finishes."""
        self._files = files or {}
        self.descriptor = descriptor
        self.id = descriptor.task
        self.attempt = descriptor.attempt
        vertex = descriptor.vertex
        self.name = f"{vertex.name} ({descriptor.task.subtask + 1}/{vertex.parallelism})"
        self.state = TaskState.INITIALIZING
        self._services = services
        self._limits = limits
        self._mail: deque[Mail] = deque([self._initialize])
        channels = [
            (cid, input_.input_index) for input_ in descriptor.inputs for cid, _ in input_.channels
        ]
        self._peers = {cid: peer for i in descriptor.inputs for cid, peer in i.channels}
        may_overtake = overtakes_in(descriptor.configuration) is not None
        self._gate = InputGate(channels, limits, may_overtake) if channels else None
        self._replay: deque[tuple[int, Element]] = deque()  # what was in flight; comes first
        self._valve = WatermarkValve(len(channels))
        # Those whose EndOfInput has not come, without feedback: that ends after this task does.
        self._open_channels = sum(len(i.peers) for i in descriptor.inputs if not i.feedback)
        self._feedback_edges = {i.edge_id for i in descriptor.inputs if i.feedback}
        self._store: CheckpointStore | None = None
        self._checkpoints = SubtaskCheckpoints(self)
        self._requests_handled: dict[ChannelId, int] = {}
        self._chunks_sent = 0
        self._chunk_callbacks: dict[int, Callable[[], None]] = {}
        self._metrics: dict[str, Callable[[], float]] = {}
        self._accumulators = TaskAccumulators()
        self._restored_drained = False
        self._finishing = False
        self._settled = False  # whether a commit has said so
        self._stopped_by: int | None = None  # the checkpoint behind whose barrier nothing happens
        self._opened = False
        self._input_ended = False
        self._poll_at: int | None = None

    # ------------------------------------------------------------------------- any thread

    def post(self, mail: Mail) -> None:
        """Have ``mail`` called on the task's thread."""
        self._mail.append(mail)
        self._services.wake_up(self)

    def receive(self, message: DataMessage) -> Feedback | None:
        """Elements from upstream; the answer tells it what was consumed so far."""
        if message.attempt != self.attempt or self._gate is None or self.state.ended:
            return None
        consumed, demand = self._gate.receive(
            message.channel, message.first, message.items, message.sizes
        )
        self._services.wake_up(self)
        return Feedback(self.attempt, message.channel, consumed, demand)

    def on_feedback(self, feedback: Feedback) -> None:
        """What a downstream task has consumed."""
        if feedback.attempt != self.attempt or self.state.ended:
            return
        channel = self._outputs.channels[feedback.channel]
        channel.on_feedback(feedback.consumed, feedback.demand)
        self._services.wake_up(self)

    def metrics(self) -> TaskMetrics:
        """Counters as of about now."""
        if not self._opened:  # also when it failed before
            restored = self._metrics.get(RESTORED_SIZE)
            return TaskMetrics(
                0, 0, 0, None, {} if restored is None else {RESTORED_SIZE: restored()}
            )
        counters = self._chain.counters
        watermark = self._valve.watermark
        return TaskMetrics(
            records_in=counters[0].records,
            records_read=self._source.records_read if self._source else 0,
            records_written=sum(
                counter.records
                for counter, operator in zip(counters, self._chain.operators, strict=True)
                if isinstance(operator, SinkOperator)
            ),
            watermark=None if watermark == MIN_TIMESTAMP else watermark,
            extra=measured(self._metrics),
            latencies=self._markers.histograms(),
            accumulators=self._encoded_accumulators(),
        )

    def _encoded_accumulators(self) -> tuple[tuple[str, bytes], ...]:
        try:
            return self._accumulators.encoded()
        except Exception as raised:
            error = raised
            self.post(lambda: self.fail(error))
            return ()

    # --------------------------------------------------------------------------- stepping

    def step(self) -> bool:
        """Do a bounded piece of work; False when there is nothing to do before a wake-up.

        Never raises: an error fails the task and is reported.
        """
        try:
            return self._step()
        except BaseException as error:  # user code may raise anything, SystemExit included
            self.fail(error)
            return False

    def _step(self) -> bool:
        for _ in range(len(self._mail)):
            self._mail.popleft()()
        if self.state not in (TaskState.RUNNING, TaskState.DRAINED):
            return bool(self._mail)
        progressed = self._checkpoints.step(self._stopped_by is None and not self._replay)
        if self._stopped_by is not None:
            self._outputs.flush()
            progressed |= self._checkpoints.flushed()
            self._send_feedback()
            return progressed or bool(self._mail)
        began = self._services.processing_time()
        self._poll_at = None
        # Asked once: if what timers emit fills the outputs again and again, input has its turn too.
        has_room = self._outputs.has_room()
        if self.state is TaskState.RUNNING and has_room:
            due = self._chain.next_timer_at()
            if due is not None and due <= began:
                self._chain.on_processing_time(began)
            if self._input_ended:
                self._finish_chain()
        if self._stores_input or (has_room and not self._chain.blocked()):
            progressed |= self._process_input()
        elif self._source is not None and self._checkpoints.may_overtake:
            progressed |= self._process_gate()  # splits and barriers, which need no room
        progressed |= self._checkpoints.keep_up(began)
        self._outputs.flush()
        progressed |= self._checkpoints.flushed()
        self._send_feedback()
        return progressed or bool(self._mail)

    def wait_until(self) -> int | None:
        """Processing time (ms) at which to step again without a wake-up.

        While there is no room, timers wait too: feedback will wake the task.
        """
        earliest = self._checkpoints.next_at()
        if (
            self.state is TaskState.RUNNING
            and self._stopped_by is None
            and self._outputs.has_room()
        ):
            for time in (self._chain.next_timer_at(), self._poll_at):
                if time is not None and (earliest is None or time < earliest):
                    earliest = time
        return earliest

    def _process_gate(self) -> bool:
        polled = None if self._gate is None else self._gate.poll()
        if polled is not None:
            self._process_element(*polled)
        return polled is not None

    def _process_input(self) -> bool:
        if self._replay:
            self._process_element(*self._next_of_replay())
            return True
        if self._process_gate():
            return True
        if self._input_ended or self.state is TaskState.DRAINED:
            return False
        if self._source is not None:
            status = self._source.poll()
            if status is InputStatus.END_OF_INPUT:
                self._drain()
            elif status is InputStatus.NOTHING_AVAILABLE:
                self._poll_at = self._source.next_poll_at()
                return False
            return True
        if self._enumerator is not None:
            return self._serve_split_requests(self._enumerator)
        return False

    def _next_of_replay(self) -> tuple[int, Element]:
        position, element = self._replay.popleft()
        assert self._gate is not None
        records_max = self._gate.records_max(position)
        if isinstance(element, (RowBatch, ArrowBatch)) and len(element) > records_max:
            self._replay.appendleft((position, element.slice(records_max, len(element))))
            element = element.slice(0, records_max)
        return position, element

    def _serve_split_requests(self, enumerator: EnumeratorOperator) -> bool:
        served = False
        for channel in self._outputs.channels.values():
            handled = self._requests_handled.get(channel.id, 0)
            for _ in range(channel.demand - handled):
                enumerator.handle_split_request(channel.id.downstream)
                served = True
            self._requests_handled[channel.id] = max(handled, channel.demand)
        if enumerator.exhausted:
            self._drain()
            served = True
        return served

    def _process_element(self, position: int, element: Element) -> None:
        if isinstance(element, (RowBatch, ArrowBatch)):
            if self.state is TaskState.RUNNING:
                assert self._gate is not None
                began = self._services.processing_time()
                self._into[position](element)
                elapsed = self._services.processing_time() - began
                self._gate.processed(position, len(element), elapsed)
            return
        match element:
            case Watermark(timestamp):
                self._advance_watermark(self._valve.on_watermark(position, timestamp))
            case WatermarkStatus(idle):
                self._on_status(position, idle)
            case Barrier():
                self._checkpoints.on_barrier(position, element)
            case LatencyMarker():
                # What waits for its round is not late, and a marker could go round for ever.
                if self.state is TaskState.RUNNING and not self._stores_input:
                    self._markers.process(element)
            case EndOfInput():
                assert self._gate is not None
                if self._gate.channels[position].id.edge in self._feedback_edges:
                    return
                self._open_channels -= 1
                if self._open_channels > 0 or self._input_ended or self._is_drained:
                    return
                if self._source is not None:
                    # It goes on with the splits it has. One restored from after the enumerator's
                    # end hears of it only here.
                    self._source.end_of_splits()
                else:
                    self._drain()

    def _on_status(self, position: int, idle: bool) -> None:
        was_idle = self._valve.all_idle
        advanced = self._valve.on_status(position, idle)
        changed = self._valve.all_idle != was_idle and self.state is TaskState.RUNNING
        # Nobody listens to the watermark of an idle stream, so the last one goes before.
        if changed and was_idle:
            self._chain.head.process_status(False)
        self._advance_watermark(advanced)
        if changed and not was_idle:
            self._chain.head.process_status(True)

    def _advance_watermark(self, watermark: int | None) -> None:
        if watermark is not None and self.state is TaskState.RUNNING and self._source is None:
            self._chain.head.process_watermark(watermark)

    @property
    def _is_drained(self) -> bool:
        return self.state is TaskState.DRAINED

    def drain(self) -> None:
        """If this is a source: the input ends here, whatever there is still to read."""
        is_source = self._source is not None or self._enumerator is not None
        if is_source and self.state is TaskState.RUNNING and not self._input_ended:
            self._drain()

    def _drain(self) -> None:
        """The last record is in: flush everything that time or the end releases."""
        self._input_ended = True
        if self._source or self._enumerator:
            self._chain.head.output.emit_watermark(MAX_TIMESTAMP)
        self._finish_chain()

    def _finish_chain(self) -> None:
        """Unless something is in flight that must come back first."""
        if self._chain.finish():
            self._become_drained()

    def _become_drained(self) -> None:
        self._outputs.broadcast(END_OF_INPUT)
        self._outputs.finish()
        self.state = TaskState.DRAINED
        left = self.descriptor.drained
        if self._store is not None or left is not None:
            self._services.report(TaskDrained(self.id, self.attempt, left))
            return
        # Somebody else can commit this from now on, with the input gone and the TaskManager lost.
        snapshot = TaskSnapshot(final_committables(self._chain), drained=True)
        if not snapshot.operators:
            self._report_drained(encode(snapshot), None)
        else:
            self._call_async(lambda: encode(snapshot.completed()), self._report_drained)

    def _report_drained(self, snapshot: bytes | None, error: BaseException | None) -> None:
        if error is not None:
            raise error
        self._services.report(TaskDrained(self.id, self.attempt, snapshot, self.metrics()))

    def _send_feedback(self) -> None:
        if self._gate is None:
            return
        due = self._gate.due_feedback()
        if not due:
            return
        by_peer: dict[str, list[Feedback]] = {}
        for channel_id, consumed, demand in due:
            feedback = Feedback(self.attempt, channel_id, consumed, demand)
            by_peer.setdefault(self._peers[channel_id], []).append(feedback)
        for peer_id, feedbacks in by_peer.items():
            self._services.transport.send_feedback(peer_id, feedbacks)

    # ------------------------------------------------------------------------- life cycle

    def _initialize(self) -> None:
        descriptor = self.descriptor
        install_main_classes(descriptor.main_classes)
        self._store = self._services.checkpoint_store(descriptor)
        self._checkpoints.open_store()
        self._outputs = TaskOutputs(
            descriptor.outputs,
            self.id.subtask,
            self.attempt,
            self._limits,
            self._services.transport,
            lambda: self._services.wake_up(self),
            self._files,
        )
        if self._files:
            self._metrics["resultBytesOnDisk"] = lambda: sum(f.size for f in self._files.values())
        self._chain = OperatorChain(descriptor.vertex, self._outputs, self._context_for)
        into = self._chain.inputs
        self._into = [into[c.input_index] for c in self._gate.channels] if self._gate else []
        head = self._chain.head
        self._stores_input = head.stores_input
        self._source = head if isinstance(head, SourceOperator) else None
        self._enumerator = head if isinstance(head, EnumeratorOperator) else None
        self._markers = LatencyMarkers(
            descriptor, self._outputs.partitions, self._services.latency_clock
        )
        if self._source is not None and self._markers.interval_ms:
            self._chain.add_timer(self._markers)
        if self._enumerator is not None:
            self._enumerator.reader_parallelism = len(self._outputs.channels)
        if descriptor.drained is not None:
            self._restored_drained = True
            self._open(decode(descriptor.drained))
        elif not descriptor.restore and not descriptor.in_flight:
            self._open(TaskSnapshot())
        else:
            self._call_async(self._load_snapshot, self._on_snapshot_loaded)

    def _load_snapshot(self) -> tuple[TaskSnapshot, Written, Replay]:
        """On an I/O thread."""
        read: list[int] = []
        self._metrics[RESTORED_SIZE] = lambda: sum(read)
        store = None if self._store is None else self._store.reporting(read.append)

        def state_folder(folder: str) -> CheckpointStore:
            return self._services.state_folder(folder).reporting(read.append)

        snapshot, written = load_snapshot(self.descriptor, store, state_folder)
        return snapshot, written, load_in_flight(self.descriptor, store, state_folder)

    def _on_snapshot_loaded(
        self, loaded: tuple[TaskSnapshot, Written, Replay] | None, error: BaseException | None
    ) -> None:
        if error is not None:
            raise error
        assert loaded is not None
        snapshot, written, in_flight = loaded
        if self.descriptor.restore:
            self._checkpoints.adopt(self.descriptor.restore[0].checkpoint_id, written)
        if self._gate is not None:
            self._replay.extend((self._gate.position(c), element) for c, element in in_flight)
        self._restored_drained = snapshot.drained
        self._open(snapshot)

    def _open(self, snapshot: TaskSnapshot) -> None:
        restore = self.descriptor.restore
        self._chain.initialize_state(
            snapshot.operators, restore[0].checkpoint_id if restore else None
        )
        self._chain.open()
        self._opened = True
        self.state = TaskState.READY
        self._services.report(TaskReady(self.id, self.attempt))

    def start(self) -> None:
        """Every task of the region is ready."""
        if self.state is not TaskState.READY:
            return
        self.state = TaskState.RUNNING
        if self._restored_drained:
            # Its last input was processed before the checkpoint: there is nothing to run again,
            # but those downstream must be told again.
            self._outputs.broadcast(Watermark(MAX_TIMESTAMP))
            self._become_drained()

    def align_watermark(self, watermark: int | None) -> None:
        """The slowest source of the group has come that far."""
        if self.state is TaskState.RUNNING and self._source is not None:
            self._source.align(watermark)

    def query_state(self, query: QueryState) -> None:
        """Somebody wants to know what is kept for a key."""
        if self.state in (TaskState.RUNNING, TaskState.DRAINED):
            uids = (node.uid for node in self._chain.nodes)
            operators = zip(uids, self._chain.operators, strict=True)
            self._services.report(answer(query, operators))
        else:
            error = f"its task is {self.state.name}; ask again"
            self._services.report(StateQueried(query.request_id, error=error))

    def finish(self) -> None:
        """The whole job has drained, or stopped. Without checkpoints, sinks commit now."""
        if self._finishing or (self.state is not TaskState.DRAINED and self._stopped_by is None):
            return
        self._finishing = True
        commits = [] if self._store is not None else [o.commit_at_end for o in self._sinks]
        self._when_all_done(
            commits, lambda: self._abort_abandoned(self._finished), "the commit at the end"
        )

    @property
    def _sinks(self) -> list[SinkOperator]:
        return [o for o in self._chain.operators if isinstance(o, SinkOperator)]

    def _abort_abandoned(self, then: Callable[[], None]) -> None:
        """Drop what earlier attempts have left, now that nothing of it can be committed."""
        self._when_all_done([sink.abort_abandoned for sink in self._sinks], then, "the clean-up")

    def _finished(self) -> None:
        metrics = self.metrics()
        error = self._chain.close()
        if error is not None:
            raise error
        self.state = TaskState.FINISHED
        self._services.report(TaskFinished(self.id, self.attempt, metrics))

    def cancel(self) -> None:
        if self.state.ended:
            self._services.report(TaskCanceled(self.id, self.attempt))
            return
        self._close_quietly()
        self.state = TaskState.CANCELED
        self._services.report(TaskCanceled(self.id, self.attempt))

    def fail(self, error: BaseException) -> None:
        """Close and report; the JobManager decides what to restart."""
        if self.state.ended:
            return
        description = describe_error(error)
        if not isinstance(error, UserFunctionError):  # that one names its operator itself
            description = f"{self.name}: {description}"
        logger.info("task failed: %s", description)
        self._close_quietly()
        self.state = TaskState.FAILED
        self._services.report(
            TaskFailed(
                self.id,
                self.attempt,
                shorten(description),
                final=next((k for k in (ConfigError, RestoreError) if isinstance(error, k)), None),
                corrupt_checkpoint=self._corrupt_checkpoint(error),
            )
        )

    def _corrupt_checkpoint(self, error: BaseException) -> int | None:
        if isinstance(error, (CorruptObject, ObjectNotFound)):
            if self.descriptor.restore:
                return self.descriptor.restore[0].checkpoint_id
            if self.descriptor.in_flight:
                return self.descriptor.in_flight[0].checkpoint_id
        return None

    def _close_quietly(self) -> None:
        for file in self._files.values():
            file.close()
        chain = getattr(self, "_chain", None)
        if chain is not None:
            error = chain.close()
            if error is not None:
                logger.warning("closing after a failure raised", exc_info=error)

    # ------------------------------------------------------------------------ checkpoints

    def trigger_checkpoint(
        self, checkpoint_id: int, options: CheckpointOptions = CHECKPOINT
    ) -> None:
        """A task without inputs starts the checkpoint."""
        if self.state not in (TaskState.RUNNING, TaskState.DRAINED):
            return
        self._checkpoints.trigger(checkpoint_id, options)

    def abort_checkpoint(self, checkpoint_id: int) -> None:
        """The coordinator gave the checkpoint up."""
        self._checkpoints.forget(checkpoint_id)
        self.resume(checkpoint_id)
        if self.state not in (TaskState.RUNNING, TaskState.DRAINED):
            return
        self._checkpoints.stop_aligning(checkpoint_id)
        for operator in self._chain.operators:
            operator.notify_checkpoint_aborted(checkpoint_id)
            operator.abort_checkpoint(checkpoint_id)

    def resume(self, checkpoint_id: int) -> None:
        """Go on, if it was that checkpoint that stopped the task."""
        if self._stopped_by is not None and self._stopped_by <= checkpoint_id:
            self._stopped_by = None

    def commit(self, permit: CommitPermit, settled: bool = False) -> None:
        """The checkpoint is complete; the permit proves that this job may commit it.

        ``settled``: see CommitCheckpoint.
        """
        if self.state not in (TaskState.RUNNING, TaskState.DRAINED):
            return
        checkpoint_id = permit.checkpoint_id
        self._checkpoints.completed(checkpoint_id)
        for operator in self._chain.operators:
            operator.notify_checkpoint_complete(checkpoint_id)

        def committed() -> None:
            self._services.report(CommitSucceeded(self.id, self.attempt, checkpoint_id))

        self._when_all_done(
            [partial(operator.commit, checkpoint_id) for operator in self._chain.operators],
            committed,
            f"the commit of checkpoint {checkpoint_id}",
        )
        if settled and not self._settled:
            self._settled = True
            self._abort_abandoned(lambda: None)

    def _when_all_done(self, starts: Sequence[Start], then: Mail, what: str) -> None:
        when_all_done(starts, then, what, lambda: self.state.ended)

    # ---------------------------------------------------------------- given to operators

    def _call_async(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        self._services.run_async(work, self._as_mail(done), delay_ms)

    def _as_mail(
        self, done: Callable[[Any, BaseException | None], None]
    ) -> Callable[[Any, BaseException | None], None]:
        def finished(result: Any, error: BaseException | None) -> None:
            def mail() -> None:
                if not self.state.ended:
                    done(result, error)

            self.post(mail)

        return finished

    def _run_coroutine(
        self,
        start: Callable[[], Coroutine[Any, Any, Any]],
        done: Callable[[Any, BaseException | None], None],
    ) -> Callable[[], None]:
        return self._services.run_coroutine(start, self._as_mail(done))

    def _send_to_client(
        self, channel: str, payload: bytes, done: Callable[[], None] | None
    ) -> None:
        self._chunks_sent += 1
        if done is not None:
            self._chunk_callbacks[self._chunks_sent] = done
        self._services.report(
            ClientChunk(
                self.id, self.attempt, self._chunks_sent, channel, payload, done is not None
            )
        )

    def client_acknowledged(self, number: int) -> None:
        callback = self._chunk_callbacks.pop(number, None)
        if callback is not None and not self.state.ended:
            callback()

    def _context_for(self, node: OperatorNode) -> TaskOperatorContext:
        return TaskOperatorContext(self, node)
