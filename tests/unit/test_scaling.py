"""How the JobManager's work grows with the tasks of a job: counts, not times."""

from __future__ import annotations

import pytest

from benchmarks.measure import WrongAnswer
from benchmarks.scaling import FUNCTION, SHAPES, channels, pipeline, row_of, shuffle, simulate
from benchmarks.scaling_cluster import SimulatedCluster
from dataflow.graph.job_graph import Partitioning
from taskmanager.messages import RestoreDescriptor


def test_a_job_of_1000_subtasks_deploys_checkpoints_and_restores_at_linear_cost() -> None:
    """Tenfold tasks and a hundredfold channels; every restored position is verified."""
    small = simulate(pipeline(100), checkpoints=1, interval_ms=1_000)
    large = simulate(pipeline(1_000), checkpoints=1, interval_ms=1_000)
    assert (small.tasks, large.tasks) == (100, 1_000)
    assert (small.channels, large.channels) == (2 * 25 * 50, 250_000)
    assert small.taskmanagers == 100
    assert large.taskmanagers == 1_000
    # Trigger to sources; acknowledgement, commit and its confirmation for each task.
    assert small.checkpoint_messages == 25 + 3 * 100
    assert large.checkpoint_messages == 250 + 3 * 1_000
    assert large.checkpoint_bytes_sent < 11 * small.checkpoint_bytes_sent
    assert large.manifest_bytes < 11 * small.manifest_bytes
    assert large.manifest_bytes < 400 * large.tasks
    # The channels of a task are written down as the names of its neighbours and no more; state
    # that it restores as its own part and no more.
    ends = 2 * large.channels / large.tasks
    assert large.deploy_bytes_per_task < 2 * len(FUNCTION) + 2_000 + 16 * ends
    assert large.recovery_bytes < large.deploy_bytes + 500 * large.tasks
    # Whatever the tasks, but for listings by the thousand.
    assert sum(small.checkpoint_requests.values()) < 25
    assert sum(large.checkpoint_requests.values()) < 30


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_has_its_tasks_and_a_row_in_the_table(shape: str) -> None:
    graph = SHAPES[shape](20)
    growth = simulate(graph, checkpoints=1, interval_ms=1_000)
    assert growth.tasks == growth.taskmanagers == sum(v.parallelism for v in graph.vertices) == 20
    assert row_of(growth)[0] == f"{shape}, 20"


def test_channels_are_counted_as_the_product_unless_they_go_straight() -> None:
    assert channels(shuffle(20)) == 100
    assert channels(pipeline(20)) == 2 * 5 * 10
    assert channels(SHAPES["regions"](20)) == 10
    assert SHAPES["regions"](20).edges[0].partitioning is Partitioning.FORWARD


def test_a_task_that_restores_another_position_is_noticed() -> None:
    cluster = SimulatedCluster(shuffle(4), interval_ms=1_000)
    cluster.run_until_running()
    cluster.checkpoint(1)
    cluster.verify()
    task = next(iter(cluster.positions[1]))
    cluster.positions[1][task] += 1
    with pytest.raises(WrongAnswer, match="positions"):
        cluster.verify()
    cluster.kill()
    with pytest.raises(WrongAnswer, match="restored position"):
        cluster.run_until_running()


def test_a_restore_that_mixes_up_its_parts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(part: RestoreDescriptor, parallelism: int, subtask: int) -> RestoreDescriptor:
        other = part.handles[(subtask + 1) % parallelism][1]
        return RestoreDescriptor(part.checkpoint_id, part.parallelism, ((subtask, other),))

    monkeypatch.setattr("jobmanager.deployment.restore_of_subtask", swapped)
    with pytest.raises(WrongAnswer, match="restored position"):
        simulate(shuffle(4), checkpoints=1, interval_ms=1_000)
