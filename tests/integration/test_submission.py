"""Programs as users start them: scripts, the command, other processes, other machines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from s3_servers import S3Server, free_ports, set_env

from dataflow.common.job_status import JobStatus
from tests.integration.ledger_job import Ledger, build, read_output, violations
from tests.integration.running import Submit, environment, wait_until

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
COMMAND = ("-m", "jobmanager.cli")
#: What flights.py prints, whichever subtask says so, with the passengers doubled.
POLITE = {f"dear {city} {n}" for city in ("Jamaica", "Queens") for n in (2, 42, 642)}


def python(*command: str, code: int = 0, **environment: str) -> str:
    """Run ``python command`` from the repository's root: what it printed, or how it complained."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DATAFLOW_", "RAY_ADDRESS"))
    }
    paths = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=inherited | paths | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def polite_lines(printed: str) -> set[str]:
    return {line[line.index("dear") :] for line in printed.splitlines() if "dear" in line}


@pytest.fixture
def address(local_ray: None) -> str:
    return str(ray.get_runtime_context().gcs_address)


# --------------------------------------------------------------------------------- scripts


def test_a_script_with_its_classes_modules_and_added_files_on_a_ray_of_its_own() -> None:
    assert polite_lines(python(str(PROGRAMS / "flights.py"), "2")) == POLITE


def test_the_same_script_by_the_command_on_a_cluster(address: str) -> None:
    script = str(PROGRAMS / "flights.py")
    assert polite_lines(python(*COMMAND, "run", "--address", address, script, "2")) == POLITE


def test_the_same_script_in_one_process() -> None:
    script = str(PROGRAMS / "flights.py")
    assert polite_lines(python(*COMMAND, "run", "--local", script, "2")) == POLITE


def test_required_packages_are_there_for_functions(address: str, tmp_path: Path) -> None:
    """A wheel that no index has, named relative to the requirements file."""
    about = "courtesy-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "courtesy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("courtesy.py", "def greet(name):\n    return f'dear {name}'\n")
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: courtesy\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    (tmp_path / "requirements.txt").write_text("--no-index\n./courtesy-1.0-py3-none-any.whl\n")
    (tmp_path / "job.py").write_text(
        "from dataflow.datastream import StreamExecutionEnvironment as Env\n"
        "def polite(n):\n"
        "    import courtesy\n"
        "    return courtesy.greet(n)\n"
        "env = Env.get_execution_environment()\n"
        f"env.set_python_requirements({str(tmp_path / 'requirements.txt')!r})\n"
        "env.from_sequence(1, 3).map(polite).print()\n"
        "env.execute('polite')\n"
    )
    printed = python(*COMMAND, "run", "--address", address, str(tmp_path / "job.py"))
    assert polite_lines(printed) == {"dear 1", "dear 2", "dear 3"}


def test_a_program_that_leaves_ray_before_its_job_ends_starts_no_other_ray() -> None:
    printed = python(str(PROGRAMS / "leave.py")).splitlines()[-2:]
    assert printed[0].startswith("told: this program has left Ray (ray.shutdown()), and job ")
    assert printed[1] == "connected: False"


# --------------------------------------------------------------- other processes, the command


