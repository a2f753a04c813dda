"""What one key, one byte of state and one channel cost a task: the constants of docs/scaling.md."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataflow.common.keys import KeyGroupRange
from dataflow.graph.job_graph import JobEdge, Partitioning
from state.heap_backend import HeapKeyedStateBackend
from state.snapshot import OperatorSnapshot, TaskSnapshot
from state.snapshot_format import decode, encode
from taskmanager.alignment import BarrierAligner
from taskmanager.channel import ChannelLimits
from taskmanager.elements import Attempt, ChannelId
from taskmanager.input_gate import InputGate
from taskmanager.messages import DataMessage, Feedback, OutputDescriptor
from taskmanager.result_partition import TaskOutputs
from taskmanager.watermark_valve import WatermarkValve

KEYS = 60_000  # of a task; few enough for a second each
GROUPS = 128
CHANNELS = (10, 100, 1_000)
LIMITS = ChannelLimits()
#: What is kept per key, and what makes the n-th of it.
VALUES: dict[str, Callable[[int], Any]] = {
    "an int": lambda n: n + 1_000,
    "a tuple of 3": lambda n: (n + 1_000, n * 1.5, f"city-{n % 50}"),
    "a dict of 5": lambda n: {
        "count": n + 1_000,
        "sum": n * 1.5,
        "last": n + 1_700_000_000,
        "city": f"city-{n}",
        "flag": True,
    },
}


@dataclass(frozen=True)
class Constant:
    """A number and its unit."""

    name: str
    value: float
    unit: str

    @property
    def text(self) -> str:
        digits = 0 if self.value >= 100 else 2
        return f"{self.value:,.{digits}f} {self.unit}"


def constants() -> list[Constant]:
    found = []
    for kind, make in VALUES.items():
        found += _of_keyed_state(kind, make)
    found.append(_of_hashing())
    found += _of_channels()
    return found


def _seconds(call: Callable[[], Any], repetitions: int = 1) -> float:
    """CPU of one call."""
    began = time.thread_time_ns()
    for _ in range(repetitions):
        call()
    return (time.thread_time_ns() - began) / 1e9 / repetitions


def _backend() -> HeapKeyedStateBackend:
    return HeapKeyedStateBackend(GROUPS, KeyGroupRange(0, GROUPS))


def _filled(make: Callable[[int], Any]) -> HeapKeyedStateBackend:
    backend = _backend()
    values = backend.table("state", "value").namespace(None)
    for n in range(KEYS):
        values[f"user-{n:010d}"] = make(n)
    return backend


def _of_keyed_state(kind: str, make: Callable[[int], Any]) -> list[Constant]:
    encoded = b""

    def snapshot() -> None:
        nonlocal encoded
        encoded = encode(TaskSnapshot({"uid": OperatorSnapshot(backend.snapshot())}))

    def restore() -> None:
        _backend().restore(decode(encoded).operators["uid"].keyed)

    tracemalloc.start()
    backend = _filled(make)
    heap = tracemalloc.get_traced_memory()[0]
    snapshot()  # hashes each key once
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    writing, reading = _seconds(snapshot), _seconds(restore)
    per_key = f"a 15-character key with {kind}"
    return [
        Constant(f"{per_key}: heap", heap / KEYS, "B"),
        Constant(f"{per_key}: in a checkpoint", len(encoded) / KEYS, "B"),
        Constant(f"{per_key}: more heap while encoding", (most - heap) / KEYS, "B"),
        Constant(f"{per_key}: snapshot", len(encoded) / writing / 1e6, "MB/s"),
        Constant(f"{per_key}: restore", len(encoded) / reading / 1e6, "MB/s"),
    ]


def _of_hashing() -> Constant:
    data = bytes(32 << 20)
    return Constant(
        "SHA-256 of state", len(data) / _seconds(lambda: hashlib.sha256(data)) / 1e6, "MB/s"
    )


class _Nowhere:
    """A transport that carries nothing."""

    def is_local(self, peer_id: str) -> bool:
        return False

    def send(self, peer_id: str, messages: list[DataMessage], done: Callable[[], None]) -> None:
        done()

    def send_feedback(self, peer_id: str, feedback: list[Feedback]) -> None:
        pass


def _outputs(count: int) -> TaskOutputs:
    descriptor = OutputDescriptor(
        JobEdge("e", "up", "down", Partitioning.REBALANCE),
        GROUPS,
        0,
        0,
        tuple(f"tm-1-{n}" for n in range(count)),
    )
    return TaskOutputs((descriptor,), 0, Attempt(1, 1), LIMITS, _Nowhere(), lambda: None)


def _gate(count: int) -> InputGate:
    return InputGate([(ChannelId("e", up, 0), 0) for up in range(count)], LIMITS)


def _of_channels() -> list[Constant]:
    found = []
    most = CHANNELS[-1]
    for end, make in (("sending", _outputs), ("receiving", _gate)):
        tracemalloc.start()
        kept = make(most)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del kept
        found.append(Constant(f"an idle channel, {end} end", size / most, "B"))
    for count in CHANNELS:
        outputs, gate, valve = _outputs(count), _gate(count), WatermarkValve(count)

        def step(outputs: TaskOutputs = outputs, gate: InputGate = gate) -> None:
            """What ``Task.step`` asks of its channels, whatever it does."""
            outputs.has_room()
            outputs.has_room()
            outputs.flush()
            gate.due_feedback()

        def align(count: int = count, gate: InputGate = gate) -> None:
            aligner = BarrierAligner(count)
            for channel in range(count):
                aligner.on_barrier(channel, 1)
                gate.block(channel)
            gate.set_blocked(aligner.blocked)

        def watermark(count: int = count, valve: WatermarkValve = valve) -> None:
            upto = valve.watermark + 1
            for channel in range(count):
                valve.on_watermark(channel, upto)

        found += [
            Constant(f"a step of a task, {count:,} channels in and out", _us(step, 50), "µs"),
            Constant(f"barriers on {count:,} channels", _us(align, 1) / 1e3, "ms"),
            Constant(f"a watermark on {count:,} channels", _us(watermark, 1) / 1e3, "ms"),
        ]
    return found


def _us(call: Callable[[], Any], repetitions: int) -> float:
    return 1e6 * _seconds(call, repetitions)
