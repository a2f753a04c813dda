"""scaling: what the JobManager does for 10, 100 and 1,000 subtasks, and the constants of a task.

The JobMaster, the coordinator and the store protocol run without Ray, in a simulated cluster (see
``scaling_cluster``). What the growth means is in docs/scaling.md.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks.harness import Options, Report, progress
from benchmarks.measure import expect_equal, render_table
from benchmarks.scaling_cluster import HEARTBEAT_MS, SimulatedCluster
from benchmarks.scaling_constants import constants
from dataflow.common.keys import default_max_parallelism
from dataflow.graph.job_graph import (
    JobEdge,
    JobGraph,
    JobVertex,
    OperatorNode,
    Partitioning,
    Target,
)

SIZES = (10, 100, 1_000)
WARM_UP = 4  # checkpoints until each new one makes an old one go
FUNCTION = bytes(4_000)  # about what a user's pickled function takes


# ---------------------------------------------------------------------------------- the shapes


def _vertex(name: str, parallelism: int, out: str | None) -> JobVertex:
    node = OperatorNode(name, name, "process", FUNCTION, (Target(None, edge=out),) if out else ())
    # A group of its own: no two tasks share a slot, so there is a TaskManager for each.
    return JobVertex(
        name, name, parallelism, default_max_parallelism(parallelism), (node,), name
    )


def pipeline(tasks: int) -> JobGraph:
    """A quarter of all tasks sources, half keyed, a quarter sinks; all-to-all between them."""
    quarter = tasks // 4
    return JobGraph(
        "pipeline",
        (
            _vertex("source", quarter, "a"),
            _vertex("keyed", tasks - 2 * quarter, "b"),
            _vertex("sink", quarter, None),
        ),
        (
            JobEdge("a", "source", "keyed", Partitioning.HASH, 0, FUNCTION),
            JobEdge("b", "keyed", "sink", Partitioning.REBALANCE),
        ),
    )


def shuffle(tasks: int) -> JobGraph:
    """Half of all tasks send to every one of the other half."""
    return JobGraph(
        "shuffle",
        (_vertex("source", tasks // 2, "a"), _vertex("sink", tasks // 2, None)),
        (JobEdge("a", "source", "sink", Partitioning.HASH, 0, FUNCTION),),
    )


def regions(tasks: int) -> JobGraph:
    """As many pipelines of two tasks, each of which restarts alone."""
    return JobGraph(
        "regions",
        (_vertex("source", tasks // 2, "a"), _vertex("sink", tasks // 2, None)),
        (JobEdge("a", "source", "sink", Partitioning.FORWARD),),
    )


SHAPES: dict[str, Callable[[int], JobGraph]] = {
    "pipeline": pipeline,
    "shuffle": shuffle,
    "regions": regions,
}


def channels(graph: JobGraph) -> int:
    """The sum over all edges of upstream by downstream subtasks, or of one each."""
    return sum(
        graph.vertex(e.source).parallelism
        * (1 if e.partitioning is Partitioning.FORWARD else graph.vertex(e.target).parallelism)
        for e in graph.edges
    )


# ------------------------------------------------------------------------------ one simulation


@dataclass(frozen=True)
class Growth:
    """What one size costs the JobManager. Milliseconds are of CPU."""

    shape: str
    tasks: int
    taskmanagers: int
    channels: int
    graph_ms: float
    deploy_ms: float  # from the start to RUNNING
    deploy_bytes: int
    deploy_bytes_per_task: float
    checkpoint_ms: float
    checkpoint_master_ms: float  # the JobMaster: trigger, acknowledgements, commits
    checkpoint_wire_ms: float  # encoding and decoding of its messages
    checkpoint_store_ms: float  # manifest, epoch record, marker, collection of an old checkpoint
    checkpoint_messages: int
    checkpoint_bytes_sent: int
    checkpoint_requests: dict[str, int]  # to the store, without the upload of each task
    manifest_bytes: int
    heartbeat_round_ms: float  # one heartbeat of every TaskManager
    recovery_ms: float  # from the loss of a TaskManager to RUNNING
    recovery_bytes: int


def simulate(graph: JobGraph, checkpoints: int = 3, interval_ms: int = 5_000) -> Growth:
    """Deploy, take checkpoints, lose a TaskManager, restore, and take one more.

    Raises WrongAnswer unless the checkpoints hold what the tasks had, and all tasks that restart
    have it again.
    """
    cluster = SimulatedCluster(graph, interval_ms)
    cluster.run_until_running()
    deployed = cluster.take_costs()
    cluster.checkpoint(WARM_UP)
    cluster.take_costs()
    began = cluster.now
    cluster.checkpoint(checkpoints)
    running = cluster.take_costs()
    rounds = (cluster.now - began) / HEARTBEAT_MS
    cluster.verify()
    cluster.take_costs()
    cluster.kill()
    cluster.run_until_running()
    recovered = cluster.take_costs()
    tasks = len(cluster.master.graph.tasks)
    region = len(cluster.master.graph.regions[0])
    expect_equal("restored tasks", cluster.restored, region)
    expect_equal("restored checkpoint", cluster.master.restored_checkpoint, WARM_UP + checkpoints)
    cluster.checkpoint(1)
    cluster.verify()
    assert cluster.master.coordinator is not None
    expect_equal("failed checkpoints", cluster.master.coordinator.statistics.failed, 0)
    master, wire, store = (
        running.cpu_of(part) / checkpoints for part in ("handle", "wire", "store")
    )
    return Growth(
        shape=graph.name,
        tasks=tasks,
        taskmanagers=cluster.taskmanagers,
        channels=channels(graph),
        graph_ms=deployed.cpu_of("graph"),
        deploy_ms=deployed.cpu_of("handle", "wire", "store"),
        deploy_bytes=deployed.sent_bytes["Deploy"],
        deploy_bytes_per_task=deployed.sent_bytes["Deploy"] / tasks,
        checkpoint_ms=master + wire + store,
        checkpoint_master_ms=master,
        checkpoint_wire_ms=wire,
        checkpoint_store_ms=store,
        checkpoint_messages=running.messages // checkpoints,
        checkpoint_bytes_sent=sum(running.sent_bytes.values()) // checkpoints,
        checkpoint_requests={
            kind: round(count / checkpoints) for kind, count in sorted(running.requests.items())
        },
        manifest_bytes=cluster.manifest_bytes,
        heartbeat_round_ms=running.cpu_of_heartbeats / rounds,
        recovery_ms=recovered.cpu_of(),
        recovery_bytes=recovered.sent_bytes["Deploy"],
    )



def memory(graph: JobGraph) -> dict[str, float]:
    """MB of the JobMaster alone: at rest, at most while it deploys, and with a checkpoint."""
    tracemalloc.start()
    try:
        cluster = SimulatedCluster(graph)
        at_start = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        cluster.run_until_running()
        peak = tracemalloc.get_traced_memory()[1]
        cluster.checkpoint(1)
        running = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return {"graph": at_start / 1e6, "deploying": peak / 1e6, "running": running / 1e6}


# ---------------------------------------------------------------------------------- the report

HEADINGS = (
    *("shape, tasks", "channels", "graph ms", "deploy ms", "B/task"),
    *("ckpt ms", "master", "wire", "store", "messages", "requests", "manifest KB"),
    *("heartbeats ms", "recovery ms"),
)


def row_of(growth: Growth) -> list[str]:
    g = growth
    times = (g.checkpoint_ms, g.checkpoint_master_ms, g.checkpoint_wire_ms, g.checkpoint_store_ms)
    return [
        f"{g.shape}, {g.tasks:,}",
        f"{g.channels:,}",
        *(f"{ms:,.0f}" for ms in (g.graph_ms, g.deploy_ms)),
        f"{g.deploy_bytes_per_task:,.0f}",
        *(f"{ms:,.1f}" for ms in times),
        f"{g.checkpoint_messages:,}",
        f"{sum(g.checkpoint_requests.values()):,}",
        f"{g.manifest_bytes / 1e3:,.0f}",
        f"{g.heartbeat_round_ms:,.1f}",
        f"{g.recovery_ms:,.0f}",
    ]


def run(options: Options) -> Report:
    from benchmarks.scaling_ray import constants_of_ray  # the simulation needs no Ray

    report = Report(HEADINGS)
    found = []
    for name, shape in SHAPES.items():
        for tasks in SIZES:
            progress(f"{name}, {tasks:,} tasks")
            found.append(simulate(shape(tasks)))
            report.rows.append(row_of(found[-1]))
    progress("memory")
    used = {name: memory(shape(SIZES[-1])) for name, shape in SHAPES.items()}
    progress("constants")
    measured = [*constants(), *constants_of_ray()]
    report.notes += [
        "",
        f"memory of the JobMaster with {SIZES[-1]:,} tasks, MB: "
        + "; ".join(
            f"{name} " + ", ".join(f"{what} {mb:.0f}" for what, mb in parts.items())
            for name, parts in used.items()
        ),
        "",
        render_table(("constant", "value"), [(c.name, c.text) for c in measured]),
    ]
    report.data = {
        "growth": [asdict(growth) for growth in found],
        "memory_mb": used,
        "constants": {c.name: c.value for c in measured},
    }
    return report
