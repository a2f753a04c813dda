"""Submitting to Ray, and finding jobs there again."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any, cast

import ray

from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.errors import ClusterError, ConfigError
from dataflow.graph.job_graph import JobGraph
from jobmanager.actor import NAME_PREFIX, NAMESPACE, JobManagerActor
from jobmanager.client import PollingJobClient
from jobmanager.job_manager import JobInfo, Outgoing
from jobmanager.python_files import import_roots, ray_modules, requirement_lines
from jobmanager.requests import Answer, ClientRequest
from state.checkpoint_paths import check_job_id

logger = logging.getLogger(__name__)

_started_here = False  # whether this process started the Ray it is connected to

KNOCK_TIMEOUT_S = 10.0  # for a connection to the cluster
RESTART_WAIT_S = 120.0  # how long a JobManager may be away before a client gives up
_OWN = (None, "", "local")  # values of RAY_ADDRESS with which a Ray is started here
LEAVE_WAIT_S = 10.0  # how long the JobManager of an ended job may take to go away


def connect(
    slots: int = 0,
    runtime_env: dict[str, Any] | None = None,
    address: str | None = None,
) -> None:
    """Join Ray: as connected already, as ``address`` or RAY_ADDRESS says, or a local one.

    A local Ray is started with at least ``slots`` CPUs and ends with this process. Raises
    ClusterError, also when this process is connected to another Ray than the one asked for.
    """
    global _started_here
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        _refuse_other(address, ray.get_runtime_context().gcs_address)
        return
    _started_here = False
    # A worker that dies is our business, told in our words; Ray's banners are not.
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": runtime_env,
    }
    if address and os.environ.get("RAY_AUTH_MODE") == "disabled" and not _on_loopback(address):
        logger.warning(
            "RAY_AUTH_MODE is disabled: whoever reaches %s can run code there (SECURITY.md)",
            address,
        )
    try:
        if address:
            _knock(address)
            ray.init(address=address, **options)
        else:
            cpus = max(os.cpu_count() or 1, slots)
            # Ray would run its workers at niceness 15: next to anything else that keeps this
            # machine busy they hardly run at all, and one takes a minute to start.
            os.environ.setdefault("RAY_worker_niceness", "0")
            # "local" and not None, with which Ray joins what `ray start` has left on this
            # machine, and then refuses num_cpus.
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
            _started_here = True
    except Exception as error:
        where = f"at {address}" if address else "on this machine"
        raise ClusterError(
            f"Ray cannot be {'joined' if address else 'started'} {where}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _refuse_other(wanted: str | None, connected: str) -> None:
    """Ports tell clusters apart; hosts have too many names."""
    endpoint = _endpoint(wanted or "")
    if endpoint is not None and endpoint[1] != (_endpoint(connected) or endpoint)[1]:
        raise ClusterError(
            f"this program is connected to the Ray at {connected} already, so it cannot run on "
            f"the one at {wanted}: leave out ray.init(), or the address"
        )


def _knock(address: str) -> None:
    """Raises OSError if nobody listens there; Ray would go on trying for minutes."""
    endpoint = _endpoint(address)
    if endpoint is not None:
        socket.create_connection(endpoint, KNOCK_TIMEOUT_S).close()


def _endpoint(address: str) -> tuple[str, int] | None:
    """Host and port of HOST:PORT; None for any other form, such as "auto" or a ray:// URL."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


def _on_loopback(address: str) -> bool:
    host = address.rpartition("://")[2].rpartition(":")[0] or address
    return host in ("auto", "local", "localhost") or host.startswith("127.")


def submit(
    job_graph: JobGraph,
    job_id: str | None,
    python_files: list[str],
    requirements: str | None,
    detached: bool = False,
) -> RayJobClient:
    """Start a JobManager for the job; it lives on when this process goes away.

    ``detached``: it has to, so a Ray that is started here and ends with this process will not do.

    With a ``job_id`` that has checkpoints in the job's storage, the job goes on from the newest.
    """
    job_id = job_id or uuid.uuid4().hex
    try:
        check_job_id(job_id)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"job id {job_id!r}: {error}") from None
    options = Configuration(job_graph.configuration)
    runtime_env = _runtime_env(python_files, requirements)
    if detached and not ray.is_initialized() and os.environ.get("RAY_ADDRESS") in _OWN:
        raise ClusterError(
            "--detached leaves the job to a cluster, and a Ray started by this program would end "
            "with it: name a cluster with --address or RAY_ADDRESS (ray start --head starts one)"
        )
    connect(job_graph.slots_required, runtime_env)
    _warn_of_node_local_storage(options.get(ConfigOptions.CHECKPOINTING_DIR))
    _make_way(job_id)
    heartbeat_ms = options.get(ConfigOptions.HEARTBEAT_INTERVAL)
    cpus = options.get(ConfigOptions.TASKMANAGER_CPUS)
    paths = _module_paths() + import_roots(python_files)
    actor = cast(Any, JobManagerActor).options(
        name=NAME_PREFIX + job_id,
        namespace=NAMESPACE,
        lifetime="detached",
        **({"runtime_env": runtime_env} if runtime_env else {}),
    ).remote(job_id, job_graph.to_bytes(), heartbeat_ms, cpus, paths)
    client = RayJobClient(job_id, actor)
    client.info()
    return client


