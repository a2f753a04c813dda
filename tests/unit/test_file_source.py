"""FileSource: discovery, cutting into lines and splits, strict parsing, recovery."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import itertools
import json
import lzma
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from connector_harness import RunningSource, redistributed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataflow.common import Duration
from dataflow.common.batch import ArrowBatch
from dataflow.datastream.connectors.base import Boundedness, InputStatus
from dataflow.datastream.connectors.file_system import (
    BulkFormat,
    ErrorPolicy,
    FileChangedError,
    FileEnumeratorProvider,
    FileSource,
    FileSplit,
    RecordError,
    StreamFormat,
    TextLineFormat,
)
from dataflow.datastream.connectors.files.lines import LineReader
from dataflow.datastream.connectors.files.parquet_format import ParquetFormat
from dataflow.errors import ConfigError, ObjectNotFound
from dataflow.filesystem.memory import MemoryFileSystem

FS = MemoryFileSystem()
_stores = itertools.count()


@pytest.fixture
def root() -> Iterator[str]:
    name = f"filesource{next(_stores)}"
    yield f"memory://{name}"
    FS.drop(name)


def _read(source: FileSource, parallelism: int = 1) -> list[Any]:
    return RunningSource(source, parallelism).run()


# ------------------------------------------------------------------------------ discovery


def test_a_path_is_a_file_a_folder_or_a_pattern(root: str) -> None:
    for name in ("a.txt", "b.log", "deep/er/c.txt", "deep/d.txt", "_hidden", ".x", "_t/e.txt"):
        FS.put(f"{root}/in/{name}", name.encode())

    def read(*paths: str) -> list[str]:
        return _read(FileSource.text(*(f"{root}/in{path}" for path in paths)))

    assert read("/a.txt") == ["a.txt"]
    assert read("") == ["a.txt", "b.log", "deep/d.txt", "deep/er/c.txt"]
    assert read("/deep") == ["deep/d.txt", "deep/er/c.txt"]
    assert read("/*.txt") == ["a.txt"]
    assert read("/[ab].*") == ["a.txt", "b.log"]
    assert read("/**/*.txt") == ["a.txt", "deep/d.txt", "deep/er/c.txt"]
    assert read("/*/?.txt") == ["deep/d.txt"]
    assert read("/de*/**") == ["deep/d.txt", "deep/er/c.txt"]
    assert read("/_hidden") == ["_hidden"]
    assert read("/_*/*") == ["_t/e.txt"]
    assert read("/a.txt", "/*.txt", "/a.txt") == ["a.txt"]


def test_local_paths_may_be_relative_and_are_made_absolute_where_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_text("1\n2\n")
    monkeypatch.chdir(tmp_path)
    source = FileSource.text("in.txt")
    monkeypatch.chdir("/")
    assert _read(source) == ["1", "2"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("/gone.txt", "there is no file or folder memory://"), ("/*.csv", "no file matches")],
)
def test_a_missing_path_is_refused_at_the_start(root: str, path: str, message: str) -> None:
    with pytest.raises(ObjectNotFound, match=message):
        _read(FileSource.text(root + path))


def test_a_folder_without_a_file_to_read_is_told_of(root: str, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound, match="or no file in that folder"):
        _read(FileSource.text(str(tmp_path)))
    FS.put(f"{root}/_a", b"1")
    FS.put(f"{root}/.b", b"1")
    with pytest.raises(ObjectNotFound, match=r"all names begin with '\.' or '_'"):
        _read(FileSource.text(root))


def test_arguments_are_checked_where_the_source_is_made() -> None:
    with pytest.raises(ConfigError, match="at least one path"):
        FileSource.text()
    with pytest.raises(ConfigError, match="'fail' or 'skip', not 'ignore'"):
        FileSource.text("x", on_error="ignore")
    with pytest.raises(ConfigError, match=r"contains '\.\.'"):
        FileSource.text("../x")
    with pytest.raises(ConfigError, match="delimiter"):
        FileSource.csv("x", delimiter="||")
    with pytest.raises(ConfigError, match="0x0A"):
        FileSource.text("x", charset="utf-16")


def test_monitoring_finds_new_files_and_reads_each_once(root: str) -> None:
    source = FileSource.text(f"{root}/in").monitor_continuously(Duration.of_seconds(1))
    assert source.boundedness is Boundedness.CONTINUOUS_UNBOUNDED
    running = RunningSource(source)
    context = running.enumerator_context

    def steps() -> list[str]:
        for _ in range(12):
            running.step(0)
        return sorted(running.rows)

    assert steps() == []  # the folder may be empty, or not there yet
    FS.put(f"{root}/in/a", b"1\n")
    assert steps() == []
    context.now += 1_000
    assert steps() == ["1"]
    running = RunningSource(source, restored=running.snapshot())
    context = running.enumerator_context
    FS.put(f"{root}/in/b", b"2\n")
    assert steps() == ["2"]
    context.now += 1_000
    assert steps() == ["2"]
    assert running.readers[0].poll() is InputStatus.NOTHING_AVAILABLE


def test_pyflinks_builder(root: str) -> None:
    FS.put(f"{root}/a", b"x" * 40 + b"\n" + b"y" * 40)
    built = (
        FileSource.for_record_stream_format(StreamFormat.text_line_format(), f"{root}/a")
        .monitor_continuously(Duration.of_seconds(1))
        .process_static_file_set()
        .set_file_enumerator(FileEnumeratorProvider.default_non_splittable_file_enumerator())
        .build()
    )
    assert (built.split_bytes, built.boundedness) == (None, Boundedness.BOUNDED)
    assert _read(built) == ["x" * 40, "y" * 40]
    table = pa.table({"a": [1, 2]})
    FS.put(f"{root}/t.parquet", _parquet(table))
    bulk = FileSource.for_bulk_file_format(BulkFormat.parquet(), f"{root}/t.parquet").build()
    assert _read(bulk) == [{"a": 1}, {"a": 2}]


# ------------------------------------------------------------------------- cutting to lines


@given(
    lines=st.lists(st.binary(max_size=6).filter(lambda b: b"\n" not in b), max_size=12),
    ends=st.booleans(),
    part=st.integers(1, 12),
    block=st.integers(1, 9),
)
def test_splits_of_any_size_give_every_line_once(
    lines: list[bytes], ends: bool, part: int, block: int
) -> None:
    """Property against bytes.split; also from every position a split reports on its way."""
    data = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    path = "memory://lines/f"
    FS.put(path, data)
    splits = TextLineFormat().plan(FS, FS.status(path), part)
    got: list[bytes] = []
    for split in splits:
        runs = list(LineReader(split, ErrorPolicy(), 1_000).read(io.BytesIO(data), block))
        of_split = [line for run in runs for line in run.lines]
        for i, run in enumerate(runs):
            rest = [line for later in runs[i + 1 :] for line in later.lines]
            again = LineReader(run.after, ErrorPolicy(), 1_000).read(io.BytesIO(data), 3)
            assert [line for run in again for line in run.lines] == rest
        got += of_split
    assert got == expected


def test_large_files_are_read_in_parts_by_all_subtasks(root: str) -> None:
    FS.put(f"{root}/f", b"".join(b"%d\n" % i for i in range(10_000)))
    source = FileSource(TextLineFormat(), (f"{root}/f",), split_bytes=1_000)
    running = RunningSource(source, parallelism=3)
    assert sorted(map(int, running.run())) == list(range(10_000))
    assert all(output.rows for output in running.outputs)


def test_what_is_appended_after_the_listing_is_not_read(root: str) -> None:
    FS.put(f"{root}/f", b"1\n2\n")
    running = RunningSource(FileSource.text(root))
    running.enumerator_context.run_io()
    FS.put(f"{root}/f", b"1\n2\n3\n")
    assert running.run() == ["1", "2"]


def test_line_ends_of_windows_and_a_byte_order_mark_are_no_part_of_the_text(root: str) -> None:
    FS.put(f"{root}/f", b"\xef\xbb\xbfa\r\n\r\nb\r\n")
    assert _read(FileSource.text(root)) == ["a", "", "b"]


@given(
    text=st.text("a\r\n", max_size=30),
    split_bytes=st.integers(1, 8) | st.none(),
)
@example(text="a\rb\r\n\r\rc\r", split_bytes=None)
def test_a_carriage_return_ends_a_line_too_as_in_flink(text: str, split_bytes: int | None) -> None:
    """As Java's BufferedReader.readLine, and so Python's universal newlines, do."""
    FS.put("memory://returns/f", text.encode())
    source = FileSource(TextLineFormat(), ("memory://returns/f",), split_bytes=split_bytes)
    lines = [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]
    assert _read(source) == lines
    FS.drop("returns")


def test_other_charsets_can_be_named(root: str) -> None:
    FS.put(f"{root}/f", "über\n".encode("latin-1"))
    assert _read(FileSource.text(root, charset="latin-1")) == ["über"]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_compressed_files_are_known_by_their_extension(
    root: str, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    rows = [f"row {i}" for i in range(50_000)]
    FS.put(f"{root}/f{suffix}", compress("\n".join(rows).encode()))
    running = RunningSource(FileSource.text(root))
    for _ in range(5):
        running.step(0)
    emitted = running.rows
    assert 0 < len(emitted) < len(rows)
    restored = RunningSource(FileSource.text(root), restored=running.snapshot())
    assert emitted + restored.run() == rows


# --------------------------------------------------------------------------- bad records


_BAD_JSON = {
    b'{"a": 1': "Expecting",
    b"{'a': 1}": "Expecting property name",
    b'{"a": 1} {"a": 2}': "Extra data",
    b'{"a": 1, "a": 2}': "the key 'a' is given twice",
    b'{"a": NaN}': "NaN is not a JSON number",
    b'{"a": -Infinity}': "-Infinity is not a JSON number",
    b'{"a": 1e999}': "too large for a float",
    b"[" * 65 + b"]" * 65: "nested deeper than 64",
    b"9" * 5_000: "4300 digits",
    b'"\xff"': "not valid utf-8",
    b"x" * 40_000: "a record longer than 30000 bytes",
}


@pytest.mark.parametrize("bad", _BAD_JSON)
def test_malformed_json_fails_with_file_and_line_or_is_skipped_and_counted(
    root: str, bad: bytes
) -> None:
    good = [b'{"a": %d}' % i for i in range(3_000)]
    lines = [*good[:2_000], bad, *good[2_000:]]
    FS.put(f"{root}/in.json", b"\n".join(lines))
    with pytest.raises(RecordError, match=_BAD_JSON[bad]) as caught:
        _read(FileSource.json_lines(root, record_bytes_max=30_000))
    assert str(caught.value).startswith(f"{root}/in.json, line 2001: ")
    running = RunningSource(FileSource.json_lines(root, on_error="skip", record_bytes_max=30_000))
    assert running.run() == [{"a": i} for i in range(3_000)]
    assert running.contexts[0].metrics["numRecordsInErrors"]() == 1


def test_messages_do_not_quote_the_record(root: str) -> None:
    for name, data, source in (
        ("a.json", b'{"password": "geheim"', FileSource.json_lines),
        ("b.csv", b"a,b\n1,2\ngeheim,1\n", FileSource.csv),
        ("c.csv", b"a,b\n1,2\ngeheim\n", FileSource.csv),
    ):
        FS.put(f"{root}/{name}", data)
        with pytest.raises(RecordError) as caught:
            _read(source(f"{root}/{name}", **_SCHEMA.get(name, {})))
        assert "geheim" not in str(caught.value)


_SCHEMA: dict[str, dict[str, Any]] = {"b.csv": {"schema": pa.schema([("a", pa.int64())])}}


def test_deep_but_allowed_json_and_brackets_in_strings_pass(root: str) -> None:
    values = [json.loads("[" * 64 + "]" * 64), "[" * 100, ['\\"[[' * 40]]
    FS.put(f"{root}/f", "\n".join(json.dumps(v) for v in values).encode() + b"\n \n\n")
    assert _read(FileSource.json_lines(root)) == values


def test_a_line_in_the_middle_of_a_split_file_is_named_by_its_offset(root: str) -> None:
    FS.put(f"{root}/f", b"1\n" * 50 + b"x\n")
    source = FileSource(FileSource.json_lines("x").format, (f"{root}/f",), split_bytes=51)
    with pytest.raises(RecordError, match="f, line 25 after byte 51: Expecting value at column 1"):
        _read(source)


def test_json_as_arrow_has_the_schemas_types(root: str) -> None:
    FS.put(f"{root}/f", b'{"a": 1, "b": "x"}\n{"a": 2}\n')
    schema = pa.schema([("a", pa.int32()), ("b", pa.string())])
    running = RunningSource(FileSource.json_lines(root, as_arrow=True, schema=schema))
    assert running.run() == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    (batch,) = running.outputs[0].batches
    assert isinstance(batch, ArrowBatch)
    assert batch.data.schema == schema
    for bad in (b"7", b'{"a": "one"}'):
        FS.put(f"{root}/f", b'{"a": 1}\n' + bad)
        with pytest.raises(RecordError, match="line 2"):
            _read(FileSource.json_lines(root, as_arrow=True, schema=schema))


def test_invalid_text_is_named_by_line_and_byte(root: str) -> None:
    FS.put(f"{root}/f", b"fine\nab\xffc\n")
    with pytest.raises(RecordError, match="line 2: not valid utf-8: invalid start byte at byte 2"):
        _read(FileSource.text(root))


def test_a_file_without_line_ends_is_refused_in_bounded_memory(root: str) -> None:
    FS.put(f"{root}/f", b"x" * 2_000_000 + b"\nlast\n")
    with pytest.raises(RecordError, match=r"line 1: a record longer than 10000 bytes \(record_by"):
        _read(FileSource.text(root, record_bytes_max=10_000))
    assert _read(FileSource.text(root, record_bytes_max=10_000, on_error="skip")) == ["last"]


def test_a_damaged_or_cut_off_compressed_file_is_an_error(root: str) -> None:
    whole = gzip.compress(b"".join(b"%d\n" % i for i in range(100_000)))
    for data in (whole[:-100], whole[:5_000] + b"x" * 100 + whole[5_100:], b"no gzip"):
        FS.put(f"{root}/f.gz", data)
        with pytest.raises(RecordError, match=r"f\.gz: the compressed data is damaged or"):
            _read(FileSource.text(root))


def test_a_file_that_vanished_or_shrank_since_the_checkpoint_is_an_error(root: str) -> None:
    path = f"{root}/f"
    FS.put(path, b"".join(b"%d\n" % i for i in range(100_000)))
    running = RunningSource(FileSource.text(path))
    for _ in range(5):
        running.step(0)
    assert running.rows
    checkpoint = running.snapshot()
    FS.put(path, b"1\n")
    with pytest.raises(FileChangedError, match="f was truncated to 2 bytes since it was listed"):
        RunningSource(FileSource.text(path), restored=checkpoint).run()
    FS.delete(path)
    with pytest.raises(FileChangedError, match="f has vanished since it was listed with 588890"):
        RunningSource(FileSource.text(path), restored=checkpoint).run()


# ------------------------------------------------------------------------------ CSV, Parquet


def test_csv_rows_are_dicts_with_inferred_types(root: str) -> None:
    FS.put(
        f"{root}/f.csv",
        b'id,when,rate,note\n1,2013-01-01 05:00:00,1.5,"a, ""b"""\n2,,NA,NA\n\n',
    )
    assert _read(FileSource.csv(root)) == [
        {"id": 1, "when": datetime.datetime(2013, 1, 1, 5), "rate": 1.5, "note": 'a, "b"'},
        {"id": 2, "when": None, "rate": None, "note": "NA"},
    ]


