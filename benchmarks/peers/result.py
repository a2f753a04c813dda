"""What a peer's script hands back. Runs with the peer's Python, so it needs nothing else."""

import ctypes
import json
import os
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """Processes whose parent ends become children of this one, so that their CPU time is seen.

    Call it before any are started. PyFlink's workers outlive the shells that start them.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def write(file, seconds, answer):
    """``seconds`` of the job and its answer, with the CPU seconds of this process and those below.

    Call it when the job is over. Processes that have ended are counted if their parents have waited
    for them, or if nobody has.
    """
    values = {"seconds": seconds, "cpu_seconds": _cpu_seconds(), "answer": answer}
    Path(file).write_text(json.dumps(values))


def _cpu_seconds():
    children, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue  # it has just ended
        # After the name, in parentheses: state, parent, ..., and as the 12th to 15th the ticks of
        # user and system, its own and those of children that it has waited for.
        fields = text.rpartition(")")[2].split()
        pid = int(text.partition(" ")[0])
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = sum(map(int, fields[11:15]))
    total, todo = 0, [os.getpid()]
    while todo:
        pid = todo.pop()
        total += ticks.get(pid, 0)
        todo += children.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")
