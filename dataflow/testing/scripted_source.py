"""A source for tests: what happens is written down in a list, crashes included.

    ScriptedSource([1, 2, WaitForCheckpoint(), 3, Crash(), 4])

emits 1 and 2, waits until a checkpoint holds both, emits 3 and fails the job. The restarted job
goes on from the checkpoint, emits 3 once more, passes the crash, and ends after 4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataflow.common.batch import RowBatch
from dataflow.datastream.connectors.base import (
    Boundedness,
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)


class ScriptedCrash(Exception):
    """The failure that a ``Crash`` in a script causes."""


@dataclass(frozen=True)
class Record:
    """A record with its event timestamp in ms; any other value is a record without one."""

    value: Any
    timestamp: int


@dataclass(frozen=True)
class Watermark:
    """The source itself says that event time has reached ``timestamp`` (ms)."""

    timestamp: int


@dataclass(frozen=True)
class Wait:
    """Emit nothing for that long, in processing time."""

    milliseconds: int


@dataclass(frozen=True)
class WaitForCheckpoint:
    """Go on once a completed checkpoint holds everything before this point."""


@dataclass(frozen=True)
class Crash:
    """Fail the job here, once: the restarted job passes this point.

    Crash number *k* of a script (from 0) happens unless the subtask was restarted more than *k*
    times, for whatever reason.
    """


@dataclass(frozen=True)
class ScriptSplit:
    """One script; ``position`` is the item to go on with."""

    index: int
    position: int = 0

    @property
    def split_id(self) -> str:
        return str(self.index)


class ScriptedSource(Source[Any, ScriptSplit]):
    """Plays each script in order; several scripts are spread over the subtasks.

    ``batch_size`` is how many records may go into one batch. With ``bounded=False`` the source
    stays, silent, after its scripts have ended.
    """

    def __init__(self, *scripts: Sequence[Any], batch_size: int = 1, bounded: bool = True) -> None:
        if batch_size < 1:
            raise ValueError(f"ScriptedSource: batch_size must be positive, not {batch_size}")
        self.scripts = [list(script) for script in scripts]
        self.batch_size = batch_size
        self.bounded = bounded

    @property
    def boundedness(self) -> Boundedness:
        return Boundedness.BOUNDED if self.bounded else Boundedness.CONTINUOUS_UNBOUNDED

    def static_splits(self, parallelism: int) -> list[ScriptSplit]:
        return [ScriptSplit(index) for index in range(len(self.scripts))]

    def create_reader(self, context: SourceReaderContext) -> ScriptedReader:
        return ScriptedReader(self, context)


@dataclass
class _Playing:
    """A script in progress."""

    split: ScriptSplit
    covered: int  # how far the newest completed checkpoint reaches
    wait_until: int | None = None

    @property
    def position(self) -> int:
        return self.split.position

    def go_to(self, position: int) -> None:
        self.split = replace(self.split, position=position)
        self.wait_until = None


class ScriptedReader(SourceReader[Any, ScriptSplit]):
    """Does one item of one script per poll."""

    def __init__(self, source: ScriptedSource, context: SourceReaderContext) -> None:
        self._source = source
        self._context = context
        self._playing: deque[_Playing] = deque()
        self._snapshots: dict[int, dict[int, int]] = {}  # checkpoint -> script -> position
        self._paused: set[str] = set()

    def add_splits(self, splits: Sequence[ScriptSplit]) -> None:
        # A split comes from the beginning or from the checkpoint that holds all before it.
        self._playing.extend(_Playing(split, split.position) for split in splits)

    def poll_next(self, output: ReaderOutput[Any]) -> InputStatus:
        for _ in range(len(self._playing)):
            playing = self._playing.popleft()
            if playing.position == len(self._source.scripts[playing.split.index]):
                output.mark_split_finished(playing.split.split_id)
                continue
            self._playing.append(playing)
            if playing.split.split_id not in self._paused and self._play(playing, output):
                return InputStatus.MORE_AVAILABLE
        if self._playing or not self._source.bounded:
            return InputStatus.NOTHING_AVAILABLE
        return InputStatus.END_OF_INPUT

    def next_poll_at(self) -> int | None:
        waiting = (p for p in self._playing if p.split.split_id not in self._paused)
        return min((p.wait_until for p in waiting if p.wait_until is not None), default=None)

    def pause_or_resume_splits(
        self, splits_to_pause: Sequence[str], splits_to_resume: Sequence[str]
    ) -> None:
        self._paused = self._paused.union(splits_to_pause).difference(splits_to_resume)

    def snapshot_state(self, checkpoint_id: int) -> list[ScriptSplit]:
        splits = [playing.split for playing in self._playing]
        self._snapshots[checkpoint_id] = {split.index: split.position for split in splits}
        return splits

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        positions = self._snapshots.get(checkpoint_id, {})
        for playing in self._playing:
            playing.covered = max(playing.covered, positions.get(playing.split.index, 0))
        self._snapshots = {i: s for i, s in self._snapshots.items() if i > checkpoint_id}
        self._context.wake_up()

    def _play(self, playing: _Playing, output: ReaderOutput[Any]) -> bool:
        """Do the next item; False while it has to wait."""
        script = self._source.scripts[playing.split.index]
        item = script[playing.position]
        split_id = playing.split.split_id
        match item:
            case Crash():
                crashes = sum(isinstance(i, Crash) for i in script[: playing.position])
                if self._context.attempt_number <= crashes:
                    raise ScriptedCrash(f"crash {crashes} of script {playing.split.index}")
            case WaitForCheckpoint():
                if playing.covered < playing.position:
                    return False
            case Wait(milliseconds):
                now = self._context.processing_time()
                if playing.wait_until is None:
                    playing.wait_until = now + milliseconds
                if now < playing.wait_until:
                    return False
            case Watermark(timestamp):
                output.emit_watermark(timestamp, split_id)
            case Record(value, timestamp):
                output.collect(value, timestamp, split_id)
            case _:
                stop = playing.position + 1
                end = min(len(script), playing.position + self._source.batch_size)
                while stop < end and not isinstance(script[stop], _ITEMS):
                    stop += 1
                output.collect_batch(RowBatch(script[playing.position : stop]), split_id)
                playing.go_to(stop)
                return True
        playing.go_to(playing.position + 1)
        return True


_ITEMS = (Record, Watermark, Wait, WaitForCheckpoint, Crash)
