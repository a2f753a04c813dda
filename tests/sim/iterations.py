"""The job of the kind "iterate": loops, and what each of their rounds must bring about.

The least label of a connected component goes from vertex to vertex, one step in each round, and it
is written down in which round it came where: so also rounds that get mixed up are noticed. These
jobs have no checkpoints, and begin anew after a failure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from dataflow.datastream import DataStream
from dataflow.datastream.functions import (
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    RuntimeContext,
)
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.state import ListStateDescriptor, ValueStateDescriptor
from tests.sim.ledger import LedgerSink, current

Record = tuple[int, int, int, int]
VERTICES = 40
ROUNDS = 4
SINKS = ("labels", "counts", "rounds")
LABELS = OutputTag("labels")


def _vertex(record: Record) -> tuple[int, int]:
    vertex = (record[0] * 11 + record[1]) % VERTICES
    return vertex, vertex


def _is_edge(record: Record) -> bool:
    return record[1] % 9 == 0


def _edges(record: Record) -> list[tuple[int, int]]:
    one = (record[1] + record[2]) % VERTICES
    other = (one + 1 + record[1] % 3) % VERTICES
    return [(one, other), (other, one)]


def _first(row: tuple[int, ...]) -> int:
    return row[0]


def _counter(record: Record) -> tuple[int, int, int]:
    return record[0], record[1], 0


def _once_more(row: tuple[int, int, int]) -> tuple[int, int, int]:
    current().user_code(row)
    return row[0], row[1], row[2] + 1


class Least(KeyedCoProcessFunction):
    """At the end of a round: a vertex takes the least label it was told, and tells its neighbours.

    The second input, the edges, is complete before the first round.
    """

    def open(self, runtime_context: RuntimeContext) -> None:
        self._label = runtime_context.get_state(ValueStateDescriptor("label"))
        self._told = runtime_context.get_list_state(ListStateDescriptor("told"))
        self._neighbours = runtime_context.get_list_state(ListStateDescriptor("neighbours"))

    def process_element1(self, value: tuple[int, int], ctx: Any) -> None:
        current().user_code(value)
        self._told.add(value[1])
        ctx.timer_service().register_event_time_timer(ctx.timestamp())

    def process_element2(self, value: tuple[int, int], ctx: Any) -> None:
        self._neighbours.add(value[1])

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        least, label = min(self._told.get()), self._label.value()
        self._told.clear()
        if label is None or least < label:
            self._label.update(least)
            yield LABELS, (ctx.get_current_key(), timestamp, least)
            for neighbour in self._neighbours.get():
                yield neighbour, least


class CountSoFar(KeyedProcessFunction):
    """At the end of a round: how often a vertex was told anything, in this round and before."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: tuple[int, int], ctx: KeyedProcessFunction.Context) -> None:
        self._count.update((self._count.value() or 0) + 1)
        ctx.timer_service().register_event_time_timer(ctx.timestamp())

    def on_timer(
        self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext
    ) -> Iterator[tuple[int, ...]]:
        yield ctx.get_current_key(), timestamp, self._count.value()


def build_iterations(mapped: DataStream) -> None:
    edges = mapped.filter(_is_edge).flat_map(_edges).uid("edges")

    def tell(told: DataStream) -> tuple[DataStream, DataStream]:
        least = told.connect(edges).key_by(_first, _first).process(Least()).uid("least")
        counts = told.key_by(_first).process(CountSoFar()).uid("count")
        counts.sink_to(LedgerSink("counts")).uid("counts")
        return least.rebalance(), least.get_side_output(LABELS)

    labels = mapped.map(_vertex).uid("vertices").iterate(tell)
    labels.sink_to(LedgerSink("labels")).uid("labels")
    counters = mapped.map(_counter).uid("counters")
    rounds = counters.iterate(lambda s: s.map(_once_more).uid("more").shuffle(), ROUNDS)
    rounds.sink_to(LedgerSink("rounds")).uid("rounds")


def expected_of(log: Iterable[Record]) -> dict[str, list[tuple[int, ...]]]:
    """The rows of each sink, in no order."""
    records = list(log)
    neighbours = defaultdict(list)
    for record in filter(_is_edge, records):
        for one, other in _edges(record):
            neighbours[one].append(other)
    told = [_vertex(record) for record in records]
    known: dict[int, int] = {}
    count: Counter[int] = Counter()
    labels, counts, number = [], [], 0
    while told:
        number += 1
        of_vertex = defaultdict(list)
        for vertex, label in told:
            of_vertex[vertex].append(label)
        told = []
        for vertex, given in of_vertex.items():
            count[vertex] += len(given)
            counts.append((vertex, number, count[vertex]))
            if min(given) < known.get(vertex, VERTICES):
                known[vertex] = min(given)
                labels.append((vertex, number, known[vertex]))
                told += [(neighbour, known[vertex]) for neighbour in neighbours[vertex]]
    rounds = [(source, n, ROUNDS) for source, n, _, _ in records]
    return {"labels": labels, "counts": counts, "rounds": rounds}
