"""Whole jobs in this process: savepoints, stopping, starting from one, rescaling, upgrades."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dataflow.common import Configuration, Duration, Encoder, JobStatus, WatermarkStrategy
from dataflow.common.batch import RowBatch
from dataflow.datastream import (
    CheckpointedFunction,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.base import (
    Boundedness,
    InputStatus,
    ReaderOutput,
    Source,
    SourceReader,
    SourceReaderContext,
)
from dataflow.datastream.connectors.file_system import FileSink
from dataflow.datastream.functions import MapFunction, ProcessWindowFunction
from dataflow.datastream.state import ListStateDescriptor
from dataflow.datastream.window import TumblingEventTimeWindows
from dataflow.errors import JobExecutionError, JobRequestError
from dataflow.filesystem.local import LocalFileSystem
from jobmanager.local import LocalJobClient
from jobmanager.requests import TakeCheckpoint

PATIENCE_S = 20
END = 400
WINDOW = 100


class Gate:
    """The test says how far the sources may read, and sees how far they are."""

    def __init__(self) -> None:
        self.allowed = 0
        self.read: Counter[int] = Counter()


GATE = Gate()


@dataclass(frozen=True)
class Split:
    """Every fourth number."""

    next: int

    @property
    def split_id(self) -> str:
        return str(self.next % 4)


class GatedReader(SourceReader[int, Split]):
    def __init__(self, context: SourceReaderContext, ends: bool) -> None:
        self._context = context
        self._ends = ends
        self._splits: list[Split] = []

    def add_splits(self, splits: Sequence[Split]) -> None:
        self._splits += splits

    def poll_next(self, output: ReaderOutput[int]) -> InputStatus:
        if not self._splits and self._ends:
            return InputStatus.END_OF_INPUT
        for index, split in enumerate(self._splits):
            if split.next < min(GATE.allowed, END):
                self._splits[index] = Split(split.next + 4)
                output.collect_batch(RowBatch([split.next], [split.next]), split.split_id)
                GATE.read[split.next] += 1
                return InputStatus.MORE_AVAILABLE
            if split.next >= END and self._ends:
                del self._splits[index]
                output.mark_split_finished(split.split_id)
                return InputStatus.MORE_AVAILABLE
        return InputStatus.NOTHING_AVAILABLE

    def next_poll_at(self) -> int | None:
        return self._context.processing_time() + 2

    def snapshot_state(self, checkpoint_id: int) -> list[Split]:
        return list(self._splits)


class GatedSource(Source[int, Split]):
    """0, 1, ..., END - 1 in four splits, as far as the gate allows."""

    def __init__(self, ends: bool = True) -> None:
        self._ends = ends

    @property
    def boundedness(self) -> Boundedness:
        return Boundedness.BOUNDED if self._ends else Boundedness.CONTINUOUS_UNBOUNDED

    def static_splits(self, parallelism: int) -> list[Split]:
        return [Split(first) for first in range(4)]

    def create_reader(self, context: SourceReaderContext) -> GatedReader:
        return GatedReader(context, self._ends)


def key_of(value: int) -> int:
    return value % 5


class Contents(ProcessWindowFunction[int, str, int, Any]):
    def process(self, key: int, context: Any, elements: Iterable[int]) -> Iterator[str]:
        yield " ".join(map(str, sorted(elements)))


class Place:
    """The folders of one test, and its jobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.savepoints = str(root / "savepoints")
        self._jobs: list[LocalJobClient] = []

    def start(
        self,
        job_id: str,
        parallelism: int = 2,
        savepoint: str | None = None,
        checkpoints: bool = True,
        ends: bool = True,
        program: Callable[[Any, str], None] | None = None,
        **settings: str,
    ) -> LocalJobClient:
        """The job of these tests: windows of numbers to files. ``_`` in settings are dots."""
        configuration = Configuration()
        configuration.set_string("parallelism.default", str(parallelism))
        configuration.set_string("restart-strategy.type", "none")
        configuration.set_string("pipeline.auto-watermark-interval", "5 ms")
        if checkpoints:
            configuration.set_string("execution.checkpointing.interval", "50 ms")
            configuration.set_string("execution.checkpointing.dir", str(self.root / "ckpt"))
        if savepoint is not None:
            configuration.set_string("execution.state-recovery.path", savepoint)
        for key, value in settings.items():
            configuration.set_string(key, value)
        environment = StreamExecutionEnvironment.get_execution_environment(configuration)
        strategy = WatermarkStrategy.for_monotonous_timestamps()
        numbers = environment.from_source(GatedSource(ends), strategy, "numbers").uid("numbers")
        (program or windows)(numbers, str(self.root / "out"))
        os.environ["DATAFLOW_JOB_ID"] = job_id
        client = environment.execute_async(job_id)
        assert isinstance(client, LocalJobClient)
        self._jobs.append(client)
        return client

    def close(self) -> None:
        GATE.allowed = END
        for client in self._jobs:
            client.cancel().result(PATIENCE_S)

    def lines(self) -> list[str]:
        """All that is visible."""
        files = [f for f in (self.root / "out").rglob("*") if f.is_file()]
        visible = [f for f in files if not f.name.startswith(".")]
        return sorted(line for f in visible for line in f.read_text().splitlines())


