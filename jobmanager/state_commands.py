"""``dataflow state``: look into savepoints and checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import isfinite
from typing import Any, TypeVar

from dataflow.common.dataclass_state import SchemaMismatch
from dataflow.common.job_client import JobClient
from dataflow.errors import ObjectNotFound, RestoreError, StateProcessorError
from dataflow.state_processor import SavepointReader, StateEntry
from dataflow.state_processor.reader import COLUMNS
from dataflow.state_processor.tables import plain
from jobmanager.key_text import keys_meant_by
from state.processor.difference import OPERATOR_STATE, Sample, StateDifference, differences

LIMIT = 20
#: Times that a path is looked into whose checkpoints a running job deletes meanwhile.
LOOKS = 3
#: Of a value in a table.
_TEXT_MAX = 100
_KEY = "text, JSON for a number or a tuple, or as Python shows it"

_PATHS = """\
PATH is the folder of a savepoint, of a job in its checkpoint storage (its newest checkpoint), or
one checkpoint of a job: FOLDER/epochs/NUMBER.json. `dataflow checkpoints` lists their numbers.
"""
_CAUTION = """\
It unpickles state, which runs whatever whoever wrote it has put into it: only for folders that
you trust. Classes in the state must be importable: run it in the program's folder.
"""
_EXAMPLES = {
    "ls": """
  dataflow state ls s3://bucket/checkpoints/orders
  dataflow state ls savepoint-orders-1f0c0a6e2b7d --json
""",
    "show": """
  dataflow state show PATH --uid visits                      of all its states
  dataflow state show PATH --uid visits --state count --key ann
  dataflow state show PATH --uid visits --key '["ann", 3]'   a key that is a tuple
  dataflow state show PATH --uid source --state splits       how far a source has read
""",
    "get": """
  dataflow state get orders --uid visits --state count --key ann
  dataflow state get orders --uid visits --state count --key 42 --window 0,60000
""",
    "diff": """
  dataflow state diff s3://bucket/jobs/orders/epochs/7.json s3://bucket/jobs/orders
