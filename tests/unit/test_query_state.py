"""Questions to a running job about its state."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from typing import Any
from uuid import UUID

import pytest

from dataflow.common import JobClient, Row, WatermarkStrategy
from dataflow.common.keys import KeyGroupRange
from dataflow.common.time import Time
from dataflow.datastream import KeyedProcessFunction, RuntimeContext
from dataflow.datastream.functions import ReduceFunction
from dataflow.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.errors import JobRequestError, KeyTypeError
from dataflow.testing import MiniCluster, Record, ScriptedSource, Wait
from dataflow.testing.pytest_plugin import mini_cluster
from jobmanager import state_queries
from jobmanager.client import PollingJobClient
from jobmanager.requests import AskState
from jobmanager.state_commands import look_up
from state.heap_backend import HeapKeyedStateBackend
from taskmanager import state_query

__all__ = ["mini_cluster"]

BACKENDS: list[Any] = [
    "hashmap",
    pytest.param(
        "rocksdb",
        marks=pytest.mark.skipif(find_spec("rocksdict") is None, reason="rocksdict is missing"),
    ),
]
KEYS = ["ann", 7, ("eve", 1), None, Row(a=1, b=None), Decimal("0.1"), UUID(int=7)]


@dataclass
class Seen:
    """A value that can be changed."""

    numbers: list[int]


class Sum(ReduceFunction):
    def reduce(self, value1: int, value2: int) -> int:
        return value1 + value2


class Remember(KeyedProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        get = runtime_context
        self.count = get.get_state(ValueStateDescriptor("count"))
        self.seen = get.get_state(ValueStateDescriptor("seen"))
        self.list = get.get_list_state(ListStateDescriptor("list"))
        self.map = get.get_map_state(MapStateDescriptor("map"))
        self.sum = get.get_reducing_state(ReducingStateDescriptor("sum", Sum()))
        kept = ValueStateDescriptor("kept")
        kept.enable_time_to_live(StateTtlConfig.new_builder(Time.days(1)).build())
        self.kept = get.get_state(kept)

    def process_element(self, value: Any, ctx: Any) -> Iterable[Any]:
        key, number = value
        self.count.update((self.count.value() or 0) + 1)
        seen = self.seen.value() or Seen([])
        seen.numbers.append(number)
        self.seen.update(seen)
        self.list.add(number)
        self.map.put(number, str(key))
        self.sum.add(number)
        self.kept.update(number)
        yield value


@contextmanager
def running(
    cluster: MiniCluster, backend: str = "hashmap", parallelism: int = 2
) -> Iterator[JobClient]:
    """A job that has processed two records of every key, and waits."""
    script = [*(Record((key, n), 100 * n) for n in (1, 2) for key in KEYS), Wait(10**9)]
    env = cluster.environment(
        parallelism=parallelism, configuration={"state.backend.type": backend}
    )
    source = env.from_source(ScriptedSource(script), WatermarkStrategy.no_watermarks(), "s")
    by_key = source.set_parallelism(1).key_by(lambda record: record[0])
    windows = by_key.window(TumblingEventTimeWindows.of(Time.seconds(1)))
    windows.reduce(lambda a, b: (a[0], a[1] + b[1])).uid("windows").map(lambda r: None).uid("map")
    processed = by_key.process(Remember()).uid("remember")
    with processed.execute_and_collect() as results:
        for _ in range(2 * len(KEYS)):
            next(results)
        yield cluster._clients[-1]


def ask(client: JobClient, *question: Any, uid: str = "remember") -> Any:
    return client.query_state(uid, *question).result(20)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kind_of_state_is_told(mini_cluster: MiniCluster, backend: str) -> None:
    with running(mini_cluster, backend) as client:
        for key in KEYS:
            assert ask(client, "count", key) == 2
            assert ask(client, "seen", key) == Seen([1, 2])
            assert ask(client, "list", key) == [1, 2]
            assert ask(client, "map", key) == {1: str(key), 2: str(key)}
            assert ask(client, "sum", key) == 3
            assert ask(client, "kept", key) == 2
        assert ask(client, "count", Row(b=None, a=Decimal(1))) == 2
        assert ask(client, "count", (Decimal("0.10"),)) is None
        for name in ("count", "list", "map"):
            assert ask(client, name, "nobody") is None
        windowed = {ask(client, "$window", "ann", (0, 1_000), uid="windows") for _ in range(3)}
        assert windowed <= {("ann", 3), ("ann", 1), None}, "the other branch may be behind"
        assert ask(client, "count", "ann", (0, 1_000)) is None


def test_asking_changes_nothing(mini_cluster: MiniCluster) -> None:
    with running(mini_cluster) as client:
        value = ask(client, "seen", "ann")
        value.numbers.append(99)
        assert ask(client, "seen", "ann") == Seen([1, 2])


def test_many_ask_at_once(mini_cluster: MiniCluster) -> None:
    with running(mini_cluster, parallelism=3) as client:
        futures = [client.query_state("remember", "count", KEYS[n % 3]) for n in range(60)]
        assert [future.result(20) for future in futures] == [2] * 60


def test_what_cannot_be_answered_is_said(
    mini_cluster: MiniCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(mini_cluster) as client:
        with pytest.raises(JobRequestError, match=r"no operator uid 'x'; it has 'map', 'remember'"):
            ask(client, "count", "ann", uid="x")
        with pytest.raises(JobRequestError, match=r"has no state 'x'; it has .*'count'"):
            ask(client, "x", "ann")
        with pytest.raises(JobRequestError, match=r"'map' has no state by key"):
            ask(client, "count", "ann", uid="map")
        with pytest.raises(KeyTypeError, match="type list has no stable hash"):
            ask(client, "count", ["ann"])
        for wrong in (5, (1,), ("0", "5"), "ab"):
            with pytest.raises(ValueError, match=r"window= is the \(start, end\) of one in ms"):
                ask(client, "count", "ann", wrong)
        monkeypatch.setattr(state_query, "VALUE_BYTES_MAX", 3)
        with pytest.raises(JobRequestError, match=r"at most 3 are handed out"):
            ask(client, "map", "ann")
    with pytest.raises(JobRequestError, match=r"it is CANCELED|only a RUNNING job answers"):
        ask(client, "count", "ann")


class Silent(PollingJobClient):
    """Of a job that never answers."""

    waited = 0.0

    def _request(self, request: Any) -> None: ...

    def _answer(self, request_id: str) -> None: ...

    def _wait(self, seconds: float) -> None:
        self.waited += seconds

    _info = _fetch = _cancel = None  # type: ignore[assignment]


def test_a_question_that_nobody_answers_is_given_up() -> None:
    client = Silent("job")
    with pytest.raises(JobRequestError, match=r"no answer within 10 s"):
        ask(client, "count", "ann")
    assert 10 < client.waited < 11


def test_a_job_that_is_not_running_is_not_asked() -> None:
    answer = state_queries.ask(AskState("r", "uid", 0, b""), None, lambda *_: None)
    assert answer is not None
    assert answer.error == "it is CREATED, and only a RUNNING job answers"


def test_the_command_prints_what_is_there(
    mini_cluster: MiniCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def options(key: str, json: bool = False, state: str = "count") -> argparse.Namespace:
        return argparse.Namespace(uid="remember", state=state, key=key, window=None, json=json)

    with running(mini_cluster) as client:
        for key in ("ann", "7", '["eve", 1]'):
            assert look_up(client, options(key)) == 0
        assert look_up(client, options("ann", json=True, state="map")) == 0
        assert look_up(client, options("nobody")) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[:3] == ["2", "2", "2"]
    assert '"value": "ann"' in captured.out
    assert "state 'count' holds nothing for 'nobody'" in captured.err


def test_a_look_does_not_make_a_table_or_a_namespace() -> None:
    heap = HeapKeyedStateBackend(8, KeyGroupRange(0, 8), "op")
    table = heap.table("count", "value state")
    assert not list(table.namespaces)
    table.peek((0, 10), "ann")
    assert not list(table.namespaces)


def test_a_look_is_no_change_that_a_changelog_would_write() -> None:
    heap = HeapKeyedStateBackend(8, KeyGroupRange(0, 8), "op", changelog=True)
    table = heap.table("seen", "value state")
    table.namespace(None)["ann"] = [1]
    table.take_changes()
    assert table.peek(None, "ann") == [1]
    assert not table.take_changes().keys
