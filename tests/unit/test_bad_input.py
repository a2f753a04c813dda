"""What a careless user can give, and the one sentence that comes back.

Each case is told from the user's side: a program, the sentence, and the exit code of the command.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dataflow.common import Configuration, Duration, Encoder, Row, Types, WatermarkStrategy
from dataflow.datastream import (
    KeyedProcessFunction,
    MapFunction,
    OutputTag,
    ProcessFunction,
    ProcessWindowFunction,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.file_system import FileSink, FileSource, StreamFormat
from dataflow.datastream.state import (
    MapStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from dataflow.datastream.window import SlidingEventTimeWindows, TumblingEventTimeWindows
from dataflow.errors import DataflowError, JobExecutionError, StorageError
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.testing.scripted_source import ScriptedSource, WaitForCheckpoint
from jobmanager.cli import main

PATIENCE_S = 30


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    for name in ("DATAFLOW_CONF", "DATAFLOW_PLAN_ONLY", "DATAFLOW_JOB_ID", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "x")  # so that what the command puts there is taken away again
        monkeypatch.delenv(name)


def environment(parallelism: int = 1) -> StreamExecutionEnvironment:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(parallelism)
    return env


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return list(results)


def numbers(parallelism: int = 1) -> Any:
    return environment(parallelism).from_sequence(1, 4)


def refusal(attempt: Callable[[], Any]) -> DataflowError:
    """The error of ours that ``attempt`` ends with; without a frame of ours in its text."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            attempt()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it hangs"
    assert caught, "it was accepted"
    (error,) = caught
    assert isinstance(error, DataflowError), repr(error)
    for package in ("dataflow", "state", "taskmanager", "jobmanager"):
        assert f"/{package}/" not in str(error).replace("/tests/", "")
    return error


def assert_refused(attempt: Callable[[], Any], exit_code: int, *sentence: str) -> None:
    error = refusal(attempt)
    for part in sentence:
        assert part in str(error)
    assert error.exit_code == exit_code


# -------------------------------------------------------------------------------------- JobGraph


def _execute_nothing() -> None:
    environment().execute()


def _no_sink() -> None:
    env = environment()
    env.from_collection([1]).map(str)
    env.execute()


def _one_uid_for_two() -> None:
    env = environment()
    env.from_collection([1]).uid("a").map(str).uid("a").print()
    env.execute()


def _too_parallel() -> None:
    env = environment(5).set_max_parallelism(3)
    env.from_sequence(1, 2).print()
    env.execute()


def _too_many_subtasks() -> None:
    collected(environment(20_000).from_sequence(1, 2))


class Keyed(KeyedProcessFunction):
    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        yield value


def _keyed_function_without_keys() -> None:
    collected(numbers().process(Keyed()))


@pytest.mark.parametrize(
    ("attempt", "exit_code", "sentence"),
    [
        (_execute_nothing, 3, "the job has no operators"),
        (_no_sink, 3, "the job has no sink"),
        (_one_uid_for_two, 3, "uid 'a' is given to 2 operators ('Source: Collection Source', "),
        (lambda: environment(0), 2, "parallelism.default = '0': 1 to 32768 is allowed"),
        (_too_parallel, 3, "parallelism.default (5) must be at most pipeline.max-parallelism (3)"),
        (_too_many_subtasks, 3, "the job has 40000 subtasks"),
        (_keyed_function_without_keys, 3, "needs key_by() before process()"),
        (lambda: numbers().sum(0), 3, "sum() needs a stream with keys: call key_by() before"),
        (
            lambda: numbers().window(TumblingEventTimeWindows.of(5)),
            3,
            "window() needs a stream with keys",
        ),
        (lambda: numbers().sink_to(FileSink), 3, "sink_to() needs a Sink, and got FileSink; give"),
        (lambda: numbers().map(None), 3, "map(): a callable is needed, and None is a NoneType"),
    ],
)
def test_a_graph_that_cannot_be(attempt: Callable[[], Any], exit_code: int, sentence: str) -> None:
    assert_refused(attempt, exit_code, sentence)


def test_a_stream_still_has_no_attributes_that_do_not_exist() -> None:
    stream = numbers()
    assert not hasattr(stream, "window")
    assert not hasattr(stream, "anything")
    with pytest.raises(AttributeError, match="'DataStream' object has no attribute 'anything'"):
        _ = stream.anything


# ------------------------------------------------------------------- functions, before they run


def _with(function: Any, name: str = "mine") -> Callable[[], Any]:
    return lambda: collected(numbers().map(function).name(name))


