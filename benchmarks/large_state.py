"""large_state: what checkpoints cost a task with much state, of which little changes between them.

A keyed sum in one slot, ``(key, payload of 64 characters, sum)`` per key, about 100 bytes encoded.
Each second another percent of the keys is updated, as fast as it goes, each of them at least once
(the second is longer where that takes longer). The operator is driven as a task drives it (see
``Task``); snapshots are taken, encoded, and uploaded to a folder by ``SnapshotWriter`` on an I/O
thread, and completed before the next one begins.

Seconds with a checkpoint and without any take turns, a few at a time. Judged by the sum that the
state holds at the end, and by that of the newest checkpoint, restored.

What comes out: the speed of both and their ratio; every pause that a checkpoint puts on the task's
thread (at the barrier, between two batches, at the end); the time from batch to batch, as records
see it; the bytes that each checkpoint has uploaded. The first snapshot is full and stands apart.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import random
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.state import BATCH, _Context, _Nowhere
from dataflow.common.batch import RowBatch
from dataflow.common.config_options import ConfigOptions
from dataflow.datastream.functions import ReduceFunction
from dataflow.filesystem.local import LocalFileSystem
from dataflow.graph.specs import ReduceSpec
from state.checkpoint_store import CheckpointStore, StateHandle
from state.snapshot import TaskSnapshot
from state.snapshot_store import SnapshotWriter, Stored, StoredSnapshot
from taskmanager.operators.factory import create_operator
from taskmanager.snapshot_in_progress import SnapshotInProgress
from taskmanager.threaded import tune_interpreter

TOUCHED = 0.01  # of the keys, between two checkpoints
SECONDS_IN_TURN = 5
_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC8341082276BF3A27251F86C6A11D0C18E95
_MASK = (1 << 256) - 1


class Sum(ReduceFunction):
    """(key, payload, sum)"""

    def reduce(self, value1: Any, value2: Any) -> Any:
        return value1[0], value1[1], value1[2] + value2[2]


def _first(record: Any) -> Any:
    return record[0]


def _payload(key: int) -> str:
    """Like nobody else's, so that nothing can be compressed."""
    return f"{key * _SPREAD & _MASK:064x}"


