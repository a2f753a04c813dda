"""Sessions by event time with one gap for all, without a trigger of their own.

What ``TriggeredWindowOperator`` does for any merging windows takes a window object, a trigger and
several timers per record. Here a record that belongs to the session of its key, as most do, only
moves the session's end. A session is *due* once, at the end it had when that was noted; if it has
grown since, it is due again at the new one. When keys have something due is a heap in memory.

The sessions of a key are the state ``$window``, a list of them in order of time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, MutableMapping
from heapq import heappop, heappush
from operator import itemgetter
from typing import Any

from dataflow.common.batch import MAX_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.datastream.windowing.assigners import EventTimeSessionWindows
from dataflow.datastream.windowing.windows import TimeWindow
from dataflow.graph.specs import WindowSpec
from taskmanager.operators.collector import BATCH_ROWS
from taskmanager.operators.window_base import KeyedWindowOperator

#: A session is a list, because most records change it: when it starts (inclusive) and ends
#: (exclusive), its cell, the time at which it is due, and whether it has fired.
START, END, CELL, DUE, FIRED = range(5)
Session = list[Any]


class SessionWindowOperator(KeyedWindowOperator):
    """Fires a session once the watermark has passed it, and again for each late record."""

    def __init__(self, spec: WindowSpec) -> None:
        super().__init__(spec)
        assert isinstance(spec.assigner, EventTimeSessionWindows)
        self._gap = spec.assigner.session_gap
        #: How a record gets into a cell that is not empty, if it is as simple as that.
        self._reduce = None if spec.reduce is None else spec.reduce.reduce
        self._due: list[tuple[int, int, Any]] = []  # heap of time, number, key
        self._next_due = 0

    def open(self) -> None:
        self._sessions: MutableMapping[Any, list[Session]] = self.open_windows("sessions")
        if self._lateness:  # contents live on after they were emitted
            self.backend.shares_mutable = True
        for key, sessions in self._sessions.items():
            for session in sessions:
                self._note(min(session[DUE], self._due_at(session)), key)
        super().open()

    # ------------------------------------------------------------------------------------- records

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        self.require_timestamps(batch)
        key_of, backend, known = self.key_selector, self.backend, self.backend.known_keys
        gap, sessions_of = self._gap, self._sessions.get
        add, reduce = self._contents.add, self._reduce
        # The end of a session that is not late lies behind this.
        watermark = max([self.marks.current, *self.marks.ahead.values()])
        self.backend.read_ahead(batch.rows, key_of)
        pending = iter(batch.rows)
        key: Any = None
        try:
            for value, timestamp in zip(pending, batch.timestamps or [], strict=True):
                key = key_of(value)
                sessions = sessions_of(key)
                if sessions is not None:
                    session = sessions[-1]  # growing, the last one meets no other
                    if session[0] <= timestamp <= session[1] and session[1] > watermark + 1:
                        if timestamp + gap > session[1]:
                            session[1] = timestamp + gap
                        if reduce is None:
                            add(session[2], value, timestamp)
                        else:
                            cell = session[2]
                            cell[0] = reduce(cell[0], value)
                        continue
                if key not in known:
                    backend.key_group(key)
                backend.current_key = key
                if timestamp + gap > watermark + 1 and (
                    sessions is None or timestamp > sessions[-1][1]
                ):
                    self._begin(key, self._sessions.setdefault(key, []), value, timestamp)
                else:
                    self._add(key, value, timestamp)
        except BaseException as error:
            self.fail_for_key(error, key, batch.rows, pending)
        self._collector.flush()

    def _begin(self, key: Any, sessions: list[Session], value: Any, timestamp: int) -> Session:
        """Start a session, behind the others of its key."""
        session: Session = [timestamp, timestamp + self._gap, [], 0, False]
        sessions.append(session)
        self._contents.add(session[CELL], value, timestamp)
        self._note_due(key, session)
        return session

    def _add(self, key: Any, value: Any, timestamp: int) -> None:
        """A record that is late, or starts a session, or may make several sessions one."""
        watermark = self.current_watermark()
        sessions = self._sessions.get(key, [])
        start, end = timestamp, timestamp + self._gap
        is_last = not sessions or start > sessions[-1][END]
        touching = [] if is_last else [s for s in sessions if s[START] <= end and start <= s[END]]
        if not touching:
            if end - 1 + self._lateness <= watermark:
                self.take_late(value, timestamp)
                return
            self._sessions[key] = sessions
            session = self._begin(key, sessions, value, timestamp)
            if not is_last:
                sessions.sort(key=itemgetter(START))
        else:
            session, *later = touching
            session[START] = min(start, session[START])
            session[END] = max(end, session[END], *(other[END] for other in later))
            for other in later:
                self._contents.merge(session[CELL], other[CELL])
            if later:
                sessions[:] = [s for s in sessions if not any(s is other for other in later)]
            self._contents.add(session[CELL], value, timestamp)
        if session[END] - 1 <= watermark:
            if not session[FIRED]:  # else it is noted already, for its end then or now
                session[FIRED] = True
                self._note_due(key, session)
            self._fire(key, session)
        elif session[FIRED]:
            session[FIRED] = False  # it has grown, and will fire once more
            self._note_due(key, session)

    # ---------------------------------------------------------------------------------- event time

    def process_watermark(self, timestamp: int) -> None:
        if self.marks.advance(timestamp):
            settle = self.backend.settle
            for time, _, key in self._take_due(timestamp):
                for session in self._sessions.get(key, ()):
                    if session[DUE] <= time or self._due_at(session) <= time:
                        self._on_due(key, session, timestamp)
                        break  # another has an entry of its own
                if len(self._collector) >= BATCH_ROWS:
                    self._collector.flush()
                if settle is not None:
                    settle()
            self._collector.flush()
        self.output.emit_watermark(timestamp)

    def _take_due(self, timestamp: int) -> Iterator[tuple[int, int, Any]]:
        """Remove what is due, in its order. What is noted meanwhile is due later."""
        due = self._due
        for _ in range(len(due) // 16):
            if due[0][0] > timestamp:
                return
            yield heappop(due)
        if due and due[0][0] <= timestamp:
            # To sort what nearly is in order costs less than to take so many out one by one, and
            # the rest of a sorted list is a heap.
            due.sort()
            ready = due[: bisect_right(due, timestamp, key=itemgetter(0))]
            del due[: len(ready)]
            yield from ready

    def _note_due(self, key: Any, session: Session) -> None:
        """Look at the session when it is to fire, or to be forgotten if it has fired."""
        session[DUE] = self._due_at(session)
        self._note(session[DUE], key)

    def _note(self, time: int, key: Any) -> None:
        self._next_due += 1
        heappush(self._due, (time, self._next_due, key))

    def _due_at(self, session: Session) -> int:
        last: int = session[END] - 1
        return min(last + self._lateness if session[FIRED] else last, MAX_TIMESTAMP)

    def _on_due(self, key: Any, session: Session, watermark: int) -> None:
        if self._due_at(session) > watermark:  # it has grown
            self._note_due(key, session)
            return
        self.backend.current_key = key
        try:
            if not session[FIRED]:
                session[FIRED] = True
                self._fire(key, session)
                if self._lateness and self._due_at(session) > watermark:
                    self._note_due(key, session)
                    return
            sessions = self._sessions[key]
            if len(sessions) == 1:
                del self._sessions[key]
            elif sessions[0] is session:
                del sessions[0]
            else:
                sessions[:] = [other for other in sessions if other is not session]
            if self._clears:
                self.clear_function(TimeWindow(session[START], session[END]))
        except BaseException as error:
            self.fail(error, f"firing the session [{session[START]}, {session[END]})")

    def _fire(self, key: Any, session: Session) -> None:
        elements = self._contents.elements(session[CELL])
        if self.function is None:
            self._collector.take(elements, min(session[END] - 1, MAX_TIMESTAMP))
        else:
            self.emit(key, TimeWindow(session[START], session[END]), elements)
