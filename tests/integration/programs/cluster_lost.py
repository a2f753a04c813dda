"""Runs the ledger job on a Ray of its own: ``cluster_lost.py STORAGE OUTPUT RECORDS [lose]``.

With ``lose`` every process of that Ray is killed after some checkpoints.
"""

from __future__ import annotations

import sys

import ray

from tests.integration.ledger_job import Ledger, build
from tests.integration.running import RunningJob, environment


def main() -> None:
    storage, output, records = sys.argv[1:4]
    env = environment(storage)
    build(env, Ledger(int(records), rate=2_000), output)
    job = RunningJob.submit(env, "lost")
    before = job.checkpointed(more=3)
    if sys.argv[4:] == ["lose"]:
        node = ray._private.worker._global_node
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        print("lost")
        return
    for error in job.finished(90).errors:
        print("restarted:", error.splitlines()[-1])
    print(f"finished, was restored from {before.restored_checkpoint}")


if __name__ == "__main__":
    main()
