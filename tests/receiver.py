"""Who is told: takes the alerts that Apprise's ``json://`` sends, and the asks of a dead man's switch."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(ThreadingHTTPServer):
    """`bodies`: of the alerts; `asked`: the paths that heartbeats asked for. A heartbeat is answered while `go` is set."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.asked: list[str] = []
        self.status = self.heartbeat_status = 200
        self.go = threading.Event()
        self.go.set()
        super().__init__(("127.0.0.1", 0), _Take)

    @property
    def origin(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def messages(self) -> list[dict[str, str]]:
        return [json.loads(body) for body in self.bodies]


class _Take(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.send_response(self.server.status)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.go.wait(10)
        self.send_response(self.server.heartbeat_status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
