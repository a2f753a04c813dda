"""JobExecutionResult."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dataflow.common.job_id import JobID


@dataclass(frozen=True)
class JobExecutionResult:
    """What is known of a job that has finished."""

    job_id: JobID
    net_runtime_ms: int
    accumulators: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    checkpoints: int = 0  # completed
    records_read: int = 0  # by the sources
    records_written: int = 0  # by the sinks

    def get_job_id(self) -> JobID:
        return self.job_id

    def get_net_runtime(self) -> int:
        """Milliseconds from start to end."""
        return self.net_runtime_ms

    def get_accumulator_result(self, accumulator_name: str) -> Any:
        """None if there is none of that name."""
        return self.accumulators.get(accumulator_name)

    def get_all_accumulator_results(self) -> dict[str, Any]:
        """Those that the job's functions have added, and no others."""
        return dict(self.accumulators)

    def __str__(self) -> str:
        return (
            f"job {self.job_id} finished in {self.net_runtime_ms / 1000:.1f} s, "
            f"{self.checkpoints} checkpoints, {self.restarts} restarts"
        )
