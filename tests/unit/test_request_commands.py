"""The words of the command for savepoints and rescaling, and what they become."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.errors import ConfigError
from jobmanager import cli


def settings_of(*words: str) -> dict[str, str]:
    return cli._settings(cli._parser().parse_args(["run", *words, "job.py"]))


def test_a_job_is_started_from_a_savepoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "execution.state-recovery.path"
    assert settings_of("-s", "s3://bucket/a")[key] == "s3://bucket/a"
    monkeypatch.chdir(tmp_path)
    assert settings_of("--from-savepoint", "kept/a")[key] == f"file://{tmp_path}/kept/a"
    assert settings_of() == {}


def test_operators_are_renamed_whatever_their_names_are() -> None:
    settings = settings_of("--map-uid", "a,b=it's: c", "--map-uid", "d=e=f")
    options = Configuration(settings)
    renamed = options.get(ConfigOptions.RECOVERY_RENAMED_UIDS)
    assert renamed == {"a,b": "it's: c", "d": "e=f"}


def test_state_is_dropped_on_purpose() -> None:
    key = "execution.state-recovery.ignore-unclaimed-state"
    assert settings_of("--allow-non-restored-state") == {key: "true"}


def test_a_path_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"contains '\.\.'"):
        settings_of("-s", "../a")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "--map-uid", "a", "job.py"], "'a' is not OLD=NEW, two uids"),
        (["rescale", "orders"], "the following arguments are required: -p/--parallelism"),
        (["rescale", "orders", "-p", "0"], r"0 is not in 1\.\.32768"),
        (["stop"], "the following arguments are required: job_id"),
        (["savepoint", "Or ders"], "is no job id"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args(words)
    assert re.search(complaint, capsys.readouterr().err)


@pytest.mark.parametrize("command", ["savepoint", "stop", "rescale", "checkpoint", "run"])
def test_the_help_says_what_it_is_for(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    needed = {
        "savepoint": "in a folder that is yours, from which a job can start (run -s)",
        "stop": "for a job that is not to go on from its savepoint",
        "rescale": "operators with a parallelism of their own keep it",
        "checkpoint": "take a checkpoint of a job now",
        "run": "Nothing there is changed or deleted",
    }
    assert needed[command] in text
