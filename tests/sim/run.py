"""Runs one seed: safety under faults, then healing and liveness, then the oracles."""

from __future__ import annotations

import gc
import json
import logging
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from dataflow.common.job_status import JobStatus
from dataflow.datastream.connectors.files import sink as files_sink
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.graph.job_graph import JobGraph
from jobmanager.job_events import CancelJob
from state import heap_capture
from state.checkpoint_metadata import decode_manifest
from state.checkpoint_paths import Attempt, JobListing, JobPaths
from state.checkpoint_store import CheckpointStore
from taskmanager import input_gate
from taskmanager.batch_size import BatchSize
from tests.sim import jobs, oracles
from tests.sim.cluster import JOB_ID, SimCluster
from tests.sim.consumer import Consumer
from tests.sim.ledger import Ledger, Transaction, use
from tests.sim.nemesis import Nemesis, Rates, draw_rates
from tests.sim.requests import COMMITS_LEFT, REQUEST_SCENARIOS, Requester, quiet
from tests.sim.rocksdb import draw_backends, draw_rocksdb, rocksdb_in_a_folder
from tests.sim.world import MS, SECOND, World
from tests.store_faults import Fault, FaultyFileSystem, audit

CHECKPOINT_WITHIN = 30 * SECOND  # after healing
FINISH_WITHIN = 240 * SECOND
CANCEL_WITHIN = 10 * SECOND
QUIET = 60 * SECOND  # after the end, for whoever still lives to notice
POISON_RESTARTS = 3

SCENARIOS = ("faults", "cancel", "corrupt", "poison")

#: What may be so in any scenario, and is not in any seed by itself:
#: the store's effects come late, too, long after whoever wanted them has given up
LATE = "late"
#: somebody takes away what is committed
TAKEN = "taken"
#: the job takes no checkpoints, and has no folder (nor other JobManagers, which would need it)
UNCHECKPOINTED = "uncheckpointed"
CONDITIONS = (LATE, TAKEN, UNCHECKPOINTED)


@dataclass
class Result:
    """Of one seed; ``violations`` empty is good."""

    seed: int
    scenario: str
    shape: jobs.Shape
    violations: list[str]
    faults: dict[str, int]
    checkpoints: int
    restarts: int
    virtual_s: float
    events: int
    digest: str
    status: str
    output: Any
    tail: list[str] = field(default_factory=list)
    granted: list[str] = field(default_factory=list)  # what users have asked for and got
    options: tuple[str, ...] = ()  # what was drawn of ways to keep and to take state

    @property
    def valid(self) -> bool:
        """A seed in which nothing happened proves nothing."""
        return (self.checkpoints > 0 or self.shape.kind == "batch") and bool(self.faults)


@dataclass(frozen=True)
class Options:
    """To run a seed otherwise than it would by itself."""

    scenario: str | None = None
    kind: str | None = None  # of job
    rates: Callable[[Rates], Rates] = lambda rates: rates
    settings: dict[str, str] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()  # of ``CONDITIONS``
    echo: Callable[[str], None] | None = None
    until_violation: bool = False  # what follows is not of interest


def run_seed(seed: int, options: Options | None = None) -> Result:
    """The whole life of a job."""
    options = options or Options()
    with _quiet(), _collected_at_the_end():
        return _Run(seed, options).run()


@contextmanager
def _quiet() -> Iterator[None]:
    """Injected faults are logged by the hundred."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _collected_at_the_end() -> Iterator[None]:
    """All of a run is one heap of cycles: while it goes on there is nothing to be found."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def draw_settings(rng: random.Random, root: str) -> dict[str, str]:
    """Small bounds, so that every one of them is met."""
    return {
        "execution.checkpointing.interval": f"{rng.choice([250, 400, 700])} ms",
        "execution.checkpointing.timeout": f"{rng.choice([2, 4, 8])} s",
        "execution.checkpointing.dir": root,
        "execution.checkpointing.num-retained": str(rng.choice([1, 2, 3])),
        "execution.checkpointing.tolerable-failed-checkpoints": str(rng.choice([3, 100])),
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "100 ms",
        "restart-strategy.exponential-delay.max-backoff": "2 s",
        "heartbeat.interval": "500 ms",
        "heartbeat.timeout": f"{rng.choice([2, 4])} s",
        "task.cancellation.timeout": f"{rng.choice([3, 8])} s",
        "slot.request.timeout": "120 s",
        "taskmanager.numberOfTaskSlots": str(rng.choice([1, 1, 2])),
        "taskmanager.network.channel.batches-max": str(rng.choice([1, 2, 4])),
        "taskmanager.network.channel.batch-rows-max": str(rng.choice([1, 2, 4])),
        "pipeline.auto-watermark-interval": f"{rng.choice([50, 200])} ms",
        "metrics.latency.interval": "150 ms",
        "pipeline.operator-chaining.enabled": rng.choice(["true", "true", "false"]),
        "jobmanager.execution.failover-strategy": rng.choice(["region", "region", "full"]),
    }


