"""What has come to its end stays at its end, whatever the state processor makes of its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_savepoint_jobs import END, GATE, PATIENCE_S, Place, expected, place, read, windows

from dataflow.datastream import CheckpointedFunction
from dataflow.datastream.functions import MapFunction
from dataflow.datastream.state import ListStateDescriptor
from dataflow.state_processor import OperatorTransformation, SavepointReader, SavepointWriter

__all__ = ["place"]

NOTHING = OperatorTransformation.list_state("n", [])


class Noting(MapFunction, CheckpointedFunction):
    """Hands on what it gets; chained to the source, with state of its own."""

    def initialize_state(self, context: Any) -> None:
        self.numbers = context.get_operator_state_store().get_list_state(ListStateDescriptor("n"))

    def snapshot_state(self, context: Any) -> None: ...

    def map(self, value: int) -> int:
        self.numbers.add(value)
        return value


def noted_windows(numbers: Any, output: str) -> None:
    windows(numbers.map(Noting()).uid("noted"), output)


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (lambda writer: writer.change_operator("noted", NOTHING), {}),
        (lambda writer: writer.change_operator("numbers", NOTHING), {}),
        (lambda writer: writer.remove_operator("noted").with_operator("noted", NOTHING), {}),
        (lambda writer: writer.with_max_parallelism(64), {"pipeline.max-parallelism": "64"}),
    ],
)
def test_a_drained_job_stays_drained_when_its_state_is_changed(
    place: Place,
    change: Callable[[SavepointWriter], SavepointWriter],
    settings: dict[str, str],
) -> None:
    first = place.start("first", ends=False, program=noted_windows)
    read(250, first)
    path = first.stop_with_savepoint(True, place.savepoints).result(PATIENCE_S)
    changed = change(SavepointWriter.from_existing(path)).write(place.root / "changed")
    GATE.allowed = END
    second = place.start("second", savepoint=changed, ends=False, program=noted_windows, **settings)
    second.get_job_execution_result().result(PATIENCE_S)
    assert place.lines() == expected(250)
    assert sum(GATE.read.values()) == 250, "and nothing more is read"


def drained_operators(path: str) -> dict[str, bool]:
    vertices = SavepointReader.read(path)._opened.vertices
    return {uid: all(s.drained for s in vertex.subtasks) for uid, vertex in vertices.items()}


def test_what_is_changed_goes_on_where_an_operator_was_removed(place: Place) -> None:
    first = place.start("first", ends=False, program=noted_windows)
    read(250, first)
    path = first.stop_with_savepoint(True, place.savepoints).result(PATIENCE_S)
    some = OperatorTransformation.list_state("n", range(9))
    kept = SavepointWriter.from_existing(path).change_operator("noted", some)
    assert drained_operators(kept.write(place.root / "kept"))["noted"]
    less = kept.remove_operator("numbers").with_operator("new", some)
    assert not {"noted", "new"} & {
        uid
        for uid, drained in drained_operators(less.write(place.root / "less")).items()
        if drained
    }


def test_what_is_put_into_nothing_has_not_come_to_its_end(place: Place) -> None:
    path = SavepointWriter.new().write(place.root / "empty")
    some = OperatorTransformation.list_state("n", range(9))
    made = SavepointWriter.from_existing(path).with_operator("a", some).write(place.root / "made")
    assert drained_operators(made) == {"a": False}