def windows(numbers: Any, output: str) -> None:
    (
        numbers.key_by(key_of)
        .window(TumblingEventTimeWindows.of(Duration.of_millis(WINDOW)))
        .process(Contents())
        .uid("windows")
        .sink_to(FileSink.for_row_format(output, Encoder.simple_string_encoder()).build())
        .uid("files")
    )


def expected(end: int = END) -> list[str]:
    """The windows over 0, 1, ..., end - 1."""
    return sorted(
        " ".join(str(n) for n in range(start, min(start + WINDOW, end)) if n % 5 == key)
        for start in range(0, end, WINDOW)
        for key in range(5)
    )


def until(condition: Callable[[], bool], client: LocalJobClient | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        if client is not None:
            assert not client.info().status.is_terminal_state(), client.info().error
        threading.Event().wait(0.005)


def read(to: int, client: LocalJobClient) -> None:
    """Let the sources read up to there, and wait until they have, and windows have fired."""
    fired = 5 * (to // WINDOW - GATE.allowed // WINDOW)
    GATE.allowed = to
    if to < END:  # else it ends
        until(lambda: all(GATE.read[n] for n in range(to)), client)
        until(lambda: client.info().records_written >= fired, client)


def running(client: LocalJobClient) -> LocalJobClient:
    until(lambda: client.info().status is JobStatus.RUNNING)
    return client


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    monkeypatch.setenv("DATAFLOW_JOB_ID", "")
    GATE.allowed = 0
    GATE.read.clear()
    made = Place(tmp_path)
    yield made
    made.close()


# ------------------------------------------------------------------------------- savepoints


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_job_goes_on_from_a_savepoint_that_was_moved(place: Place, parallelism: int) -> None:
    first = place.start("first")
    read(150, first)
    path = first.trigger_savepoint(place.savepoints).result(PATIENCE_S)
    assert path.startswith(f"file://{place.savepoints}/savepoint-first-")
    read(END, first)
    first.wait()
    assert place.lines() == expected()

    shutil.rmtree(place.root / "out")
    moved = place.root / "elsewhere" / "kept"
    shutil.copytree(path.removeprefix("file://"), moved)
    shutil.rmtree(path.removeprefix("file://"))
    shutil.rmtree(place.root / "ckpt")
    GATE.read.clear()
    second = place.start("second", parallelism, savepoint=str(moved))
    assert second.wait().restarts == 0
    assert second.info().restored_from == f"file://{moved}"
    assert sorted(GATE.read) == list(range(150, END)), "what came before is in the savepoint"
    assert set(GATE.read.values()) == {1}
    assert place.lines() == sorted(set(expected()) - set(expected(WINDOW)))
    assert moved.exists(), "it belongs to the user"


class Seen(MapFunction, CheckpointedFunction):
    """A number, and how many its subtask has seen; in its state are those it has."""

    def initialize_state(self, context: Any) -> None:
        self.numbers = context.get_operator_state_store().get_list_state(ListStateDescriptor("n"))

    def snapshot_state(self, context: Any) -> None: ...

    def map(self, value: int) -> str:
        self.numbers.add(value)
        return f"{value} {len(list(self.numbers))}"


def seen(numbers: Any, output: str) -> None:
    (
        numbers.force_non_parallel()
        .map(Seen())
        .uid("seen")
        .sink_to(FileSink.for_row_format(output, Encoder.simple_string_encoder()).build())
        .uid("files")
    )


def test_state_without_keys_moves_in_and_out_of_the_chain_of_a_source_that_is_not_parallel(
    place: Place,
) -> None:
    """At parallelism 1 they are chained, and the source has a max parallelism of its own."""
    path = None
    for run, parallelism in enumerate((2, 1, 2)):
        job = place.start(f"run-{run}", parallelism, savepoint=path, program=seen)
        GATE.allowed = 100 * (run + 1)
        until(lambda: all(GATE.read[n] for n in range(GATE.allowed)), running(job))
        path = job.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    GATE.allowed = END
    place.start("last", 1, savepoint=path, program=seen).wait()
    lines = [tuple(map(int, line.split())) for line in place.lines()]
    assert sorted(number for number, _ in lines) == list(range(END))
    assert max(count for _, count in lines) == END, "the last run has all in one state"


def test_a_savepoint_goes_where_the_job_says_by_default(place: Place) -> None:
    key = "execution.checkpointing.savepoint-dir"
    job = running(place.start("default", **{key: place.savepoints}))
    assert job.trigger_savepoint().result(PATIENCE_S).startswith(f"file://{place.savepoints}/")
    job = running(place.start("nowhere"))
    with pytest.raises(JobRequestError, match=r"name a folder .* execution\.checkpointing\.save"):
        job.trigger_savepoint().result(PATIENCE_S)


def test_a_savepoint_that_cannot_be_written_harms_nobody(place: Place) -> None:
    (place.root / "file").write_text("no folder")
    job = running(place.start("job"))
    for ask in (
        lambda: job.trigger_savepoint(str(place.root / "file")),
        lambda: job.stop_with_savepoint(False, str(place.root / "file")),
    ):
        with pytest.raises(JobRequestError, match="a savepoint cannot be written to"):
            ask().result(PATIENCE_S)
    read(END, job)
    job.wait()
    assert place.lines() == expected()


def test_two_jobs_may_start_from_one_savepoint(place: Place) -> None:
    first = place.start("first")
    read(150, first)
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    jobs = [running(place.start(f"twin{n}", savepoint=path)) for n in range(2)]
    GATE.allowed = END
    for job in jobs:
        job.wait()
    rest = set(expected()) - set(expected(WINDOW))
    assert place.lines() == sorted([*expected(WINDOW), *rest, *rest])


def test_with_a_key_only_signed_savepoints_are_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAFLOW_HMAC_KEY", "k" * 16)
    first = running(place.start("first"))
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    running(place.start("second", savepoint=path)).cancel().result(PATIENCE_S)
    monkeypatch.setenv("DATAFLOW_HMAC_KEY", "l" * 16)
    with pytest.raises(JobExecutionError, match=r"cannot be used: .* does not match its signature"):
        place.start("third", savepoint=path).wait()
    monkeypatch.delenv("DATAFLOW_HMAC_KEY")
    with pytest.raises(JobExecutionError, match="is signed, but no key is configured"):
        place.start("fourth", savepoint=path).wait()


# --------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("ends", [True, False])
def test_what_is_stopped_goes_on_elsewhere_exactly_once(
    place: Place, parallelism: int, ends: bool
) -> None:
    first = place.start("first", ends=ends)
    read(250, first)
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    assert first.info().status is JobStatus.FINISHED
    assert place.lines() == expected(200), "no window fires that is not complete"
    first.wait()
    second = place.start("second", parallelism, savepoint=path, ends=ends)
    read(END, second)
    if ends:
        second.wait()
    else:
        until(lambda: len(GATE.read) == END, second)
        second.stop_with_savepoint(True, place.savepoints).result(PATIENCE_S)
    assert place.lines() == expected()
    assert set(GATE.read.values()) == {1}


def test_a_drained_job_fires_all_its_windows_and_has_come_to_its_end(place: Place) -> None:
    first = place.start("first", ends=False)
    read(250, first)
    path = first.stop_with_savepoint(True, place.savepoints).result(PATIENCE_S)
    assert first.info().status is JobStatus.FINISHED
    assert place.lines() == expected(250)
    GATE.allowed = END
    second = place.start("second", savepoint=path, ends=False)
    second.wait()
    assert "had come to its end" in (second.info().notice or "")
    assert place.lines() == expected(250)


def test_a_job_can_be_stopped_and_go_on_under_its_own_id(place: Place) -> None:
    first = place.start("same")
    read(250, first)
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    with pytest.raises(JobExecutionError, match=r"has checkpoints already, .*go on from it witho"):
        place.start("same", savepoint=path).wait()
    with pytest.raises(JobExecutionError, match=r"no savepoint in .*nowhere"):
        place.start("other", savepoint=str(place.root / "nowhere")).wait()
    claims = sorted(str(path.parent) for path in place.root.rglob("claim.json"))
    assert [claim.rpartition("/")[2] for claim in claims if "same" in claim] == ["1", "2"]
    assert len(claims) == 2, "what is refused takes a job over from nobody"
    second = place.start("same", 3)
    read(END, second)
    second.wait()
    assert place.lines() == expected()
    assert set(GATE.read.values()) == {1}


@pytest.mark.parametrize("drain", [False, True])
def test_a_job_without_checkpoints_is_stopped_and_goes_on(place: Place, drain: bool) -> None:
    first = place.start("first", checkpoints=False)
    read(250, first)
    path = first.stop_with_savepoint(drain, place.savepoints).result(PATIENCE_S)
    assert first.info().status is JobStatus.FINISHED
    assert place.lines() == expected(250 if drain else 200)
    second = place.start("second", 3, savepoint=path, checkpoints=False)
    if not drain:
        read(END, second)
    second.wait()
    assert place.lines() == expected(250 if drain else END)


def test_a_savepoint_of_a_job_without_checkpoints_holds_what_is_not_committed(
    place: Place,
) -> None:
    first = place.start("first", checkpoints=False)
    read(250, first)
    path = first.trigger_savepoint(place.savepoints).result(PATIENCE_S)
    assert place.lines() == []
    first.cancel().result(PATIENCE_S)
    second = place.start("second", savepoint=path)
    read(END, second)
    second.wait()
    assert place.lines() == expected()


def test_output_that_is_committed_may_be_taken_away(place: Place) -> None:
    """Nothing is committed again of what the store knows to be."""
    first = place.start("same", **{"execution.checkpointing.interval": "1 h"})
    read(250, first)
    first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    assert place.lines() == expected(200)
    shutil.rmtree(place.root / "out")
    second = place.start("same", **{"execution.checkpointing.interval": "1 h"})
    read(END, second)
    second.get_job_execution_result().result(PATIENCE_S)
    assert place.lines() == sorted(set(expected()) - set(expected(200)))


def test_a_checkpoint_on_demand(place: Place) -> None:
    job = running(place.start("job", **{"execution.checkpointing.interval": "1 h"}))
    assert job.trigger_checkpoint().result(PATIENCE_S) == 1
    assert job.info().completed_checkpoints == 1
    job = running(place.start("none", checkpoints=False))
    with pytest.raises(JobRequestError, match="it takes no checkpoints"):
        job.trigger_checkpoint().result(PATIENCE_S)


# --------------------------------------------------------------- from retained checkpoints


def test_a_job_starts_from_what_another_has_left(place: Place) -> None:
    first = place.start("first")
    read(150, first)
    number = first.trigger_checkpoint().result(PATIENCE_S)
    first.cancel().result(PATIENCE_S)
    folder = f"{place.root}/ckpt/first"
    newest = max(int(f.stem) for f in Path(folder, "epochs").iterdir())
    assert newest >= number
    for n, path in enumerate([folder, f"{folder}/epochs/{newest}.json"]):
        shutil.rmtree(place.root / "out")
        second = place.start(f"second{n}", 3, savepoint=path)
        read(END, second)
        second.wait()
        assert set(place.lines()) == set(expected()) - set(expected(WINDOW))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "there is no savepoint in .* and no completed checkpoint either"),
        ("ckpt/nobody/epochs/7.json", "there is no savepoint in"),
    ],
)
def test_a_path_without_a_savepoint_is_refused(place: Place, path: str, message: str) -> None:
    with pytest.raises(JobExecutionError, match=message):
        place.start("job", savepoint=f"{place.root}/{path}").wait()