@dataclass
class Pauses:
    """Milliseconds by kind."""

    found: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def measured(self, kind: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.add(kind, time.perf_counter() - begun)

    def add(self, kind: str, seconds: float) -> None:
        self.found.setdefault(kind, []).append(1000 * seconds)


@dataclass
class Checkpoint:
    """One that has completed; its longest single pause, and all of them."""

    number: int
    seconds: float
    uploaded: int
    size: int
    worst_ms: float
    together_ms: float


class Driven:
    """An operator and its checkpoints, driven by the caller's thread as ``Task`` does it."""

    def __init__(self, folder: Path, configuration: dict[str, str]) -> None:
        self.configuration = {
            **configuration,
            ConfigOptions.ROCKSDB_LOCAL_DIR.key: str(folder / "working"),
        }
        self.operator: Any = self._new()
        self.operator.initialize_state(None, None)
        self.operator.open()
        self.store = CheckpointStore(LocalFileSystem(), str(folder / "store"), "benchmark")
        self._writer = SnapshotWriter(self.store, 1, "sum")
        self._io = ThreadPoolExecutor(1)
        self._mail: deque[Callable[[], None]] = deque()
        self._taking: SnapshotInProgress | None = None
        self._kept: dict[str, int] = {}
        self._begun = 0.0
        self._number = 0
        self._pauses_before: dict[str, int] = {}
        self.under_way = False
        self.pauses = Pauses()
        self.completed: list[Checkpoint] = []
        self.newest: Stored | None = None
        self.sum = self.sum_at_newest = 0  # of the values fed
        self._sum_at_barrier = 0

    def _new(self) -> Any:
        operator: Any = create_operator(ReduceSpec(Sum(), _first))
        operator.setup(_Context(self.configuration), _Nowhere())
        return operator

    def load(self, rows: list[Any]) -> None:
        """Into the state, as the operator keeps the first record of a key."""
        _values(self.operator).update({row[0]: row for row in rows})
        self.operator.after_records(len(rows))
        self.sum += len(rows)

    def step(self, encoded: bytes) -> None:
        """Mail, a bit of the snapshot, a batch, and more of the snapshot."""
        while self._mail:
            self._mail.popleft()()
        self._take_more()
        began = _now_ms()
        rows = pickle.loads(encoded)
        self.operator.process_batch(RowBatch(rows))
        self.operator.after_records(len(rows))
        self.sum += len(rows)
        now = _now_ms()
        until = now + (now - began)
        while _now_ms() < until and self._take_more():
            pass

    def _take_more(self) -> bool:
        taking = self._taking
        if taking is None:
            return False
        with self.pauses.measured("slice"):
            more = taking.advance(_now_ms())
        if taking.done:
            self._taking = None
        return more

    def barrier(self) -> None:
        """Begin a checkpoint."""
        self._number = number = self._number + 1
        self._begun, self.under_way = time.perf_counter(), True
        self._pauses_before = {kind: len(found) for kind, found in self.pauses.found.items()}
        self._sum_at_barrier = self.sum
        with self.pauses.measured("barrier"):
            self.operator.prepare_barrier(number)
            state = self.operator.snapshot_state(number)
            snapshot = TaskSnapshot({"sum": state})
            upload = self._writer.prepare(number, snapshot)
            self._taking = SnapshotInProgress(
                number, snapshot, None, lambda: self._upload(number, upload)
            )

    def _upload(self, number: int, upload: Callable[[], Stored]) -> None:
        def run() -> None:
            try:
                stored = upload()
                paths = {handle.path: handle.size for handle in _files(stored)}
                new = sum(size for path, size in paths.items() if path not in self._kept)
                self._kept = {**self._kept, **paths}
            except BaseException as error:
                failure = error
                self._mail.append(lambda: _raise(failure))
                return
            self._mail.append(lambda: self._complete(number, stored, new, sum(paths.values())))

        self._io.submit(run)

    def _complete(self, number: int, stored: Stored, uploaded: int, size: int) -> None:
        with self.pauses.measured("completion"):
            self._writer.stored(number, stored)
            self._writer.completed(number)
            self.operator.notify_checkpoint_complete(number)
        self.under_way = False
        self.newest, self.sum_at_newest = stored, self._sum_at_barrier
        mine = [
            pause
            for kind, found in self.pauses.found.items()
            for pause in found[self._pauses_before.get(kind, 0) :]
        ]
        seconds = time.perf_counter() - self._begun
        self.completed.append(Checkpoint(number, seconds, uploaded, size, max(mine), sum(mine)))
        self._io.submit(self._delete_old, frozenset(h.path for h in _files(stored)))

    def _delete_old(self, needed: frozenset[str]) -> None:
        old = [path for path in self._kept if path not in needed]
        self._kept = {path: size for path, size in self._kept.items() if path in needed}
        LocalFileSystem().delete_all([f"{self.store._root}/{path}" for path in old])

    def drain(self) -> None:
        """Wait for the checkpoint under way."""
        while self.under_way:
            while self._mail:
                self._mail.popleft()()
            if not self._take_more():
                time.sleep(0.001)

    def judge(self) -> None:
        """Raises AssertionError."""
        held = _held(self.operator)
        assert held == self.sum, f"the state holds {held} instead of {self.sum}"

    def judge_newest(self) -> float:
        """Of the newest checkpoint; seconds that it took to restore."""
        self.close()
        assert self.newest is not None
        begun = time.perf_counter()
        loaded = StoredSnapshot(self.store, self.newest.handle).load()
        operator = self._new()
        operator.initialize_state(loaded.operators["sum"], self._number)
        operator.open()
        took = time.perf_counter() - begun
        held = _held(operator)
        operator.close()
        assert held == self.sum_at_newest, f"restored were {held} instead of {self.sum_at_newest}"
        return took

    def close(self) -> None:
        self._io.shutdown()
        self.operator.close()


def _files(stored: Stored) -> tuple[StateHandle, ...]:
    return stored.handle, *stored.handle.files


def _raise(error: BaseException) -> None:
    raise error


def _now_ms() -> int:
    return int(time.time() * 1000)


def _values(operator: Any) -> Any:
    return operator.backend.table("$reduce", "a rolling aggregate").namespace(None)


def _held(operator: Any) -> int:
    return sum(value[2] for value in _values(operator).values())


class Records:
    """Batches of all keys once, and encoded ones of a percent of them at random."""

    def __init__(self, keys: int) -> None:
        self._keys = keys
        self._random = random.Random(1)

    def all(self) -> Iterator[list[Any]]:
        for start in range(0, self._keys, BATCH):
            numbers = range(start, min(self._keys, start + BATCH))
            yield [(key, _payload(key), 1) for key in numbers]

    def some(self) -> list[bytes]:
        hot = self._random.sample(range(self._keys), max(1, int(self._keys * TOUCHED)))
        return [
            pickle.dumps([(key, "", 1) for key in hot[start : start + BATCH]], protocol=5)
            for start in range(0, len(hot), BATCH)
        ]


@dataclass
class Turn:
    """Some seconds, with checkpoints or without."""

    records: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    collecting_ms: float = 0.0  # by the collector of reference cycles
    batches_ms: list[float] = field(default_factory=list)


def turn(driven: Driven, hot: list[list[bytes]], checkpoints: bool) -> Turn:
    """A second for each of ``hot``, with a barrier at its end."""
    result = Turn()
    begun, cpu = time.perf_counter(), time.thread_time()
    last = second = begun
    for batches in hot:
        passes = 0
        while True:
            for encoded in batches:
                driven.step(encoded)
                now = time.perf_counter()
                result.batches_ms.append(1000 * (now - last))
                last = now
                if passes and now - second >= 1:
                    break
            passes += 1
            if last - second >= 1:
                break
        second = last
        if checkpoints and not driven.under_way:
            driven.barrier()
    result.seconds = time.perf_counter() - begun
    result.cpu_seconds = time.thread_time() - cpu
    result.records = BATCH * len(result.batches_ms)
    driven.drain()
    return result


def measure(
    backend: str, keys: int, seconds: int, options: dict[str, str], folder: Path
) -> dict[str, Any]:
    """One run. Raises AssertionError."""
    tune_interpreter()
    records = Records(keys)
    configuration = {"state.backend.type": backend, **options}
    with_checkpoints = {
        **configuration,
        ConfigOptions.CHECKPOINTING_INTERVAL.key: "1000",
        ConfigOptions.STATE_CHANGELOG_ENABLED.key: "true",
    }
    collections = Pauses()
    gc.callbacks.append(_timed(collections))
    subject = Driven(folder / "with", with_checkpoints)
    # RocksDB does nothing else where no checkpoints are taken; of two it would do all twice.
    plain = subject if backend == "rocksdb" else Driven(folder / "without", configuration)
    begun = time.perf_counter()
    for rows in records.all():
        subject.load(rows)
        if plain is not subject:
            plain.load(rows)
    loading = time.perf_counter() - begun
    results: dict[str, Any] = {"load s": loading, "gc while loading": collections.found}
    collections.found = {}

    # The first snapshot, while the task goes on.
    subject.barrier()
    first_gaps: list[float] = []
    while subject.under_way:
        first_gaps += turn(subject, [records.some()], False).batches_ms
    results["first"] = vars(subject.completed[0])
    results["first pauses"] = _percentiles(subject.pauses.found)
    results["first batch to batch"] = _percentile(first_gaps)
    subject.pauses.found.clear()

    turns: dict[bool, list[Turn]] = {True: [], False: []}
    for number in range(max(1, seconds // SECONDS_IN_TURN)):
        hot = [records.some() for _ in range(SECONDS_IN_TURN)]
        for checkpoints in (True, False) if number % 2 else (False, True):
            driven = subject if checkpoints else plain
            collections.found = {}
            turns[checkpoints].append(turn(driven, hot, checkpoints))
            turns[checkpoints][-1].collecting_ms = sum(map(sum, collections.found.values()))
    gc.callbacks.pop()
    for checkpoints, name in ((False, "without"), (True, "every second")):
        of = turns[checkpoints]
        results[name] = {
            "records/s": sum(t.records for t in of) / sum(t.seconds for t in of),
            "us of CPU": 1e6 * sum(t.cpu_seconds for t in of) / sum(t.records for t in of),
            "collector": sum(t.collecting_ms for t in of) / sum(1000 * t.seconds for t in of),
            "batch to batch": _percentile([ms for t in of for ms in t.batches_ms]),
        }
    ratios = [
        (a.records / a.seconds) / (b.records / b.seconds)
        for a, b in zip(turns[True], turns[False], strict=True)
    ]
    results["ratios"] = ratios
    results["ratio"] = results["every second"]["records/s"] / results["without"]["records/s"]
    results["pauses"] = _percentiles(subject.pauses.found)
    done = subject.completed[1:]
    results["checkpoints"] = len(done)
    results["checkpoint s"] = _percentile([c.seconds for c in done])
    results["worst pause of each"] = _percentile([c.worst_ms for c in done])
    parts = [c.uploaded / c.size for c in done]
    results["uploaded, part of all"] = {"mean": statistics.fmean(parts), "max": max(parts)}
    results["uploads"] = [round(100 * part, 1) for part in parts]
    results["size"] = done[-1].size
    subject.judge()
    if plain is not subject:
        plain.judge()
        plain.close()
        plain.operator = None
    results["restore s"] = subject.judge_newest()
    return results


def _timed(pauses: Pauses) -> Callable[[str, dict[str, int]], None]:
    begun = 0.0

    def callback(phase: str, info: dict[str, int]) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.perf_counter()
        else:
            pauses.add(f"generation {info['generation']}", time.perf_counter() - begun)

    return callback


def _percentile(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "n": len(ordered),
        "p50": ordered[last // 2],
        "p99": ordered[round(last * 0.99)],
        "max": ordered[last],
        "sum": sum(ordered),
    }


def _percentiles(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    every = {**found, "all": [pause for pauses in found.values() for pause in pauses]}
    return {kind: _percentile(pauses) for kind, pauses in every.items() if pauses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="rocksdb")
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=int, default=20, help="of each, with and without")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    options = dict(option.split("=", 1) for option in given.option)
    folder = Path(tempfile.mkdtemp(prefix="benchmark-large-state-"))
    try:
        results = measure(given.backend, given.keys, given.seconds, options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, value in results.items():
        if name.startswith("gc"):
            value = _percentiles(value)
        print(f"{name:24} {json.dumps(_rounded(value))}")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
