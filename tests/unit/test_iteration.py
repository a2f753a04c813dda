"""Loops: rounds until nothing is left to do, against plain Python."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.common import Configuration, Duration, WatermarkStrategy
from dataflow.datastream import (
    DataStream,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    OutputTag,
    ProcessFunction,
    RuntimeContext,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.state import (
    ListStateDescriptor,
    ValueStateDescriptor,
)
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.testing.scripted_source import Record, ScriptedSource, Wait, Watermark

BATCH, STREAMING = RuntimeExecutionMode.BATCH, RuntimeExecutionMode.STREAMING
BOTH = pytest.mark.parametrize("mode", [BATCH, STREAMING])
ONE_ROUND = TumblingEventTimeWindows.of(Duration.of_millis(1))

Edge = tuple[int, int]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def environment(
    mode: RuntimeExecutionMode = BATCH, parallelism: int = 2, **options: str
) -> StreamExecutionEnvironment:
    configuration = Configuration()
    for key, value in options.items():
        configuration.set_string(key, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(parallelism)
    return env.set_runtime_mode(mode)


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return list(results)


# ---------------------------------------------------------------------------------- when it ends


def collatz(numbers: DataStream) -> tuple[DataStream, DataStream]:
    """Records are (start, number, steps)."""

    def step(record: tuple[int, int, int]) -> tuple[int, int, int]:
        start, number, steps = record
        return start, number // 2 if number % 2 == 0 else 3 * number + 1, steps + 1

    stepped = numbers.map(step)
    return stepped.filter(lambda r: r[1] != 1), stepped.filter(lambda r: r[1] == 1)


def collatz_steps(number: int) -> int:
    steps = 0
    while number != 1 or not steps:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps += 1
    return steps


@settings(max_examples=20, deadline=None)
@given(
    numbers=st.lists(st.integers(1, 3_000), max_size=40),
    parallelism=st.integers(1, 3),
    mode=st.sampled_from([BATCH, STREAMING]),
)
def test_it_ends_when_nothing_is_fed_back(
    numbers: list[int], parallelism: int, mode: RuntimeExecutionMode
) -> None:
    env = environment(mode, parallelism)
    found = env.from_collection([(n, n, 0) for n in numbers]).iterate(collatz)
    steps = Counter((start, steps) for start, _, steps in collected(found))
    assert steps == Counter((n, collatz_steps(n)) for n in numbers)


@BOTH
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_after_so_many_rounds_the_records_of_the_last_are_the_result(
    mode: RuntimeExecutionMode, parallelism: int, rounds: int
) -> None:
    env = environment(mode, parallelism)
    result = env.from_collection(range(20)).iterate(
        lambda numbers: numbers.map(lambda n: n + 100), max_rounds=rounds
    )
    assert sorted(collected(result)) == [n + 100 * rounds for n in range(20)]


@BOTH
def test_it_ends_after_the_round_in_which_all_that_is_fed_back_is_done(
    mode: RuntimeExecutionMode,
) -> None:
    env = environment(mode, 3)
    result = env.from_collection([(n, 0) for n in range(10)]).iterate(
        lambda s: s.map(lambda r: (min(r[0] + 1, 12), r[1] + 1)), until=lambda r: r[0] == 12
    )
    # The slowest begins at 0 and needs 12 rounds; the others go round with it.
    assert collected(result) == [(12, 12)] * 10


def test_the_result_of_a_body_with_an_output_is_that_of_all_rounds() -> None:
    def body(numbers: DataStream) -> tuple[DataStream, DataStream]:
        more = numbers.map(lambda n: n + 1)
        return more, more

    env = environment()
    assert sorted(collected(env.from_collection([0, 10]).iterate(body, max_rounds=3))) == [
        1, 2, 3, 11, 12, 13,
    ]  # fmt: skip
    until = env.from_collection([0, 10]).iterate(body, until=lambda n: n > 2)
    assert sorted(collected(until)) == [1, 2, 3, 11, 12, 13]


def test_a_loop_that_changes_nothing_goes_round_as_often_as_it_is_told() -> None:
    env = environment(parallelism=3)
    result = env.from_collection(range(7)).iterate(lambda s: s, max_rounds=4)
    assert sorted(collected(result)) == list(range(7))


@BOTH
def test_nothing_in_nothing_out(mode: RuntimeExecutionMode) -> None:
    empty = environment(mode).from_collection([1]).filter(lambda n: False)
    assert collected(empty.iterate(lambda s: s.map(lambda n: n), max_rounds=10)) == []
    empty = environment(mode).from_collection([1]).filter(lambda n: False)
    assert collected(empty.iterate(collatz)) == []


# -------------------------------------------------------------------------- the round as the time


class Stamp(ProcessFunction):
    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[Any]:
        yield value, ctx.timestamp()


class AtTheEnd(KeyedProcessFunction):
    """Counts the records of each round, and tells when it is over."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> None:
        self._count.update((self._count.value() or 0) + 1)
        ctx.timer_service().register_event_time_timer(ctx.timestamp())

    def on_timer(
        self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext
    ) -> Iterator[tuple[Any, ...]]:
        yield ctx.get_current_key(), timestamp, self._count.value()


