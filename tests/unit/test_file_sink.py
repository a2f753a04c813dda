"""FileSink: formats, rolling, buckets, names, and that exactly the committed rows are visible."""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from connector_harness import Context, checkpoint, open_sink, redistributed
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common import Encoder
from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.datastream.connectors.file_system import (
    BucketAssigner,
    BucketContext,
    FileSink,
    OutputFileConfig,
    ParquetEncoding,
    RollingPolicy,
)
from dataflow.datastream.connectors.files.encoders import PartEncoder
from dataflow.datastream.connectors.files.parts import SEND_RETRIES_MAX, PartFile, PartSender
from dataflow.errors import (
    ConfigError,
    JobExecutionError,
    StorageError,
    UploadLost,
    UserFunctionError,
)
from dataflow.filesystem import MultipartUpload, get_file_system
from dataflow.filesystem.memory import MemoryFileSystem
from state.snapshot import OperatorSnapshot
from taskmanager.operators.sink import SinkOperator

FS = MemoryFileSystem()
_stores = itertools.count()


@pytest.fixture
def root() -> Iterator[str]:
    name = f"filesink{next(_stores)}"
    yield f"memory://{name}/out"
    FS.drop(name)


def _write(operator: SinkOperator, *rows: Any) -> None:
    operator.process_batch(RowBatch(list(rows)))


def _complete(operator: SinkOperator, context: Context, checkpoint_id: int = 1) -> None:
    checkpoint(operator, checkpoint_id)
    answers: list[BaseException | None] = []
    operator.commit(checkpoint_id, answers.append)
    context.run_io()
    assert answers == [None]


def _files(root: str) -> dict[str, bytes]:
    fs = get_file_system(root)
    return {file.path.removeprefix(root + "/"): fs.read(file.path) for file in fs.list(root)}


def _written(sink: FileSink, root: str, *rows: Any) -> bytes:
    operator, context = open_sink(sink)
    _write(operator, *rows)
    _complete(operator, context)
    (content,) = _files(root).values()
    return content


class Pair(NamedTuple):
    a: int
    b: str


@dataclass
class Point:
    x: int
    y: Any


# -------------------------------------------------------------------------------- formats


def test_rows_as_text_lines(root: str) -> None:
    sink = FileSink.for_row_format(root, Encoder.simple_string_encoder()).build()
    assert _written(sink, root, "a", 1, ("ü", None)) == "a\n1\n('ü', None)\n".encode()


def test_json_lines_of_everything_json_can_express(root: str) -> None:
    rows = [
        {"ü": 1, "n": None},
        [1, 2.5],
        Pair(1, "x"),
        Point(1, datetime.date(2024, 5, 1)),
        {"d": Decimal("1.10"), "n": np.int64(3), "s": {2, 1}},
    ]
    lines = _written(FileSink.json_lines(root), root, *rows).decode().splitlines()
    assert lines[0] == '{"ü":1,"n":null}'
    assert [json.loads(line) for line in lines[1:]] == [
        [1, 2.5],
        {"a": 1, "b": "x"},
        {"x": 1, "y": "2024-05-01"},
        {"d": "1.10", "n": 3, "s": [1, 2]},
    ]


@pytest.mark.parametrize("value", [float("nan"), b"bytes", object()])
def test_what_json_cannot_express_fails(root: str, value: Any) -> None:
    operator, _ = open_sink(FileSink.json_lines(root))
    with pytest.raises(UserFunctionError, match="JSON"):
        _write(operator, {"a": value})


def test_csv_takes_its_columns_from_the_first_record_of_each_file(root: str) -> None:
    content = _written(FileSink.csv(root), root, {"a": 1, "b": 'x,"'}, {"b": None, "a": "ü\n"})
    assert list(csv.reader(io.StringIO(content.decode()))) == [
        ["a", "b"],
        ["1", 'x,"'],
        ["ü\n", ""],
    ]


