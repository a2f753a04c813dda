"""map_filter on PyFlink: python map_filter_pyflink.py RECORDS RESULT

A local Flink with two slots. Flink generates the numbers itself and chains the two lambdas into one
Python operator. Only what passes the filter, one record in a thousand, is handed back to the JVM
and collected, so the check costs hardly anything.
"""

import os
import sys
import time

import result
from pyflink.common import Types, WatermarkStrategy
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.connectors.number_seq import NumberSequenceSource

PARALLELISM = 2
# Or else a local Flink runs the functions of both slots in this process, under one interpreter
# lock. So each slot has a Python process of its own, as on a cluster.
os.environ.update(_python_worker_execution_mode="process")


def main(records, file):
    result.adopt_orphans()
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(PARALLELISM)
    env.set_python_executable(sys.executable)
    passed = (
        env.from_source(
            NumberSequenceSource(0, records - 1),
            WatermarkStrategy.no_watermarks(),
            "numbers",
            type_info=Types.LONG(),
        )
        .map(lambda x: (x * 31) % 10007, output_type=Types.LONG())
        .filter(lambda value: value % 1000 == 0)
    )
    began = time.perf_counter()
    with passed.execute_and_collect("map_filter") as results:
        values = list(results)
    seconds = time.perf_counter() - began
    result.write(file, seconds, [{"count": len(values), "sum": sum(values)}])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
