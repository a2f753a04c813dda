"""Draws the faults of a seed. Every seed enables a random part of the list at random rates.

The identifiers (F01, ...) are those of the project's fault list; ``World.faults`` counts what was
injected. ``heal()`` ends it all: from then on the job must make progress and finish.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataflow.errors import DataflowError, StorageError
from tests.sim.jobs import Record
from tests.sim.taskmanager import SimProcess, SimTaskManager
from tests.sim.world import MS, SECOND, World
from tests.store_faults import Fault, Operation

if TYPE_CHECKING:
    from tests.sim.cluster import SimCluster

STRIKES_MAX = 16
POISON_MAX = 3
STRIKES = ("F01", "F02", "F04", "F06", "F11", "F12", "F14", "F17", "F19", "F24")
CHANGES = ("put", "put_if_absent", "delete", "commit_multipart")
AMBIENT = ("F03", "F05", "F07", "F08", "F09", "F13", "F15", "F22", "F27")


@dataclass
class Rates:
    """Probabilities and times of one seed; all zero is a run without faults."""

    enabled: frozenset[str] = frozenset()
    store_failure: float = 0.0  # per store operation, half before and half after its effect
    store_crash: float = 0.0  # per store operation of a JobManager
    store_late: float = 0.0  # per operation that changes something; see ``Nemesis.later``
    end_late: float = 0.0  # per try of a JobManager to store the end of its job
    when_late: float = 0.0  # a kill, per such operation of a JobManager
    store_slow: float = 0.0
    torn_upload: float = 0.0
    interleave: float = 0.0  # others go on in the middle of a store call
    commit_failure: float = 0.0
    message_loss: float = 0.0
    message_repeat: float = 0.0
    slow_message_us: float = 5 * MS
    failpoint: float = 0.0
    at_the_end: float = 0.0  # the same, when tasks are told to finish
    poison: float = 0.0
    start_failure: float = 0.0
    overtake: float = 0.0  # a second JobManager while the first is about to publish
    rescale: float = 0.0  # per start of a JobManager
    skew_ms: int = 0  # the most by which a wall clock is wrong
    strike_every_us: float = 1 * SECOND
    spare_jobmanagers: bool = False  # without checkpoints a job fails with its JobManager
    damage: float = 0.0  # per strike, of a result on disk in addition
    steady: bool = False  # two completed checkpoints, or readings of results, between strikes
    heal_at_us: float = 0
    slowness: float = 1.0  # of every TaskManager, so that records wait


def draw_rates(world: World) -> Rates:
    rng = world.random
    enabled = {fault for fault in (*STRIKES, *AMBIENT) if rng.random() < 0.45}
    enabled.add(rng.choice(STRIKES))
    rates = Rates(enabled=frozenset(enabled))

    def draw(fault: str, low: float, high: float) -> float:
        value = world.between(low, high)
        return value if fault in enabled else 0.0

    rates.store_failure = draw("F07", 0.005, 0.08)
    rates.store_crash = draw("F04", 0.002, 0.02)
    rates.store_slow = draw("F08", 0.02, 0.2)
    rates.torn_upload = draw("F09", 0.01, 0.1)
    rates.interleave = draw("F27", 0.02, 0.2)
    rates.commit_failure = draw("F05", 0.02, 0.3)
    rates.message_loss = draw("F13", 0.0, 0.1)
    rates.message_repeat = draw("F13", 0.02, 0.3)
    rates.slow_message_us = max(5 * MS, draw("F13", 20 * MS, 2 * SECOND))
    rates.failpoint = draw("F02", 0.003, 0.02)
    rates.poison = draw("F15", 0.0005, 0.003)
    rates.start_failure = draw("F03", 0.0, 0.2)
    rates.overtake = draw("F12", 0.0, 0.15)
    rates.rescale = draw("F22", 0.3, 0.7)
    rates.skew_ms = int(draw("F19", 1_000, 3_600_000))
    rates.strike_every_us = world.between(0.3, 3) * SECOND
    rates.steady = rng.random() < 0.55
    rates.heal_at_us = world.between(8, 22) * SECOND
    return rates


@dataclass
class Nemesis:
    """See the module's text."""

    world: World
    rates: Rates
    strikes: int = 0
    poisoned: int = 0
    completed: int = 0  # checkpoints, or readings of results, since the last strike
    outage_until: int = 0
    poison_record: tuple[int, int] | None = None  # always raises there
    spoil: Fault | None = None  # what happens to the next upload of state, silently
    spoiled: str | None = None  # the path of that upload
    _cuts: list[tuple[str, str, int]] = field(default_factory=list)
    _slow_channels: list[tuple[str, str, int, int]] = field(default_factory=list)
    cluster: SimCluster = field(init=False)

    @property
    def active(self) -> bool:
        return self.world.now_us < self.rates.heal_at_us

    def start(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.world.after(self.rates.strike_every_us, self._tick)
        self.world.after(self.rates.heal_at_us, self.heal)
        if self.rates.store_late:
            self.world.after(self.world.between(1, 9) * SECOND, self._outage)

    def heal(self) -> None:
        """Everything works again; who was paused goes on (and finds out that it is a zombie)."""
        self.world.log("HEAL")
        self._cuts.clear()
        self._slow_channels.clear()
        self.outage_until = 0
        for taskmanager in list(self.cluster.taskmanagers.values()):
            taskmanager.slowness = 1.0
            taskmanager.disk_full = False
            taskmanager.resume()
        for jobmanager in self.cluster.jobmanagers:
            jobmanager.resume()

    # ----------------------------------------------------------------------------- strikes

    def _tick(self) -> None:
        if not self.active:
            return
        self.world.after(self.rates.strike_every_us * self.world.between(0.3, 2), self._tick)
        kinds = [fault for fault in STRIKES if fault in self.rates.enabled and fault != "F02"]
        if kinds and self._may_strike():
            self._strike(self.world.random.choice(kinds))

    def _may_strike(self) -> bool:
        if self.strikes >= STRIKES_MAX or (self.rates.steady and self.completed < 2):
            return False
        return self.cluster.job_running_once

    def _struck(self) -> None:
        self.strikes += 1
        self.completed = 0

    def _strike(self, kind: str) -> None:
        rng, cluster = self.world.random, self.cluster
        victims = [tm for tm in cluster.taskmanagers.values() if tm.alive and not tm.paused]
        newest = cluster.newest
        if not victims or not newest.alive or newest.paused:
            return
        victim = rng.choice(victims)
        self._struck()
        damage = self.rates.damage
        if damage and self.world.chance(damage) and victim.damage_a_result():
            self.world.fault("F10", f"a result on the disk of {victim.id}")
            return
        match kind:
            case "F01":
                self.world.fault("F01", f"kill {victim.id}")
                cluster.kill_taskmanager(victim, "F01")
            case "F04":
                self.world.fault("F04", f"kill {newest.id}")
                newest.kill("F04")
            case "F06":
                self.world.fault("F06", f"kill {newest.id} and {victim.id}")
                newest.kill("F06")
                cluster.kill_taskmanager(victim, "F06")
            case "F11":
                self._pause(victim, "F11")
            case "F12":
                self._depose()
            case "F14" if self.world.chance(0.5):
                self.world.fault("F14", f"{victim.id} is slow")
                victim.slowness = rng.choice([10, 60])
                self.world.after(
                    self.world.between(1, 6) * SECOND,
                    lambda: setattr(victim, "slowness", self.usual_slowness),
                )
            case "F14":
                self._slow_down(victim, rng.choice([*victims, newest]))
            case "F17":
                self.world.log(f"the disk of {victim.id} is full")
                victim.disk_full = True
                self.world.after(
                    self.world.between(1, 6) * SECOND, lambda: setattr(victim, "disk_full", False)
                )
            case "F19":
                clock = rng.choice([victim, newest])
                self.world.fault("F19", f"the wall clock of {clock.id} jumps")
                clock.skew_ms = rng.randint(-self.rates.skew_ms, self.rates.skew_ms)
            case "F24":
                self._cut(victim, rng.choice([*victims, newest]))

    def _pause(self, process: SimProcess, identifier: str) -> None:
        self.world.fault(identifier, f"pause {process.id}")
        process.pause()
        self.world.after(self.world.between(1, 10) * SECOND, process.resume)

    def _depose(self) -> None:
        """A second JobManager beside the first, which is paused or goes on."""
        newest = self.cluster.newest
        if self.world.chance(0.5):
            self._pause(newest, "F12")
        else:
            self.world.fault("F12", f"{newest.id} is deposed and goes on")
        self.world.after(self.world.between(0, 1_500) * MS, self.cluster.start_jobmanager)

    def _cut(self, one: SimProcess, other: SimProcess) -> None:
        until = self.world.now_us + int(self.world.between(0.2, 6) * SECOND)
        self.world.fault("F24", f"cut {one.id} from {other.id}")
        self._cuts.append((one.id, other.id, until))

    def _slow_down(self, one: SimProcess, other: SimProcess) -> None:
        until = self.world.now_us + int(self.world.between(1, 6) * SECOND)
        factor = self.world.random.choice([10, 200])
        self.world.fault("F14", f"{one.id} to {other.id} is slow")
        self._slow_channels.append((one.id, other.id, until, factor))

    def _slowness(self, one: str, other: str) -> int:
        if not self._slow_channels:
            return 1
        now = self.world.now_us
        self._slow_channels = [slow for slow in self._slow_channels if slow[2] > now]
        pair = {one, other}
        return max((factor for a, b, _, factor in self._slow_channels if {a, b} == pair), default=1)

    def cut_until(self, one: str, other: str) -> int:
        """When the connection is back; 0 if it is there."""
        if not self._cuts:
            return 0
        now = self.world.now_us
        self._cuts = [cut for cut in self._cuts if cut[2] > now]
        pair = {one, other}
        return max((until for a, b, until in self._cuts if {a, b} == pair), default=0)

    def failpoint(self, where: str, process: SimProcess) -> None:
        """Kill in the very moment of something that matters."""
        rate = {"finish": self.rates.at_the_end, "late": self.rates.when_late}.get(where, 0.0)
        if not self.active or not self.world.chance(max(rate, self.rates.failpoint)):
            return
        if not self._may_strike():
            return
        if self.rates.spare_jobmanagers and not isinstance(process, SimTaskManager):
            return
        victims = [tm for tm in self.cluster.taskmanagers.values() if tm.alive]
        victim = process
        if self.world.chance(0.4) and victims:
            victim = self.world.random.choice(victims)
        self._struck()
        identifier = {"commit": "F05", "committed": "F05", "deploy": "F03", "ready": "F03"}
        self.world.fault(identifier.get(where, "F02"), f"kill {victim.id} when {where}")

        def strike() -> None:
            if isinstance(victim, SimTaskManager):
                self.cluster.kill_taskmanager(victim, where)
            else:
                victim.kill(where)

        self.world.after(self.world.random.choice([0, 0, 500, 2_000]), strike)

    # ---------------------------------------------------------------------------- messages

    def message_delay(self, sender: str, receiver: str) -> float:
        usual = 400.0 * self._slowness(sender, receiver)
        worst = self.rates.slow_message_us if self.active else usual
        return self.world.long_tailed(usual, max(usual, worst))

    def message_lost(self, sender: str, receiver: str) -> bool:
        if self.cut_until(sender, receiver):
            return True
        lost = self.active and self.world.chance(self.rates.message_loss)
        if lost:
            self.world.fault("F25", f"lost: {sender} to {receiver}")
        return lost

    def control_fails(self, sender: str, receiver: str) -> bool:
        """It may have arrived all the same."""
        failed = self.active and self.world.chance(self.rates.message_loss / 10)
        if failed:
            self.world.fault("F25", f"a control message fails: {sender} to {receiver}")
        return failed

    def answer_lost(self, sender: str, receiver: str) -> bool:
        return self.message_lost(receiver, sender)

    def message_repeated(self) -> bool:
        repeated = self.active and self.world.chance(self.rates.message_repeat)
        if repeated:
            self.world.fault("F13", "repeated")
        return repeated

    @property
    def usual_slowness(self) -> float:
        return self.rates.slowness if self.active else 1.0

    def start_fails(self) -> bool:
        failed = self.active and self.world.chance(self.rates.start_failure)
        if failed:
            self.world.fault("F03", "a TaskManager does not start")
        return failed

    def rescales(self) -> bool:
        return self.active and self.world.chance(self.rates.rescale)

    def draw_clock_skew(self) -> int:
        if not self.rates.skew_ms:
            return 0
        self.world.fault("F19", "a wall clock is wrong")
        return self.world.random.randint(-self.rates.skew_ms, self.rates.skew_ms)

    # ------------------------------------------------------------------------------- store

    def store_delay(self) -> float:
        if self.active and self.world.chance(self.rates.store_slow):
            self.world.fault("F08", "slow store")
            return self.world.between(0.2, 4) * SECOND
        return self.world.between(1, 15) * MS

    def io_delays(self) -> tuple[float, float]:
        """Before and after the effect."""
        total = self.store_delay()
        share = self.world.random.choice([0.0, 0.5, 1.0])
        return total * share, total * (1 - share)

    def store_fault(self, owner: SimProcess, operation: Operation) -> Fault | None:
        """What happens to a store operation of ``owner``; others may go on before it does."""
        world, rates = self.world, self.rates
        is_taskmanager = isinstance(owner, SimTaskManager)
        if self.active and world.chance(rates.interleave):
            world.fault("F27", f"{owner.id} waits in {operation.name}")
            world.pause_here(world.long_tailed(20 * MS, 4 * SECOND))
        if "/epochs/" in operation.path and operation.name.startswith("put"):
            self._overtake(owner)
        for _ in range(100):
            if not owner.paused or not owner.alive:
                break
            world.pause_here(100 * MS)
        if not owner.alive and not is_taskmanager:
            return Fault.CRASH
        if not self.active:
            return None
        if not is_taskmanager and world.chance(rates.store_crash) and self._may_strike():
            self._struck()
            world.fault("F04", f"{owner.id} dies before {operation.name} {_kind(operation)}")
            return Fault.CRASH
        if is_taskmanager and operation.name == "put":  # an upload of state
            if owner.disk_full:
                world.fault("F17", f"{owner.id} put {_kind(operation)}: no space left")
                return Fault.FAIL_BEFORE
            if self.spoil is not None:
                spoil, self.spoil, self.spoiled = self.spoil, None, operation.path
                world.fault("F09", f"{owner.id} put {_kind(operation)} {spoil.value}")
                return spoil
            if world.chance(rates.torn_upload):
                world.fault("F09", f"{owner.id} put {_kind(operation)} {Fault.TORN.value}")
                return Fault.TORN
        ends = getattr(owner, "generation", 0) and operation.path.endswith("/claim.json")
        if operation.name in CHANGES and self._comes_late(rates.end_late if ends else 0.0):
            world.fault("F07", f"{owner.id} {operation.name} {_kind(operation)} comes late")
            alive = [tm for tm in self.cluster.taskmanagers.values() if tm.alive]
            if alive and not is_taskmanager:
                self.failpoint("late", world.random.choice(alive))
            return Fault.LATE
        if world.chance(rates.store_failure):
            fault = world.random.choice([Fault.FAIL_BEFORE, Fault.FAIL_AFTER])
            world.fault("F07", f"{owner.id} {operation.name} {_kind(operation)} {fault.value}")
            return fault
        return None

    def _comes_late(self, at_least: float = 0.0) -> bool:
        late = max(self.rates.store_late, at_least)
        return late > 0 and (self.world.now_us < self.outage_until or self.world.chance(late))

    def _outage(self) -> None:
        """For a while everything comes late, also what is tried again."""
        if self.active:
            self.outage_until = self.world.now_us + int(self.world.between(0.5, 5) * SECOND)
            self.world.after(self.world.between(2, 9) * SECOND, self._outage)

    def later(self, effect: Callable[[], object]) -> None:
        """A request that has timed out may still be on its way: whoever sent it may be gone."""

        def land() -> None:
            self.world.log("what was late has its effect")
            with suppress(DataflowError):  # nobody is told
                effect()

        self.world.after(self.world.long_tailed(700 * MS, 15 * SECOND), land)

    def _overtake(self, owner: SimProcess) -> None:
        """The owner waits just before the record that decides, while a successor gets going."""
        if not self.active or not self.world.chance(self.rates.overtake):
            return
        if owner.alive and self._may_strike():
            self._struck()
            self.world.fault("F12", f"{owner.id} is overtaken while it publishes")
            self.cluster.start_jobmanager()
            self.world.pause_here(self.world.between(1, 8) * SECOND)

    def output_fault(self, operation: Operation) -> Fault | None:
        """Of the folder a file sink writes to: in both phases of its commits."""
        name = operation.name
        if name not in ("prepare_multipart", "commit_multipart") or not self.active:
            return None
        if name in CHANGES and self._comes_late():
            self.world.fault("F05", f"{name} of a file comes late")
            return Fault.LATE
        if not self.world.chance(self.rates.commit_failure):
            return None
        fault = self.world.random.choice([Fault.FAIL_BEFORE, Fault.FAIL_AFTER])
        self.world.fault("F05", f"{name} of a file {fault.value}")
        return fault

    def commit_fault(self, where: str) -> None:
        """Of the external system that the sink writes to."""
        if self.active and self.world.chance(self.rates.commit_failure / 2):
            self.world.fault("F05", where)
            raise StorageError(f"injected: {where}")

    def user_code(self, record: Record) -> None:
        if self.poison_record is not None and tuple(record[:2]) == self.poison_record:
            self.world.fault("F15", "poison, always")
            raise ValueError("injected: poison")
        if not self.active or self.poisoned >= POISON_MAX:
            return
        if self.world.chance(self.rates.poison):
            self.poisoned += 1
            self.world.fault("F15", "poison")
            raise ValueError("injected: poison")


def _kind(operation: Operation) -> str:
    """The last part of a path without the hash of its content."""
    name = operation.path.rpartition("/")[2]
    return name if name.endswith(".json") else name.partition(".")[0]
