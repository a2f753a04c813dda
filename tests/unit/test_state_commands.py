"""``dataflow state``."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import uuid
from decimal import Decimal
from typing import Any

import pytest
from golden import make

from dataflow.common import Row
from dataflow.errors import ObjectNotFound
from dataflow.state_processor import SavepointReader, SavepointWriter
from jobmanager import cli
from jobmanager.key_text import keys_meant_by
from jobmanager.state_commands import _print_json

CHECKPOINTS = make.HERE / "checkpoints"
HASHMAP = str(CHECKPOINTS / "hashmap")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["state", *arguments]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(run(capsys, *arguments, "--json"))


def test_ls_lists_operators_and_states_without_unpickling(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr("dataflow.common.codec._StateUnpickler", refuse)
    monkeypatch.setattr("dataflow.common.codec.pickle.loads", refuse)
    lines = run(capsys, "ls", HASHMAP).splitlines()
    assert lines[0].startswith("checkpoint ")
    assert lines[1].split() == ["UID", "STATE", "KIND", "PARALLELISM/MAX", "SIZE"]
    words = [line.split() for line in lines[2:]]
    assert ["ttl-map", "map", "state", "with", "TTL"] in [w[:5] for w in words]
    assert ["broadcast:rules", "operator", "state,", "broadcast"] in [w[:4] for w in words]
    assert ["rolling", "2/8"] in [w[:2] for w in words]
    found = as_json(capsys, "ls", HASHMAP)
    everything = next(o for o in found["operators"] if o["uid"] == "everything")
    assert (everything["parallelism"], everything["max_parallelism"]) == (2, 8)
    names = {state["name"]: state["kind"] for state in everything["states"]}
    assert names["visit"] == "value state"
    assert names["$event-timers"] == "timers"


def test_ls_needs_no_rocksdb_to_list_what_is_in_its_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rocksdict", None)
    found = as_json(capsys, "ls", str(CHECKPOINTS / "rocksdb"))
    everything = next(o for o in found["operators"] if o["uid"] == "everything")
    assert everything["native"] == ["rocksdb"]
    visit = next(state for state in everything["states"] if state["name"] == "visit")
    assert (visit["bytes"], visit["key_groups"]) == (0, 0), "they are not known"
    lines = run(capsys, "ls", str(CHECKPOINTS / "rocksdb")).splitlines()
    assert ["visit", "value", "state", "-", "-"] in [line.split() for line in lines]
    code = cli.main(["state", "show", str(CHECKPOINTS / "rocksdb"), "--uid", "everything"])
    assert code == 3
    assert "needs the package rocksdict" in capsys.readouterr().err


def test_show_shows_entries_timers_and_the_state_of_subtasks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = run(capsys, "show", HASHMAP, "--uid", "everything", "--state", "value")
    assert shown.splitlines()[:2] == ["value:", "KEY         VALUE"]
    assert "ann         110" in shown.splitlines()
    timers = run(capsys, "show", HASHMAP, "--uid", "everything", "--state", "$event-timers")
    assert "ann         [1000000, 1000010, 1000100]" in timers.splitlines()
    splits = as_json(capsys, "show", HASHMAP, "--uid", "source", "--state", "splits")
    assert splits["states"]["splits"][0]["value"]["position"] > 10
    windows = as_json(capsys, "show", HASHMAP, "--uid", "tumbling", "--key", "ann")
    [window] = windows["states"]["$window"]
    assert window["window"] == [0, 10_000]
    columns = as_json(capsys, "show", str(CHECKPOINTS / "columns"), "--uid", "columns")
    assert {row["key"] for row in columns["states"]["$columns"]} == {"", "ann", "bob"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("ann", 110), ("7", 16), ('["eve", 1]', 14), ("('eve', 1)", 14)),
        *(("nobody", None), ("{}", None), ("Nobody()", None)),
    ],
)
def test_a_key_is_text_or_json(
    capsys: pytest.CaptureFixture[str], key: str, value: int | None
) -> None:
    found = as_json(
        capsys, "show", HASHMAP, "--uid", "everything", "--state", "value", "--key", key
    )
    assert [row["value"] for row in found["states"]["value"]] == ([] if value is None else [value])


def test_show_says_that_there_is_more(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(
        capsys, "show", HASHMAP, "--uid", "everything", "--state", "visit", "--limit", "2"
    ).splitlines()
    assert len(shown) == 5
    assert shown[-1] == "... more than 2: see --limit"
    found = as_json(capsys, "show", HASHMAP, "--uid", "everything", "--limit", "2")
    assert "visit" in found["cut"]


def test_diff_tells_operators_states_and_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    changed = str(tmp_path / "changed")
    writer = SavepointWriter.from_existing(HASHMAP).remove_operator("rolling")
    writer.with_changed_keys("everything", lambda key: "anna" if key == "ann" else key)
    writer.with_changed_uid("tumbling", "renamed").write(changed)
    lines = run(capsys, "diff", HASHMAP, changed).splitlines()
    assert lines[:3] == [
        "rolling: only in the first",
        "tumbling: only in the first",
        "renamed: only in the second",
    ]
    found = as_json(capsys, "diff", HASHMAP, changed)
    assert found["only_in_first"] == ["rolling", "tumbling"]
    assert {state["uid"] for state in found["states"]} == {"everything"}
    value = next(state for state in found["states"] if state["state"] == "value")
    assert (value["only_in_first"], value["only_in_second"], value["changed"]) == (1, 1, 0)
    assert {(s["what"], s["key"]) for s in value["samples"]} == {
        ("only in the first", "ann"),
        ("only in the second", "anna"),
    }
    assert run(capsys, "diff", HASHMAP, HASHMAP) == "no difference\n"
    changelog = as_json(capsys, "diff", HASHMAP, str(CHECKPOINTS / "changelog"))
    differing = {(state["uid"], state["state"]) for state in changelog["states"]}
    of_time = {("everything", f"ttl-{kind}") for kind in ("value", "list", "map")}
    assert {pair for pair in differing if not pair[0].startswith(("sink", "source"))} <= of_time


def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert cli.main(["state", "ls", str(tmp_path)]) == 3
    assert "there is no savepoint in" in capsys.readouterr().err
    assert cli.main(["state", "show", HASHMAP, "--uid", "x"]) == 3
    assert "there is no operator uid 'x'" in capsys.readouterr().err
    assert cli.main(["state", "show", HASHMAP, "--uid", "everything", "--state", "x"]) == 3
    assert "has no state 'x'; it has '$event-timers'" in capsys.readouterr().err


def test_help_says_what_a_path_is_and_that_state_is_unpickled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["state"]) == 0
    assert "epochs/NUMBER.json" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["state", "show", "--help"])
    shown = capsys.readouterr().out
    assert "unpickles" in shown
    assert "dataflow state show PATH --uid visits" in shown


@pytest.mark.parametrize("limit", ["-1", "1.5", "many"])
def test_a_limit_is_a_number_of_entries(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["state", "show", HASHMAP, "--uid", "x", f"--limit={limit}"])
    assert f"'{limit}' is not a number of entries" in capsys.readouterr().err


def test_who_reads_only_the_beginning_sees_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "jobmanager.cli", "state", "ls", HASHMAP]
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")


def test_where_a_running_job_has_deleted_the_checkpoint_its_next_one_is_looked_into(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is another one each time; if it is not, something is missing."""
    numbers = iter([5, 6, 7, 8, 9, 9])

    class Reader(SavepointReader):
        checkpoint_id = property(lambda self: self._number)  # type: ignore[assignment]

        @classmethod
        def read(cls, path: str) -> Reader:
            reader = cls(SavepointReader.read(path)._opened)
            reader._number = next(numbers)
            return reader

        def operator(self, uid: str) -> Any:
            if self._number in gone:
                raise ObjectNotFound("there is no file x.sst")
            return super().operator(uid)

    monkeypatch.setattr("jobmanager.state_commands.SavepointReader", Reader)
    gone = {5}
    assert run(capsys, "ls", HASHMAP).startswith("checkpoint 6 of")
    gone = {7, 8, 9}
    wanted = ["state", "show", HASHMAP, "--uid", "everything"]
    assert cli.main(wanted) == 3
    assert "deletes its checkpoints before they are read" in capsys.readouterr().err
    numbers = iter([9, 9])
    assert cli.main(wanted) != 0
    assert "there is no file x.sst" in capsys.readouterr().err


