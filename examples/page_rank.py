"""PageRank: a loop that ends when no rank moves any more.

    python examples/page_rank.py
    python examples/page_rank.py --links links.txt --top 20    # your own, "from to" on each line
    dataflow run --local examples/page_rank.py                 # in one process, without Ray

Without --links it ranks the 34 members of a karate club by who met whom outside the club (Zachary
1977): the two whose quarrel split the club later on come out first. In each round every page deals
out its rank to those it links to, and what it gets is its rank in the next. The links are joined
with the ranks within the loop and stay in state from round to round. At the end the ranks are
computed once more in plain Python and compared.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dataflow.common import Duration
from dataflow.datastream import (
    DataStream,
    KeyedCoProcessFunction,
    RuntimeContext,
    RuntimeExecutionMode,
    StreamExecutionEnvironment,
)
from dataflow.datastream.state import ListStateDescriptor
from dataflow.datastream.window import TumblingEventTimeWindows

DAMPING = 0.85
MOVES = 1e-9  # less is no move
ROUNDS_MAX = 200

#: Who met whom: each member with those of lower numbers.
KARATE_CLUB = """
2 1; 3 1 2; 4 1 2 3; 5 1; 6 1; 7 1 5 6; 8 1 2 3 4; 9 1 3; 10 3; 11 1 5 6; 12 1; 13 1 4; 14 1 2 3 4;
17 6 7; 18 1 2; 20 1 2; 22 1 2; 26 24 25; 28 3 24 25; 29 3; 30 24 27; 31 2 9; 32 1 25 26 29;
33 3 9 15 16 19 21 23 24 30 31 32; 34 9 10 14 15 16 19 20 21 23 24 27 28 29 30 31 32 33
"""

Link = tuple[str, str]
Ranked = tuple[str, float, float]  # page, rank, how far it has moved


def karate_club() -> list[Link]:
    links = []
    for line in KARATE_CLUB.split(";"):
        member, *others = line.split()
        links += [(member, other) for other in others] + [(other, member) for other in others]
    return links


def read_links(path: Path) -> list[Link]:
    links = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        pages = line.split()
        if len(pages) not in (0, 2):
            sys.exit(f"{path}, line {number}: 'from to' is needed, and this is {line!r:.60}")
        if pages:
            links.append((pages[0], pages[1]))
    return links


# ---------------------------------------------------------------------------------------- the job


class DealOut(KeyedCoProcessFunction):
    """Ranks come round after round; the links of a page come before the first."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._links = runtime_context.get_list_state(ListStateDescriptor("links"))

    def process_element1(self, value: Ranked, ctx: Any) -> Iterator[tuple[str, float, float]]:
        """Shares, and to itself the rank it had: (page, share, rank so far)."""
        page, rank, _ = value
        links = list(self._links.get()) or [page]  # who links to nobody keeps it
        yield page, 0.0, rank
        for to in links:
            yield to, rank / len(links), 0.0

    def process_element2(self, value: Link, ctx: Any) -> None:
        self._links.add(value[1])


def add(one: tuple[str, float, float], other: tuple[str, float, float]) -> Any:
    return one[0], one[1] + other[1], one[2] + other[2]


def page_rank(ranks: DataStream, links: DataStream, pages: int) -> DataStream:
    """Ranks at which nothing moves any more."""

    def rank(shares: tuple[str, float, float]) -> Ranked:
        page, share, before = shares
        now = (1 - DAMPING) / pages + DAMPING * share
        return page, now, abs(now - before)

    def body(ranks: DataStream) -> DataStream:
        shares = ranks.connect(links).key_by(0, 0).process(DealOut())
        # Within a loop the event time is the round, so this is all that a page gets in one.
        of_round = shares.key_by(0).window(TumblingEventTimeWindows.of(Duration.of_millis(1)))
        return of_round.reduce(add).map(rank)

    return ranks.iterate(body, ROUNDS_MAX, until=lambda ranked: ranked[2] < MOVES)


def expected(links: Iterable[Link]) -> dict[str, float]:
    """The same in plain Python."""
    to: dict[str, list[str]] = defaultdict(list)
    for source, target in links:
        to[source].append(target)
    pages = {page for link in links for page in link}
    ranks = dict.fromkeys(pages, 1 / len(pages))
    for _ in range(ROUNDS_MAX):
        shares: dict[str, float] = defaultdict(float)
        for page, rank in ranks.items():
            targets = to[page] or [page]
            for target in targets:
                shares[target] += rank / len(targets)
        before, ranks = ranks, {
            page: (1 - DAMPING) / len(pages) + DAMPING * shares[page] for page in pages
        }  # fmt: skip
        if all(abs(ranks[page] - before[page]) < MOVES for page in pages):
            break
    return ranks


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    links = read_links(options.links) if options.links else karate_club()
    if not links:
        sys.exit(f"{options.links}: there is no link")
    pages = sorted({page for link in links for page in link})

    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(options.parallelism)
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    initial = env.from_collection([(page, 1 / len(pages), 1.0) for page in pages])
    result = page_rank(initial, env.from_collection(links), len(pages))
    with result.execute_and_collect("page rank") as results:
        ranks = {page: rank for page, rank, _ in results}

    for page in sorted(pages, key=lambda page: (-ranks.get(page, 0.0), page))[: options.top]:
        print(f"{ranks.get(page, 0.0):8.4f}  {page}")
    print(f"{sum(ranks.values()):8.4f}  in all, {len(pages):,} pages and {len(links):,} links")
    wanted = expected(links)
    if ranks.keys() != wanted.keys() or any(
        abs(rank - wanted[page]) > 1e-6 for page, rank in ranks.items()
    ):
        print("THE RESULT DIFFERS from the one computed in plain Python")
        return 1
    print("computed again in plain Python: the ranks are the same")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", type=Path, metavar="FILE", help="'from to' on each line")
    parser.add_argument("--parallelism", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="pages to show")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