def test_csv_of_tuples_dataclasses_and_single_values(root: str) -> None:
    for row, expected in (
        ((1, 2), "f0,f1\n1,2\n"),
        (Pair(1, "x"), "a,b\n1,x\n"),
        (Point(1, 2), "x,y\n1,2\n"),
        (7, "value\n7\n"),
    ):
        place = f"{root}/{type(row).__name__}"
        assert _written(FileSink.csv(place), place, row).decode() == expected


def test_csv_with_given_columns_and_without_header(root: str) -> None:
    sink = FileSink.csv(root, columns=["b", "a"], delimiter=";", header=False)
    assert _written(sink, root, {"a": 1, "b": 2}) == b"2;1\n"
    operator, _ = open_sink(sink)
    with pytest.raises(JobExecutionError, match=r"fields a, c cannot go into .* columns b, a"):
        _write(operator, {"a": 1, "c": 2})


def test_parquet_gathers_row_groups(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflow.datastream.connectors.files.encoders._ROW_GROUP_ROWS", 250)
    operator, context = open_sink(FileSink.parquet(root))
    for start in range(0, 1_000, 100):
        _write(operator, *({"i": i} for i in range(start, start + 100)))
    _complete(operator, context)
    (content,) = _files(root).values()
    file = pq.ParquetFile(io.BytesIO(content))
    assert file.read().to_pydict() == {"i": list(range(1_000))}
    assert file.metadata.num_row_groups == 4


def test_parquet_takes_arrow_and_a_schema(root: str) -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.string())])
    operator, context = open_sink(FileSink.parquet(root, schema=schema))
    _write(operator, {"a": 1})
    batch = pa.RecordBatch.from_pydict({"b": ["x"], "a": [2]})
    operator.process_batch(ArrowBatch(batch))
    _complete(operator, context)
    (content,) = _files(root).values()
    table = pq.read_table(io.BytesIO(content))
    assert table.schema == schema
    assert table.to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    with pytest.raises(JobExecutionError, match="do not fit the Parquet schema"):
        _write(operator, {"a": "no number"})


def test_arrow_batches_go_into_any_format(root: str) -> None:
    operator, context = open_sink(FileSink.json_lines(root))
    operator.process_batch(ArrowBatch(pa.RecordBatch.from_pydict({"a": [1, 2]})))
    _complete(operator, context)
    assert list(_files(root).values()) == [b'{"a":1}\n{"a":2}\n']


# ------------------------------------------------------------------------- rolling, naming


def test_a_part_is_closed_at_every_checkpoint(root: str) -> None:
    operator, context = open_sink(FileSink.json_lines(root))
    for number in (1, 2):
        _write(operator, number)
        _complete(operator, context, number)
    _complete(operator, context, 3)  # nothing was written: no empty file
    assert list(_files(root).values()) == [b"1\n", b"2\n"]


def test_a_part_is_closed_when_it_is_large_enough(root: str) -> None:
    policy = RollingPolicy.default_rolling_policy(part_size=10)
    operator, context = open_sink(FileSink.json_lines(root, rolling_policy=policy))
    for number in range(5):
        _write(operator, number * 1_000_000)
    _complete(operator, context)
    contents = list(_files(root).values())
    assert contents == [b"0\n1000000\n", b"2000000\n3000000\n", b"4000000\n"]


@pytest.mark.parametrize(
    ("policy", "due"),
    [
        (RollingPolicy(rollover_interval_ms=1_000), 1_000),
        (RollingPolicy(inactivity_interval_ms=1_000), 1_400),
        (RollingPolicy.default_rolling_policy(), 60_000),
        (RollingPolicy.on_checkpoint_rolling_policy(), None),
    ],
)
def test_a_part_is_closed_after_a_time(root: str, policy: RollingPolicy, due: int | None) -> None:
    operator, context = open_sink(FileSink.json_lines(root, rolling_policy=policy))
    assert operator.next_timer_at() is None
    _write(operator, 1)
    context.now = 400
    _write(operator, 2)
    assert operator.next_timer_at() == due
    if due is not None:
        context.now = due
        operator.on_processing_time(due)
        assert operator.next_timer_at() is None
    _write(operator, 3)
    _complete(operator, context)
    expected = [b"1\n2\n3\n"] if due is None else [b"1\n2\n", b"3\n"]
    assert list(_files(root).values()) == expected


