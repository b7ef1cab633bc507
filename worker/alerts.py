"""Tells people: queued alerts go out as one digest through Apprise."""

from __future__ import annotations

import apprise
import structlog

from worker.errors import ConfigurationError
from worker.settings import AlertSettings

log = structlog.get_logger()


def send(settings: AlertSettings, alerts: list[str]) -> bool:
    """Send `alerts` as one message to every URL. Each is logged as well, so that nothing is said only to a dead address.

    True when every URL took it. The URLs are secrets and never appear in a message.
    """
    for alert in alerts:
        log.warning("alert", text=alert)
    target = apprise.Apprise()
    whole = True
    for index, url in enumerate(settings.urls):
        try:
            whole &= bool(target.add(url.reveal()))
        except ConfigurationError as exc:
            log.warning("alert not sent", url=index, error=str(exc))
            whole = False
    if not alerts or not settings.urls:
        return whole
    title = f"lastcall: {len(alerts)} alerts" if len(alerts) > 1 else "lastcall"
    sent = bool(target.notify(title=title, body="\n".join(alerts)))
    if not sent:
        log.error("alert not sent", urls=len(settings.urls))
    return whole and sent
