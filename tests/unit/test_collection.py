"""CollectionSource."""

from __future__ import annotations

from connector_harness import RunningSource

from dataflow.datastream.connectors.base import Boundedness
from dataflow.datastream.connectors.collection import CollectionSource


def test_the_records_come_in_order_and_as_the_objects_they_are() -> None:
    records = ["a", None, {"b": 1}, (2,), []]
    assert RunningSource(CollectionSource(records)).run() == records


def test_any_iterable_will_do_and_is_read_once() -> None:
    source = CollectionSource(i * i for i in range(4))
    assert source.boundedness is Boundedness.BOUNDED
    assert RunningSource(source).run() == RunningSource(source).run() == [0, 1, 4, 9]


def test_subtasks_take_contiguous_slices() -> None:
    running = RunningSource(CollectionSource("abcde"), parallelism=2)
    running.run()
    assert [output.rows for output in running.outputs] == [["a", "b"], ["c", "d", "e"]]


def test_an_empty_collection_ends_at_once() -> None:
    assert RunningSource(CollectionSource([]), parallelism=2).run() == []