def test_names_hold_prefix_subtask_attempt_counter_and_suffix(root: str) -> None:
    sink = (
        FileSink.for_row_format(root, Encoder.simple_string_encoder())
        .with_rolling_policy(RollingPolicy(part_size=1))
        .with_bucket_check_interval(1_000)
        .with_output_file_config(
            OutputFileConfig.builder().with_part_prefix("pre").with_part_suffix(".txt").build()
        )
        .build()
    )
    names = set()
    for attempt in ("1.0", "1.1"):
        for subtask in (0, 1):
            operator, context = open_sink(
                sink, Context(subtask_index=subtask, parallelism=2, attempt=attempt)
            )
            _write(operator, "x")
            _write(operator, "y")
            _complete(operator, context)
    names = set(_files(root))
    assert len(names) == 8
    for name in names:
        assert re.fullmatch(r"pre-[01]-[0-9a-f]{12}-1-[01]-[01]\.txt", name)


def test_two_sinks_of_one_job_may_write_to_one_folder(root: str) -> None:
    for uid in ("first", "second"):
        operator, context = open_sink(FileSink.json_lines(root), Context(operator_uid=uid))
        _write(operator, uid)
        _complete(operator, context)
    assert sorted(_files(root).values()) == [b'"first"\n', b'"second"\n']


class _ByKey(BucketAssigner):
    def get_bucket_id(self, element: Any, context: BucketContext) -> str:
        return f"{element}/{context.timestamp}"


def test_buckets_by_record(root: str) -> None:
    sink = (
        FileSink.for_row_format(root, Encoder.simple_string_encoder())
        .with_bucket_assigner(_ByKey())
        .build()
    )
    operator, context = open_sink(sink)
    operator.process_batch(RowBatch(["a", "b", "a"], [1, 2, 1]))
    _complete(operator, context)
    folders = {name.rpartition("/")[0]: content for name, content in _files(root).items()}
    assert folders == {"a/1": b"a\na\n", "b/2": b"b\n"}


def test_buckets_by_processing_time(root: str) -> None:
    for zone, folder in ((None, "2001-09-09--01"), ("GMT-08:00", "2001-09-08--17")):
        place = f"{root}/{zone}"
        assigner = BucketAssigner.date_time_bucket_assigner(timezone_id=zone)
        sink = (
            FileSink.for_bulk_format(place, ParquetEncoding()).with_bucket_assigner(assigner)
        ).build()
        operator, context = open_sink(sink, Context(now=1_000_000_000_000))
        _write(operator, {"a": 1})
        _complete(operator, context)
        assert [name.partition("/")[0] for name in _files(place)] == [folder]


@pytest.mark.parametrize("bucket", ["../x", "a/../b", "a//b", "a\\b", "a\nb", "x" * 1_000, "./a"])
def test_a_bucket_cannot_lead_out_of_the_sink(root: str, bucket: str) -> None:
    class Bad(BucketAssigner):
        def get_bucket_id(self, element: Any, context: BucketContext) -> str:
            return bucket

    sink = FileSink.for_row_format(root, Encoder.simple_string_encoder())
    operator, _ = open_sink(sink.with_bucket_assigner(Bad()).build())
    with pytest.raises(ConfigError, match="is not a folder"):
        _write(operator, 1)


def test_arguments_are_checked_where_the_sink_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no usable scheme"):
        FileSink.json_lines("ftp://host/x")
    with pytest.raises(ConfigError, match="part_size must be positive, not 0"):
        RollingPolicy.default_rolling_policy(part_size=0)
    with pytest.raises(ConfigError, match="not part of a file name"):
        OutputFileConfig("a/b")
    with pytest.raises(ConfigError, match="unknown time zone 'Mars'"):
        BucketAssigner.date_time_bucket_assigner(timezone_id="Mars")
    monkeypatch.chdir(tmp_path)
    assert FileSink.json_lines("out").base_path == f"file://{tmp_path}/out"