def _closures() -> list[Any]:
    lock, generator = threading.Lock(), (i for i in range(3))
    env, stream, blob = environment(), numbers(), b"x" * (11 << 20)

    class WithSocket(MapFunction):
        def __init__(self, held: Any) -> None:
            self.connection = held

        def map(self, value: Any) -> Any:
            return value

    refused = WithSocket(None)
    refused.connection = threading.RLock()
    return [
        (lambda x: (lock, x), "closure variable 'lock' (_thread.lock) cannot be pickled"),
        (lambda x: next(generator), "closure variable 'generator' (generator) cannot be pickled"),
        (lambda x: env.from_collection([x]), "closure variable 'env'"),
        (lambda x: stream, "a stream is part of the program and cannot be used inside a function"),
        (lambda x: blob[x], "is 11.0 MiB when pickled, and at most 10 MiB is allowed"),
        (refused, "attribute 'connection' (_thread.RLock) cannot be pickled"),
    ]


@pytest.mark.parametrize("case", range(6))
def test_a_function_that_cannot_be_shipped(case: int) -> None:
    function, sentence = _closures()[case]
    assert_refused(_with(function), 3, "operator 'mine'", sentence)


async def _asynchronous(*_: Any) -> Any:
    return 1


def _generator(*arguments: Any) -> Iterable[Any]:
    yield arguments


class AsynchronousProcess(ProcessFunction):
    async def process_element(  # type: ignore[override]
        self, value: Any, ctx: ProcessFunction.Context
    ) -> Any:
        return value


@pytest.mark.parametrize(
    ("attempt", "sentence"),
    [
        (lambda: numbers().map(lambda a, b: a), "map(): <lambda>(a, b) is called with 1 argument"),
        (lambda: numbers().filter(lambda: True), "filter(): <lambda>() is called with 1 argument"),
        (
            lambda: numbers().key_by(lambda n: n).reduce(lambda a: a),
            "reduce(): <lambda>(a) is called with 2 arguments",
        ),
        (lambda: numbers().map(_asynchronous), "map(_asynchronous): an async function"),
        (lambda: numbers().key_by(_asynchronous), "key_by(_asynchronous): an async function"),
        (lambda: numbers().process(AsynchronousProcess()), "process(AsynchronousProcess): an asy"),
        (lambda: numbers().map(_generator), "flat_map() takes any number of them"),
        (lambda: numbers().filter(_generator), "filter(_generator): a generator function is not"),
        (lambda: numbers().key_by(_generator), "key_by(_generator): a generator function is not"),
        (
            lambda: numbers().key_by(lambda n: n).reduce(_generator),
            "reduce(_generator): a generator function is not possible here",
        ),
        (
            lambda: numbers().partition_custom(_generator, lambda n: n),
            "partition_custom(_generator): a generator",
        ),
    ],
)
def test_a_function_of_the_wrong_kind(attempt: Callable[[], Any], sentence: str) -> None:
    assert_refused(attempt, 3, sentence)


# ----------------------------------------------------------------------------- functions that run


class Own(BaseException):
    pass


