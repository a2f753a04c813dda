"""What Ray charges for a TaskManager and a message to it: constants of docs/scaling.md too."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

import ray

from benchmarks.harness import wait_for
from benchmarks.jobs import memory_mb
from benchmarks.scaling_constants import Constant
from dataflow.common.codec import dumps_data
from jobmanager.cluster import connect
from taskmanager.actor import TaskManagerActor
from taskmanager.elements import Attempt
from taskmanager.messages import AbortCheckpoint, TaskId

TASKMANAGERS = 4
CALLS = 2_000
HANDLES = 200
NEVER_MS = 1_000_000_000
NAME = "scaling-benchmark"
PAYLOAD = dumps_data(AbortCheckpoint((TaskId("vertex", 0),), Attempt(1, 1), 1))
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def constants_of_ray() -> list[Constant]:
    """TaskManagers of their own, without tasks, that are gone afterwards."""
    connect(TASKMANAGERS)
    began = time.monotonic()
    actors = [
        cast(Any, TaskManagerActor)
        .options(name=f"{NAME}-{n}", num_cpus=0)
        .remote(f"tm-{n}", None, NEVER_MS, [])
        for n in range(TASKMANAGERS)
    ]
    try:
        pids = [pid for pid, _ in ray.get([actor.register.remote() for actor in actors])]
        seconds = time.monotonic() - began
        calls = _cpu_per_call(actors[0], pids[0], CALLS, {})
        # Handles that are one object would be pickled once.
        handles = {f"tm-{n}": ray.get_actor(f"{NAME}-{n % TASKMANAGERS}") for n in range(HANDLES)}
        with_handles = _cpu_per_call(actors[0], pids[0], 20, handles)
        return [
            Constant("a TaskManager starts, of four at once", seconds, "s"),
            Constant("a TaskManager without tasks, resident", memory_mb(pids[0]), "MB"),
            Constant("a control message, CPU of the sender", calls[0], "µs"),
            Constant("a control message, CPU of the receiver", calls[1], "µs"),
            Constant(
                "a peer in a deployment, CPU of the sender",
                (with_handles[0] - calls[0]) / HANDLES,
                "µs",
            ),
            Constant(
                "a peer in a deployment, CPU of the receiver",
                (with_handles[1] - calls[1]) / HANDLES,
                "µs",
            ),
        ]
    finally:
        for actor in actors:
            ray.kill(actor)


def _cpu_per_call(actor: Any, pid: int, count: int, peers: Any) -> tuple[float, float]:
    """Microseconds of all threads of the sender, which is this process, and of the receiver."""
    left = [count]

    def sent(future: Any) -> None:
        future.result()
        left[0] -= 1

    ray.get(actor.control.remote(PAYLOAD, peers))
    own, theirs = time.process_time(), _cpu_seconds(pid)
    for _ in range(count):
        actor.control.remote(PAYLOAD, peers).future().add_done_callback(sent)
    wait_for("every answer", lambda: left[0] == 0, 120)
    return (
        1e6 * (time.process_time() - own) / count,
        1e6 * (_cpu_seconds(pid) - theirs) / count,
    )


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
