"""The ledger job over two nodes, one of which is lost: ``two_nodes.py STORAGE OUTPUT RECORDS``."""

from __future__ import annotations

import sys

import ray
from ray.cluster_utils import Cluster

from jobmanager.actor import NAMESPACE
from tests.integration.ledger_job import Ledger, build
from tests.integration.running import RunningJob, environment


def nodes_of_taskmanagers() -> set[str]:
    from ray._private.state import actors

    return {
        str(actor["Address"]["NodeID"])
        for actor in actors().values()
        if actor["ActorClassName"] == "TaskManagerActor" and actor["State"] == "ALIVE"
    }


def main() -> None:
    storage, output, records = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    workers = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
    try:
        env = environment(storage)
        build(env, Ledger(int(records), rate=2_000), output)
        job = RunningJob.submit(env, "two-nodes")
        job.checkpointed()
        print(f"TaskManagers on {len(nodes_of_taskmanagers())} nodes")
        cluster.remove_node(workers[0], allow_graceful=False)
        # A node's death is noticed by missing heartbeats, ours or Ray's.
        info = job.wait_for(lambda info: info.restored_checkpoint is not None, "recovery", 60)
        # The JobManager may have been on that node too; its successor knows nothing of the loss.
        print(f"recovered: generation {info.generation}, {info.restarts} restarts")
        job.finished(90)
        print(f"TaskManagers on {len(nodes_of_taskmanagers() or {''})} nodes")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
