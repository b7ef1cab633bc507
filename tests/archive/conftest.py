"""What the tests of the bucket share: an S3 behind a proxy that can be told to misbehave, and a lease that can be ended.

All of them run against the embedded S3. It verifies no checksums and no signatures, so with ``SWIFT_BIN=…/bin`` in the
environment (the `bin` of a venv with ``swift==2.38.3``) they run against OpenStack Swift as well, which does; see `swift.py`.
"""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3.session
import pytest
from botocore.config import Config

from worker.archive import Archive
from worker.model import Output, OutputId
from worker.settings import ArchiveSettings

MIB = 2**20
_buckets = itertools.count(1)


class Lease:
    """A lease that lasts until `end` is called."""

    def __init__(self) -> None:
        self.ended: Exception | None = None
        self.checks = 0

    def end(self, why: Exception) -> None:
        self.ended = why

    def check(self) -> None:
        self.checks += 1
        if self.ended:
            raise self.ended


@dataclass
class Fault:
    method: str
    path: str
    act: Callable[[Handler], None]
    times: int
    seen: int = 0


class Handler(BaseHTTPRequestHandler):
    """One request: read, passed on, answered, unless a fault says otherwise."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle_one_request()

    def do_any(self) -> None:
        self.body: bytes | None = None
        fault = self.proxy.take(self.command, self.path)
        if fault is not None:
            fault.act(self)
        else:
            self.forward()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def read_body(self, limit: int | None = None) -> bytes:
        if self.body is None:
            length = int(self.headers.get("Content-Length", 0))
            self.body = self.rfile.read(length if limit is None else min(limit, length))
        return self.body

    def forward(self, change: Callable[[bytes], bytes] = bytes, *, answer: bool = True) -> None:
        body = self.read_body()
        with self.proxy.one_at_a_time:
            server = http.client.HTTPConnection(self.proxy.host, self.proxy.port, timeout=60)
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    server.putheader(name, value)
            server.endheaders(change(body))
            reply = server.getresponse()
            content = reply.read()
            server.close()
        if not answer:
            self.reset()
            return
        self.send_response_only(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in {"transfer-encoding", "connection"} and not (
                name.lower() == "content-length" and self.command != "HEAD"
            ):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def reset(self) -> None:
        """End the connection with RST, without an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        raise ConnectionResetError

    def log_message(self, *args: Any) -> None:
        pass


