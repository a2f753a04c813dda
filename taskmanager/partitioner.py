"""Distributes the records of a batch over the channels of a result partition."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dataflow.common.batch import ArrowBatch, Batch, RowBatch
from dataflow.common.keys import (
    KeyGroupMemo,
    is_hashable,
    key_groups_of_columns,
    subtask_for,
    why_no_key,
)
from dataflow.errors import JobExecutionError, KeyTypeError
from state.aliasing import detached_rows
from taskmanager.channel import OutputChannel


class Partitioner:
    """Puts every record of a batch on its channel(s)."""

    #: What it calls of the user's, by which it was made.
    methods: Sequence[Callable[..., Any]] = ()

    def __init__(self, channels: list[OutputChannel]) -> None:
        assert channels
        self.channels = channels

    def emit(self, batch: Batch) -> None:
        raise NotImplementedError

    def _append(self, channel: OutputChannel, batch: Batch) -> None:
        if isinstance(batch, RowBatch):
            channel.append_rows(batch.rows, batch.timestamps)
        else:
            channel.append_arrow(batch)


class ForwardPartitioner(Partitioner):
    """Everything to one channel: FORWARD and GLOBAL."""

    def emit(self, batch: Batch) -> None:
        self._append(self.channels[0], batch)


class BroadcastPartitioner(Partitioner):
    """Everything to every channel; records that can be changed in place are of its own in each.

    Channels within a process pass them on as they are.
    """

    def emit(self, batch: Batch) -> None:
        for channel in self.channels[:-1]:
            own = batch
            if isinstance(batch, RowBatch):
                own = RowBatch(detached_rows(batch.rows), batch.timestamps)
            self._append(channel, own)
        self._append(self.channels[-1], batch)


class RoundRobinPartitioner(Partitioner):
    """Record by record over the channels in turn: REBALANCE, and RESCALE over its local group."""

    def __init__(self, channels: list[OutputChannel], start: int) -> None:
        super().__init__(channels)
        self._next = start % len(channels)

    def emit(self, batch: Batch) -> None:
        count, size = len(self.channels), len(batch)
        if count == 1:
            self._append(self.channels[0], batch)
            return
        for position in range(min(count, size)):
            channel = self.channels[(self._next + position) % count]
            if isinstance(batch, RowBatch):
                stamps = batch.timestamps
                channel.append_rows(
                    batch.rows[position::count],
                    None if stamps is None else stamps[position::count],
                )
            else:
                channel.append_arrow(batch.take(pa.array(np.arange(position, size, count))))
        self._next = (self._next + size) % count


class ChoosingPartitioner(Partitioner):
    """``choose(row) -> channel index``: SHUFFLE, CUSTOM and SPLITS."""

    def __init__(self, channels: list[OutputChannel], choose: Callable[[Any], int]) -> None:
        super().__init__(channels)
        self._choose = choose

    def emit(self, batch: Batch) -> None:
        rows = batch if isinstance(batch, RowBatch) else batch.to_rows()
        choose = self._choose
        chosen = [choose(row) for row in rows.rows]
        channels = range(len(self.channels))
        for wrong in set(map(type, chosen)) - {int}:
            if not hasattr(wrong, "__index__"):
                raise ValueError(
                    f"the partitioner chose a channel of type {wrong.__name__}; "
                    f"an int from 0 to {channels[-1]} is allowed"
                )
        if chosen and (min(chosen) < 0 or max(chosen) >= len(channels)):
            outside = next(c for c in chosen if c not in channels)
            raise ValueError(
                f"the partitioner chose channel {outside}; 0 to {channels[-1]} are allowed"
            )
        _emit_rows(self.channels, rows, chosen)


class _Routes(dict[Any, Callable[[Any], None]]):
    """Key to the ``append`` of its channel's bucket; hashes once per distinct key."""

    def __init__(self, memo: KeyGroupMemo, buckets: list[list[Any]]) -> None:
        super().__init__()
        self._memo = memo
        self._appends = [bucket.append for bucket in buckets]

    def __missing__(self, key: Any) -> Callable[[Any], None]:
        if len(self) >= KeyGroupMemo.KEYS_MAX:
            self.clear()
        append = self[key] = self._appends[self._memo.learn(key)]
        return append


