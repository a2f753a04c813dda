"""Where everything of a job lies, and the only place that turns names into paths.

    <root>/_jobs/<job>.json                            status, for listing jobs
    <root>/<job>/job                                   the JobGraph
    <root>/<job>/epochs/<id>.json                      the linearisation point of a checkpoint
    <root>/<job>/generations/<g>/claim.json            the fence
    <root>/<job>/generations/<g>/ckpt-<id>/<state>     state of subtasks, immutable
    <root>/<job>/generations/<g>/ckpt-<id>/manifest.json
    <root>/<job>/generations/<g>/ckpt-<id>/committed.json

Names become path segments only after matching an allow-list, so none can lead elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dataflow.errors import ConfigError
from dataflow.filesystem.base import FileStatus

MANIFEST = "manifest.json"
COMMITTED = "committed.json"

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_STATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NUMBER = r"([1-9][0-9]{0,17})"
_EPOCH = re.compile(rf"epochs/{_NUMBER}\.json")
_CLAIM = re.compile(rf"generations/{_NUMBER}/claim\.json")
_FILE = re.compile(rf"generations/{_NUMBER}/ckpt-{_NUMBER}/([^/]+)")

Attempt = tuple[int, int]
"""(generation, checkpoint id): one attempt to take a checkpoint, ordered as history is.

Generation comes first: once a newer generation has published, nothing an older one may still
publish can be newer, whatever its checkpoint id (see ``checkpoint_protocol``).
"""


def check_job_id(job_id: str) -> str:
    """Raises ConfigError for a job id that cannot be a path segment."""
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise ConfigError(
            f"the job id {job_id!r} is not usable: letters, digits, '-' and '_', 1 to 128 of them"
        )
    return job_id


class JobPaths:
    """Paths of one job, relative to its root."""

    job = "job"

    @staticmethod
    def epoch(checkpoint_id: int) -> str:
        return f"epochs/{_positive(checkpoint_id)}.json"

    @staticmethod
    def claim(generation: int) -> str:
        return f"generations/{_positive(generation)}/claim.json"

    @staticmethod
    def folder(attempt: Attempt) -> str:
        return f"generations/{_positive(attempt[0])}/ckpt-{_positive(attempt[1])}"

    @staticmethod
    def manifest(attempt: Attempt) -> str:
        return f"{JobPaths.folder(attempt)}/{MANIFEST}"

    @staticmethod
    def committed(attempt: Attempt) -> str:
        return f"{JobPaths.folder(attempt)}/{COMMITTED}"

    @staticmethod
    def state(attempt: Attempt, name: str, sha256: str) -> str:
        """Named by content: an overdue writer can never replace what a handle refers to."""
        if not isinstance(name, str) or not _STATE_NAME.fullmatch(name) or ".." in name:
            raise ConfigError(
                f"the state name {name!r} is not usable: letters, digits, '.', '-' and '_', "
                "1 to 200 of them, no '..'"
            )
        return f"{JobPaths.folder(attempt)}/{name}.{sha256[:16]}"

    @staticmethod
    def attempt_of_state(path: str) -> Attempt | None:
        """To whose state a path belongs; what decides about checkpoints is nobody's state."""
        match = _FILE.fullmatch(path)
        if match is None or match[3] in (MANIFEST, COMMITTED):
            return None
        return int(match[1]), int(match[2])

    @staticmethod
    def is_state(path: str) -> bool:
        return JobPaths.attempt_of_state(path) is not None


def _positive(number: int) -> int:
    if type(number) is not int or not 0 < number < 10**18:
        raise ConfigError(f"generations and checkpoint ids are counted from 1, not {number!r}")
    return number


@dataclass(slots=True)
class JobListing:
    """A job's objects, sorted by what they are; paths relative to the job's root."""

    epochs: set[int] = field(default_factory=set)
    claims: set[int] = field(default_factory=set)
    manifests: set[Attempt] = field(default_factory=set)
    committed: set[Attempt] = field(default_factory=set)
    files: dict[Attempt, list[str]] = field(default_factory=dict)  # every file of the attempt
    sizes: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(root: str, found: Iterable[FileStatus]) -> JobListing:
        """Unknown names are left out: nothing is decided about them, nothing deletes them."""
        listing = JobListing()
        for status in found:
            path = status.path[len(root) + 1 :]
            listing.sizes[path] = status.size
            if match := _FILE.fullmatch(path):
                attempt = (int(match[1]), int(match[2]))
                listing.files.setdefault(attempt, []).append(path)
                if match[3] == MANIFEST:
                    listing.manifests.add(attempt)
                elif match[3] == COMMITTED:
                    listing.committed.add(attempt)
            elif match := _EPOCH.fullmatch(path):
                listing.epochs.add(int(match[1]))
            elif match := _CLAIM.fullmatch(path):
                listing.claims.add(int(match[1]))
        return listing