def test_csv_names_types_and_delimiter_can_be_given(root: str) -> None:
    FS.put(f"{root}/f.csv", b"1;2\n3;4\n")
    schema = pa.schema([("b", pa.float32())])
    source = FileSource.csv(root, delimiter=";", column_names=["a", "b"], schema=schema)
    assert _read(source) == [{"a": "1", "b": 2.0}, {"a": "3", "b": 4.0}]


def test_csv_as_arrow(root: str) -> None:
    FS.put(f"{root}/f.csv", b"a,b\n1,x\n2,y\n")
    running = RunningSource(FileSource.csv(root, as_arrow=True))
    running.run()
    (batch,) = running.outputs[0].batches
    assert isinstance(batch, ArrowBatch)
    assert batch.data.to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"1", "expected 2 columns, got 1"),
        (b"1,2,3", "expected 2 columns, got 3"),
        (b"one,2", "column 'a' is not of type int64"),
        (b"1,\xff", "column 'b' is not valid UTF-8"),
        (b'1,"x', "a quoted field is not closed on its line"),
        (b'1,"x\n3,y"', "a quoted field is not closed on its line|expected 2"),
    ],
)
def test_bad_csv_fails_with_file_and_line_or_is_skipped(
    root: str, bad: bytes, message: str
) -> None:
    good = [b"%d,t%d" % (i, i) for i in range(1_000)]
    FS.put(f"{root}/f.csv", b"\n".join([b"a,b", *good[:700], bad, *good[700:]]))
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    with pytest.raises(RecordError, match=message) as caught:
        _read(FileSource.csv(root, schema=schema))
    assert str(caught.value).startswith(f"{root}/f.csv, line 702: ")
    rows = _read(FileSource.csv(root, schema=schema, on_error="skip"))
    assert [row for row in rows if row["b"].startswith("t")] == [
        {"a": i, "b": f"t{i}"} for i in range(1_000)
    ]


