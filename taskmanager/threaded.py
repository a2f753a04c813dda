"""A TaskManager on threads: one per task, a few for blocking I/O, one each for delays and
for coroutines.

Used inside the Ray actor and by the in-process cluster; only the transport and the way reports
travel differ.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.filesystem import parse
from state.checkpoint_store import CheckpointStore
from state.local_copies import LocalCopies
from state.local_folder import LocalFolder
from taskmanager.channel import ChannelProtocolError
from taskmanager.event_loop import EventLoopThread
from taskmanager.messages import (
    ControlMessage,
    DataMessage,
    Feedback,
    Heartbeat,
    Report,
    TaskDeploymentDescriptor,
)
from taskmanager.processing_time import ProcessingTime
from taskmanager.result_partition import Transport
from taskmanager.task import Task
from taskmanager.task_executor import TaskExecutor

logger = logging.getLogger(__name__)

IO_THREADS = 8
LOOK_AGAIN_MS = 1_000
YOUNG_OBJECTS_MAX = 100_000


class ThreadedTaskManager:
    """Implements ``TaskServices`` with real threads and clocks."""

    def __init__(
        self, taskmanager_id: str, transport: Transport, report: Callable[[Report], None]
    ) -> None:
        tune_interpreter()
        self.transport = transport
        self.report = report
        self.processing_time = ProcessingTime(time.time_ns, _monotonic_ns)
        self.latency_clock = time.time_ns
        self.executor = TaskExecutor(taskmanager_id, self, self._launch)
        self._io = ThreadPoolExecutor(IO_THREADS, thread_name_prefix=f"{taskmanager_id}-io")
        self._delays = _DelayThread(f"{taskmanager_id}-delays")
        self._event_loop = EventLoopThread(f"{taskmanager_id}-coroutines")
        self.run_coroutine = self._event_loop.run
        self._wakes: dict[Task, _WakeUp] = {}
        self._stores: dict[tuple[str, str], CheckpointStore] = {}
        self._local_folders: list[LocalFolder] = []
        self._lock = threading.Lock()

    # ---------------------------------------------------------------------- TaskServices

    def run_async(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        delay_ms: int = 0,
    ) -> None:
        caller = threading.current_thread().name.removesuffix(" I/O")

        def run() -> None:
            # Log lines of the work name the task it is done for.
            threading.current_thread().name = f"{caller} I/O"
            try:
                result = work()
            except BaseException as error:
                done(None, error)
            else:
                done(result, None)

        def submit() -> None:
            try:
                self._io.submit(run)
            except RuntimeError as error:  # the pool is shut down
                done(None, error)

        if delay_ms > 0:
            self._delays.call_later(delay_ms / 1000, submit)
        else:
            submit()

    def checkpoint_store(self, descriptor: TaskDeploymentDescriptor) -> CheckpointStore | None:
        root = descriptor.configuration.get("execution.checkpointing.dir")
        if root is None or "execution.checkpointing.interval" not in descriptor.configuration:
            return None
        with self._lock:
            key = (root, descriptor.job_id)
            if key not in self._stores:
                store = self._stores[key] = open_store(root, descriptor.job_id)
                store.local = self._local_copies(descriptor)
            return self._stores[key]

    def _local_copies(self, descriptor: TaskDeploymentDescriptor) -> LocalCopies | None:
        configuration = Configuration(descriptor.configuration)
        if not configuration.get(ConfigOptions.LOCAL_BACKUP):
            return None
        option = ConfigOptions.LOCAL_BACKUP_DIR
        folder = LocalFolder(configuration.get(option), f"copies-{descriptor.job_id}", option.key)
        self._local_folders.append(folder)
        return LocalCopies(folder.path)

    def state_folder(self, folder: str) -> CheckpointStore:
        return CheckpointStore.in_folder(*parse(folder), signing_key())

    def wake_up(self, task: Task) -> None:
        wake = self._wakes.get(task)
        if wake is not None:
            wake.set()

    # ------------------------------------------------------------------------- messages

    def handle(self, message: ControlMessage) -> None:
        self.executor.handle(message)

    def deliver(self, messages: list[DataMessage]) -> list[Feedback]:
        try:
            return self.executor.deliver(messages)
        except ChannelProtocolError as error:
            self.executor.fail_attempt(messages[0].attempt, error)
            return []

    def on_feedback(self, feedback: list[Feedback]) -> None:
        self.executor.on_feedback(feedback)

    def heartbeat(self) -> Heartbeat:
        return self.executor.heartbeat()

    def shutdown(self) -> None:
        """Cancel what runs and end the threads; waits a little for the tasks."""
        for task in self.executor.tasks():
            task.post(task.cancel)
        deadline = time.monotonic() + 5
        for task in self.executor.tasks():
            while not task.state.ended and time.monotonic() < deadline:
                threading.Event().wait(0.005)
        self.executor.close()
        for folder in self._local_folders:
            folder.remove()
        self._delays.stop()
        self._event_loop.stop()
        self._io.shutdown(wait=False, cancel_futures=True)

    # --------------------------------------------------------------------------- driving

    def _launch(self, task: Task) -> None:
        self._wakes[task] = _WakeUp()
        name = f"{task.descriptor.job_name} · {task.name}"  # every log line carries it
        threading.Thread(target=self._drive, args=(task,), name=name, daemon=True).start()

    def _drive(self, task: Task) -> None:
        wake = self._wakes[task]
        try:
            while not task.state.ended:
                # Cleared before the step, so that a wake-up during it is not lost.
                wake.clear()
                if task.step() or task.state.ended:
                    continue
                until = task.wait_until()
                if until is None:
                    wake.wait()
                else:
                    # Not longer: the wait may not count the time for which a machine sleeps.
                    wait_ms = min(max(0, until - self.processing_time()), LOOK_AGAIN_MS)
                    wake.wait(wait_ms / 1000)
        except BaseException as error:
            task.fail(error)  # without its thread it would never end
        finally:
            del self._wakes[task]


def tune_interpreter() -> None:
    """Set the process up for tasks on threads."""
    # Task threads share the interpreter lock: the default of 5 ms is felt in every hand-over.
    sys.setswitchinterval(0.001)
    # Records live in batches of thousands. With the default of 700 the collector of reference
    # cycles looks at each of them, alive as they are, and takes an eighth of all time; of
    # 100,000 new objects hardly one is left that it must look at.
    gc.set_threshold(YOUNG_OBJECTS_MAX, 10, 10)


def open_store(root: str, job_id: str) -> CheckpointStore:
    """The checkpoint store of a job; manifests are signed if DATAFLOW_HMAC_KEY is set."""
    file_system, path = parse(root)
    return CheckpointStore(file_system, path, job_id, signing_key())


def signing_key() -> bytes | None:
    """What DATAFLOW_HMAC_KEY says."""
    key = os.environ.get("DATAFLOW_HMAC_KEY")
    return key.encode() if key else None


def _monotonic_ns() -> int:
    """Where the system can tell, with the time for which the machine was suspended."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic_ns() if boot_time is None else time.clock_gettime_ns(boot_time)


class _WakeUp:
    """A ``threading.Event`` for one waiting thread, at a fraction of its cost."""

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """End the wait, or the next one."""
        if self._tokens.empty():  # several threads may see that: a token each, no more
            self._tokens.put(None)

    def clear(self) -> None:
        while not self._tokens.empty():
            self._tokens.get()

    def wait(self, timeout_s: float | None = None) -> None:
        with suppress(queue.Empty):
            self._tokens.get(timeout=timeout_s)


class _DelayThread:
    """Calls things later, on one thread."""

    def __init__(self, name: str) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopped = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        with self._condition:
            heapq.heappush(
                self._heap, (time.monotonic() + seconds, next(self._numbers), call)
            )
            self._condition.notify()

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._stopped and (
                    not self._heap or self._heap[0][0] > time.monotonic()
                ):
                    timeout = self._heap[0][0] - time.monotonic() if self._heap else None
                    self._condition.wait(timeout)
                if self._stopped:
                    return
                call = heapq.heappop(self._heap)[2]
            call()