def _raise(error: BaseException) -> Callable[[Any], Any]:
    def function(value: Any) -> Any:
        if value == 3:
            raise error
        return value

    return function


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (Own("unusual"), "Own: unusual"),
        (SystemExit(3), "SystemExit: 3"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_what_a_function_raises_is_shown_with_its_own_lines(
    error: BaseException, sentence: str
) -> None:
    assert_refused(_with(_raise(error)), 5, sentence, "in function", "raise error")


def test_the_record_that_failed_is_named_by_its_position() -> None:
    assert_refused(
        _with(_raise(ValueError())), 5, "operator 'mine' (subtask 1/1)", "record 3 of a batch of 4"
    )


def test_stop_iteration_does_not_end_the_batch_early() -> None:
    assert_refused(_with(_raise(StopIteration())), 5, "the function raised StopIteration")


def test_a_message_without_end_is_cut() -> None:
    text = str(refusal(_with(_raise(ValueError("x" * 10_000_000)))))
    assert "characters" in text
    assert len(text) < 50_000


@pytest.mark.parametrize(("result", "name"), [(None, "None"), (5, "int")])
def test_flat_map_has_to_return_something_to_iterate(result: Any, name: str) -> None:
    assert_refused(
        lambda: collected(numbers().flat_map(lambda _: result)),
        5,
        f"flat_map must return an iterable or yield its results; it returned {name}",
    )


def test_a_function_that_changes_its_record_does_not_change_that_of_another() -> None:
    env = environment()
    records = env.from_collection([{"n": 1}])

    def change(record: dict[str, int]) -> dict[str, int]:
        record["n"] += 1
        return record

    changed = records.map(change)
    assert collected(changed.union(records.map(lambda r: r)))[::1] in (
        [{"n": 2}, {"n": 1}],
        [{"n": 1}, {"n": 2}],
    )


def test_state_and_timers_need_keys() -> None:
    class Stateful(MapFunction):
        def open(self, runtime_context: Any) -> None:
            runtime_context.get_state(ValueStateDescriptor("s", Types.INT()))

        def map(self, value: Any) -> Any:
            return value

    class Timed(ProcessFunction):
        def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Any:
            ctx.timer_service().register_event_time_timer(1)

    assert_refused(_with(Stateful()), 5, "failed in open()", "state needs a keyed stream")
    assert_refused(lambda: collected(numbers().process(Timed())), 5, "timers need a keyed stream")


def test_one_name_for_two_states() -> None:
    class Confused(Keyed):
        def open(self, runtime_context: Any) -> None:
            runtime_context.get_state(ValueStateDescriptor("s", Types.INT()))
            runtime_context.get_map_state(MapStateDescriptor("s", Types.INT(), Types.INT()))

    assert_refused(
        lambda: collected(numbers().key_by(lambda n: n).process(Confused())),
        5,
        "uses the name 's' for two states: value state and map state",
    )


@pytest.mark.parametrize(
    ("attempt", "exit_code", "sentence"),
    [
        (lambda: ValueStateDescriptor("", Types.INT()), 3, "the name must be a text"),
        (lambda: OutputTag(""), 3, "OutputTag(''): the id must be a text"),
        (lambda: StateTtlConfig.new_builder(Duration.of_seconds(-1)).build(), 2, "at least 1 ms"),
        (
            lambda: environment().from_collection([(1,)], Types.ROW_NAMED(["a", "b"], [])),
            3,
            "",
        ),
        (lambda: environment().from_collection("text"), 3, "a list or another iterable is needed"),
    ],
)
def test_descriptions_that_describe_nothing(
    attempt: Callable[[], Any], exit_code: int, sentence: str
) -> None:
    assert_refused(attempt, exit_code, sentence)


# ------------------------------------------------------------------------------------------- keys


class Unkeyable:
    pass


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (lambda n: 1j, "a key of type complex has no stable hash; use str, bytes, int"),
        (lambda n: [n], "a key of type list is not hashable"),
        (lambda n: {}, "a key of type dict is not hashable"),
        (lambda n: (n, [n]), "a key of type tuple is not hashable"),
        (lambda n: (n, 1j), "a key of type complex has no stable hash"),
        (lambda n: float("nan"), "NaN cannot be a key"),
        (lambda n: Unkeyable(), "a key of type Unkeyable has no stable hash"),
        (lambda n: 1 // 0, "ZeroDivisionError"),
        (lambda n: sys.exit(1), "SystemExit: 1"),
        ("name", "a record of type int has no field 'name'"),
    ],
)
def test_a_key_that_is_none(key: Any, sentence: str, parallelism: int) -> None:
    """Judged where records are distributed, and with one subtask where they arrive."""
    assert_refused(
        lambda: collected(numbers(parallelism).key_by(key).reduce(lambda a, b: a)), 5, sentence
    )


def test_a_key_that_changes_from_one_look_to_the_next() -> None:
    def run() -> None:
        seen: list[int] = []

        def unsteady(value: int) -> int:
            seen.append(value)
            return len(seen)

        collected(environment(2).from_sequence(1, 200).key_by(unsteady).reduce(lambda a, b: a))

    assert_refused(run, 5, "the key selector must always return the same key for the same record")


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [(2, "the partitioner chose channel 2; 0 to 1 are allowed"), ("1", "a channel of type str")],
)
def test_a_partitioner_that_chooses_no_channel(choice: Any, sentence: str) -> None:
    def chosen() -> Any:
        return numbers(2).partition_custom(lambda key, count: choice, lambda n: n)

    assert_refused(lambda: collected(chosen().map(lambda n: n)), 5, sentence)


# ------------------------------------------------------------------------------------------- time


def windowed(timestamp: Any, assigner: bool = True) -> list[Any]:
    strategy = WatermarkStrategy.for_monotonous_timestamps()
    if assigner:
        strategy = strategy.with_timestamp_assigner(lambda record: record[1])
    records = environment().from_collection([("a", 1), ("a", timestamp)])
    windows = (
        records.assign_timestamps_and_watermarks(strategy)
        .key_by(lambda record: record[0])
        .window(TumblingEventTimeWindows.of(10))
    )
    return collected(windows.reduce(lambda a, b: b))


@pytest.mark.parametrize(
    ("timestamp", "sentence"),
    [
        (None, "TypeError: a timestamp is an int of ms, not NoneType"),
        (1.5, "TypeError: a timestamp is an int of ms, not float"),
        ("1", "TypeError: a timestamp is an int of ms, not str"),
        (True, "TypeError: a timestamp is an int of ms, not bool"),
        (2**63 - 1, "ValueError: the timestamp 9223372036854775807 is out of range"),
        (-(2**63), "ValueError: the timestamp -9223372036854775808 is out of range"),
        (10**30, "is out of range"),
    ],
)
def test_a_timestamp_that_is_none(timestamp: Any, sentence: str) -> None:
    assert_refused(
        lambda: windowed(timestamp),
        5,
        "failed in the timestamp assigner on record 2 of a batch of 2",
        sentence,
    )


