"""Writes docs/configuration.md from the table of options: `python docs/configuration_table.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflow.common.config_options import ConfigOption, all_options
from dataflow.common.time import format_millis

PAGE = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
# Configuration

Keys and values are Flink's. A setting is text, wherever it is written:

```sh
dataflow run -D execution.checkpointing.interval=10s -D parallelism.default=4 job.py
```

```python
from dataflow.common import Configuration
from dataflow.datastream import StreamExecutionEnvironment

configuration = Configuration()
configuration.set_string("execution.checkpointing.interval", "10 s")
env = StreamExecutionEnvironment.get_execution_environment(configuration)
env.enable_checkpointing(10_000)   # the same key, by its setter
```

What counts, first to last: the operator's own setting (`.set_parallelism(2)`), the environment's
setters, the `Configuration` given to `get_execution_environment`, the command line (`-p`, `-D`),
the default. A key that does not exist is an error that names the nearest one that does; a value
that is not possible is an error that says what is. Settings of Flink's that only make sense with a
JVM (`python.*`, `pipeline.generic-types`, ...) are accepted with a warning.

Durations are written `10 s`, `200 ms`, `5 min`, `PT5S` or as a number of milliseconds; sizes
`4 mb`, `64 kb` or as a number of bytes.

## Keys

Where a default differs from Flink's, Flink's is given in brackets.

"""

ENVIRONMENT = """
Without effect, and accepted so that programs for Flink need no change: `pipeline.object-reuse` and
`execution.buffer-timeout.interval` (batches leave as soon as their channel is free).

## Environment variables

| variable | meaning |
|---|---|
| `RAY_ADDRESS` | the Ray cluster to run on, as for any Ray program |
| `RAY_worker_niceness` | Ray's: how far its workers step back for others. At its 15 a busy \
neighbour starves TaskManagers; a Ray that we start has 0, a cluster what it was started with |
| `DATAFLOW_HMAC_KEY` | [signs checkpoints](checkpoints.md#signing); at least 16 bytes |
| `DATAFLOW_LOCAL` | `1` runs jobs in this process, without Ray (`dataflow run --local`) |
| `DATAFLOW_JOB_ID` | the id to run under (`dataflow run --job-id`) |
| `DATAFLOW_CONF` | settings as a JSON object of strings (`dataflow run -D`) |
| `DATAFLOW_PROGRESS` | `0` switches the progress line on the terminal off |
| `AWS_*` | credentials, profile, region and server of S3, as for any program that uses boto3 |
"""

#: Each is beyond what some kind of option allows, and the answer says what that is.
PROBES = ("-9" + "9" * 17, "9" * 7 + " d", "9" * 9 + " tb", "9 ms", "9", "true", "?")


def page() -> str:
    """The whole page."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    rows += map(row, all_options())
    return INTRODUCTION + "\n".join(rows) + "\n" + ENVIRONMENT


def row(option: ConfigOption[Any]) -> str:
    names = [f"`{option.key}`", *(f"also `{alias}`" for alias in option.aliases)]
    cells = ["<br>".join(names), default(option), allowed(option), option.description]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def default(option: ConfigOption[Any]) -> str:
    value, limits = option.default, allowed(option)
    if value is None:
        return ""
    if " ms" in limits:
        value = format_millis(value)
    elif limits.endswith(" bytes"):
        value = f"{value >> 20} mb" if value >= 1 << 20 else f"{value >> 10} kb"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def allowed(option: ConfigOption[Any]) -> str:
    """What the option itself says when it is given nonsense."""
    answers = []
    for probe in PROBES:
        try:
            option.parse(probe)
        except ValueError as error:
            answers.append(str(error))
    limits = [answer for answer in answers if answer.endswith("is allowed")]
    if limits:
        # What is not there yet says so only to a value that would otherwise be possible.
        answer = next((limit for limit in limits if "not supported" in limit), limits[0])
        return answer.removesuffix(" is allowed")
    return (answers[-1] if answers else "text").removesuffix(" is needed")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