def test_a_job_is_found_and_controlled_from_other_processes(
    submit: Submit, address: str, storage: str, output: str
) -> None:
    ledger = Ledger(records=200_000, rate=2_000)
    env = environment(storage)
    build(env, ledger, output)
    job_id = f"orders-{uuid.uuid4().hex[:8]}"
    job = submit(env, job_id)
    job.checkpointed()
    there = ("--address", address)
    listed = python(*COMMAND, "list", *there)
    assert [line.split()[:3] for line in listed.splitlines()] == [
        ["JOB", "ID", "NAME"],
        [job_id, "ledger", "RUNNING"],
    ]
    status = json.loads(python(*COMMAND, "status", job_id, "--json", *there))
    assert status["status"] == "RUNNING"
    assert status["completed_checkpoints"] >= 2
    assert status["records_read"] > 0
    checkpoints = python(*COMMAND, "checkpoints", job_id, "--dir", storage)
    assert "committed" in checkpoints
    attached = python(
        "-c",
        "from dataflow.datastream import StreamExecutionEnvironment as Env\n"
        f"client = Env.attach_to_job({job_id!r})\n"
        "print(client.get_job_id(), client.get_job_status().result())",
        RAY_ADDRESS=address,
    )
    assert attached.split() == [job_id, "JobStatus.RUNNING"]
    assert python(*COMMAND, "cancel", job_id, *there) == f"{job_id} is CANCELED\n"
    assert job.ended().status is JobStatus.CANCELED
    assert violations(ledger, read_output(output), complete=False) == []
    wait_until(lambda: "no jobs" in python(*COMMAND, "list", *there), "it is listed no more")
    assert f"{job_id}  ledger  CANCELED" in python(*COMMAND, "list", "--dir", storage)
    gone = python(*COMMAND, "status", job_id, *there, code=4)
    assert f"no job with the id {job_id} runs on this cluster" in gone


def test_a_detached_run_leaves_the_job_to_the_cluster(
    address: str, tmp_path: Path, submit: Submit
) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "from dataflow.datastream import StreamExecutionEnvironment as Env\n"
        "env = Env.get_execution_environment()\n"
        "env.from_sequence(1, 10).print()\n"
        "print(env.execute('numbers'))\n"
    )
    job_id = f"numbers-{uuid.uuid4().hex[:8]}"
    command = ("run", "-d", "--job-id", job_id, "--address", address, str(script))
    assert f"submitted job 'numbers' as {job_id}" in python(*COMMAND, *command)
    printed = python(
        "-c",
        "from dataflow.datastream import StreamExecutionEnvironment as Env\n"
        f"Env.attach_to_job({job_id!r}).get_job_execution_result().result()",
        RAY_ADDRESS=address,
    )
    assert sorted(int(line.rpartition("> ")[2]) for line in printed.splitlines()) == [
        *range(1, 11)
    ]
    nothing = f"file://{tmp_path}/nothing"
    command = ("run", "-d", "-s", nothing, "--address", address, str(script))
    refused = python(*COMMAND, *command, code=3)
    assert nothing in refused
    assert "submitted" not in refused


# ------------------------------------------------------------------------------ exit codes


