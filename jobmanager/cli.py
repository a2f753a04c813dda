"""The command `dataflow`.

Exit codes: 0 done, 2 wrong usage or configuration, 3 invalid job or checkpoint, 4 cluster or
storage cannot be used, 5 the job failed, 6 a running job could not do what was asked of it and goes
on, 130 interrupted; 1 or its own for a program that raised or exited. Tracebacks are the user's
own, but for --debug.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import select
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from dataflow.common.config_options import ConfigOptions
from dataflow.common.config_values import format_map
from dataflow.common.configuration import Configuration
from dataflow.common.job_client import JobClient
from dataflow.common.job_status import JobStatus
from dataflow.errors import ClusterError, ConfigError, DataflowError, JobExecutionError
from dataflow.filesystem import parse
from jobmanager.state_commands import add_state_commands
from taskmanager.operators.function_operator import user_traceback

#: Of ``run``, and hardly those of a program.
_OURS = re.compile(r"-D|--(local|job-id|map-uid|from-savepoint|allow-non-restored-state)(=|$)")
JOB_ID_PATTERN = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")

EXAMPLES = """\
examples:
  dataflow run --local job.py               in this process: prints and breakpoints work
  dataflow run -p 4 job.py --input a.csv    on a local Ray, or the one RAY_ADDRESS names
  dataflow run --job-id orders job.py       go on from the newest checkpoint of job "orders"
  dataflow stop orders --savepoint s3://bucket/savepoints     end it so that it can go on elsewhere
  dataflow run -s s3://bucket/savepoints/savepoint-orders-… -p 8 job.py     which it does here
  dataflow submit --address http://HEAD:8265 job.py -- --input s3://bucket/in
  dataflow plan job.py                      draw the job without running it
"""


class ProgramError(Exception):
    """The program raised something of its own, the cause; shown as Python would, without us."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "command"):
        parser.print_help()
        return 0
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_has_gone(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says of who dies of it
    except DataflowError as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"dataflow: {error}", file=sys.stderr)
        return error.exit_code
    except ProgramError as error:
        program_error = error.__cause__
        assert program_error is not None
        if options.debug:
            traceback.print_exception(program_error)
        else:
            print(user_traceback(program_error), file=sys.stderr)
        return 1


