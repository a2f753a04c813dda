"""The threads that drive tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from taskmanager.task import TaskState
from taskmanager.threaded import ThreadedTaskManager


@pytest.fixture
def taskmanager() -> Iterator[ThreadedTaskManager]:
    taskmanager = ThreadedTaskManager("tm", cast(Any, None), lambda report: None)
    yield taskmanager
    taskmanager.shutdown()


class EndingTask:
    """Ends in its first step, as a task does that fails: nobody will wake it again."""

    name = "map (1/1)"
    descriptor = SimpleNamespace(job_name="job of the thread test")
    state = TaskState.RUNNING

    def step(self) -> bool:
        self.state = TaskState.FAILED
        return False

    def wait_until(self) -> int | None:
        return None


def test_the_thread_of_a_task_that_failed_ends_with_it(taskmanager: ThreadedTaskManager) -> None:
    taskmanager._launch(cast(Any, EndingTask()))
    for thread in threading.enumerate():
        if thread.name.startswith("job of the thread test"):
            thread.join(timeout=10)
            assert not thread.is_alive()
    assert taskmanager._wakes == {}


class FarTask(EndingTask):
    """Waits for a time that no clock of the system's can be set to."""

    steps = 0
    error: BaseException | None = None

    def step(self) -> bool:
        self.steps += 1
        if self.steps == 3:
            self.state = TaskState.FINISHED
        return False

    def wait_until(self) -> int | None:
        return 2**63 - 1

    def fail(self, error: BaseException) -> None:
        self.error, self.state = error, TaskState.FAILED


def test_a_timer_in_the_far_future_does_not_end_the_thread(
    taskmanager: ThreadedTaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskmanager.threaded.LOOK_AGAIN_MS", 1)
    task = FarTask()
    taskmanager._wakes[cast(Any, task)] = threading.Event()
    taskmanager._drive(cast(Any, task))
    assert (task.steps, task.error) == (3, None)


def test_a_thread_that_breaks_fails_its_task(taskmanager: ThreadedTaskManager) -> None:
    task = FarTask()
    task.wait_until = lambda: "never"  # type: ignore[method-assign,assignment,return-value]
    taskmanager._wakes[cast(Any, task)] = threading.Event()
    taskmanager._drive(cast(Any, task))
    assert task.state is TaskState.FAILED
    assert isinstance(task.error, TypeError)


def test_background_work_runs_under_the_name_of_who_asked_for_it(
    taskmanager: ThreadedTaskManager,
) -> None:
    names: list[str] = []
    done = threading.Event()
    taskmanager.run_async(
        lambda: names.append(threading.current_thread().name), lambda result, error: done.set()
    )
    assert done.wait(10)
    assert names == [f"{threading.current_thread().name} I/O"]


def test_work_that_raises_is_told_to_who_asked_for_it(taskmanager: ThreadedTaskManager) -> None:
    errors: list[BaseException | None] = []
    done = threading.Event()

    def work() -> None:
        raise SystemExit(3)

    def told(result: object, error: BaseException | None) -> None:
        errors.append(error)
        done.set()

    taskmanager.run_async(work, told, delay_ms=1)
    assert done.wait(10)
    assert isinstance(errors[0], SystemExit)
