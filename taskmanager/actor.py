"""The TaskManager as a Ray actor, and the transport between TaskManagers.

The actor's methods only hand over: data goes to the input gates, control messages become mail.
Everything travels as one bytes argument, which Ray passes on without pickling it again. Ray's
calls are at most once and may fail after having run; our messages are numbered, so a call that
*may* have failed is simply repeated.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import ray

from dataflow import __version__
from dataflow.common.codec import dumps_data, loads_data
from taskmanager.elements import Attempt, ChannelId
from taskmanager.messages import ControlMessage, DataMessage, Feedback, PeerUnreachable, Report
from taskmanager.threaded import ThreadedTaskManager

logger = logging.getLogger(__name__)

SEND_ATTEMPTS_MAX = 5
REPORTS_MAX = 10_000
REPORTS_PER_CALL_MAX = 500

LOG_FORMAT = "%(asctime)s %(levelname)s [%(threadName)s] %(name)s: %(message)s"


class RayTransport:
    """Actor calls to the peers' ``data`` concurrency group; same-actor messages skip Ray."""

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self._peers: dict[str, Any] = {}
        self.taskmanager: ThreadedTaskManager  # set once, right after construction

    def add_peers(self, peers: dict[str, Any]) -> None:
        self._peers.update(peers)

    def is_local(self, peer_id: str) -> bool:
        return peer_id == self._own_id

    def send(self, peer_id: str, messages: list[DataMessage], done: Callable[[], None]) -> None:
        if peer_id == self._own_id:
            self.taskmanager.on_feedback(self.taskmanager.deliver(messages))
            done()
            return
        attempt = messages[0].attempt
        payload = dumps_data(
            (
                tuple(attempt),
                [(tuple(m.channel), m.first, m.items, m.sizes) for m in messages],
            )
        )

        def delivered(answer: bytes) -> None:
            self.taskmanager.on_feedback(decode_feedback(answer))
            done()

        self._call(peer_id, "deliver", payload, messages[0], delivered, SEND_ATTEMPTS_MAX)

    def send_feedback(self, peer_id: str, feedback: list[Feedback]) -> None:
        if peer_id == self._own_id:
            self.taskmanager.on_feedback(feedback)
            return
        payload = encode_feedback(feedback)
        self._call(peer_id, "feedback", payload, feedback[0], lambda _: None, SEND_ATTEMPTS_MAX)

    def _call(
        self,
        peer_id: str,
        method: str,
        payload: bytes,
        message: DataMessage | Feedback,
        then: Callable[[bytes], None],
        attempts_left: int,
    ) -> None:
        peer = self._peers.get(peer_id)
        if peer is None:
            return  # of an older deployment; the attempt is over

        def completed(future: Any) -> None:
            error = future.exception()
            if error is None:
                then(future.result())
            elif isinstance(error, ray.exceptions.ActorDiedError):
                # The JobManager is told of the death by Ray and restarts what is affected.
                logger.info("TaskManager %s is gone", peer_id)
            elif attempts_left > 1:
                logger.info("%s cannot be reached: %s; again", peer_id, type(error).__name__)
                self._call(peer_id, method, payload, message, then, attempts_left - 1)
            else:
                self.taskmanager.report(
                    PeerUnreachable(self._own_id, peer_id, message.attempt, str(error)[:500])
                )

        getattr(peer, method).remote(payload).future().add_done_callback(completed)


def encode_feedback(feedback: list[Feedback]) -> bytes:
    return dumps_data(
        [(tuple(f.attempt), tuple(f.channel), f.consumed, f.demand) for f in feedback]
    )


def decode_feedback(payload: bytes) -> list[Feedback]:
    return [
        Feedback(Attempt(*attempt), ChannelId(*channel), consumed, demand)
        for attempt, channel, consumed, demand in loads_data(payload)
    ]


class _Reporter(threading.Thread):
    """Sends reports to the JobManager in order, as many per call as have gathered."""

    def __init__(self, job_manager: Any) -> None:
        super().__init__(name="reporter", daemon=True)
        self._job_manager = job_manager
        self._reports: queue.Queue[Report] = queue.Queue(REPORTS_MAX)

    def report(self, report: Report) -> None:
        self._reports.put(report)

    def run(self) -> None:
        while True:
            batch = [self._reports.get()]
            while len(batch) < REPORTS_PER_CALL_MAX and not self._reports.empty():
                batch.append(self._reports.get())
            payload = dumps_data(batch)
            for _ in range(SEND_ATTEMPTS_MAX):
                try:
                    ray.get(self._job_manager.report.remote(payload))
                    break
                except ray.exceptions.ActorDiedError:
                    break
                except ray.exceptions.RayError as error:
                    logger.info("the JobManager cannot be reached: %s", type(error).__name__)
            else:
                # Without its JobManager this TaskManager is a zombie.
                logger.error("the JobManager is gone: this TaskManager ends")
                os._exit(1)


@ray.remote(
    max_restarts=0,
    max_task_retries=0,
    enable_task_events=False,  # for each message? They would cost as much as the message
    concurrency_groups={"data": 1, "control": 1, "life": 1},
)
class TaskManagerActor:
    """Thin: see the module's text."""

    def __init__(
        self, taskmanager_id: str, job_manager: Any, heartbeat_ms: int, sys_path: list[str]
    ) -> None:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, force=True)
        sys.path.extend(path for path in sys_path if path not in sys.path)
        self._transport = RayTransport(taskmanager_id)
        self._reporter = _Reporter(job_manager)
        self._taskmanager = ThreadedTaskManager(
            taskmanager_id, self._transport, self._reporter.report
        )
        self._transport.taskmanager = self._taskmanager
        self._heartbeat_s = heartbeat_ms / 1000
        self._stopped = threading.Event()

    @ray.method(concurrency_group="control")
    def register(self) -> tuple[int, str]:
        """Once the actor is up: its process, and the version of this package on its node."""
        self._reporter.start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return os.getpid(), __version__

    @ray.method(concurrency_group="control")
    def control(self, payload: bytes, peers: dict[str, Any]) -> None:
        """A message of the JobManager, with handles of the TaskManagers it mentions."""
        self._transport.add_peers(peers)
        message: ControlMessage = loads_data(payload)
        self._taskmanager.handle(message)

    @ray.method(concurrency_group="data")
    def deliver(self, payload: bytes) -> bytes:
        """Elements for tasks here; answers what was consumed of their channels."""
        attempt_, channels = loads_data(payload)
        attempt = Attempt(*attempt_)
        messages = [
            DataMessage(attempt, ChannelId(*channel), first, items, sizes)
            for channel, first, items, sizes in channels
        ]
        return encode_feedback(self._taskmanager.deliver(messages))

    @ray.method(concurrency_group="data")
    def feedback(self, payload: bytes) -> bytes:
        """What tasks elsewhere consumed of what tasks here sent."""
        self._taskmanager.on_feedback(decode_feedback(payload))
        return b""

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Returns never: its failure tells the JobManager at once that the process is gone."""
        self._stopped.wait()

    def _beat(self) -> None:
        while not self._stopped.wait(self._heartbeat_s):
            self._reporter.report(self._taskmanager.heartbeat())
