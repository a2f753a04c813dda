"""What the checkpoint store keeps beside the state itself, and its strict JSON codec.

Every record is *sealed*: canonical JSON holding its kind, format version, SHA-256 and, when a key
is configured, an HMAC-SHA256. Opening seals the decoded body again and compares all bytes, so
whatever differs (a flipped bit, a duplicate key, another spelling of a number) is refused.
Nothing here is pickled.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Any

from dataflow.errors import CorruptObject

FORMAT_VERSION = 1
MANIFEST_BYTES_MAX = 64 << 20
RECORD_BYTES_MAX = 64 << 10
VERTICES_MAX = 10_000
SUBTASKS_MAX = 100_000  # of all vertices together
OPERATORS_MAX = 100_000
FILES_MAX = 100_000  # of one subtask
TEXT_CHARS_MAX = 1024
INT_MAX = 2**63 - 1

_SHA256 = re.compile(r"[0-9a-f]{64}")
_STATE_PATH = re.compile(
    r"generations/[1-9][0-9]{0,17}/ckpt-[1-9][0-9]{0,17}/[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
)


@dataclass(frozen=True, slots=True)
class StateHandle:
    """An immutable object holding the state of one subtask, or a part of it.

    ``sha256`` is that of its content; of a snapshot (see ``snapshot_format``) that of its index,
    which has those of the rest. ``files`` are further objects that a snapshot refers to.
    """

    path: str  # relative to the job's root
    size: int
    sha256: str
    files: tuple[StateHandle, ...] = ()

    @property
    def paths(self) -> frozenset[str]:
        """Its own and those of its files."""
        return frozenset((self.path, *(file.path for file in self.files)))

    @property
    def total_size(self) -> int:
        """Bytes with those of its files."""
        return self.size + sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class SubtaskState:
    """``handle`` is None for a subtask without state; ``drained`` once it saw its last input.

    The snapshot has elements in flight at the subtask's end of some channels of these edges.
    """

    subtask: int
    handle: StateHandle | None
    drained: bool
    in_flight_inputs: tuple[str, ...] = ()
    in_flight_outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VertexState:
    """One JobVertex: exactly one entry per subtask, in order."""

    vertex_id: str
    parallelism: int
    max_parallelism: int
    operator_uids: tuple[str, ...]
    subtasks: tuple[SubtaskState, ...]
    shares_state: bool = False  # each restored subtask needs state of all (see ``snapshot``)

    @property
    def has_ended(self) -> bool:
        """Every subtask had processed its last input."""
        return all(subtask.drained for subtask in self.subtasks)


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """Everything a complete checkpoint consists of; immutable once written."""

    job_id: str
    checkpoint_id: int
    generation: int  # of the JobManager that took it
    timestamp_ms: int
    vertices: tuple[VertexState, ...]
    needs_commit: bool  # sinks have output to make visible

    def handles(self) -> list[StateHandle]:
        """Every object it refers to; some may lie in the folders of earlier checkpoints."""
        snapshots = self.snapshots()
        return snapshots + [file for handle in snapshots for file in handle.files]

    def snapshots(self) -> list[StateHandle]:
        """The snapshots of its subtasks."""
        subtasks = (s for vertex in self.vertices for s in vertex.subtasks)
        return [s.handle for s in subtasks if s.handle is not None]

    @property
    def covers_end(self) -> bool:
        """Every task had processed its last input."""
        return all(vertex.has_ended for vertex in self.vertices)

    @property
    def state_size(self) -> int:
        """Bytes of all state."""
        return sum(handle.size for handle in self.handles())


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What became of a checkpoint id: the manifest of ``generation``, or nothing.

    It is a function of the manifest alone, so whoever publishes a manifest writes the same bytes.
    ``manifest_sha256`` None is a discarded checkpoint, whose id can never be published.
    """

    checkpoint_id: int
    generation: int
    manifest_sha256: str | None


# ----------------------------------------------------------------------------------------- seal


def seal(kind: str, body: dict[str, Any], key: bytes | None) -> bytes:
    """The bytes of a record."""
    record = {"kind": kind, "version": FORMAT_VERSION, "body": body}
    record["sha256"] = hashlib.sha256(_canonical(record)).hexdigest()
    if key is not None:
        record["hmac"] = hmac.new(key, _canonical(record), hashlib.sha256).hexdigest()
    return _canonical(record)


