"""PyFlink's smaller classes and methods: types, settings, state backends, projections."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

import pytest

from dataflow.common import CompletableFuture, Configuration, Types
from dataflow.common.config_options import ConfigOptions
from dataflow.common.typeinfo import BasicTypeInfo, RowTypeInfo, SqlTimeTypeInfo, TupleTypeInfo
from dataflow.datastream import (
    EmbeddedRocksDBStateBackend,
    FileSystemCheckpointStorage,
    HashMapStateBackend,
    JobManagerCheckpointStorage,
    StreamExecutionEnvironment,
)
from dataflow.errors import ConfigError, JobGraphError
from dataflow.testing import MiniCluster, OperatorTestHarness
from dataflow.testing.pytest_plugin import mini_cluster

__all__ = ["mini_cluster"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Types.STRING(), "String"),
        (Types.INT(), "Integer"),
        (Types.BIG_DEC(), "BigDecimal"),
        (Types.INSTANT(), "Instant"),
        (Types.SQL_DATE(), "DateTypeInfo"),
        (Types.SQL_TIME(), "TimeTypeInfo"),
        (Types.SQL_TIMESTAMP(), "TimestampTypeInfo"),
        (Types.PICKLED_BYTE_ARRAY(), "PickledByteArrayTypeInfo"),
        (Types.ROW([Types.INT(), Types.CHAR()]), "RowTypeInfo(Integer, Char)"),
        (Types.ROW_NAMED(["a"], [Types.LONG()]), "RowTypeInfo(a: Long)"),
        (Types.TUPLE([Types.INT(), Types.BYTE()]), "TupleTypeInfo(Integer, Byte)"),
        (Types.PRIMITIVE_ARRAY(Types.SHORT()), "PrimitiveArrayTypeInfo<Short>"),
        (Types.BASIC_ARRAY(Types.DOUBLE()), "BasicArrayTypeInfo<Double>"),
        (Types.OBJECT_ARRAY(Types.STRING()), "ObjectArrayTypeInfo<String>"),
        (Types.LIST(Types.BOOLEAN()), "ListTypeInfo<Boolean>"),
        (Types.MAP(Types.STRING(), Types.FLOAT()), "MapTypeInfo<String, Float>"),
    ],
)
def test_types_show_what_pyflink_shows(kind: Any, text: str) -> None:
    assert repr(kind) == str(kind) == text


def test_types_are_equal_as_in_pyflink() -> None:
    ints = [Types.INT(), Types.INT()]
    assert Types.ROW(ints) == Types.ROW_NAMED(["a", "b"], ints) == RowTypeInfo(ints)
    assert hash(Types.ROW(ints)) == hash(Types.ROW_NAMED(["a", "b"], ints))
    assert Types.ROW(ints).get_field_names() == ["f0", "f1"]
    assert Types.TUPLE(ints) == TupleTypeInfo(ints)
    assert Types.TUPLE(ints) != Types.ROW(ints)
    assert Types.LIST(Types.INT()) != Types.BASIC_ARRAY(Types.INT())
    assert BasicTypeInfo.LONG_TYPE_INFO() == Types.LONG() != Types.INT()
    assert SqlTimeTypeInfo.DATE() == Types.SQL_DATE() != Types.SQL_TIME()


def test_projections_take_fields_by_position() -> None:
    three = Types.TUPLE([Types.STRING(), Types.INT(), Types.LONG()])
    env = StreamExecutionEnvironment.get_execution_environment()
    projected = env.from_collection([("a", 1, 2)], three).project(2, 0)
    assert projected.get_type() == Types.TUPLE([Types.LONG(), Types.STRING()])
    assert projected.get_name() == "Projection"
    with OperatorTestHarness.of(lambda s: s.project(2, 0)) as harness:
        assert harness.process_all([("a", 1, 2), [3, 4, 5]]).values == [(2, "a"), (5, 3)]


@pytest.mark.parametrize("positions", [(), (3,), (-1,), ("name",), (True,)])
def test_projections_of_fields_that_are_not_there_are_refused(positions: tuple[Any, ...]) -> None:
    three = Types.TUPLE([Types.STRING(), Types.INT(), Types.LONG()])
    stream = StreamExecutionEnvironment.get_execution_environment().from_collection([], three)
    with pytest.raises(JobGraphError, match=r"project\("):
        stream.project(*positions)


def test_lines_of_a_text_file(mini_cluster: MiniCluster, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    lines = mini_cluster.environment().read_text_file(str(tmp_path / "a.txt"))
    assert lines.get_type() == Types.STRING()
    assert mini_cluster.collect(lines) == ["one", "two"]


def test_state_backends_and_checkpoint_storage_are_settings() -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    assert env.set_state_backend(HashMapStateBackend()) is env
    assert env.get_job_graph is not None
    assert str(HashMapStateBackend()) == "HashMapStateBackend"
    with pytest.raises(ConfigError, match="always incremental"):
        EmbeddedRocksDBStateBackend(False)
    rocksdb = EmbeddedRocksDBStateBackend(True)
    rocksdb.set_db_storage_paths("/mnt/fast")
    assert rocksdb.is_incremental_checkpoints_enabled()
    assert rocksdb.get_db_storage_paths() == ["/mnt/fast"]
    with pytest.raises(ConfigError, match="takes one path"):
        rocksdb.set_db_storage_paths("/a", "/b")
    on_disk = StreamExecutionEnvironment.get_execution_environment().set_state_backend(rocksdb)
    assert on_disk._configuration.get(ConfigOptions.STATE_BACKEND) == "rocksdb"
    assert on_disk._configuration.get(ConfigOptions.ROCKSDB_LOCAL_DIR) == "/mnt/fast"
    with pytest.raises(ConfigError, match=r"HashMapStateBackend\(\) is one"):
        env.set_state_backend("rocksdb")  # type: ignore[arg-type]
    storage = FileSystemCheckpointStorage("s3://bucket/jobs")
    config = env.get_checkpoint_config().set_checkpoint_storage(storage)
    assert config.get_checkpoint_storage() == storage.get_checkpoint_path() == "s3://bucket/jobs"
    assert storage.get_savepoint_path() is None
    with pytest.raises(ConfigError, match="checkpoint_path is needed"):
        FileSystemCheckpointStorage()
    with pytest.raises(ConfigError, match="outlives the JobManager"):
        JobManagerCheckpointStorage()


def test_unaligned_checkpoints_have_every_name() -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    config = env.get_checkpoint_config()
    assert config.set_force_unaligned_checkpoints(False) is config
    assert not env.is_unaligned_checkpoints_enabled()
    assert not env.is_force_unaligned_checkpoints()
    assert config.get_alignment_timeout().to_millis() == 0
    assert config.set_force_unaligned_checkpoints() is config
    assert env.is_force_unaligned_checkpoints()
    assert not env.is_unaligned_checkpoints_enabled()
    assert config.enable_unaligned_checkpoints().is_unaligned_checkpoints_enabled()
    config.set_alignment_timeout(5)
    assert config.get_aligned_checkpoint_timeout().to_millis() == 5
    assert not config.disable_unaligned_checkpoints().is_unaligned_checkpoints_enabled()


def test_operators_without_a_uid_can_be_refused() -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    config = env.get_config().disable_auto_generated_uids()
    assert not config.has_auto_generated_uids_enabled()
    stream = env.from_sequence(1, 2).uid("numbers")
    stream.map(str).name("text").print().uid("out")
    with pytest.raises(JobGraphError, match=r"operator 'text' has no uid.*call uid\(\)") as info:
        env.get_job_graph()
    assert "numbers" not in str(info.value)
    config.enable_auto_generated_uids()
    assert env.get_job_graph()


def test_an_enumerator_has_its_sources_uid_and_is_not_asked_for_one(tmp_path: Path) -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.get_config().disable_auto_generated_uids()
    env.read_text_file(str(tmp_path)).uid("lines").print().uid("out")
    assert env.get_job_graph()


def test_what_has_no_effect_here_is_accepted() -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    stream = env.from_sequence(1, 2).map(str).set_buffer_timeout(-1)
    assert stream.set_buffer_timeout(10) is stream
    assert stream.get_execution_config() is env.get_config()
    with pytest.raises(ConfigError):
        stream.set_buffer_timeout(-2)
    for wrong in (-2, "soon", 1.5):
        with pytest.raises(ConfigError, match=r"^set_buffer_timeout: "):
            env.set_buffer_timeout(wrong)  # type: ignore[arg-type]
    config = env.get_config().enable_closure_cleaner().disable_closure_cleaner()
    assert not config.is_closure_cleaner_enabled()
    assert env.is_chaining_of_operators_with_different_max_parallelism_enabled()
    assert env.get_checkpointing_consistency_mode() is env.get_checkpointing_mode()
    assert CompletableFuture is concurrent.futures.Future


def test_a_closed_environment_has_no_operators_left() -> None:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.from_sequence(1, 2).print()
    env.close()
    with pytest.raises(JobGraphError, match="no operators"):
        env.get_job_graph()


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        ("a;b", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("[a, b]", ["a", "b"]),
        ("a", ["a"]),
    ],
)
def test_lists_in_settings(text: str, items: list[str]) -> None:
    assert Configuration.parse_list_value(text) == items