""",
}

T = TypeVar("T")
Connect = Callable[[argparse.Namespace], None]
PrintTable = Callable[[tuple[str, ...], Sequence[tuple[str, ...]], str], None]


def add_state_commands(commands: Any, print_table: PrintTable, connect: Connect) -> None:
    """Add ``state`` to the commands of ``dataflow``."""
    text = "look into savepoints and checkpoints: what state there is, entries, differences"
    state = commands.add_parser(
        "state",
        help=text,
        description=text + ".\n\n" + _PATHS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    state.set_defaults(command=lambda options: state.print_help() or 0)
    inner = state.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, function: Callable[..., int], text: str, note: str
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = inner.add_parser(
            name,
            help=text,
            description=f"{text}.\n\n{_PATHS}{note}",
            epilog=f"examples:{_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(command=lambda options: function(options, print_table))
        added.add_argument("--json", action="store_true", help="as JSON")
        return added

    listing = command(
        "ls", _ls, "list operators and their states, with sizes", "Nothing is unpickled.\n"
    )
    listing.add_argument("path", metavar="PATH")

    show = command("show", _show, "show what an operator has in its states", _CAUTION)
    show.add_argument("path", metavar="PATH")
    show.add_argument("--uid", required=True, help="the operator's uid, as ls shows it")
    show.add_argument("--state", metavar="NAME", help="this state only")
    show.add_argument("--key", metavar="KEY", help=f"this key only: {_KEY}")
    show.add_argument(
        "--limit", type=_limit, default=LIMIT, metavar="N", help=f"entries of a state ({LIMIT})"
    )

    diff = command("diff", _diff, "compare two savepoints or checkpoints", _CAUTION)
    diff.add_argument("first", metavar="PATH1")
    diff.add_argument("second", metavar="PATH2")
    get = inner.add_parser(
        "get",
        help="ask a running job for what a state holds for a key",
        description="Ask a running job for what a state holds for a key now. The job goes on.\n\n"
        "The answer is unpickled: only for jobs that you trust. Classes in it must be importable.",
        epilog=f"examples:{_EXAMPLES['get']}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    get.set_defaults(command=lambda options: _get(options, connect))
    get.add_argument("job_id", metavar="JOB")
    get.add_argument("--uid", required=True, help="the operator's uid")
    get.add_argument("--state", required=True, metavar="NAME", help="the name of the state")
    get.add_argument("--key", required=True, help=_KEY)
    get.add_argument(
        "--window", type=_window, metavar="START,END", help="of state that is of a window, in ms"
    )
    get.add_argument("--address", metavar="HOST:PORT", help="the Ray cluster; see dataflow status")
    get.add_argument("--json", action="store_true", help="as JSON")

    diff.add_argument(
        "--samples", type=int, default=3, metavar="N", help="entries to show of a state (3)"
    )


# ------------------------------------------------------------------------------------------- ls


def _ls(options: argparse.Namespace, print_table: PrintTable) -> int:
    reader, operators = _look_into(options.path, SavepointReader.operators)
    if options.json:
        _print_json(
            {
                "path": reader.path,
                "job_id": reader.job_id,
                "checkpoint_id": reader.checkpoint_id,
                "timestamp_ms": reader.timestamp_ms,
                "operators": [
                    {
                        "uid": operator.uid,
                        "vertex": operator.vertex,
                        "parallelism": operator.parallelism,
                        "max_parallelism": operator.max_parallelism,
                        "bytes": operator.size,
                        "native": list(operator.native),
                        "states": [
                            {
                                "name": state.name,
                                "kind": state.kind,
                                "bytes": state.size,
                                "key_groups": state.key_groups,
                            }
                            for state in operator.states
                        ],
                        "operator_states": [
                            {
                                "name": state.name,
                                "redistribution": state.redistribution,
                                "items": state.items,
                                "bytes": state.size,
                            }
                            for state in operator.operator_states
                        ],
                    }
                    for operator in operators
                ],
            }
        )
        return 0
    print(f"checkpoint {reader.checkpoint_id} of job {reader.job_id}, in {reader.path}")
    rows: list[tuple[str, ...]] = []
    for operator in operators:
        native = f"in files of {', '.join(operator.native)}" if operator.native else ""
        rows.append(
            (
                operator.uid,
                "",
                native,
                f"{operator.parallelism}/{operator.max_parallelism}",
                f"{operator.size:,} B",
            )
        )
        for keyed in operator.states:
            known = (f"{keyed.key_groups} key groups", f"{keyed.size:,} B")
            rows.append(("", keyed.name, keyed.kind, *(known if keyed.size else ("-", "-"))))
        for own in operator.operator_states:
            kind = f"operator state, {own.redistribution}"
            rows.append(("", own.name, kind, f"{own.items} items", f"{own.size:,} B"))
    print_table(("UID", "STATE", "KIND", "PARALLELISM/MAX", "SIZE"), rows, "no state")
    return 0


# ----------------------------------------------------------------------------------------- show


def _show(options: argparse.Namespace, print_table: PrintTable) -> int:
    _programs_folder()
    _, (shown, more) = _look_into(options.path, lambda reader: _wanted(reader, options))
    if options.json:
        _print_json({"uid": options.uid, "states": shown, "cut": sorted(more)})
        return 0
    for name, found in shown.items():
        print(f"{name}:")
        header = tuple(dict.fromkeys(column for row in found for column in row))
        cells = [tuple(_cell(row, column) for column in header) for row in found]
        print_table(tuple(column.replace("_", " ").upper() for column in header), cells, "nothing")
        if name in more:
            print(f"... more than {options.limit}: see --limit")
    return 0


def _cell(row: dict[str, Any], column: str) -> str:
    """Empty for what a row does not have; None may be a key."""
    value = row.get(column)
    return "None" if value is None and column == "key" else _text(value)


def _wanted(
    reader: SavepointReader, options: argparse.Namespace
) -> tuple[dict[str, list[dict[str, Any]]], set[str]]:
    """Rows by state; and the states of which there are more."""
    operator = reader.operator(options.uid)
    keyed = [state.name for state in operator.states]
    own = [state.name for state in operator.operator_states]
    if options.state is not None:
        if options.state not in keyed + own:
            there = ", ".join(map(repr, keyed + own))
            raise StateProcessorError(
                f"operator uid {options.uid!r} has no state {options.state!r}; it has {there}"
            )
        keyed, own = ([options.state] if options.state in names else [] for names in (keyed, own))
    shown: dict[str, list[dict[str, Any]]] = {}
    more: set[str] = set()
    for name in keyed:
        rows = _rows(reader, options.uid, name, options.key)
        shown[name] = list(islice(rows, options.limit))
        if next(rows, None) is not None:
            more.add(name)
    for name in own if options.key is None else ():
        items = reader.operator_items(options.uid, name)
        shown[name] = [{"subtask": n, "value": item} for n, item in items[: options.limit]]
        if len(items) > options.limit:
            more.add(name)
    return shown, more


def _rows(
    reader: SavepointReader, uid: str, name: str, key: str | None
) -> Iterator[dict[str, Any]]:
    if name == COLUMNS:
        yield from reader.columnar_state(uid).to_pylist()
        return
    entries: Iterator[StateEntry]
    if key is None:
        entries = reader.iterate(uid, name)
    else:
        entries = iter(_of_key(reader, uid, name, key))
    for entry in entries:
        row: dict[str, Any] = {"key": entry.key}
        if entry.namespace is not None:
            start, end = entry.window
            row["window"] = entry.namespace if end is None else [start, end]
        if entry.kind == "timers":
            row["timers"] = sorted(entry.value)
        else:
            row["value"] = entry.value
        if entry.last_used is not None:
            row["last_used"] = entry.last_used
        yield row


def _of_key(reader: SavepointReader, uid: str, name: str, key: str) -> list[StateEntry]:
    found = next(filter(None, (reader.get(uid, name, meant) for meant in keys_meant_by(key))), [])
    if not found and key.endswith(")"):  # a dataclass: nobody but the state knows its class
        found = [entry for entry in reader.iterate(uid, name) if repr(entry.key) == key]
    return found


# ----------------------------------------------------------------------------------------- diff


def _diff(options: argparse.Namespace, print_table: PrintTable) -> int:
    _programs_folder()

    def compared(first: SavepointReader, second: SavepointReader) -> list[StateDifference]:
        found = differences(first._opened, second._opened, options.samples)
        return [state for state in found if state.differs]

    first, (second, found) = _look_into(
        options.first,
        lambda first: _look_into(options.second, lambda second: compared(first, second)),
    )
    gone = sorted({*first.uids()} - {*second.uids()})
    come = sorted({*second.uids()} - {*first.uids()})
    if options.json:
        _print_json(
            {
                "only_in_first": gone,
                "only_in_second": come,
                "states": [_as_dict(state) for state in found],
            }
        )
        return 0
    for uid in gone:
        print(f"{uid}: only in the first")
    for uid in come:
        print(f"{uid}: only in the second")
    rows = [
        (s.uid, s.name, *(f"{n:,}" for n in (s.only_first, s.only_second, s.changed, s.same)))
        for s in found
    ]
    header = ("UID", "STATE", "ONLY IN FIRST", "ONLY IN SECOND", "CHANGED", "SAME")
    print_table(header, rows, "" if gone or come else "no difference")
    for state in found:
        for sample in state.samples:
            keyed = state.kind != OPERATOR_STATE
            print(f"{state.uid} {state.name}: {_sample(sample, keyed)}")
    return 0


def _sample(sample: Sample, keyed: bool) -> str:
    where = f"key {'None' if sample.key is None else _text(sample.key)} " if keyed else ""
    if sample.namespace is not None:
        where += f"in {_text(sample.namespace)} "
    if sample.what == "changed":
        return f"{where}is {_text(sample.first)} in the first, {_text(sample.second)} in the second"
    value = sample.first if sample.what == "only in the first" else sample.second
    return f"{where}is {sample.what}: {_text(value)}"


def _as_dict(state: StateDifference) -> dict[str, Any]:
    return {
        "uid": state.uid,
        "state": state.name,
        "kind": state.kind,
        "only_in_first": state.only_first,
        "only_in_second": state.only_second,
        "changed": state.changed,
        "same": state.same,
        "samples": [
            {
                "what": sample.what,
                "window": sample.namespace,
                "key": sample.key,
                "first": sample.first,
                "second": sample.second,
            }
            for sample in state.samples
        ],
    }


# ------------------------------------------------------------------------------------------ get


def _get(options: argparse.Namespace, connect: Connect) -> int:
    from jobmanager.cluster import attach

    _programs_folder()
    connect(options)
    return look_up(attach(options.job_id), options)


def look_up(client: JobClient, options: argparse.Namespace) -> int:
    """Print what the job answers; 1 if the state holds nothing for the key."""
    found = None
    for key in keys_meant_by(options.key):
        found = client.query_state(options.uid, options.state, key, options.window).result()
        if found is not None:
            break
    if options.json:
        _print_json({"key": options.key, "value": found})
    elif found is None:
        print(f"state {options.state!r} holds nothing for {options.key!r}", file=sys.stderr)
    else:
        print(found if isinstance(found, str) else repr(found))
    return 1 if found is None else 0


def _limit(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of entries")
    return int(text)


def _window(text: str) -> tuple[int, int]:
    start, _, end = text.partition(",")
    try:
        return int(start), int(end)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not START,END in ms") from None


# ---------------------------------------------------------------------------------------- parts


def _programs_folder() -> None:
    """As Python does it for a program: modules of the folder that the command is called in."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, "")