def test_negative_far_and_numpy_timestamps_are_windowed_as_all_others() -> None:
    import numpy as np

    assert windowed(-5) == [("a", -5), ("a", 1)]
    assert windowed(2**62) == [("a", 1), ("a", 2**62)]
    assert windowed(np.int64(25)) == [("a", 1), ("a", 25)]


def test_records_without_timestamps_in_windows() -> None:
    assert_refused(
        lambda: windowed(2, assigner=False),
        5,
        "operator 'TumblingEventTimeWindows' has event-time windows, but its records have no "
        "timestamps: give the WatermarkStrategy a timestamp assigner",
    )


def test_a_timer_that_is_no_time() -> None:
    class Early(Keyed):
        def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
            ctx.timer_service().register_event_time_timer(1.5)  # type: ignore[arg-type]

    assert_refused(
        lambda: collected(numbers().key_by(lambda n: n).process(Early())),
        5,
        "a timer needs an int in milliseconds, not float",
    )


@pytest.mark.parametrize(
    ("attempt", "exit_code", "sentence"),
    [
        (lambda: TumblingEventTimeWindows.of(0), 2, "size: 0 is too short; at least 1 ms"),
        (lambda: TumblingEventTimeWindows.of(10, 20), 3, "the offset (20 ms) must be shorter"),
        (lambda: SlidingEventTimeWindows.of(10, 0), 2, "slide: 0 is too short"),
        (
            lambda: SlidingEventTimeWindows.of(Duration.of_days(3650), 1),
            3,
            "at most 100000 is allowed",
        ),
        (
            lambda: WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(-2)),
            2,
            "-2 s is too short",
        ),
        (lambda: environment().enable_checkpointing(0), 2, "at least 1 ms is allowed"),
        (lambda: environment().enable_checkpointing("soon"), 2, "'soon' is a str"),  # type: ignore
    ],
)
def test_a_time_that_cannot_be(attempt: Callable[[], Any], exit_code: int, sentence: str) -> None:
    assert_refused(attempt, exit_code, sentence)


def test_a_window_function_has_to_return_something_to_iterate() -> None:
    class Five(ProcessWindowFunction[Any, Any, Any, Any]):
        def process(self, key: Any, context: Any, elements: Iterable[Any]) -> Any:
            return 5

    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda n: n)
    windows = (
        numbers()
        .assign_timestamps_and_watermarks(strategy)
        .key_by(lambda n: 0)
        .window(TumblingEventTimeWindows.of(10))
    )
    assert_refused(
        lambda: collected(windows.process(Five())), 5, "firing the window [0, 10)", "returned int"
    )


# ---------------------------------------------------------------------------------------- records


