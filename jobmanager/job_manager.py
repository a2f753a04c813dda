"""Runs a JobMaster on threads: one for its events, one for the store.

Everything that differs between a Ray cluster and an in-process one is behind ``Cluster``. Store
operations run one after another, in the order they were decided, on a thread of their own.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.common.job_status import JobStatus
from dataflow.errors import (
    ConfigError,
    CorruptObject,
    DataflowError,
    JobExecutionError,
    ObjectNotFound,
    StorageError,
)
from dataflow.filesystem import parse
from dataflow.graph.job_graph import JobGraph
from jobmanager.client_outbox import ClientOutbox, Delivery
from jobmanager.job_events import (
    Action,
    CancelJob,
    Event,
    JobStatusChanged,
    Send,
    StartTaskManager,
    StopFenced,
    StopTaskManager,
    TaskManagerLost,
    TaskManagerReady,
    Tick,
)
from jobmanager.job_master import JobMaster
from jobmanager.operator_latency import OperatorLatency, operator_latencies
from jobmanager.request_operations import execute_request
from jobmanager.requests import (
    Answer,
    AskState,
    ClientRequest,
    DiscardSavepoint,
    ProbeSavepoint,
    SaveJob,
    StoreSavepoint,
    TakeSavepoint,
)
from jobmanager.rescaling import as_stored
from jobmanager.settings import job_settings, restart_backoff
from jobmanager.state_queries import answered, ask
from jobmanager.store_operations import execute_in_store
from state.checkpoint_store import IN_PLACE, CheckpointStore
from state.savepoint import RestorePoint, open_restore_point, savepoint_name
from taskmanager.messages import ClientChunk, ControlMessage, Report, StateQueried
from taskmanager.threaded import open_store, signing_key

logger = logging.getLogger(__name__)

EVENTS_MAX = 100_000
ERROR_HISTORY_MAX = 20
ANSWERS_MAX = 1_000
QUERIES_MAX = 256  # whose answers may have a megabyte each
STORE_ATTEMPTS_MAX = 300  # of a restarted JobManager, before the job is given up
STORE_RETRY_S = 1.0
SLOW_START_MS = 10_000  # a TaskManager takes a few seconds

T = TypeVar("T")


class Cluster(Protocol):
    """Where TaskManagers come from."""

    def start_taskmanager(
        self,
        taskmanager_id: str,
        resources: dict[str, float],
        ready: Callable[[str], None],
        lost: Callable[[str], None],
    ) -> None:
        """Begin; exactly one of ``ready`` (later perhaps followed by ``lost``) or ``lost``.

        ``ready`` is told the version of this package there, ``lost`` what happened.
        """

    def stop_taskmanager(self, taskmanager_id: str) -> None:
        """Kill it; ``lost`` need not be called then."""

    def send(self, taskmanager_id: str, message: ControlMessage) -> None:
        """In order per TaskManager; what cannot be delivered shows up as ``lost``."""

    def shutdown(self) -> None:
        """Kill all that is left."""


@dataclass(frozen=True)
class Outgoing:
    """Deliveries of one outbox, which lives as long as its JobManager; ``over``: no more come."""

    outbox_id: int
    deliveries: list[Delivery]
    over: bool


@dataclass(frozen=True)
class JobInfo:
    """A job as its clients see it."""

    job_id: str
    name: str
    status: JobStatus
    error: str | None
    restarts: int
    generation: int
    tasks: int
    records_read: int
    records_written: int
    watermark: int | None  # the lowest of the tasks that have one
    completed_checkpoints: int
    failed_checkpoints: int
    last_checkpoint: int | None
    last_checkpoint_ms: int | None  # duration
    last_checkpoint_age_ms: int | None
    last_checkpoint_failure: str | None
    restored_checkpoint: int | None
    started_ms: int
    ended_ms: int | None
    taskmanagers: dict[str, str] = field(default_factory=dict)  # id to the tasks there, for people
    errors: tuple[str, ...] = ()  # why it restarted, newest last
    notice: str | None = None  # what its owner should know although nothing has failed
    exit_code: int = JobExecutionError.exit_code  # of a failed job, by the kind of its error
    latencies: tuple[OperatorLatency, ...] = ()  # from the sources to each operator
    accumulators: tuple[tuple[str, bytes], ...] = ()  # name, pickled; of every subtask
    parallelism: int = 0  # the largest of its operators
    restored_from: str | None = None  # the folder of the checkpoint, if not that of the job
    begun: bool = False  # it is known what it goes on from, or that it cannot
    restoring: tuple[int, int] | None = None  # bytes of state that tasks have read, of so many


def _notice(master: JobMaster, restarted: bool) -> str | None:
    missing = master.missing_slots(_monotonic() - SLOW_START_MS)
    if missing:
        return (
            f"waits for {missing} of its {len(master.graph.slots)} slots; if no TaskManager comes "
            "up for them, the cluster has too few CPUs free, or not what resources() asks for"
        )
    if master.restored_end and not restarted:
        return (
            f"had come to its end: checkpoint {master.restored_checkpoint} covers it, and nothing "
            "is left to do; under another job id it runs again from the beginning"
        )
    return None


class JobManager:
    """One job under one generation. ``report`` and the client's methods are thread-safe."""

    def __init__(
        self, job_id: str, job_graph: JobGraph, cluster: Cluster, restarted: bool = False
    ) -> None:
        """``restarted``: in the place of a JobManager that died, not by a new submission."""
        self.job_id = job_id
        self._restarted = restarted
        self._job_graph = job_graph
        self._cluster = cluster
        self._events: queue.Queue[tuple[int, Event]] = queue.Queue(EVENTS_MAX)
        self._now = 0  # of the JobMaster: when the event it is at has come in
        self._store_thread = ThreadPoolExecutor(1, thread_name_prefix=f"{job_id}-store")
        self._store: CheckpointStore | None = None
        self._restore: RestorePoint | None = None  # what the job starts from at first
        self._answers: dict[str, Answer | None] = {}  # None: not yet
        self._queries: dict[str, Answer | None] = {}  # the same for questions of state
        self._starting: dict[str, threading.Timer] = {}  # TaskManagers that are to be started later
        self._start_lock = threading.Lock()
        self._untold: set[str] = set()  # requests whose client has not got its answer
        self._retained = 1
        self._delete_when_canceled = (
            Configuration(job_graph.configuration).get(ConfigOptions.CHECKPOINTING_RETENTION)
            != "RETAIN_ON_CANCELLATION"
        )
        self._master: JobMaster | None = None
        self._outbox = ClientOutbox()
        self._lock = threading.Lock()  # guards the outbox, and who waits for answers
        self._errors: list[str] = []
        self._started_ms = _wall_clock()
        self._ended_ms: int | None = None
        self._failed_to_start: tuple[str, int] | None = None  # error, exit code
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{job_id}-master", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # --------------------------------------------------------------------- from elsewhere

    def report(self, report: Report) -> None:
        """From a TaskManager; blocks when the JobMaster cannot keep up."""
        if isinstance(report, StateQueried):
            with self._lock:
                if report.request_id in self._queries:
                    self._queries[report.request_id] = answered(report)
            return
        self._put(report)

    def cancel(self) -> None:
        self._put(CancelJob())

    def request(self, request: ClientRequest) -> None:
        """Idempotent; see ``answer``."""
        with self._lock:
            if isinstance(request, AskState):
                answers, limit = self._queries, QUERIES_MAX
            else:
                answers, limit = self._answers, ANSWERS_MAX
            if request.request_id in answers:
                return
            if len(answers) >= limit:
                # What is under way stays: its client would be told that nobody knows of it.
                old = next((id_ for id_, answer in answers.items() if answer is not None), None)
                if old is None:
                    old = next(iter(answers))
                    answers[old] = Answer(old, error=f"{limit} others came meanwhile; ask again")
                else:
                    del answers[old]
                self._untold.discard(old)
            answers[request.request_id] = None
            self._untold.add(request.request_id)
        if isinstance(request, AskState):
            answer = ask(request, self._master, self._cluster.send)
            if answer is not None:
                answers[request.request_id] = answer
            return
        try:
            if isinstance(request, TakeSavepoint):
                request = replace(request, folder=self._savepoint_folder(request))
        except ConfigError as error:
            self._answers[request.request_id] = Answer(request.request_id, error=str(error))
            return
        self._put(request)

    def _savepoint_folder(self, request: TakeSavepoint) -> str:
        """A new one in the folder that was named, or else in the default one."""
        options = Configuration(self._job_graph.configuration)
        directory = request.folder or options.get(ConfigOptions.SAVEPOINT_DIR)
        if not directory:
            raise ConfigError(
                "name a folder for the savepoint, such as s3://bucket/savepoints, or set "
                "execution.checkpointing.savepoint-dir"
            )
        return f"{parse(directory)[1]}/{savepoint_name(self.job_id, request.request_id[:12])}"

    def answer(self, request_id: str) -> Answer | None:
        """None while it is being done."""
        ended = self.ended.is_set()  # asked first: the last answers come just before it
        answers = self._queries if request_id in self._queries else self._answers
        answer = answers.get(request_id)
        if answer is None and request_id not in answers:
            error = "its JobManager was restarted meanwhile, and does not know what became of it"
            answer = Answer(request_id, error=f"{error}; dataflow status shows how the job is")
        elif answer is None and ended:
            answer = Answer(request_id, error=f"the job is {self.info().status.name}")
        if answer is not None:
            with self._lock:
                self._untold.discard(request_id)
        return answer

    @property
    def owes_answers(self) -> bool:
        """Whether a client has asked for something and has not been told what became of it."""
        return bool(self._untold)

    def _put(self, event: Event) -> None:
        self._events.put((_monotonic(), event))

    def fetch(self, outbox_id: int, taken: int) -> Outgoing:
        """Output for the client, which has taken everything up to ``taken`` of that outbox."""
        with self._lock:
            ended = self.ended.is_set()
            own = outbox_id == self._started_ms
            deliveries, acknowledged = self._outbox.fetch(taken if own else 0)
        master = self._master
        for acknowledgement in acknowledged:
            location = None if master is None else master.location(acknowledgement.task)
            if location is not None:
                self._cluster.send(location, acknowledgement)
        return Outgoing(self._started_ms, deliveries, over=ended and not deliveries)

    def info(self) -> JobInfo:
        """A consistent enough view for people."""
        master = self._master
        common = {
            "job_id": self.job_id,
            "name": self._job_graph.name,
            "started_ms": self._started_ms,
            "ended_ms": self._ended_ms,
            "errors": tuple(self._errors),
        }
        if master is None:
            failed = self._failed_to_start
            error, exit_code = failed or (None, JobExecutionError.exit_code)
            return JobInfo(
                status=JobStatus.FAILED if failed else JobStatus.CREATED,
                error=error,
                exit_code=exit_code,
                restarts=0,
                generation=0,
                tasks=0,
                records_read=0,
                records_written=0,
                watermark=None,
                completed_checkpoints=0,
                failed_checkpoints=0,
                last_checkpoint=None,
                last_checkpoint_ms=None,
                last_checkpoint_age_ms=None,
                last_checkpoint_failure=None,
                restored_checkpoint=None,
                **common,  # type: ignore[arg-type]
            )
        by_task = list(master.metrics.items())
        metrics = [values for _, values in by_task]
        watermarks = [m.watermark for m in metrics if m.watermark is not None]
        statistics = master.coordinator.statistics
        completed_at = statistics.last_completed_at
        return JobInfo(
            status=master.status,
            error=master.error,
            exit_code=master.exit_code,
            restarts=master.restarts,
            generation=master.generation,
            tasks=len(master.graph.tasks),
            records_read=sum(m.records_read for m in metrics),
            records_written=sum(m.records_written for m in metrics),
            watermark=min(watermarks) if watermarks else None,
            completed_checkpoints=statistics.completed,
            failed_checkpoints=statistics.failed,
            last_checkpoint=statistics.last_id,
            last_checkpoint_ms=statistics.last_duration,
            last_checkpoint_age_ms=None if completed_at is None else _monotonic() - completed_at,
            last_checkpoint_failure=statistics.last_failure,
            restored_checkpoint=master.restored_checkpoint,
            taskmanagers=master.describe_taskmanagers(),
            notice=_notice(master, self._restarted),
            latencies=operator_latencies(master.graph.job_graph, by_task),
            parallelism=max(v.parallelism for v in master.graph.job_graph.vertices),
            restored_from=master.restored_from,
            begun=not master.recovery.under_way,
            restoring=master.restoring,
            accumulators=tuple(part for m in metrics for part in m.accumulators),
            **common,  # type: ignore[arg-type]
        )

    # ------------------------------------------------------------------------ event loop

    def _run(self) -> None:
        try:
            master = self._patiently(self._begin)
        except DataflowError as error:
            self._failed_to_start = str(error), error.exit_code
            self._end()
            return
        except Exception as error:
            logger.exception("the JobManager could not start job %s", self.job_id)
            text = f"internal error of the JobManager: {error!r}"
            self._failed_to_start = text, JobExecutionError.exit_code
            self._end()
            return
        self._master = master
        try:
            if self._restarted:
                self._patiently(lambda: self._keep_decision(master))
            if not master.status.is_terminal_state():
                self._now = _monotonic()
                self._execute(master.start(self._now))
            while not master.status.is_terminal_state():
                event = self._next_event(master)
                self._execute(master.handle(event, self._now))
        except DataflowError as error:
            master.error, master.status = str(error), JobStatus.FAILED
        except Exception as error:
            # A fault of ours: say so and stop, rather than run on with unknown state.
            logger.exception("the JobManager of job %s failed", self.job_id)
            master.error = f"internal error of the JobManager: {error!r}"
            master.status = JobStatus.FAILED
        self._end()

    def _patiently(self, work: Callable[[], T]) -> T:
        """A restarted JobManager bears with a store that is away; a new one tells at once."""
        for _ in range(STORE_ATTEMPTS_MAX if self._restarted else 0):
            try:
                return work()
            except StorageError as error:
                logger.warning("job %s waits for its storage: %s", self.job_id, error)
                self.ended.wait(STORE_RETRY_S)
        return work()

    def _begin(self) -> JobMaster:
        """Claim the next generation: from here on older JobManagers of this job are fenced."""
        configuration = self._job_graph.configuration
        settings = job_settings(configuration)
        generation, next_checkpoint_id = self._started_ms, 1
        if settings.checkpoints is not None:
            root = configuration["execution.checkpointing.dir"]
            self._store = open_store(root, self.job_id)
            self._retained = settings.checkpoints.retained
            if configuration.get("execution.checkpointing.mode", "EXACTLY_ONCE") == "EXACTLY_ONCE":
                file_system, path = parse(root)
                file_system.probe_conditional_put(path)
        # Before the claim: what is refused has taken the job over from nobody.
        origin = Configuration(configuration).get(ConfigOptions.RECOVERY_PATH)
        if origin is not None and self._starts_there(origin):
            self._restore = open_restore_point(origin, parse, signing_key())
            settings = replace(settings, restores=True)
        if self._store is not None:
            store = self._store
            whose = IN_PLACE if self._restarted else ""
            generation = store.claim_generation(whose + uuid.uuid4().hex)
            settings = replace(settings, history_id=store.history_id())
            if self._restarted:
                self._job_graph = _as_stored(self._job_graph, store)
            store.save_job(self._job_graph.to_bytes())
            next_checkpoint_id = store.next_checkpoint_id()
        if self._restore is not None:
            # What the savepoint has not committed is committed with the first later checkpoint.
            next_checkpoint_id = max(next_checkpoint_id, self._restore.checkpoint_id + 1)
        return JobMaster(
            self.job_id,
            self._job_graph,
            settings,
            generation,
            next_checkpoint_id,
            restart_backoff(configuration, random.random),
            _wall_clock,
        )

    def _starts_there(self, path: str) -> bool:
        """Once the job has a checkpoint of its own, it goes on from that."""
        newest = None if self._store is None else self._store.newest_checkpoint_id()
        if newest is not None and not self._restarted:
            raise ConfigError(
                f"the job id {self.job_id} has checkpoints already, the newest of which is "
                f"{newest}: go on from it without -s, or start from {path} under another --job-id"
            )
        return newest is None

    def _keep_decision(self, master: JobMaster) -> None:
        """A job that had ended, or was to be canceled, when its JobManager died is not run again.

        Raises DataflowError if what happened cannot be known.
        """
        if self._store is None:
            raise JobExecutionError(
                "its JobManager died, and without checkpoints there is nothing to go on from"
            )
        submitted, ended = self._store.submitted_before(master.generation)
        if ended:
            master.status = JobStatus.FINISHED
            return
        record = self._store.get_status() or {}
        if record.get("generation", 0) < submitted:
            return  # of an earlier run under the same id
        status = JobStatus.__members__.get(str(record.get("status")), JobStatus.CREATED)
        if status.is_globally_terminal_state():
            master.status, master.error = status, record.get("error")
        elif status is JobStatus.CANCELLING:
            self._put(CancelJob())

    def _next_event(self, master: JobMaster) -> Event:
        """The event, handled as of when it came in.

        While this thread sends out a large deployment, heartbeats wait in line: judged by the
        clock, every TaskManager whose turn comes late would be silent.
        """
        while True:
            tick_at = master.next_tick_at()
            timeout = None if tick_at is None else max(0.0, (tick_at - _monotonic()) / 1000)
            try:
                came, event = self._events.get(timeout=timeout)
            except queue.Empty:
                self._now = max(self._now, _monotonic())
                return Tick()
            self._now = max(self._now, came)
            if isinstance(event, ClientChunk):
                if master.is_current(event.task, event.attempt):
                    with self._lock:
                        self._outbox.add(event)
                continue
            return event

    def _execute(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(taskmanager_id, message):
                    self._cluster.send(taskmanager_id, message)
                case StartTaskManager(taskmanager_id, resources, delay_ms):
                    self._start_taskmanager(taskmanager_id, dict(resources), delay_ms)
                case StopTaskManager(taskmanager_id):
                    self._stop_taskmanager(taskmanager_id)
                case JobStatusChanged(status, error):
                    self._on_status(status, error)
                case StopFenced(reason):
                    logger.warning("job %s: fenced: %s", self.job_id, reason)
                case Answer(request_id):
                    self._answers[request_id] = action
                case _:
                    self._in_store_thread(action)

    def _start_taskmanager(
        self, taskmanager_id: str, resources: dict[str, float], delay_ms: int
    ) -> None:
        def start() -> None:
            self._cluster.start_taskmanager(
                taskmanager_id,
                resources,
                lambda version: self._put(TaskManagerReady(taskmanager_id, version)),
                lambda reason: self._put(TaskManagerLost(taskmanager_id, reason)),
            )

        def start_unless_stopped() -> None:
            with self._start_lock:
                if self._starting.pop(taskmanager_id, None) is not None:
                    start()

        if delay_ms:
            timer = threading.Timer(delay_ms / 1000, start_unless_stopped)
            timer.daemon = True
            with self._start_lock:
                self._starting[taskmanager_id] = timer
            timer.start()
        else:
            start()

    def _stop_taskmanager(self, taskmanager_id: str) -> None:
        """Also one that is still to be started: nobody would know of it any more."""
        with self._start_lock:
            timer = self._starting.pop(taskmanager_id, None)
        if timer is not None:
            timer.cancel()
        self._cluster.stop_taskmanager(taskmanager_id)

    def _on_status(self, status: JobStatus, error: str | None) -> None:
        logger.info("job %s is %s%s", self.job_id, status.name, f": {error}" if error else "")
        if error is not None and not status.is_terminal_state():  # else it was said before
            self._errors.append(error)
            del self._errors[:-ERROR_HISTORY_MAX]
        if status is JobStatus.CANCELED and self._delete_when_canceled:
            self._delete_checkpoints()
        self._put_status(status)

    def _delete_checkpoints(self) -> None:
        store, master = self._store, self._master
        if store is None or master is None:
            return

        def delete() -> None:
            try:
                store.delete_checkpoints(master.generation)
            except DataflowError as error:
                logger.warning("checkpoints of job %s remain: %s", self.job_id, error)

        self._store_thread.submit(delete)

    def _put_status(self, status: JobStatus) -> None:
        """The job's record in the store, for ``dataflow list``; a hint, so failures are logged."""
        store = self._store
        if store is None or self._master is None:
            return
        record = {
            "name": self._job_graph.name,
            "generation": self._master.generation,
            "status": status.name,
            "started_ms": self._started_ms,
            "updated_ms": _wall_clock(),
            "error": self._errors[-1][:2_000] if self._errors else None,
        }

        def put() -> None:
            try:
                store.put_status(record)
            except DataflowError as error:
                logger.warning("job %s: cannot write its status: %s", self.job_id, error)

        self._store_thread.submit(put)

    def _end(self) -> None:
        with self._start_lock:
            self._starting.clear()
        self._store_thread.shutdown(wait=True)  # the end is known to the store before anybody else
        self._cluster.shutdown()
        with self._lock:
            self._ended_ms = _wall_clock()
            self.ended.set()

    # ----------------------------------------------------------------------- the store

    def _in_store_thread(self, action: Action) -> None:
        store, master = self._store, self._master
        assert master is not None
        retained = self._retained
        delay_ms = getattr(action, "delay_ms", 0)

        def run() -> None:
            event: Event | None
            match action:
                case ProbeSavepoint() | StoreSavepoint() | DiscardSavepoint() | SaveJob():
                    event = execute_request(action, store, master.generation, parse, signing_key())
                case _:
                    event = execute_in_store(
                        action, store, master.generation, retained, self._restore
                    )
            if event is not None:
                self._put(event)

        def submit() -> None:
            try:
                self._store_thread.submit(run)
            except RuntimeError:  # shut down: the job has ended meanwhile
                logger.debug("dropped %s at the end", type(action).__name__)

        if delay_ms:
            timer = threading.Timer(delay_ms / 1000, submit)
            timer.daemon = True
            timer.start()
        else:
            submit()


def _as_stored(job_graph: JobGraph, store: CheckpointStore) -> JobGraph:
    """At the parallelism to which the job was rescaled; what is stored may be damaged or gone."""
    try:
        return as_stored(job_graph, JobGraph.from_bytes(store.load_job()))
    except (ObjectNotFound, CorruptObject) as error:
        logger.warning("the job starts at the parallelism it was submitted with: %s", error)
        return job_graph


def _monotonic() -> int:
    return time.monotonic_ns() // 1_000_000


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000
