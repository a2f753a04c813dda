"""state: read-modify-write of keyed state on one slot, larger than the cache of Python objects.

A rolling reduce over keys in random order, ``(key, payload, count)`` per key, driven
as a task drives its operators: batches of 1,000 records, and a checkpoint every so many,
whose asynchronous part runs on a thread of its own. First every key is written once, then keys are
updated at random (``--keys-drawn``): all alike; by Zipf's law, the n-th most frequent key with a
share of 1/n; or ``changing``, from one percent of them, which is another one once each of these was
drawn ``--updates-each`` times on average. Judged by the number of updates that the state holds at
the end.

``per s of CPU`` is of the task's thread: what there would be on a machine that does nothing else.
``MB more at its peak`` is how much the process has grown: to be compared with what
``state.backend.rocksdb.memory.fixed-per-slot`` and ``.python-cache.memory`` allow.
``--plain`` measures a loop over the same RocksDB instead, with nothing around it: it gets a
thousand rows at once, unpickles, updates and pickles them, and writes them at once.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataflow.common.batch import RowBatch
from dataflow.common.codec import dumps_data, loads_data
from dataflow.common.keys import KeyGroupRange, key_group
from dataflow.datastream.functions import ReduceFunction
from dataflow.graph.specs import ReduceSpec
from state.rocksdb.database import Database, Settings
from state.rocksdb.encoding import encode_key, prefix_of
from state.snapshot import OperatorSnapshot
from taskmanager.operators.factory import create_operator

BATCH = 1_000
_SCATTER = 2_654_435_761  # prime: frequent keys are not neighbours
#: Payloads are cut out of it, so that they cannot be compressed.
NOISE = random.Random(1).randbytes(1 << 20)


class Count(ReduceFunction):
    """(key, payload, number of records)"""

    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1[0], value2[1], value1[2] + value2[2]


def _payload(at: int, size: int = 100) -> bytes:
    start = at * 7919 % (len(NOISE) - size)
    return NOISE[start : start + size]


def _first(record: Any) -> Any:
    return record[0]


class _Nowhere:
    def emit(self, batch: Any) -> None: ...
    def emit_side(self, tag: Any, batch: Any) -> None: ...
    def emit_watermark(self, timestamp: int) -> None: ...
    def emit_status(self, idle: bool) -> None: ...


class _Context:
    job_id = "benchmark"
    operator_name = operator_uid = "state"
    subtask_index = 0
    parallelism = 1
    max_parallelism = 128
    key_group_range = KeyGroupRange(0, 128)
    attempt = "1.1"
    attempt_number = 0

    def __init__(self, configuration: dict[str, str]) -> None:
        self.configuration = configuration

    def processing_time(self) -> int:
        return int(time.time() * 1000)

    def add_metric(self, name: str, value: Any) -> None: ...


Drawn = Callable[[int], list[int]]


def uniform(keys: int) -> Drawn:
    rng = np.random.default_rng(1)
    return lambda count: rng.integers(keys, size=count).tolist()


def zipf(keys: int) -> Drawn:
    rng = np.random.default_rng(1)

    def draw(count: int) -> list[int]:
        ranks = (keys ** rng.random(count)).astype(np.int64)  # 1/n: their logarithms are uniform
        return (ranks * _SCATTER % keys).tolist()

    return draw


def changing(keys: int, updates_each: int = 5) -> Drawn:
    rng = np.random.default_rng(1)
    few, drawn = keys // 100, 0

    def draw(count: int) -> list[int]:
        nonlocal drawn
        drawn += count
        first = drawn // (updates_each * few) * few
        return ((first + rng.integers(few, size=count)) * _SCATTER % keys).tolist()

    return draw


#: What makes that which draws so many of so many keys.
DRAWN: dict[str, Callable[[int], Drawn]] = {
    "uniform": uniform,
    "zipf": zipf,
    "changing": changing,
}


def counting(configuration: dict[str, str], output: Any = None) -> Any:
    """The operator; its state is to be initialized, and then it is to be opened."""
    operator: Any = create_operator(ReduceSpec(Count(), _first))
    operator.setup(_Context(configuration), output or _Nowhere())
    return operator


def counted(operator: Any) -> int:
    """The records that its state has seen."""
    values = operator.backend.table("$reduce", "a rolling aggregate").namespace(None).values()
    return sum(value[2] for value in values)


def measure_plain(
    keys: int, updates: int, draw: Drawn, options: dict[str, str]
) -> dict[str, float]:
    """What there is to be had: RocksDB alone. Raises AssertionError."""
    folder = tempfile.mkdtemp(prefix="benchmark-state-")
    database = Database(Path(folder) / "db", Settings.of(_Context(options)))
    family, prefixes = database.family("plain"), [prefix_of(group, b"") for group in range(128)]

    def row(key: int) -> bytes:
        return prefixes[key_group(key, 128)] + encode_key(key)

    def load(numbers: Sequence[int]) -> None:
        batch = database.new_batch()
        for key in numbers:
            batch.put(row(key), dumps_data((key, _payload(key), 1)), family.handle)
        database.write(batch)

    def update(numbers: Sequence[int]) -> None:
        rows = [row(key) for key in numbers]
        found = {r: loads_data(blob) for r, blob in zip(rows, family.get(rows), strict=True)}
        for r, key in zip(rows, numbers, strict=True):
            found[r] = key, _payload(key), found[r][2] + 1
        batch = database.new_batch()
        for r in sorted(found):
            batch.put(r, dumps_data(found[r]), family.handle)
        database.write(batch)

    try:
        begun = time.perf_counter()
        for start in range(0, keys, BATCH):
            load(range(start, min(keys, start + BATCH)))
        loading = time.perf_counter() - begun
        begun, worked = time.perf_counter(), time.thread_time()
        for _ in range(0, updates, BATCH):
            update(draw(BATCH))
        updating, working = time.perf_counter() - begun, time.thread_time() - worked
        held = sum(loads_data(blob)[2] for _, blob in family.scan(b""))
        assert held == keys + updates, f"the state holds {held} of {keys + updates} records"
    finally:
        database.close()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "loaded per s": keys / loading,
        "updated per s": updates / updating,
        "per s of CPU": updates / working,
    }


def measure(
    backend: str,
    keys: int,
    updates: int,
    checkpoints: int,
    draw: Drawn,
    options: dict[str, str],
    value_bytes: int,
) -> dict[str, float]:
    """One run; ``checkpoints`` are spread over the updates. Raises AssertionError."""
    folder = tempfile.mkdtemp(prefix="benchmark-state-")
    configuration = {"state.backend.type": backend, "state.backend.rocksdb.localdir": folder}
    configuration |= options
    before = _peak_mb()
    operator = counting(configuration)
    operator.initialize_state(None, None)
    operator.open()
    pauses: list[float] = []
    threads: list[threading.Thread] = []
    taken: list[OperatorSnapshot] = []

    taking: list[OperatorSnapshot] = []

    def feed(numbers: list[int]) -> None:
        operator.process_batch(RowBatch([(k, _payload(k, value_bytes), 1) for k in numbers]))
        operator.after_records(len(numbers))
        if taking:
            take_more(taking[0])

    def take_more(snapshot: OperatorSnapshot) -> None:
        begun = time.perf_counter()
        done = snapshot.taking is None or snapshot.taking.advance()
        pauses.append(time.perf_counter() - begun)
        if done:
            taking.clear()
            threads.append(threading.Thread(target=lambda: taken.append(_released(snapshot))))
            threads[-1].start()

    def checkpoint(number: int) -> None:
        while taking:
            take_more(taking[0])
        begun = time.perf_counter()
        taking.append(operator.snapshot_state(number))
        pauses.append(time.perf_counter() - begun)

    try:
        begun = time.perf_counter()
        for start in range(0, keys, BATCH):
            feed(list(range(start, min(keys, start + BATCH))))
        loading = time.perf_counter() - begun
        every = max(BATCH, updates // checkpoints // BATCH * BATCH) if checkpoints else updates + 1
        begun, worked = time.perf_counter(), time.thread_time()
        for start in range(0, updates, BATCH):
            if start and start % every == 0:
                checkpoint(start)
            feed(draw(BATCH))
        updating, working = time.perf_counter() - begun, time.thread_time() - worked
        while taking:
            take_more(taking[0])
        for thread in threads:
            thread.join()
        assert len(taken) == len(threads), "a checkpoint has failed"
        grown = _peak_mb() - before
        held = counted(operator)
        assert held == keys + updates, f"the state holds {held} of {keys + updates} records"
    finally:
        operator.close()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "loaded per s": keys / loading,
        "updated per s": updates / updating,
        "per s of CPU": updates / working,
        "longest pause ms": 1000 * max(pauses, default=0),
        "median pause ms": 1000 * statistics.median(pauses or [0]),
        "MB more at its peak": grown,
    }


def _peak_mb() -> float:
    """Resident, of this process, until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _released(snapshot: OperatorSnapshot) -> OperatorSnapshot:
    snapshot = snapshot.completed()
    for native in snapshot.native:
        if native.release is not None:
            native.release()
    return snapshot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="rocksdb")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--keys-drawn", choices=list(DRAWN), default="uniform")
    parser.add_argument("--updates-each", type=int, default=5, help="of changing keys")
    parser.add_argument("--plain", action="store_true", help="RocksDB alone, without checkpoints")
    parser.add_argument("-D", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    given = parser.parse_args()
    draw = DRAWN[given.keys_drawn](given.keys)
    if given.keys_drawn == "changing":
        draw = changing(given.keys, given.updates_each)
    options = dict(pair.split("=", 1) for pair in given.D)
    if given.plain:
        numbers = measure_plain(given.keys, given.updates, draw, options)
    else:
        numbers = measure(
            given.backend,
            given.keys,
            given.updates,
            given.checkpoints,
            draw,
            options,
            given.value_bytes,
        )
    for name, value in numbers.items():
        print(f"{name:20} {value:12,.1f}")


if __name__ == "__main__":
    main()