def _look_into(path: str, look: Callable[[SavepointReader], T]) -> tuple[SavepointReader, T]:
    """What ``look`` finds; it looks again where a running job has deleted that checkpoint."""
    seen: set[int] = set()
    while True:
        reader = SavepointReader.read(path)
        try:
            return reader, look(reader)
        except ObjectNotFound as error:
            if reader.checkpoint_id in seen:
                raise
            seen.add(reader.checkpoint_id)
            if len(seen) == LOOKS:
                raise StateProcessorError(
                    f"the job of {path} deletes its checkpoints before they are read ({error}): "
                    "take a savepoint of it, or have it keep more of them "
                    "(execution.checkpointing.num-retained)"
                ) from error
        except RestoreError as error:
            if not isinstance(error.__cause__, SchemaMismatch):
                raise
            raise StateProcessorError(
                f"{error}. To look into it, its classes must be found: run the command in the "
                "folder of the program, or with PYTHONPATH"
            ) from error


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"


def _print_json(value: Any) -> None:
    print(json.dumps(_json(value), indent=2, allow_nan=False))


def _json(value: Any) -> Any:
    """What JSON has for a value of state; text in Python's form for what it has nothing for."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else repr(value)
    try:
        made = plain(value)
    except TypeError:
        return repr(value)
    return _json(made) if isinstance(made, dict | list) else repr(value)
