"""Word count over text files.

    python examples/word_count.py README.md docs
    python examples/word_count.py 'docs/*.md' --top 5
    dataflow run --local examples/word_count.py README.md      # in one process, without Ray

Paths are files, folders or patterns, local or s3://.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from dataflow.common import WatermarkStrategy
from dataflow.datastream import StreamExecutionEnvironment
from dataflow.datastream.connectors.file_system import FileSource

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


def words(line: str) -> Iterator[tuple[str, int]]:
    for word in WORD.findall(line.lower()):
        yield word, 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(options.parallelism)
    counts = (
        env.from_source(
            FileSource.text(*options.paths), WatermarkStrategy.no_watermarks(), "text files"
        )
        .flat_map(words)
        .key_by(0)
        .reduce(lambda a, b: (a[0], a[1] + b[1]))
    )
    # A stream has no last record, so the job sends every new count; the highest is the final one.
    final: Counter[str] = Counter()
    with counts.execute_and_collect("word count") as results:
        for word, count in results:
            final[word] = max(final[word], count)

    for word, count in sorted(final.items(), key=lambda item: (-item[1], item[0]))[: options.top]:
        print(f"{count:8,}  {word}")
    print(f"{final.total():8,}  words, {len(final):,} different ones")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder or pattern")
    parser.add_argument("--parallelism", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="words to show")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
