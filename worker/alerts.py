"""Tells people: what became lost, held, overdue or at risk, and what is well again, as one message and not as a flood.

And tells a dead man's switch, as long as all is well: what cannot run cannot say so, and must be missed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import apprise
import structlog

from worker.connect import ping
from worker.errors import ConfigurationError
from worker.ledger import Change
from worker.model import timestamp
from worker.settings import AlertSettings, Secret

log = structlog.get_logger()

_HEARTBEAT_SECONDS = 10.0
_NAMED = 10  # outputs of one trouble that a message names; the rest is counted
_WHAT_TO_DO = {
    "lost": "see `lastcall outputs --state lost`",
    "held": "they wait for you: see `lastcall outputs --state held`, then `lastcall retry`",
    "overdue": "their deadline has passed; lastcall goes on asking",
    "at risk": "little time is left to their deadline",
    "": "they are well again",
}


def digest(changes: Iterable[Change]) -> list[str]:
    """Say `changes` in as many texts as there are kinds of trouble, the worst first."""
    texts = []
    found = list(changes)
    for trouble, what_to_do in _WHAT_TO_DO.items():
        those = [change for change in found if change.trouble == trouble]
        if not those:
            continue
        count = f"{len(those)} output{'s' if len(those) > 1 else ''}"
        lines = [f"{count} {trouble}: {what_to_do}" if trouble else f"{count}: {what_to_do}"]
        lines += [f"  {_line(change)}" for change in those[:_NAMED]]
        if len(those) > _NAMED:
            lines.append(f"  … and {len(those) - _NAMED} more")
        texts.append("\n".join(lines))
    return texts


def _line(change: Change) -> str:
    record = change.record
    if not change.trouble:
        return f"{change.output}: was {change.before}, is {record.state if record else 'no longer listed'}"
    if record is None:
        return str(change.output)
    error = f", {record.last_error}" if record.last_error else ""
    return f"{change.output}: deadline {timestamp(record.output.deadline)}{error}"


def send(settings: AlertSettings, texts: list[str]) -> bool:
    """Send `texts` as one message to every URL; each is logged as well. False: no URL took it, so it should be tried again.

    The URLs are secrets and never appear in a message.
    """
    for text in texts:
        log.warning("alert", text=text)
    if not settings.urls:
        return True
    title = "lastcall" if len(texts) == 1 else f"lastcall: {len(texts)} alerts"
    took = [_notify(index, url, title, "\n".join(texts)) for index, url in enumerate(settings.urls)]
    if not any(took):
        log.error("alert not sent; it is tried again", addresses=len(took))
    return any(took)


def _notify(index: int, url: Secret, title: str, body: str) -> bool:
    """Send to one address. False: it did not take it, and the log says so by its number."""
    target = apprise.Apprise()
    try:
        usable = target.add(url.reveal())
    except ConfigurationError as exc:
        log.warning("alert address cannot be read", address=index, error=str(exc))
        return False
    if not usable:
        log.warning("alert address is not one that Apprise knows", address=index)
        return False
    # It is said to be plain text, or what a vendor wrote would be part of the page that a mail or a chat makes of it.
    took = bool(target.notify(title=title, body=body, body_format=apprise.NotifyFormat.TEXT))
    if not took:
        log.warning("alert address did not take the message", address=index)
    return took


class Heartbeat:
    """Asks for ``heartbeat_url``, in a thread of its own: whoever is told may be slow, and the daemon never waits for it."""

    def __init__(self, settings: AlertSettings) -> None:
        self._url = settings.heartbeat_url
        self._under_way = threading.Lock()
        self._failing = False

    def beat(self) -> None:
        """Ask for it once, unless the last time is not over yet. A failure is logged once, and once that it has passed."""
        if self._url is not None and self._under_way.acquire(blocking=False):
            threading.Thread(target=self._beat, args=(self._url,), name="heartbeat", daemon=True).start()

    def _beat(self, url: Secret) -> None:
        try:
            try:
                trouble = ping(url.reveal(), seconds=_HEARTBEAT_SECONDS)
            except ConfigurationError as exc:
                trouble = str(exc)
            if trouble and not self._failing:
                log.warning("heartbeat not taken; it is sent again every minute", error=trouble)
            elif self._failing and not trouble:
                log.info("heartbeat taken again")
            self._failing = trouble is not None
        finally:
            self._under_way.release()
