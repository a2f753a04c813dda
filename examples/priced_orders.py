"""Orders priced by a service that is asked over HTTP: asynchronous I/O with retries.

    python examples/priced_orders.py
    python examples/priced_orders.py --capacity 1            # one question after the other
    dataflow run --local examples/priced_orders.py           # in one process, without Ray

The program starts the service, a real HTTP server on a free port of this machine, which takes
20 ms for an answer and now and then says that it is busy. On a cluster of several machines name
this one with --host. At the end the program prices the orders by itself and compares.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dataflow.common import Duration, WatermarkStrategy
from dataflow.datastream import (
    AsyncDataStream,
    AsyncFunction,
    AsyncRetryStrategy,
    StreamExecutionEnvironment,
)
from dataflow.datastream.connectors.datagen import DataGeneratorSource

PRODUCTS = 200
ANSWER_S = 0.02


@dataclass(frozen=True)
class Order:
    number: int
    product: int
    quantity: int


def order(index: int) -> Order:
    """A function of the index alone: what is read again after a failure is the same."""
    return Order(index, index * 7919 % PRODUCTS, 1 + index % 5)


def price_of(product: int) -> int:
    """In cents; the job has to ask for it."""
    return 99 + product * 31 % 1_000


# ----------------------------------------------------------------------------------- the service


class PriceService(ThreadingHTTPServer):
    """``GET /price/PRODUCT`` gives ``{"cents": ...}``."""

    daemon_threads = True
    request_queue_size = 1_024

    def __init__(self, host: str) -> None:
        super().__init__((host, 0), _PriceHandler)
        self.answers: Counter[int] = Counter()  # by HTTP status
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()


class _PriceHandler(BaseHTTPRequestHandler):
    server: PriceService

    def do_GET(self) -> None:
        product = self.path.removeprefix("/price/")
        with self.server.lock:
            self.server.requests[product] += 1
            busy = int(product) % 10 == 0 and self.server.requests[product] % 3 == 1
            status = 503 if busy else 200
            self.server.answers[status] += 1
        time.sleep(ANSWER_S)
        self.send_response(status)
        self.end_headers()
        if not busy:
            self.wfile.write(json.dumps({"cents": price_of(int(product))}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line per request."""


@contextmanager
def price_service(host: str) -> Iterator[PriceService]:
    with PriceService(host) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()


# --------------------------------------------------------------------------------------- the job


class ServiceBusy(Exception):
    """To be asked again."""


@dataclass
class AddPrice(AsyncFunction):
    """Makes (number, cents in total) of an order."""

    host: str
    port: int

    async def async_invoke(self, value: Order) -> list[tuple[int, int]]:
        status, body = await get(self.host, self.port, f"/price/{value.product}")
        if status == 503:
            raise ServiceBusy(f"product {value.product}")
        return [(value.number, json.loads(body)["cents"] * value.quantity)]


async def get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """HTTP in its simplest form, so that nothing has to be installed; use httpx or aiohttp."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return int(head.split()[1]), body


def is_busy(error: Exception) -> bool:
    return isinstance(error, (ServiceBusy, ConnectionError))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(options.parallelism)
    with price_service(options.host) as service:
        priced = AsyncDataStream.unordered_wait_with_retry(
            env.from_source(
                DataGeneratorSource(order, options.count),
                WatermarkStrategy.no_watermarks(),
                "orders",
            ),
            AddPrice(options.host, service.server_port),
            Duration.of_seconds(30),
            AsyncRetryStrategy.exponential_backoff(10, 10, 500, 2.0, None, is_busy),
            options.capacity,
        )
        began = time.monotonic()
        with priced.execute_and_collect("priced orders") as results:
            found = list(results)
        seconds = time.monotonic() - began
    asked, refused = service.answers.total(), service.answers[503]
    print(
        f"{len(found):,} orders in {seconds:.1f} s; the service was asked {asked:,} times and was "
        f"busy {refused:,} times: {asked * ANSWER_S:.1f} s of waiting, one after the other"
    )
    if sorted(found) != expected(options.count):
        print("THE RESULT DIFFERS from what the orders cost")
        return 1
    print(f"checked: {sum(cents for _, cents in found) / 100:,.2f} in total, each order once")
    return 0


def expected(count: int) -> list[tuple[int, int]]:
    """What the job must find, computed without it."""
    orders = map(order, range(count))
    return [(each.number, price_of(each.product) * each.quantity) for each in orders]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=1_000, metavar="N", help="orders (default: 1000)"
    )
    parser.add_argument(
        "--capacity", type=int, default=20, metavar="N", help="open questions per subtask: 20"
    )
    parser.add_argument("--parallelism", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--host", default="127.0.0.1", help="of the service: this machine")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
