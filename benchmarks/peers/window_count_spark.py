"""window_count on Spark Structured Streaming: python window_count_spark.py RECORDS RESULT BIDS

Spark with two cores reads the same files as we do, four per micro-batch (larger batches are better
for it), and writes to nowhere. Its checkpoints go to a temporary folder. The totals for the check
are observed on their way to the sink, on 1,009 rows per 100,000 bids.

Spark emits a window when the watermark is past it, also at the end of the input. So the windows of
the last seconds do not come out, and are not expected.
"""

import sys
import tempfile
import time

import result
from pyspark.sql import SparkSession
from pyspark.sql import functions as f

PARALLELISM = 2


def main(file, bids):
    spark = (
        SparkSession.builder.master(f"local[{PARALLELISM}]")
        .config("spark.sql.shuffle.partitions", PARALLELISM)
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.streaming.numRecentProgressUpdates", 100_000)
        .config("spark.driver.memory", "6g")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    window = f.unix_timestamp(f.col("window.start")) / 10
    counts = (
        spark.readStream.schema("auction long, bidder long, price long, dt timestamp")
        .option("maxFilesPerTrigger", 4)
        .parquet(bids)
        .withWatermark("dt", "4 seconds")
        .groupBy(f.window("dt", "10 seconds"), "auction")
        .agg(f.count("*").alias("bids"), f.sum("price").alias("revenue"))
        .observe(
            "totals",
            f.count("*").alias("results"),
            f.sum("bids").alias("bids"),
            f.sum("revenue").alias("revenue"),
            f.sum(f.col("revenue") * (f.col("auction") + 1) * (window.cast("long") + 1)).alias(
                "weighted"
            ),
        )
    )
    began = time.perf_counter()
    query = (
        counts.writeStream.format("noop")
        .outputMode("append")
        .option("checkpointLocation", tempfile.mkdtemp())
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()
    seconds = time.perf_counter() - began
    batches = [p.observedMetrics["totals"] for p in query.recentProgress if p.observedMetrics]
    totals = [sum(batch[i] or 0 for batch in batches) for i in range(4)]
    result.write(file, seconds, totals)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[2:])
