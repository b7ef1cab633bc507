"""The other side of a benchmark, on loopback and cheap: a vendor that lists and serves, and an S3 that throws bytes away.

Both are one asyncio loop in a process of their own (``python -m bench.loopback vendor|sink PORT …``), with no more HTTP than
is needed, so that what is measured is the client. The sink keeps names, sizes and small documents, since receipts are read
again and `If-None-Match` is to be answered; large bodies are read and forgotten.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from worker.demo.embedded import Child, free_port

_BUFFER_BYTES = 2**20
_KEPT_BYTES = 2**16  # larger bodies are forgotten
_PAGE_ROWS = 50
_ROW = {
    "CompanyID": "163",
    "CompanyName": "Example Co",
    "ErrorMessage": "",
    "InputFile": "",
    "QueuedJobPriority": 1,
    "QueuedJobStatus": 3,
    "QueuedJobType": 2,
    "RelatedTaskID": 0,
    "SubmittedBy": "someone@example.com",
    "TimeElapsed": 104.7,
    "UserID": 17,
}


@dataclass(slots=True)
class Request:
    """One request; `body` is None where it was too large to be kept, and `size` is its length all the same."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    size: int
    body: bytes | None


@dataclass(slots=True)
class Answer:
    """One answer: `body`, or the `size` bytes of the open `file`, that many `times`; to a HEAD only `size` is told."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    file: Any = None
    size: int = 0
    times: int = 1


_Handler = Callable[[Request], Answer]


class _Connection(asyncio.BufferedProtocol):
    """HTTP/1.1 with Content-Length, kept alive. All connections read into one buffer: one loop, and nothing of it is kept."""

    _shared = bytearray(_BUFFER_BYTES)

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler
        self._transport: Any = None
        self._head = bytearray()
        self._request: Request | None = None
        self._left = 0
        self._kept: bytearray | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        del sizehint
        return self._shared

    def buffer_updated(self, nbytes: int) -> None:
        view = memoryview(self._shared)[:nbytes]
        while view:
            if self._request is None:
                self._head += view
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                view = memoryview(bytes(self._head[end + 4 :]))
                self._begin(self._head[:end].decode("latin-1"))
                self._head.clear()
            taken = min(len(view), self._left)
            if self._kept is not None:
                self._kept += view[:taken]
            self._left -= taken
            view = view[taken:]
            if self._left == 0:
                self._answer()

    def _begin(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path, _, query = target.partition("?")
        size = int(headers.get("content-length", 0))
        self._request = Request(method, unquote(path), query, headers, size, None)
        self._left, self._kept = size, bytearray() if size <= _KEPT_BYTES else None
        if headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer(self) -> None:
        request, self._request = self._request, None
        assert request is not None  # noqa: S101 - called at the end of one
        request.body = None if self._kept is None else bytes(self._kept)
        answer = self._handler(request)
        size = answer.size * answer.times if answer.file is not None or answer.size else len(answer.body)
        lines = [
            f"HTTP/1.1 {answer.status} X",
            f"Content-Length: {size}",
            *(f"{name}: {value}" for name, value in answer.headers),
        ]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if request.method == "HEAD" or answer.file is None:
            self._transport.write(head if request.method == "HEAD" else head + answer.body)
            return
        self._transport.write(head)
        self._sending = asyncio.ensure_future(self._send(answer))

    async def _send(self, answer: Answer) -> None:
        try:
            for _ in range(answer.times):
                await asyncio.get_running_loop().sendfile(self._transport, answer.file, 0, answer.size)
        except (ConnectionError, RuntimeError):
            self._transport.abort()


# --- the vendor ------------------------------------------------------------------------------------------------------


class _Vendor:
    """Speaks Sellercloud's API: a log-in, a list in pages, and one file for every job.

    ``/control/release/N`` makes N jobs be listed as completed a minute ago, ``/control/served`` tells how often their files
    were downloaded; ``/plain/…`` and ``/wrapped/…`` are the file for peers. The last digit of a job's id says what its file is:
    0 wrapped in base64, 1 plain, 2 and 3 the same ten times over.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._rows: list[dict[str, Any]] = []
        self._served = Counter[str]()
        self._plain = _file(folder / "plain", size, lambda data: data)
        self._wrapped = _file(folder / "wrapped", size, base64.b64encode)

    def __call__(self, request: Request) -> Answer:
        path = request.path
        if path == "/rest/api/QueuedJobs/OutputFile":
            self._served[request.query] += 1
            kind = int(request.query[-1])
            return self._whole(self._plain if kind % 2 else self._wrapped, times=10 if kind > 1 else 1)
        if path.startswith("/plain/"):
            return self._whole(self._plain)
        if path.startswith("/wrapped/"):
            return self._whole(self._wrapped)
        if path == "/rest/api/QueuedJobs":
            number = int(parse_qs(request.query)["model.pageNumber"][0])
            rows = self._rows[(number - 1) * _PAGE_ROWS : number * _PAGE_ROWS]
            return _json({"Items": rows, "TotalResults": len(self._rows)})
        if path == "/rest/api/token":
            return _json({"access_token": "loopback", "expires_in": 3600})
        if path.startswith("/control/release/"):
            self._release(int(path.rpartition("/")[2]))
            return _json({"released": len(self._rows)})
        if path == "/control/served":
            return _json({"downloads": self._served.total(), "files": len(self._served)})
        return Answer(404)

    def _release(self, count: int) -> None:
        at = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%S.000")
        times = {"SubmittedOn": at, "StartedOn": at, "CompletedOn": at}
        first = int(time.time() * 1000) % 10**9 * 10**6
        new = range(first, first + count * 10, 10)
        self._rows = [_ROW | times | {"ID": number, "OutputFile": f"CustomExport_{number}.csv"} for number in new]
        self._served.clear()

    @staticmethod
    def _whole(source: tuple[Any, int, bytes], times: int = 1) -> Answer:
        file, size, body = source
        headers = (("Content-Type", "text/csv"),)
        return Answer(200, body, headers) if body else Answer(200, headers=headers, file=file, size=size, times=times)


