"""The environment of a program: its settings, its sources, and the way to run it.

Settings are Flink's configuration keys, and setters are another way to write them. What counts,
first to last: the operator's own setting, the environment's setters and ``configure``, the
Configuration given to ``get_execution_environment``, the command line (``-p``, ``-D``), defaults.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from dataflow.common.config_options import ConfigOption, ConfigOptions, validate
from dataflow.common.configuration import Configuration
from dataflow.common.conversion import batch_converter
from dataflow.common.execution_config import ExecutionConfig
from dataflow.common.job_client import JobClient
from dataflow.common.job_execution_result import JobExecutionResult
from dataflow.common.restart_strategy import RestartStrategyConfiguration
from dataflow.common.time import DurationLike, to_millis
from dataflow.common.typeinfo import TypeInformation, Types
from dataflow.common.watermark_strategy import WatermarkStrategy
from dataflow.datastream.checkpoint_config import CheckpointConfig
from dataflow.datastream.checkpointing_mode import CheckpointingMode
from dataflow.datastream.connectors.base import Source
from dataflow.datastream.data_stream import DataStream
from dataflow.datastream.execution_mode import RuntimeExecutionMode
from dataflow.datastream.slot_sharing_group import SlotSharingGroup
from dataflow.datastream.state_backend import StateBackend
from dataflow.errors import ConfigError, JobGraphError
from dataflow.graph.cached_files import Registered, registered, shipped
from dataflow.graph.job_graph import JobGraph
from dataflow.graph.specs import SourceSpec
from dataflow.graph.transformation import GraphSettings, Input, Transformation

T = TypeVar("T")

COMMAND_LINE_CONFIGURATION = "DATAFLOW_CONF"  # environment variable: a JSON object
PLAN_ONLY = "DATAFLOW_PLAN_ONLY"  # environment variable: plan instead of running

DEFAULT_JOB_NAME = "dataflow job"


class StreamExecutionEnvironment:
    """Where a program begins and is run."""

    def __init__(self, configuration: Configuration | None = None) -> None:
        """Programs call ``get_execution_environment``, which minds the command line too."""
        self._configuration = Configuration()
        if configuration is not None:
            self._configuration.add_all(configuration)
        self._checkpoint_config = CheckpointConfig(self._configuration)
        self._execution_config = ExecutionConfig(self._configuration)
        self._transformations: list[Transformation] = []
        self._iteration: Transformation | None = None  # the one whose body is being called
        self._slot_profiles: dict[str, dict[str, float]] = {}
        self._python_files: list[str] = []
        self._cached_files: dict[str, Registered] = {}
        self._requirements: str | None = None

    @staticmethod
    def get_execution_environment(
        configuration: Configuration | None = None,
    ) -> StreamExecutionEnvironment:
        """An environment with the command line's settings, and ``configuration`` over them.

        Raises ConfigError for a setting that is not possible.
        """
        merged = Configuration()
        for key, value in _command_line_settings().items():
            merged.set_string(key, value)
        if configuration is not None:
            merged.add_all(configuration)
        return StreamExecutionEnvironment(merged)

    # -------------------------------------------------------------------------------- settings

    def configure(self, configuration: Configuration) -> None:
        """Take over every key of ``configuration``."""
        self._configuration.add_all(configuration)

    def get_config(self) -> ExecutionConfig:
        """The same settings, seen as PyFlink's ExecutionConfig."""
        return self._execution_config

    def set_parallelism(self, parallelism: int) -> StreamExecutionEnvironment:
        """Subtasks of every operator that does not say otherwise."""
        self._execution_config.set_parallelism(parallelism)
        return self

    def get_parallelism(self) -> int:
        return self._execution_config.get_parallelism()

    def set_max_parallelism(self, max_parallelism: int) -> StreamExecutionEnvironment:
        """Key groups of every operator that does not say otherwise."""
        self._execution_config.set_max_parallelism(max_parallelism)
        return self

    def get_max_parallelism(self) -> int:
        """-1 when each operator's follows from its parallelism."""
        return self._execution_config.get_max_parallelism()

    def set_runtime_mode(self, execution_mode: RuntimeExecutionMode) -> StreamExecutionEnvironment:
        """STREAMING, BATCH (see docs/batch.md), or AUTOMATIC: BATCH if every source ends."""
        self._configuration.set(ConfigOptions.RUNTIME_MODE, execution_mode.name)
        return self

    def set_buffer_timeout(self, timeout_millis: DurationLike) -> StreamExecutionEnvironment:
        """Accepted for Flink's sake: a batch leaves as soon as its channel is free anyway.

        In Flink -1 waits until a buffer is full, which nothing does here.
        """
        millis = to_millis(timeout_millis, "set_buffer_timeout", at_least=-1)
        if millis != -1:
            self._configuration.set(ConfigOptions.BUFFER_TIMEOUT, millis)
        return self

    def get_buffer_timeout(self) -> int:
        return self._configuration.get(ConfigOptions.BUFFER_TIMEOUT)

    def disable_operator_chaining(self) -> StreamExecutionEnvironment:
        """Run every operator in a task of its own."""
        self._configuration.set(ConfigOptions.OPERATOR_CHAINING, False)
        return self

    def is_chaining_enabled(self) -> bool:
        return self._configuration.get(ConfigOptions.OPERATOR_CHAINING)

    def is_chaining_of_operators_with_different_max_parallelism_enabled(self) -> bool:
        """The maximum parallelism does not keep operators from being chained."""
        return self.is_chaining_enabled()

    def enable_checkpointing(
        self,
        interval: DurationLike,
        mode: CheckpointingMode | None = None,
    ) -> StreamExecutionEnvironment:
        """Checkpoint the job every ``interval`` (ms if an int)."""
        self._checkpoint_config.set_checkpoint_interval(
            to_millis(interval, "enable_checkpointing", at_least=1)
        )
        if mode is not None:
            self._checkpoint_config.set_checkpointing_mode(mode)
        return self

    def get_checkpoint_config(self) -> CheckpointConfig:
        return self._checkpoint_config

    def get_checkpoint_interval(self) -> int:
        """In milliseconds; -1 when checkpointing is off."""
        return self._checkpoint_config.get_checkpoint_interval()

    def get_checkpointing_mode(self) -> CheckpointingMode:
        return self._checkpoint_config.get_checkpointing_mode()

    def get_checkpointing_consistency_mode(self) -> CheckpointingMode:
        """PyFlink's newer name of ``get_checkpointing_mode``."""
        return self.get_checkpointing_mode()

    def is_unaligned_checkpoints_enabled(self) -> bool:
        return self._checkpoint_config.is_unaligned_checkpoints_enabled()

    def is_force_unaligned_checkpoints(self) -> bool:
        return self._checkpoint_config.is_force_unaligned_checkpoints()

    def set_state_backend(self, state_backend: StateBackend) -> StreamExecutionEnvironment:
        """Where working state is kept. Raises ConfigError for one that is not installed here."""
        if not isinstance(state_backend, StateBackend):
            raise ConfigError(
                f"set_state_backend({state_backend!r:.60}): HashMapStateBackend() is one"
            )
        self._configuration.set(ConfigOptions.STATE_BACKEND, state_backend.name)
        for key, value in state_backend.settings().items():
            self._configuration.set_string(key, value)
        return self

    def enable_changelog_state_backend(self, enabled: bool) -> StreamExecutionEnvironment:
        """Whether a checkpoint of state in memory has only what has changed since the last one."""
        self._configuration.set(ConfigOptions.STATE_CHANGELOG_ENABLED, bool(enabled))
        return self

    def is_changelog_state_backend_enabled(self) -> bool:
        return self._configuration.get(ConfigOptions.STATE_CHANGELOG_ENABLED)

    def set_default_savepoint_directory(self, directory: str) -> StreamExecutionEnvironment:
        """Where savepoints are written for which no directory is named."""
        self._configuration.set(ConfigOptions.SAVEPOINT_DIR, directory)
        return self

    def get_default_savepoint_directory(self) -> str | None:
        """None if there is none."""
        return self._configuration.get(ConfigOptions.SAVEPOINT_DIR)

    def set_restart_strategy(
        self, restart_strategy: RestartStrategyConfiguration
    ) -> StreamExecutionEnvironment:
        """What to do when a task fails."""
        self._configuration.add_all(restart_strategy.to_configuration())
        return self

    def register_slot_sharing_group(
        self, slot_sharing_group: SlotSharingGroup
    ) -> StreamExecutionEnvironment:
        """Say what a slot of that group has; operators then refer to the group by name."""
        profile = slot_sharing_group.to_resources()
        if profile:
            self._slot_profiles[slot_sharing_group.get_name()] = profile
        return self

    # ------------------------------------------------------------------------------------ code

    def add_python_file(self, file_path: str) -> None:
        """Ship a module, package folder or zip file, importable wherever the job runs."""
        path = os.path.abspath(os.fspath(file_path).removeprefix("file://"))
        if not os.path.exists(path):
            raise ConfigError(f"add_python_file({file_path!r}): there is no such file or folder")
        self._python_files.append(path)

    def set_python_requirements(
        self, requirements_file_path: str, requirements_cache_dir: str | None = None
    ) -> None:
        """Install the packages of a requirements file wherever the job runs."""
        if requirements_cache_dir is not None:
            raise ConfigError(
                "set_python_requirements(): requirements_cache_dir is not supported; point pip at "
                "an index or a folder inside the requirements file (--find-links)"
            )
        path = os.path.abspath(os.fspath(requirements_file_path))
        if not os.path.isfile(path):
            raise ConfigError(
                f"set_python_requirements({requirements_file_path!r}): there is no such file"
            )
        self._requirements = path

    def set_python_executable(self, python_exec: str) -> None:
        """Accepted for PyFlink's sake: the cluster's own Python runs the job."""
        if not isinstance(python_exec, str) or not python_exec:
            raise ConfigError(f"set_python_executable({python_exec!r}): a path is needed")

    def add_python_archive(self, archive_path: str, target_dir: str | None = None) -> None:
        """Refused: archives are not unpacked on the cluster."""
        raise ConfigError(
            f"add_python_archive({archive_path!r}) is not supported; ship Python code with "
            "add_python_file() and read data through a file source"
        )

    def register_cached_file(self, file_path: str, name: str, executable: bool = False) -> None:
        """Have a file or folder where functions run: ``get_distributed_cache().get_file(name)``.

        One on this machine is read when the job is executed and travels with it: at most 64 MiB,
        all together. One in a store that all nodes reach, such as ``s3://bucket/model``, is
        fetched by every process that asks for it. Raises ConfigError.
        """
        file = registered(file_path, name, executable)
        if self._cached_files.setdefault(name, file) != file:
            raise ConfigError(
                f"register_cached_file({file_path!r}, {name!r}): "
                f"{self._cached_files[name].path} is registered under this name already"
            )

    # --------------------------------------------------------------------------------- sources

    def from_source(
        self,
        source: Source[Any, Any],
        watermark_strategy: WatermarkStrategy,
        source_name: str,
        type_info: TypeInformation | None = None,
    ) -> DataStream:
        """The records of ``source``; the strategy's timestamp assigner applies too."""
        for argument, value, kind in (
            ("source", source, Source),
            ("watermark_strategy", watermark_strategy, WatermarkStrategy),
            ("source_name", source_name, str),
        ):
            if not isinstance(value, kind):
                raise JobGraphError(
                    f"from_source(): {argument} must be a {kind.__name__}, and is a "
                    f"{type(value).__name__}"
                )
        return self._source(source, watermark_strategy, source_name, type_info)

    def from_collection(
        self, collection: Iterable[Any], type_info: TypeInformation | None = None
    ) -> DataStream:
        """The records of a collection, which travel with the job; always in one subtask.

        With a type such as ``Types.ROW_NAMED`` or ``Types.TUPLE`` they become what it says.
        """
        from dataflow.datastream.connectors.collection import CollectionSource

        if isinstance(collection, (str, bytes, Mapping)) or not isinstance(collection, Iterable):
            raise JobGraphError(
                f"from_collection({collection!r:.60}): a list or another iterable is needed"
            )
        convert = None if type_info is None else batch_converter(type_info)
        if convert is not None:
            try:
                collection = convert(list(collection))
            except TypeError as error:
                raise JobGraphError(f"from_collection(): {error}") from None
        stream = self._source(CollectionSource(collection), None, "Collection Source", None)
        stream._type = type_info
        return stream.force_non_parallel()

    def from_sequence(self, start: int, end: int) -> DataStream:
        """The integers from ``start`` to ``end``, both included."""
        from dataflow.datastream.connectors.number_seq import NumberSequenceSource

        return self._source(NumberSequenceSource(start, end), None, "Sequence Source", None)

    def read_text_file(self, file_path: str, charset_name: str = "UTF-8") -> DataStream:
        """The lines of a file, or of the files of a folder; local or ``s3://``."""
        from dataflow.datastream.connectors.file_system import FileSource, StreamFormat

        source = FileSource.for_record_stream_format(
            StreamFormat.text_line_format(charset_name), file_path
        ).build()
        return self._source(source, None, f"Text File {file_path}", Types.STRING())

    def _source(
        self,
        source: Source[Any, Any],
        watermarks: WatermarkStrategy | None,
        name: str,
        type_info: TypeInformation | None,
    ) -> DataStream:
        spec = SourceSpec(source, watermarks)
        transformation = Transformation("source", f"Source: {name}", spec, stateful=True)
        if type_info is not None:
            transformation.output_types[None] = type_info
        return DataStream(self, (Input(transformation),), transformation, type_info)

    # --------------------------------------------------------------------------------- running

    def get_execution_plan(self) -> str:
        """The program as JSON: operators in the shape of Flink's plan, and their chains."""
        from dataflow.graph.plan import plan_as_json

        return plan_as_json(self.get_job_graph())

    def get_job_graph(self, job_name: str | None = None) -> JobGraph:
        """Compile the program as it stands. Raises JobGraphError with every fault of it."""
        from dataflow.graph.generator import build_job_graph

        if self._iteration is not None:
            raise JobGraphError(
                f"{self._iteration.name}: the body of an iteration builds a part of the program; "
                "run the program after iterate()"
            )
        configuration = self._configuration.to_dict()
        settings = GraphSettings(
            parallelism=self._setting(ConfigOptions.PARALLELISM),
            max_parallelism=self._setting(ConfigOptions.MAX_PARALLELISM),
            chaining=self._setting(ConfigOptions.OPERATOR_CHAINING),
            generated_uids=self._setting(ConfigOptions.AUTO_GENERATE_UIDS),
            slot_profiles=dict(self._slot_profiles),
            # Functions look up job parameters by their own names.
            configuration=(self._setting(ConfigOptions.GLOBAL_JOB_PARAMETERS) or {})
            | configuration,
            faults=tuple(validate(configuration)),
            runtime_mode=self._setting(ConfigOptions.RUNTIME_MODE),
        )
        if job_name is None:
            job_name = self._setting(ConfigOptions.PIPELINE_NAME) or DEFAULT_JOB_NAME
        job_graph = build_job_graph(job_name, self._transformations, settings)
        return replace(job_graph, cached_files=shipped(self._cached_files.values()))

    def _setting(self, option: ConfigOption[T]) -> T:
        """The option's value; its default if that is faulty, which is reported with the rest."""
        try:
            return self._configuration.get(option)
        except ConfigError:
            return option.default

    def execute(self, job_name: str | None = None) -> JobExecutionResult:
        """Run the program and wait for its end. Raises JobExecutionError if the job fails."""
        return self._submit(job_name, attached=True).get_job_execution_result().result()

    def execute_async(self, job_name: str | None = None) -> JobClient:
        """Run the program; the client is its handle."""
        return self._submit(job_name, attached=False)

    def close(self) -> None:
        """Drop the operators that no job has run; there is nothing else to release."""
        self._transformations.clear()

    @staticmethod
    def attach_to_job(job_id: str) -> JobClient:
        """The client of a job that another process submitted to the same cluster.

        The cluster is the one this process is connected to, or that RAY_ADDRESS names, or the
        one on this machine. Raises ClusterError if no such job runs there.
        """
        from jobmanager.client import attach_to_job

        client: JobClient = attach_to_job(job_id)
        return client

    def _submit(self, job_name: str | None, attached: bool) -> JobClient:
        job_graph = self.get_job_graph(job_name)
        # What comes next in the program is another job.
        self._transformations.clear()
        if os.environ.get(PLAN_ONLY):
            from dataflow.graph.plan import PlanReady

            raise PlanReady(job_graph)
        # The one upward import of this package: running a job is the job manager's part.
        from jobmanager.client import execute_job_graph

        client: JobClient = execute_job_graph(
            job_graph,
            python_files=list(self._python_files),
            requirements=self._requirements,
            attached=attached,
        )
        return client

    def _add(self, transformation: Transformation) -> None:
        self._transformations.append(transformation)

    @contextmanager
    def _unless_it_fails(self) -> Iterator[None]:
        """What is added within is gone again if that fails."""
        before = len(self._transformations)
        try:
            yield
        except BaseException:
            del self._transformations[before:]
            raise

    @contextmanager
    def _iterating(self, head: Transformation) -> Iterator[Callable[[], Sequence[Transformation]]]:
        """While an iteration is built; what is given tells what its body has added.

        An iteration that cannot be built leaves nothing behind.
        """
        if self._iteration is not None:
            raise JobGraphError(
                f"{head.name}: an iteration within another ({self._iteration.name}) is not "
                "possible; iterate over the result of one, or let one body do both"
            )
        self._iteration = head
        before = len(self._transformations)
        try:
            with self._unless_it_fails():
                self._add(head)
                yield lambda: self._transformations[before + 1 :]
        finally:
            self._iteration = None

    def __reduce__(self) -> Any:
        raise TypeError(
            "the environment is part of the program and cannot be used inside a function"
        )


def _command_line_settings() -> dict[str, str]:
    text = os.environ.get(COMMAND_LINE_CONFIGURATION)
    if not text:
        return {}
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or not all(isinstance(v, str) for v in settings.values()):
        raise ConfigError(
            f"the environment variable {COMMAND_LINE_CONFIGURATION} must be a JSON object of "
            'strings, such as {"parallelism.default": "2"}'
        )
    return settings