def _reader_has_gone(descriptor: int) -> bool:
    """As with ``| head``, once it has read enough."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported in any case
    return bool(poll.poll(0))


# ------------------------------------------------------------------------------------- parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dataflow",
        allow_abbrev=False,
        description="Stateful stream processing in Python, on Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=function)
        return added

    run = command("run", _run, "run a program and wait for its jobs")
    _add_program(run)
    _add_address(run)
    run.add_argument("--local", action="store_true", help="in this process, without Ray")
    run.add_argument(
        "-d", "--detached", action="store_true", help="return once the jobs are submitted"
    )

    submit = command(
        "submit", _submit, "send a program and its folder to a cluster through Ray's Jobs API"
    )
    _add_program(submit)
    submit.add_argument(
        "--address", required=True, metavar="URL", help="the dashboard, such as http://HEAD:8265"
    )
    submit.add_argument("--wait", action="store_true", help="follow the log until the end")

    plan = command("plan", _plan, "draw a program's job without running it")
    _add_program(plan)
    plan.add_argument("--json", action="store_true", help="as JSON (env.get_execution_plan())")

    listing = command("list", _list, "list the jobs that run, and with --dir those that ran")
    _add_address(listing)
    listing.add_argument("--dir", metavar="URI", help="a checkpoint folder to look into")

    status = command("status", _status, "show how a job is doing")
    status.add_argument("job_id", type=_job_id)
    _add_address(status)
    status.add_argument("--json", action="store_true", help="as JSON")

    cancel = command("cancel", _cancel, "cancel a job; its checkpoints are kept")
    cancel.add_argument("job_id", type=_job_id)
    _add_address(cancel)

    _add_requests(command)

    checkpoints = command("checkpoints", _checkpoints, "list the checkpoints of a job")
    checkpoints.add_argument("job_id", type=_job_id)
    checkpoints.add_argument(
        "--dir", required=True, metavar="URI", help="the folder given as checkpoint storage"
    )

    add_state_commands(commands, _table, _connect)
    return parser


def _add_requests(command: Callable[..., argparse.ArgumentParser]) -> None:
    """What is asked of a job that runs."""
    savepoint = command(
        "savepoint",
        _savepoint,
        "write a savepoint of a job, which goes on: a copy of all its state in a folder that is "
        "yours, from which a job can start (run -s). The folder may be copied or moved; no job "
        "ever deletes it",
    )
    stop = command(
        "stop",
        _stop,
        "end a job with a savepoint: no record is processed behind it, all output is committed, "
        "and a job started from it (run -s) goes on exactly there",
    )
    stop.add_argument(
        "--drain",
        action="store_true",
        help="end the input first, so that every window and event timer fires: for a job that is "
        "not to go on from its savepoint, since its windows would be incomplete",
    )
    checkpoint = command("checkpoint", _checkpoint, "take a checkpoint of a job now")
    rescale = command(
        "rescale",
        _rescale,
        "let a job go on at another parallelism, from a checkpoint taken now, with one short "
        "pause; operators with a parallelism of their own keep it",
    )
    rescale.add_argument(
        "-p", "--parallelism", type=_positive, metavar="N", required=True, help="the new one"
    )
    for added in (savepoint, stop, checkpoint, rescale):
        added.add_argument("job_id", type=_job_id)
        _add_address(added)
    where = "a new folder is made below it; default: execution.checkpointing.savepoint-dir"
    savepoint.add_argument("dir", nargs="?", metavar="DIR", help=where)
    stop.add_argument("--savepoint", dest="dir", metavar="DIR", help=where)


def _add_program(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--parallelism", type=_positive, metavar="N", help="default parallelism"
    )
    parser.add_argument(
        "-D",
        dest="settings",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="a configuration key of Flink's, such as execution.checkpointing.interval=10s",
    )
    parser.add_argument(
        "--job-id",
        type=_job_id,
        metavar="ID",
        help="run under this id, going on from its newest checkpoint if it has any",
    )
    parser.add_argument(
        "-s",
        "--from-savepoint",
        metavar="PATH",
        help="start from a savepoint, or from a checkpoint that another job has left: the folder "
        "of the job, or epochs/NUMBER.json in it. Nothing there is changed or deleted",
    )
    parser.add_argument(
        "--map-uid",
        action="append",
        default=[],
        type=_renaming,
        metavar="OLD=NEW",
        help="the operator with uid NEW has the state that the checkpoint has under OLD",
    )
    parser.add_argument(
        "--allow-non-restored-state",
        action="store_true",
        help="drop state of operators that the program no longer has",
    )
    parser.add_argument("program", metavar="job.py", help="the program")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGUMENTS", help="passed to the program"
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="the Ray cluster; default: $RAY_ADDRESS, else the Ray on this machine",
    )


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 1 <= number <= 32768:
        raise argparse.ArgumentTypeError(f"{number} is not in 1..32768")
    return number


def _job_id(text: str) -> str:
    if not JOB_ID_PATTERN.match(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no job id: 1 to 63 of a-z, 0-9 and -, not beginning with -"
        )
    return text


def _setting(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key.strip(), value.strip()


def _renaming(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not separator or not old or not new:
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW, two uids")
    return old, new


# ------------------------------------------------------------------------- run, plan, submit


def _settings(options: argparse.Namespace) -> dict[str, str]:
    settings = dict(options.settings)
    if options.parallelism is not None:
        settings["parallelism.default"] = str(options.parallelism)
    if options.from_savepoint is not None:
        settings[ConfigOptions.RECOVERY_PATH.key] = parse(options.from_savepoint)[1]
    if options.map_uid:
        settings[ConfigOptions.RECOVERY_RENAMED_UIDS.key] = format_map(dict(options.map_uid))
    if options.allow_non_restored_state:
        settings[ConfigOptions.RECOVERY_IGNORE_UNCLAIMED_STATE.key] = "true"
    Configuration(settings).validate()
    return settings


def _run_program(options: argparse.Namespace, environment: dict[str, str]) -> None:
    """The program as ``python job.py arguments`` would run it."""
    program = options.program
    if not os.path.isfile(program):
        raise ConfigError(f"there is no program {program!r}")
    settings = _settings(options)
    if settings:
        environment = {**environment, "DATAFLOW_CONF": json.dumps(settings)}
    if options.job_id:
        environment = {**environment, "DATAFLOW_JOB_ID": options.job_id}
    os.environ.update(environment)
    arguments = options.arguments
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    _tell_misplaced(arguments, program)
    folder = os.path.dirname(os.path.abspath(program))
    _refuse_our_names(folder)
    sys.argv = [program, *arguments]
    sys.path.insert(0, folder)
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    except DataflowError:
        raise
    except Exception as error:
        raise ProgramError from error


def _tell_misplaced(arguments: list[str], program: str) -> None:
    """Options that are hardly meant for the program, which gets whatever follows it."""
    ours = next(filter(_OURS.match, arguments), None)
    if ours is not None:
        print(
            f"dataflow: {ours} follows {program}, so it is passed to the program; options of "
            "dataflow come before the program",
            file=sys.stderr,
        )


def _refuse_our_names(folder: str) -> None:
    """A program that imports its own ``state.py`` would get our package: it is loaded already."""
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in ("dataflow", "state", "taskmanager", "jobmanager"):
        for found in (f"{folder}/{name}.py", f"{folder}/{name}/__init__.py"):
            if os.path.isfile(found) and not os.path.realpath(found).startswith(f"{ours}/"):
                raise ConfigError(
                    f"{found} has the name of a package of ray-dataflow, {name!r}: rename it"
                )


def _run(options: argparse.Namespace) -> int:
    environment = {}
    if options.local:
        if options.address:
            raise ConfigError("--local runs without Ray, so --address has no meaning with it")
        environment["DATAFLOW_LOCAL"] = "1"
    if options.address:
        environment["RAY_ADDRESS"] = options.address
    if options.detached:
        if options.local:
            raise ConfigError("--local runs in this process, so --detached has no meaning with it")
        environment["DATAFLOW_DETACHED"] = "1"
    _run_program(options, environment)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from dataflow.graph.plan import PlanReady, plan_as_json, plan_as_text

    try:
        _run_program(options, {"DATAFLOW_PLAN_ONLY": "1"})
    except PlanReady as ready:
        print(plan_as_json(ready.job_graph) if options.json else plan_as_text(ready.job_graph))
        return 0
    raise ConfigError(f"{options.program} ended without calling env.execute()")


def _submit(options: argparse.Namespace) -> int:
    from ray.job_submission import JobSubmissionClient

    program = os.path.abspath(options.program)
    if not os.path.isfile(program):
        raise ConfigError(f"there is no program {options.program!r}")
    settings = _settings(options)
    arguments = options.arguments
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    words = ["python", "-m", "jobmanager.cli", "run", "--detached"]
    for key, value in settings.items():
        words += ["-D", f"{key}={value}"]
    if options.job_id:
        words += ["--job-id", options.job_id]
    words += [os.path.basename(program), *arguments]
    try:
        client = JobSubmissionClient(options.address)
        submission = client.submit_job(
            entrypoint=" ".join(shlex.quote(word) for word in words),
            runtime_env={
                "working_dir": os.path.dirname(program),
                "excludes": [".git", ".venv", "**/__pycache__"],
                "env_vars": {"DATAFLOW_SHIPPED": "1"},
            },
        )
    except Exception as error:
        raise ClusterError(
            f"the cluster at {options.address} did not take the program: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    print(f"submitted as {submission}")
    if options.wait:
        return _follow(client, submission)
    return 0


def _follow(client: Any, submission: str) -> int:
    printed = 0
    while True:
        status = client.get_job_status(submission)
        log = client.get_job_logs(submission)
        sys.stdout.write(log[printed:])
        sys.stdout.flush()
        printed = len(log)
        if status.is_terminal():
            if status == "SUCCEEDED":
                return 0
            raise JobExecutionError(f"{submission} is {status}: its log is above")
        time.sleep(0.5)


# ------------------------------------------------------------------- list, status, cancel


def _connect(options: argparse.Namespace) -> None:
    from jobmanager.cluster import connect

    address = options.address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        connect(address=address)
    except ClusterError:
        if options.address or os.environ.get("RAY_ADDRESS"):
            raise
        raise ClusterError(
            "no Ray runs on this machine; name a cluster with --address or RAY_ADDRESS"
        ) from None


def _list(options: argparse.Namespace) -> int:
    rows = []
    running: list[str] = []
    if options.dir is None or options.address or os.environ.get("RAY_ADDRESS"):
        from jobmanager.cluster import attach, running_job_ids

        _connect(options)
        running = running_job_ids()
        for job_id in running:
            info = attach(job_id).info()
            rows.append((job_id, info.name, info.status.name, _when(info.started_ms)))
    if options.dir is not None:
        from dataflow.filesystem import parse
        from state.checkpoint_store import list_jobs

        for job_id, status in sorted(list_jobs(*parse(options.dir)).items()):
            if job_id not in running:
                rows.append(
                    (
                        job_id,
                        str(status.get("name")),
                        str(status.get("status")),
                        _when(status.get("started_ms")),
                    )
                )
    _table(("JOB ID", "NAME", "STATUS", "STARTED"), rows, "no jobs")
    return 0


def _status(options: argparse.Namespace) -> int:
    import dataclasses

    from jobmanager.cluster import attach
    from jobmanager.operator_latency import COLUMNS, row
    from jobmanager.progress import format_restoring, format_watermark

    _connect(options)
    info = attach(options.job_id).info()
    if options.json:
        fields = {**dataclasses.asdict(info), "status": info.status.name}
        del fields["accumulators"]  # pickled: for programs that have their classes
        if info.status is not JobStatus.FAILED:
            del fields["exit_code"]
        print(json.dumps(fields, indent=2))
        return 0
    lines = [
        ("job", f"{info.name} ({info.job_id})"),
        (
            "status",
            info.status.name
            + ("" if info.restoring is None else f", restoring {format_restoring(info)}"),
        ),
        ("started", _when(info.started_ms)),
        ("parallelism", str(info.parallelism)),
        ("tasks", str(info.tasks)),
        ("records read", f"{info.records_read:,}"),
        ("records written", f"{info.records_written:,}"),
        ("watermark", format_watermark(info.watermark)),
        (
            "checkpoints",
            f"{info.completed_checkpoints} completed, {info.failed_checkpoints} failed",
        ),
        (
            "last checkpoint",
            "-"
            if info.last_checkpoint is None
            else f"{info.last_checkpoint}, took {info.last_checkpoint_ms} ms, "
            f"{(info.last_checkpoint_age_ms or 0) / 1000:.0f} s ago",
        ),
        ("restored from", str(info.restored_from or info.restored_checkpoint or "-")),
        ("restarts", str(info.restarts)),
        ("generation", str(info.generation)),
    ]
    for label, value in lines:
        print(f"{label + ':':17} {value}")
    for taskmanager, tasks in sorted(info.taskmanagers.items()):
        print(f"{taskmanager + ':':17} {tasks}")
    if info.latencies:
        print("latency:")
        _table(COLUMNS, [row(latency) for latency in info.latencies], "")
    if info.notice:
        print(f"notice:           it {info.notice}")
    if info.errors:
        print("last error:")
        print(info.errors[-1])
    return 0


def _cancel(options: argparse.Namespace) -> int:
    from jobmanager.cluster import attach

    _connect(options)
    client = attach(options.job_id)
    client.cancel().result()
    print(f"{options.job_id} is {client.info().status.name}")
    return 0


def _attached(options: argparse.Namespace) -> JobClient:
    from jobmanager.cluster import attach

    _connect(options)
    return attach(options.job_id)


def _savepoint(options: argparse.Namespace) -> int:
    path = _attached(options).trigger_savepoint(options.dir).result()
    print(path)
    return 0


def _stop(options: argparse.Namespace) -> int:
    client = _attached(options)
    path = client.stop_with_savepoint(options.drain, options.dir).result()
    print(path)
    return 0


def _checkpoint(options: argparse.Namespace) -> int:
    print(_attached(options).trigger_checkpoint().result())
    return 0


def _rescale(options: argparse.Namespace) -> int:
    print(f"{options.job_id}: {_attached(options).rescale(options.parallelism).result()}")
    return 0


def _checkpoints(options: argparse.Namespace) -> int:
    from taskmanager.threaded import open_store

    store = open_store(options.dir, options.job_id)
    rows = [
        (
            str(info.checkpoint_id),
            _when(info.timestamp_ms),
            f"{info.size:,} B",
            str(info.generation),
            info.fault or ("committed" if info.committed else "complete"),
        )
        for info in store.completed_checkpoints()
    ]
    if not rows and store.get_status() is None:
        raise ConfigError(f"no job with the id {options.job_id} has left anything in {options.dir}")
    _table(("ID", "TAKEN", "SIZE", "GENERATION", "STATE"), rows, "no completed checkpoint")
    return 0


def _when(milliseconds: Any) -> str:
    if not isinstance(milliseconds, int):
        return "-"
    moment = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], empty: str) -> None:
    if not rows:
        print(empty)
        return
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