def test_a_savepoint_with_a_file_missing_or_changed_is_refused(place: Place) -> None:
    first = place.start("first")
    read(150, first)
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    files = sorted(Path(path.removeprefix("file://")).rglob("ckpt-*/*"))
    data = files[0].read_bytes()
    files[0].write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    retries = {"restart-strategy.type": "fixed-delay", "restart-strategy.fixed-delay.delay": "0"}
    with pytest.raises(JobExecutionError, match=r"cannot be read back .* state ls .* says which"):
        place.start("second", savepoint=path, **retries).wait()
    files[0].unlink()
    with pytest.raises(JobExecutionError, match=r"the savepoint .* cannot be used"):
        place.start("third", savepoint=path).wait()


# -------------------------------------------------------------------------------- rescaling


def test_a_job_is_rescaled_while_it_runs(place: Place) -> None:
    job = place.start("job")
    read(150, job)
    assert job.info().parallelism == 2
    assert job.rescale(3).result(PATIENCE_S) == "parallelism 3"
    assert (job.info().parallelism, job.info().tasks) == (3, 6)
    assert len(job.info().taskmanagers) == 3
    read(250, job)
    assert job.rescale(1).result(PATIENCE_S) == "parallelism 1"
    assert (job.info().parallelism, len(job.info().taskmanagers)) == (1, 1)
    read(END, job)
    assert job.wait().restarts == 0
    assert place.lines() == expected()
    assert set(GATE.read.values()) == {1}, "tasks have stopped before anything was read twice"


