"""Classes of the script as records, a module beside the script, and a file that is added."""

import sys
from dataclasses import dataclass
from pathlib import Path

import airports

from dataflow.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from dataflow.datastream.state import ValueStateDescriptor


@dataclass
class Flight:
    origin: str
    passengers: int


@dataclass
class Report:
    city: str
    flights: list[Flight]


class Gather(KeyedProcessFunction):
    """Keeps instances of the script's classes in state."""

    def open(self, runtime_context):
        self.report = runtime_context.get_state(ValueStateDescriptor("report"))

    def process_element(self, value, ctx):
        report = self.report.value() or Report(airports.city_of(value.origin), [])
        report.flights.append(value)
        self.report.update(report)
        yield report


def describe(report: Report) -> str:
    import manners  # added with add_python_file

    return manners.polite(f"{report.city} {sum(f.passengers for f in report.flights)}")


def main() -> None:
    factor = int(sys.argv[1])
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(2)
    env.add_python_file(str(Path(__file__).parent / "added" / "manners.py"))
    flights = [Flight(origin, n) for n in (1, 20, 300) for origin in ("JFK", "LGA")]
    (
        env.from_collection(flights)
        .rebalance()
        .map(lambda flight: Flight(flight.origin, flight.passengers * factor))
        .key_by("origin")
        .process(Gather())
        .rebalance()
        .map(describe)
        .print()
    )
    env.execute("flights")


if __name__ == "__main__":
    main()
