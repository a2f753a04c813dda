"""What can be set on one operator: name, uid, parallelism, chaining, slots, resources, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from dataflow.common.keys import MAX_MAX_PARALLELISM
from dataflow.common.time import DurationLike, to_millis
from dataflow.datastream.output_tag import OutputTag
from dataflow.datastream.slot_sharing_group import SlotSharingGroup
from dataflow.errors import JobGraphError
from dataflow.graph.transformation import ChainingStrategy, Transformation

if TYPE_CHECKING:
    from dataflow.datastream.stream_execution_environment import StreamExecutionEnvironment

S = TypeVar("S", bound="OperatorSettings")


class OperatorSettings:
    """Base of streams and sinks: settings of the operator that produces or ends the stream.

    Every setter returns the object itself. A parallelism that is none is refused at once, as in
    Flink; the rest is judged when the job is compiled, together with everything else that is wrong.
    """

    _env: StreamExecutionEnvironment
    _transformation: Transformation | None

    def _operator(self, setting: str) -> Transformation:
        if self._transformation is None:
            raise JobGraphError(
                f"{setting}() sets something on an operator, and this stream (of a union, a side "
                "output or a partitioning such as rebalance()) is none; set it on the operator "
                "before or after"
            )
        return self._transformation

    def get_name(self) -> str:
        """The operator's name."""
        return self._operator("get_name").name

    def name(self: S, name: str) -> S:
        """Name the operator in plans, logs and metrics; names need not be unique."""
        self._operator("name").name = name
        return self

    def uid(self: S, uid: str) -> S:
        """Identify the operator's state across versions of the program; unique in the job."""
        self._operator("uid").uid = uid
        return self

    def set_description(self: S, description: str) -> S:
        """Describe the operator at greater length than its name does, for the plan."""
        self._operator("set_description").description = str(description)
        return self

    def set_parallelism(self: S, parallelism: int) -> S:
        """Run the operator in this many subtasks; -1 in as many as the environment says."""
        operator = self._operator("set_parallelism")
        own = require_int("set_parallelism", parallelism) != -1
        operator.parallelism = _subtasks("set_parallelism", parallelism) if own else None
        return self

    def set_max_parallelism(self: S, max_parallelism: int) -> S:
        """The number of key groups, which no later parallelism of the operator can exceed."""
        operator = self._operator("set_max_parallelism")
        operator.max_parallelism = _subtasks("set_max_parallelism", max_parallelism)
        return self

    def force_non_parallel(self: S) -> S:
        """Run the operator in one subtask, always."""
        operator = self._operator("force_non_parallel")
        operator.parallelism = operator.max_parallelism = 1
        operator.non_parallel = True
        return self

    def set_buffer_timeout(self: S, timeout_millis: DurationLike) -> S:
        """Accepted for Flink's sake (-1 too): a batch leaves as soon as its channel is free."""
        self._operator("set_buffer_timeout")
        to_millis(timeout_millis, "set_buffer_timeout", at_least=-1)
        return self

    def start_new_chain(self: S) -> S:
        """Do not chain the operator to the one before it."""
        self._operator("start_new_chain").chaining = ChainingStrategy.HEAD
        return self

    def disable_chaining(self: S) -> S:
        """Chain the operator neither to the one before it nor to those after it."""
        self._operator("disable_chaining").chaining = ChainingStrategy.NEVER
        return self

    def slot_sharing_group(self: S, slot_sharing_group: str | SlotSharingGroup) -> S:
        """Share slots only with operators of the same group, by default that of the inputs."""
        operator = self._operator("slot_sharing_group")
        if isinstance(slot_sharing_group, SlotSharingGroup):
            self._env.register_slot_sharing_group(slot_sharing_group)
            slot_sharing_group = slot_sharing_group.get_name()
        operator.slot_sharing_group = slot_sharing_group
        return self

    def resources(
        self: S,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        **custom: float,
    ) -> S:
        """Ray resources that each subtask of the operator needs; ``memory`` is in bytes.

        Unless it is given a slot sharing group the operator then has slots of its own, because
        every slot of a group must have what any of its operators needs.
        """
        operator = self._operator("resources")
        given = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory, **custom}
        operator.resources = {}
        for resource, amount in given.items():
            if amount is None:
                continue
            if isinstance(amount, bool) or not isinstance(amount, (int, float)):
                raise JobGraphError(f"resources({resource}={amount!r}): a number is needed")
            operator.resources[resource] = float(amount)
        return self

    def on_error(self: S, policy: Literal["fail", "skip"] | OutputTag) -> S:
        """What happens to a record that the operator's function raises an Exception on.

        ``"fail"``, the default, fails the job. ``"skip"`` leaves the record out: none of the
        results it had so far come out, it is counted in the metric ``numRecordsSkipped``, and the
        1st, 10th, 100th, ... is logged as a warning. An OutputTag does the same, and hands the
        record on as a ``FailedRecord`` in that side output (``get_side_output``).

        For map, flat_map, filter, process and reduce (also sum, min, ...). What a process function
        had changed in its state, and the timers it had set, stay; a reduce leaves the aggregate
        as it was. What makes no sense as a result, such as None from flat_map, is an error too.
        Also for what becomes of the matches of a pattern (dataflow.cep): the match is what is left
        out then, and the FailedRecord's value.

        Always failing the job are: ``open``, ``close`` and timers, which have no record; key
        selectors, because a record without a key has nowhere to go; conditions of patterns; errors
        of this library (DataflowError); and what is no Exception, such as SystemExit.
        """
        self._operator("on_error").on_error = policy
        return self


def _subtasks(setting: str, value: object) -> int:
    number = require_int(setting, value)
    if not 1 <= number <= MAX_MAX_PARALLELISM:
        raise JobGraphError(f"{setting}({number}): 1 to {MAX_MAX_PARALLELISM} is allowed")
    return number


def require_int(setting: str, value: object) -> int:
    """``value`` if it is an int (and no bool). Raises JobGraphError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise JobGraphError(f"{setting}({value!r}): an int is needed")
    return value