def _warn_of_node_local_storage(storage: str | None) -> None:
    if storage is None or storage.startswith("s3:"):
        return
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    if nodes > 1:
        logger.warning(
            "checkpoints go to %s on each of %d nodes: unless that folder is shared by all of "
            "them, the job cannot recover; use s3://",
            storage,
            nodes,
        )


def _module_paths() -> list[str]:
    """Where this program's own modules are, for workers on the same machine."""
    return [os.path.abspath(path or ".") for path in sys.path if not _is_library(path)]


def _is_library(path: str) -> bool:
    prefixes = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix)}
    real = os.path.realpath(path or ".")
    return any(real.startswith(os.path.join(prefix, "")) for prefix in prefixes)


def _runtime_env(python_files: list[str], requirements: str | None) -> dict[str, Any] | None:
    """What workers need beyond Python and this package, by Ray's runtime environments.

    On a Ray started here, workers see the same files, and importing them from where they are is
    faster than shipping them. On a cluster the program's folder is shipped, unless the program
    was itself shipped there (``dataflow submit``).
    """
    environment: dict[str, Any] = {}
    address = os.environ.get("RAY_ADDRESS")
    shipped = os.environ.get("RAY_JOB_ID") or "DATAFLOW_SHIPPED" in os.environ
    if address and not shipped and not ray.is_initialized():
        script = getattr(sys.modules.get("__main__"), "__file__", None)
        if script is not None:
            environment["working_dir"] = str(Path(script).resolve().parent)
            environment["excludes"] = [".git", ".venv", "**/__pycache__"]
        if python_files:
            environment["py_modules"] = ray_modules(python_files)
    if requirements is not None:
        environment["pip"] = requirement_lines(requirements)
    return environment or None


def _find(job_id: str) -> Any | None:
    try:
        return ray.get_actor(NAME_PREFIX + job_id, namespace=NAMESPACE)
    except ValueError:
        return None


def _make_way(job_id: str) -> None:
    """A job of that id that has ended leaves now, not after its time to answer questions."""
    deadline = time.monotonic() + LEAVE_WAIT_S
    while (actor := _find(job_id)) is not None:
        try:
            ended = RayJobClient(job_id, actor).info().ended_ms is not None
        except ClusterError:  # it is leaving
            ended = True
        if not ended or time.monotonic() > deadline:
            raise ClusterError(
                f"a job with the id {job_id} runs already; cancel it (dataflow cancel {job_id}) "
                "or choose another --job-id"
            )
        actor.release.remote()
        time.sleep(0.05)


def attach(job_id: str) -> RayJobClient:
    """The client of a job that another process submitted. Raises ClusterError if there is none."""
    actor = _find(job_id)
    if actor is None:
        raise ClusterError(
            f"no job with the id {job_id} runs on this cluster; `dataflow list` shows those that do"
        )
    return RayJobClient(job_id, actor)


def running_job_ids() -> list[str]:
    """Of every JobManager on the cluster."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        actor["name"][len(NAME_PREFIX) :]
        for actor in actors
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(NAME_PREFIX)
    )


class RayJobClient(PollingJobClient):
    """Asks the JobManager actor, and waits while it is being restarted."""

    def __init__(self, job_id: str, actor: Any) -> None:
        super().__init__(job_id)
        self.actor = actor
        self.outlives_process = not _started_here

    def _info(self) -> JobInfo:
        info: JobInfo = self._ask("info")
        return info

    def _fetch(self, outbox_id: int, taken: int) -> Outgoing:
        outgoing: Outgoing = self._ask("fetch", outbox_id, taken)
        return outgoing

    def _cancel(self) -> None:
        self._ask("cancel")

    def _request(self, request: ClientRequest) -> None:
        self._ask("request", request)

    def _answer(self, request_id: str) -> Answer | None:
        answer: Answer | None = self._ask("answer", request_id)
        return answer

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _release(self) -> None:
        if ray.is_initialized():
            self.actor.release.remote()

    def _ask(self, method: str, *arguments: Any) -> Any:
        deadline = time.monotonic() + RESTART_WAIT_S
        while True:
            try:
                self._check_connected()
                reference = getattr(self.actor, method).remote(*arguments)
                self._check_connected()
                return ray.get(reference)
            except ray.exceptions.ActorDiedError as error:
                lines = [line for line in str(error).splitlines() if line.strip()]
                raise ClusterError(
                    f"the JobManager of job {self.job_id} is gone: {lines[-1].strip()}"
                ) from None
            except ray.exceptions.RuntimeEnvSetupError as error:
                fault = _fault_in(str(error))
                raise ClusterError(
                    f"the environment of the job's workers cannot be set up: {fault}"
                ) from None
            except ray.exceptions.ActorUnavailableError:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"the JobManager of job {self.job_id} did not come back within "
                        f"{RESTART_WAIT_S:.0f} s"
                    ) from None
                time.sleep(0.1)
            except BaseException:  # SystemExit, too: so Ray ends a get() that waits on a thread
                self._check_connected()
                raise

    def _check_connected(self) -> None:
        """Raises ClusterError after ``ray.shutdown()``.

        Ray starts another Ray for whoever calls it then, and a thread that follows the job goes on
        for a moment after its program has left.
        """
        if not ray.is_initialized():
            raise ClusterError(
                f"this program has left Ray (ray.shutdown()), and job {self.job_id} with it"
            ) from None


def _fault_in(report: str) -> str:
    """What pip, or whatever fails inside Ray's long report, says itself."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    return said[0].removeprefix("ERROR:").strip() if said else "Ray does not say why"
