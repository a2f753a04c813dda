"""User functions on their way to the TaskManagers, and what is said of those that cannot go."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import textwrap
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from dataflow.common.codec import (
    dumps_code,
    dumps_data,
    dumps_state,
    dumps_state_alike,
    loads_code,
    loads_data,
)
from dataflow.datastream import MapFunction, StreamExecutionEnvironment
from dataflow.errors import FunctionPicklingError
from dataflow.graph.pickling import BLOB_BYTES_MAX, dump_function

LOCK = threading.Lock()


def fault_of(function: Any) -> str:
    with pytest.raises(FunctionPicklingError) as caught:
        dump_function(function, "operator 'm'")
    (fault,) = caught.value.faults
    return fault


def make_closure(value: Any) -> Callable[[Any], Any]:
    return lambda record: (record, value)


class Client:
    def __init__(self) -> None:
        self.settings = {"url": "x", "session": [1, threading.Lock()]}

    def call(self, record: Any) -> Any:
        return record


def test_a_closure_variable_is_named() -> None:
    fault = fault_of(make_closure(threading.Lock()))
    assert fault.startswith(
        "operator 'm': the function's closure variable 'value' (_thread.lock) cannot be pickled"
    )


def test_the_way_to_a_nested_object_is_named() -> None:
    fault = fault_of(make_closure(Client()))
    assert (
        "the function's closure variable 'value' -> attribute 'settings' -> item 'session' -> "
        "item 1 (_thread.lock)"
    ) in fault


def test_a_bound_method_leads_to_its_object() -> None:
    assert "bound object -> attribute 'settings'" in fault_of(Client().call)


def test_a_partial_leads_to_its_arguments() -> None:
    assert "argument 0 (_thread.lock)" in fault_of(functools.partial(max, threading.Lock()))
    assert "argument 'key'" in fault_of(functools.partial(max, key=make_closure(LOCK)))


def test_a_default_value_is_named() -> None:
    def function(record: Any, lock: Any = LOCK) -> Any:
        return record

    assert "default value 0 (_thread.lock)" in fault_of(function)


def test_an_inner_function_is_followed() -> None:
    assert "closure variable 'value' -> closure variable 'value' (_thread.lock)" in fault_of(
        make_closure(make_closure(LOCK))
    )


def test_generators_files_and_endless_nesting_are_reported_too(tmp_path: Path) -> None:
    assert "(generator)" in fault_of(make_closure(x for x in ()))
    with (tmp_path / "f").open("w") as file:
        assert "(_io.TextIOWrapper)" in fault_of(make_closure(file))
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert "cannot be pickled" in fault_of(make_closure(nested))
    while nested:
        nested = nested.pop()


def test_a_self_containing_object_does_not_keep_the_search_busy() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    loop["lock"] = LOCK
    assert "(_thread.lock)" in fault_of(make_closure(loop))


def test_the_environment_cannot_be_used_inside_a_function() -> None:
    env = StreamExecutionEnvironment()
    env.from_sequence(1, 2).map(lambda x: env.get_parallelism()).name("m").print()
    with pytest.raises(FunctionPicklingError) as caught:
        env.get_job_graph("job")
    assert "closure variable 'env'" in str(caught.value)
    assert "part of the program and cannot be used inside a function" in str(caught.value)


def test_our_wrappers_do_not_show_in_the_path() -> None:
    class Mine(MapFunction):
        def __init__(self) -> None:
            self.lock = LOCK

        def map(self, value: Any) -> Any:
            return value

    env = StreamExecutionEnvironment()
    stream = env.from_sequence(1, 2)
    stream.map(make_closure(LOCK)).name("a").print()
    stream.map(Mine()).name("b").print()
    stream.key_by(make_closure(LOCK)).reduce(max).name("c").print()
    with pytest.raises(FunctionPicklingError) as caught:
        env.get_job_graph("job")
    lines = [fault.partition(" cannot")[0] for fault in caught.value.faults]
    assert lines == [
        "operator 'a': the function's closure variable 'value' (_thread.lock)",
        "operator 'b': the function's attribute 'lock' (_thread.lock)",
        "operator 'c': the function's closure variable 'value' (_thread.lock)",
    ]


def test_a_function_that_carries_too_much_is_refused() -> None:
    big = b"x" * (BLOB_BYTES_MAX + 1)
    fault = fault_of(make_closure(big))
    assert "its function is 10.0 MiB when pickled, and at most 10 MiB is allowed" in fault


def test_what_pickles_comes_back() -> None:
    function = loads_code(dump_function(make_closure(7), "operator 'm'"))
    assert function(1) == (1, 7)


def run_script(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=Path.cwd(), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_classes_of_the_script_reach_another_process(tmp_path: Path) -> None:
    """A record pickled in one process by plain pickle is read in another, as TaskManagers do."""
    run_script(
        tmp_path / "job.py",
        f"""
        import pickle, threading
        from dataclasses import dataclass
        from enum import Enum
        from dataflow.datastream import StreamExecutionEnvironment

        class Color(Enum):
            RED = 1

        @dataclass(frozen=True)
        class Flight:
            origin: str
            color: Color

        class Unpicklable:
            lock = threading.Lock()

        env = StreamExecutionEnvironment()
        stream = env.from_collection([Flight("EWR", Color.RED)])
        stream.map(lambda f: Flight("JFK", f.color)).print()
        open({str(tmp_path / "graph")!r}, "wb").write(env.get_job_graph("job").to_bytes())
        open({str(tmp_path / "record")!r}, "wb").write(pickle.dumps(Flight("EWR", Color.RED)))
        """,
    )
    printed = run_script(
        tmp_path / "worker.py",
        f"""
        import pickle
        from dataflow.graph.job_graph import JobGraph
        from dataflow.graph.pickling import install_main_classes, load_spec

        graph = JobGraph.from_bytes(open({str(tmp_path / "graph")!r}, "rb").read())
        install_main_classes(graph.main_classes)
        record = pickle.loads(open({str(tmp_path / "record")!r}, "rb").read())
        source, mapper, _ = (load_spec(o.spec) for v in graph.vertices for o in v.operators)
        mapped = mapper.function.map(record)
        print(mapped, type(mapped) is type(record), source.source.records == [record])
        print(pickle.loads(pickle.dumps(mapped)) == mapped, "Unpicklable" in globals())
        """,
    )
    assert printed.splitlines() == [
        "Flight(origin='JFK', color=<Color.RED: 1>) True True",
        "True False",
    ]


def test_functions_keep_the_name_of_their_file_for_tracebacks() -> None:
    def outer() -> Any:
        return lambda: 1 // 0

    loaded = loads_code(dumps_code(outer))
    assert loaded.__code__.co_filename == __file__
    assert loaded().__code__.co_filename == __file__


def local_kinds() -> tuple[Any, Any, Any]:
    @dataclass(frozen=True)
    class Flight:
        origin: str

        def shout(self) -> str:
            return self.origin.upper()

    class Color(Enum):
        RED = 1

    return Flight, Color, namedtuple("Pair", "one other")


def test_records_of_a_class_within_a_function_come_back_as_that_class() -> None:
    for record in (lambda f, c, p: [f("ewr"), c.RED, p(1, c.RED), f])(*local_kinds()):
        with pytest.raises((AttributeError, pickle.PicklingError)):
            pickle.dumps(record)
        again = loads_data(dumps_data([record, record]))
        assert again == [record, record]
        assert type(again[0]) is type(record)


def test_the_class_of_a_record_is_pickled_once_and_what_it_has_counted_stays() -> None:
    class Counting:
        made = 0

    blob = dumps_data(Counting())
    Counting.made = 5
    assert isinstance(loads_data(blob), Counting)
    assert len(dumps_data([Counting() for _ in range(100)])) < len(blob) + 1_000
    assert type(loads_data(dumps_data(Counting()))).made == 5


def test_a_class_that_cannot_be_pickled_says_why() -> None:
    class Holder:
        lock = threading.Lock()

    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        dumps_data(Holder())


def test_a_class_that_refers_to_much_cannot_go_with_every_batch() -> None:
    model = b"x" * 300_000

    class Scored:
        def score(self) -> int:
            return len(model)

    with pytest.raises(pickle.PicklingError, match=r"Scored, .* at most 262144 are allowed"):
        dumps_data(Scored())


class Unready:
    def __getstate__(self) -> Any:
        return self.model  # type: ignore[attr-defined]


@pytest.mark.parametrize("dumps", [dumps_state, dumps_state_alike])
def test_state_refuses_what_another_process_could_not_know(dumps: Any) -> None:
    flight, color, pair = local_kinds()
    for value in (flight("ewr"), color.RED, {1: pair(1, 2)}, lambda: 1):
        with pytest.raises(pickle.PicklingError, match="must be at the top level of a module"):
            dumps(value)


def test_a_users_own_error_is_not_taken_for_that_of_a_class() -> None:
    with pytest.raises(AttributeError, match=r"^'Unready' object has no attribute 'model'$"):
        dumps_state(Unready())


def test_local_classes_of_functions_and_records_are_one_in_another_process(tmp_path: Path) -> None:
    run_script(
        tmp_path / "job.py",
        f"""
        from dataclasses import dataclass
        from dataflow.common.codec import dumps_code, dumps_data

        def main():
            @dataclass(frozen=True)
            class Flight:
                origin: str

            class Told:
                def __init__(self, flight):
                    self.flight = flight

            code = dumps_code(lambda v: Told(v) if isinstance(v, Flight) else None)
            open({str(tmp_path / "code")!r}, "wb").write(code)
            open({str(tmp_path / "record")!r}, "wb").write(dumps_data([Flight("EWR")] * 3))

        main()
        """,
    )
    printed = run_script(
        tmp_path / "worker.py",
        f"""
        from dataflow.common.codec import dumps_data, loads_code, loads_data

        records = loads_data(open({str(tmp_path / "record")!r}, "rb").read())
        function = loads_code(open({str(tmp_path / "code")!r}, "rb").read())
        told = function(records[0])
        again = loads_data(dumps_data([told, records[1]]))
        print(records[0].origin, type(again[0]) is type(told), again[1] == records[2])
        """,
    )
    assert printed.splitlines() == ["EWR True True"]