def _file(path: Path, size: int, wrap: Callable[[bytes], bytes]) -> tuple[Any, int, bytes]:
    """Write a body of `size` bytes before wrapping, from one random block; gives it open, its length, and itself if small."""
    block = os.urandom(min(size, 3 * 2**20))
    wrapped = wrap(block)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(wrapped)
        if rest := size % len(block):
            file.write(wrap(block[:rest]))
    length = path.stat().st_size
    return path.open("rb"), length, path.read_bytes() if length <= _KEPT_BYTES else b""


def _json(document: object) -> Answer:
    return Answer(200, json.dumps(document).encode(), (("Content-Type", "application/json"),))


# --- the sink --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stored:
    size: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | None


class _Sink:
    """As much of S3 as lastcall and its peers ask for. No signature is looked at, no large body kept."""

    _ETAG = ("ETag", '"00000000000000000000000000000000-1"')  # no MD5, and it does not look like one

    def __init__(self) -> None:
        self._objects: dict[str, _Stored] = {}
        self._uploads: dict[str, tuple[tuple[tuple[str, str], ...], dict[str, int]]] = {}

    def __call__(self, request: Request) -> Answer:
        match request.method:
            case "PUT":
                return self._put(request)
            case "GET" | "HEAD":
                return self._get(request)
            case "POST":
                return self._post(request)
            case _:
                return Answer(204)

    def _put(self, request: Request) -> Answer:
        size = int(request.headers.get("x-amz-decoded-content-length", request.size))
        if "partNumber=" in request.query:
            query = parse_qs(request.query)
            self._uploads[query["uploadId"][0]][1][query["partNumber"][0]] = size
        elif "/" in request.path[1:].rstrip("/"):
            if request.headers.get("if-none-match") == "*" and request.path in self._objects:
                return Answer(412)
            self._objects[request.path] = _Stored(size, _metadata(request), request.body)
        # As S3 does, which has compared it.
        taken = [(name, value) for name, value in request.headers.items() if name.startswith("x-amz-checksum-")]
        return Answer(200, headers=(self._ETAG, *taken))

    def _get(self, request: Request) -> Answer:
        if "/" not in request.path[1:].rstrip("/"):
            return self._list(request)
        stored = self._objects.get(request.path)
        if stored is None or (request.method == "GET" and stored.body is None):
            return Answer(404)
        headers = (*stored.headers, self._ETAG, ("Last-Modified", "Thu, 26 Mar 2026 12:55:02 GMT"))
        return Answer(200, stored.body or b"", headers, size=stored.size)

    def _list(self, request: Request) -> Answer:
        query = parse_qs(request.query, keep_blank_values=True)
        if "uploads" in query:
            return _xml("<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>")
        bucket = request.path.strip("/")
        start = f"/{bucket}/{query.get('prefix', [''])[0]}"
        keys = sorted(key for key in self._objects if key.startswith(start))
        after = query.get("start-after", query.get("continuation-token", [""]))[0]
        keys = [key for key in keys if key > f"/{bucket}/{after}"]
        most = int(query.get("max-keys", ["1000"])[0])
        rows = "".join(
            f"<Contents><Key>{escape(key.removeprefix(f'/{bucket}/'))}</Key><Size>{self._objects[key].size}</Size>"
            f"<ETag>&quot;0-1&quot;</ETag><LastModified>2026-03-26T12:55:02.000Z</LastModified></Contents>"
            for key in keys[:most]
        )
        more = len(keys) > most
        token = (
            f"<NextContinuationToken>{escape(keys[most - 1].removeprefix(f'/{bucket}/'))}</NextContinuationToken>"
            if more
            else ""
        )
        return _xml(f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>")

    def _post(self, request: Request) -> Answer:
        query = parse_qs(request.query, keep_blank_values=True)
        if "uploads" in query:
            identity = f"u{len(self._uploads)}"
            self._uploads[identity] = (_metadata(request), {})
            return _xml(f"<InitiateMultipartUploadResult><UploadId>{identity}</UploadId></InitiateMultipartUploadResult>")
        if "uploadId" in query:
            headers, parts = self._uploads.pop(query["uploadId"][0])
            self._objects[request.path] = _Stored(sum(parts.values()), headers, None)
            return _xml("<CompleteMultipartUploadResult><ETag>&quot;0-1&quot;</ETag></CompleteMultipartUploadResult>")
        return _xml("<DeleteResult></DeleteResult>")


def _metadata(request: Request) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, value) for name, value in request.headers.items() if name.startswith("x-amz-meta-") or name == "content-type"
    )


