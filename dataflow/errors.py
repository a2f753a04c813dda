"""Every error a user can meet.

    DataflowError
    ├── ConfigError            a configuration key or value is wrong        (exit code 2)
    ├── JobGraphError          the program does not make a valid job         (exit code 3)
    │   ├── FunctionPicklingError   a user function cannot be shipped
    │   └── KeyTypeError       a key that has no stable hash
    ├── ClusterError           Ray or its resources cannot be had            (exit code 4)
    ├── StorageError           the checkpoint storage cannot be used         (exit code 4)
    │   ├── ObjectNotFound
    │   ├── UploadLost         what was written is gone; trying again is no use
    │   └── CorruptObject      checksum, size, magic or version is wrong
    ├── RestoreError           a checkpoint does not fit the job             (exit code 3)
    │   └── StateProcessorError     what is asked of its state cannot be done
    ├── JobRequestError        a running job cannot do what was asked of it  (exit code 6)
    └── JobExecutionError      the job ran and failed                        (exit code 5)
        └── UserFunctionError  raised by the user's own code

Messages are one sentence on what was given, what is allowed and where; ``exit_code`` is what
the command line returns.
"""

from __future__ import annotations


class DataflowError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


class ConfigError(DataflowError):
    """A configuration key or value that cannot be used."""

    exit_code = 2


class JobGraphError(DataflowError):
    """The program does not describe a valid job; ``faults`` lists every reason found."""

    exit_code = 3

    def __init__(self, faults: str | list[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class FunctionPicklingError(JobGraphError):
    """A user function cannot be shipped to the TaskManagers."""


class KeyTypeError(JobGraphError):
    """A key of a type (or value, such as NaN) that has no stable hash."""


class ClusterError(DataflowError):
    """Ray cannot be reached or does not have the resources the job needs."""

    exit_code = 4


class StorageError(DataflowError):
    """The object store failed, after the bounded retries, or lacks a needed guarantee."""

    exit_code = 4


class ObjectNotFound(StorageError):
    """No object of that name."""


class UploadLost(StorageError):
    """What was written to an upload is gone or not durable, and no repetition brings it back."""


class CorruptObject(StorageError):
    """An object's checksum, size, magic or version is not what its reference promises."""


class RestoreError(DataflowError):
    """A checkpoint does not fit the job that is to be restored from it."""

    exit_code = 3


class StateProcessorError(RestoreError):
    """State that is to be read or changed outside of a job is not there, or not of that kind."""


class JobRequestError(DataflowError):
    """A job that runs could not do what was asked of it, such as a savepoint; it goes on."""

    exit_code = 6


class JobExecutionError(DataflowError):
    """The job reached FAILED; the message names operator, subtask and cause."""

    exit_code = 5


class UserFunctionError(JobExecutionError):
    """User code raised; the message holds the user's own traceback, without our frames."""