def test_classes_that_are_not_found_are_looked_for_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("golden.program.Visit")
    assert cli.main(["state", "show", HASHMAP, "--uid", "everything", "--state", "visit"]) == 3
    said = capsys.readouterr().err
    assert "Visit of module" in said
    assert "run the command in the folder of the program" in said
    assert "ann         110" in run(
        capsys, "show", HASHMAP, "--uid", "everything", "--state", "value"
    )


def test_numbers_that_json_does_not_have_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    _print_json({"values": [1.5, float("nan"), (float("-inf"), 7)]})
    assert json.loads(capsys.readouterr().out) == {"values": [1.5, "nan", ["-inf", 7]]}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("7", 7),
        ('["eve", 1, null]', ("eve", 1, None)),
        ('{"name": "Ann", "tags": ["a"]}', Row(name="Ann", tags=("a",))),
        ("null", None),
        ("None", None),
        ("-1.5", -1.5),
        ("b'x'", b"x"),
        *(
            (repr(key), key)
            for key in (
                uuid.UUID(int=7),
                Decimal("0.10"),
                Row("a", Row("b"), None),
                Row(a=1, b=Row(c=Decimal(-1))),
                dt.timedelta(days=-1, seconds=5),
                dt.date(2026, 1, 1),
                dt.datetime(2026, 1, 1, 12, 30, tzinfo=dt.timezone.utc),
                dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
                dt.time(1, 2),
                frozenset([("a", None)]),
                frozenset(),
                (1, "a", (b"x", True)),
            )
        ),
    ],
)
def test_a_key_is_meant_by_what_python_or_json_shows_of_it(text: str, key: Any) -> None:
    first, *others = keys_meant_by(text)
    assert first == text
    assert [(other, type(other)) for other in others] == [(key, type(key))]


@pytest.mark.parametrize(
    "text",
    [
        *("ann", "", "(", "nan", "NaN", "Decimal('NaN')", "Decimal('x')", "UUID('x')"),
        *("print(1)", "os.system('true')", "datetime.sys.exit()", "date", "[*x]"),
        *("Row(1, a=2)", "Row(**{'a': 1})", "Row(*[1])"),
        *("{1: [2]}", "1" * 5000, "(" * 500, "f'{1}'", "date(1, 2)", "1 if 1 else 2"),
    ],
)
def test_what_is_no_key_as_python_shows_it_is_text(text: str) -> None:
    assert keys_meant_by(text) == [text]
