"""Configuration keys: types, limits, aliases, conflicts, and what setters write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dataflow
from dataflow.common import (
    ConfigOption,
    ConfigOptions,
    Configuration,
    ExecutionConfig,
    RestartStrategies,
)
from dataflow.common.config_options import ConfigOptions as Known
from dataflow.common.config_options import all_options, validate
from dataflow.common.config_values import (
    format_map,
    parse_boolean,
    parse_float,
    parse_map,
    parse_memory_size,
)
from dataflow.common.time import Duration
from dataflow.datastream.checkpoint_config import CheckpointConfig
from dataflow.datastream.checkpointing_mode import CheckpointingMode
from dataflow.datastream.externalized_checkpoint_retention import ExternalizedCheckpointRetention
from dataflow.errors import ConfigError

# ----------------------------------------------------------------------------------- the table


def test_flinks_defaults_and_ours() -> None:
    empty = Configuration()
    assert empty.get(ConfigOptions.PARALLELISM) == 1
    assert empty.get(ConfigOptions.MAX_PARALLELISM) is None
    assert empty.get(ConfigOptions.AUTO_WATERMARK_INTERVAL) == 200
    assert empty.get(ConfigOptions.CHECKPOINTING_INTERVAL) is None
    assert empty.get(ConfigOptions.CHECKPOINTING_TIMEOUT) == 600_000
    assert empty.get(ConfigOptions.CHECKPOINTING_NUM_RETAINED) == 3
    assert empty.get(ConfigOptions.CHECKPOINTING_RETENTION) == "RETAIN_ON_CANCELLATION"
    assert empty.get(ConfigOptions.RESTART_EXPONENTIAL_INITIAL_BACKOFF) == 100
    assert empty.get(ConfigOptions.CHANNEL_BYTES_MAX) == 4 * 1024 * 1024
    assert validate({}) == []


def test_every_option_says_what_it_is_and_accepts_its_own_default() -> None:
    for option in all_options():
        assert option.description, option.key
        if option.default is not None:
            configuration = Configuration().set(option, option.default)
            assert configuration.get(option) == option.default
            assert validate(configuration.to_dict()) == []


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("execution.checkpointing.interval", "10 s", 10_000),
        ("execution.checkpointing.interval", "1500", 1500),
        ("execution.checkpointing.interval", "PT1M", 60_000),
        ("taskmanager.network.channel.bytes-max", "1 mb", 1 << 20),
        ("taskmanager.network.channel.bytes-max", "65536", 65_536),
        ("parallelism.default", " 4 ", 4),
        ("pipeline.operator-chaining.enabled", "FALSE", False),
        ("restart-strategy.exponential-delay.jitter-factor", "0.5", 0.5),
        ("restart-strategy.type", "failure-rate", "failure-rate"),
    ],
)
def test_values_are_read_by_type(key: str, text: str, value: Any) -> None:
    (option,) = (option for option in all_options() if option.key == key)
    assert Configuration({key: text}).get(option) == value
    assert validate({key: text}) == []


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("parallelism.default", "0", "1 to 32768 is allowed"),
        ("parallelism.default", "32769", "1 to 32768 is allowed"),
        ("parallelism.default", "two", "an integer is needed"),
        ("parallelism.default", "1.5", "an integer is needed"),
        ("parallelism.default", "1" * 40, "an integer is needed"),
        ("execution.checkpointing.interval", "10 parsecs", "a duration such as '10 s'"),
        ("execution.checkpointing.interval", "-1 s", "a duration such as '10 s'"),
        ("execution.checkpointing.interval", "1 ms", "10 ms to 366 d is allowed"),
        (
            "execution.checkpointing.mode",
            "exactly once",
            "EXACTLY_ONCE or AT_LEAST_ONCE is allowed",
        ),
        ("execution.checkpointing.max-concurrent-checkpoints", "2", "not supported yet; only 1"),
        ("execution.checkpointing.unaligned.enabled", "maybe", "true or false is needed"),
        ("execution.checkpointing.aligned-checkpoint-timeout", "-1 s", "a duration such as"),
        ("execution.checkpointing.dir", " ", "must not be empty"),
        ("execution.runtime-mode", "BATHC", "BATCH"),
        ("metrics.latency.granularity", "task", "single or operator or subtask is allowed"),
        ("metrics.latency.history-size", "0", "1 to 10000 is allowed"),
        ("state.backend.type", "forst", "not supported yet; hashmap or rocksdb is allowed"),
        ("taskmanager.network.channel.bytes-max", "4 loads", "a size such as '4 mb'"),
        ("taskmanager.network.channel.bytes-max", "1 kb", "65536 bytes to"),
        ("restart-strategy.exponential-delay.backoff-multiplier", "0.5", "1.0 to 1000.0"),
        ("restart-strategy.exponential-delay.backoff-multiplier", "nan", "a number is needed"),
        ("pipeline.operator-chaining.enabled", "yes", "true or false is needed"),
        ("pipeline.global-job-parameters", "a=b", "key:value pairs"),
    ],
)
def test_an_impossible_value_is_a_fault_that_says_what_is_allowed(
    key: str, text: str, reason: str
) -> None:
    (fault,) = validate({key: text})
    assert fault.startswith(f"{key} = ")
    assert reason in fault


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("parallelism.defualt", "parallelism.default"),
        ("execution.checkpoint.interval", "execution.checkpointing.interval"),
        ("checkpointing.interval", "execution.checkpointing.interval"),
        ("restart-strategy.kind", "restart-strategy.type"),
        ("zzz", ""),
    ],
)
def test_an_unknown_key_is_a_fault_that_names_the_nearest_known_one(key: str, nearest: str) -> None:
    (fault,) = validate({key: "1"})
    assert fault.startswith(
        f"unknown configuration key {key!r}; the nearest known one is '{nearest}"
    )


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (
            {"execution.checkpointing.interval": "1 s", "execution.checkpointing.min-pause": "2 s"},
            "execution.checkpointing.min-pause (2000 ms) must be at most "
            "execution.checkpointing.interval (1000 ms)",
        ),
        (
            {"heartbeat.interval": "10 s"},
            "heartbeat.interval (10000 ms) must be below heartbeat.timeout (10000 ms)",
        ),
        (
            {"parallelism.default": "8", "pipeline.max-parallelism": "4"},
            "parallelism.default (8) must be at most pipeline.max-parallelism (4)",
        ),
        (
            {"restart-strategy.exponential-delay.initial-backoff": "5 min"},
            "restart-strategy.exponential-delay.initial-backoff (300000 ms) must be at most "
            "restart-strategy.exponential-delay.max-backoff (60000 ms)",
        ),
    ],
)
def test_values_that_conflict_are_a_fault(values: dict[str, str], fault: str) -> None:
    assert validate(values) == [fault]


def test_a_timeout_below_the_interval_is_no_fault() -> None:
    assert validate({"execution.checkpointing.interval": "30 min"}) == []
    assert validate({"execution.checkpointing.min-pause": "1 min"}) == []  # without checkpoints


def test_all_faults_are_reported_at_once() -> None:
    configuration = Configuration({"parallelism.default": "0", "nonsense": "1"})
    configuration.set_string("heartbeat.interval", "1 h")
    with pytest.raises(ConfigError) as caught:
        configuration.validate()
    assert len(str(caught.value).splitlines()) == 3
    Configuration({"parallelism.default": "2"}).validate()


def test_what_pyflink_needs_for_its_workers_is_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"python\.executable has no effect"):
        assert validate({"python.executable": "/usr/bin/python3"}) == []


@pytest.mark.parametrize(
    "key",
    [
        "pipeline.jars",
        "env.java.opts.all",
        "taskmanager.memory.managed.size",
        "jobmanager.memory.process.size",
        "rest.port",
        "jobmanager.rpc.address",
        "metrics.reporters",
        "metrics.reporter.prom.port",
        "state.backend.incremental",
        "execution.target",
        "task.cancellation.interval",
    ],
)
def test_what_a_cluster_of_flink_needs_is_ignored_with_a_warning(key: str) -> None:
    with pytest.warns(UserWarning, match=rf"{re.escape(key)} has no effect here: "):
        assert validate({key: "1"}) == []


def test_what_was_to_make_it_safe_is_not_ignored() -> None:
    (fault,) = validate({"security.ssl.internal.enabled": "true"})
    assert "unknown configuration key" in fault


def test_names_are_taken_in_any_case_and_told_in_one() -> None:
    configuration = Configuration({"execution.runtime-mode": "batch", "state.backend": "rocksdb"})
    assert configuration.get(Known.RUNTIME_MODE) == "BATCH"
    assert configuration.get(Known.STATE_BACKEND) == "rocksdb"
    for name, meant in [("off", "none"), ("FixedDelay", "fixed-delay"), ("none", "none")]:
        assert Configuration({"restart-strategy": name}).get(Known.RESTART_STRATEGY) == meant
    with pytest.raises(ConfigError, match="STREAMING or BATCH"):
        Configuration({"execution.runtime-mode": "batches"}).get(Known.RUNTIME_MODE)


#: Options that nothing asks for, and why they are there all the same.
UNREAD = {
    "OBJECT_REUSE": "records are never copied between chained operators",
    "BUFFER_TIMEOUT": "batches leave as soon as their channel is free",
    "CHECKPOINTING_MAX_CONCURRENT": "only 1 is allowed",
    "CHECKPOINTING_FORCE_UNALIGNED": "no kind of job needs force",
    "RECOVERY_CLAIM_MODE": "only NO_CLAIM is allowed",
}


def test_every_option_is_read_by_the_engine_or_has_a_reason_not_to_be() -> None:
    """Setters and getters do not count: what is set must have an effect."""
    root = Path(dataflow.__file__).parents[1]
    setters = ("config_options.py", "execution_config.py", "checkpoint_config.py")
    source = "".join(
        path.read_text()
        for package in ("dataflow", "state", "taskmanager", "jobmanager")
        for path in sorted((root / package).rglob("*.py"))
        if path.name not in setters
    )
    source = re.sub(r"(_configuration\.set\(|return self\._configuration\.get\()\S+", "", source)
    unread = {
        name
        for name, option in vars(ConfigOptions).items()
        if isinstance(option, ConfigOption)
        and not re.search(rf"ConfigOptions\.{name}\b|\"{re.escape(option.key)}\"", source)
    }
    assert unread == set(UNREAD)


# ------------------------------------------------------------------------------- Configuration


def test_an_alias_is_kept_under_the_present_name() -> None:
    configuration = Configuration({"state.checkpoints.dir": "s3://b/p"})
    assert configuration.to_dict() == {"execution.checkpointing.dir": "s3://b/p"}
    assert configuration.get_string("state.checkpoints.dir", "") == "s3://b/p"
    assert configuration.contains_key("state.checkpoints.dir")
    assert configuration.remove_config("state.checkpoints.dir")
    assert not configuration.remove_config("state.checkpoints.dir")


def test_values_go_in_and_come_out_by_type() -> None:
    configuration = Configuration()
    configuration.set_integer("i", 3).set_boolean("b", True).set_float("f", 0.5)
    configuration.set_string("s", "x").set_bytearray("y", bytearray(b"\x00\xff"))
    assert configuration.get_integer("i", 0) == 3
    assert configuration.get_boolean("b", False) is True
    assert configuration.get_float("f", 0.0) == 0.5
    assert configuration.get_string("s", "") == "x"
    assert configuration.get_bytearray("y", bytearray()) == bytearray(b"\x00\xff")
    assert configuration.to_dict() == {"i": "3", "b": "true", "f": "0.5", "s": "x", "y": "00ff"}
    assert configuration.key_set() == {"i", "b", "f", "s", "y"}


def test_what_is_not_set_has_the_given_default() -> None:
    empty = Configuration()
    assert empty.get_integer("i", 7) == 7
    assert empty.get_boolean("b", True) is True
    assert empty.get_float("f", 1.5) == 1.5
    assert empty.get_string("s", "d") == "d"
    assert empty.get_bytearray("y", bytearray(b"d")) == bytearray(b"d")
    assert empty.get_millis("execution.checkpointing.timeout") == 600_000
    assert empty.get_millis("anything", 5) == 5
    with pytest.raises(ConfigError, match="anything is not set"):
        empty.get_millis("anything")


@pytest.mark.parametrize(
    "act",
    [
        lambda c: c.get_integer("k", 0),
        lambda c: c.get_boolean("k", False),
        lambda c: c.get_float("k", 0.0),
        lambda c: c.get_bytearray("k", bytearray()),
        lambda c: c.get_millis("k"),
        lambda c: c.set_integer("k", True),
        lambda c: c.set_integer("k", 1.5),
        lambda c: c.set_boolean("k", 1),
        lambda c: c.set_float("k", "1"),
        lambda c: c.set_string("k", None),
        lambda c: c.set_string("k", [1]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_key(act: Any) -> None:
    with pytest.raises(ConfigError, match=r"^k"):
        act(Configuration({"k": "word"}))


def test_options_are_judged_when_set_by_type() -> None:
    configuration = Configuration()
    configuration.set(ConfigOptions.CHECKPOINTING_INTERVAL, 500)
    assert configuration.get(ConfigOptions.CHECKPOINTING_INTERVAL) == 500
    configuration.set(ConfigOptions.CHECKPOINTING_INTERVAL, None)
    assert configuration.to_dict() == {}
    with pytest.raises(ConfigError, match="1 to 32768"):
        configuration.set(ConfigOptions.PARALLELISM, 0)
    with pytest.raises(ConfigError, match=r"parallelism\.default = 'x': an integer is needed"):
        Configuration({"parallelism.default": "x"}).get(ConfigOptions.PARALLELISM)


def test_a_program_may_describe_options_of_its_own() -> None:
    option = ConfigOptions.key("my.limit").int_type().default_value(3)
    assert Configuration().get(option) == 3
    assert Configuration({"my.limit": "4"}).get(option) == 4
    none = ConfigOptions.key("my.name").string_type().no_default_value()
    assert Configuration().get(none) is None


def test_configurations_are_merged_and_compared_by_content() -> None:
    configuration = Configuration.from_dict({"a": "1"}).add_all({"b": "2"}, prefix="x.")
    assert configuration == Configuration({"a": "1", "x.b": "2"})
    target = {"c": "3"}
    configuration.add_all_to_dict(target)
    assert target == {"a": "1", "x.b": "2", "c": "3"}
    other = Configuration(configuration).set_string("a", "9")
    assert configuration.get_string("a", "") == "1"
    assert other != configuration


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.dictionaries(TEXTS, TEXTS, max_size=4))
def test_maps_are_read_back(pairs: dict[str, str]) -> None:
    assert parse_map(format_map(pairs)) == pairs


def test_maps_need_no_quotes() -> None:
    assert parse_map("a:1, b : two words ,'c:d':'e,f'") == {
        "a": "1",
        "b": "two words",
        "c:d": "e,f",
    }


@pytest.mark.parametrize("parse", [parse_boolean, parse_float, parse_memory_size, parse_map])
@given(text=TEXTS | st.text("0123456789.eE+-': ,kmbtrue ", max_size=12))
def test_parsers_read_or_refuse_whatever_they_get(parse: Any, text: str) -> None:
    option = ConfigOption("k", parse, None)
    try:
        option.value_of(text)
    except ConfigError as error:
        refusal = str(error)
        assert refusal.endswith("needed")


# ------------------------------------------------------------------------------------- setters


def test_checkpoint_settings_become_keys_and_come_back() -> None:
    configuration = Configuration()
    checkpoints = CheckpointConfig(configuration)
    assert checkpoints.get_checkpoint_interval() == -1
    assert not checkpoints.is_checkpointing_enabled()
    assert checkpoints.is_externalized_checkpoints_enabled()
    (
        checkpoints.set_checkpoint_interval(Duration.of_seconds(1))
        .set_checkpoint_timeout(5000)
        .set_min_pause_between_checkpoints(500)
        .set_max_concurrent_checkpoints(1)
        .set_checkpointing_mode(CheckpointingMode.AT_LEAST_ONCE)
        .set_tolerable_checkpoint_failure_number(2)
        .set_checkpoint_storage("s3://bucket/jobs")
        .set_externalized_checkpoint_retention(
            ExternalizedCheckpointRetention.DELETE_ON_CANCELLATION
        )
        .disable_unaligned_checkpoints()
    )
    configuration.validate()
    assert configuration.to_dict()["execution.checkpointing.interval"] == "1000 ms"
    assert configuration.to_dict()["execution.checkpointing.mode"] == "AT_LEAST_ONCE"
    assert checkpoints.is_checkpointing_enabled()
    assert checkpoints.get_checkpoint_interval() == 1000
    assert checkpoints.get_checkpoint_timeout() == 5000
    assert checkpoints.get_min_pause_between_checkpoints() == 500
    assert checkpoints.get_max_concurrent_checkpoints() == 1
    assert checkpoints.get_checkpointing_mode() is CheckpointingMode.AT_LEAST_ONCE
    assert checkpoints.get_tolerable_checkpoint_failure_number() == 2
    assert checkpoints.get_checkpoint_storage() == "s3://bucket/jobs"
    retention = checkpoints.get_externalized_checkpoint_retention()
    assert retention is ExternalizedCheckpointRetention.DELETE_ON_CANCELLATION
    assert not checkpoints.is_unaligned_checkpoints_enabled()
    assert checkpoints.get_aligned_checkpoint_timeout() == Duration.of_millis(0)
    assert checkpoints.set_fail_on_checkpointing_errors(True).is_fail_on_checkpointing_errors()


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda c: c.set_aligned_checkpoint_timeout(-1), "at least 0 ms is allowed"),
        (lambda c: c.set_max_concurrent_checkpoints(2), "not supported yet"),
        (lambda c: c.set_checkpoint_interval(0), "10 ms to 366 d is allowed"),
        (lambda c: c.set_checkpoint_interval("1 s"), "a Duration, Time, timedelta or an int"),
        (lambda c: c.set_checkpointing_mode("EXACTLY_ONCE"), "none of CheckpointingMode.EXACTLY"),
        (lambda c: c.set_checkpoint_storage(""), "a location such as"),
        (lambda c: c.set_checkpoint_storage(None), "a location such as"),
        (lambda c: c.set_tolerable_checkpoint_failure_number(-1), "0 to 2147483647"),
    ],
)
def test_checkpoint_settings_that_cannot_be_are_refused(act: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        act(CheckpointConfig(Configuration()))


def test_execution_settings_are_the_same_keys() -> None:
    configuration = Configuration()
    execution = ExecutionConfig(configuration)
    assert execution.get_max_parallelism() == -1
    execution.set_parallelism(2).set_max_parallelism(16).set_auto_watermark_interval(50)
    execution.set_global_job_parameters({"rate": 10, "name": "it's, a: test"}).enable_object_reuse()
    assert (execution.get_parallelism(), execution.get_max_parallelism()) == (2, 16)
    assert execution.get_auto_watermark_interval() == 50
    assert execution.get_global_job_parameters() == {"rate": "10", "name": "it's, a: test"}
    assert execution.is_object_reuse_enabled()
    assert configuration.get_string("parallelism.default", "") == "2"
    configuration.validate()


@pytest.mark.parametrize(
    ("strategy", "keys"),
    [
        (RestartStrategies.no_restart(), {"type": "none"}),
        (RestartStrategies.fall_back_restart(), {}),
        (
            RestartStrategies.fixed_delay_restart(3, 1000),
            {"type": "fixed-delay", "fixed-delay.attempts": "3", "fixed-delay.delay": "1000 ms"},
        ),
        (
            RestartStrategies.failure_rate_restart(2, Duration.of_minutes(1), 10),
            {
                "type": "failure-rate",
                "failure-rate.max-failures-per-interval": "2",
                "failure-rate.failure-rate-interval": "60000 ms",
                "failure-rate.delay": "10 ms",
            },
        ),
        (
            RestartStrategies.exponential_delay_restart(100, 5000, 1.5, jitter_factor=0.2),
            {
                "type": "exponential-delay",
                "exponential-delay.initial-backoff": "100 ms",
                "exponential-delay.max-backoff": "5000 ms",
                "exponential-delay.backoff-multiplier": "1.5",
                "exponential-delay.jitter-factor": "0.2",
            },
        ),
    ],
)
def test_restart_strategies_become_keys(strategy: Any, keys: dict[str, str]) -> None:
    expected = {f"restart-strategy.{key}": value for key, value in keys.items()}
    assert strategy.to_configuration() == expected
    assert validate(expected) == []
    assert strategy.get_description()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: RestartStrategies.fixed_delay_restart(-1, 0), "restart_attempts.* at least 0"),
        (lambda: RestartStrategies.fixed_delay_restart(True, 0), "restart_attempts.* at least 0"),
        (lambda: RestartStrategies.fixed_delay_restart(1, -1), "fixed_delay_restart: -1 is too"),
        (lambda: RestartStrategies.failure_rate_restart(0, 1, 1), "failure_rate.* at least 1"),
        (lambda: RestartStrategies.failure_rate_restart(1, 0, 1), "failure_interval: 0 is too"),
        (
            lambda: RestartStrategies.exponential_delay_restart(backoff_multiplier="2"),  # type: ignore[arg-type]
            "'2' is no number",
        ),
    ],
)
def test_restart_strategies_that_cannot_be_are_refused(make: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make()