@BOTH
@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_the_timestamp_of_a_record_is_its_round_whatever_it_was_before(
    mode: RuntimeExecutionMode, parallelism: int
) -> None:
    def body(numbers: DataStream) -> tuple[DataStream, DataStream]:
        stamped = numbers.process(Stamp())
        return stamped.map(lambda r: r[0]).shuffle(), stamped

    env = environment(mode, parallelism)
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        lambda n, _: 1_000_000 + n
    )
    numbers = env.from_collection(range(30)).assign_timestamps_and_watermarks(strategy)
    found = collected(numbers.iterate(body, max_rounds=3))
    assert sorted(found) == sorted((n, r) for n in range(30) for r in (1, 2, 3))


@BOTH
@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_timer_at_the_time_of_a_record_fires_once_all_of_the_round_is_there(
    mode: RuntimeExecutionMode, parallelism: int
) -> None:
    """Records double in every round; the state of a key lives on from round to round."""

    def body(numbers: DataStream) -> tuple[DataStream, DataStream]:
        counts = numbers.key_by(lambda n: n % 3).process(AtTheEnd())
        return numbers.rebalance().flat_map(lambda n: [n, n]).shuffle(), counts

    env = environment(mode, parallelism)
    found = collected(env.from_collection(range(5)).iterate(body, max_rounds=5))
    wanted = []
    for key in range(3):
        count = 0
        for number in range(1, 6):
            count += sum(2 ** (number - 1) for n in range(5) if n % 3 == key)
            wanted.append((key, number, count))
    assert sorted(found) == wanted


WAYS: dict[str, Callable[[DataStream], DataStream]] = {
    "as it is": lambda s: s,
    "rebalance": lambda s: s.rebalance(),
    "shuffle": lambda s: s.shuffle(),
    "rescale": lambda s: s.rescale(),
    "to the first": lambda s: s.global_(),
    "through one subtask": lambda s: s.map(lambda r: r).set_parallelism(1),
    "through four": lambda s: s.rebalance().map(lambda r: r).set_parallelism(4),
}


