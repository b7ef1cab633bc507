"""An S3 that misbehaves: a proxy in front of a good one. It passes on one request at a time, which makes create-only atomic."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["_Handler"], None]


class S3Proxy:
    """Listens on one port, also after `stop` and `start`. `once` holds acts for the next requests, `standing` is for all.

    `receipts` tells since when (epoch seconds) each receipt stands, by its key.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._port = 0
        self._server: _Server | None = None
        self.one_at_a_time = threading.Lock()
        self.once: deque[Act] = deque()
        self.standing: Act | None = None
        self.receipts: dict[str, float] = {}
        self.requests = 0
        self.latency_seconds = (0.01, 0.2)  # of each answer, so that whatever happens between two requests does happen

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        if self._server is None:
            self._server = _Server(("127.0.0.1", self._port), type("Handler", (_Handler,), {"proxy": self}))
            self._port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name="s3-proxy", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.drop_connections()
            self._server = None

    def next_act(self) -> Act | None:
        self.requests += 1
        with contextlib.suppress(IndexError):
            return self.once.popleft()
        return self.standing

    def forward(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with self.one_at_a_time:
            connection = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=60)
            try:
                connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
                for name, value in headers.items():
                    if name.lower() not in {"expect", "connection"}:
                        connection.putheader(name, value)
                connection.endheaders(body)
                reply = connection.getresponse()
                content = reply.read()
            finally:
                connection.close()
            if method == "PUT" and "/_receipts/" in path and reply.status == 200:
                self.receipts.setdefault(path.partition("?")[0].split("/", 2)[2], time.time())
            return reply.status, reply.getheaders(), content


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # the client left first
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that leave are part of the storm."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: S3Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def do_any(self) -> None:
        time.sleep(random.uniform(*self.proxy.latency_seconds))
        act = self.proxy.next_act() or answer_truly
        try:
            act(self)
        except OSError:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def body(self, most: int | None = None) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(length if most is None else min(most, length))
        if most is None and len(data) < length:
            raise ConnectionResetError  # the client died in mid body; S3 does nothing then
        return data

    def ask(self) -> tuple[int, list[tuple[str, str]], bytes]:
        return self.proxy.forward(self.command, self.path, self.headers, self.body())

    def reply(self, status: int, headers: list[tuple[str, str]], content: bytes, *, most: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"transfer-encoding", "connection", "content-length"} or (
                name.lower() == "content-length" and self.command == "HEAD"
            ):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:most])

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()


def answer_truly(handler: _Handler) -> None:
    """No fault at all."""
    handler.reply(*handler.ask())


def error(status: int, code: str, *headers: tuple[str, str]) -> Act:
    """Refuse with an S3 error, nothing done."""

    def act(handler: _Handler) -> None:
        handler.body()
        xml = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        handler.reply(status, [("Content-Type", "application/xml"), *headers], xml)

    return act


def reset(handler: _Handler) -> None:
    """Read a little of the body, then cut the connection; nothing is done."""
    handler.body(64 * 1024)
    handler.reset()


def lose_answer(handler: _Handler) -> None:
    """Do it, and never say so."""
    handler.ask()
    handler.reset()


def cut_answer(handler: _Handler) -> None:
    """Do it, promise the whole answer and give a third of it."""
    status, headers, content = handler.ask()
    handler.reply(status, headers, content, most=len(content) // 3)
    handler.reset()


def hold(gate: threading.Event) -> Act:
    """Do nothing and say nothing until the gate opens."""

    def act(handler: _Handler) -> None:
        body = handler.body()
        gate.wait(60)
        handler.reply(*handler.proxy.forward(handler.command, handler.path, handler.headers, body))

    return act
