"""The in-process cluster: the same runtime without Ray, for debugging and for tests of users' jobs.

TaskManagers are objects in this process, so breakpoints work and records pass between tasks by
reference. A TaskManager can be lost on purpose (``kill_taskmanager``); with it go its tasks, and
the job recovers as it would on a cluster.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

from dataflow import __version__
from dataflow.graph.job_graph import JobGraph
from jobmanager.client import PollingJobClient
from jobmanager.job_manager import JobInfo, JobManager, Outgoing
from jobmanager.requests import Answer, ClientRequest
from taskmanager.messages import ControlMessage, DataMessage, Feedback, Report
from taskmanager.threaded import ThreadedTaskManager

HEARTBEAT_S = 0.2


class LocalCluster:
    """Implements ``jobmanager.job_manager.Cluster`` with objects."""

    def __init__(self) -> None:
        self.job_manager: JobManager
        self._taskmanagers: dict[str, ThreadedTaskManager] = {}
        self._lost: dict[str, Callable[[str], None]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, name="local-heartbeats", daemon=True).start()

    def start_taskmanager(
        self,
        taskmanager_id: str,
        resources: dict[str, float],
        ready: Callable[[str], None],
        lost: Callable[[str], None],
    ) -> None:
        def report(report: Report) -> None:
            with self._lock:
                alive = taskmanager_id in self._taskmanagers
            if alive:  # the dead tell no tales
                self.job_manager.report(report)

        taskmanager = ThreadedTaskManager(taskmanager_id, _Direct(self, taskmanager_id), report)
        with self._lock:
            self._taskmanagers[taskmanager_id] = taskmanager
            self._lost[taskmanager_id] = lost
        ready(__version__)

    def stop_taskmanager(self, taskmanager_id: str) -> None:
        with self._lock:
            taskmanager = self._taskmanagers.pop(taskmanager_id, None)
            self._lost.pop(taskmanager_id, None)
        if taskmanager is not None:
            taskmanager.shutdown()

    def kill_taskmanager(self, taskmanager_id: str) -> None:
        """Lose it as a crash would: at once, with everything it holds."""
        lost = self._lost.get(taskmanager_id)
        self.stop_taskmanager(taskmanager_id)
        if lost is not None:
            lost("it was killed")

    @property
    def taskmanager_ids(self) -> list[str]:
        with self._lock:
            return list(self._taskmanagers)

    def send(self, taskmanager_id: str, message: ControlMessage) -> None:
        taskmanager = self._taskmanagers.get(taskmanager_id)
        if taskmanager is not None:
            taskmanager.handle(message)

    def shutdown(self) -> None:
        self._stopped.set()
        for taskmanager_id in self.taskmanager_ids:
            self.stop_taskmanager(taskmanager_id)

    def deliver(self, peer_id: str, messages: list[DataMessage]) -> list[Feedback] | None:
        """None when the peer is gone."""
        taskmanager = self._taskmanagers.get(peer_id)
        return None if taskmanager is None else taskmanager.deliver(messages)

    def on_feedback(self, peer_id: str, feedback: list[Feedback]) -> None:
        taskmanager = self._taskmanagers.get(peer_id)
        if taskmanager is not None:
            taskmanager.on_feedback(feedback)

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            for taskmanager in list(self._taskmanagers.values()):
                taskmanager.report(taskmanager.heartbeat())


class _Direct:
    """A transport that calls the peer; feedback comes back in the same call."""

    def __init__(self, cluster: LocalCluster, own_id: str) -> None:
        self._cluster = cluster
        self._own_id = own_id

    def is_local(self, peer_id: str) -> bool:
        return True

    def send(self, peer_id: str, messages: list[DataMessage], done: Callable[[], None]) -> None:
        answers = self._cluster.deliver(peer_id, messages)
        if answers is not None:  # else the JobManager restarts what the lost peer affects
            self._cluster.on_feedback(self._own_id, answers)
            done()

    def send_feedback(self, peer_id: str, feedback: list[Feedback]) -> None:
        self._cluster.on_feedback(peer_id, feedback)


class LocalJobClient(PollingJobClient):
    """A client in the same process as its JobManager."""

    def __init__(self, job_manager: JobManager, cluster: LocalCluster) -> None:
        super().__init__(job_manager.job_id)
        self._job_manager = job_manager
        self.cluster = cluster

    def _info(self) -> JobInfo:
        return self._job_manager.info()

    def _fetch(self, outbox_id: int, taken: int) -> Outgoing:
        return self._job_manager.fetch(outbox_id, taken)

    def _cancel(self) -> None:
        self._job_manager.cancel()

    def _request(self, request: ClientRequest) -> None:
        self._job_manager.request(request)

    def _answer(self, request_id: str) -> Answer | None:
        return self._job_manager.answer(request_id)

    def _wait(self, seconds: float) -> None:
        self._job_manager.ended.wait(seconds)


def submit_local(job_graph: JobGraph, job_id: str | None = None) -> LocalJobClient:
    """Run a job in this process."""
    cluster = LocalCluster()
    job_manager = JobManager(job_id or uuid.uuid4().hex, job_graph, cluster)
    cluster.job_manager = job_manager
    job_manager.start()
    return LocalJobClient(job_manager, cluster)