@settings(max_examples=25, deadline=None)
@given(
    targets=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=6, max_size=6),
    ways=st.tuples(st.sampled_from(list(WAYS)), st.sampled_from(list(WAYS))),
    parallelism=st.integers(1, 3),
    chaining=st.booleans(),
)
def test_a_window_of_one_round_has_all_its_records_and_no_others(
    targets: list[list[int]], ways: tuple[str, str], parallelism: int, chaining: bool
) -> None:
    """What each of six vertices gets in a round goes on to all of its targets in the next."""

    def send(record: tuple[int, int]) -> list[tuple[int, int]]:
        return [(target, record[1] % 1_000) for target in targets[record[0]]]

    def body(tokens: DataStream) -> tuple[DataStream, DataStream]:
        gathered = WAYS[ways[0]](tokens).key_by(0).window(ONE_ROUND).reduce(add)
        return WAYS[ways[1]](gathered.flat_map(send)), gathered.process(Stamp())

    def add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
        return one[0], one[1] + other[1]

    env = environment(BATCH, parallelism)
    if not chaining:
        env.disable_operator_chaining()
    found = collected(env.from_collection([(n % 6, n) for n in range(20)]).iterate(body, 6))
    wanted, tokens = [], [(n % 6, n) for n in range(20)]
    for number in range(1, 7):
        sums: Counter[int] = Counter()
        for vertex, count in tokens:
            sums[vertex] += count
        got = {vertex for vertex, _ in tokens}
        wanted += [((vertex, sums[vertex]), number) for vertex in got]
        tokens = [record for vertex in got for record in send((vertex, sums[vertex]))]
    assert sorted(found) == sorted(wanted)


class Remember(KeyedCoProcessFunction):
    """The first input asks how many records of the second there are for its key."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._known = runtime_context.get_list_state(ListStateDescriptor("known"))

    def process_element1(self, value: int, ctx: Any) -> Iterator[tuple[int, int, int]]:
        yield value, len(list(self._known.get())), ctx.timestamp()

    def process_element2(self, value: int, ctx: Any) -> None:
        assert ctx.timestamp() == 0
        self._known.add(value)


@BOTH
@pytest.mark.parametrize("parallelism", [1, 3])
def test_what_comes_from_outside_is_complete_before_the_first_round(
    mode: RuntimeExecutionMode, parallelism: int
) -> None:
    env = environment(mode, parallelism)
    outside = env.from_collection(range(3_000)).map(lambda n: n % 4)

    def body(numbers: DataStream) -> tuple[DataStream, DataStream]:
        asked = numbers.connect(outside).key_by(lambda n: n % 4, lambda n: n).process(Remember())
        return asked.map(lambda r: r[0]), asked

    found = collected(env.from_collection(range(8)).iterate(body, max_rounds=2))
    assert sorted(found) == sorted((n, 750, r) for n in range(8) for r in (1, 2))


def test_what_round_0_feeds_back_goes_round_with_the_initial_records() -> None:
    env = environment(parallelism=3)
    others = env.from_collection(range(100, 110))
    result = env.from_collection(range(10)).iterate(
        lambda s: s.union(others).map(lambda n: n + 1_000), max_rounds=2
    )
    wanted = [n + 2_000 for n in range(10)] + [n + 3_000 for n in range(100, 110)]
    assert sorted(collected(result)) == wanted


def test_a_source_that_is_idle_or_ahead_of_time_does_not_let_a_round_begin_without_it() -> None:
    env = environment(STREAMING, 1)
    script = [Record(1, 5), Watermark(9_000), Wait(150), Record(2, 9_500), Watermark(99_000)]
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_idleness(Duration.of_millis(20))
    numbers = env.from_source(ScriptedSource(script), strategy, "numbers")

    def body(stream: DataStream) -> tuple[DataStream, DataStream]:
        sums = stream.window_all(ONE_ROUND).reduce(lambda a, b: a + b)
        return stream, sums

    assert collected(numbers.iterate(body, max_rounds=2)) == [3, 3]


def test_after_the_loop_batch_sorts_by_round() -> None:
    """The last record of a key is that of its last round."""
    env = environment(BATCH, 3)
    numbers = env.from_collection([(n, n, 0) for n in range(2, 40)])
    before = numbers.iterate(lambda s: (collatz(s)[0].shuffle(), s))
    last = before.key_by(lambda r: r[0]).reduce(lambda one, other: other)
    assert sorted(collected(last)) == [(n, 2, collatz_steps(n) - 1) for n in range(2, 40)]


# -------------------------------------------------------------------------------------- programs


class Spread(KeyedCoProcessFunction):
    """Keeps the least label of a vertex, and tells its neighbours of each that is lower."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._label = runtime_context.get_state(ValueStateDescriptor("label"))
        self._neighbours = runtime_context.get_list_state(ListStateDescriptor("neighbours"))

    def process_element1(self, value: tuple[int, int], ctx: Any) -> Iterator[Any]:
        label = value[1]
        known = self._label.value()
        if known is None or label < known:
            self._label.update(label)
            yield LABELS, value
            for neighbour in self._neighbours.get():
                yield neighbour, label

    def process_element2(self, value: Edge, ctx: Any) -> None:
        self._neighbours.add(value[1])