def with_an_operator_of_its_own(numbers: Any, output: str) -> None:
    windows(numbers.map(lambda n: n).set_parallelism(1).uid("alone"), output)


def test_operators_with_a_parallelism_of_their_own_keep_it(place: Place) -> None:
    job = place.start("job", program=with_an_operator_of_its_own)
    read(150, job)
    assert job.rescale(3).result(PATIENCE_S) == "parallelism 3; unchanged: 'Map'"
    assert job.info().tasks == 3 + 1 + 3
    read(END, job)
    job.wait()
    assert place.lines() == expected()


@pytest.mark.parametrize(
    ("parallelism", "settings", "message"),
    [
        (129, {}, r"parallelism 129 is not in 1\.\.128, the max parallelism of '(?!Source)"),
        (5, {"pipeline.max-parallelism": "4"}, r"parallelism 5 is not in 1\.\.4"),
        (2, {}, "the job has parallelism 2 already"),
    ],
)
def test_a_parallelism_that_cannot_be_is_refused_before_anything_stops(
    place: Place, parallelism: int, settings: dict[str, str], message: str
) -> None:
    job = running(place.start("job", **settings))
    with pytest.raises(JobRequestError, match=message):
        job.rescale(parallelism).result(PATIENCE_S)
    assert job.info().status is JobStatus.RUNNING


