"""The plan as JSON and as text."""

from __future__ import annotations

import json

import pytest

from dataflow.datastream import OutputTag, StreamExecutionEnvironment
from dataflow.graph.plan import PlanReady, plan_as_text


def program() -> StreamExecutionEnvironment:
    """A fork with a side output, a shuffle, and a union."""
    env = StreamExecutionEnvironment().set_parallelism(2)
    parsed = env.from_sequence(1, 10).name("numbers").map(str).name("parse")
    odd = parsed.get_side_output(OutputTag("odd")).map(str).name("odd")
    counted = parsed.key_by(len).reduce(max).name("count").set_description("counts lengths")
    counted.union(odd).print().name("out").set_parallelism(1)
    parsed.print().name("copy")
    return env


def test_the_plan_is_flinks_json_with_our_chains() -> None:
    plan = json.loads(program().get_execution_plan())
    nodes = {node["type"]: node for node in plan["nodes"]}
    assert set(nodes) == {"numbers", "parse", "odd", "count", "out", "copy"}
    number = {name: node["id"] for name, node in nodes.items()}
    assert sorted(number.values()) == [1, 2, 3, 4, 5, 6]
    assert nodes["numbers"]["pact"] == "Data Source"
    assert nodes["out"]["pact"] == "Data Sink"
    assert nodes["count"]["pact"] == "Operator"
    assert nodes["count"]["contents"] == "counts lengths"
    assert nodes["count"]["predecessors"] == [
        {"id": number["parse"], "ship_strategy": "HASH", "side": None}
    ]
    assert nodes["odd"]["predecessors"] == [
        {"id": number["parse"], "ship_strategy": "FORWARD", "side": "odd"}
    ]
    assert {p["id"] for p in nodes["out"]["predecessors"]} == {number["count"], number["odd"]}
    chains = {vertex["name"]: vertex for vertex in plan["vertices"]}
    assert set(chains) == {"numbers -> parse -> (odd, copy)", "count", "out"}
    first = chains["numbers -> parse -> (odd, copy)"]
    assert first["nodes"] == [number[n] for n in ("numbers", "parse", "odd", "copy")]
    assert (first["parallelism"], chains["out"]["parallelism"]) == (2, 1)


def test_the_text_shows_chains_forks_and_unions() -> None:
    text = plan_as_text(program().get_job_graph("lengths"))
    assert text == "\n".join(
        [
            "job 'lengths': 3 vertices, 5 subtasks, 2 slots",
            "",
            "[1] numbers  (parallelism 2)",
            "    └─ parse",
            "       ├─ side output 'odd': odd",
            "       │  └─ REBALANCE ──▶ [3] out",
            "       ├─ HASH ──▶ [2] count",
            "       └─ copy",
            "",
            "[2] counts lengths  (parallelism 2)  ◀── [1]",
            "    └─ REBALANCE ──▶ [3] out",
            "",
            "[3] out  (parallelism 1)  ◀── [2], [1]",
        ]
    )


def test_the_text_names_slot_groups_and_resources() -> None:
    env = StreamExecutionEnvironment().set_parallelism(1)
    env.from_sequence(1, 2).name("s").slot_sharing_group("gpu").resources(num_gpus=0.5).print()
    text = plan_as_text(env.get_job_graph("job"))
    assert "(parallelism 1, slot sharing group 'gpu', num_gpus 0.5)" in text


def test_execute_raises_the_plan_when_only_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOW_PLAN_ONLY", "1")
    for run in ("execute", "execute_async"):
        with pytest.raises(PlanReady) as caught:
            getattr(program(), run)("lengths")
        assert caught.value.job_graph.name == "lengths"
    assert not issubclass(PlanReady, Exception)
