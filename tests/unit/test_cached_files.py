"""Files that functions read: shipped with the job, or fetched from a store."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from dataflow.cep import CEP, IterativeCondition, Pattern, RichIterativeCondition
from dataflow.common import Configuration
from dataflow.datastream import (
    KeyedProcessFunction,
    MapFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from dataflow.errors import ConfigError, JobExecutionError, StorageError, UserFunctionError
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.graph import cached_files
from dataflow.graph.cached_files import CachedFile, registered, shipped
from dataflow.graph.job_graph import JobGraph
from dataflow.testing import OperatorTestHarness
from taskmanager import distributed_cache
from taskmanager.distributed_cache import TaskDistributedCache


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> StreamExecutionEnvironment:
    monkeypatch.setenv("DATAFLOW_LOCAL", "1")
    monkeypatch.setenv("DATAFLOW_PROGRESS", "0")
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(2)
    return env


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whatever a test does, all copies are gone when its operators are closed."""
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    yield
    assert distributed_cache._copies == {}
    assert [name for name in os.listdir(copies) if name.startswith("dataflow-cache-")] == []


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.txt"
    path.write_text("a 1\nb 2\n")
    return path


class Price(MapFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        path = runtime_context.get_distributed_cache().get_file("prices")
        assert path.endswith("/prices.txt")
        with open(path) as file:
            self.prices = dict(line.split() for line in file)

    def map(self, value: str) -> tuple[str, str]:
        return value, self.prices[value]


def collected(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as results:
        return sorted(results)


def test_every_subtask_reads_what_was_there_when_the_job_was_executed(
    env: StreamExecutionEnvironment, prices: Path
) -> None:
    env.register_cached_file(str(prices), "prices")
    prices.write_text("a 7\nb 8\n")
    stream = env.from_collection(["a", "b", "a"]).rebalance().map(Price())
    assert collected(stream) == [("a", "7"), ("a", "7"), ("b", "8")]


def test_the_job_graph_carries_them(tmp_path: Path, env: StreamExecutionEnvironment) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    env.register_cached_file(str(tmp_path / "empty"), "empty", True)
    env.register_cached_file(f"file://{tmp_path}/folder", "folder")
    env.register_cached_file("s3://bucket//model/./x", "model")
    env.from_collection([1]).print()
    graph = env.get_job_graph("x")
    assert JobGraph.from_bytes(graph.to_bytes()) == graph
    empty, folder, model = graph.cached_files
    assert (empty.content, empty.executable, empty.is_folder) == (b"", True, False)
    assert folder.is_folder
    assert model == CachedFile("model", "s3://bucket/model/x", False)


def test_a_relative_path_is_one_of_the_program(
    prices: Path, env: StreamExecutionEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prices.parent)
    env.register_cached_file("prices.txt", "prices")
    monkeypatch.chdir("/")
    env.register_cached_file(str(prices), "prices")  # the same again
    assert collected(env.from_collection(["b"]).map(Price())) == [("b", "2")]


def cache_of(*files: CachedFile, job_id: str = "job") -> TaskDistributedCache:
    return TaskDistributedCache(files, job_id)


def test_a_folder_comes_with_all_that_is_in_it(tmp_path: Path) -> None:
    root = tmp_path / "model"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "nothing").mkdir()
    (root / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (root / "deep" / "er" / "run.sh").write_text("echo $1")
    (root / "deep" / "er" / "run.sh").chmod(0o755)
    (root / "link").symlink_to(root / "weights.bin")
    (root / "linked").symlink_to(root / "deep")
    files = shipped([registered(root, "model", False)])
    assert shipped([registered(root, "model", False)]) == files  # also at another time
    cache = cache_of(*files)
    found = Path(cache.get_file("model"))
    names = sorted(str(path.relative_to(found)) for path in found.rglob("*"))
    assert names == [
        *("deep", "deep/er", "deep/er/run.sh", "link", "linked", "linked/er"),
        *("linked/er/run.sh", "nothing", "weights.bin"),
    ]
    assert (found / "link").read_bytes() == bytes(range(256)) * 100
    assert not (found / "link").is_symlink()
    assert (found / "deep" / "er" / "run.sh").stat().st_mode & 0o777 == 0o555
    assert (found / "weights.bin").stat().st_mode & 0o777 == 0o444
    cache.release()
    assert not found.exists()


def test_an_executable_file_can_be_executed(prices: Path) -> None:
    cache = cache_of(*shipped([registered(prices, "prices", True)]))
    assert os.stat(cache.get_file("prices")).st_mode & 0o777 == 0o555
    cache.release()


def test_tasks_of_a_process_share_a_copy_until_the_last_is_closed(prices: Path) -> None:
    files = shipped([registered(prices, "prices", False)])
    caches = [cache_of(*files, job_id=job_id) for job_id in ("one", "one", "two")]
    paths: list[str] = []
    threads = [
        threading.Thread(target=lambda c=c: paths.extend(c.get_file("prices") for _ in "ab"))
        for c in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 6
    (path,) = set(paths)
    for cache in caches:
        assert os.path.exists(path)
        cache.release()
        cache.release()
    assert not os.path.exists(path)
    again = cache_of(*files)
    assert Path(again.get_file("prices")).read_text() == "a 1\nb 2\n"
    again.release()


def test_what_is_in_a_store_is_fetched_where_it_is_asked_for(tmp_path: Path) -> None:
    store = MemoryFileSystem()
    store.put("memory://files/model/a.bin", b"a")
    store.put("memory://files/model/deep/b.bin", b"b" * 10_000)
    files = shipped(
        [
            registered("memory://files/model", "model", False),
            registered("memory://files/model/a.bin", "a", False),
        ]
    )
    assert [file.content for file in files] == [None, None]
    cache = cache_of(*files)
    found = Path(cache.get_file("model"))
    assert (found / "a.bin").read_bytes() == b"a"
    assert (found / "deep" / "b.bin").read_bytes() == b"b" * 10_000
    store.put("memory://files/model/a.bin", b"later")
    assert Path(cache.get_file("a")).read_bytes() == b"later"
    other = cache_of(*files, job_id="other")  # which has begun later
    assert Path(other.get_file("model"), "a.bin").read_bytes() == b"later"
    other.release()
    cache.release()


def test_what_is_not_in_the_store_is_an_error_when_it_is_asked_for() -> None:
    cache = cache_of(CachedFile("x", "memory://files/not/there", False))
    for _ in range(2):
        with pytest.raises(StorageError, match=r"nothing at memory://files/not/there, .*'x'"):
            cache.get_file("x")
    cache.release()


class Asks(MapFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        runtime_context.get_distributed_cache().get_file("price")

    def map(self, value: Any) -> Any:
        return value


def test_a_name_that_was_not_registered_is_told_with_those_that_were(
    env: StreamExecutionEnvironment, prices: Path
) -> None:
    env.register_cached_file(str(prices), "prices")
    message = r"(?s)'Map\(Asks\)'.*no file is registered as 'price'.*there is 'prices'"
    with pytest.raises(JobExecutionError, match=message):
        collected(env.from_collection([1]).map(Asks()))
    with pytest.raises(UserFunctionError, match="there is none at all"):
        OperatorTestHarness.of(Asks())


@pytest.mark.parametrize(
    ("path", "name", "executable", "message"),
    [
        ("/not/there", "x", False, "no such file or folder"),
        ("/dev/null", "x", False, "no such file or folder"),
        (5, "x", False, "the path of a file or folder is needed"),
        ("hdfs://host/x", "x", False, "no usable scheme"),
        ("/tmp", "", False, "a str that is not empty"),
        ("/tmp", None, False, "a str that is not empty"),
        ("/tmp", "x", "yes", "executable is True or False"),
    ],
)
def test_what_cannot_be_registered(
    path: Any, name: Any, executable: Any, message: str, env: StreamExecutionEnvironment
) -> None:
    with pytest.raises(ConfigError, match=message):
        env.register_cached_file(path, name, executable)


def test_a_name_stands_for_one_file(env: StreamExecutionEnvironment, prices: Path) -> None:
    env.register_cached_file(str(prices), "x")
    with pytest.raises(ConfigError, match=r"prices.txt is registered under this name already"):
        env.register_cached_file(str(prices.parent), "x")


def test_what_travels_is_bounded(
    env: StreamExecutionEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_files, "SHIPPED_BYTES_MAX", 1_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "half").write_bytes(os.urandom(300))
    (tmp_path / "half").write_bytes(b"x" * 500)
    (tmp_path / "large").write_bytes(b"x" * 1_001)
    half, folder, large = (
        registered(tmp_path / name, name, False) for name in ("half", "folder", "large")
    )
    assert len(shipped([half, folder])) == 2
    for files in ([large], [half, folder, half], [half, half, half]):
        with pytest.raises(ConfigError, match=r"would travel with the job; .*s3:// path"):
            shipped(files)
    (tmp_path / "folder" / "more").write_bytes(os.urandom(700))
    with pytest.raises(ConfigError, match="'folder'"):
        shipped([folder])


def test_what_has_gone_before_the_job_is_executed(
    env: StreamExecutionEnvironment, prices: Path
) -> None:
    env.register_cached_file(str(prices), "prices")
    prices.unlink()
    env.from_collection([1]).print()
    with pytest.raises(ConfigError, match=r"'prices' cannot be read: No such file"):
        env.get_job_graph("x")


def test_a_folder_that_leads_into_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    with pytest.raises(ConfigError, match="'x' cannot be read"):
        shipped([registered(tmp_path / "folder", "x", False)])


class Listed(RichIterativeCondition):
    def open(self, runtime_context: RuntimeContext) -> None:
        super().open(runtime_context)
        with open(runtime_context.get_distributed_cache().get_file("prices")) as file:
            self.names = {line.split()[0] for line in file}

    def filter(self, value: Any, ctx: IterativeCondition.Context) -> bool:
        return value in self.names


def test_conditions_of_patterns_read_them_too(
    env: StreamExecutionEnvironment, prices: Path
) -> None:
    env.register_cached_file(str(prices), "prices")
    pattern = Pattern.begin("x").where(Listed())
    stream = env.from_collection(["c", "b", "d", "a"]).key_by(lambda s: s)
    found = CEP.pattern(stream, pattern).in_processing_time().select(lambda match: match["x"][0])
    assert collected(found) == ["a", "b"]


class Fails(KeyedProcessFunction):
    """Fails in its first attempt, when the original has gone."""

    def __init__(self, original: str) -> None:
        self.original = original

    def open(self, runtime_context: RuntimeContext) -> None:
        self.attempt = runtime_context.get_attempt_number()
        self.path = runtime_context.get_distributed_cache().get_file("prices")

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Any:
        if self.attempt == 0:
            if os.path.exists(self.original):
                os.unlink(self.original)
            raise ValueError("the first attempt")
        with open(self.path) as file:
            yield file.readline()


def test_after_a_restart_it_is_there_again_also_when_the_original_is_not(
    env: StreamExecutionEnvironment, prices: Path
) -> None:
    env.configure(
        Configuration(
            {
                "restart-strategy.type": "fixed-delay",
                "restart-strategy.fixed-delay.attempts": "2",
                "restart-strategy.fixed-delay.delay": "1 ms",
            }
        )
    )
    env.register_cached_file(str(prices), "prices")
    stream = env.from_collection([1]).key_by(lambda n: n).process(Fails(str(prices)))
    assert collected(stream) == ["a 1\n"]
    assert not prices.exists()


def test_the_harness_has_files_too(prices: Path) -> None:
    with OperatorTestHarness.of(Price(), cached_files={"prices": str(prices)}) as harness:
        assert harness.process("b").values == [("b", "2")]


def test_a_store_that_cannot_be_reached_is_told_with_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(self: Any, path: str) -> Any:
        raise StorageError("no route to host")

    monkeypatch.setattr(MemoryFileSystem, "open", fails)
    cache = cache_of(CachedFile("x", "memory://files/x", False))
    with pytest.raises(StorageError, match="the cached file 'x' cannot be fetched: no route"):
        cache.get_file("x")