def _xml(text: str) -> Answer:
    return Answer(200, text.encode(), (("Content-Type", "application/xml"),))


# --- as processes ----------------------------------------------------------------------------------------------------


class Server(Child):
    """A vendor or a sink as a child process."""

    def __init__(self, kind: str, folder: Path, *arguments: object) -> None:
        """`kind`: ``vendor`` (then the size of its files in bytes) or ``sink``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "bench.loopback", kind, str(self.port), str(folder), *map(str, arguments)]
        super().__init__(kind, command, folder)

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            self.ask("/none/none")
        except OSError:
            return False
        return True

    def ask(self, path: str) -> bytes:
        """GET a path."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def release(self, count: int) -> None:
        """Let the vendor list `count` new completed jobs, and no others."""
        self.ask(f"/control/release/{count}")

    def served(self) -> tuple[int, int]:
        """How many downloads the vendor gave since the last release, and of how many files."""
        told = json.loads(self.ask("/control/served"))
        return told["downloads"], told["files"]

    def receipts(self, bucket: str) -> int:
        """How many receipts stand in a bucket of a sink."""
        return self.ask(f"/{bucket}?max-keys={10**9}").count(b"<Key>_receipts/")


async def _serve(handler: _Handler, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(handler), "127.0.0.1", port, backlog=256)
    await server.serve_forever()


if __name__ == "__main__":
    _, kind, port, folder, *rest = sys.argv
    asyncio.run(_serve(_Vendor(Path(folder), int(rest[0])) if kind == "vendor" else _Sink(), int(port)))
