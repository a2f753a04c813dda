"""Every public class and method of PyFlink's DataStream API is here, or is named with the reason.

``pyflink_names.json`` holds PyFlink's names; where apache-flink is installed it is compared with
the sources. A method counts as there if it also takes PyFlink's parameters, by name and position.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pyflink_names
import pytest

NAMES = json.loads(pyflink_names.RECORD.read_text(encoding="utf-8"))

JAVA = "names a Java object"
INTERNAL = "internal: how PyFlink wraps user functions for its Java runtime"
MADE_BY_US = "programs do not construct it"

#: What is left out for good: a class, ``Class.method`` or ``*.method`` of every class -> why.
LEFT_OUT = {
    "*.get_java_type_info": JAVA,
    "*.get_java_function": JAVA,
    "*.to_j_row_kind": JAVA,
    "*.get_java_output_tag": JAVA,
    "*.get_java_memory_size": JAVA,
    "*.get_java_slot_sharing_group": JAVA,
    "*.need_conversion": "conversion to Java's representation: records stay Python objects",
    "*.to_internal_type": "the same",
    "*.from_internal_type": "the same",
    "*.set_uid_hash": "Flink's hashes of operators do not exist here; uid() identifies state",
    "JavaObjectWrapper": JAVA,
    "JavaFunctionWrapper": JAVA,
    "InputFormat": JAVA,
    "StreamExecutionEnvironment.create_input": JAVA,
    "SourceFunction": JAVA,
    "SinkFunction": JAVA,
    "StreamExecutionEnvironment.add_source": JAVA,
    "DataStream.add_sink": JAVA,
    "KeyedStream.add_sink": JAVA,
    "StreamExecutionEnvironment.add_jars": JAVA,
    "StreamExecutionEnvironment.add_classpaths": JAVA,
    "StreamTransformer": JAVA,
    "SupportsPreprocessing": JAVA,
    "FileSink.get_transformer": JAVA,
    "CustomStateBackend": JAVA,
    "CustomCheckpointStorage": JAVA,
    "BulkWriterFactory": JAVA,
    "RowDataBulkWriterFactory": JAVA,
    "AssignerWithPeriodicWatermarksWrapper": JAVA,
    "ResultTypeQueryable": JAVA,
    "RowFieldExtractorSchema": "needs the Kafka connector",
    "ExternalTypeInfo": "of the Table API",
    "LocalTimeTypeInfo": "of the Table API",
    "PredefinedOptions": "of RocksDB",
    "EmbeddedRocksDBStateBackend.get_options": JAVA,
    "EmbeddedRocksDBStateBackend.set_options": JAVA,
    "EmbeddedRocksDBStateBackend.get_predefined_options": "of RocksDB",
    "EmbeddedRocksDBStateBackend.set_predefined_options": "of RocksDB",
    "EmbeddedRocksDBStateBackend.get_number_of_transfer_threads": "of RocksDB",
    "EmbeddedRocksDBStateBackend.set_number_of_transfer_threads": "of RocksDB",
    "JobManagerCheckpointStorage.": "the class is there to be refused",
    "InputDependencyConstraint": "nothing takes one, in PyFlink neither",
    "FunctionWrapper": INTERNAL,
    "ReduceFunctionWrapper": INTERNAL,
    "AsyncFunctionDescriptor": INTERNAL,
    "PassThroughWindowFunction": INTERNAL,
    "PassThroughAllWindowFunction": INTERNAL,
    "InternalWindowFunction": INTERNAL,
    "InternalSingleValueWindowFunction": INTERNAL,
    "InternalSingleValueAllWindowFunction": INTERNAL,
    "InternalIterableWindowFunction": INTERNAL,
    "InternalIterableAllWindowFunction": INTERNAL,
    "InternalProcessWindowContext": INTERNAL,
    "InternalProcessAllWindowContext": INTERNAL,
    "InternalSingleValueProcessWindowFunction": INTERNAL,
    "InternalSingleValueProcessAllWindowFunction": INTERNAL,
    "InternalIterableProcessWindowFunction": INTERNAL,
    "InternalIterableProcessAllWindowFunction": INTERNAL,
    "WindowOperationDescriptor": INTERNAL,
    "VoidNamespaceSerializer": INTERNAL,
    "TypeSerializer": "windows and keys are pickled as they are",
    "*.get_window_serializer": "the same",
    "NullByteKeySelector": INTERNAL,
    "Min": INTERNAL,
    "*.register_next_fire_timestamp": INTERNAL,
    "CompletableFuture.__init__": MADE_BY_US,
    "RetryPredicate.__init__": MADE_BY_US,
    "KeyedStream.__init__": MADE_BY_US,
    "WindowedStream.__init__": MADE_BY_US,
    "AllWindowedStream.__init__": MADE_BY_US,
    "ConnectedStreams.__init__": MADE_BY_US,
    "BroadcastStream.__init__": MADE_BY_US,
    "BroadcastConnectedStream.__init__": MADE_BY_US,
    "CloseableIterator.__init__": MADE_BY_US,
    "StreamExecutionEnvironment.__init__": MADE_BY_US,
    "FileSink.__init__": MADE_BY_US,
    "Source.__init__": "a base class without a Java object to wrap",
    "Sink.__init__": "a base class without a Java object to wrap",
    "ExecutionConfig.enable_force_kryo": "there is no Kryo",
    "ExecutionConfig.disable_force_kryo": "there is no Kryo",
    "ExecutionConfig.is_force_kryo_enabled": "there is no Kryo",
    "ExecutionConfig.get_default_kryo_serializer_classes": "there is no Kryo",
    "ExecutionConfig.get_registered_kryo_types": "there is no Kryo",
    "ExecutionConfig.get_registered_pojo_types": "there are no POJOs",
    "ExecutionConfig.enable_generic_types": "all types are what they are",
    "ExecutionConfig.disable_generic_types": "all types are what they are",
    "ExecutionConfig.has_generic_types_disabled": "all types are what they are",
    "ExecutionConfig.enable_force_avro": "there is no Avro",
    "ExecutionConfig.disable_force_avro": "there is no Avro",
    "ExecutionConfig.is_force_avro_enabled": "there is no Avro",
    "ExecutionConfig.get_task_cancellation_interval": "threads are not interrupted again and again",
    "ExecutionConfig.set_task_cancellation_interval": "threads are not interrupted again and again",
    "StreamExecutionEnvironment.get_default_local_parallelism": "it is parallelism.default, 1",
    "StreamExecutionEnvironment.set_default_local_parallelism": "it is parallelism.default, 1",
    "StreamingFileSink": "deprecated; FileSink",
    "DefaultRollingPolicy": "RollingPolicy.default_rolling_policy() returns a RollingPolicy",
    "OnCheckpointRollingPolicy": "RollingPolicy.on_checkpoint_rolling_policy() likewise",
}

#: What is to come: a class or ``Class.method`` -> what it waits for. Take out what has come.
PLANNED = {
    "ExecutionConfig.is_use_snapshot_compression": "compression of state",
    "ExecutionConfig.set_use_snapshot_compression": "compression of state",
    "DataStream.cache": "batch mode",
    "KeyedStream.cache": "batch mode",
    "CachedDataStream": "batch mode",
    "FileCompactStrategy": "compaction of files",
    "FileCompactor": "compaction of files",
    "FileSplitAssignerProvider": "orders of splits",
    "FileSourceBuilder.set_split_assigner": "orders of splits",
    "OperatorStateStore": "operator state",
}


def missing(name: str, method: str | None = None) -> str | None:
    """Why the class or method is not here, if it may be missing."""
    keys = [name] if method is None else [name, f"{name}.", f"{name}.{method}", f"*.{method}"]
    reasons = {**PLANNED, **LEFT_OUT}
    return next((reasons[key] for key in keys if key in reasons), None)


def _import(module: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"dataflow.{module}")
    except ModuleNotFoundError:
        return None


def ours(module: str, name: str) -> Any:
    """The class of that name, in the module where PyFlink has it or where programs import it."""
    for place in (module, "common", "datastream"):
        found = getattr(_import(place), name, None)
        if found is not None:
            return found
    return None


def faults_of(owner: Any, name: str, method: str, parameters: list[str]) -> Iterator[str]:
    function = getattr(owner, method, None)
    if function is None:
        yield f"{name}.{method} is missing"
        return
    try:
        signature = inspect.signature(owner if method == "__init__" else function)
    except ValueError:  # of a class written in C, such as that of an Enum's member
        return
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    have = [p.name for p in signature.parameters.values() if p.kind in kinds and p.name != "self"]
    if have[: len(parameters)] != parameters:
        yield f"{name}.{method}({', '.join(have)}) does not take ({', '.join(parameters)})"


def faults(module: str) -> Iterator[str]:
    for name, methods in NAMES[module].items():
        owner = ours(module, name)
        if owner is None:
            if missing(name) is None:
                yield f"the class {name} is missing"
            continue
        for method, parameters in methods.items():
            if missing(name, method) is None:
                yield from faults_of(owner, name, method, parameters)


@pytest.mark.parametrize("module", NAMES)
def test_every_name_of_a_module_is_here_or_left_out_for_a_reason(module: str) -> None:
    assert list(faults(module)) == []


def test_what_is_left_out_is_a_name_of_pyflinks_and_is_not_here() -> None:
    classes = {name: methods for module in NAMES.values() for name, methods in module.items()}
    for key in {**PLANNED, **LEFT_OUT}:
        name, _, method = key.partition(".")
        if name == "*":
            assert any(method in methods for methods in classes.values()), key
        else:
            assert name in classes or name == "JavaFunctionWrapper", key
            assert method in ("", *classes[name]), key
    here = [
        key
        for key in LEFT_OUT
        for module, names in NAMES.items()
        if key in names and ours(module, key) is not None
    ]
    assert here == []


def test_a_missing_class_method_and_parameter_are_found() -> None:
    class Half:
        def there(self, one: int, other: int) -> None: ...

    assert list(faults_of(Half, "Half", "there", ["one"])) == []
    assert list(faults_of(Half, "Half", "gone", [])) == ["Half.gone is missing"]
    assert list(faults_of(Half, "Half", "there", ["other"])) == [
        "Half.there(one, other) does not take (other)"
    ]


def test_the_names_are_those_of_the_installed_pyflink() -> None:
    folder = pyflink_names.installed()
    if folder is None:
        pytest.skip("apache-flink is not installed and PYFLINK_EXAMPLES is not set")
    found = {module: names for module, names in pyflink_names.read(folder).items() if names}
    assert found == NAMES, "another release? run: python tests/unit/pyflink_names.py"
