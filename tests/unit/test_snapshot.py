"""The snapshot file and how state is dealt out when the parallelism changes."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.common.keys import KeyGroupRange, subtask_for
from dataflow.errors import CorruptObject
from state.snapshot import OperatorSnapshot, TaskSnapshot, redistribute
from state.snapshot_format import decode, encode

MAX_PARALLELISM = 16

operator_snapshots = st.builds(
    OperatorSnapshot,
    keyed=st.dictionaries(st.integers(0, MAX_PARALLELISM - 1), st.binary(max_size=40)),
    operator=st.dictionaries(st.text(max_size=5), st.lists(st.binary(max_size=20), max_size=4)),
)
task_snapshots = st.builds(
    TaskSnapshot,
    operators=st.dictionaries(st.text(max_size=8), operator_snapshots, max_size=3),
    drained=st.booleans(),
)

SMALL = TaskSnapshot(
    {
        "count": OperatorSnapshot({0: b"zero", 7: b"", 3: b"three"}, {"splits": [b"a", b"", b"c"]}),
        "säule": OperatorSnapshot({}, {"empty": []}),
    },
    drained=True,
)


@given(task_snapshots)
def test_every_snapshot_survives_the_round_trip(snapshot: TaskSnapshot) -> None:
    assert decode(encode(snapshot)) == snapshot


@given(task_snapshots, st.integers(0, MAX_PARALLELISM), st.integers(0, MAX_PARALLELISM))
def test_decoding_a_range_gives_only_its_key_groups(
    snapshot: TaskSnapshot, start: int, end: int
) -> None:
    groups = KeyGroupRange(start, end)
    decoded = decode(encode(snapshot), groups)
    assert decoded.drained == snapshot.drained
    for uid, state in snapshot.operators.items():
        expected = {group: block for group, block in state.keyed.items() if group in groups}
        assert decoded.operators[uid] == OperatorSnapshot(expected, state.operator)


def test_equal_snapshots_give_equal_bytes_whatever_the_insertion_order() -> None:
    one = TaskSnapshot({"a": OperatorSnapshot({1: b"x", 2: b"y"}), "b": OperatorSnapshot()})
    two = TaskSnapshot({"b": OperatorSnapshot(), "a": OperatorSnapshot({2: b"y", 1: b"x"})})
    assert encode(one) == encode(two)


def test_every_change_of_a_single_byte_of_a_small_snapshot_is_detected() -> None:
    data = encode(SMALL)
    assert len(data) < 600
    for position in range(len(data)):
        for value in range(256):
            if value != data[position]:
                with pytest.raises(CorruptObject):
                    decode(data[:position] + bytes([value]) + data[position + 1 :])


def test_ten_thousand_random_bit_flips_of_a_large_snapshot_are_detected() -> None:
    rng = random.Random(7)
    keyed = {group: rng.randbytes(rng.randrange(2000)) for group in range(128)}
    data = bytearray(encode(TaskSnapshot({"op": OperatorSnapshot(keyed, {"s": [b"x"] * 100})})))
    for _ in range(10_000):
        position, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[position] ^= bit
        with pytest.raises(CorruptObject):
            decode(bytes(data))
        data[position] ^= bit
    decode(bytes(data))


def test_truncated_extended_and_foreign_files_are_refused() -> None:
    data = encode(SMALL)
    for length in range(len(data)):
        with pytest.raises(CorruptObject):
            decode(data[:length])
    for other in (data + b"\0", b"\0" + data, b"", bytes(len(data)), os.urandom(100), data + data):
        with pytest.raises(CorruptObject):
            decode(other)


def test_a_later_format_version_is_refused() -> None:
    data = encode(SMALL)
    later = b"DFSNAP\x00\x03"
    with pytest.raises(CorruptObject, match="known version"):
        decode(later + data[8:-8] + later)


# --------------------------------------------------------------------------------- redistribute


def one_operator(
    keyed: dict[int, bytes], items: list[bytes], drained: bool = False
) -> TaskSnapshot:
    return TaskSnapshot({"op": OperatorSnapshot(keyed, {"items": items})}, drained)


def shards(parallelism: int) -> list[TaskSnapshot]:
    """Every key group has state, and every subtask as many items as its number."""
    return [
        one_operator(
            {
                group: b"group %d" % group
                for group in KeyGroupRange.of(MAX_PARALLELISM, parallelism, subtask)
            },
            [b"%d-%d" % (subtask, item) for item in range(subtask)],
        )
        for subtask in range(parallelism)
    ]


@given(st.integers(1, MAX_PARALLELISM), st.integers(1, MAX_PARALLELISM))
def test_rescaling_gives_every_key_group_to_its_owner_and_every_item_to_one(
    old: int, new: int
) -> None:
    before = shards(old)
    after = [redistribute(before, old, new, i, MAX_PARALLELISM) for i in range(new)]
    owners = {
        group: subtask for subtask, task in enumerate(after) for group in task.operators["op"].keyed
    }
    assert owners == {g: subtask_for(g, MAX_PARALLELISM, new) for g in range(MAX_PARALLELISM)}
    for task in after:
        for group, block in task.operators["op"].keyed.items():
            assert block == b"group %d" % group
    dealt = [task.operators["op"].operator["items"] for task in after]
    every = [item for task in before for item in task.operators["op"].operator["items"]]
    assert sorted(item for items in dealt for item in items) == sorted(every)
    if old != new:
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_the_same_parallelism_keeps_every_subtasks_own_state() -> None:
    before = shards(3)
    before[1].drained = True
    assert [redistribute(before, 3, 3, i, MAX_PARALLELISM) for i in range(3)] == before


def test_a_rescaled_task_has_drained_only_if_all_had() -> None:
    one, other = one_operator({}, [], drained=True), one_operator({}, [], drained=False)
    assert not redistribute([one, other], 2, 1, 0, MAX_PARALLELISM).drained
    assert redistribute([one, one], 2, 1, 0, MAX_PARALLELISM).drained


def test_operators_known_to_some_subtasks_only_are_kept() -> None:
    before = [TaskSnapshot({"a": OperatorSnapshot({0: b"x"})}), TaskSnapshot()]
    assert redistribute(before, 2, 1, 0, MAX_PARALLELISM).operators["a"].keyed == {0: b"x"}


def test_two_owners_of_one_key_group_are_refused() -> None:
    before = [one_operator({3: b"x"}, []), one_operator({3: b"y"}, [])]
    with pytest.raises(CorruptObject, match="key group 3"):
        redistribute(before, 2, 1, 0, MAX_PARALLELISM)


@pytest.mark.parametrize(("old", "new", "subtask"), [(1, 2, 0), (2, 2, 2), (2, 1, -1)])
def test_a_snapshot_for_every_old_subtask_and_a_valid_new_one_are_required(
    old: int, new: int, subtask: int
) -> None:
    with pytest.raises(ValueError, match="snapshots of parallelism"):
        redistribute(shards(2), old, new, subtask, MAX_PARALLELISM)
