"""The pages and their server: tornado, which comes with Flower. Nothing here waits for Redis on the loop's own thread."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

import structlog
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, Finish, HTTPError, RequestHandler, StaticFileHandler

from worker.errors import ArchiveRefusedError, ArchiveUnavailableError, ConfigurationError, HeldError, LedgerUnavailableError
from worker.ledger import Ledger
from worker.model import JsonObject, OutputId
from worker.settings import Settings
from worker.web import metrics, reading
from worker.web.access import Access, Verdict
from worker.web.opening import Opening

log = structlog.get_logger()

_STATIC = Path(__file__).parent / "static"
_HEADERS = {
    # Nothing but our own files: data that a vendor made up can never become a script or a style.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_COOKIE = "lastcall-board"  # says nothing but that the board was open here; browsers send it with our own links alone
_BUCKET_TROUBLE = (ArchiveUnavailableError, ArchiveRefusedError, HeldError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What the handlers share."""

    access: Access
    health: reading.Reading[JsonObject]
    boards: Mapping[str, reading.Reading[JsonObject]]  # by source; "" is all of them
    opening: Opening
    metrics: reading.Reading[bytes]


class _Guarded(RequestHandler):
    """What every answer has in common: who may have it, its headers, and how errors look."""

    SUPPORTED_METHODS: tuple[str, ...] = ("GET", "HEAD")
    needs_password = True

    @property
    def room(self) -> _Room:
        room: _Room = self.application.settings["room"]
        return room

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        if not self.needs_password:
            return
        if not self.room.access.host_allowed(self.request.host):
            raise HTTPError(421, reason="Misdirected Request")
        verdict = self.room.access.verdict(self.request.remote_ip or "", self.request.headers.get("Authorization"))
        if verdict is Verdict.PASSWORD_NEEDED:
            self.set_header("WWW-Authenticate", 'Basic realm="lastcall", charset="UTF-8"')
            self._end(401)
        if verdict is Verdict.TOO_MANY_FAILURES:
            self.set_header("Retry-After", "60")
            self._end(429)

    def _end(self, status: int) -> None:
        self.set_status(status)
        self.finish({"error": HTTPStatus(status).phrase})
        raise Finish

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        what = HTTPStatus(status_code).phrase
        if isinstance(error, LedgerUnavailableError):
            self.set_status(503)
            what = str(error)
        elif isinstance(error, ConfigurationError):
            self.set_status(503)
            what = "the password of this page cannot be read; see the log"
        elif status_code == 405:
            self.set_header("Allow", ", ".join(self.SUPPORTED_METHODS))
        self.finish({"error": what})

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, LedgerUnavailableError | ConfigurationError):
            log.warning("page not given", path=self.request.path, error=str(value))
        else:
            super().log_exception(typ, value, tb)


class _Missing(_Guarded):
    def prepare(self) -> None:
        super().prepare()
        raise HTTPError(404)


class _File(_Guarded, StaticFileHandler):
    """One of our own files."""

    def set_extra_headers(self, path: str) -> None:
        if not path:  # the page itself
            self.set_cookie(_COOKIE, "open", httponly=True, samesite="Strict")


class _Health(_Guarded):
    needs_password = False  # it tells nothing secret, and probes have no password

    async def get(self) -> None:
        try:
            found = await self.room.health.get()
        except LedgerUnavailableError as exc:
            found = {"ok": False, "reason": str(exc)}
        self.set_status(200 if found["ok"] else 503)
        self.finish(found)

    head = get


class _Metrics(_Guarded):
    async def get(self) -> None:
        text = await self.room.metrics.get()
        self.set_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        self.finish(text)

    head = get


class _Board(_Guarded):
    """What the page draws. A reader that names the ETag of what it has gets it only when it says something new."""

    _tag: str

    async def get(self) -> None:
        board = self.room.boards.get(self.get_query_argument("source", ""))
        if board is None:
            raise HTTPError(404)
        found = await board.get()
        news = json.dumps({**found, "now": None}, sort_keys=True)
        self._tag = f'"{hashlib.sha256(news.encode()).hexdigest()}"'
        self.finish(found)

    head = get

    def compute_etag(self) -> str:
        """Tell two boards apart, but not by the time of day."""
        return self._tag


class _Open(_Guarded):
    """A kept file: a redirect to the bucket that is made now and ends soon. For links of our own page alone.

    A page elsewhere that used the link, as the source of a script say, would read the file with the password that the browser
    remembers. Such a request comes without the cookie, and where browsers say where it began, they say so.
    """

    SUPPORTED_METHODS = ("GET",)

    async def get(self) -> None:
        if not self.get_cookie(_COOKIE) or self.request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
            self._say(403, "Open this file from the board.")
        try:
            output = OutputId.parse(self.get_query_argument("output"))
        except ValueError:
            self._say(404, "This is not an output; expected SOURCE/JOB_ID/OUTPUT_ID.")
        try:
            link = await asyncio.wrap_future(reading.in_thread(partial(self.room.opening.link, output)))
        except _BUCKET_TROUBLE as exc:
            log.warning("file not given", output=str(output), error=str(exc))
            self._say(503, str(exc))
        if link is None:
            self._say(404, f"{output} has no receipt in the bucket.")
        log.info("file given", output=str(output), address=self.request.remote_ip)
        self.redirect(link, status=303)

    def _say(self, status: int, what: str) -> NoReturn:
        """Answer in words: a person clicked."""
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(what)
        raise Finish


def _application(settings: Settings) -> Application:
    ledger = Ledger(settings.redis(), lease=settings.worker.lease, worker="web")
    room = _Room(
        access=Access(settings.web),
        health=reading.Reading(partial(reading.health, ledger)),
        boards={
            source: reading.Reading(partial(reading.board, ledger, settings, source or None), fresh_seconds=1)
            for source in ("", *settings.sources)
        },
        opening=Opening(settings.archive),
        metrics=reading.Reading(partial(metrics.render, ledger, settings)),
    )
    own_file = {"path": str(_STATIC), "default_filename": "index.html"}
    return Application(
        [
            (r"/()", _File, own_file),
            (r"/static/(board\.css|board\.js|icon\.svg|alarm\.svg)", _File, own_file),
            (r"/api/board", _Board),
            (r"/open", _Open),
            (r"/metrics", _Metrics),
            (r"/healthz", _Health),
        ],
        default_handler_class=_Missing,
        log_function=_log,
        compress_response=True,
        room=room,
    )


def _log(handler: RequestHandler) -> None:
    if handler.get_status() in {401, 403, 421, 429}:
        log.info("refused", status=handler.get_status(), address=handler.request.remote_ip)


async def _serve(settings: Settings) -> None:
    web = settings.web
    for secret in (web.username, web.password):
        if secret is not None:
            secret.reveal()  # a password that cannot be read shows now, not at the first visit
    server = HTTPServer(_application(settings), max_body_size=1024, max_header_size=16_384, idle_connection_timeout=60)
    try:
        server.add_sockets(bind_sockets(web.port, web.host))
    except OSError as exc:
        raise ConfigurationError([f"web.listen: cannot listen on {web.listen}: {exc.strerror}"]) from exc
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    log.info("board", url=f"http://{web.listen}/")
    await stop.wait()
    server.stop()
    await server.close_all_connections()


def serve(settings: Settings) -> None:
    """Show the board on ``[web] listen`` until SIGTERM or SIGINT. Raises `ConfigurationError` when it cannot listen there.

    An unreachable Redis ends nothing: the pages say so, and show the ledger as soon as it is back.
    """
    asyncio.run(_serve(settings))