class HashPartitioner(Partitioner):
    """By key group.

    A key selector with an attribute ``columns`` names the Arrow columns that it reads, and Arrow
    batches then stay Arrow.
    """

    def __init__(
        self,
        channels: list[OutputChannel],
        key_selector: Callable[[Any], Any],
        max_parallelism: int,
    ) -> None:
        super().__init__(channels)
        self._key_selector = key_selector
        self._max_parallelism = max_parallelism
        count = len(channels)
        memo = KeyGroupMemo(
            max_parallelism, lambda group: subtask_for(group, max_parallelism, count)
        )
        # Filled and emptied within one call; kept, so that the routes into them can be.
        self._rows: list[list[Any]] = [[] for _ in channels]
        self._stamps: list[list[int]] = [[] for _ in channels]
        self._routes = _Routes(memo, self._rows)
        self._stamp_routes = _Routes(memo, self._stamps)

    def emit(self, batch: Batch) -> None:
        if len(self.channels) == 1:
            self._append(self.channels[0], batch)
            return
        if isinstance(batch, ArrowBatch):
            columns = getattr(self._key_selector, "columns", None)
            if columns is not None:
                self._emit_arrow(batch, columns)
                return
            batch = batch.to_rows()
        select, routes = self._key_selector, self._routes
        stamps = batch.timestamps
        key: Any = 0  # a good key: what the selector raises for the first row is its own
        try:
            if stamps is None:
                for row in batch.rows:
                    key = select(row)
                    routes[key](row)
            else:
                stamp_routes = self._stamp_routes
                for row, stamp in zip(batch.rows, stamps, strict=True):
                    key = select(row)
                    routes[key](row)
                    stamp_routes[key](stamp)
        except TypeError:
            _refuse_unhashable(key)
            raise
        for channel, rows, row_stamps in zip(self.channels, self._rows, self._stamps, strict=True):
            if rows:
                channel.append_rows(rows, None if stamps is None else row_stamps)
                rows.clear()
                row_stamps.clear()

    def _emit_arrow(self, batch: ArrowBatch, columns: tuple[str, ...]) -> None:
        data, count = batch.data, len(self.channels)
        try:
            keys = [data.column(name) for name in columns]
        except KeyError as error:
            names = ", ".join(map(repr, data.schema.names[:20]))
            raise JobExecutionError(
                f"key_by({', '.join(map(repr, columns))}): {error.args[0]}; there is {names}"
            ) from None
        groups = key_groups_of_columns(keys, self._max_parallelism)
        chosen = (groups * count // self._max_parallelism).astype(np.uint16)
        # Sorting (numbers this short by radix) costs the same for any number of channels.
        sorted_batch = batch.take(pa.array(np.argsort(chosen, kind="stable")))
        start = 0
        for channel, size in zip(
            self.channels, np.bincount(chosen, minlength=count).tolist(), strict=True
        ):
            if size:
                channel.append_arrow(sorted_batch.slice(start, size))
                start += size


def _refuse_unhashable(key: Any) -> None:
    """Raise KeyTypeError if it was the key, not the user's selector, that raised TypeError."""
    if not is_hashable(key):
        raise KeyTypeError(why_no_key(key, "is not hashable")) from None


def _emit_rows(channels: list[OutputChannel], batch: RowBatch, chosen: list[int]) -> None:
    """Row *i* to channel ``chosen[i]``, keeping the order on each."""
    stamps = batch.timestamps
    buckets: list[list[Any]] = [[] for _ in channels]
    for row, index in zip(batch.rows, chosen, strict=True):
        buckets[index].append(row)
    stamp_buckets: list[list[int]] = [[] for _ in channels]
    if stamps is not None:
        for stamp, index in zip(stamps, chosen, strict=True):
            stamp_buckets[index].append(stamp)
    for channel, bucket, stamp_bucket in zip(channels, buckets, stamp_buckets, strict=True):
        if bucket:
            channel.append_rows(bucket, None if stamps is None else stamp_bucket)


def shuffle_chooser(count: int, seed: str) -> Callable[[Any], int]:
    """Uniformly random, reproducible for a seed."""
    generator = random.Random(seed)
    randrange = generator.randrange
    return lambda _row: randrange(count)


def custom_chooser(
    partition: Callable[[Any, int], int], key_selector: Callable[[Any], Any], count: int
) -> Callable[[Any], int]:
    """A user's ``partition(key, count)``."""
    return lambda row: partition(key_selector(row), count)
