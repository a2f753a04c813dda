"""NumberSequenceSource, and what every source with static splits owes on restore."""

from __future__ import annotations

import pytest
from connector_harness import RunningSource, open_source, redistributed
from hypothesis import given
from hypothesis import strategies as st

from dataflow.datastream.connectors.base import InputStatus, Source
from dataflow.datastream.connectors.collection import CollectionSource
from dataflow.datastream.connectors.datagen import DataGeneratorSource
from dataflow.datastream.connectors.number_seq import NumberSequenceSource
from dataflow.errors import ConfigError
from state.snapshot import OperatorSnapshot


def test_both_ends_are_included() -> None:
    assert RunningSource(NumberSequenceSource(3, 7)).run() == [3, 4, 5, 6, 7]


def test_every_subtask_emits_one_contiguous_part_in_order() -> None:
    running = RunningSource(NumberSequenceSource(0, 9), parallelism=3)
    running.run()
    assert [output.rows for output in running.outputs] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_more_subtasks_than_numbers_leave_some_without_work() -> None:
    assert sorted(RunningSource(NumberSequenceSource(-1, 0), parallelism=5).run()) == [-1, 0]


def test_batches_are_as_large_as_the_engine_wants_them() -> None:
    operator, output, _ = open_source(NumberSequenceSource(1, 100))
    assert operator.poll() is InputStatus.MORE_AVAILABLE
    assert operator.poll() is InputStatus.MORE_AVAILABLE
    assert operator.poll() is InputStatus.END_OF_INPUT
    assert [len(batch) for batch in output.batches] == [16, 32, 52]
    assert operator.records_read == 100


@pytest.mark.parametrize(("start", "end"), [(5, 4), (0.5, 2), ("1", 2)])
def test_a_range_that_is_none_is_refused(start: int, end: int) -> None:
    with pytest.raises(ConfigError, match="NumberSequenceSource"):
        NumberSequenceSource(start, end)


def test_an_empty_restored_list_of_splits_does_not_begin_again() -> None:
    operator, output, _ = open_source(
        NumberSequenceSource(0, 9), restored=OperatorSnapshot(operator={"splits": []})
    )
    assert operator.poll() is InputStatus.END_OF_INPUT
    assert output.rows == []


def test_a_snapshot_after_the_end_holds_nothing() -> None:
    operator, _, _ = open_source(NumberSequenceSource(0, 9))
    assert operator.poll() is InputStatus.END_OF_INPUT
    assert operator.snapshot(1) == OperatorSnapshot(operator={"splits": []})


_SOURCES: dict[str, tuple[Source, list[int]]] = {  # type: ignore[type-arg]
    "numbers": (NumberSequenceSource(0, 9_999), list(range(10_000))),
    "collection": (CollectionSource(range(10_000)), list(range(10_000))),
    "generator": (DataGeneratorSource(lambda i: i, 10_000), list(range(10_000))),
}


@pytest.mark.parametrize("name", _SOURCES)
@given(data=st.data())
def test_any_interleaving_of_polls_and_restores_delivers_each_record_once(
    name: str, data: st.DataObject
) -> None:
    """Goal: exactly once, in order per split. Method: play the source at random parallelisms;
    at random moments take a checkpoint, or throw away all since the last one and restore it."""
    source, expected = _SOURCES[name]
    running = RunningSource(source, data.draw(st.integers(1, 4)))
    durable: list[int] = []
    parallelism, checkpoint = len(running.readers), None
    for action in data.draw(st.lists(st.sampled_from("psc"), max_size=20)):
        if action == "p":
            running.step(data.draw(st.integers(0, parallelism - 1)))
        elif action == "c":
            durable += running.rows
            checkpoint = running.snapshot()
            for output in running.outputs:
                output.events.clear()
        else:
            parallelism = data.draw(st.integers(1, 4))
            restored = None
            if checkpoint is not None:
                restored = (None, redistributed(checkpoint[1], parallelism))
            running = RunningSource(source, parallelism, restored)
    durable += running.run()
    assert sorted(durable) == expected