def shuffled(make: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: collected(numbers(2).map(make).key_by(lambda r: 0).reduce(lambda a, b: b))


def test_a_record_too_large_for_a_channel() -> None:
    assert_refused(
        shuffled(lambda n: b"x" * (20 << 20)),
        5,
        "Map (",
        "is beyond the limit of 16,777,216 (taskmanager.network.record-bytes-max)",
    )


def test_a_record_that_cannot_travel() -> None:
    assert_refused(
        shuffled(lambda n: threading.Lock()),
        5,
        "a record of type lock cannot be sent to another task: cannot pickle '_thread.lock'",
    )


def _file(folder: Path, content: bytes, name: str = "in") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "content", "sentence"),
    [
        ("json", b'{"a":1}\n{"a":\n', "line 2: Expecting value at column 6"),
        ("json", b'{"a":NaN}\n', "line 1: NaN is not a JSON number"),
        ("json", b"[" * 200 + b"]" * 200, "line 1: nested deeper than 64"),
        ("json", b"[" * 200_000, "line 1: nested deeper than 64"),
        ("json", b'{"a":1,"a":2}\n', "line 1: the key 'a' is given twice"),
        ("json", b'{"a":"\xff"}\n', "line 1: not valid utf-8"),
        ("json", b'{"a":' + b"9" * 10_000 + b"}\n", "line 1: Exceeds the limit (4300 digits)"),
        ("text", b"ab\nc\xff\n", "line 2: not valid utf-8"),
        ("text", b"x" * (9 << 20), "line 1: a record longer than 8388608 bytes"),
        ("csv", b"a,b\n1,2\n1,2,3\n", "line 3: expected 2 columns, got 3"),
        ("csv", b"a,b\n1\n", "line 2: expected 2 columns, got 1"),
        ("csv", b'a,b\n1,"2\n', "line 2: a quoted field is not closed on its line"),
        ("csv", b"a,a\n1,2\n", "line 1: the header must name every column, each differently"),
        ("parquet", b"PAR1 nonsense", "not a parquet file"),
    ],
)
def test_a_file_that_is_not_what_it_says(
    kind: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    path = _file(tmp_path, content)
    source = {
        "json": FileSource.json_lines,
        "text": FileSource.text,
        "csv": FileSource.csv,
        "parquet": FileSource.parquet,
    }[kind](path)
    stream = environment().from_source(source, WatermarkStrategy.no_watermarks(), "files")
    assert_refused(lambda: collected(stream), 5, "Source: files", f"file://{path}", sentence)


def text_source(path: str) -> FileSource:
    return FileSource.for_record_stream_format(StreamFormat.text_line_format(), path).build()


def _read(path: str) -> Callable[[], Any]:
    return lambda: collected(
        environment().from_source(text_source(path), WatermarkStrategy.no_watermarks(), "files")
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(_read(str(tmp_path / "no")), 5, "there is no file or folder", "/no")
    assert_refused(_read(str(tmp_path / "*.no")), 5, "no file matches", "/*.no")


def test_a_file_that_vanishes_while_the_job_runs(tmp_path: Path) -> None:
    for name in ("a.log", "b.log"):
        _file(tmp_path, b"x\n" * 50_000, name)

    def remove(line: str) -> str:
        (tmp_path / "b.log").unlink(missing_ok=True)
        return line

    source = text_source(str(tmp_path / "*.log"))
    stream = environment().from_source(source, WatermarkStrategy.no_watermarks(), "files")
    assert_refused(
        lambda: collected(stream.map(remove)),
        5,
        "b.log has vanished since it was listed with 100000 bytes",
    )


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("s3://", "the path 's3://' names no bucket: write s3://bucket/folder"),
        ("s3:///key", "names no bucket"),
        ("hdfs://host/x", "no usable scheme; allowed are file://, s3://"),
        ("file://host/x", "must be file:///folder, without a host"),
        ("/a/../b", "contains '..'"),
        ("s3://key:secret@bucket/x", "credentials do not belong into a s3:// URI"),
        (None, "a path must be non-empty text, not None"),
    ],
)
def test_a_path_that_is_none(path: Any, sentence: str) -> None:
    error = refusal(lambda: text_source(path))
    assert sentence in str(error)
    assert "secret" not in str(error)
    assert error.exit_code == 2
    assert_refused(
        lambda: FileSink.for_row_format(path, Encoder.simple_string_encoder()).build(), 2, sentence
    )


@pytest.mark.parametrize(
    ("attempt", "sentence"),
    [
        (lambda: DataGeneratorSource(lambda: 1), "is called with 1 argument"),  # type: ignore
        (lambda: DataGeneratorSource(str, -1), "count must be >= 0 or None, not -1"),
        (lambda: environment().from_sequence(5, 1), "start 5 is after end 1"),
        (lambda: environment().from_sequence(1, 2.5), "end must be an int, not 2.5"),  # type: ignore
        (
            lambda: environment().from_source(  # type: ignore[arg-type]
                text_source("/x"), None, "files"
            ),
            "watermark_strategy must be a WatermarkStrategy",
        ),
        (lambda: StreamFormat.text_line_format("no-such"), "unknown charset 'no-such'"),
    ],
)
def test_a_source_that_makes_no_sense(attempt: Callable[[], Any], sentence: str) -> None:
    assert sentence in str(refusal(attempt))


