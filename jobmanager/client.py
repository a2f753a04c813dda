"""What a program holds of its job, and how a job is submitted.

``execute_job_graph`` is what ``env.execute()`` calls. Where the job runs is decided by the
environment: in this process with ``DATAFLOW_LOCAL=1`` (``dataflow run --local``), else on Ray:
the cluster this process is connected to, the one that RAY_ADDRESS names, or a local one started
now. Importing this module does not import Ray.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
import tempfile
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from operator import index
from typing import Any, TypeVar
from uuid import uuid4

from dataflow.common.accumulators import merged_results
from dataflow.common.codec import dumps_data, loads_state
from dataflow.common.config_options import ConfigOptions
from dataflow.common.job_client import JobClient
from dataflow.common.job_execution_result import JobExecutionResult
from dataflow.common.job_id import JobID
from dataflow.common.job_status import JobStatus
from dataflow.common.keys import stable_hash
from dataflow.errors import (
    ClusterError,
    ConfigError,
    DataflowError,
    JobExecutionError,
    JobRequestError,
)
from dataflow.filesystem import parse
from dataflow.graph.job_graph import JobGraph
from jobmanager.job_manager import JobInfo, Outgoing
from jobmanager.progress import ProgressLine
from jobmanager.python_files import import_roots
from jobmanager.requests import (
    Answer,
    AskState,
    ClientRequest,
    Rescale,
    TakeCheckpoint,
    TakeSavepoint,
)

T = TypeVar("T")

LOCAL = "DATAFLOW_LOCAL"  # environment variable: run in this process
JOB_ID = "DATAFLOW_JOB_ID"  # environment variable: the id to run under (dataflow run --job-id)
DETACHED = "DATAFLOW_DETACHED"  # environment variable: execute() does not wait for the end

POLL_MIN_S, POLL_MAX_S = 0.01, 0.2
QUERY_TIMEOUT_S = 10.0
BEGIN_S = 60.0  # to read what a job goes on from
PRINT_CHANNEL = "print"


class PollingJobClient(JobClient):
    """A client over a few questions to the JobManager."""

    #: Whether the job goes on when this process ends.
    outlives_process = False

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self._outbox: tuple[int, int] = (0, 0)  # its id, the number up to which all was taken
        self._waiting: dict[str, deque[bytes]] = {}
        self._over = False
        self._final: JobInfo | None = None  # how the job ended; its JobManager may be gone then
        self._fetch_lock = threading.Lock()
        self._told = (0, "")  # restarts the user knows of, and the reason of the last
        self._noticed: str | None = None  # what the user was told last

    def info(self) -> JobInfo:
        """The job as it stands, or as it ended.

        Raises ClusterError if its JobManager cannot be reached.
        """
        if self._final is not None:
            return self._final
        try:
            info = self._info()
        except ClusterError:
            if self._final is not None:  # seen to its end, and released, by another thread
                return self._final
            raise
        if info.status.is_terminal_state() and info.ended_ms is not None:
            self._final = info
        return info

    # ------------------------------------------------------------------------ transport

    @abstractmethod
    def _info(self) -> JobInfo: ...

    @abstractmethod
    def _fetch(self, outbox_id: int, taken: int) -> Outgoing: ...

    @abstractmethod
    def _cancel(self) -> None: ...

    @abstractmethod
    def _request(self, request: ClientRequest) -> None:
        """Idempotent."""

    @abstractmethod
    def _answer(self, request_id: str) -> Answer | None: ...

    @abstractmethod
    def _wait(self, seconds: float) -> None:
        """Wait that long, or less if the job ends."""

    def _release(self) -> None:
        """The result is known: the JobManager need not wait for questions any more."""

    # ------------------------------------------------------------------------- JobClient

    def get_job_id(self) -> JobID:
        return JobID(self.job_id)

    def get_job_status(self) -> Future[JobStatus]:
        return _future(lambda: self.info().status)

    def get_accumulators(self) -> Future[dict[str, Any]]:
        return _future(lambda: merged_results(self.info().accumulators))

    def cancel(self) -> Future[None]:
        def cancel() -> None:
            if not self.info().status.is_terminal_state():
                self._cancel()
                self._until_ended(lambda info: None)

        return _future(cancel, background=True)

    def trigger_savepoint(self, savepoint_directory: str | None = None) -> Future[str]:
        folder = _folder(savepoint_directory)
        return _future(lambda: self._ask_for(TakeSavepoint(uuid4().hex, folder)), background=True)

    def stop_with_savepoint(
        self, advance_to_end_of_event_time: bool, savepoint_directory: str | None = None
    ) -> Future[str]:
        folder, drain = _folder(savepoint_directory), advance_to_end_of_event_time

        def stop() -> str:
            path = self._ask_for(TakeSavepoint(uuid4().hex, folder, stop=True, drain=drain))
            self._until_ended(lambda info: None)
            return path

        return _future(stop, background=True)

    def trigger_checkpoint(self) -> Future[int]:
        return _future(lambda: int(self._ask_for(TakeCheckpoint(uuid4().hex))), background=True)

    def rescale(self, parallelism: int) -> Future[str]:
        return _future(lambda: self._ask_for(Rescale(uuid4().hex, parallelism)), background=True)

    def query_state(
        self, uid: str, state_name: str, key: Any, window: tuple[int, int] | None = None
    ) -> Future[Any]:
        question = dumps_data((state_name, key, _window(window)))
        request = AskState(uuid4().hex, uid, stable_hash(key), question)

        def query() -> Any:
            payload = self._answer_to(request, QUERY_TIMEOUT_S).payload
            return None if payload is None else loads_state(payload)

        return _future(query, background=True)

    def _ask_for(self, request: ClientRequest) -> str:
        """Have the running job do something, and wait until it is done."""
        result = self._answer_to(request).result
        assert result is not None
        return result

    def _answer_to(self, request: ClientRequest, timeout_s: float | None = None) -> Answer:
        self._request(request)
        pause, waited = POLL_MIN_S, 0.0
        while (answer := self._answer(request.request_id)) is None:
            if timeout_s is not None and waited > timeout_s:
                raise JobRequestError(
                    f"job {self.job_id}: no answer within {timeout_s:g} s; the task is busy with a "
                    "batch, or is being restarted"
                )
            self._wait(pause)
            waited += pause
            pause = min(pause * 1.5, POLL_MAX_S)
        if answer.result is None:
            raise JobRequestError(f"job {self.job_id}: {answer.error}")
        return answer

    def get_job_execution_result(self) -> Future[JobExecutionResult]:
        return _future(self._result, background=True)

    def wait(self) -> JobExecutionResult:
        """Wait for the end here and now, printing what the job prints and how it goes."""
        try:
            return self._result(ProgressLine.for_terminal(sys.stderr), tell=True)
        except KeyboardInterrupt:
            if self.outlives_process:
                sys.stderr.write(
                    "no longer waiting: the job goes on as long as its Ray does; "
                    f"dataflow status {self.job_id}\n"
                )
            raise

    def receive(self, channel: str) -> Iterator[bytes]:
        waiting = self._waiting.setdefault(channel, deque())
        pause = POLL_MIN_S
        while True:
            over = self._over  # asked first: whoever pumps may put something in before it is over
            while waiting:
                pause = POLL_MIN_S
                yield waiting.popleft()
            if over:
                break
            if not self._pump():
                self._wait(pause)
                pause = min(pause * 1.5, POLL_MAX_S)
        self._raise_unless_finished(self.info())
        self._release()

    # ---------------------------------------------------------------------------- parts

    def _result(
        self, progress: ProgressLine | None = None, tell: bool = False
    ) -> JobExecutionResult:
        def look(info: JobInfo) -> None:
            while self._pump(progress):
                pass
            if tell:
                self._tell_notice(info, progress)
                self._tell_restart(info, progress)
            if progress:
                progress.show(info)

        try:
            info = self._until_ended(look)
        finally:
            if progress:
                progress.clear()
        while not self._over and self._pump():
            pass
        self._raise_unless_finished(info)
        self._release()
        assert info.ended_ms is not None
        return JobExecutionResult(
            JobID(self.job_id),
            info.ended_ms - info.started_ms,
            merged_results(info.accumulators),
            restarts=info.restarts,
            checkpoints=info.completed_checkpoints,
            records_read=info.records_read,
            records_written=info.records_written,
        )

    def wait_until_begun(self) -> JobInfo:
        """Until it is known what the job goes on from, for a minute at most.

        Raises what ``wait`` raises if it is refused, or has failed by then.
        """
        info, waited = self.info(), 0.0
        while not (info.begun or info.status.is_terminal_state()) and waited < BEGIN_S:
            self._wait(POLL_MAX_S)
            waited += POLL_MAX_S
            info = self.info()
        if info.status in (JobStatus.FAILING, JobStatus.FAILED):
            self._raise_unless_finished(self._until_ended(lambda _: None))
        return info

    def follow(self) -> None:
        """Print what the job prints as it comes, on a thread, also if nobody asks for the result.

        What is collected waits for who reads it, and what comes behind it waits in the job.
        """

        def follow() -> None:
            pause, nothing = POLL_MIN_S, threading.Event()
            while not self._over:
                try:
                    found = self._pump_ahead()
                except DataflowError:
                    return  # whoever asks for the result is told
                pause = POLL_MIN_S if found else min(pause * 1.5, POLL_MAX_S)
                if not found:
                    nothing.wait(pause)

        threading.Thread(target=follow, name=f"output of {self.job_id}", daemon=True).start()

    def _pump_ahead(self) -> bool:
        """As ``_pump``, unless there is something that nobody has read yet."""
        return not any(self._waiting.values()) and self._pump()

    def _tell_notice(self, info: JobInfo, progress: ProgressLine | None) -> None:
        if info.notice is None or info.notice == self._noticed:
            return
        self._noticed = info.notice
        if progress:
            progress.clear()
        sys.stderr.write(f"job {info.name!r} {info.notice}\n")

    def _tell_restart(self, info: JobInfo, progress: ProgressLine | None) -> None:
        """Whoever waits learns why the job restarts; the same reason is told once."""
        restarts, reason = self._told
        if info.restarts <= restarts or not info.errors:
            return
        again = "as before" if info.errors[-1] == reason else info.errors[-1]
        self._told = (info.restarts, info.errors[-1])
        if progress:
            progress.clear()
        sys.stderr.write(f"restart {info.restarts} of job {info.name!r}: {again}\n")

    def _until_ended(self, look: Callable[[JobInfo], None]) -> JobInfo:
        pause = POLL_MIN_S
        while True:
            info = self.info()
            look(info)
            if info.status.is_terminal_state() and info.ended_ms is not None:
                return info
            self._wait(pause)
            pause = min(pause * 1.5, POLL_MAX_S)

    def _pump(self, progress: ProgressLine | None = None) -> bool:
        """Fetch once: print what is printed, keep what is collected; False if there was nothing."""
        with self._fetch_lock:
            if self._over:
                return False
            outbox_id, taken = self._outbox
            outgoing = self._fetch(outbox_id, taken)
            if outgoing.outbox_id != outbox_id:
                taken = 0  # a new JobManager: it numbers from the start again
            for delivery in outgoing.deliveries:
                if delivery.channel == PRINT_CHANNEL:
                    if progress:
                        progress.clear()
                    sys.stdout.write(delivery.payload.decode("utf-8", "replace"))
                    sys.stdout.flush()
                else:
                    self._waiting.setdefault(delivery.channel, deque()).append(delivery.payload)
                taken = delivery.number
            self._outbox = (outgoing.outbox_id, taken)
            self._over = outgoing.over
            return bool(outgoing.deliveries)

    def _raise_unless_finished(self, info: JobInfo) -> None:
        if info.status is JobStatus.FINISHED:
            return
        self._release()
        if info.status is JobStatus.CANCELED:
            raise JobExecutionError(f"job {info.name!r} ({info.job_id}) was canceled")
        if info.status is JobStatus.SUSPENDED:
            raise JobExecutionError(
                f"job {info.name!r} was stopped because another run took its job id, {info.job_id} "
                f"({info.error}); let one end before the next begins, or give each an id"
            )
        failure = JobExecutionError(
            f"job {info.name!r} ({info.job_id}) failed after {info.restarts} restart(s): "
            f"{info.error or info.status.name}"
        )
        failure.exit_code = info.exit_code
        raise failure


def _folder(directory: str | None) -> str:
    """Absolute here: the JobManager has another working directory. Empty: the job's default."""
    return "" if directory is None else parse(directory)[1]