@pytest.mark.parametrize("header", [b"a,a\n", b"a,\n", b"", b"\n", b"a,\xff\n"])
def test_a_header_must_name_every_column(root: str, header: bytes) -> None:
    FS.put(f"{root}/f.csv", header + b"1,2\n")
    if header == b"":
        assert _read(FileSource.csv(root)) == []  # "1,2" is the header then
        return
    with pytest.raises(RecordError, match="line 1: the header must name every column"):
        _read(FileSource.csv(root))


def _parquet(table: pa.Table, row_group_size: int = 100) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=row_group_size)
    return out.getvalue()


def test_parquet_is_split_by_row_groups(root: str) -> None:
    table = pa.table({"i": list(range(1_000)), "s": [str(i) for i in range(1_000)]})
    FS.put(f"{root}/f", _parquet(table))
    source = FileSource(BulkFormat.parquet(columns=["i"]), (root,), split_bytes=2_000)
    running = RunningSource(source, parallelism=2)
    assert sorted(row["i"] for row in running.run()) == list(range(1_000))
    assert all(output.rows for output in running.outputs)
    assert running.rows[0].keys() == {"i"}


def test_a_file_that_is_no_parquet_is_refused(root: str) -> None:
    FS.put(f"{root}/f", b"something else")
    with pytest.raises(RecordError, match=r"f: .*Parquet magic bytes not found"):
        _read(FileSource.parquet(root))


