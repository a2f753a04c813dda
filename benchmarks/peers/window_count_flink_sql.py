"""window_count on Flink SQL, all JVM: python window_count_flink_sql.py RECORDS RESULT

A local Flink with two slots and no checkpoints. The bids are not read from files but come from
Flink's own generator and computed columns, which is faster for it. For the check the counts of each
window are summed up over its auctions, also in Flink: that is 1,009 rows per 100,000 bids, and one
row per window to collect.
"""

import sys
import time

import result
from pyflink.table import EnvironmentSettings, TableEnvironment

PARALLELISM = 2


def main(records, file):
    env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    settings = env.get_config()
    settings.set("parallelism.default", str(PARALLELISM))
    settings.set("taskmanager.memory.process.size", "4g")
    settings.set("table.local-time-zone", "UTC")
    env.execute_sql(f"""
        CREATE TABLE bid (
            id BIGINT,
            auction AS MOD(id * 7919, 1009),
            price AS MOD(id * 31, 10007),
            dt AS TO_TIMESTAMP_LTZ(id / 10, 3),
            WATERMARK FOR dt AS dt - INTERVAL '4' SECOND
        ) WITH (
            'connector' = 'datagen',
            'fields.id.kind' = 'sequence',
            'fields.id.start' = '0',
            'fields.id.end' = '{records - 1}',
            'rows-per-second' = '2000000000'
        )""")
    began = time.perf_counter()
    windows = env.execute_sql("""
        SELECT
            TIMESTAMPDIFF(SECOND, TIMESTAMP '1970-01-01 00:00:00', window_start) / 10,
            COUNT(*),
            SUM(bids),
            SUM(CAST(revenue AS BIGINT)),
            SUM(CAST(revenue AS BIGINT) * (auction + 1))
        FROM (
            SELECT auction, window_start, window_end, COUNT(*) AS bids, SUM(price) AS revenue
            FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(dt), INTERVAL '10' SECOND))
            GROUP BY auction, window_start, window_end
        )
        GROUP BY window_start, window_end""")
    with windows.collect() as results:
        rows = [tuple(row) for row in results]
    seconds = time.perf_counter() - began
    totals = [sum(row[i] for row in rows) for i in (1, 2, 3)]
    totals.append(sum((row[0] + 1) * row[4] for row in rows))
    result.write(file, seconds, totals)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
