"""Which operators share slots, and what a slot of theirs has."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataflow.errors import ConfigError


@dataclass(frozen=True, order=True)
class MemorySize:
    """An amount of memory."""

    bytes_size: int

    def __post_init__(self) -> None:
        size = self.bytes_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ConfigError(f"MemorySize({size!r:.60}): an int of bytes, 0 or more, is needed")

    @staticmethod
    def of_mebi_bytes(mebi_bytes: int) -> MemorySize:
        return MemorySize(mebi_bytes << 20)

    def get_bytes(self) -> int:
        return self.bytes_size

    def get_kibi_bytes(self) -> int:
        return self.bytes_size >> 10

    def get_mebi_bytes(self) -> int:
        return self.bytes_size >> 20

    def get_gibi_bytes(self) -> int:
        return self.bytes_size >> 30

    def get_tebi_bytes(self) -> int:
        return self.bytes_size >> 40

    def __str__(self) -> str:
        return f"{self.bytes_size} bytes"


@dataclass(frozen=True)
class SlotSharingGroup:
    """Made by ``SlotSharingGroup.builder(name)...build()``; None leaves a resource to the cluster.

    The memories of Flink's model (heap, off-heap, managed) are one here: they add up.
    """

    name: str
    cpu_cores: float | None = None
    task_heap_memory: MemorySize | None = None
    task_off_heap_memory: MemorySize | None = None
    managed_memory: MemorySize | None = None
    external_resources: dict[str, float] = field(default_factory=dict, hash=False)

    @staticmethod
    def builder(name: str) -> Builder:
        return Builder(name)

    def get_name(self) -> str:
        return self.name

    def get_cpu_cores(self) -> float | None:
        return self.cpu_cores

    def get_task_heap_memory(self) -> MemorySize | None:
        return self.task_heap_memory

    def get_task_off_heap_memory(self) -> MemorySize | None:
        return self.task_off_heap_memory

    def get_managed_memory(self) -> MemorySize | None:
        return self.managed_memory

    def get_external_resources(self) -> dict[str, float]:
        return dict(self.external_resources)

    def to_resources(self) -> dict[str, float]:
        """As Ray's resources: ``num_cpus``, ``num_gpus`` (Flink's ``gpu``), ``memory`` in bytes."""
        memories = (self.task_heap_memory, self.task_off_heap_memory, self.managed_memory)
        memory = sum(size.bytes_size for size in memories if size is not None)
        resources = {
            "num_gpus" if name == "gpu" else name: amount
            for name, amount in self.external_resources.items()
        }
        if self.cpu_cores is not None:
            resources["num_cpus"] = self.cpu_cores
        if memory:
            resources["memory"] = float(memory)
        return resources


class Builder:
    """Collects what a slot of the group has."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"SlotSharingGroup.builder({name!r:.60}): a name is needed")
        self._name = name
        self._cpu_cores: float | None = None
        self._heap: MemorySize | None = None
        self._off_heap: MemorySize | None = None
        self._managed: MemorySize | None = None
        self._external: dict[str, float] = {}

    def set_cpu_cores(self, cpu_cores: float) -> Builder:
        self._cpu_cores = _positive("set_cpu_cores", cpu_cores)
        return self

    def set_task_heap_memory(self, task_heap_memory: MemorySize) -> Builder:
        self._heap = task_heap_memory
        return self

    def set_task_heap_memory_mb(self, task_heap_memory_mb: int) -> Builder:
        return self.set_task_heap_memory(MemorySize.of_mebi_bytes(task_heap_memory_mb))

    def set_task_off_heap_memory(self, task_off_heap_memory: MemorySize) -> Builder:
        self._off_heap = task_off_heap_memory
        return self

    def set_task_off_heap_memory_mb(self, task_off_heap_memory_mb: int) -> Builder:
        return self.set_task_off_heap_memory(MemorySize.of_mebi_bytes(task_off_heap_memory_mb))

    def set_managed_memory(self, managed_memory: MemorySize) -> Builder:
        self._managed = managed_memory
        return self

    def set_managed_memory_mb(self, managed_memory_mb: int) -> Builder:
        return self.set_managed_memory(MemorySize.of_mebi_bytes(managed_memory_mb))

    def set_external_resource(self, name: str, value: float) -> Builder:
        """``gpu``, or a custom resource of the Ray cluster."""
        self._external[name] = _positive(f"set_external_resource({name!r})", value)
        return self

    def build(self) -> SlotSharingGroup:
        return SlotSharingGroup(
            self._name, self._cpu_cores, self._heap, self._off_heap, self._managed, self._external
        )


def _positive(what: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{what}: a number above 0 is needed, not {value!r:.60}")
    return float(value)