def unseal(kind: str, data: bytes, key: bytes | None, bytes_max: int = RECORD_BYTES_MAX) -> Any:
    """The body of a record. Raises CorruptObject when anything about it is not as sealed."""
    if len(data) > bytes_max:
        raise CorruptObject(f"the {kind} has {len(data)} bytes, allowed are {bytes_max}")
    try:
        record = json.loads(data)
        body = record["body"]
        found = (record["kind"], record["version"])
        signed = "hmac" in record
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptObject(f"the {kind} is not a record of this project") from None
    if found[0] == kind and type(found[1]) is int and found[1] > FORMAT_VERSION:
        raise CorruptObject(
            f"the {kind} has format version {found[1]}, and this release reads up to "
            f"{FORMAT_VERSION}: run the job with the release that wrote it, or a newer one"
        )
    if found != (kind, FORMAT_VERSION):
        raise CorruptObject(
            f"expected a {kind} of format version {FORMAT_VERSION}, found {str(found)[:100]}"
        )
    if signed != (key is not None):
        state = "signed, but no key is configured" if signed else "not signed"
        raise CorruptObject(f"the {kind} is {state}")
    if not hmac.compare_digest(seal(kind, body, key), data):
        wrong = "signature or checksum" if signed else "checksum"
        raise CorruptObject(f"the {kind} does not match its {wrong}")
    return body


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


# ------------------------------------------------------------------------------------- manifest


def encode_manifest(manifest: CheckpointManifest, key: bytes | None) -> bytes:
    """The manifest file. Raises ValueError for a manifest that breaks its own rules."""
    body = {
        "job_id": manifest.job_id,
        "checkpoint_id": manifest.checkpoint_id,
        "generation": manifest.generation,
        "timestamp_ms": manifest.timestamp_ms,
        "needs_commit": manifest.needs_commit,
        "vertices": [_encode_vertex(vertex) for vertex in manifest.vertices],
    }
    if _decode_body(body) != manifest:
        raise ValueError("the manifest does not survive its own encoding")
    data = seal("manifest", body, key)
    _require(len(data) <= MANIFEST_BYTES_MAX, f"a manifest of at most {MANIFEST_BYTES_MAX} bytes")
    return data


def decode_manifest(data: bytes, key: bytes | None) -> CheckpointManifest:
    """Raises CorruptObject."""
    body = unseal("manifest", data, key, MANIFEST_BYTES_MAX)
    try:
        return _decode_body(body)
    except ValueError as error:
        raise CorruptObject(f"the manifest is malformed: {error}") from None


def _encode_vertex(vertex: VertexState) -> dict[str, Any]:
    return {
        "vertex_id": vertex.vertex_id,
        "parallelism": vertex.parallelism,
        "max_parallelism": vertex.max_parallelism,
        "operator_uids": list(vertex.operator_uids),
        "subtasks": [_encode_subtask(subtask) for subtask in vertex.subtasks],
        # Only where it holds, so that the manifests of most jobs are what they always were.
        **({"shares_state": True} if vertex.shares_state else {}),
    }


def _encode_subtask(subtask: SubtaskState) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "subtask": subtask.subtask,
        "drained": subtask.drained,
        "state": subtask.handle and _encode_handle(subtask.handle),
    }
    if subtask.in_flight_inputs or subtask.in_flight_outputs:
        encoded["in_flight"] = {
            "inputs": list(subtask.in_flight_inputs),
            "outputs": list(subtask.in_flight_outputs),
        }
    return encoded


def _encode_handle(handle: StateHandle) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "path": handle.path,
        "size": handle.size,
        "sha256": handle.sha256,
    }
    if handle.files:
        encoded["files"] = [_encode_handle(file) for file in handle.files]
    return encoded


def _decode_body(body: Any) -> CheckpointManifest:
    f = _fields(
        body,
        {"job_id", "checkpoint_id", "generation", "timestamp_ms", "needs_commit", "vertices"},
    )
    vertices = tuple(_decode_vertex(v) for v in _items(f["vertices"], VERTICES_MAX, "vertices"))
    manifest = CheckpointManifest(
        job_id=_text(f["job_id"], "job_id"),
        checkpoint_id=_number(f["checkpoint_id"], "checkpoint_id", 1),
        generation=_number(f["generation"], "generation", 1),
        timestamp_ms=_number(f["timestamp_ms"], "timestamp_ms", 0),
        vertices=vertices,
        needs_commit=_flag(f["needs_commit"], "needs_commit"),
    )
    _require(len({v.vertex_id for v in vertices}) == len(vertices), "distinct vertex ids")
    subtasks = sum(v.parallelism for v in vertices)
    _require(subtasks <= SUBTASKS_MAX, f"at most {SUBTASKS_MAX} subtasks")
    return manifest


def _decode_vertex(data: Any) -> VertexState:
    names = {"vertex_id", "parallelism", "max_parallelism", "operator_uids", "subtasks"}
    shares_state = isinstance(data, dict) and data.get("shares_state") is True
    f = _fields(data, names | {"shares_state"} if shares_state else names)
    uids = _items(f["operator_uids"], OPERATORS_MAX, "operator_uids")
    vertex = VertexState(
        vertex_id=_text(f["vertex_id"], "vertex_id"),
        parallelism=_number(f["parallelism"], "parallelism", 1),
        max_parallelism=_number(f["max_parallelism"], "max_parallelism", 1),
        operator_uids=tuple(_text(uid, "operator_uids") for uid in uids),
        subtasks=tuple(_decode_subtask(s) for s in _items(f["subtasks"], SUBTASKS_MAX, "subtasks")),
        shares_state=shares_state,
    )
    _require(vertex.parallelism <= vertex.max_parallelism, "parallelism <= max_parallelism")
    _require(
        [s.subtask for s in vertex.subtasks] == list(range(vertex.parallelism)),
        f"each of the {vertex.parallelism} subtasks of {vertex.vertex_id!r} once and in order",
    )
    return vertex


