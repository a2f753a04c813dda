"""Interval joins: pairs of records of one key whose timestamps are close to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dataflow.common.callables import require_plain
from dataflow.common.time import DurationLike, to_millis
from dataflow.common.typeinfo import TypeInformation
from dataflow.datastream.arguments import instance_of, title_of
from dataflow.datastream.connected_streams import two_inputs
from dataflow.datastream.join_functions import ProcessJoinFunction, as_process_join_function
from dataflow.datastream.output_tag import OutputTag
from dataflow.errors import JobGraphError
from dataflow.graph.specs import IntervalJoinSpec

if TYPE_CHECKING:
    from dataflow.datastream.data_stream import DataStream, KeyedStream


class IntervalJoin:
    """Two keyed streams to be joined; ``between`` says how close in time."""

    def __init__(self, left: KeyedStream, right: KeyedStream) -> None:
        self._left = left
        self._right = right

    def between(self, lower_bound: DurationLike, upper_bound: DurationLike) -> IntervalJoined:
        """Pairs for which ``left + lower_bound <= right <= left + upper_bound`` (event times).

        Bounds are in ms if they are ints, and may be negative. Raises JobGraphError or ConfigError.
        """
        lower = to_millis(lower_bound, "between: lower_bound", at_least=None)
        upper = to_millis(upper_bound, "between: upper_bound", at_least=None)
        if lower > upper:
            raise JobGraphError(f"between({lower}, {upper}): the lower bound is above the upper")
        return IntervalJoined(self._left, self._right, lower, upper)


class IntervalJoined:
    """An interval join whose bounds are known; ``process`` makes it an operator.

    Every other method changes the join and returns it.
    """

    def __init__(self, left: KeyedStream, right: KeyedStream, lower: int, upper: int) -> None:
        self._left = left
        self._right = right
        self._lower = lower
        self._upper = upper
        self._lower_exclusive = self._upper_exclusive = False
        self._late: list[OutputTag | None] = [None, None]
        self._outer = (False, False)

    def lower_bound_exclusive(self) -> IntervalJoined:
        """``left + lower_bound < right``."""
        self._lower_exclusive = True
        return self

    def upper_bound_exclusive(self) -> IntervalJoined:
        """``right < left + upper_bound``."""
        self._upper_exclusive = True
        return self

    def side_output_left_late_data(self, output_tag: OutputTag) -> IntervalJoined:
        """Send left records that are too late to ``output_tag`` instead of dropping them."""
        self._late[0] = instance_of("side_output_left_late_data", output_tag, OutputTag)
        return self

    def side_output_right_late_data(self, output_tag: OutputTag) -> IntervalJoined:
        """Send right records that are too late to ``output_tag`` instead of dropping them."""
        self._late[1] = instance_of("side_output_right_late_data", output_tag, OutputTag)
        return self

    def left_outer(self) -> IntervalJoined:
        """Also left records without a match, with None on the right.

        They come once the watermark says that no match can come any more, with their own
        timestamp; so that they are not late there, the watermark that operators downstream see is
        held back by the upper bound. Flink has this in SQL only, as the other outer joins.
        """
        self._outer = (True, False)
        return self

    def right_outer(self) -> IntervalJoined:
        """As ``left_outer``, for right records; the lower bound holds the watermark back."""
        self._outer = (False, True)
        return self

    def full_outer(self) -> IntervalJoined:
        """``left_outer`` and ``right_outer`` in one."""
        self._outer = (True, True)
        return self

    def process(
        self,
        process_join_function: ProcessJoinFunction | Callable[[Any, Any], Any],
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Give each pair to the function; a plain callable of both returns the one result.

        Results carry the later one of the two timestamps.
        """
        given = process_join_function
        if not isinstance(given, ProcessJoinFunction):
            require_plain("process", given)
        function = as_process_join_function(given)
        require_plain("process", function, "process_element", may_yield=True)
        lower = self._lower + self._lower_exclusive
        upper = self._upper - self._upper_exclusive
        if lower > upper:
            raise JobGraphError(
                f"between({self._lower}, {self._upper}) with exclusive bounds leaves no time at all"
            )
        spec = IntervalJoinSpec(
            function=function,
            key_selectors=(self._left._key_selector, self._right._key_selector),
            lower_ms=lower,
            upper_ms=upper,
            late_tags=(self._late[0], self._late[1]),
            outer=self._outer,
        )
        title = title_of("Interval Join", given)
        kind = "interval_join"
        return two_inputs(self._left, self._right, kind, title, spec, output_type, stateful=True)