LABELS = OutputTag("labels")


def components(env: StreamExecutionEnvironment, vertices: int, edges: list[Edge]) -> DataStream:
    both_ways = env.from_collection(edges or [(0, 0)]).flat_map(lambda e: [e, e[::-1]])

    def body(labels: DataStream) -> tuple[DataStream, DataStream]:
        spread = labels.connect(both_ways).key_by(0, 0).process(Spread())
        return spread, spread.get_side_output(LABELS)

    return env.from_collection([(v, v) for v in range(vertices)]).iterate(body)


def union_find(vertices: int, edges: Iterable[Edge]) -> dict[int, int]:
    parent = list(range(vertices))

    def find(vertex: int) -> int:
        while parent[vertex] != vertex:
            vertex = parent[vertex]
        return vertex

    for one, other in edges:
        low, high = sorted((find(one), find(other)))
        parent[high] = low
    return {vertex: find(vertex) for vertex in range(vertices)}


graphs = st.integers(1, 25).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40)
    )
)


@settings(max_examples=25, deadline=None)
@given(graph=graphs, parallelism=st.integers(1, 3), mode=st.sampled_from([BATCH, STREAMING]))
def test_connected_components_are_those_of_union_find(
    graph: tuple[int, list[Edge]], parallelism: int, mode: RuntimeExecutionMode
) -> None:
    vertices, edges = graph
    labels: dict[int, int] = {}
    for vertex, label in collected(components(environment(mode, parallelism), vertices, edges)):
        labels[vertex] = min(label, labels.get(vertex, label))
    assert labels == union_find(vertices, edges)


class Share(KeyedCoProcessFunction):
    """Deals out the rank of a page to those it links to."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._links = runtime_context.get_list_state(ListStateDescriptor("links"))

    def process_element1(self, value: tuple[int, float], ctx: Any) -> Iterator[tuple[int, float]]:
        page, rank = value[:2]
        links = list(self._links.get())
        yield page, 0.0
        for link in links:
            yield link, rank / len(links)

    def process_element2(self, value: Edge, ctx: Any) -> None:
        self._links.add(value[1])


LINKS = [(0, 1), (0, 2), (1, 2), (2, 0), (3, 2), (3, 0), (4, 3), (1, 4)]


@BOTH
@pytest.mark.parametrize("parallelism", [1, 3])
def test_page_rank(mode: RuntimeExecutionMode, parallelism: int) -> None:
    env = environment(mode, parallelism)
    links = env.from_collection(LINKS)

    def body(ranks: DataStream) -> DataStream:
        shares = ranks.connect(links).key_by(0, 0).process(Share())
        sums = shares.key_by(0).window(ONE_ROUND).reduce(lambda a, b: (a[0], a[1] + b[1]))
        return sums.map(lambda r: (r[0], 0.03 + 0.85 * r[1]))

    found = dict(collected(env.from_collection([(p, 0.2) for p in range(5)]).iterate(body, 30)))
    ranks = dict.fromkeys(range(5), 0.2)
    for _ in range(30):
        shares: dict[int, float] = defaultdict(float)
        for page, link in LINKS:
            shares[link] += ranks[page] / sum(one == page for one, _ in LINKS)
        ranks = {page: 0.03 + 0.85 * shares[page] for page in range(5)}
    assert found == pytest.approx(ranks)


class Nearest(KeyedCoProcessFunction):
    """Keeps points, and at the end of each round assigns them to the nearest center of it."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._points = runtime_context.get_list_state(ListStateDescriptor("points"))
        self._centers = runtime_context.get_list_state(ListStateDescriptor("centers"))

    def process_element1(self, value: tuple[int, float, int], ctx: Any) -> None:
        self._centers.add(value[1:])
        ctx.timer_service().register_event_time_timer(ctx.timestamp())

    def process_element2(self, value: float, ctx: Any) -> None:
        self._points.add(value)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[tuple[int, float, float, int]]:
        centers = list(self._centers.get())
        self._centers.clear()
        for point in self._points.get():
            _, number, at = min((abs(point - at), number, at) for at, number in centers)
            yield number, at, point, 1