class Proxy(ThreadingHTTPServer):
    """A proxy in front of S3. It passes on one request at a time, which makes create-only atomic, as it is in the real S3:
    the servers that we can run here look first and write then.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, url: str) -> None:
        handler = type("BoundHandler", (Handler,), {"proxy": self})
        super().__init__(("127.0.0.1", 0), handler)
        parts = urlsplit(url)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self.one_at_a_time = threading.Lock()
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, method: str, path: str, act: Callable[[Handler], None], *, times: int = 1) -> Fault:
        """Do `act` to the next `times` requests whose method and path match."""
        fault = Fault(method, path, act, times)
        self.faults.append(fault)
        return fault

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            for fault in self.faults:
                if fault.seen < fault.times and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    fault.seen += 1
                    return fault
        return None

    def count(self, pattern: str) -> int:
        return sum(1 for request in self.requests if re.search(pattern, request))

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def answer(status: int, code: str, **headers: str) -> Callable[[Handler], None]:
    """Refuse with an S3 error, nothing done."""

    def act(handler: Handler) -> None:
        handler.read_body()
        body = b"" if handler.command == "HEAD" else f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        handler.send_response_only(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def lose_answer(handler: Handler) -> None:
    """Do it, and never say so."""
    handler.forward(answer=False)


def reset_midway(handler: Handler) -> None:
    """Read a little of the body, then cut the connection."""
    handler.read_body(64 * 1024)
    handler.reset()


def hold(gate: threading.Event) -> Callable[[Handler], None]:
    """Answer nothing until the gate opens."""

    def act(handler: Handler) -> None:
        handler.read_body()
        gate.wait(60)
        handler.forward()

    return act


def slowly(seconds: float) -> Callable[[Handler], None]:
    """Take the body in small pieces over that time."""

    def act(handler: Handler) -> None:
        length = int(handler.headers.get("Content-Length", 0))
        pieces = []
        for begin in range(0, length, max(1, length // 20)):
            pieces.append(handler.rfile.read(min(max(1, length // 20), length - begin)))
            time.sleep(seconds / 20)
        handler.body = b"".join(pieces)
        handler.forward()

    return act


def cut_download(handler: Handler) -> None:
    """Promise the whole object and give a third of it."""
    server = http.client.HTTPConnection(handler.proxy.host, handler.proxy.port, timeout=60)
    server.request("GET", handler.path, headers=dict(handler.headers.items()))
    reply = server.getresponse()
    content = reply.read()
    server.close()
    handler.send_response_only(reply.status)
    for name, value in reply.getheaders():
        if name.lower() not in {"transfer-encoding", "connection"}:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 3])
    handler.reset()


@dataclass
class World:
    """A bucket behind a proxy, and what a test asks of it."""

    settings: ArchiveSettings
    proxy: Proxy
    client: Any = field(repr=False)
    verifies: bool

    def archive(self, *, spool_bytes: int = 64 * MIB, **changes: Any) -> Archive:
        return Archive(self.settings.model_copy(update=changes), spool_bytes=spool_bytes)

    def keys(self) -> list[str]:
        listing = self.client.list_objects_v2(Bucket=self.settings.bucket)
        return [entry["Key"] for entry in listing.get("Contents", ())]

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.settings.bucket, Key=key)["Body"].read()

    def put(self, key: str, body: bytes, **params: Any) -> None:
        self.client.put_object(Bucket=self.settings.bucket, Key=key, Body=body, **params)

    def unfinished(self) -> list[str]:
        listing = self.client.list_multipart_uploads(Bucket=self.settings.bucket)
        return [upload["Key"] for upload in listing.get("Uploads", ())]


@pytest.fixture(scope="session")
def _swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start Swift, where there is one."""
    folder = os.environ["SWIFT_BIN"]
    spec = importlib.util.spec_from_file_location("swift_server", Path(__file__).with_name("swift.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.SwiftServer(Path(folder), tmp_path_factory.mktemp("swift")) as server:
        yield server


_needs_swift = pytest.mark.skipif(
    "SWIFT_BIN" not in os.environ, reason="no OpenStack Swift: SWIFT_BIN names no bin folder of a venv with swift==2.38.3"
)


@pytest.fixture(params=["moto", pytest.param("swift", marks=_needs_swift)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """An empty bucket, under the prefix ``archive``."""
    if request.param == "swift":
        server = request.getfixturevalue("_swift")
        url, access, secret, bucket = server.url, server.access, server.secret, f"bucket-{next(_buckets)}"
    else:
        url, access, secret = request.getfixturevalue("s3_url"), "dummy", "dummy"
        bucket = request.getfixturevalue("bucket")
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )
    if request.param == "swift":
        client.create_bucket(Bucket=bucket)
    proxy = Proxy(url)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    settings = ArchiveSettings.model_validate(
        {
            "bucket": bucket,
            "prefix": "archive",
            "endpoint_url": proxy.url,
            "region": "us-east-1",
            "access_key_id": access,
            "secret_access_key": secret,
        }
    )
    yield World(settings=settings, proxy=proxy, client=client, verifies=request.param == "swift")
    proxy.shutdown()
    proxy.server_close()
    client.close()


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def faults() -> Any:
    """The ways to misbehave, by name."""

    class Faults:
        answer = staticmethod(answer)
        lose_answer = staticmethod(lose_answer)
        reset_midway = staticmethod(reset_midway)
        hold = staticmethod(hold)
        slowly = staticmethod(slowly)
        cut_download = staticmethod(cut_download)

    return Faults


@pytest.fixture
def output() -> Output:
    return Output(
        id=OutputId("acme-exports", "28142", "out/1"),
        completed_at=datetime(2026, 3, 26, 12, 55, 2, tzinfo=UTC),
        deadline=datetime(2026, 4, 4, tzinfo=UTC),
        filename="CustomExport.csv",
    )
