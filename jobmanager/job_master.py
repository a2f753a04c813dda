"""Runs one job: the machine in which slots, deployment, checkpoints and failover meet.

Pure: ``handle(event, now)`` returns actions; the shell (a Ray actor, an in-process cluster, the
simulator) executes them and feeds their outcomes back as events. Time is milliseconds on a
monotonic clock.

A job's regions (tasks connected by channels) run and restart separately:

    WAITING  → for a recovery from the store, for slots, for the back-off
    DEPLOYING → until every task is ready
    RUNNING
    CANCELING → after a failure, until every task has stopped or its TaskManager is gone
    FINISHED

In BATCH mode regions are stages or parts of them: a region also waits for the results that it reads
(``Exchange``), and ends when it has drained, unless it has a sink: sinks commit when all is done.

Every restart recovers from the store (``JobRecovery``), also without a change of JobManager. Each
deployment of a region has a new Attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dataflow.common.job_status import JobStatus
from dataflow.errors import ClusterError, DataflowError, JobExecutionError, RestoreError
from dataflow.graph.job_graph import JobGraph
from jobmanager import checkpoint_coordinator as checkpointing
from jobmanager.checkpoint_coordinator import CheckpointCoordinator, CheckpointSettings
from jobmanager.deployment import Deployment
from jobmanager.execution_graph import ExecutionGraph
from jobmanager.failover import to_restart
from jobmanager.job_events import (
    Action,
    CancelJob,
    DiscardCheckpoint,
    Event,
    JobSettings,
    JobStatusChanged,
    Marked,
    Published,
    Recovered,
    Send,
    StopFenced,
    StopTaskManager,
    TaskManagerLost,
    TaskManagerReady,
    Tick,
)
from jobmanager.job_recovery import JobRecovery, Unrecoverable
from jobmanager.region import Region, Regions, RegionState
from jobmanager.request_handler import RequestHandler
from jobmanager.requests import RequestStored, Rescale, TakeCheckpoint, TakeSavepoint
from jobmanager.restart_backoff import RestartBackoff
from jobmanager.slot_pool import SlotPool, fault_of_version
from jobmanager.watermark_alignment import WatermarkAlignment
from taskmanager.elements import Attempt
from taskmanager.messages import (
    RESTORED_SIZE,
    AbortCheckpoint,
    AlignWatermark,
    Cancel,
    CheckpointAcknowledged,
    CheckpointDeclined,
    CommitCheckpoint,
    CommitSucceeded,
    ControlMessage,
    Drain,
    Finish,
    Heartbeat,
    PeerUnreachable,
    ReleaseResults,
    Report,
    ResultLost,
    SendResults,
    Start,
    TaskCanceled,
    TaskDrained,
    TaskFailed,
    TaskFinished,
    TaskId,
    TaskMetrics,
    TaskReady,
    TriggerCheckpoint,
    WatermarkReached,
)


class JobMaster:
    """See the module's text."""

    def __init__(
        self,
        job_id: str,
        job_graph: JobGraph,
        settings: JobSettings,
        generation: int,
        next_checkpoint_id: int,
        restart_backoff: RestartBackoff,
        wall_clock: Callable[[], int],
    ) -> None:
        self.job_id = job_id
        self.graph = ExecutionGraph(job_graph)
        self.status = JobStatus.CREATED
        self.error: str | None = None
        self.exit_code = JobExecutionError.exit_code  # of the kind of error, once there is one
        self.restarts = 0
        self.generation = generation
        self._settings = settings
        self._backoff = restart_backoff
        self._regions = Regions(self._cut_regions(), self.graph.slot_of)
        self._regions.connect(self.graph)
        self._pool = SlotPool(
            self.graph.slots,
            settings.slots_per_taskmanager,
            settings.heartbeat_timeout,
            settings.slot_request_timeout,
            f"tm-{generation}-",
        )
        self._alignment = WatermarkAlignment()
        self._attempts = 0
        self.takes_checkpoints = settings.checkpoints is not None
        self.recovery = JobRecovery(settings, self.takes_checkpoints or settings.restores)
        self.finishing = False
        self._requests = RequestHandler(self)
        self.metrics: dict[TaskId, TaskMetrics] = {}
        self.restored_checkpoint: int | None = None
        self.restored_from: str | None = None  # its folder, if not that of the job
        self.restored_end = False  # that checkpoint covers the end of the job
        self.coordinator = CheckpointCoordinator(
            job_id,
            job_graph,
            self.graph.tasks,
            settings.checkpoints or CheckpointSettings(None, settings.savepoint_timeout),
            generation,
            next_checkpoint_id,
            wall_clock,
        )

    def _cut_regions(self) -> Iterable[tuple[TaskId, ...]]:
        if self._settings.failover_region or self.graph.blocking:
            return self.graph.regions
        return [self.graph.tasks]

    # ------------------------------------------------------------------------------ events

    def start(self, now: int) -> list[Action]:
        """Ask for slots and for what is to be restored."""
        actions: list[Action] = []
        self._request_slots(now, actions)
        actions.extend(self.recovery.begin())
        return actions

    def handle(self, event: Event, now: int) -> list[Action]:
        """The one entry; events of the past, of other attempts or after the end do nothing."""
        actions: list[Action] = []
        if self.status.is_terminal_state():
            return actions
        match event:
            case TaskManagerReady(taskmanager_id, version):
                self._on_taskmanager_ready(taskmanager_id, version, now, actions)
            case TaskManagerLost(taskmanager_id, reason):
                self._on_taskmanager_lost(taskmanager_id, reason, now, actions)
            case Recovered():
                self._on_recovered(event, now, actions)
            case Published(checkpoint_id, outcome, permit, error):
                known = self.coordinator.published(checkpoint_id, outcome, permit, error, now)
                self._coordinate(known, now, actions)
            case Marked(checkpoint_id, error):
                marked = self.coordinator.marked(checkpoint_id, error, now)
                self._coordinate(marked, now, actions)
                if error is None:
                    self._requests.carry_out(self._requests.committed(checkpoint_id), now, actions)
            case TakeCheckpoint() | TakeSavepoint() | Rescale() | RequestStored():
                self._requests.handle(event, now, actions)
            case CancelJob():
                self._end(JobStatus.CANCELLING, None, now, actions)
            case Tick():
                pass
            case _:
                self._on_report(event, now, actions)
        self._advance(now, actions)
        return actions

    def next_tick_at(self) -> int | None:
        """When ``handle(Tick())`` has something to do, if nothing else happens before."""
        if self.status.is_terminal_state():
            return None
        times = [self._pool.next_silent_at()]
        if not self._ending:
            times.append(self._pool.next_overdue_at())
            times.append(self._requests.next_tick_at)
        for region in self._regions.within(RegionState.CANCELING):
            times.append(region.canceling_since + self._settings.cancellation_timeout)
        times += [region.deploy_at for region in self._deployable()]
        times.append(self.coordinator.next_tick_at())
        return min((time for time in times if time is not None), default=None)

    @property
    def _ending(self) -> bool:
        """On the way to CANCELED or FAILED: nothing is started any more."""
        return self.status in (JobStatus.CANCELLING, JobStatus.FAILING)

    def _on_report(self, report: Report, now: int, actions: list[Action]) -> None:
        match report:
            case Heartbeat(taskmanager_id, metrics):
                self._pool.on_heartbeat(taskmanager_id, now)
                for (task, attempt), values in metrics.items():
                    self._measured(self._current(task, attempt), task, values)
            case TaskReady(task, attempt):
                region = self._current(task, attempt)
                if region is not None and region.state is RegionState.DEPLOYING:
                    region.ready.add(task)
            case TaskDrained(task, attempt, snapshot, metrics):
                region = self._current(task, attempt)
                if region is not None and region.state is RegionState.RUNNING:
                    region.drained.add(task)
                    self._alignment.forget([task])
                    if snapshot is not None:
                        region.snapshots[task] = snapshot
                    self._measured(region, task, metrics)
                    if region.has_drained:
                        self._end_stage(region, actions)
                    self._on_drained(now, actions)
            case TaskFinished(task, attempt) | TaskCanceled(task, attempt):
                region = self._current(task, attempt)
                if region is not None and region.state is RegionState.CANCELING:
                    region.stopping.discard(task)  # it may have finished just before the cancel
                elif region is not None and isinstance(report, TaskFinished):
                    region.finished.add(task)
                    self._measured(region, task, report.metrics)
                    if not self.takes_checkpoints and len(region.finished) == len(region.tasks):
                        region.finish()
                        self._give_slots_back(actions)
            case TaskFailed(task, attempt, error, final, corrupt_checkpoint):
                region = self._current(task, attempt)
                if region is None:
                    return
                if region.state is RegionState.CANCELING:
                    region.stopping.discard(task)
                    return
                if corrupt_checkpoint is not None:
                    self.recovery.exclude(corrupt_checkpoint)
                kind = JobExecutionError if corrupt_checkpoint is None else RestoreError
                self._fail_regions([region], error, now, actions, {task}, final, kind)
            case ResultLost(task, attempt, error):
                region = self._current(task, attempt)
                if region is not None and region.has_results and region.is_needed:
                    error = f"results of {self.graph.describe(task)} cannot be read: {error}"
                    self._fail_regions([region], error, now, actions)
            case PeerUnreachable(_, peer_id, attempt, error):
                # The death of the peer is reported on its own; this is for a network that is cut.
                regions = [r for r in self._regions if r.attempt == attempt]
                self._fail_regions(
                    regions, f"TaskManager {peer_id} cannot be reached: {error}", now, actions
                )
            case CheckpointAcknowledged():
                _, more = self.coordinator.acknowledge(report, now)
                self._coordinate(more, now, actions)
            case CheckpointDeclined():
                self._coordinate(self.coordinator.decline(report, now), now, actions)
            case CommitSucceeded(task, attempt, checkpoint_id):
                self._coordinate(
                    self.coordinator.commit_succeeded(task, attempt, checkpoint_id), now, actions
                )
            case WatermarkReached(task, attempt, group, watermark):
                region = self._current(task, attempt)
                # One that has drained says no more: this is a message that came twice.
                if region and region.state is RegionState.RUNNING and task not in region.drained:
                    lowest = self._alignment.reached(group, task, watermark)
                    self._send(AlignWatermark, region, [task], actions, watermark=lowest)

    def _current(self, task: TaskId, attempt: Attempt) -> Region | None:
        """The task's region if the report is of its present attempt."""
        region = self._regions.of_task.get(task)
        return region if region is not None and region.attempt == attempt else None

    @property
    def restoring(self) -> tuple[int, int] | None:
        """Bytes of state: what tasks have read by now, and what there is; None if none restores."""
        deploying = self._regions.within(RegionState.DEPLOYING)
        total = self.recovery.state_size if deploying else 0
        if not total:
            return None
        found = (self.metrics.get(task) for region in deploying for task in region.tasks)
        read = sum(int(m.extra.get(RESTORED_SIZE, 0)) for m in found if m is not None)
        # Files that go to several tasks are read more than once, others by nobody.
        return min(read, total), total

    def _measured(self, region: Region | None, task: TaskId, metrics: TaskMetrics | None) -> None:
        """Tasks that only commit again have nothing to say about what they did before."""
        if region is not None and metrics is not None and not region.recommits:
            self.metrics[task] = metrics

    # --------------------------------------------------------------------------- advancing

    def _advance(self, now: int, actions: list[Action]) -> None:
        """Do whatever has become possible; called after every event."""
        if self.status.is_terminal_state():
            return
        self._check_timeouts(now, actions)
        for region in self._regions.within(RegionState.CANCELING):
            if not region.stopping:
                region.stopped()
        if not self._ending:
            if not self.status.is_terminal_state():  # the timeouts may have ended a stopped job
                self._requests.advance(now, actions)
            if self.status.is_terminal_state():
                return
            self._request_slots(now, actions)
            self._deploy_waiting(now, actions)
            self._start_ready(now, actions)
            self._coordinate(self.coordinator.tick(now), now, actions)
            self._finish_if_done(now, actions)
        if self._ending and self._regions.all_are(RegionState.WAITING, RegionState.FINISHED):
            canceled = self.status is JobStatus.CANCELLING
            self._terminate(JobStatus.CANCELED if canceled else JobStatus.FAILED, actions)

    def _check_timeouts(self, now: int, actions: list[Action]) -> None:
        for taskmanager_id, silent in self._pool.silent(now):
            self._on_taskmanager_lost(taskmanager_id, f"no heartbeat for {silent} ms", now, actions)
        overdue = self._pool.overdue(now)
        if overdue is not None:
            self._requests.on_overdue(overdue, now, actions)
        for region in self._regions.within(RegionState.CANCELING):
            if now - region.canceling_since >= self._settings.cancellation_timeout:
                # User code that does not return can only be stopped with its process.
                for hung in sorted({self.location(task) or "" for task in region.stopping}):
                    self._on_taskmanager_lost(hung, "a task did not stop in time", now, actions)

    # -------------------------------------------------------------------------------- slots

    def _on_taskmanager_ready(
        self, taskmanager_id: str, version: str, now: int, actions: list[Action]
    ) -> None:
        error = fault_of_version(taskmanager_id, version)
        if error is None:
            self._pool.on_ready(taskmanager_id, now)
        else:
            self._end(JobStatus.FAILING, error, now, actions, kind=ClusterError)

    def _on_taskmanager_lost(
        self, taskmanager_id: str, reason: str, now: int, actions: list[Action]
    ) -> None:
        info = self._pool.remove(taskmanager_id)
        if info is None:
            return
        there = [task for slot in info.slots for task in self.graph.tasks_in.get(slot, ())]
        gone = set(there) if info.ready else set()
        hit = list(dict.fromkeys(self._regions.of_task[task] for task in there))
        # It may live on, out of reach: then it must not keep what its successor needs.
        actions.append(StopTaskManager(taskmanager_id))
        for region in hit:
            region.stopping -= gone
            if region.state is RegionState.FINISHED and not region.is_needed:
                region.released = True
        if self._ending:
            pass
        elif not info.ready:  # it never came up: the wait, and its limit, go on
            self._request_slots(info.requested_at, actions, self._settings.start_retry)
        elif not self.graph.blocking:  # another one starts while the tasks are canceled
            self._request_slots(now, actions)
        self._fail_regions(
            hit, f"TaskManager {taskmanager_id} was lost: {reason}", now, actions, gone
        )

    def _request_slots(self, since: int, actions: list[Action], delay_ms: int = 0) -> None:
        if self._pool.lacks_slots:
            wanted = self._regions.wanted_slots() if self.graph.blocking else self._pool.slots
            actions.extend(self._pool.request_missing(since, wanted, delay_ms))

    # ------------------------------------------------------------- asked by the shell

    def location(self, task: TaskId) -> str | None:
        """The TaskManager that offers the task's slot; None also after the job has shrunk."""
        slot = self.graph.slot_of.get(task)
        return None if slot is None else self._pool.location(slot)

    def missing_slots(self, since: int) -> int:
        return self._pool.missing(since)

    def is_current(self, task: TaskId, attempt: Attempt) -> bool:
        """Whether a report of that attempt counts."""
        return self._current(task, attempt) is not None

    def describe_taskmanagers(self) -> dict[str, str]:
        """TaskManager id to the tasks it holds, for people."""
        return self._pool.describe(self.graph)

    # ----------------------------------------------------------------------------- failover

    def _fail_regions(
        self,
        regions: list[Region],
        error: str,
        now: int,
        actions: list[Action],
        gone: set[TaskId] | frozenset[TaskId] = frozenset(),
        final: type[DataflowError] | None = None,
        kind: type[DataflowError] = JobExecutionError,
    ) -> None:
        """Cancel regions; restart them unless ``final`` or forbidden. ``gone`` need no cancel.

        ``kind`` of error it is if they are not.
        """
        regions = [region for region in regions if region.can_fail]
        if not regions or self._ending:
            for region in regions:
                self._cancel_region(region, now, actions, gone)
            return
        if self.finishing and self._requests.ends_job:
            if self.takes_checkpoints:
                self._terminate(JobStatus.FINISHED, actions)  # stopped, and everything is committed
                return
            # Its sinks commit at the end alone. Some may have, so nothing can begin anew.
            error = (
                f"stopped, but not all output could be committed: {error}; its savepoint is "
                "complete, and whoever starts from it commits the rest"
            )
            final = final or kind
        self._backoff.notify_failure(now)
        self.error = error
        if final is not None or not self._backoff.can_restart():
            self._end(JobStatus.FAILING, error, now, actions, gone, final or kind)
            return
        held = self._requests.holds_tasks
        if self.finishing or held:
            self.finishing = False
            if self.takes_checkpoints or held:
                # Tasks that have finished cannot take part in another checkpoint, and those that
                # have stopped, or whose input was ended, would never go on: all start again.
                regions = [region for region in self._regions if region.active]
        self.restarts += 1
        deploy_at = now + self._backoff.delay_ms()
        self._stop_checkpoints(error, now, actions)
        self._set_status(JobStatus.RESTARTING, actions, error)
        failed = [region for region in regions if held or not region.can_recommit]
        if failed and self.graph.blocking and not self._settings.failover_region:
            failed = list(self._regions)
        anew = to_restart(failed)
        for region in dict.fromkeys((*anew, *regions)):
            region.deploy_at = deploy_at
            self._cancel_region(region, now, actions, gone)
            if region.state is RegionState.FINISHED:
                self._send(ReleaseResults, region, region.tasks, actions)
                region.stopped()
            region.begin_anew(recommits=region not in anew)
        actions.extend(self.recovery.begin())

    def _cancel_region(
        self, region: Region, now: int, actions: list[Action], gone: Iterable[TaskId] = ()
    ) -> None:
        if not region.active:
            return
        self._alignment.forget(region.tasks)  # others wait for nobody who is not running
        left = set(region.tasks).difference(gone)
        region.cancel(now, {task for task in left if self.location(task) is not None})
        self._send(Cancel, region, sorted(region.stopping), actions)

    def _end(
        self,
        status: JobStatus,
        error: str | None,
        now: int,
        actions: list[Action],
        gone: set[TaskId] | frozenset[TaskId] = frozenset(),
        kind: type[DataflowError] = JobExecutionError,
    ) -> None:
        """Cancel everything, then become CANCELED or FAILED."""
        if self._ending:
            return
        self.error, self.exit_code = error, kind.exit_code
        self._stop_checkpoints(error or "the job is canceled", now, actions)
        self._set_status(status, actions, error)
        for region in self._regions:
            self._cancel_region(region, now, actions, gone)

    def _terminate(self, status: JobStatus, actions: list[Action]) -> None:
        actions.extend(StopTaskManager(taskmanager_id) for taskmanager_id in self._pool.clear())
        self._set_status(status, actions, self.error)
        actions.extend(self._requests.job_ended(status, self.error))

    def _set_status(
        self, status: JobStatus, actions: list[Action], error: str | None = None
    ) -> None:
        if status is not self.status or error is not None:
            self.status = status
            actions.append(JobStatusChanged(status, error))

    # ----------------------------------------------------------------------------- recovery

    def _on_recovered(self, event: Recovered, now: int, actions: list[Action]) -> None:
        if event.fenced:
            self._fence(event.error or "a newer generation has claimed the job", actions)
            return
        found = self.recovery.answered(event, self.graph.job_graph)
        if self._ending:
            return
        if isinstance(found, Unrecoverable):
            self._end(JobStatus.FAILING, found.error, now, actions, kind=found.kind)
            return
        actions.extend(found)
        if self.recovery.ready and self.takes_checkpoints:
            newest = self.recovery.checkpoint_id
            others = [r for r in self._regions if r.active and not r.goes_with(newest)]
            error = f"checkpoint {newest} turned out to be complete, and they went on without it"
            self._fail_regions(others, error, now, actions)

    def _fence(self, reason: str, actions: list[Action]) -> None:
        actions.extend(StopTaskManager(taskmanager_id) for taskmanager_id in self._pool.clear())
        self.error = reason
        # Not FAILED: the job lives on under another JobManager.
        self.status = JobStatus.SUSPENDED
        actions.append(StopFenced(reason))
        actions.extend(self._requests.job_ended(self.status, reason))

    # --------------------------------------------------------------------------- deployment

    def _deployable(self) -> list[Region]:
        """Those that wait for nothing but their back-off."""
        if self._ending or not self.recovery.ready or self._requests.holds_recovery:
            return []
        located = self._pool.located
        waiting = self._regions.within(RegionState.WAITING)
        return [r for r in waiting if r.slots <= located and r.can_read]

    def _deploy_waiting(self, now: int, actions: list[Action]) -> None:
        for region in self._deployable():
            if now >= region.deploy_at:
                self._deploy(region, actions)

    def _deploy(self, region: Region, actions: list[Action]) -> None:
        self._attempts += 1
        attempt = Attempt(self.generation, self._attempts)
        region.deploy(attempt, self.recovery.checkpoint_id, self.coordinator.next_checkpoint_id)
        if not region.recommits:
            for task in region.tasks:
                self.metrics.pop(task, None)
        messages = Deployment(self.graph, region, self.location).messages(
            self.job_id, attempt, self.restarts, self.recovery.plan, self._settings.history_id
        )
        actions.extend(Send(there, deploy) for there, deploy in messages.items())

    def _start_ready(self, now: int, actions: list[Action]) -> None:
        started = False
        for region in self._regions.within(RegionState.DEPLOYING):
            if len(region.ready) == len(region.tasks):
                region.run()
                started = True
                self._send(Start, region, region.tasks, actions)
                self._send_results(region, actions)
        if started and self._regions.all_run():
            self._all_running(now, actions)

    def _send_results(self, region: Region, actions: list[Action]) -> None:
        """Have what it reads sent to it, if it reads any."""
        if region.consumes and not region.recommits:
            assert region.attempt is not None
            found = Deployment(self.graph, region, self.location).results(self._regions)
            for there, results in found.items():
                actions.append(Send(there, SendResults(tuple(results), region.attempt)))

    def _all_running(self, now: int, actions: list[Action]) -> None:
        self._set_status(JobStatus.RUNNING, actions)
        if self.graph.blocking:
            return  # what is restored, is so stage by stage; and there are no checkpoints
        restored, permit = self.recovery.use_up()
        if restored.manifest is not None:
            self.restored_checkpoint = restored.manifest.checkpoint_id
            self.restored_from = restored.folder
            since = self.restarts + self.coordinator.statistics.completed  # rescaled
            self.restored_end = restored.manifest.covers_end and since == 0
        attempts = {
            task: region.attempt
            for region in self._regions
            for task in region.tasks
            if region.attempt is not None
        }
        self.coordinator.job_running(attempts, now, self.restored_checkpoint)
        if permit is not None:
            self._coordinate(self.coordinator.recommit(permit), now, actions)
        self._on_drained(now, actions)
        self._requests.carry_out(self._requests.job_running(), now, actions)

    # -------------------------------------------------------------------------- checkpoints

    def _stop_checkpoints(self, reason: str, now: int, actions: list[Action]) -> None:
        self._requests.carry_out(self._requests.job_stopped(reason), now, actions)
        for action in self.coordinator.job_stopped(reason):
            assert isinstance(action, checkpointing.Abort)
            self._abort_checkpoint(action.checkpoint_id, actions)

    def _abort_checkpoint(self, checkpoint_id: int, actions: list[Action]) -> None:
        for region in self._regions:
            if region.state is RegionState.RUNNING:
                self._send(
                    AbortCheckpoint, region, region.tasks, actions, checkpoint_id=checkpoint_id
                )
        if self.takes_checkpoints:
            actions.append(DiscardCheckpoint(checkpoint_id))

    def _coordinate(
        self, wanted: list[checkpointing.CheckpointAction], now: int, actions: list[Action]
    ) -> None:
        """Carry out what the coordinator decided."""
        for action in wanted:
            match action:
                case checkpointing.Trigger(checkpoint_id, options):
                    for region in self._regions:
                        sources = [task for task in region.tasks if task in self.graph.sources]
                        fields = {"checkpoint_id": checkpoint_id, "options": options}
                        self._send(TriggerCheckpoint, region, sources, actions, **fields)
                case checkpointing.EndInput():
                    self.send_to_all(Drain, actions)
                case checkpointing.Abort(checkpoint_id, _):
                    self._abort_checkpoint(checkpoint_id, actions)
                case checkpointing.Publish() | checkpointing.MarkCommitted():
                    actions.append(action)
                case checkpointing.Commit(permit, settled):
                    self.send_to_all(CommitCheckpoint, actions, permit=permit, settled=settled)
                case checkpointing.FailJob(reason):
                    self._fail_regions(list(self._regions), reason, now, actions)
                case checkpointing.Fenced(reason):
                    self._fence(reason, actions)
            self._requests.on_checkpoint(action, now, actions)

    # ---------------------------------------------------------------------------- the end

    def _on_drained(self, now: int, actions: list[Action]) -> None:
        drained = all(region.has_drained for region in self._regions)
        if drained:
            self._coordinate(self.coordinator.all_drained(now), now, actions)

    def _end_stage(self, region: Region, actions: list[Action]) -> None:
        """It has drained: drop what nobody else will read, and end it if it has no sink."""
        for producer in region.needs_no_more():
            producer.released = True
            self._send(ReleaseResults, producer, producer.tasks, actions)
        self._give_slots_back(actions)
        if region.produces and not any(self.graph.has_sink(task) for task in region.tasks):
            self._send(Finish, region, region.tasks, actions)

    def _give_slots_back(self, actions: list[Action]) -> None:
        """Those that no stage needs any more."""
        if self.graph.blocking and not self.finishing:
            given_back = self._pool.give_back(self._regions.slots_to_keep())
            actions.extend(StopTaskManager(taskmanager_id) for taskmanager_id in given_back)

    def _finish_if_done(self, now: int, actions: list[Action]) -> None:
        regions = self._regions
        ended = self._requests.ends_job or all(region.is_done for region in regions)
        if not ended or self._requests.holds_end:
            return
        if not self.finishing and self.coordinator.finished:
            self.finishing = True
            self.send_to_all(Finish, actions)
        if self.finishing and all(len(r.finished) == len(r.tasks) for r in regions):
            self.error = None  # of an earlier attempt
            self._terminate(JobStatus.FINISHED, actions)

    # ------------------------------------------------------------------------------ sending

    def send_to_all(
        self, message: Callable[..., ControlMessage], actions: list[Action], **fields: object
    ) -> None:
        """As ``_send``, to every task there is."""
        for region in self._regions:
            if region.active:
                self._send(message, region, region.tasks, actions, **fields)

    def _send(
        self,
        message: Callable[..., ControlMessage],
        region: Region,
        tasks: Iterable[TaskId],
        actions: list[Action],
        **fields: object,
    ) -> None:
        """``message(tasks, attempt, **fields)`` to each TaskManager for its own tasks."""
        by_taskmanager: dict[str, list[TaskId]] = {}
        for task in tasks:
            location = self.location(task)
            if location is not None:
                by_taskmanager.setdefault(location, []).append(task)
        for taskmanager_id, there in by_taskmanager.items():
            actions.append(Send(taskmanager_id, message(tuple(there), region.attempt, **fields)))
