"""Deliberate bugs in the running of stages; see ``canaries``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from jobmanager import failover, job_master
from jobmanager.execution_graph import ExecutionGraph
from jobmanager.region import Exchange, Region
from taskmanager.blocking_results import BlockingResults
from taskmanager.messages import SendResults
from taskmanager.partition_file import PartitionFile


@contextmanager
def consumers_go_on() -> Iterator[None]:
    """What is made again is read only by those who have not begun: others have the old results."""
    original = failover.to_restart

    def to_restart(failed: list[Region]) -> list[Region]:
        chosen = list(failed)
        return [r for r in original(failed) if r in chosen or not r.has_results]

    with mock.patch.object(job_master, "to_restart", to_restart):
        yield


@contextmanager
def any_attempt_will_do() -> Iterator[None]:
    """Results of an older attempt are sent too; nobody looks whether they are all there."""
    original = BlockingResults.send

    def send(self: BlockingResults, message: SendResults) -> None:
        for result in message.results:
            found = self._files.get(result.producer)
            if found is not None:
                self._files[result.producer] = result.produced_by, found[1]
        original(self, message)

    def has_results(self: Region) -> bool:
        return self.attempt is not None

    with (
        mock.patch.object(BlockingResults, "send", send),
        mock.patch.object(Region, "has_results", property(has_results)),
    ):
        yield


@contextmanager
def released_after_the_first() -> Iterator[None]:
    """Results go when one of those who read them is done."""

    def consumed(self: Exchange) -> bool:
        return any(consumer.is_done or consumer.recommits for consumer in self.consumers)

    with mock.patch.object(Exchange, "consumed", property(consumed)):
        yield


@contextmanager
def sinks_commit_with_their_stage() -> Iterator[None]:
    """They do not wait for the end of the job."""
    with mock.patch.object(ExecutionGraph, "has_sink", return_value=False):
        yield


@contextmanager
def commits_are_made_anew() -> Iterator[None]:
    """A failure while sinks commit makes everything again, what has been committed too."""
    with mock.patch.object(Region, "can_recommit", property(lambda self: False)):
        yield


@contextmanager
def unverified_results() -> Iterator[None]:
    """What is read from disk is sent whatever it is."""

    def read(self: PartitionFile, channel: int, block: int) -> bytes:
        length = self._lengths[channel][block]
        return os.pread(self._descriptor, length, self._offsets[channel][block] + 16)

    with mock.patch.object(PartitionFile, "read", read):
        yield
