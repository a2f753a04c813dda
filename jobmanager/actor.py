"""The JobManager as a detached Ray actor: one per job, restarted by Ray, recovering from the store.

TaskManagers are its children: Ray ends them with it, so a restarted JobManager begins with new
ones, in a new generation.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import ray

from dataflow.common.codec import dumps_data, loads_data
from dataflow.graph.job_graph import JobGraph
from jobmanager.job_manager import JobInfo, JobManager, Outgoing
from jobmanager.requests import Answer, ClientRequest
from taskmanager.actor import LOG_FORMAT, TaskManagerActor
from taskmanager.messages import ControlMessage, Deploy, SendResults

logger = logging.getLogger(__name__)

NAMESPACE = "dataflow"
NAME_PREFIX = "jobmanager-"
#: How long an ended job answers its clients before its actor goes away.
LINGER_S = 60.0
#: How long, besides, clients have to fetch the answers to their requests: many times the pause
#: between two looks.
ANSWERS_S = 5.0
HANDLES_INLINE_MAX = 16  # fewer are not worth an object of their own
HANDLES_SHARED_MAX = 16  # sets of them that are kept; a deployment has about one per vertex


class RayCluster:
    """TaskManagers as actors, anywhere on the Ray cluster."""

    def __init__(self, heartbeat_ms: int, cpus: float, sys_path: list[str]) -> None:
        self._heartbeat_ms = heartbeat_ms
        self._cpus = cpus
        self._sys_path = sys_path
        self._actors: dict[str, Any] = {}
        self._gone: dict[str, Callable[[Any], None]] = {}  # what to do with a call that failed
        self._shared: dict[frozenset[str], Any] = {}  # references to handles, oldest first
        self._lock = threading.Lock()
        self.pids: dict[str, int] = {}

    def start_taskmanager(
        self,
        taskmanager_id: str,
        resources: dict[str, float],
        ready: Callable[[str], None],
        lost: Callable[[str], None],
    ) -> None:
        wanted = dict(resources)
        options: dict[str, Any] = {"num_cpus": wanted.pop("num_cpus", self._cpus)}
        for name in ("num_gpus", "memory"):
            if name in wanted:
                options[name] = wanted.pop(name)
        job_manager = ray.get_runtime_context().current_actor
        actor = cast(Any, TaskManagerActor).options(
            resources=wanted or None, scheduling_strategy="SPREAD", **options
        ).remote(taskmanager_id, job_manager, self._heartbeat_ms, self._sys_path)

        def gone(future: Any) -> None:
            lost(_reason(future.exception()))

        with self._lock:
            self._actors[taskmanager_id] = actor
            self._gone[taskmanager_id] = gone

        def started(future: Any) -> None:
            if future.exception() is not None:
                gone(future)
                return
            self.pids[taskmanager_id], version = future.result()
            ready(version)
            actor.live.remote().future().add_done_callback(gone)

        actor.register.remote().future().add_done_callback(started)

    def stop_taskmanager(self, taskmanager_id: str) -> None:
        with self._lock:
            actor = self._actors.pop(taskmanager_id, None)
            self._gone.pop(taskmanager_id, None)
        self.pids.pop(taskmanager_id, None)
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def send(self, taskmanager_id: str, message: ControlMessage) -> None:
        with self._lock:
            actor, gone = self._actors.get(taskmanager_id), self._gone.get(taskmanager_id)
        if actor is None or gone is None:
            return

        def sent(future: Any) -> None:
            # Nobody knows whether it arrived, and repeated now it could overtake a later one.
            if future.exception() is not None:
                gone(future)

        peers = self._peers_of(message)
        actor.control.remote(dumps_data(message), peers).future().add_done_callback(sent)

    def _peers_of(self, message: ControlMessage) -> Any:
        """Handles of the TaskManagers it mentions, or a reference to them.

        After a shuffle all TaskManagers have the same neighbours. Ray takes about 10 µs to pickle
        a handle: seconds, if a thousand handles were pickled for each of a thousand.
        """
        match message:
            case Deploy(descriptors):
                mentioned = frozenset(
                    peer
                    for descriptor in descriptors
                    for edges in (descriptor.inputs, descriptor.outputs)
                    for edge in edges
                    for peer in edge.peers
                )
            case SendResults(results):
                mentioned = frozenset(peer for result in results for peer in result.peers)
            case _:
                return {}
        shared = self._shared.get(mentioned)
        if shared is None:
            shared = {peer: self._actors[peer] for peer in mentioned if peer in self._actors}
            if len(shared) > HANDLES_INLINE_MAX:
                shared = ray.put(shared)
                self._shared[mentioned] = shared
                if len(self._shared) > HANDLES_SHARED_MAX:
                    del self._shared[next(iter(self._shared))]
        return shared

    def shutdown(self) -> None:
        for taskmanager_id in list(self._actors):
            self.stop_taskmanager(taskmanager_id)


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "it ended"
    if isinstance(error, ray.exceptions.ActorDiedError):
        return "its process died"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]


@ray.remote(
    num_cpus=0,
    max_restarts=-1,
    max_task_retries=0,
    concurrency_groups={"control": 4, "reports": 1},
)
class JobManagerActor:
    """Thin: see ``jobmanager.job_manager``."""

    def __init__(
        self, job_id: str, job_graph: bytes, heartbeat_ms: int, cpus: float, sys_path: list[str]
    ) -> None:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, force=True)
        self._cluster = RayCluster(heartbeat_ms, cpus, sys_path)
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._manager = JobManager(
            job_id, JobGraph.from_bytes(job_graph), self._cluster, restarted
        )
        self._released = threading.Event()
        # Begun here and not on request: a restarted actor gets no request.
        self._manager.start()
        threading.Thread(target=self._leave_at_end, name="linger", daemon=True).start()

    def _leave_at_end(self) -> None:
        self._manager.ended.wait()
        self._released.wait(LINGER_S)
        # Who waits for the job has released it, while who has stopped it may not know yet.
        deadline = time.monotonic() + ANSWERS_S
        while self._manager.owes_answers and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.1)  # let the answer to `release` out
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    @ray.method(concurrency_group="reports")
    def report(self, payload: bytes) -> None:
        for report in loads_data(payload):
            self._manager.report(report)

    @ray.method(concurrency_group="control")
    def info(self) -> JobInfo:
        return self._manager.info()

    @ray.method(concurrency_group="control")
    def fetch(self, outbox_id: int, taken: int) -> Outgoing:
        return self._manager.fetch(outbox_id, taken)

    @ray.method(concurrency_group="control")
    def cancel(self) -> None:
        self._manager.cancel()

    @ray.method(concurrency_group="control")
    def request(self, request: ClientRequest) -> None:
        self._manager.request(request)

    @ray.method(concurrency_group="control")
    def answer(self, request_id: str) -> Answer | None:
        return self._manager.answer(request_id)

    @ray.method(concurrency_group="control")
    def release(self) -> None:
        """The client has the result: no need to linger."""
        self._released.set()

    @ray.method(concurrency_group="control")
    def pids(self) -> dict[str, int]:
        """Process ids of this actor ("jobmanager") and its TaskManagers, for chaos tests."""
        return {"jobmanager": os.getpid(), **self._cluster.pids}
