"""How many arguments a program's callables take."""

from __future__ import annotations

import operator

import pytest

from dataflow.common import WatermarkStrategy
from dataflow.common.callables import require_arity
from dataflow.errors import JobGraphError


@pytest.mark.parametrize(
    "function", [operator.itemgetter("ms"), operator.attrgetter("ms"), operator.methodcaller("ms")]
)
def test_the_operator_module_makes_functions_of_one_argument(function: object) -> None:
    assert require_arity("here", function, 2, 1) == 1
    assert require_arity("here", function, 1) == 1


def test_an_itemgetter_assigns_timestamps() -> None:
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
        operator.itemgetter("ms")
    )
    assert strategy.timestamp_assigner is not None
    assert strategy.timestamp_assigner.extract_timestamp({"ms": 7}, 0) == 7


def test_a_function_of_another_arity_is_refused_by_name() -> None:
    def three(a, b, c):  # type: ignore[no-untyped-def]
        """Takes more than anybody gives."""

    with pytest.raises(JobGraphError, match=r"here: three\(a, b, c\) is called with 1 or 2"):
        require_arity("here", three, 1, 2)
