"""Tells people: what became lost, held, overdue or at risk, and what is well again, as one message and not as a flood."""

from __future__ import annotations

from collections.abc import Iterable

import apprise
import structlog

from worker.errors import ConfigurationError
from worker.ledger import Change
from worker.model import timestamp
from worker.settings import AlertSettings, Secret

log = structlog.get_logger()

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
    took = bool(target.notify(title=title, body=body))
    if not took:
        log.warning("alert address did not take the message", address=index)
    return took
