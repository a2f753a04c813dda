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
