"""The blocking results of a TaskManager's tasks: written by tasks, sent when all of it is there.

In BATCH mode a stage begins when the one before it has ended. What a task puts out for the next
stage goes into a ``PartitionFile`` per edge instead of over links; the file outlives the task. Once
the consuming tasks are ready, a ``ResultReader`` sends it to them over the channels and links that
a running task would use, under the attempt of the consumers. They notice no difference.

Reading needs no thread of its own: whatever makes it possible (an answer, feedback) asks for one
more round, which reads on an I/O thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from taskmanager.channel import ChannelLimits, OutputChannel
from taskmanager.elements import Attempt, ChannelId
from taskmanager.error_report import describe_error
from taskmanager.messages import (
    Feedback,
    ReleaseResults,
    ResultDescriptor,
    ResultLost,
    SendResults,
    TaskDeploymentDescriptor,
    TaskId,
)
from taskmanager.partition_file import PartitionFile, ResultReleased
from taskmanager.result_partition import Link
from taskmanager.result_writer import channels_on_disk

if TYPE_CHECKING:
    from taskmanager.task_services import TaskServices

#: Elements as they travel, and the channels they are for.
Blocks = list[tuple[OutputChannel, bytes]]


class BlockingResults:
    """Of one TaskManager. Thread-safe; at most one execution of each task has results."""

    def __init__(self, services: TaskServices) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._files: dict[TaskId, tuple[Attempt, dict[str, PartitionFile]]] = {}
        self._limits = ChannelLimits()  # those of the job, once a task is there
        self._readers: dict[ChannelId, ResultReader] = {}

    def create(
        self, descriptor: TaskDeploymentDescriptor, limits: ChannelLimits
    ) -> dict[str, PartitionFile]:
        """Files by edge for what the task will put out; older ones of its own are dropped."""
        self._limits = limits
        files = {
            output.edge.id: PartitionFile(channels_on_disk(output))
            for output in descriptor.outputs
            if output.blocking
        }
        with self._lock:
            _, old = self._files.pop(descriptor.task, (None, {}))
            if files:
                self._files[descriptor.task] = descriptor.attempt, files
        _close(old)
        return files

    def send(self, message: SendResults) -> None:
        """Begin to send; what is not here is reported as lost."""
        for result in message.results:
            attempt, files = self._files.get(result.producer, (None, {}))
            file = files.get(result.edge_id)
            if attempt != result.produced_by or file is None:
                self._services.report(
                    ResultLost(result.producer, result.produced_by, "they are not here")
                )
                continue
            reader = ResultReader(result, message.attempt, file, self._services, self._limits)
            with self._lock:
                known = self._readers.get(result.channels[0][0])
                if known is not None and known.attempt >= message.attempt:
                    continue  # repeated or late
                self._readers.update((channel, reader) for channel, _ in result.channels)
            reader.wake_up()

    def on_feedback(self, feedback: Feedback) -> None:
        """What a task has consumed of results that are sent from here."""
        reader = self._readers.get(feedback.channel)
        if reader is not None:
            reader.on_feedback(feedback)

    def release(self, message: ReleaseResults) -> None:
        """Drop them, unless a newer attempt has made them again."""
        for task in message.tasks:
            with self._lock:
                attempt, files = self._files.get(task, (None, {}))
                if attempt != message.attempt:
                    continue
                del self._files[task]
                for channel in [
                    channel
                    for channel, reader in self._readers.items()
                    if (reader.result.producer, reader.result.produced_by) == (task, attempt)
                ]:
                    del self._readers[channel]
            _close(files)

    def close(self) -> None:
        """Drop all: the TaskManager ends."""
        with self._lock:
            files = [file for _, of_task in self._files.values() for file in of_task.values()]
            self._files, self._readers = {}, {}
        for file in files:
            file.close()


def _close(files: dict[str, PartitionFile]) -> None:
    for file in files.values():
        file.close()


class ResultReader:
    """Sends one result to one attempt of tasks that consume it."""

    def __init__(
        self,
        result: ResultDescriptor,
        attempt: Attempt,
        file: PartitionFile,
        services: TaskServices,
        limits: ChannelLimits,
    ) -> None:
        self.result = result
        self.attempt = attempt
        self._file = file
        self._services = services
        self._limits = limits
        self._channels = {channel: OutputChannel(channel, limits) for channel, _ in result.channels}
        self._next_block = dict.fromkeys(self._channels, 0)
        by_peer: dict[str, list[OutputChannel]] = {}
        for channel, peer in result.channels:
            by_peer.setdefault(peer, []).append(self._channels[channel])
        self._links = [
            Link(peer, channels, attempt, services.transport, self.wake_up, limits)
            for peer, channels in by_peer.items()
        ]
        self._lock = threading.Lock()
        self._busy = False  # a round is under way: it alone touches the channels
        self._again = False

    def on_feedback(self, feedback: Feedback) -> None:
        """On any thread."""
        channel = self._channels.get(feedback.channel)
        if channel is not None and feedback.attempt == self.attempt:
            channel.on_feedback(feedback.consumed, feedback.demand)
            self.wake_up()

    def wake_up(self) -> None:
        """Something can go on: one more round, after the one that is under way. On any thread."""
        with self._lock:
            self._again = self._busy
            if self._busy:
                return
            self._busy = True
        self._services.run_async(self._read, self._send)

    def _read(self) -> Blocks:
        """What there is room for."""
        return [block for channel in self._channels.values() for block in self._blocks_of(channel)]

    def _blocks_of(self, channel: OutputChannel) -> Iterator[tuple[OutputChannel, bytes]]:
        if not channel.has_room():
            return
        # Of what is broadcast there is one copy for all.
        number = min(channel.id.downstream - self.result.first, self._file.channels - 1)
        blocks, size = self._file.blocks(number), 0
        first = self._next_block[channel.id]
        for block in range(first, min(blocks, first + self._limits.elements_max)):
            yield channel, self._file.read(number, block)
            self._next_block[channel.id] = block + 1
            size += self._file.length(number, block)
            if size >= self._limits.bytes_max:
                break

    def _send(self, blocks: Blocks | None, error: BaseException | None) -> None:
        try:
            if error is not None:
                raise error
            for channel, payload in blocks or ():
                channel.append_sealed(payload)
            for link in self._links:
                link.flush()
        except ResultReleased:
            return  # and stays busy: it does nothing any more
        except Exception as raised:
            lost = ResultLost(self.result.producer, self.result.produced_by, describe_error(raised))
            self._services.report(lost)
            return
        with self._lock:
            if not self._again:
                self._busy = False
                return
            self._again = False
        self._services.run_async(self._read, self._send)