def test_it_is_known_who_still_waits_for_an_answer(place: Place) -> None:
    """The process of a JobManager stays for them at the end."""
    job = running(place.start("job"))
    manager = job._job_manager
    manager.request(TakeCheckpoint("asked"))
    assert manager.owes_answers
    until(lambda: manager.answer("asked") is not None)
    assert not manager.owes_answers
    path = job.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    assert path.startswith("file://")
    assert not manager.owes_answers


def test_what_cannot_be_rescaled_says_why(place: Place) -> None:
    job = running(place.start("none", checkpoints=False))
    with pytest.raises(JobRequestError, match="it takes no checkpoints: start it with"):
        job.rescale(3).result(PATIENCE_S)
    job = place.start("ended")
    read(END, job)
    job.wait()
    with pytest.raises(JobRequestError, match="the job is FINISHED"):
        job.rescale(3).result(PATIENCE_S)


def test_in_batch_mode_there_are_no_savepoints(place: Place) -> None:
    environment = StreamExecutionEnvironment.get_execution_environment()
    environment.set_runtime_mode(RuntimeExecutionMode.BATCH)
    windows(
        environment.from_source(
            GatedSource(), WatermarkStrategy.for_monotonous_timestamps(), "numbers"
        ),
        str(place.root / "out"),
    )
    client = environment.execute_async("batch")
    assert isinstance(client, LocalJobClient)
    running(client)
    with pytest.raises(JobRequestError, match="in BATCH mode a job cannot be interrupted"):
        client.trigger_savepoint(place.savepoints).result(PATIENCE_S)
    client.cancel().result(PATIENCE_S)


# --------------------------------------------------------------------------------- upgrades


def renamed_windows(numbers: Any, output: str) -> None:
    (
        numbers.filter(lambda n: True)
        .key_by(key_of)
        .window(TumblingEventTimeWindows.of(Duration.of_millis(WINDOW)))
        .process(Contents())
        .uid("of-numbers")
        .map(str, output_type=None)
        .uid("added")
        .sink_to(FileSink.for_row_format(output, Encoder.simple_string_encoder()).build())
        .uid("files")
    )


