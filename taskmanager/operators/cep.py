"""Patterns in the events of each key.

In event time the events of a key wait in its state until the watermark has passed them, and are
then processed in the order of their timestamps. An *alarm* per key says when it is next to be
looked at: when its earliest event is due, or its earliest partial match too old. So a watermark
costs only what there is to do, and an event that cannot begin a match, while no match has begun,
costs one condition.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from functools import cmp_to_key, partial
from heapq import heappop, heappush
from typing import Any

from dataflow.cep.functions import Match, PatternProcessFunction, TimedOutPartialMatchHandler
from dataflow.common.batch import MAX_TIMESTAMP, MIN_TIMESTAMP, ArrowBatch, RowBatch
from dataflow.common.config_options import ConfigOptions
from dataflow.common.configuration import Configuration
from dataflow.datastream.function import Function
from dataflow.datastream.output_tag import OutputTag
from dataflow.errors import JobExecutionError, RestoreError
from dataflow.graph.specs import CepSpec
from state.aliasing import detached
from state.snapshot import OperatorSnapshot
from taskmanager.cep.facts import ConditionFailed
from taskmanager.cep.matching import Matching
from taskmanager.cep.nfa import Nfa, PatternFailed, as_match
from taskmanager.operators.base import OperatorContext, Output
from taskmanager.operators.collector import BATCH_ROWS, Collector
from taskmanager.operators.error_policy import ProcessElement as ProcessMatch
from taskmanager.operators.error_policy import Skip
from taskmanager.operators.function_operator import not_iterable
from taskmanager.operators.keyed_operator import KeyedOperator
from taskmanager.operators.runtime_context import ConditionRuntimeContext

_timestamp_of = operator.itemgetter(0)


class CepOperator(KeyedOperator):
    """Emits what the function makes of matches and of partial matches that timed out.

    Results carry the timestamp of the event that completed the match, or the deadline that did; in
    processing time none. Events at or behind the watermark go to the late tag, or are counted in
    ``numLateRecordsDropped``. The watermark is part of the snapshot, of each key group: what had
    been late before a restart still is.
    """

    def __init__(self, spec: CepSpec, on_error: Skip | None = None) -> None:
        super().__init__(spec.function, spec.key_selector)
        self._on_error = on_error
        self._pattern = spec.pattern
        self._late_tag = spec.late_tag
        self._event_time = spec.event_time
        self._order = None if spec.comparator is None else cmp_to_key(spec.comparator)
        self._watermark = MIN_TIMESTAMP
        #: The restored watermarks of all and only the key groups that are ahead of this one.
        self._ahead: dict[int, int] = {}
        self._late_dropped = 0
        self._process_match: ProcessMatch = spec.function.process_match
        self._process_late: ProcessMatch | None = None
        if isinstance(spec.function, TimedOutPartialMatchHandler):
            self._process_late = spec.function.process_timed_out_match
        #: What conditions have to be opened, with the part that each was given to.
        self._conditions = {
            id(predicate.owner): (predicate.owner, predicate.pattern)
            for predicate in spec.pattern.conditions()
            if predicate.owner is not None
        }
        self._opened_conditions: list[tuple[Function, str]] = []
        self._conditions_context: ConditionRuntimeContext | None = None

    # ---------------------------------------------------------------------------------- life cycle

    def setup(self, context: OperatorContext, output: Output) -> None:
        super().setup(context, output)
        self._collector = Collector(output, self.backend)
        self.backend.shares_mutable = True  # events that were emitted may still be in the state
        limit = Configuration(context.configuration).get(ConfigOptions.CEP_PARTIAL_MATCHES_MAX)
        self._nfa = Nfa(self._pattern, limit, context.processing_time)
        context.add_metric("numLateRecordsDropped", lambda: self._late_dropped)
        if self._on_error is not None:
            around = partial(
                self._on_error.around,
                collector=self._collector,
                context=context,
                stamped=self._event_time,
            )
            self._process_match = around(self._process_match, method="process_match")
            if self._process_late is not None:
                self._process_late = around(self._process_late, method="process_timed_out_match")

    def open(self) -> None:
        #: Events whose time has not come: (timestamp, event), of each key.
        self._waiting = self.backend.table("$cep-waiting", "events").namespace(None)
        #: Of all and only the keys that have some partial match.
        self._matchings = self.backend.table("$cep-matching", "partial matches").namespace(None)
        self._alarms = _Alarms()
        for key, events in self._waiting.items():
            events.sort(key=_timestamp_of)
            self._alarms.set(key, events[0][0])
        for key, matching in self._matchings.items():
            self._resolve(matching)
            self._set_alarm(key, matching)
        self._context = _MatchContext(self)
        super().open()
        runtime_context = self._conditions_context = ConditionRuntimeContext(self.context)
        for condition, pattern in self._conditions.values():
            self._opened_conditions.append((condition, pattern))
            try:
                condition.open(runtime_context)
            except BaseException as error:
                self.fail(error, f"in open() of a condition of pattern {pattern!r}")

    def close(self) -> None:
        try:
            while self._opened_conditions:
                condition, pattern = self._opened_conditions.pop()
                try:
                    condition.close()
                except BaseException as error:
                    self.fail(error, f"in close() of a condition of pattern {pattern!r}")
        finally:
            if self._conditions_context is not None:
                self._conditions_context.release()
            super().close()

    def restore(self, snapshot: OperatorSnapshot) -> None:
        super().restore(snapshot)
        restored = self.backend.watermarks
        self._watermark = min(restored.values(), default=MIN_TIMESTAMP)
        self._ahead = {g: mark for g, mark in restored.items() if mark > self._watermark}

    def snapshot(self, checkpoint_id: int) -> OperatorSnapshot:
        if self._event_time:
            ahead, watermark = self._ahead, self._watermark
            self.backend.watermarks = {
                group: ahead.get(group, watermark) for group in self.context.key_group_range
            }
        return super().snapshot(checkpoint_id)

    def _resolve(self, matching: Matching) -> None:
        try:
            matching.resolve(self._nfa.states)
        except KeyError as error:
            raise RestoreError(
                f"operator {self.context.operator_name!r}: the checkpoint has partial matches at "
                f"{error.args[0]!r}, which the pattern no longer has; keep the pattern, or give "
                "the operator another uid to start it empty"
            ) from None

    # ------------------------------------------------------------------------------------- records

    def process_batch(self, batch: RowBatch | ArrowBatch) -> None:
        assert isinstance(batch, RowBatch)
        if not self._event_time:
            self._process_now(batch)
        elif batch.timestamps is None:
            raise JobExecutionError(
                f"operator {self.context.operator_name!r} looks for patterns in event time, but "
                "its records have no timestamps: give the WatermarkStrategy a timestamp assigner, "
                "or use in_processing_time()"
            )
        else:
            self._keep(batch.rows, batch.timestamps)
        self._collector.flush()

    def _keep(self, rows: list[Any], timestamps: list[int]) -> None:
        """Let events wait until their time has come."""
        key_of, known, alarms = self.key_selector, self.backend.known_keys, self._alarms
        waiting, watermark, ahead = self._waiting, self._watermark, self._ahead
        pending = iter(rows)
        key: Any = None
        try:
            for value, timestamp in zip(pending, timestamps, strict=True):
                if timestamp <= watermark:
                    self._late(value, timestamp)
                    continue
                key = key_of(value)
                if key not in known:
                    self.backend.key_group(key)
                if ahead and timestamp <= ahead.get(self.backend.key_group(key), watermark):
                    self._late(value, timestamp)
                    continue
                events = waiting.get(key)
                if events is None:
                    waiting[key] = [(timestamp, value)]
                    alarms.set(key, timestamp)
                else:
                    events.append((timestamp, value))
                    if timestamp < alarms.at[key]:
                        alarms.set(key, timestamp)
        except BaseException as error:
            self.fail_for_key(error, key, rows, pending)

    def _late(self, value: Any, timestamp: int) -> None:
        if self._late_tag is None:
            self._late_dropped += 1
        else:
            self._collector.take_side(self._late_tag, value, timestamp)

    def _process_now(self, batch: RowBatch) -> None:
        now = self.context.processing_time()
        key_of, known = self.key_selector, self.backend.known_keys
        pending = iter(batch.rows)
        key: Any = None
        try:
            for value in pending:
                key = key_of(value)
                if key not in known:
                    self.backend.key_group(key)
                self._run(key, [(now, value)], now)
        except BaseException as error:
            self.fail_for_key(error, key, batch.rows, pending)

    # ---------------------------------------------------------------------------------------- time

    def process_watermark(self, timestamp: int) -> None:
        if timestamp > self._watermark:
            self._watermark = timestamp
            if self._ahead:
                self._ahead = {g: mark for g, mark in self._ahead.items() if mark > timestamp}
            if self._event_time:
                self._ring(timestamp)
        self.output.emit_watermark(timestamp)

    def advance_key(self, timestamp: int) -> None:
        if self._event_time:
            self.process_watermark(timestamp - 1)

    def end_of_key(self) -> None:
        """What is left of its partial matches times out, also in processing time."""
        if not self._event_time:
            self._ring(MAX_TIMESTAMP)
        super().end_of_key()
        self._alarms = _Alarms()
        self._watermark = MIN_TIMESTAMP

    def next_timer_at(self) -> int | None:
        return None if self._event_time else self._alarms.next_at()

    def on_processing_time(self, now: int) -> None:
        if not self._event_time:
            self._ring(now)

    def _ring(self, now: int) -> None:
        """Look at the keys that have something to do up to ``now``."""
        settle = self.backend.settle
        while (key := self._alarms.pop_due(now)) is not _NO_KEY:
            self._run(key, self._take_due(key, now), now)
            if len(self._collector) >= BATCH_ROWS:
                self._collector.flush()
            if settle is not None:
                settle()
        self._collector.flush()

    def _take_due(self, key: Any, now: int) -> list[tuple[int, Any]]:
        """The waiting events of a key up to ``now``, in their order."""
        events: list[tuple[int, Any]] | None = self._waiting.get(key)
        if events is None:
            return []
        events.sort(key=_timestamp_of)
        if events[-1][0] <= now:
            del self._waiting[key]
        else:
            count = bisect_right(events, now, key=_timestamp_of)
            self._waiting[key] = events[count:]
            events = events[:count]
        if self._order is not None:
            order = self._order
            try:
                events.sort(key=lambda each: (each[0], order(each[1])))
            except BaseException as error:
                self.fail(error, "in the comparator of the pattern")
        return events

    # ------------------------------------------------------------------------------------ matching

    def _run(self, key: Any, events: list[tuple[int, Any]], now: int) -> None:
        """Feed events to the matching of a key, and take that to ``now``."""
        self.backend.current_key = key
        old = self._matchings.get(key)
        matching = Matching() if old is None else old
        if not matching.resolved:
            self._resolve(matching)
        nfa, facts, first = self._nfa, self._nfa.facts, self._nfa.first_condition
        try:
            for timestamp, event in events:
                deadline = matching.deadline
                if deadline is not None and deadline <= timestamp:
                    self._advance(matching, timestamp)
                begun = False
                if first is not None and not matching.partials:
                    facts.begin(event, timestamp)
                    if not first(facts):
                        continue
                    begun = True
                for match in nfa.process(matching, event, timestamp, begun):
                    self._emit(as_match(match), timestamp)
            if matching.deadline is not None and matching.deadline <= now:
                self._advance(matching, now)
        except ConditionFailed as error:
            cause = error.__cause__ or error
            self.fail(cause, f"in a condition of pattern {error.pattern!r}")
        except PatternFailed as error:
            raise JobExecutionError(f"operator {self.context.operator_name!r}: {error}") from None
        if matching:
            if old is None:
                self._matchings[key] = matching
        elif old is not None:
            del self._matchings[key]
        self._set_alarm(key, matching)

    def _set_alarm(self, key: Any, matching: Matching) -> None:
        events = self._waiting.get(key)
        if events is not None:  # sorted, as it is after every alarm
            self._alarms.set(key, events[0][0])
        if matching.deadline is not None:
            self._alarms.set(key, matching.deadline)

    def _advance(self, matching: Matching, now: int) -> None:
        """What times out up to ``now``, one deadline after the other."""
        while (deadline := matching.deadline) is not None and deadline <= now:
            matches, late = self._nfa.advance(matching)
            for match in matches:
                self._emit(as_match(match), deadline)
            if self._process_late is not None:
                for node in late:
                    self._emit_timed_out(self._process_late, as_match(node), deadline)

    def emit_side(self, tag: OutputTag, value: Any, timestamp: int) -> None:
        self._collector.take_side(tag, value, timestamp if self._event_time else None)

    def _emit(self, match: Match, timestamp: int) -> None:
        self._context.current = timestamp
        produced: Any = None
        try:
            produced = self._process_match(match, self._context)
            if produced is not None:
                self._collector.take(produced, timestamp if self._event_time else None)
        except BaseException as error:
            self.fail(not_iterable(error, produced, "process_match"), _at(match, "match"))

    def _emit_timed_out(self, process_late: ProcessMatch, match: Match, timestamp: int) -> None:
        self._context.current = timestamp
        produced: Any = None
        try:
            produced = process_late(match, self._context)
            if produced is not None:
                self._collector.take(produced, timestamp if self._event_time else None)
        except BaseException as error:
            error = not_iterable(error, produced, "process_timed_out_match")
            self.fail(error, _at(match, "partial match"))


def _at(match: Match, what: str) -> str:
    return f"on a {what} of the patterns {', '.join(match)}"


_NO_KEY: Any = object()


class _Alarms:
    """When each key is next to be looked at; one alarm per key, the earliest that was set.

    An alarm that was replaced stays in the heap until it surfaces. A key's is replaced only by an
    earlier one, so there are few of those.
    """

    def __init__(self) -> None:
        self.at: dict[Any, int] = {}
        self._heap: list[tuple[int, int, Any]] = []
        self._count = 0

    def set(self, key: Any, timestamp: int) -> None:
        """Unless the key has an alarm that is as early."""
        if self.at.get(key, timestamp + 1) > timestamp:
            self.at[key] = timestamp
            self._count += 1
            heappush(self._heap, (timestamp, self._count, key))

    def next_at(self) -> int | None:
        heap = self._heap
        while heap and self.at.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: int) -> Any:
        """The key whose alarm is next, if it is due; else ``_NO_KEY``."""
        at = self.next_at()
        if at is None or at > now:
            return _NO_KEY
        key = heappop(self._heap)[2]
        del self.at[key]
        return key


class _MatchContext(PatternProcessFunction.Context):
    def __init__(self, operator: CepOperator) -> None:
        self._operator = operator
        self.current = 0

    def timestamp(self) -> int:
        return self.current

    def current_processing_time(self) -> int:
        return self._operator.context.processing_time()

    def output(self, output_tag: OutputTag, value: Any) -> None:
        if not isinstance(output_tag, OutputTag):
            raise TypeError(f"output() needs an OutputTag, and got {type(output_tag).__name__}")
        self._operator.emit_side(output_tag, detached(value), self.current)