def test_too_many_open_files_are_refused(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflow.datastream.connectors.files.sink.OPEN_PARTS_MAX", 3)
    sink = FileSink.for_row_format(root, Encoder.simple_string_encoder())
    operator, _ = open_sink(sink.with_bucket_assigner(_ByKey()).build())
    with pytest.raises(JobExecutionError, match="has 3 open files"):
        _write(operator, 1, 2, 3, 4)


# ------------------------------------------------------------------------ on I/O threads


class _Upload(MultipartUpload):
    """Of a network: sends by the four bytes, as long as it may."""

    def __init__(self) -> None:
        self.buffer = b""
        self.sent: list[bytes] = []
        self.failures = 0
        self.error = StorageError("no answer")

    def write(self, data: bytes) -> None:
        self.buffer += data

    @property
    def size(self) -> int:
        return len(self.buffer) + sum(map(len, self.sent))

    @property
    def unsent(self) -> int:
        return len(self.buffer)

    @property
    def sendable(self) -> bool:
        return len(self.buffer) >= 4

    def send(self) -> None:
        self._transfer(len(self.buffer) // 4 * 4)

    def prepare(self) -> dict[str, object]:
        self._transfer(len(self.buffer))
        return {}

    def _transfer(self, count: int) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error
        self.sent.append(self.buffer[:count])
        self.buffer = self.buffer[count:]

    def abort(self) -> None:
        raise AssertionError("not here")


class _Plain(PartEncoder):
    def encode(self, batch: Batch) -> bytes:
        assert isinstance(batch, RowBatch)
        return b"".join(batch.rows)


def _sending() -> tuple[Context, PartSender, list[PartFile], list[_Upload]]:
    context = Context()
    uploads = [_Upload(), _Upload()]
    parts = [PartFile(upload, _Plain(), 0) for upload in uploads]
    return context, PartSender(context.call_async), parts, uploads


def test_parts_are_sent_one_request_at_a_time() -> None:
    context, sender, parts, uploads = _sending()
    for part in parts:
        part.write(RowBatch([b"12345"]), 0)
        sender.add(part)
        sender.add(part)
    assert len(context.io) == 1
    context.run_io(1)
    assert [upload.sent for upload in uploads] == [[b"1234"], []]
    parts[0].write(RowBatch([b"678"]), 0)
    sender.add(parts[0])
    context.run_io()
    assert [upload.sent for upload in uploads] == [[b"1234", b"5678"], [b"1234"]]
    assert not context.io


def test_a_writer_waits_once_too_much_is_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflow.datastream.connectors.files.parts.UNSENT_BYTES_MAX", 8)
    context, sender, (part, other), _ = _sending()
    part.write(RowBatch([b"12345678"]), 0)
    sender.add(part)
    assert not sender.behind
    other.write(RowBatch([b"1"]), 0)
    other.finish()
    sender.add(other)
    assert sender.behind
    context.run_io(1)
    assert not sender.behind


def test_a_writer_waits_once_too_many_files_are_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflow.datastream.connectors.files.parts.UNSENT_PARTS_MAX", 1)
    context, sender, parts, _ = _sending()
    for part in parts:
        assert not sender.behind
        part.finish()
        sender.add(part)
    assert sender.behind
    context.run_io(1)
    assert not sender.behind


def test_finished_files_are_sent_whole_and_do_not_wait_for_the_checkpoint() -> None:
    context, sender, (part, other), (upload, _) = _sending()
    part.write(RowBatch([b"12345"]), 0)
    sender.add(part)
    part.finish()  # while it waits for its turn, or is being sent
    context.run_io()
    assert upload.sent == [b"12345"]
    other.write(RowBatch([b"1"]), 0)
    other.finish()
    other.prepare()  # by the checkpoint, which came first
    sender.add(other)
    context.run_io()
    assert not context.io


def test_what_is_lost_is_not_sent_again() -> None:
    context, sender, (part, _), (upload, _) = _sending()
    part.write(RowBatch([b"1234"]), 0)
    upload.failures, upload.error = 9, UploadLost("somebody has aborted it")
    sender.add(part)
    with pytest.raises(UploadLost, match="somebody has aborted it"):
        context.run_io()
    assert upload.failures == 8


def test_sending_is_tried_again_with_growing_delays_and_not_for_ever() -> None:
    context, sender, (part, _), (upload, _) = _sending()
    part.write(RowBatch([b"1234"]), 0)
    upload.failures = 3
    sender.add(part)
    for passed, left in ((0, 2), (99, 2), (1, 1), (200, 0), (399, 0)):
        context.pass_time(passed)
        assert (upload.failures, upload.sent) == (left, [])
    context.pass_time(1)
    assert upload.sent == [b"1234"]

    part.write(RowBatch([b"5678"]), 0)
    upload.failures = 1_000
    sender.add(part)
    for _ in range(SEND_RETRIES_MAX):
        context.pass_time(10_000)
    with pytest.raises(StorageError, match="no answer"):
        context.pass_time(10_000)
    assert upload.failures == 1_000 - 1 - SEND_RETRIES_MAX


def test_who_may_not_write_hears_of_it_before_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        open_sink(FileSink.json_lines(f"{tmp_path}/file/out"))


@pytest.mark.s3
def test_large_parts_are_sent_ahead_of_the_checkpoint(s3_bucket: str) -> None:
    sink = FileSink.for_row_format(f"{s3_bucket}/out", Encoder.simple_string_encoder()).build()
    operator, context = open_sink(sink)
    row = "x" * (1 << 20)
    for _ in range(20):
        _write(operator, row)
    assert context.io, "some of it waits for an I/O thread"
    context.run_io()
    assert not operator.blocked()
    _complete(operator, context)
    (content,) = _files(f"{s3_bucket}/out").values()
    assert content == f"{row}\n".encode() * 20


# ---------------------------------------------------------------------------- exactly once


def test_closing_drops_what_is_in_no_checkpoint_and_nothing_else(root: str) -> None:
    policy = RollingPolicy(part_size=1)
    operator, _ = open_sink(FileSink.json_lines(root, rolling_policy=policy))
    _write(operator, 1)
    snapshot = checkpoint(operator, 1)
    _write(operator, 2)  # closed by size
    operator.process_batch(RowBatch([]))
    operator.close()
    assert len(list(FS.list_multipart(root))) == 1
    restored, context = open_sink(FileSink.json_lines(root), Context(attempt="1.1"), snapshot)
    restored.commit(1, lambda error: None)
    context.run_io()
    assert list(_files(root).values()) == [b"1\n"]
    assert list(FS.list_multipart(root)) == []


def _abandon(root: str, subtask: int, attempt: str, **context: Any) -> str:
    """An attempt that pre-commits and dies; the name of its part."""
    names = {str(upload["path"]) for upload in FS.list_multipart(root)}
    dead = Context(subtask, 4, attempt=attempt, **context)
    operator, _ = open_sink(FileSink.json_lines(root), dead)
    _write(operator, 1)
    checkpoint(operator, 1)
    (name,) = {str(upload["path"]) for upload in FS.list_multipart(root)} - names
    return name


def test_what_earlier_attempts_of_a_subtask_have_left_is_aborted_and_nothing_else(
    root: str,
) -> None:
    _abandon(root, 0, "1.7")
    _abandon(root, 2, "2.9")  # subtask 2 of 4 is now seen to by subtask 0 of 2
    left = {
        _abandon(root, 1, "1.7"),  # subtask 1 sees to it
        _abandon(root, 0, "2.10"),  # its own
        _abandon(root, 0, "2.11"),  # of its successor: it may be a zombie
        _abandon(root, 0, "10.1"),
        _abandon(root, 0, "1.7", job_id="another job"),
        _abandon(root, 0, "1.7", operator_uid="another sink"),
        _abandon(root, 0, "1.7", history_id="another history"),
        _abandon(f"{root}/below", 1, "1.7"),
    }
    FS.create_multipart(f"{root}/part-0-of-somebody-else")
    left.add(f"{root}/part-0-of-somebody-else")
    _abandon(f"{root}/bucket", 0, "1.1")
    operator, context = open_sink(FileSink.json_lines(root), Context(0, 2, attempt="2.10"))
    done: list[BaseException | None] = []
    operator.abort_abandoned(done.append)
    assert done == [], "it takes I/O"
    context.run_io()
    assert done == [None]
    assert {upload["path"] for upload in FS.list_multipart(root)} == left


def test_a_lost_upload_is_data_loss_and_said_so(root: str) -> None:
    operator, context = open_sink(FileSink.json_lines(root))
    _write(operator, 1)
    checkpoint(operator, 1)
    (upload,) = FS.list_multipart(root)
    FS.abort_multipart(upload)
    answers: list[BaseException | None] = []
    operator.commit(1, answers.append)
    for _ in range(20):
        context.pass_time(10_000)
    (error,) = answers
    assert isinstance(error, StorageError)
    assert "lost" in str(error)


@pytest.mark.parametrize("store", ["memory", "local"])
@given(data=st.data())
def test_a_crash_between_any_two_steps_leaves_exactly_the_committed_rows_visible(
    store: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Goal: two-phase commit. Method: random writes, pre-commits, completions, commits running
    one I/O call at a time, and crashes anywhere, restored at random parallelism. After every step
    the visible rows are the committed ones: a subset of what completed checkpoints cover, without
    repetition; at the end exactly those. A crash may be clean (close) or not (the process dies)."""
    if store == "memory":
        root = f"memory://twophase{next(_stores)}/out"
    else:
        root = f"file://{tmp_path_factory.mktemp('twophase')}"
    policy = data.draw(st.sampled_from([RollingPolicy(), RollingPolicy(part_size=8)]))
    sink = FileSink.json_lines(root, rolling_policy=policy)
    attempt = 0
    operators = [open_sink(sink)]
    durable: tuple[int, list[OperatorSnapshot]] | None = None
    row = checkpoint_id = 0
    covered: list[int] = []
    since: list[int] = []

    def visible() -> list[int]:
        return sorted(int(r) for content in _files(root).values() for r in content.split())

    for action in data.draw(st.lists(st.sampled_from("wwwpfclixk"), max_size=30)):
        if action == "w":
            operator = data.draw(st.sampled_from(operators))[0]
            count = data.draw(st.integers(1, 4))
            _write(operator, *range(row, row + count))
            since += range(row, row + count)
            row += count
        elif action in "pfcl":
            # p: pre-committed only, as when the process dies before the acknowledgement;
            # f: the asynchronous part never ran or failed; l: records are written before it runs
            checkpoint_id += 1
            parts = []
            for operator, _ in operators:
                operator.prepare_barrier(checkpoint_id)
                parts.append(operator.snapshot(checkpoint_id))
            after: list[int] = []
            if action == "l":
                _write(data.draw(st.sampled_from(operators))[0], row)
                after, row = [row], row + 1
            snapshots = [] if action == "f" else [part.completed() for part in parts]
            if action in "cl":
                durable, covered, since = (checkpoint_id, snapshots), covered + since, after
                for operator, _ in operators:
                    operator.commit(checkpoint_id, lambda error: None)
        elif action == "i":
            data.draw(st.sampled_from(operators))[1].run_io(1)
        else:
            if action == "x":
                for operator, _ in operators:
                    operator.close()
            attempt += 1
            since = []
            parallelism = data.draw(st.integers(1, 3))
            operators = [
                open_sink(
                    sink,
                    Context(i, parallelism, attempt=f"1.{attempt}"),
                    None if durable is None else redistributed(durable[1], parallelism)[i],
                )
                for i in range(parallelism)
            ]
            if durable is not None:
                for operator, _ in operators:
                    operator.commit(durable[0], lambda error: None)
        shown = visible()
        assert set(shown) <= set(covered)
        assert len(shown) == len(set(shown))
    for _, context in operators:
        context.run_io()
    assert visible() == covered
