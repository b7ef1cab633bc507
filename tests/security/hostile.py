"""A server that says whatever bytes a test wants, and the documents of an API2Convert account in its hands."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Asked:
    """One request as it came. `path` is percent-decoded, `target` is not; `headers` has lower-case names."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)


Answer = bytes | Iterable[bytes]


class Hostile(socketserver.ThreadingTCPServer):
    """Answers by `answer`, which a test sets, and closes the connection. `heard`: every request."""

    allow_reuse_address = daemon_threads = True
    answer: Callable[[Asked], Answer]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[Asked] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def asked(self, path: str) -> list[Asked]:
        return [one for one in self.heard if one.path.startswith(path)]

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """The other side left, which is what most of these tests want."""


class _Handler(socketserver.StreamRequestHandler):
    server: Hostile

    def handle(self) -> None:
        method, target, *_ = self.rfile.readline().decode("latin-1").split()
        headers = {}
        while line := self.rfile.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        asked = Asked(method, target, headers)
        self.server.heard.append(asked)
        answer = self.server.answer(asked)
        for piece in [answer] if isinstance(answer, bytes) else answer:
            self.wfile.write(piece)


def http(body: bytes | str = b"", status: str = "200 OK", *, length: bool = True, **headers: str) -> bytes:
    """Write an answer; header names with `_` for `-`."""
    data = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status}",
        "Connection: close",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    if length:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def endless(piece: bytes, *, first: bytes = b"") -> Iterator[bytes]:
    yield first
    while True:
        yield piece


def output(identity: Any, uri: str, **more: Any) -> dict[str, Any]:
    return {"id": identity, "uri": uri, "status": "enabled", "filename": "a.csv", "created_at": _now(), **more}


def job(identity: Any, *outputs: Any, **more: Any) -> dict[str, Any]:
    times = {"created_at": _now(), "modified_at": _now()}
    return {"id": identity, "status": {"code": "completed"}, "output": list(outputs), **times, **more}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Account:
    """Answers as API2Convert does, by the vendor's sheet: `jobs` fifty a page, one of them, and `files` by path."""

    def __init__(self, *jobs: Any) -> None:
        self.jobs = list(jobs)
        self.files: dict[str, Answer] = {}

    def __call__(self, asked: Asked) -> Answer:
        if asked.path in self.files:
            return self.files[asked.path]
        if asked.path == "/v2/jobs":
            page = int(asked.target.partition("page=")[2] or 1)
            rows = self.jobs[50 * page - 50 : 50 * page]
            return http(json.dumps(rows), Content_Type="application/json") if rows else http(status="204 No Content")
        wanted = asked.path.removeprefix("/v2/jobs/")
        found = next((one for one in self.jobs if isinstance(one, dict) and one.get("id") == wanted), None)
        return http(json.dumps(found)) if found else http("{}", "404 Not Found")
