"""What a task puts out for the next stage of a job in BATCH mode, on its way to the disk."""

from __future__ import annotations

from dataflow.common.batch import ArrowBatch, RowBatch
from dataflow.graph.job_graph import Partitioning
from taskmanager.channel import ChannelLimits, OutputChannel, encode
from taskmanager.elements import LatencyMarker
from taskmanager.messages import OutputDescriptor
from taskmanager.partition_file import PartitionFile

#: What a task gathers for one edge, all channels together, before it is written.
GATHERED_BYTES_MAX = 16 << 20
GATHERED_ROWS_MAX = 1 << 16
#: As long as it is not known how large rows are.
FIRST_ROWS_MAX = 1 << 11


def channels_on_disk(output: OutputDescriptor) -> int:
    """All subtasks read the same of what is broadcast, so that is written once."""
    broadcast = output.edge.partitioning is Partitioning.BROADCAST
    return 1 if broadcast else len(output.peers)


class ResultWriter:
    """In the place of links: writes what the channels of one edge have gathered."""

    def __init__(
        self, channels: list[OutputChannel], file: PartitionFile, limits: ChannelLimits
    ) -> None:
        self._channels = channels
        self._file = file
        self._limits = limits
        self._rows = 0
        self._bytes = 0

    def flush(self) -> None:
        """Batches that are full; all of them, once they are too much to be held together."""
        gathered = 0
        for number, channel in enumerate(self._channels):
            self._write(number, channel)
            gathered += channel.gathered
        most = FIRST_ROWS_MAX
        if self._rows:
            most = min(GATHERED_ROWS_MAX, GATHERED_BYTES_MAX * self._rows // self._bytes)
        if gathered > most:
            for number, channel in enumerate(self._channels):
                channel.seal()
                self._write(number, channel)

    def finish(self) -> None:
        """Nothing follows."""
        self.flush()
        self._file.finish()

    def _write(self, number: int, channel: OutputChannel) -> None:
        for element in channel.take_sealed():
            if isinstance(element, LatencyMarker):
                continue  # it would measure how long the stage takes
            payload = encode(element, self._limits)
            if isinstance(element, (RowBatch, ArrowBatch)):
                self._rows += len(element)
                self._bytes += len(payload)
            self._file.write(number, payload)