def draw_alignment(seed: int) -> dict[str, str]:
    """Whether barriers overtake records; by chance of its own too."""
    rng = random.Random(f"alignment {seed}")
    timeout = rng.choice([None, None, 0, 20, 200])
    if timeout is None:
        return {}
    return {
        "execution.checkpointing.unaligned.enabled": "true",
        "execution.checkpointing.aligned-checkpoint-timeout": f"{timeout} ms",
    }


def draw_backend(seed: int) -> tuple[dict[str, str], int]:
    """How the heap takes its snapshots: settings, and how many entries at a time.

    By chance of its own: what else happens in a seed does not depend on it.
    """
    rng = random.Random(f"backend {seed}")
    changelog = rng.random() < 0.5
    return {"state.changelog.enabled": str(changelog).lower()}, rng.choice([1, 3, 20, 2_000])


class _DrawnBatchSize(BatchSize):
    """No work takes time here: of a batch ever so many records are processed at a time."""

    def on_batch(self, records: int, elapsed_ms: int) -> None:
        pass


def draw_batch_size(seed: int) -> Callable[[int], BatchSize]:
    """Of an input, given the most records; channels have batches of up to four."""
    records = random.Random(f"batch size {seed}").choice([1, 2, 4])

    def batch_size(_: int) -> BatchSize:
        size = _DrawnBatchSize()
        size.records = records
        return size

    return batch_size


def _without_jobmanager_deaths(world: World, rates: Rates) -> Rates:
    """A job without checkpoints fails with its JobManager; and its results may be damaged."""
    return replace(
        rates,
        enabled=rates.enabled - {"F04", "F06", "F12", "F22"} | {"F01", "F02"},
        store_crash=0.0,
        overtake=0.0,
        rescale=0.0,
        failpoint=world.between(0.003, 0.03),
        at_the_end=world.random.choice([0.0, 0.1]),
        damage=world.random.choice([0.0, 0.3]),
        spare_jobmanagers=True,
    )