def _decode_subtask(data: Any) -> SubtaskState:
    names = {"subtask", "state", "drained"}
    has_in_flight = isinstance(data, dict) and "in_flight" in data
    f = _fields(data, names | {"in_flight"} if has_in_flight else names)
    edges = _fields(f["in_flight"], {"inputs", "outputs"}) if has_in_flight else {}
    return SubtaskState(
        subtask=_number(f["subtask"], "subtask", 0),
        handle=None if f["state"] is None else _decode_handle(f["state"]),
        drained=_flag(f["drained"], "drained"),
        in_flight_inputs=_texts(edges.get("inputs", [])),
        in_flight_outputs=_texts(edges.get("outputs", [])),
    )


def _texts(data: Any) -> tuple[str, ...]:
    edges = _items(data, OPERATORS_MAX, "in_flight")
    return tuple(_text(edge, "in_flight") for edge in edges)


def _decode_handle(data: Any, depth: int = 0) -> StateHandle:
    refers = depth == 0 and isinstance(data, dict) and "files" in data
    f = _fields(data, {"path", "size", "sha256"} | ({"files"} if refers else set()))
    files = _items(f["files"], FILES_MAX, "files") if refers else []
    handle = StateHandle(
        _text(f["path"], "path"),
        _number(f["size"], "size", 0),
        _text(f["sha256"], "sha256"),
        tuple(_decode_handle(file, depth + 1) for file in files),
    )
    _require(refers == bool(files), "at least one of files, if there are any")
    check_handle(handle)
    return handle


def check_handle(handle: StateHandle) -> None:
    """Raises ValueError for a path outside the job's state folders or an impossible checksum."""
    _require(
        _STATE_PATH.fullmatch(handle.path) is not None and ".." not in handle.path,
        f"a state path within the job's folder, not {handle.path[:200]!r}",
    )
    _require(_SHA256.fullmatch(handle.sha256) is not None, "a SHA-256 in hexadecimal")
    _require(0 <= handle.size <= INT_MAX, "a size in bytes")


# --------------------------------------------------------------------------------- epoch record


def encode_epoch(record: EpochRecord, key: bytes | None) -> bytes:
    """The epoch record's file."""
    body = {
        "checkpoint_id": record.checkpoint_id,
        "generation": record.generation,
        "manifest_sha256": record.manifest_sha256,
    }
    return seal("epoch", body, key)


def decode_epoch(data: bytes, key: bytes | None) -> EpochRecord:
    """Raises CorruptObject."""
    body = unseal("epoch", data, key)
    try:
        f = _fields(body, {"checkpoint_id", "generation", "manifest_sha256"})
        digest = f["manifest_sha256"]
        _require(
            digest is None or (isinstance(digest, str) and bool(_SHA256.fullmatch(digest))),
            "a SHA-256 in hexadecimal",
        )
        return EpochRecord(
            _number(f["checkpoint_id"], "checkpoint_id", 1),
            _number(f["generation"], "generation", 1),
            digest,
        )
    except ValueError as error:
        raise CorruptObject(f"the epoch record is malformed: {error}") from None


# --------------------------------------------------------------------------------------- checks


def _require(condition: bool, expected: str) -> None:
    if not condition:
        raise ValueError(f"expected {expected}")


def _fields(data: Any, names: set[str]) -> dict[str, Any]:
    _require(isinstance(data, dict), "a JSON object")
    fields: dict[str, Any] = data
    _require(
        set(fields) == names,
        f"the fields {sorted(names)}, not {sorted(map(str, fields))}"[:TEXT_CHARS_MAX],
    )
    return fields


def _items(data: Any, count_max: int, name: str) -> list[Any]:
    _require(isinstance(data, list) and len(data) <= count_max, f"{name}: at most {count_max}")
    items: list[Any] = data
    return items


def _text(data: Any, name: str) -> str:
    _require(
        isinstance(data, str) and 0 < len(data) <= TEXT_CHARS_MAX,
        f"{name}: text of 1 to {TEXT_CHARS_MAX} characters",
    )
    return str(data)


def _number(data: Any, name: str, low: int) -> int:
    _require(type(data) is int and low <= data <= INT_MAX, f"{name}: an integer >= {low}")
    return int(data)


def _flag(data: Any, name: str) -> bool:
    _require(type(data) is bool, f"{name}: true or false")
    return bool(data)