def _window(window: Any) -> tuple[int, int] | None:
    """Raises ValueError."""
    if window is None:
        return None
    try:
        start, end = window
        return index(start), index(end)
    except (TypeError, ValueError):
        raise ValueError(f"window= is the (start, end) of one in ms, not {window!r}") from None


def _future(work: Callable[[], T], background: bool = False) -> Future[T]:
    """The outcome of ``work``, done now or on a thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except DataflowError as error:  # its message says it all: our frames only hide it
            future.set_exception(error.with_traceback(None))
        except BaseException as error:
            future.set_exception(error)

    if background:
        threading.Thread(target=run, name="job-client", daemon=True).start()
    else:
        run()
    return future


class AttachedJobClient:
    """What ``execute()`` holds: waiting for the result shows prints and progress."""

    def __init__(self, client: PollingJobClient) -> None:
        self._client = client

    def get_job_execution_result(self) -> Future[JobExecutionResult]:
        return _future(self._client.wait)


class DetachedJobClient:
    """What ``execute()`` holds when nobody waits: the result is the job's id and no more."""

    def __init__(self, client: PollingJobClient) -> None:
        self._client = client

    def get_job_execution_result(self) -> Future[JobExecutionResult]:
        info = self._client.wait_until_begun()
        print(f"submitted job {info.name!r} as {info.job_id}", flush=True)
        return _future(lambda: JobExecutionResult(self._client.get_job_id(), 0, {}))