class _Run:
    def __init__(self, seed: int, options: Options) -> None:
        self.options = options
        self.world = world = World(seed, options.echo, options.until_violation)
        rng = world.random
        scenario = rng.choices(SCENARIOS, [82, 7, 7, 4])[0]
        self.scenario = options.scenario or scenario
        kind = options.kind
        if self.scenario == "drain" and kind is None:  # with oracles for the half of a job
            kind = ("ledger", "splits", "async")[seed % 3]
        self.shape = jobs.draw_shape(rng, kind)
        if UNCHECKPOINTED in options.conditions:
            self.shape = replace(self.shape, checkpoints=False)
        self.store_name = f"sim{seed}"
        root = f"memory://{self.store_name}/checkpoints"
        backend, self._slice_entries = draw_backend(seed)
        drawn = draw_settings(rng, root) | backend | draw_alignment(seed)
        drawn |= draw_rocksdb(seed, self.shape)
        self.settings = drawn | options.settings
        self.in_rocksdb = self.settings.get("state.backend.type") == "rocksdb"
        self.backends = [self.settings.get("state.backend.type", "hashmap")] * 2
        if self.in_rocksdb and self.scenario in ("savepoint", "stop"):
            self.backends = draw_backends(seed)
        rates = self._rates()
        if "execution.checkpointing.unaligned.enabled" in self.settings:
            rates.slowness = random.Random(f"slowness {seed}").choice([1, 40])
        self.nemesis = Nemesis(world, options.rates(rates))
        if self.scenario == "poison":
            self.nemesis.poison_record = (0, self.shape.sizes[0] // 2)
            self.settings |= {
                "restart-strategy.type": "fixed-delay",
                "restart-strategy.fixed-delay.attempts": str(POISON_RESTARTS),
                "restart-strategy.fixed-delay.delay": "200 ms",
            }
        self.requester: Requester | None = None
        self.drained_rows = 0  # what was visible when the first job had ended
        self._output = f"memory://{self.store_name}/out"
        self._graphs: dict[tuple[int, str, bool], JobGraph] = {}
        self.consumer = Consumer(world, self._output, self._take_file)
        self.ledger = Ledger(self.nemesis.commit_fault, self.nemesis.user_code, self._later)

    def _rates(self) -> Rates:
        rates = draw_rates(self.world)
        if self.shape.kind == "batch" or not self.shape.checkpoints:
            rates = _without_jobmanager_deaths(self.world, rates)
        if not self.shape.checkpoints:
            rates.steady = False  # it goes by checkpoints
        if LATE in self.options.conditions:
            own = random.Random(f"late {self.world.seed}")
            rates.store_late, rates.when_late = own.uniform(0.02, 0.3), own.choice([0.0, 0.3])
            rates.end_late = own.choice([0.0, 0.9])
        if self.scenario == "poison":
            return Rates(heal_at_us=rates.heal_at_us)  # so that the budget can be counted
        return rates

    def _later(self, call: Callable[[], Any]) -> None:
        if self.world.chance(0.9):
            self.world.after(self.world.between(50, 500) * MS, call)

    # ------------------------------------------------------------------------------ phases

    def run(self) -> Result:
        MemoryFileSystem.drop(self.store_name)
        output = FaultyFileSystem(MemoryFileSystem(), self.nemesis.output_fault, self.nemesis.later)
        to_output = mock.patch.object(files_sink, "parse", lambda path: (output, path))
        in_slices = mock.patch.object(heap_capture, "SLICE_ENTRIES", self._slice_entries)
        in_parts = mock.patch.object(input_gate, "BatchSize", draw_batch_size(self.world.seed))
        on_disk = rocksdb_in_a_folder() if self.in_rocksdb else nullcontext()
        with use(self.ledger), to_output, in_slices, in_parts, on_disk:
            self.cluster = SimCluster(
                self.world,
                self.nemesis,
                lambda variant: self._graph(variant, self.backends[0], self.shape.checkpoints),
                self._root,
                heartbeat_ms=500,
                has_store=self.shape.checkpoints,
            )
            try:
                self._live()
            except Exception as error:
                # An assertion of the JobMaster, a Runaway, a fault of the simulator itself.
                self.world.violation("".join(traceback.format_exception(error)))
        try:
            return self._result()
        finally:
            MemoryFileSystem.drop(self.store_name)

    def _live(self) -> None:
        world = self.world
        world.log(f"scenario {self.scenario} {self.shape}")
        world.log(f"faults {sorted(self.nemesis.rates.enabled)}")
        if self.scenario in REQUEST_SCENARIOS:
            self.requester = Requester(world, self.nemesis, self.scenario, self.ledger)
            self.requester.start(self.cluster)
            self.cluster.rescales = self.scenario == "rescale"
        self._consume(JOB_ID)
        if self.scenario == "cancel":
            world.after(world.between(2, 8) * SECOND, self._cancel)
        if self.scenario == "corrupt":
            self.cluster.damaged = True
            self.nemesis.rates.heal_at_us = max(self.nemesis.rates.heal_at_us, 10 * SECOND)
            damage = self._corrupt if world.chance(0.5) else self._spoil
            world.after(world.between(3, 8) * SECOND, damage)
        world.run(int(self.nemesis.rates.heal_at_us), self._over)
        if not self._over() and self.shape.checkpointed:
            self._require_progress()
        if not self._over():
            deadline = world.now_us + FINISH_WITHIN
            world.run(deadline, self._over)
        if not self._over():
            world.violation(f"liveness: the job is {self.cluster.status.name} long after healing")
            return
        self._check_status()
        if self.requester is not None:
            if self.shape.checkpoints:
                store = CheckpointStore(MemoryFileSystem(), self._root, JOB_ID)
                self.requester.look_into_the_store(store)
            self.drained_rows = len(self.ledger.visible)
        self.nemesis.rates.heal_at_us = min(self.nemesis.rates.heal_at_us, world.now_us)
        self.nemesis.heal()
        if self.cluster.status is JobStatus.FINISHED:
            self.ledger.closed = True
            self._check_uploads()
            for fault in self.requester.check_granted() if self.requester is not None else ():
                world.violation(fault)
        world.run(world.now_us + QUIET)
        for left in self.cluster.remains():
            world.violation(f"not ended with the job: {left}")
        # Files cannot be taken back to how they were.
        forked = self.scenario == "savepoint" and self.shape.kind == "files"
        if self.requester is not None and self.requester.savepoint is not None and not forked:
            self._go_on_elsewhere(self.requester)

    def _consume(self, job_id: str) -> None:
        if TAKEN in self.options.conditions:
            self.consumer.follow(f"{self._root}/{job_id}", self.ledger)

    def _go_on_elsewhere(self, requester: Requester) -> None:
        """Another job, at another parallelism, starts from the savepoint."""
        world, first = self.world, self.cluster
        if self.scenario == "savepoint":
            self._check_output(first)
            self.ledger = requester.fork
        self.ledger.closed = False
        quiet(self.nemesis, world)
        self._consume("sim2")
        # Of a job without checkpoints also one that has them.
        checkpoints = self.shape.checkpoints or world.seed % 2 == 1
        with use(self.ledger):
            self.cluster = SimCluster(
                world,
                self.nemesis,
                lambda variant: self._graph((variant + 1) % 3, self.backends[1], checkpoints),
                self._root,
                heartbeat_ms=500,
                job_id="sim2",
                restore=requester.savepoint,
                has_store=checkpoints,
            )
            self.cluster.rescaled = True
            world.log(f"another job starts from {requester.savepoint}")
            world.run(world.now_us + FINISH_WITHIN, self._over)
            if not self._over():
                world.violation(f"liveness: the second job is {self.cluster.status.name}")
            elif self.cluster.status is not JobStatus.FINISHED:
                assert self.cluster.newest.master is not None
                world.violation(f"the second job failed: {self.cluster.newest.master.error}")
            self.ledger.closed = True
            had_committed = first.status is JobStatus.FINISHED
            if (
                requester.drained
                and had_committed
                and len(self.ledger.visible) != self.drained_rows
            ):
                world.violation("a job that starts from the end has written something")
            world.run(world.now_us + QUIET)
        self.cluster.completed_checkpoints += first.completed_checkpoints
        self.cluster.restarts += first.restarts

    def _check_uploads(self) -> None:
        """None is left of a job that has finished, but for what a zombie holds that still runs."""
        zombies = {
            f"-{task.attempt.generation}-{task.attempt.number}-"
            for taskmanager in self.cluster.taskmanagers.values()
            if taskmanager.alive
            for task in taskmanager.executor.tasks()
            if not task.state.ended
        }
        for upload in MemoryFileSystem().list_multipart(self._output):
            name = str(upload["path"])
            if not any(attempt in name for attempt in zombies):
                self.world.violation(f"a pre-commit is neither committed nor aborted: {name}")

    def _graph(self, variant: int, backend: str, checkpoints: bool) -> JobGraph:
        if (variant, backend, checkpoints) not in self._graphs:
            parallelism = [1, 2, 3]
            parallelism.insert(0, parallelism.pop(self.shape.parallelism - 1))
            shape = replace(self.shape, parallelism=parallelism[variant], checkpoints=checkpoints)
            settings = self.settings | {"state.backend.type": backend}
            graph = jobs.build(shape, settings, self._output)
            self._graphs[variant, backend, checkpoints] = graph
        return self._graphs[variant, backend, checkpoints]

    def _read_files(self) -> None:
        """What the file sink has made visible, as if it were transactions."""
        for found in MemoryFileSystem().list(self._output):
            self._read_file(found.path)

    def _read_file(self, path: str) -> None:
        lines = MemoryFileSystem().read(path).decode().splitlines()
        rows = [tuple(json.loads(line)) for line in lines]
        self.ledger.visible.append(Transaction(path, "files", 0, rows, True))

    def _take_file(self, path: str) -> None:
        self._read_file(path)
        MemoryFileSystem().delete(path)

    @property
    def _root(self) -> str:
        return self.settings["execution.checkpointing.dir"]

    def _over(self) -> bool:
        return self.cluster.status.is_globally_terminal_state()

    def _require_progress(self) -> None:
        completed = self.cluster.completed_checkpoints
        self.world.run(
            self.world.now_us + CHECKPOINT_WITHIN,
            lambda: self._over() or self.cluster.completed_checkpoints > completed,
        )
        if not self._over() and self.cluster.completed_checkpoints == completed:
            self.world.violation("liveness: no checkpoint completes within 30 s of healing")

    # --------------------------------------------------------------------------- scenarios

    def _cancel(self) -> None:
        """The client wishes it until it is so (F23)."""
        world = self.world
        world.fault("F23", "cancel")
        # Bounded from the moment at which everything works.
        if self.shape.checkpoints:
            self.nemesis.rates.heal_at_us = min(self.nemesis.rates.heal_at_us, world.now_us)
            self.nemesis.heal()
        began = max(world.now_us, int(self.nemesis.rates.heal_at_us))

        def ask() -> None:
            if self._over():
                return
            if world.now_us - began > CANCEL_WITHIN + 10 * SECOND:
                world.violation(f"canceling takes more than {(world.now_us - began) // SECOND} s")
                return
            newest = self.cluster.newest
            newest.inside(lambda: newest.handle(CancelJob()))
            world.after(SECOND, ask)

        ask()

    def _spoil(self) -> None:
        """Damage an upload on its way, and restart from the checkpoint it is part of (F09)."""
        nemesis, root = self.nemesis, f"{self._root}/{JOB_ID}"
        if nemesis.spoiled is not None and any(
            nemesis.spoiled.startswith(f"{root}/{JobPaths.folder(attempt)}/")
            for attempt in self._complete(root)
        ):
            self._kill_after_damage()
            return
        if nemesis.spoiled is None or self.world.chance(0.2):  # its checkpoint may be given up
            nemesis.spoil = self.world.random.choice([Fault.CUT, Fault.LOST])
        if not self._over() and nemesis.active:
            self.world.after(200 * MS, self._spoil)

    def _complete(self, root: str) -> list[Attempt]:
        listing = JobListing.of(root, MemoryFileSystem().list(root))
        return sorted(a for a in listing.manifests if a[1] in listing.epochs)

    def _kill_after_damage(self) -> None:
        alive = [tm for tm in self.cluster.taskmanagers.values() if tm.alive]
        if alive:
            self.cluster.kill_taskmanager(self.world.random.choice(alive), "after damage")

    def _corrupt(self) -> None:
        """Damage state of the newest checkpoint, and restart the job (F10)."""
        world = self.world
        fs = MemoryFileSystem()
        root = f"{self._root}/{JOB_ID}"
        complete = self._complete(root)
        if not complete:
            if not self._over():
                world.after(SECOND, self._corrupt)
            return
        if self.in_rocksdb:  # also what it has from an earlier one
            data = fs.read(f"{root}/{JobPaths.manifest(complete[-1])}")
            names = [handle.path for handle in decode_manifest(data, None).handles()]
        else:
            listing = JobListing.of(root, fs.list(root))
            names = [f for f in listing.files[complete[-1]] if not f.endswith(".json")]
        path = f"{root}/{world.random.choice(sorted(names))}"
        state = bytearray(fs.read(path))
        kind = world.random.choice(["flip", "cut", "missing"])
        world.fault("F10", f"{kind} of state in checkpoint {complete[-1]}")
        if kind == "missing":
            fs.delete(path)
        elif kind == "cut":
            fs.put(path, bytes(state[: len(state) // 2]))
        else:  # the size of a file of RocksDB's is chance
            place = world.random.random() * len(state) if self.in_rocksdb else None
            state[world.random.randrange(len(state)) if place is None else int(place)] ^= 0x10
            fs.put(path, bytes(state))
        self._kill_after_damage()

    # ----------------------------------------------------------------------------- oracles

    def _check_status(self) -> None:
        status, newest = self.cluster.status, self.cluster.newest
        assert newest.master is not None
        error = newest.master.error or ""
        self.world.log(f"the job is {status.name}")
        expected = {JobStatus.FINISHED}
        if self.scenario == "cancel":
            expected.add(JobStatus.CANCELED)
        elif (
            self.scenario == "corrupt" and ("cannot be used" in error or "can be restored" in error)
        ) or (self.scenario in ("stop", "drain") and COMMITS_LEFT in error):
            expected.add(JobStatus.FAILED)
        elif self.scenario == "poison":
            expected = {JobStatus.FAILED}
            if newest.master.restarts != POISON_RESTARTS:
                self.world.violation(f"{newest.master.restarts} restarts for a poison record")
        if status not in expected:
            self.world.violation(f"the job is {status.name}: {error}")

    def _result(self) -> Result:
        world, cluster = self.world, self.cluster
        finished = cluster.status is JobStatus.FINISHED
        output = self._check_output(cluster)
        if self.scenario != "corrupt" and self.shape.checkpointed:
            self._audit_store(finished)
        return Result(
            seed=world.seed,
            scenario=self.scenario,
            shape=self.shape,
            violations=world.violations,
            faults=dict(sorted(world.faults.items())),
            checkpoints=cluster.completed_checkpoints,
            restarts=cluster.restarts,
            virtual_s=world.now_us / SECOND,
            events=world.events,
            digest=world.digest,
            status=cluster.status.name,
            output=output,
            tail=list(world.tail),
            granted=[] if self.requester is None else self.requester.done,
            options=tuple(self._options_drawn()),
        )

    def _options_drawn(self) -> Iterator[str]:
        yield from self.options.conditions
        if not self.shape.checkpointed:
            return
        if self.in_rocksdb:
            yield "rocksdb" if self.shape.keyed else "rocksdb for nothing"
            if self.cluster.restore is not None and self.backends[0] != self.backends[1]:
                yield "another backend"
        elif self.settings["state.changelog.enabled"] == "true":
            yield "changelog"
        if "execution.checkpointing.unaligned.enabled" in self.settings:
            yield "unaligned"
        if "F22" in self.world.faults or self.scenario == "rescale":
            yield "rescaled"

    def _check_output(self, cluster: SimCluster) -> Any:
        try:
            self._read_files()
            finished = cluster.status is JobStatus.FINISHED
            if self.requester is not None and self.requester.drained:
                finished = False  # all that was read
                for fault in oracles.check_drained(self.shape, self.ledger):
                    self.world.violation(fault)
            if self.shape.kind == "aligned" and not self.world.faults and finished:
                for fault in oracles.check_drift(self.shape, self.ledger):
                    self.world.violation(fault)
            ordered = not (cluster.rescaled or cluster.rescales)
            for fault in oracles.check_output(self.shape, self.ledger, finished, ordered):
                self.world.violation(fault)
            return oracles.normalised(self.shape, self.ledger)
        except Exception as error:
            self.world.violation(f"the output is malformed: {error!r}")
            return None

    def _audit_store(self, finished: bool) -> None:
        """Oracle 6; of a job that has finished, the next collection must leave no garbage."""
        zombies = len(self.cluster.jobmanagers) > 1
        job_id = self.cluster.job_id
        late = LATE in self.options.conditions
        found = audit(MemoryFileSystem(), self._root, job_id, zombies=zombies, late=late)
        faults = found.faults
        if finished:
            retain = int(self.settings["execution.checkpointing.num-retained"])
            store = CheckpointStore(MemoryFileSystem(), self._root, job_id)
            # Whoever is current collects: what has finished may have been deposed by then.
            generation = max(store._listing().claims)
            store.collect_garbage(generation, retain)
            faults += audit(
                MemoryFileSystem(),
                self._root,
                job_id,
                zombies=zombies,
                retain=retain,
                generation=generation,
            ).faults
        for fault in faults:
            self.world.violation(f"store: {fault}")


def without_faults(seed: int, options: Options | None = None) -> Result:
    """The same job and settings, undisturbed: for oracle 4."""
    options = replace(
        options or Options(),
        scenario="faults",
        rates=lambda rates: Rates(heal_at_us=1 * MS),
    )
    return run_seed(seed, options)
