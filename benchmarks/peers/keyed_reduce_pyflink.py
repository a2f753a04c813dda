"""keyed_reduce on PyFlink: python keyed_reduce_pyflink.py RECORDS RESULT

A local Flink with two slots. Flink generates the numbers itself; map, reduce and filter are Python
functions, as they would be in a user's program. Flink chains reduce and filter, so that the filter,
which only lets the last record of each key pass, hardly costs anything, and no other record is
handed back to the JVM. It knows the last record by how often its key occurs in the numbers. So a
record that is lost or counted twice makes a key's result missing, wrong or come again.
"""

import os
import sys
import time

import result
from pyflink.common import Configuration, Types, WatermarkStrategy
from pyflink.datastream import FilterFunction, StreamExecutionEnvironment
from pyflink.datastream.connectors.number_seq import NumberSequenceSource

KEYS = 503
PARALLELISM = 2
# Or else a local Flink runs the functions of both slots in this process, under one interpreter
# lock. So each slot has a Python process of its own, as on a cluster.
os.environ.update(_python_worker_execution_mode="process")


class LastOfKey(FilterFunction):
    def __init__(self, occurrences):
        self._left = dict(occurrences)

    def filter(self, value):
        left = self._left[value[0]] = self._left[value[0]] - 1
        return left <= 0


def main(records, file):
    result.adopt_orphans()
    # Any KEYS numbers in a row have every key once.
    occurrences = dict.fromkeys(range(KEYS), records // KEYS)
    for x in range(records % KEYS):
        occurrences[x * 7919 % KEYS] += 1
    configuration = Configuration()
    configuration.set_string("taskmanager.memory.process.size", "6g")
    configuration.set_string("taskmanager.memory.managed.size", "1g")
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(PARALLELISM)
    env.set_python_executable(sys.executable)
    pair = Types.TUPLE([Types.LONG(), Types.LONG()])
    sums = (
        env.from_source(
            NumberSequenceSource(0, records - 1),
            WatermarkStrategy.no_watermarks(),
            "numbers",
            type_info=Types.LONG(),
        )
        .map(lambda x: ((x * 7919) % 503, (x * 31) % 10007), output_type=pair)
        .key_by(lambda record: record[0], key_type=Types.LONG())
        .reduce(lambda total, record: (total[0], total[1] + record[1]))
        .filter(LastOfKey(occurrences))
    )
    began = time.perf_counter()
    with sums.execute_and_collect("keyed_reduce") as results:
        finals = [(key, total) for key, total in results]
    seconds = time.perf_counter() - began
    count = sum(occurrences[key] for key, _ in finals)
    result.write(file, seconds, [{"count": count, "sums": finals}])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