# ------------------------------------------------------------------------------- recovery


_ROWS = [{"i": i, "s": f"ä{i}"} for i in range(700)]
_JSON = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()
_CSV = ("i,s\n" + "".join(f"{r['i']},{r['s']}\n" for r in _ROWS)).encode()
_CASES: dict[str, tuple[str, bytes, Callable[[str], FileSource]]] = {
    "text": ("f.txt", _JSON, FileSource.text),
    "json": ("f.json", _JSON, FileSource.json_lines),
    "json arrow": ("f.json", _JSON, lambda p: FileSource.json_lines(p, as_arrow=True)),
    "json gz": ("f.json.gz", gzip.compress(_JSON), FileSource.json_lines),
    "csv": ("f.csv", _CSV, FileSource.csv),
    "csv arrow": ("f.csv", _CSV, lambda p: FileSource.csv(p, as_arrow=True)),
    "csv gz": ("f.csv.gz", gzip.compress(_CSV), FileSource.csv),
    "parquet": ("f.parquet", _parquet(pa.Table.from_pylist(_ROWS)), FileSource.parquet),
    "parquet arrow": (
        "f.parquet",
        _parquet(pa.Table.from_pylist(_ROWS)),
        lambda p: FileSource.parquet(p, as_arrow=True),
    ),
}


