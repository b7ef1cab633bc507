"""Flower over our app: which tasks ran where and what came of them. It looks, it never touches, and it shows no secret.

Flower's own basic auth leaves ``/metrics``, ``/healthcheck`` and static files open, knows no brake on guessing, and opens its
API without a password only together with access for pages of any site. So every handler of Flower stands behind the same
guard as the board (`web.access`), and Flower itself is told of no password (docs/decisions: flower behind the board's guard).
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from base64 import b64encode
from hashlib import sha256
from typing import Any

import structlog
from flower.app import Flower
from flower.options import default_options as options
from flower.urls import settings as flower_settings
from tornado.web import Finish, HTTPError, RequestHandler

from worker import app as processes
from worker.errors import ConfigurationError
from worker.settings import Settings
from worker.web.access import Access, Verdict

log = structlog.get_logger()

_OPTIONS = {
    # What a person wants of a task: what it was, how it ended, in words. Its uuid is the link to the rest.
    "tasks_columns": "name,args,state,result,exception,uuid,received",
    "natural_time": True,
    "auto_refresh": True,
    # In memory only: the bucket and the ledger are what is kept. Ticks are not among them (see `app.tick`).
    "persistent": False,
    "max_tasks": 20_000,
    "max_workers": 500,
    "purge_offline_workers": 3600,
    # Nothing here may stop a worker or send a task; `lastcall` does what an operator needs.
    "read_only": True,
}
# The one script that stands in a page of Flower's instead of a file: it says that tables follow what happens.
_INLINE_SCRIPT = "\nvar autorefresh = 1;\n"
_INLINE_HASH = b64encode(sha256(_INLINE_SCRIPT.encode()).digest()).decode()
_HEADERS = {
    # Nothing but Flower's own files and that script: data that a vendor made up can never become one. Its tables write styles.
    "Content-Security-Policy": f"default-src 'none'; script-src 'self' 'sha256-{_INLINE_HASH}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
_SAFE_POST = "/tasks/datatable"  # how Flower's own page asks for a table: a query with a long body


class _Guard(RequestHandler):
    """Put in front of each of Flower's handlers."""

    unauthenticated_api = True  # the guard decides, for the API as for the pages

    def __new__(cls, *_: Any, **__: Any) -> _Guard:  # noqa: PYI034 - Flower's log-in handler makes another class's here
        return object.__new__(cls)

    def set_default_headers(self) -> None:
        super().set_default_headers()
        for name in ("Server", *(f"Access-Control-Allow-{what}" for what in ("Origin", "Headers", "Methods"))):
            self.clear_header(name)
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def check_xsrf_cookie(self) -> None:
        """Nothing to check: `prepare` lets nothing through that could change anything."""

    def prepare(self) -> Any:
        access: Access = self.application.access  # type: ignore[attr-defined]
        if not access.host_allowed(self.request.host):
            raise HTTPError(421, reason="Misdirected Request")
        verdict = access.verdict(self.request.remote_ip or "", self.request.headers.get("Authorization"))
        if verdict is not Verdict.ALLOWED:
            if verdict is Verdict.PASSWORD_NEEDED:
                self.set_header("WWW-Authenticate", 'Basic realm="flower", charset="UTF-8"')
            else:
                self.set_header("Retry-After", "60")
            self.set_status(verdict.value)
            self.finish()
            raise Finish
        if self.request.method not in {"GET", "HEAD"} and self.request.path != _SAFE_POST:
            raise HTTPError(405)
        return super().prepare()


@functools.cache
def _guarded(handler: Any) -> Any:
    return type(f"Guarded{handler.__name__}", (_Guard, handler), {})


class _GuardedFlower(Flower):  # type: ignore[misc]
    """Flower, with the guard in front of whatever handler a path leads to."""

    def __init__(self, access: Access, **arguments: Any) -> None:
        self.access = access
        super().__init__(**arguments)

    def get_handler_delegate(self, request: Any, target_class: Any, *rest: Any, **more: Any) -> Any:
        """Give every handler its guard: routes, static files, and what is not found."""
        return super().get_handler_delegate(request, _guarded(target_class), *rest, **more)


def run(settings: Settings) -> None:
    """Show Flower on ``[flower] listen`` until SIGTERM or SIGINT. Raises `ConfigurationError` when it cannot listen there.

    Redis may be away, at the start and later: Flower shows what it knows and goes on listening for events when it is back.
    """
    processes.configure(settings)
    # Each of Flower's inspections takes two connections, several at once: with fewer they wait for each other for ever.
    processes.app.conf.broker_pool_limit = 32
    listen = settings.flower
    for secret in (listen.username, listen.password):
        if secret is not None:
            secret.reveal()  # a password that cannot be read shows now, not at the first visit
    for name, value in {**_OPTIONS, "address": listen.host, "port": listen.port}.items():
        setattr(options, name, value)
    view = _GuardedFlower(
        Access(listen), capp=processes.app, options=options, **{**flower_settings, "log_function": lambda _: None}
    )
    try:
        view.start_http_server()
    except OSError as exc:
        raise ConfigurationError([f"flower.listen: cannot listen on {listen.listen}: {exc.strerror}"]) from exc
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        view.io_loop.asyncio_loop.add_signal_handler(signal_number, view.stop)
    log.info("flower", url=f"http://{listen.listen}/")
    view.start()
    logging.shutdown()
    os._exit(0)  # threads that wait for a Redis that hangs cannot be ended, and there is nothing here to put in order
