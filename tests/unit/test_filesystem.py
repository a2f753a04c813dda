"""One conformance suite for every file system, then what is particular to each."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from unittest import mock

import botocore.endpoint
import pytest
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session
from s3_servers import S3Server, aws_env, set_env

from dataflow.errors import ConfigError, ObjectNotFound, StorageError, UploadLost
from dataflow.filesystem import FileSystem, get_file_system, parse
from dataflow.filesystem import s3 as s3_module
from dataflow.filesystem.local import LocalFileSystem
from dataflow.filesystem.memory import MemoryFileSystem
from dataflow.filesystem.s3 import S3FileSystem
from dataflow.filesystem.streams import Pieces

MIB = 1 << 20
LOST = "is lost|S3 answered 500"  # moto fails inside where S3 answers NoSuchUpload


@pytest.fixture(scope="module")
def moto_server() -> Iterator[S3Server]:
    """moto, one request at a time: its conditional put looks first and writes then."""
    from moto.moto_server import werkzeug_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
    turn = threading.Lock()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with turn:
            return list(moto(environ, start_response))

    server = make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=werkzeug_app.MotoRequestHandler
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.port}"
    yield S3Server(endpoint, aws_env(endpoint))
    server.shutdown()


@pytest.fixture
def moto_bucket(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of moto's server; nothing is waited for between attempts."""
    no_waiting = SimpleNamespace(sleep=lambda _: None)
    for module in (botocore.endpoint, s3_module):
        monkeypatch.setattr(module, "time", no_waiting)
    set_env(monkeypatch, moto_server.env)
    return f"s3://{moto_server.new_bucket()}"


