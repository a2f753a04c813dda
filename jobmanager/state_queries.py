"""Queryable state: which task is asked what its state holds for a key, and what it has answered.

Beside the JobMaster, which decides about the job: a question changes nothing, and any number of
them may be under way. One that is lost, with its TaskManager, is never answered; who asks gives up
after a while.
"""

from __future__ import annotations

from collections.abc import Callable

from dataflow.common.job_status import JobStatus
from dataflow.common.keys import subtask_for
from jobmanager.job_master import JobMaster
from jobmanager.requests import Answer, AskState
from taskmanager.messages import ControlMessage, QueryState, StateQueried, TaskId


def ask(
    request: AskState, master: JobMaster | None, send: Callable[[str, ControlMessage], None]
) -> Answer | None:
    """Ask the task that owns the key; an answer if none is to be expected."""
    if master is None or master.status is not JobStatus.RUNNING:
        status = "CREATED" if master is None else master.status.name
        return Answer(request.request_id, error=f"it is {status}, and only a RUNNING job answers")
    vertices = master.graph.job_graph.vertices
    for vertex in vertices:
        if any(operator.uid == request.uid for operator in vertex.operators):
            group = request.key_hash % vertex.max_parallelism
            subtask = subtask_for(group, vertex.max_parallelism, vertex.parallelism)
            task = TaskId(vertex.id, subtask)
            location = master.location(task)
            if location is None:
                return Answer(request.request_id, error="the key's task has no TaskManager now")
            send(location, QueryState(task, request.request_id, request.uid, request.question))
            return None
    uids = sorted(
        operator.uid
        for vertex in vertices
        for operator in vertex.operators
        if not operator.generated_uid
    )
    there = ", ".join(map(repr, uids)) or "none that the program has set"
    error = f"it has no operator uid {request.uid!r}; it has {there}"
    return Answer(request.request_id, error=error)


def answered(report: StateQueried) -> Answer:
    """What the task has said."""
    if report.error is not None:
        return Answer(report.request_id, error=report.error)
    return Answer(report.request_id, result="", payload=report.value)