@pytest.mark.parametrize(
    ("case", "store"),
    [(case, "memory") for case in _CASES] + [(case, "local") for case in ("json", "parquet")],
)
@settings(max_examples=60)
@given(data=st.data())
def test_any_interleaving_of_reads_and_restores_delivers_each_record_once(
    case: str, store: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As the property of test_source_operator, through real formats, small blocks and splits."""
    name, content, make = _CASES[case]
    if store == "memory":
        path = f"memory://recovery/{name}"
        FS.put(path, content)
    else:
        local = tmp_path_factory.getbasetemp() / name
        local.write_bytes(content)
        path = str(local)
    source = make(path)
    split_bytes = data.draw(st.sampled_from([None, 3_000, 20_000]))
    source.format.block_bytes = 1_500  # type: ignore[attr-defined]
    source.format.batch_rows_max = 70  # type: ignore[attr-defined]
    source = FileSource(source.format, source.paths, split_bytes=split_bytes)
    running = RunningSource(source, data.draw(st.integers(1, 3)))
    durable: list[Any] = []
    checkpoint = None
    for action in data.draw(st.lists(st.sampled_from("ppppppsc"), max_size=40)):
        parallelism = len(running.readers)
        if action == "p":
            running.step(data.draw(st.integers(0, parallelism - 1)))
        elif action == "c":
            durable += running.rows
            checkpoint = running.snapshot()
            for output in running.outputs:
                output.events.clear()
        else:
            running.close()
            new = data.draw(st.integers(1, 3))
            restored = checkpoint and (checkpoint[0], redistributed(checkpoint[1], new))
            running = RunningSource(source, new, restored)
    durable += running.run()
    running.close()
    if case == "text":
        durable = [json.loads(line) for line in durable]
    assert sorted(durable, key=lambda row: row["i"]) == _ROWS
    if split_bytes is None:
        assert durable == _ROWS


def test_splits_are_small_values() -> None:
    split = FileSplit("file:///f", 100, 0, 100)
    assert split.split_id == "file:///f:0-100"


def test_a_parquet_batch_has_so_many_rows_and_wide_ones_come_by_few(root: str) -> None:
    parquet = ParquetFormat(as_arrow=True)

    def sizes(rows: int, width: int) -> list[int]:
        text = [random.Random(i).randbytes(width) for i in range(rows)]
        sink = pa.BufferOutputStream()
        table = pa.table({"i": range(rows), "text": text})
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        FS.put(f"{root}/a.parquet", sink.getvalue().to_pybytes())
        (split,) = parquet.plan(FS, FS.status(f"{root}/a.parquet"), None)
        return [len(batch or ()) for batch, _ in parquet.read(FS, split, ErrorPolicy())]

    assert sizes(70_000, 1) == [65_536, 4_464]
    assert max(sizes(1_000, 20_000)) <= 105