@BOTH
def test_k_means_ends_when_no_center_moves(mode: RuntimeExecutionMode) -> None:
    env = environment(mode, 3)
    points = [float(n) for n in [*range(10), *range(50, 70), *range(200, 203)]]
    shards = 4

    def body(centers: DataStream) -> DataStream:
        """Records are (number, position, how far it has moved)."""
        to_all = centers.flat_map(lambda c: [(shard, c[1], c[0]) for shard in range(shards)])
        given = env.from_collection(points)
        nearest = to_all.connect(given).key_by(0, lambda p: int(p) % shards).process(Nearest())
        sums = nearest.key_by(0).window(ONE_ROUND).reduce(add_points)
        return sums.map(lambda s: (s[0], s[2] / s[3], abs(s[2] / s[3] - s[1])))

    initial = [(0, 0.0, None), (1, 60.0, None), (2, 70.0, None)]
    found = collected(env.from_collection(initial).iterate(body, until=lambda c: c[2] == 0.0))
    assert sorted(center for _, center, _ in found) == [4.5, 59.5, 201.0]


def add_points(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    return one[0], one[1], one[2] + other[2], one[3] + other[3]


class Relax(KeyedCoProcessFunction):
    """Keeps the shortest distance of a vertex; tells its neighbours at the end of a round."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._distance = runtime_context.get_state(ValueStateDescriptor("distance"))
        self._roads = runtime_context.get_list_state(ListStateDescriptor("roads"))

    def process_element1(self, value: tuple[int, int], ctx: Any) -> None:
        known = self._distance.value()
        if known is None or value[1] < known:
            self._distance.update(value[1])
            ctx.timer_service().register_event_time_timer(ctx.timestamp())
            ctx.timer_service().register_event_time_timer(END)

    def process_element2(self, value: tuple[int, int, int], ctx: Any) -> None:
        self._roads.add(value[1:])

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        distance = self._distance.value()
        if timestamp == END:
            yield LABELS, (ctx.get_current_key(), distance)
        else:
            for there, length in self._roads.get():
                yield there, distance + length


END = 2**40  # a round that never comes: its timers fire when the iteration has ended


@settings(max_examples=15, deadline=None)
@given(
    roads=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=40
    ),
    parallelism=st.integers(1, 3),
)
def test_shortest_paths_come_out_once_at_the_end(
    roads: list[tuple[int, int, int]], parallelism: int
) -> None:
    env = environment(BATCH, parallelism)
    given = env.from_collection(roads)

    def body(reached: DataStream) -> tuple[DataStream, DataStream]:
        relaxed = reached.connect(given).key_by(0, 0).process(Relax())
        return relaxed, relaxed.get_side_output(LABELS)

    found = collected(env.from_collection([(0, 0)]).iterate(body))
    shortest = {0: 0}
    for _ in range(10):
        for here, there, length in roads:
            if here in shortest:
                way = shortest[here] + length
                shortest[there] = min(way, shortest.get(there, way))
    assert sorted(found) == sorted(shortest.items())
