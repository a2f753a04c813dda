"""keyed_reduce on Bytewax; run by ``benchmarks.peers.on_bytewax`` with Bytewax's own Python.

Each of the workers reads its part of the numbers. RECORDS says how many there are in all, RESULTS
names the folder into which every worker writes what its sink saw.
"""

import json
import os
from collections import deque
from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

BATCH = 1_000
# Records at the end of a sink that surely hold every key: more than benchmarks/keyed_reduce.py
# needs, because Bytewax's stateful step sorts what it has gathered by key.
TAIL = 200_000


class Part(StatelessSourcePartition):
    def __init__(self, start, end):
        self._next, self._end = start, end

    def next_batch(self):
        if self._next >= self._end:
            raise StopIteration
        start, self._next = self._next, min(self._next + BATCH, self._end)
        return list(range(start, self._next))


class Numbers(DynamicSource):
    def build(self, step_id, worker_index, worker_count):
        records = int(os.environ["RECORDS"])
        start, end = (records * i // worker_count for i in (worker_index, worker_index + 1))
        return Part(start, end)


class Tail(StatelessSinkPartition):
    def __init__(self, worker_index):
        self._file = Path(os.environ["RESULTS"]) / f"{worker_index}.json"
        self._count = 0
        self._held = 0
        self._batches = deque()

    def write_batch(self, items):
        self._count += len(items)
        self._held += len(items)
        self._batches.append(items)
        while self._held - len(self._batches[0]) >= TAIL:
            self._held -= len(self._batches.popleft())

    def close(self):
        sums = {}
        for items in self._batches:
            sums.update(items)
        self._file.write_text(json.dumps({"count": self._count, "sums": list(sums.items())}))


class TailSink(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Tail(worker_index)


def add(total, value):
    total = value if total is None else total + value
    return total, total


flow = Dataflow("keyed_reduce")
numbers = op.input("numbers", flow, Numbers())
pairs = op.map("pair", numbers, lambda x: (str((x * 7919) % 503), (x * 31) % 10007))
sums = op.stateful_map("sum", pairs, add)
op.output("discard", sums, TailSink())
