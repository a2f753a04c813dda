"""``iterate``: a loop in the program, run in rounds until nothing is left to do.

Within the loop event time is the number of the round, as in Naiad (Murray et al., SOSP 2013): the
records of round *r* have the timestamp *r*, and the watermark *r* says that the round is complete.
So everything that works by event time works by rounds: timers, windows, joins.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dataflow.common.callables import require_arity, require_plain
from dataflow.datastream.arguments import title_of
from dataflow.errors import JobGraphError
from dataflow.graph.job_graph import Partitioning
from dataflow.graph.specs import LAST_ROUND, ROUND_REPORTS, IterationHeadSpec, IterationTailSpec
from dataflow.graph.stream_graph import NAME_CHARS_MAX
from dataflow.graph.transformation import Input, Transformation

if TYPE_CHECKING:
    from dataflow.datastream.data_stream import DataStream

Body = Callable[["DataStream"], "DataStream | tuple[DataStream, DataStream]"]


def iterate(
    stream: DataStream,
    body: Body,
    max_rounds: int | None,
    until: Callable[[Any], Any] | None,
) -> DataStream:
    """See ``DataStream.iterate``."""
    from dataflow.datastream.data_stream import DataStream

    env = stream._env
    require_arity("iterate()", require_plain("iterate", body), 1)
    if until is not None:
        require_arity("iterate(until)", require_plain("iterate", until), 1)
    if max_rounds is not None and (
        isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or max_rounds < 1
    ):
        raise JobGraphError(f"iterate(max_rounds={max_rounds!r}): an int of at least 1 is needed")
    title = title_of("Iterate", body)
    spec = IterationHeadSpec(max_rounds, keeps_last=False)
    head = Transformation("iteration_head", title, spec, stream._inputs)
    head.iteration = head
    with env._iterating(head) as added:
        returned = body(DataStream(env, (Input(head),), head, stream._type))
        inside = {head: None}  # in order
        for transformation in added():
            if any(i.source in inside for i in transformation.inputs):
                inside[transformation] = None
                transformation.iteration = head
        feedback, output = _streams(head.name, returned, stream, inside)
        if output is None:
            _require_an_end(head.name, max_rounds, until)
            head.spec = replace(spec, keeps_last=True)
            output = DataStream(env, (Input(head, LAST_ROUND),), None, feedback._type)
        tail = Transformation(
            "iteration_tail",
            f"{head.name} feedback"[:NAME_CHARS_MAX],
            IterationTailSpec(until),
            feedback._inputs,
            iteration=head,
        )
        env._add(tail)
        ends = [tail, *_ways_that_end([*inside, tail])]
        head.feedback = (
            Input(tail, None, Partitioning.FORWARD, index=1),
            # All subtasks of the head must come to the same end. Only the tail has reports; of the
            # others they get the watermark, to know that the round is over there too.
            *(Input(end, ROUND_REPORTS, Partitioning.BROADCAST, index=2) for end in ends),
        )
    return output


def _ways_that_end(body: list[Transformation]) -> Iterator[Transformation]:
    """Operators of the body behind which there is none of it; sinks know no rounds."""
    operators = [t for t in body if not t.is_sink]
    read = {i.source for t in operators for i in t.inputs}
    return (t for t in operators[:-1] if t not in read)


def _require_an_end(title: str, max_rounds: int | None, until: Callable[[Any], Any] | None) -> None:
    if max_rounds is None and until is None:
        raise JobGraphError(
            f"{title}: without max_rounds and until it ends when nothing is fed back, so its last "
            "round has no records to be the result: give one of them, or let the body return "
            "(feedback, output)"
        )


def _streams(
    title: str, returned: Any, stream: DataStream, inside: Container[Transformation]
) -> tuple[DataStream, DataStream | None]:
    """Feedback and output, as the body has returned them. Raises JobGraphError."""
    from dataflow.datastream.data_stream import DataStream

    streams = returned if isinstance(returned, tuple) else (returned,)
    if len(streams) not in (1, 2) or not all(isinstance(one, DataStream) for one in streams):
        what = type(returned).__name__
        if isinstance(returned, tuple):
            what = f"a tuple of {', '.join(type(one).__name__ for one in returned) or 'nothing'}"
        raise JobGraphError(
            f"{title}: the body must return the stream to feed back, or (feedback, output), and "
            f"it returned {'None' if returned is None else what}"
        )
    for role, one in zip(("feeds back", "puts out"), streams, strict=False):
        if one._env is not stream._env:
            raise JobGraphError(f"{title}: the body {role} a stream of another environment")
        if not any(i.source in inside for i in one._inputs):
            raise JobGraphError(
                f"{title}: the stream that the body {role} is not made from the stream that it "
                "was given, so it is no part of the loop"
            )
    return streams[0], streams[1] if len(streams) == 2 else None