def with_checkpoint_storage(job_graph: JobGraph) -> JobGraph:
    """The job with a folder of this machine for its checkpoints, if it names no storage.

    Raises ConfigError for a storage that cannot be one.
    """
    configuration = job_graph.configuration
    interval = ConfigOptions.CHECKPOINTING_INTERVAL.key
    storage = ConfigOptions.CHECKPOINTING_DIR.key
    if interval not in configuration:
        return job_graph
    if configuration.get(storage):
        parse(configuration[storage])  # before anything is started
        return job_graph
    return replace(job_graph, configuration={**configuration, storage: _private_folder()})


def _private_folder() -> str:
    """Checkpoints hold pickles: nobody else may be able to put any there (SECURITY.md)."""
    folder = os.path.join(tempfile.gettempdir(), f"dataflow-checkpoints-{getpass.getuser()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"the default folder for checkpoints, {folder}, can be written by others; name another "
            "with set_checkpoint_storage() or execution.checkpointing.dir"
        )
    return folder


def execute_job_graph(
    job_graph: JobGraph, *, python_files: list[str], requirements: str | None, attached: bool
) -> Any:
    """Submit; the client's JobManager has accepted the job when this returns."""
    job_graph = with_checkpoint_storage(job_graph)
    job_id = os.environ.get(JOB_ID)
    client: PollingJobClient
    detached = False
    if os.environ.get(LOCAL) == "1":
        from jobmanager.local import submit_local

        sys.path.extend(path for path in import_roots(python_files) if path not in sys.path)
        client = submit_local(job_graph, job_id)
    else:
        from jobmanager.cluster import submit

        detached = os.environ.get(DETACHED) == "1"
        client = submit(job_graph, job_id, python_files, requirements, detached)
    if not attached:
        if not detached:
            client.follow()
        return client
    return DetachedJobClient(client) if detached else AttachedJobClient(client)


def attach_to_job(job_id: str) -> PollingJobClient:
    """What ``StreamExecutionEnvironment.attach_to_job`` calls."""
    from jobmanager.cluster import attach, connect

    connect(address=os.environ.get("RAY_ADDRESS") or "auto")
    return attach(job_id)