@pytest.fixture(params=["memory", "local", "moto", pytest.param("seaweedfs", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest) -> Iterator[str]:
    """A folder of each kind of file system."""
    if request.param == "memory":
        yield "memory://test/root"
        MemoryFileSystem.drop("test")
    elif request.param == "local":
        yield f"file://{request.getfixturevalue('tmp_path')}/root"
    else:
        bucket = {"moto": "moto_bucket", "seaweedfs": "s3_bucket"}[request.param]
        yield f"{request.getfixturevalue(bucket)}/root"


@pytest.fixture
def fs(root: str) -> FileSystem:
    return parse(root)[0]


def paths(fs: FileSystem, prefix: str) -> list[str]:
    return [status.path for status in fs.list(prefix)]


# ---------------------------------------------------------------------------------- conformance


def test_what_was_put_is_read_back_and_replaced_by_the_next_put(fs: FileSystem, root: str) -> None:
    for data in (b"", b"one", bytes(range(256)) * 5):
        fs.put(f"{root}/a/b", data)
        assert fs.read(f"{root}/a/b") == data
        assert fs.status(f"{root}/a/b").size == len(data)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An object that S3 gets in three parts."""
    monkeypatch.setattr(s3_module, "PUT_BYTES_MAX", MIB)
    monkeypatch.setattr(s3_module, "PUT_PART_BYTES", 5 * MIB)
    return os.urandom(11 * MIB + 7)


def test_a_large_object_is_put_as_any_other(fs: FileSystem, root: str, in_parts: bytes) -> None:
    for data in (in_parts, b"small", in_parts[1:]):
        fs.put(f"{root}/x", data)
        assert fs.read(f"{root}/x") == data
        assert [status.size for status in fs.list(root)] == [len(data)]
        assert list(fs.list_multipart(root)) == []


def test_what_a_source_has_is_put_from_its_beginning(
    fs: FileSystem, root: str, in_parts: bytes, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(in_parts)
    cut = 6 * MIB
    pieces = Pieces([in_parts[:3], in_parts[3:cut], in_parts[cut:]])
    for name, data in (("small", b"small"), ("empty", b""), ("large", in_parts)):
        (tmp_path / name).write_bytes(data)
        with (tmp_path / name).open("rb") as file:
            file.seek(2)
            for _ in range(2):
                fs.put_from(f"{root}/x", file)
                assert fs.read(f"{root}/x") == data
    fs.put(f"{root}/x", b"")
    fs.put_from(f"{root}/x", cast(BinaryIO, pieces))
    assert fs.read(f"{root}/x") == in_parts
    assert list(fs.list_multipart(root)) == []


def test_a_range_is_cut_at_the_end_of_the_object(fs: FileSystem, root: str) -> None:
    fs.put(f"{root}/x", b"0123456789")
    assert fs.read(f"{root}/x", 3, 4) == b"3456"
    assert fs.read(f"{root}/x", 8) == b"89"
    assert fs.read(f"{root}/x", 8, 100) == b"89"
    assert fs.read(f"{root}/x", 10, 5) == b""
    assert fs.read(f"{root}/x", 99) == b""
    assert fs.read(f"{root}/x", 3, 0) == b""
    with pytest.raises(ValueError, match="negative"):
        fs.read(f"{root}/x", -1)


def test_what_is_not_there_is_reported_as_such(fs: FileSystem, root: str) -> None:
    fs.put(f"{root}/folder/x", b"1")
    for path in (f"{root}/no", f"{root}/no/no", f"{root}/folder", f"{root}/folder/x/y"):
        assert not fs.exists(path)
        for call in (fs.read, fs.status, fs.open):
            with pytest.raises(ObjectNotFound, match="no"):
                call(path)
    with pytest.raises(ObjectNotFound):
        fs.read(f"{root}/no", 0, 0)


def test_many_are_deleted_together_also_those_that_are_not_there(
    fs: FileSystem, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "DELETE_MAX", 3)
    names = [f"{root}/a/x&<{n}>" for n in range(8)]
    for name in names:
        fs.put(name, b"1")
    fs.put(f"{root}/b", b"2")
    fs.delete_all([*names[:7], f"{root}/a/no", f"{root}/no/no"])
    assert paths(fs, root) == [names[7], f"{root}/b"]
    fs.delete_all([])


def test_delete_removes_and_does_not_mind_repetition(fs: FileSystem, root: str) -> None:
    fs.put(f"{root}/a/x", b"1")
    fs.put(f"{root}/a/y", b"2")
    for _ in range(2):
        fs.delete(f"{root}/a/x")
    assert paths(fs, root) == [f"{root}/a/y"]
    fs.delete(f"{root}/a/y")
    assert paths(fs, f"{root}/a") == []
    fs.put(f"{root}/a/x", b"3")
    assert fs.read(f"{root}/a/x") == b"3"


def test_list_is_recursive_sorted_and_limited_to_the_folder(fs: FileSystem, root: str) -> None:
    names = ["a", "a b+c&%2e", "d/x", "d/y/z", "d-1", "é/ü", "d/.hidden", "dd/x", "d.x"]
    for name in names:
        fs.put(f"{root}/{name}", name.encode())
    assert paths(fs, root) == sorted(f"{root}/{name}" for name in names)
    for prefix in (f"{root}/d", f"{root}/d/"):
        assert paths(fs, prefix) == [f"{root}/{n}" for n in ("d/.hidden", "d/x", "d/y/z")]
    assert [status.size for status in fs.list(f"{root}/é")] == [len("é/ü".encode())]
    assert paths(fs, f"{root}/nothing") == []
    for name in names:
        assert fs.read(f"{root}/{name}") == name.encode()


def test_put_if_absent_writes_once_and_knows_its_own_data_again(fs: FileSystem, root: str) -> None:
    assert fs.put_if_absent(f"{root}/x", b"mine")
    assert not fs.put_if_absent(f"{root}/x", b"theirs")
    assert not fs.put_if_absent(f"{root}/x", b"min")
    assert not fs.put_if_absent(f"{root}/x", b"mine too")
    assert fs.put_if_absent(f"{root}/x", b"mine")
    assert fs.read(f"{root}/x") == b"mine"


def test_of_concurrent_puts_if_absent_exactly_one_wins(fs: FileSystem, root: str) -> None:
    writers, rounds = 8, 2
    barrier = threading.Barrier(writers)

    def write(writer: int, path: str) -> bool:
        barrier.wait()
        return fs.put_if_absent(path, b"writer %d" % writer)

    with ThreadPoolExecutor(writers) as pool:
        for number in range(rounds):
            path = f"{root}/race-{number}"
            won = list(pool.map(write, range(writers), [path] * writers))
            assert won.count(True) == 1
            assert fs.read(path) == b"writer %d" % won.index(True)


def test_the_probe_accepts_a_store_with_conditional_put_and_leaves_nothing(
    fs: FileSystem, root: str
) -> None:
    fs.probe_conditional_put(root)
    assert paths(fs, root) == []


def test_the_probe_refuses_a_store_that_ignores_the_condition(
    fs: FileSystem, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(path: str, data: bytes) -> bool:
        fs.put(path, data)
        return True

    monkeypatch.setattr(fs, "put_if_absent", overwrite)
    with pytest.raises(StorageError, match="does not honour conditional writes") as caught:
        fs.probe_conditional_put(root)
    assert root in str(caught.value)
    assert paths(fs, root) == []


def test_open_gives_a_seekable_reader(fs: FileSystem, root: str) -> None:
    data = os.urandom(300_000)
    fs.put(f"{root}/x", data)
    with fs.open(f"{root}/x") as file:
        assert file.seekable()
        assert file.read(10) == data[:10]
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.read(1) == b""
        file.seek(1000)
        assert file.read(200_000) == data[1000:201_000]
        assert file.tell() == 201_000
        file.seek(0)
        assert file.read() == data
    fs.put(f"{root}/lines", b"one\ntwo\nthree")
    with fs.open(f"{root}/lines") as file:
        assert list(file) == [b"one\n", b"two\n", b"three"]
    fs.put(f"{root}/empty", b"")
    with fs.open(f"{root}/empty") as file:
        assert file.read() == b""


@pytest.mark.parametrize("sizes", [[], [5], [3, 0, 4], [9 * MIB, 10 * MIB]], ids=str)
def test_an_upload_is_invisible_until_committed_and_commit_is_idempotent(
    fs: FileSystem, root: str, sizes: list[int]
) -> None:
    path = f"{root}/out/part"
    chunks = [os.urandom(size) for size in sizes]
    upload = fs.create_multipart(path)
    for chunk in chunks:
        upload.write(chunk)
    assert upload.size == sum(sizes)
    token = upload.prepare()
    assert upload.prepare() == token
    assert paths(fs, root) == []
    assert not fs.exists(path)

    other_process = pickle.loads(pickle.dumps(fs))
    for _ in range(3):
        other_process.commit_multipart(token)
    assert fs.read(path) == b"".join(chunks)
    fs.abort_multipart(token)
    assert fs.read(path) == b"".join(chunks)


def test_an_aborted_upload_leaves_nothing_and_cannot_be_committed(
    fs: FileSystem, root: str
) -> None:
    path = f"{root}/out/part"
    for prepared in (False, True):
        upload = fs.create_multipart(path)
        upload.write(b"data")
        if prepared:
            token = upload.prepare()
            fs.abort_multipart(token)
        upload.abort()
        upload.abort()
    assert paths(fs, root) == []
    with pytest.raises(StorageError, match=LOST):
        fs.commit_multipart(token)
    assert not fs.exists(path)


def test_uploads_in_progress_are_listed_until_they_are_committed_or_aborted(
    fs: FileSystem, root: str
) -> None:
    names = [f"{root}/out/a", f"{root}/out/a", f"{root}/out/b/c", f"{root}/outside"]
    uploads = [fs.create_multipart(name) for name in names]
    for upload in uploads:
        upload.write(b"data")
        upload.send()

    def listed(folder: str) -> list[object]:
        return [upload["path"] for upload in fs.list_multipart(folder)]

    assert listed(f"{root}/out") == listed(f"{root}/out/") == names[:3]
    assert listed(f"{root}/nowhere") == []
    fs.commit_multipart(uploads[0].prepare())
    assert listed(f"{root}/out") == names[1:3]
    for token in fs.list_multipart(root):
        fs.abort_multipart(token)
    assert listed(root) == []
    assert fs.read(f"{root}/out/a") == b"data"
    with pytest.raises(StorageError):
        fs.commit_multipart(uploads[2].prepare())


def test_a_commit_is_not_taken_for_another_uploads(fs: FileSystem, root: str) -> None:
    path = f"{root}/out/part"
    first, second = fs.create_multipart(path), fs.create_multipart(path)
    first.write(b"first")
    second.write(b"second, of another size")
    lost = first.prepare()
    first.abort()
    fs.commit_multipart(second.prepare())
    with pytest.raises(StorageError, match=LOST):
        fs.commit_multipart(lost)
    assert fs.read(path) == b"second, of another size"


def test_tokens_from_elsewhere_are_refused(fs: FileSystem, root: str) -> None:
    upload = fs.create_multipart(f"{root}/x")
    token = upload.prepare()
    for change in ({"path": 7}, {"path": ""}, {"upload_id": None}, {"upload_id": "../../etc"}):
        with pytest.raises(StorageError):
            fs.commit_multipart({**token, **change})
    with pytest.raises(StorageError):
        fs.commit_multipart({})
    assert paths(fs, root) == []
    upload.abort()


# ----------------------------------------------------------------------------------------- URIs


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/data/x", "file:///data/x"),
        ("//data/x", "file:///data/x"),
        ("/data//x/./y/", "file:///data/x/y"),
        ("file:///data/x", "file:///data/x"),
        ("file://localhost/data/x", "file:///data/x"),
        ("file:/data/x", "file:///data/x"),
        ("FILE:///data", "file:///data"),
        ("/data/a@b/%2e%2e/c..d", "file:///data/a@b/%2e%2e/c..d"),
        ("memory://name/a//b/", "memory://name/a/b"),
        ("memory://name", "memory://name"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/a/b*.csv", "s3://my.bucket-1/a/b*.csv"),
    ],
)
def test_uris_and_local_paths_are_parsed(uri: str, expected: str) -> None:
    fs, path = parse(uri)
    assert path == expected
    assert path.startswith(fs.scheme)
    assert parse(path)[1] == path


def test_relative_paths_and_path_objects_are_local(tmp_path: Path) -> None:
    assert parse("some/file")[1] == f"file://{os.getcwd()}/some/file"
    assert parse(tmp_path / "x")[1] == f"file://{tmp_path}/x"
    assert isinstance(get_file_system(str(tmp_path)), LocalFileSystem)
    assert isinstance(get_file_system("some/file"), LocalFileSystem)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "non-empty"),
        (b"/x", "text"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3:/bucket/key", "no usable scheme"),
        ("s3a://bucket/x", "write s3:// instead"),
        ("gs://bucket/x", "allowed are file://, s3://"),
        ("http://host/x", "allowed are"),
        ("memory://", "names no store name"),
        ("s3://bucket/a/../b", "contains '..'"),
        ("s3://../x", "contains '..'"),
        ("/data/../etc/passwd", "contains '..'"),
        ("../x", "contains '..'"),
        ("file:///..", "contains '..'"),
        ("file://host/x", "without a host"),
        ("file://host", "without a host"),
        ("/data/\0x", "NUL"),
        ("s3://buck\0et/x", "NUL"),
        ("s3://b ucket/x", "names no bucket"),
    ],
)
def test_unusable_uris_are_refused_with_the_reason(uri: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(uri)


def test_credentials_in_a_uri_are_refused_without_repeating_them() -> None:
    with pytest.raises(ConfigError, match="do not belong") as caught:
        parse("s3://AKIA123:topsecret@bucket/x")
    assert "topsecret" not in str(caught.value)


# ---------------------------------------------------------------------------------------- local


def test_local_leaves_no_temporary_files_and_no_empty_folders(tmp_path: Path) -> None:
    fs, root = parse(tmp_path)
    fs.put(f"{root}/a/x", b"1")
    fs.put_if_absent(f"{root}/a/y", b"1")
    fs.put_if_absent(f"{root}/a/y", b"2")
    assert sorted(os.listdir(tmp_path / "a")) == ["x", "y"]
    fs.delete(f"{root}/a/x")
    fs.delete(f"{root}/a/y")
    assert not (tmp_path / "a").exists()


def test_local_what_a_put_has_left_when_its_process_died_is_an_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, root = parse(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", mock.Mock(side_effect=SystemExit))
        patch.setattr(os, "unlink", mock.Mock())  # nothing is done any more
        with pytest.raises(SystemExit):
            fs.put(f"{root}/x", b"half")
    assert paths(fs, root) == []
    (left,) = fs.list_multipart(root)
    assert left["path"] == f"{root}/x"
    fs.abort_multipart(left)
    assert os.listdir(tmp_path) == []


def test_local_failures_are_one_sentence(tmp_path: Path) -> None:
    fs, root = parse(tmp_path)
    fs.put(f"{root}/file", b"1")
    (tmp_path / "folder").mkdir()
    for call in (fs.put, fs.put_if_absent):
        with pytest.raises(StorageError, match=r"cannot write .*/folder: it is a folder"):
            call(f"{root}/folder", b"1")
        with pytest.raises(StorageError, match="cannot write"):
            call(f"{root}/file/below", b"1")
        with pytest.raises(StorageError, match=r"cannot write .*too long"):
            call(f"{root}/{'x' * 250}", b"1")
    with pytest.raises(StorageError, match="cannot write"):
        fs.create_multipart(f"{root}/file/below")


def test_local_refuses_a_folder_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    fs, root = parse(tmp_path)
    with pytest.raises(StorageError, match="no hard links"):
        fs.put_if_absent(f"{root}/x", b"1")
    assert os.listdir(tmp_path) == []


def test_local_deletes_while_others_write_into_the_same_folder(tmp_path: Path) -> None:
    """Deleting the last file removes the folder, which must not make another's write fail."""
    fs, root = parse(tmp_path)

    def churn(name: int) -> None:
        for _ in range(50):
            fs.put(f"{root}/folder/{name}", b"x")
            fs.delete(f"{root}/folder/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))


def test_memory_names_are_the_same_in_every_run() -> None:
    def run() -> dict[str, object]:
        MemoryFileSystem.drop("names")
        upload = MemoryFileSystem().create_multipart("memory://names/x")
        upload.write(b"1")
        (begun,) = MemoryFileSystem().list_multipart("memory://names")
        assert begun["path"] == "memory://names/x"
        return upload.prepare()

    assert run() == run()
    MemoryFileSystem.drop("names")


# ------------------------------------------------------------------------------------------- S3


@pytest.fixture
def s3(moto_bucket: str) -> S3FileSystem:
    """A client of its own on moto's server."""
    return S3FileSystem()


def fault(
    fs: S3FileSystem, operation: str, times: int, effect: bool, status: int | None = None
) -> list[str]:
    """Let requests of ``operation`` fail, with or without effect, by time-out or by a status."""
    from botocore.awsrequest import AWSResponse

    calls: list[str] = []

    code = {503: "SlowDown", 409: "ConditionalRequestConflict", 404: "NoSuchUpload"}
    body = f"<Error><Code>{code.get(status or 0)}</Code><Message>secret detail</Message></Error>"

    class Raw:
        def stream(self, **_: object) -> Iterator[bytes]:
            yield body.encode()

    def before_send(request: Any, **_: object) -> Any:
        calls.append(request.method)
        if len(calls) > times:
            return None
        if effect:
            URLLib3Session().send(request)
        if status is not None:
            return AWSResponse(request.url, status, {}, Raw())
        raise ReadTimeoutError(endpoint_url=request.url)

    fs.client.meta.events.register(f"before-send.s3.{operation}", before_send)
    return calls


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize("status", [None, 500, 503])
@pytest.mark.parametrize("times", [1, 3, 7])
def test_put_if_absent_survives_lost_requests_and_lost_answers(
    s3: S3FileSystem, moto_bucket: str, effect: bool, status: int | None, times: int
) -> None:
    """More failures than botocore retries are resolved by reading back."""
    calls = fault(s3, "PutObject", times, effect, status)
    assert s3.put_if_absent(f"{moto_bucket}/x", b"mine")
    assert s3.read(f"{moto_bucket}/x") == b"mine"
    assert len(calls) > 1


@pytest.mark.parametrize("status", [None, 404, 503])
def test_where_many_cannot_be_deleted_together_they_are_one_by_one(
    s3: S3FileSystem, moto_bucket: str, status: int | None
) -> None:
    names = [f"{moto_bucket}/{n}" for n in range(3)]
    for name in names:
        s3.put(name, b"1")
    together = fault(s3, "DeleteObjects", 10**6, effect=False, status=status)
    single = fault(s3, "DeleteObject", 0, effect=True)
    s3.delete_all(names)
    assert paths(s3, moto_bucket) == []
    assert (len(together) > 0, len(single)) == (True, 3)


def test_what_the_server_could_not_delete_with_the_others_is_deleted_alone(
    s3: S3FileSystem, moto_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{moto_bucket}/{n}" for n in range(3)]
    for name in names:
        s3.put(name, b"1")
    refused = {"Errors": [{"Key": "1", "Code": "InternalError"}]}
    monkeypatch.setattr(s3.client, "delete_objects", lambda **_: refused)
    s3.delete_all(names)
    assert paths(s3, moto_bucket) == []


@pytest.mark.parametrize("times", [1, 7])
def test_put_if_absent_after_a_lost_answer_does_not_claim_anothers_data(
    s3: S3FileSystem, moto_bucket: str, times: int
) -> None:
    s3.put(f"{moto_bucket}/x", b"theirs")
    fault(s3, "PutObject", times, effect=True)
    assert not s3.put_if_absent(f"{moto_bucket}/x", b"mine")
    assert s3.read(f"{moto_bucket}/x") == b"theirs"


def test_retries_are_bounded_and_the_error_names_server_and_object(
    s3: S3FileSystem, moto_bucket: str, moto_server: S3Server
) -> None:
    calls = fault(s3, "PutObject", 10**6, effect=False)
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        s3.put(f"{moto_bucket}/x", b"1")
    assert len(calls) == s3_module.ATTEMPTS_MAX
    assert f"{moto_bucket}/x at {moto_server.endpoint}" in str(caught.value)
    with pytest.raises(StorageError, match="cannot be reached"):
        s3.put_if_absent(f"{moto_bucket}/x", b"1")
    assert len(calls) == s3_module.ATTEMPTS_MAX * (1 + s3_module.ATTEMPTS_MAX)


def test_server_errors_are_retried_and_then_reported_without_the_servers_text(
    s3: S3FileSystem, moto_bucket: str
) -> None:
    fault(s3, "PutObject", 10**6, effect=False, status=503)
    with pytest.raises(StorageError, match="S3 answered 503 SlowDown") as caught:
        s3.put(f"{moto_bucket}/x", b"1")
    assert "secret detail" not in str(caught.value)


def test_parts_are_sent_several_at_a_time_and_each_again_where_it_fails(
    s3: S3FileSystem, moto_bucket: str, in_parts: bytes
) -> None:
    sent = fault(s3, "UploadPart", 3, effect=True)
    s3.put(f"{moto_bucket}/x", in_parts)
    assert len(sent) == 3 + 3
    assert s3.read(f"{moto_bucket}/x") == in_parts


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_what_cannot_be_put_in_parts_is_not_there_and_leaves_no_upload(
    s3: S3FileSystem, moto_bucket: str, in_parts: bytes, operation: str
) -> None:
    s3.put(f"{moto_bucket}/x", b"before")
    fault(s3, operation, 10**6, effect=False, status=503)
    with pytest.raises(StorageError, match=f"cannot write {moto_bucket}/x.*503 SlowDown"):
        s3.put(f"{moto_bucket}/x", in_parts)
    assert s3.read(f"{moto_bucket}/x") == b"before"
    assert list(s3.list_multipart(moto_bucket)) == []


@pytest.mark.parametrize("effect", [True, False])
def test_parts_that_were_put_together_although_the_answer_got_lost_are_known(
    s3: S3FileSystem, moto_bucket: str, in_parts: bytes, effect: bool
) -> None:
    s3.put(f"{moto_bucket}/x", in_parts[::-1])  # of the same size, but not of this upload
    fault(s3, "CompleteMultipartUpload", 1, effect, status=404)  # NoSuchUpload
    if effect:
        s3.put(f"{moto_bucket}/x", in_parts)
    else:
        with pytest.raises(StorageError, match="was not written: somebody has aborted") as caught:
            s3.put(f"{moto_bucket}/x", in_parts)
        assert type(caught.value) is StorageError, "nothing that was prepared is lost"
    assert s3.read(f"{moto_bucket}/x") == (in_parts if effect else in_parts[::-1])


def test_a_concurrent_conditional_write_is_waited_for(s3: S3FileSystem, moto_bucket: str) -> None:
    calls = fault(s3, "PutObject", 2, effect=False, status=409)
    assert s3.put_if_absent(f"{moto_bucket}/x", b"mine")
    assert len(calls) == 3


@pytest.mark.parametrize("status", [304, 501])
def test_a_server_that_does_not_know_the_header_is_refused_by_name(
    s3: S3FileSystem, moto_bucket: str, moto_server: S3Server, status: int
) -> None:
    fault(s3, "PutObject", 10**6, effect=False, status=status)
    with pytest.raises(StorageError, match=f"answers {status} to a conditional write") as caught:
        s3.probe_conditional_put(moto_bucket)
    assert moto_server.endpoint in str(caught.value)


def test_a_server_that_ignores_the_header_is_refused_by_name(
    s3: S3FileSystem, moto_bucket: str, moto_server: S3Server
) -> None:
    def drop_header(request: Any, **_: object) -> None:
        del request.headers["If-None-Match"]

    s3.client.meta.events.register("before-sign.s3.PutObject", drop_header)
    with pytest.raises(StorageError, match="does not honour conditional writes") as caught:
        s3.probe_conditional_put(f"{moto_bucket}/jobs")
    assert moto_server.endpoint in str(caught.value)
    assert paths(s3, moto_bucket) == []


@pytest.mark.parametrize("times", [1, 10**6])
def test_a_commit_whose_answer_was_lost_is_repeated_without_harm(
    s3: S3FileSystem, moto_bucket: str, times: int
) -> None:
    upload = s3.create_multipart(f"{moto_bucket}/x")
    upload.write(b"data")
    token = upload.prepare()
    fault(s3, "CompleteMultipartUpload", times, effect=True)
    if times == 1:
        s3.commit_multipart(token)
    else:
        with pytest.raises(StorageError, match="cannot be reached"):
            s3.commit_multipart(token)
        S3FileSystem().commit_multipart(token)
    assert s3.read(f"{moto_bucket}/x") == b"data"


def test_a_commit_that_finds_no_upload_looks_for_the_object_it_became(
    s3: S3FileSystem, moto_bucket: str
) -> None:
    """AWS answers NoSuchUpload some time after an upload was completed."""
    upload = s3.create_multipart(f"{moto_bucket}/x")
    upload.write(b"data")
    token = upload.prepare()
    s3.commit_multipart(token)
    fault(s3, "CompleteMultipartUpload", 10**6, effect=False, status=404)
    s3.commit_multipart(token)
    s3.put(f"{moto_bucket}/x", b"DATA")  # of the same size, but not of this upload
    with pytest.raises(StorageError, match="lost"):
        s3.commit_multipart(token)


def test_writing_to_an_upload_makes_no_request_and_what_failed_is_sent_again(
    s3: S3FileSystem, moto_bucket: str
) -> None:
    """A task's step writes; only ``send`` and ``prepare``, on I/O threads, may wait."""
    content = os.urandom(2 * s3_module.PART_BYTES + 1)
    begun = fault(s3, "CreateMultipartUpload", s3_module.ATTEMPTS_MAX, effect=False)
    sent = fault(s3, "UploadPart", s3_module.ATTEMPTS_MAX, effect=True)
    upload = s3.create_multipart(f"{moto_bucket}/x")
    upload.write(content[:10])
    assert not upload.sendable, "too little for a request of its own"
    upload.write(content[10:])
    assert upload.unsent == len(content)
    assert upload.sendable
    assert (begun, sent) == ([], [])
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot be reached"):
            upload.send()
    assert upload.unsent == len(content)
    upload.send()
    assert upload.unsent == 1
    s3.commit_multipart(upload.prepare())
    assert s3.read(f"{moto_bucket}/x") == content


def test_an_upload_to_a_bucket_that_is_not_there_says_so_when_it_begins(
    s3: S3FileSystem, moto_bucket: str
) -> None:
    upload = s3.create_multipart(f"{moto_bucket}-gone/x")
    with pytest.raises(StorageError, match=f"there is no bucket '{moto_bucket[5:]}-gone'"):
        upload.send()


def test_an_upload_that_somebody_has_aborted_is_lost(s3: S3FileSystem, moto_bucket: str) -> None:
    upload = s3.create_multipart(f"{moto_bucket}/x")
    upload.write(b"data")
    upload.send()
    fault(s3, "UploadPart", 10**6, effect=False, status=404)  # NoSuchUpload
    with pytest.raises(UploadLost, match="somebody has aborted it"):
        upload.prepare()


@pytest.mark.parametrize("call", ["flush", "fsync"])
def test_a_local_upload_that_could_not_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What is left after a full disk is written later; what fsync has failed on is gone."""
    fs, path = LocalFileSystem(), f"file://{tmp_path}/x"
    upload = fs.create_multipart(path)
    upload.write(b"data")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(upload, "_file", mock.Mock(wraps=upload._file, flush=full))  # type: ignore[attr-defined]
        with pytest.raises(StorageError, match="No space left"):
            upload.prepare()
    if call == "flush":
        fs.commit_multipart(upload.prepare())
        assert fs.read(path) == b"data"
    else:
        for _ in range(2):
            with pytest.raises(UploadLost, match="is not on the disk: No space left"):
                upload.prepare()


def test_an_aborted_upload_is_not_begun_again(s3: S3FileSystem, moto_bucket: str) -> None:
    for begun in (False, True):
        upload = s3.create_multipart(f"{moto_bucket}/x")
        upload.write(b"data")
        if begun:
            upload.send()
        upload.abort()
        for call in (upload.send, upload.prepare):
            with pytest.raises(UploadLost, match="was aborted"):
                call()
    uploads = s3.client.list_multipart_uploads(Bucket=moto_bucket.removeprefix("s3://"))
    assert uploads.get("Uploads", []) == []


def test_a_body_that_breaks_off_is_read_again(
    s3: S3FileSystem, moto_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import IncompleteReadError
    from botocore.response import StreamingBody

    s3.put(f"{moto_bucket}/x", b"0123456789")
    whole, cuts = StreamingBody.read, iter([True, True, False])

    def read(self: StreamingBody, amt: int | None = None) -> bytes:
        data: bytes = whole(self, amt)
        if next(cuts, True):
            raise IncompleteReadError(actual_bytes=3, expected_bytes=len(data))
        return data

    monkeypatch.setattr(StreamingBody, "read", read)
    assert s3.read(f"{moto_bucket}/x", 2, 5) == b"23456"
    with pytest.raises(StorageError, match="breaks off"):
        s3.read(f"{moto_bucket}/x")


def test_large_objects_are_read_in_blocks(s3: S3FileSystem, moto_bucket: str) -> None:
    data = os.urandom(2 * s3_module.READ_AHEAD_BYTES + 123)
    s3.put(f"{moto_bucket}/x", data)
    calls = fault(s3, "GetObject", 0, effect=False)
    with s3.open(f"{moto_bucket}/x") as file:
        parts = list(iter(lambda: file.read(100_000), b""))
    assert b"".join(parts) == data
    assert len(calls) == 3


def test_an_object_replaced_while_it_is_read_is_an_error(
    s3: S3FileSystem, moto_bucket: str
) -> None:
    s3.put(f"{moto_bucket}/x", b"a" * (s3_module.READ_AHEAD_BYTES + 1))
    with s3.open(f"{moto_bucket}/x") as file:
        file.read(1)
        s3.put(f"{moto_bucket}/x", b"b" * (s3_module.READ_AHEAD_BYTES + 1))
        with pytest.raises(StorageError, match="412"):
            file.read()


def test_lists_longer_than_a_page_are_complete(s3: S3FileSystem, moto_bucket: str) -> None:
    def small_pages(params: dict[str, Any], **_: object) -> None:
        params["MaxKeys"] = 3

    s3.client.meta.events.register("provide-client-params.s3.ListObjectsV2", small_pages)
    names = [f"{moto_bucket}/d/{number:02}" for number in range(10)]
    for name in names:
        s3.put(name, b"")
    s3.put(f"{moto_bucket}/d/folder/", b"")
    assert paths(s3, f"{moto_bucket}/d") == names


def test_parts_grow_so_that_large_objects_fit(s3: S3FileSystem, moto_bucket: str) -> None:
    upload = s3.create_multipart(f"{moto_bucket}/x")
    upload._parts = ["tag"] * 1000  # type: ignore[attr-defined]
    assert upload._part_bytes == 2 * s3_module.PART_BYTES  # type: ignore[attr-defined]
    upload._parts = ["tag"] * s3_module.PARTS_MAX  # type: ignore[attr-defined]
    upload.write(b"1")
    with pytest.raises(StorageError, match="more than 10000 parts"):
        upload.prepare()


def _without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


def _with_unknown_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")


def _with_dead_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:hunter2@127.0.0.1:9")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_credentials, "no usable AWS credentials"),
        (_with_unknown_profile, "AWS_PROFILE"),
        (_with_dead_endpoint, r"at http://127.0.0.1:9: the server cannot be reached"),
    ],
)
def test_a_wrong_configuration_is_one_clear_sentence(
    s3: S3FileSystem,
    moto_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    change(monkeypatch)
    with pytest.raises(StorageError, match=reason) as caught:
        S3FileSystem().put(f"{moto_bucket}/x", b"1")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "testsecretkey" not in str(caught.value)


def test_a_missing_bucket_and_denied_access_are_told_apart(
    s3: S3FileSystem, moto_bucket: str
) -> None:
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'"):
        s3.put("s3://no-such-bucket/x", b"1")
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'"):
        paths(s3, "s3://no-such-bucket/x")
    fault(s3, "PutObject", 10**6, effect=False, status=403)
    with pytest.raises(StorageError, match="access denied"):
        s3.put(f"{moto_bucket}/x", b"1")
    with pytest.raises(StorageError, match="access denied"):
        s3.put_if_absent(f"{moto_bucket}/x", b"1")


def test_the_client_follows_the_environment_and_is_shared_within_it(
    moto_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get_file_system(moto_bucket)
    assert get_file_system(moto_bucket) is first
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert get_file_system(moto_bucket) is not first


def test_plain_http_to_another_machine_is_warned_about(
    moto_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    S3FileSystem().location(moto_bucket)
    assert not caplog.records
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://storage.example:9000")
    S3FileSystem().location(moto_bucket)
    assert "unencrypted" in caplog.text