def test_what_a_generator_function_raises_comes_without_our_lines() -> None:
    source = DataGeneratorSource(lambda i: 1 // (i - 3), 10)
    stream = environment().from_source(source, WatermarkStrategy.no_watermarks(), "made up")
    assert_refused(lambda: collected(stream), 5, "Source: made up", "1 // (i - 3)", "ZeroDivision")


def test_a_sink_whose_folder_is_a_file(tmp_path: Path) -> None:
    folder = _file(tmp_path, b"in the way")
    sink = FileSink.for_row_format(folder, Encoder.simple_string_encoder()).build()
    env = environment()
    env.from_sequence(1, 2).sink_to(sink)
    assert_refused(env.execute, 5, f"cannot write {folder}/part-0-")


def test_a_row_without_that_field() -> None:
    rows = environment().from_collection([Row(a=1)])
    assert_refused(lambda: collected(rows.map(lambda row: row.b)), 5, "a Row has no field 'b'")


# ----------------------------------------------------------------------------------- configuration


def test_every_wrong_key_is_reported_with_the_nearest_known_one() -> None:
    configuration = Configuration()
    for key, value in (
        ("paralelism.default", "2"),
        ("execution.checkpointing.interval", "5 fortnights"),
        ("taskmanager.network.record-bytes-max", "99 gb"),
    ):
        configuration.set_string(key, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.from_sequence(1, 2).print()
    text = str(refusal(env.execute))
    assert "'paralelism.default'; the nearest known one is 'parallelism.default'" in text
    assert "execution.checkpointing.interval = '5 fortnights': a duration such as" in text
    assert "taskmanager.network.record-bytes-max = '99 gb': 1024 bytes to" in text


def checkpointed(storage: str) -> StreamExecutionEnvironment:
    env = environment()
    env.enable_checkpointing(20)
    env.get_checkpoint_config().set_checkpoint_storage(storage)
    return env


@pytest.mark.parametrize(
    ("storage", "sentence"),
    [("s3://", "names no bucket"), ("gs://bucket/x", "no usable scheme"), ("/a/../b", "'..'")],
)
def test_a_checkpoint_storage_that_is_none(storage: str, sentence: str) -> None:
    env = checkpointed(storage)
    env.from_sequence(1, 2).print()
    assert_refused(env.execute, 2, sentence)


def test_a_checkpoint_folder_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env = checkpointed(_file(tmp_path, b"in the way"))
    env.from_sequence(1, 2).print()
    assert_refused(env.execute, 4, "cannot write", "Not a directory")
    assert "Traceback" not in caplog.text


def test_a_store_that_refuses_to_write_is_not_blamed_for_not_deleting() -> None:
    class Closed(MemoryFileSystem):
        def put_if_absent(self, path: str, data: bytes) -> bool:
            raise StorageError(f"cannot write {path}: access denied")

        def delete(self, path: str) -> None:
            raise StorageError(f"cannot delete {path}: access denied")

    assert_refused(lambda: Closed().probe_conditional_put("memory://x/jobs"), 4, "cannot write")


# ---------------------------------------------------------------------- checkpoints and job ids


@pytest.fixture
def checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """The folder of a job "orders" that has failed after its first checkpoint."""
    monkeypatch.setenv("DATAFLOW_JOB_ID", "orders")
    job = orders(tmp_path / "jobs", fails=True)
    assert "boom" in str(refusal(job.execute))
    capsys.readouterr()
    return tmp_path / "jobs"


def orders(
    folder: Path,
    uid: str = "totals",
    max_parallelism: int = 128,
    fails: bool = False,
    key: Callable[[Any], Any] = lambda n: n % 3,
) -> StreamExecutionEnvironment:
    env = checkpointed(str(folder)).set_max_parallelism(max_parallelism)
    env.configure(Configuration({"restart-strategy.type": "none"}))

    def add(a: int, b: int) -> int:
        if fails and b == 6:
            raise ValueError("boom")
        return a + b

    script = ScriptedSource([1, 2, 3, WaitForCheckpoint(), 4, 5, 6], batch_size=1)
    source = env.from_source(script, WatermarkStrategy.no_watermarks(), "numbers").uid("numbers")
    source.key_by(key).reduce(add).uid(uid).print().uid("out")
    return env


def _epoch(folder: Path) -> Path:
    return max((folder / "orders" / "epochs").iterdir())


def _reseal(path: Path, **changes: Any) -> None:
    def canonical(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    record = json.loads(path.read_bytes()) | changes
    record.pop("sha256")
    record["sha256"] = hashlib.sha256(canonical(record)).hexdigest()
    path.write_bytes(canonical(record))


def test_the_job_goes_on_when_nothing_is_wrong(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders(checkpoints).execute()
    assert capsys.readouterr().out.split()[-1] == "9"


def test_another_max_parallelism_than_the_checkpoints(checkpoints: Path) -> None:
    assert_refused(
        orders(checkpoints, max_parallelism=256).execute,
        3,
        "has max parallelism 256, but checkpoint",
        "was taken with 128; set_max_parallelism(128) on it",
    )


def test_an_operator_that_lost_its_uid(checkpoints: Path) -> None:
    assert_refused(
        orders(checkpoints, uid="sums").execute,
        3,
        "has state of operator uid 'totals', which the job no longer has",
        "execution.state-recovery.ignore-unclaimed-state: true",
    )


def test_a_damaged_epoch_record_fails_the_job_at_once(checkpoints: Path) -> None:
    _epoch(checkpoints).write_text("{}")
    assert_refused(orders(checkpoints).execute, 3, "/epochs/", "is not a record of this project")


def test_a_checkpoint_of_a_later_release(checkpoints: Path) -> None:
    _reseal(_epoch(checkpoints), version=2)
    assert_refused(
        orders(checkpoints).execute, 3, "format version 2, and this release reads up to 1"
    )


def test_a_manifest_of_a_later_release(checkpoints: Path) -> None:
    epoch = _epoch(checkpoints)
    body = json.loads(epoch.read_bytes())["body"]
    folder = f"generations/{body['generation']}/ckpt-{body['checkpoint_id']}"
    manifest = checkpoints / "orders" / folder / "manifest.json"
    _reseal(manifest, version=2)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    _reseal(epoch, body=body | {"manifest_sha256": digest})
    assert_refused(
        orders(checkpoints).execute, 3, "format version 2, and this release reads up to 1"
    )


def test_a_damaged_or_lost_manifest(checkpoints: Path) -> None:
    for manifest in (checkpoints / "orders").rglob("manifest.json"):
        manifest.write_text("junk")
    assert_refused(orders(checkpoints).execute, 3, "no checkpoint of", "is not the manifest")


def test_damaged_state(checkpoints: Path) -> None:
    for state in (checkpoints / "orders").rglob("ckpt-*/*-0-*"):
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    assert_refused(orders(checkpoints).execute, 3, "-0-", "is not what was written")


def test_the_checkpoints_of_another_job(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(checkpoints / "orders", checkpoints / "copied")
    monkeypatch.setenv("DATAFLOW_JOB_ID", "copied")
    assert_refused(orders(checkpoints).execute, 3, "is the manifest of another checkpoint")


def test_state_that_cannot_be_written(tmp_path: Path) -> None:
    class Locks(Keyed):
        def open(self, runtime_context: Any) -> None:
            descriptor = ValueStateDescriptor("lock", Types.PICKLED_BYTE_ARRAY())
            self.lock = runtime_context.get_state(descriptor)

        def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
            self.lock.update(threading.Lock())

    env = checkpointed(str(tmp_path))
    env.configure(Configuration({"restart-strategy.type": "none"}))
    env.from_sequence(1, 3).key_by(lambda n: n).process(Locks()).name("locks").print()
    assert_refused(
        env.execute, 5, "state 'lock' of operator 'locks' holds a value of type lock that cannot"
    )


def test_two_runs_under_one_job_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_JOB_ID", "twin")

    def run(name: str) -> Any:
        env = checkpointed(str(tmp_path))
        source = DataGeneratorSource(lambda i: i, rate_per_second=1000)
        stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "n").uid("n")
        sums = stream.key_by(lambda n: n % 3).reduce(lambda a, b: a + b).uid("sum")
        return sums.execute_and_collect(name)

    first = run("first")
    next(first)  # it runs, and has completed a checkpoint
    with run("second"):
        assert_refused(
            lambda: list(first),
            5,
            "job 'first' was stopped because another run took its job id, twin",
        )


def test_a_job_that_begins_anew_under_its_id_overwrites_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its checkpoints, generations and attempts are counted from the start again."""
    monkeypatch.setenv("DATAFLOW_JOB_ID", "anew")
    for run in ("one", "two"):
        env = checkpointed(f"{tmp_path}/{run}")
        env.from_collection([run]).uid("runs").sink_to(
            FileSink.json_lines(f"{tmp_path}/out")
        ).uid("files")
        env.execute(run)
    written = [file.read_text() for file in (tmp_path / "out").iterdir()]
    assert sorted(written) == ['"one"\n', '"two"\n']


# -------------------------------------------------------------------------------------- the command

GOOD = """
from dataflow.datastream import StreamExecutionEnvironment
env = StreamExecutionEnvironment.get_execution_environment()
env.from_sequence(1, 3).map(lambda n: n * 10).print()
env.execute("good")
"""


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs ``dataflow ARGUMENTS`` where job.py holds ``program``; exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    for name in ("DATAFLOW_LOCAL", "DATAFLOW_DETACHED"):
        monkeypatch.setenv(name, "x")  # as above
        monkeypatch.delenv(name)

    def run(*arguments: str, program: str = GOOD, both: bool = False) -> tuple[int, str]:
        Path("job.py").write_text(program)
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        said = capsys.readouterr()
        if both:
            return code, said.out + said.err
        return code, said.err if code else said.out

    return run


Command = Callable[..., tuple[int, str]]


def test_the_command_runs_a_good_program(command: Command) -> None:
    assert command("run", "--local", "job.py") == (0, "10\n20\n30\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--bogus", "job.py"], "--bogus"),
        (["nope.py"], "there is no program 'nope.py'"),
        (["-p", "0", "job.py"], "0 is not in 1..32768"),
        (["-p", "2.5", "job.py"], "'2.5' is not a whole number"),
        (["-p", "9" * 30, "job.py"], "is not in 1..32768"),
        (["-D", "foo", "job.py"], "'foo' is not KEY=VALUE"),
        (["-D", "paralelism.default=1", "job.py"], "the nearest known one is 'parallelism.def"),
        (["--address", "host:1", "job.py"], "--local runs without Ray"),
        (["-d", "job.py"], "--detached has no meaning"),
        (["--job-id", "../../etc", "job.py"], "'../../etc' is no job id: 1 to 63 of a-z"),
        (["--job-id", "a" * 64, "job.py"], "is no job id"),
        (
            [
                *("-D", "execution.checkpointing.interval=1s"),
                *("-D", "execution.checkpointing.dir=s3://", "job.py"),
            ],
            "names no bucket",
        ),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], sentence: str, command: Command) -> None:
    code, said = command("run", "--local", *arguments)
    assert sentence in said
    assert code == 2
    assert "Traceback" not in said


FAILING = GOOD.replace("n * 10", "n / 0")


@pytest.mark.parametrize(
    ("program", "expected", "sentence"),
    [
        (GOOD.replace("lambda n", "lambda n, m"), 3, "dataflow: map(): <lambda>(n, m) is called"),
        (FAILING, 5, "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(7)", 7, ""),
        ("import nosuchmodule", 1, "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def f(:", 1, "SyntaxError: invalid syntax"),
        ("1 / 0", 1, "line 1, in <module>\n    1 / 0"),
    ],
)
def test_a_program_that_fails_says_so_in_its_own_lines(
    program: str, expected: int, sentence: str, command: Command
) -> None:
    code, said = command("run", "--local", "job.py", program=program)
    assert sentence in said
    assert code == expected
    assert "cli.py" not in said
    assert "runpy" not in said


def test_options_that_a_program_gets_instead_are_pointed_out(command: Command) -> None:
    program = "import sys; print(sys.argv[1:])"
    code, said = command("run", "--local", "job.py", "-D", "a=b", program=program, both=True)
    assert code == 0
    assert "['-D', 'a=b']" in said
    assert "dataflow: -D follows job.py, so it is passed to the program" in said
    _, said = command("run", "--local", "job.py", "--jobs", "3", "-d", program=program, both=True)
    assert "dataflow:" not in said


def test_debug_shows_everything_under_the_same_exit_code(command: Command) -> None:
    program = GOOD.replace("lambda n", "lambda n, m")
    code, said = command("--debug", "run", "--local", "job.py", program=program)
    assert code == 3
    assert "Traceback" in said


@pytest.mark.parametrize("name", ["state.py", "jobmanager/__init__.py"])
@pytest.mark.parametrize("way", [("run", "--local"), ("plan",)])
def test_a_module_of_the_program_that_has_our_name_is_refused(
    way: tuple[str, ...], name: str, command: Command
) -> None:
    Path("data").mkdir()
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    code, said = command(*way, "job.py")
    assert (code, f"{name} has the name of a package of ray-dataflow" in said) == (2, True)


def test_options_are_not_guessed_from_their_beginnings(command: Command) -> None:
    code, said = command("run", "--loca", "job.py")
    assert (code, "unrecognized arguments: --loca" in said) == (2, True), said


def test_a_detached_job_needs_a_cluster_that_lives_on(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in (None, "local"):
        if address:
            monkeypatch.setenv("RAY_ADDRESS", address)
        code, said = command("run", "--detached", "job.py")
        assert code == 4
        assert "a Ray started by this program would end with it: name a cluster" in said


def test_a_finished_job_that_is_run_again_under_its_id_says_so(
    command: Command, tmp_path: Path
) -> None:
    settings = ("-D", "execution.checkpointing.interval=1s")
    settings += ("-D", f"execution.checkpointing.dir={tmp_path}/checkpoints")
    again = ("run", "--local", "--job-id", "twice", *settings, "job.py")
    code, said = command(*again)
    assert (code, said) == (0, "10\n20\n30\n")
    code, said = command(*again, both=True)
    assert code == 0
    assert "job 'good' had come to its end: checkpoint" in said
    assert "under another job id it runs again from the beginning" in said


def test_a_cluster_where_nobody_listens_is_exit_code_4(command: Command) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        for arguments in (
            ["run", "--address", address, "job.py"],
            ["status", "orders", "--address", address],
        ):
            code, said = command(*arguments)
            assert (code, said.count("\n")) == (4, 1), said
            assert f"Ray cannot be joined at {address}" in said


def test_a_plan_of_a_program_without_a_job(command: Command) -> None:
    assert command("plan", "job.py", program="x = 1") == (
        2,
        "dataflow: job.py ended without calling env.execute()\n",
    )


def test_checkpoints_of_a_folder_that_is_none(command: Command) -> None:
    code, said = command("checkpoints", "orders", "--dir", "s3://")
    assert (code, "names no bucket" in said) == (2, True)
    code, said = command("checkpoints", "orders", "--dir", "nowhere")
    assert (code, "no job with the id orders has left anything in nowhere" in said) == (2, True)


# ------------------------------------------------------------------------------------------ waiting


def test_whoever_waits_learns_why_the_job_restarts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = checkpointed(str(tmp_path))
    env.configure(
        Configuration(
            {
                "restart-strategy.type": "fixed-delay",
                "restart-strategy.fixed-delay.attempts": "3",
                "restart-strategy.fixed-delay.delay": "100 ms",
            }
        )
    )
    env.from_sequence(1, 3).map(lambda n: 1 // 0).name("div").print()
    with pytest.raises(JobExecutionError, match="failed after 3 restart"):
        env.execute("waited for")
    said = capsys.readouterr().err
    assert said.count("ZeroDivisionError") == 1, "the same reason is told once"
    assert "restart 1 of job 'waited for': operator 'div' (subtask 1/1) failed" in said
    assert "of job 'waited for': as before" in said
