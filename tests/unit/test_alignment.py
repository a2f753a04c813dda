"""Barrier alignment against a reference that remembers everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskmanager.alignment import AlignmentResult, BarrierAligner


def test_a_checkpoint_completes_with_the_barrier_of_the_last_channel() -> None:
    aligner = BarrierAligner(3)
    assert aligner.on_barrier(0, 1) == AlignmentResult()
    assert aligner.on_barrier(2, 1) == AlignmentResult()
    assert (aligner.current, aligner.blocked) == (1, {0, 2})
    assert aligner.on_barrier(1, 1) == AlignmentResult(completed=1)
    assert (aligner.current, aligner.blocked) == (None, set())


def test_a_single_channel_is_aligned_at_once() -> None:
    assert BarrierAligner(1).on_barrier(0, 5) == AlignmentResult(completed=5)


def test_a_newer_barrier_supersedes_an_older_alignment() -> None:
    aligner = BarrierAligner(2)
    aligner.on_barrier(0, 1)
    assert aligner.on_barrier(1, 2) == AlignmentResult(aborted=[1])
    assert aligner.blocked == {1}
    assert aligner.on_barrier(0, 2) == AlignmentResult(completed=2)


def test_a_barrier_of_a_checkpoint_that_is_over_is_ignored() -> None:
    aligner = BarrierAligner(2)
    aligner.on_barrier(0, 2)
    assert aligner.on_barrier(1, 1) == AlignmentResult(), "older than what is aligned"
    assert aligner.blocked == {0}
    aligner.on_barrier(1, 2)
    assert aligner.on_barrier(1, 2) == AlignmentResult(), "completed"
    assert aligner.blocked == set()


def test_an_abort_frees_the_channels_and_later_barriers_of_it_are_ignored() -> None:
    aligner = BarrierAligner(2)
    aligner.on_barrier(0, 1)
    aligner.abort(1)
    assert (aligner.current, aligner.blocked) == (None, set())
    assert aligner.on_barrier(1, 1) == AlignmentResult()
    assert aligner.blocked == set()


def test_an_abort_of_an_old_checkpoint_does_not_touch_a_newer_alignment() -> None:
    aligner = BarrierAligner(2)
    aligner.on_barrier(0, 3)
    aligner.abort(2)
    assert (aligner.current, aligner.blocked) == (3, {0})


def test_an_abort_of_a_newer_checkpoint_ends_an_older_alignment_too() -> None:
    aligner = BarrierAligner(2)
    aligner.on_barrier(0, 1)
    aligner.abort(2)
    assert aligner.blocked == set(), "checkpoint 1 was over before 2 began"
    assert aligner.on_barrier(1, 2) == AlignmentResult()
    assert aligner.blocked == set()


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[tuple[str, int, int]]]:
    """Each channel delivers rising checkpoint ids, some left out; aborts come at any time."""
    channels = draw(st.integers(1, 4))
    ids = [
        sorted(draw(st.sets(st.integers(1, 6), max_size=6))) for _ in range(channels)
    ]
    steps: list[tuple[str, int, int]] = []
    for _ in range(draw(st.integers(0, 30))):
        left = [channel for channel in range(channels) if ids[channel]]
        if left and draw(st.integers(0, 4)) > 0:
            channel = draw(st.sampled_from(left))
            steps.append(("barrier", channel, 0))
        else:
            steps.append(("abort", 0, draw(st.integers(1, 6))))
    queues = [list(queue) for queue in ids]
    return channels, [
        (what, channel, queues[channel].pop(0) if queues[channel] else 0)
        if what == "barrier"
        else (what, channel, number)
        for what, channel, number in steps
    ]


@given(arrivals())
def test_alignment_is_what_a_reference_that_keeps_every_barrier_says(
    story: tuple[int, list[tuple[str, int, int]]],
) -> None:
    channels, steps = story
    aligner = BarrierAligner(channels)
    waiting: list[list[int]] = [[] for _ in range(channels)]  # barriers not read: blocked
    came: dict[int, set[int]] = {}
    over = 0  # every id up to here completed, was aborted or superseded
    completed: list[int] = []

    def read(channel: int, checkpoint_id: int) -> None:
        nonlocal over
        result = aligner.on_barrier(channel, checkpoint_id)
        current = max((i for i in came if i > over), default=0)
        if checkpoint_id <= over or checkpoint_id < current:
            assert result == AlignmentResult()
            return
        came.setdefault(checkpoint_id, set()).add(channel)
        superseded = [current] if over < current < checkpoint_id else []
        over = max([over, *superseded])
        done = checkpoint_id if len(came[checkpoint_id]) == channels else None
        assert result == AlignmentResult(done, superseded)
        if done is not None:
            over = done
            completed.append(done)

    def read_unblocked() -> None:
        for channel in range(channels):
            while waiting[channel] and channel not in aligner.blocked:
                read(channel, waiting[channel].pop(0))

    for what, channel, checkpoint_id in steps:
        if what == "abort":
            aligner.abort(checkpoint_id)
            over = max(over, checkpoint_id)
        elif checkpoint_id:
            waiting[channel].append(checkpoint_id)
        read_unblocked()
        current = max((i for i in came if i > over), default=None)
        assert aligner.current == current
        assert aligner.blocked == (set() if current is None else came[current])
    assert completed == sorted(set(completed))
    assert all(len(came[checkpoint_id]) == channels for checkpoint_id in completed)
