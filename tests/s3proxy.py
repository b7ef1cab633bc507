"""A proxy in front of S3 that can be told to misbehave: for the tests of the bucket, and of the daemon in bad weather."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


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

    def pass_on(self, change: Callable[[bytes], bytes] = bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """Let the server do it, and give its answer."""
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
        return reply, content

    def forward(
        self, change: Callable[[bytes], bytes] = bytes, *, answer: bool = True, more: Mapping[str, str] | None = None
    ) -> None:
        """Let the server do it, and hand on what it says, and `more` headers."""
        reply, content = self.pass_on(change)
        if not answer:
            self.reset()
            return
        self.send_response_only(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in {"transfer-encoding", "connection"} and not (
                name.lower() == "content-length" and self.command != "HEAD"
            ):
                self.send_header(name, value)
        for name, value in (more or {}).items():
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


def keep_answer(gate: threading.Event, reached: threading.Event) -> Callable[[Handler], None]:
    """Do it, and say so only when the gate opens."""

    def act(handler: Handler) -> None:
        handler.read_body()
        handler.pass_on()
        reached.set()
        gate.wait(60)
        handler.reset()

    return act


def keep_request(gate: threading.Event, reached: threading.Event) -> Callable[[Handler], None]:
    """Take the request and do nothing with it; cut the connection when the gate opens."""

    def act(handler: Handler) -> None:
        handler.read_body()
        reached.set()
        gate.wait(60)
        handler.reset()

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


@contextmanager
def running(url: str) -> Iterator[Proxy]:
    """Give a proxy in front of `url` that runs inside the block."""
    proxy = Proxy(url)
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