def test_a_renamed_operator_finds_its_state_by_the_mapping(place: Place) -> None:
    first = place.start("first")
    read(250, first)
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    with pytest.raises(JobExecutionError, match=r"operator uid 'windows', .*--map-uid windows=NEW"):
        place.start("forgotten", savepoint=path, program=renamed_windows).wait()
    assert GATE.read[250] == 0, "no task has started"
    mapping = {"execution.state-recovery.renamed-uids": "windows:of-numbers"}
    second = place.start("second", 3, savepoint=path, program=renamed_windows, **mapping)
    read(320, second)
    second.trigger_checkpoint().result(PATIENCE_S)
    second.cancel().result(PATIENCE_S)
    third = place.start("second", program=renamed_windows, **mapping)  # it may stay
    read(END, third)
    third.wait()
    assert place.lines() == expected()


def test_state_of_an_operator_that_is_gone_is_dropped_on_purpose_only(place: Place) -> None:
    first = place.start("first")
    read(250, first)
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    shutil.rmtree(place.root / "out")
    allowed = {"execution.state-recovery.ignore-unclaimed-state": "true"}
    second = place.start("second", savepoint=path, program=renamed_windows, **allowed)
    read(END, second)
    second.wait()
    assert place.lines()[0].startswith("250 ") or "250 255" in " ".join(place.lines())
    assert not any(line.startswith("200 ") for line in place.lines())


# --------------------------------------------------------------------------------- backends

BACKENDS = {
    "hashmap": {},
    "changelog": {"state.changelog.enabled": "true"},
    "rocksdb": {"state.backend.type": "rocksdb"},
}


@pytest.mark.parametrize("after", BACKENDS)
@pytest.mark.parametrize("before", BACKENDS)
def test_a_savepoint_of_one_backend_is_read_by_every_other(
    place: Place, before: str, after: str
) -> None:
    first = place.start("first", **BACKENDS[before])
    read(150, first)
    first.trigger_checkpoint().result(PATIENCE_S)  # what comes next could refer to it
    path = first.trigger_savepoint(place.savepoints).result(PATIENCE_S)
    read(250, first)
    first.trigger_checkpoint().result(PATIENCE_S)
    first.cancel().result(PATIENCE_S)
    shutil.rmtree(place.root / "ckpt")
    shutil.rmtree(place.root / "out")
    second = place.start("second", 3, savepoint=path, **BACKENDS[after])
    read(320, second)
    second.trigger_checkpoint().result(PATIENCE_S)
    assert second.rescale(2).result(PATIENCE_S) == "parallelism 2"
    read(END, second)
    second.wait()
    assert place.lines() == sorted(set(expected()) - set(expected(WINDOW)))


# ------------------------------------------------------------------- state that does not fit


def counted(numbers: Any, output: str) -> None:
    """Another kind of state under the uid of the windows."""
    (
        numbers.key_by(key_of)
        .reduce(lambda a, b: a + b)
        .uid("windows")
        .map(str)
        .sink_to(FileSink.for_row_format(output, Encoder.simple_string_encoder()).build())
        .uid("files")
    )


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_the_state_of_another_kind_of_operator_is_refused_before_a_record_is_read(
    place: Place, backend: dict[str, str]
) -> None:
    first = place.start("first", **backend)
    read(250, first)
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    GATE.read.clear()
    GATE.allowed = END
    with pytest.raises(
        JobExecutionError,
        match=r"operator 'Keyed Reduce.*' has the uid 'windows', under which the checkpoint has st"
        r"ate that another kind of operator has left: \$window .*; give it another uid\(\)",
    ):
        place.start("second", savepoint=path, program=counted, **backend).wait()
    assert not GATE.read, "no task has started"
    dropped = {"execution.state-recovery.ignore-unclaimed-state": "true"}
    place.start("third", savepoint=path, program=counted, **backend, **dropped).wait()


def test_how_much_state_is_read_is_seen_while_a_job_restores(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place.start("first", ends=False)
    read(150, first)
    path = first.stop_with_savepoint(False, place.savepoints).result(PATIENCE_S)
    go_on = threading.Event()
    fetch = LocalFileSystem.read

    reads = itertools.count()

    def slow(self: LocalFileSystem, path: str, *part: Any) -> bytes:
        if "/ckpt-" in path and next(reads):  # of state, not the first time
            go_on.wait(PATIENCE_S)
        return fetch(self, path, *part)

    monkeypatch.setattr(LocalFileSystem, "read", slow)
    second = place.start("second", savepoint=path)
    until(lambda: (second.info().restoring or (0, 0))[0] > 0)
    done, total = second.info().restoring or (0, 0)
    assert 0 < done < total
    go_on.set()
    running(second)
    assert second.info().restoring is None