def program(folder: Path, *lines: str) -> str:
    script = folder / "job.py"
    head = (
        "from dataflow.datastream import StreamExecutionEnvironment as Env",
        "env = Env.get_execution_environment()",
    )
    script.write_text("\n".join((*head, *lines, "env.execute('small')", "")))
    return str(script)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--paralellism", "2"), "unrecognized arguments: --paralellism"),
        (("run", "-p", "0"), "0 is not in 1..32768"),
        (("run", "-D", "parallelism.defualt=2"), "the nearest known one is 'parallelism.default'"),
        (("run", "--job-id", "../orders"), "is no job id"),
        (("run", "--local", "--address", "127.0.0.1:1"), "--local runs without Ray"),
        (("run", "no-such-job.py"), "there is no program"),
        (("status",), "the following arguments are required: job_id"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    script = [] if arguments[-1] in ("status", "no-such-job.py") else [program(tmp_path)]
    printed = python(*COMMAND, *arguments, *script, code=2)
    assert said in printed
    assert "Traceback" not in printed


def test_an_invalid_job_is_exit_code_3(tmp_path: Path) -> None:
    script = program(tmp_path, "env.from_collection([1]).map(lambda n: n)")
    printed = python(*COMMAND, "run", script, code=3)
    assert "sink" in printed
    assert "Traceback" not in printed


def test_a_cluster_that_is_not_there_is_exit_code_4(tmp_path: Path) -> None:
    script = program(tmp_path, "env.from_collection([1]).print()")
    printed = python(*COMMAND, "run", "--address", "127.0.0.1:1", script, code=4)
    assert "Ray cannot be joined at 127.0.0.1:1" in printed
    assert "Traceback" not in printed


def test_a_failed_job_is_exit_code_5(tmp_path: Path, address: str) -> None:
    script = program(tmp_path, "env.from_collection([0]).map(lambda n: 1 // n).print()")
    printed = python(*COMMAND, "run", "--address", address, script, code=5)
    assert "ZeroDivisionError" in printed
    assert "job.py" in printed, "the user's own traceback"
    assert "jobmanager" not in printed, "and none of ours"


# ------------------------------------------------------------------------- whole clusters


@pytest.mark.s3
def test_f06_a_lost_cluster_costs_nothing_that_is_on_s3(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"s3://{s3_server.new_bucket()}"
    storage, output, records = f"{bucket}/jobs", f"{bucket}/output", 6_000
    script = str(PROGRAMS / "cluster_lost.py")
    set_env(monkeypatch, s3_server.env)
    python(script, storage, output, str(records), "lose")
    assert violations(Ledger(records, None), read_output(output), complete=False) == []
    printed = python(script, storage, output, str(records))
    assert "finished, was restored from" in printed
    assert "restored from None" not in printed
    assert violations(Ledger(records, None), read_output(output)) == []


def test_a_lost_node_of_two(storage: str, output: str) -> None:
    records = 10_000
    printed = python(str(PROGRAMS / "two_nodes.py"), storage, output, str(records))
    assert "TaskManagers on 2 nodes" in printed
    assert "recovered" in printed
    assert violations(Ledger(records, None), read_output(output)) == []


def test_f25_calls_of_ray_that_fail_or_lose_their_answer(
    storage: str, output: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each process fails the first few of its actor calls, before or after they have run."""
    records, folder = 4_000, tmp_path_factory.mktemp("ray")
    failures = {"num_failures": 3, "req_failure_prob": 5, "resp_failure_prob": 5}
    printed = python(
        *(str(PROGRAMS / "cluster_lost.py"), storage, output, str(records)),
        RAY_testing_rpc_failure=json.dumps({"CoreWorkerService.grpc_client.PushTask": failures}),
        # Ray looks every second, for one second, whether the actor has died.
        RAY_core_worker_internal_heartbeat_ms="100",
        RAY_timeout_ms_task_wait_for_death_info="100",
        RAY_TMPDIR=str(folder),
    )
    assert "finished" in printed
    restarts = [line for line in printed.splitlines() if line.startswith("restarted:")]
    assert [line for line in restarts if "is unavailable" not in line] == []
    assert violations(Ledger(records, None), read_output(output)) == []
    logs = [log.read_text() for log in folder.glob("ray/session_latest/logs/worker*.err")]
    assert "cannot be reached: ActorUnavailableError; again" in "".join(logs), "no call has failed"


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head of its own, with a dashboard, as on a cluster; it does not know this program."""
    port, dashboard, agent, client = free_ports(4)
    binaries = Path(sys.executable).parent
    folder = tmp_path_factory.mktemp("ray")
    command = [
        *(str(binaries / "ray"), "start", "--head", "--block", "--num-cpus=2"),
        *(f"--port={port}", "--node-ip-address=127.0.0.1", f"--ray-client-server-port={client}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--temp-dir={folder}", "--disable-usage-stats"),
    ]
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "PATH": path}
        )
    try:
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    finally:
        process.terminate()
        process.wait(30)


def test_submit_sends_the_script_and_its_folder_to_a_cluster(head: Head) -> None:
    script = str(PROGRAMS / "flights.py")

    def submit() -> str | None:
        try:
            return python(*COMMAND, "submit", "--wait", "--address", head.dashboard, script, "2")
        except AssertionError as error:  # it takes a while to come up
            if "did not take the program" in str(error):
                return None
            raise

    printed = wait_until(submit, "the head takes the program", 60)
    job_id = re.search("submitted job 'flights' as ([0-9a-f]+)", printed)
    assert job_id, printed
    printed = python(
        "-c",
        "from dataflow.datastream import StreamExecutionEnvironment as Env\n"
        f"Env.attach_to_job({job_id[1]!r}).get_job_execution_result().result()",
        RAY_ADDRESS=head.address,
    )
    assert polite_lines(printed) == POLITE
