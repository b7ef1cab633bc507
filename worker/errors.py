"""Every error raised on purpose. Its class says what happens next; callers branch on class, never on text.

Messages carry ids, counts and what to do. They never carry URLs, tokens, headers or bodies, since they end in logs, in the
ledger (`last_error`), on the board and in alerts. No requests, botocore or redis exception crosses a module: each is turned
into one of these at the edge, with ``raise … from exc``.

The families, by who acts next:

=========================  ==========================================================================================
`TryLaterError`            nobody: the ledger sets `not_before` and the output (or the poll) is tried again
`RefusedError`             the source, which turns it into one of the others
`LinkExpiredError`         the same attempt gets a new link and goes on
`OutputGoneError`          the ledger counts explicit answers; enough of them make the output *lost*
`HeldError`                a person: the output is *held* until `lastcall retry`
`LogInRefusedError`        the source is paused with one alert; its outputs stay owed
`ArchiveRefusedError`      everything is paused with one alert: the bucket does not accept our credentials
`LeaseLostError`           nobody: another worker has the output; this one drops what it holds and changes nothing
`StoppedError`             nobody: this process is stopping and gives back what it holds
`ConfigurationError`       a person, before anything runs; the command exits 2
=========================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta


class LastcallError(Exception):
    """Base of every error that lastcall raises on purpose.

    Ids and words of a vendor's status stand in messages as the vendor wrote them, so what could command a terminal or turn a
    line around (control, format and bidirectional characters) becomes U+FFFD here, once for all places where they end.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if message.isprintable() else "".join(map(_visible, message)))


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}"


class ConfigurationError(LastcallError):
    """The configuration cannot be used. `problems` are lines of the form ``sources.acme.base_url: what is wrong``."""

    def __init__(self, problems: list[str]) -> None:
        Exception.__init__(self, "\n".join(problems))
        self.problems = problems


# --- try again -------------------------------------------------------------------------------------------------------


class TryLaterError(LastcallError):
    """A passing fault. `not_before` (aware UTC) is set when the other side named a time; it is honoured in full."""

    def __init__(self, message: str, *, not_before: datetime | None = None) -> None:
        super().__init__(message)
        self.not_before = not_before


class VendorUnavailableError(TryLaterError):
    """The vendor cannot be reached, timed out, or answered 5xx."""


class ThrottledError(TryLaterError):
    """The vendor asked us to slow down (429, Sellercloud's 409, 402). Holds for the whole source until `not_before`."""


class NotReadyError(TryLaterError):
    """The vendor says that the file is not ready yet, or that the job is running again."""


class VendorReplyError(TryLaterError):
    """The vendor's answer is not what its sheet describes (not JSON, wrong types, too large, an error page under 200)."""


class IncompleteBodyError(TryLaterError):
    """The body ended before it was whole, or its size or checksum is not the vendor's. Nothing of it was kept."""


class MismatchError(IncompleteBodyError):
    """A body that came whole is not what the vendor says it is: its size or its checksum differs."""


class DecodeError(TryLaterError):
    """The wrapping broke after it had been recognised. Nothing of the body was kept.

    `late`: it was recognised by the first 1 MiB only and turned out to be no wrapping at all, so the same bytes once more,
    taken as they come (`Wrapping.NONE`), are the file. Else the body was cut, and another try may bring all of it.
    """

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class TooSlowError(TryLaterError):
    """The transfer fell below `min_throughput`."""


class ArchiveUnavailableError(TryLaterError):
    """S3 cannot be reached, timed out, throttled us or answered 5xx for longer than we may wait."""


class LedgerUnavailableError(TryLaterError):
    """Redis cannot be reached, is loading, is read-only or out of memory."""


class RefusedError(LastcallError):
    """A download answer that is not the file; only the source can say what it means (`Source.refused`).

    `status` is 200 for an error page that came as if it were the file. `headers` has lower-case names; `body` is at most
    the first 64 KiB. None of these is part of the message.
    """

    def __init__(self, status: int, reason: str = "", headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        super().__init__(f"the download was answered with {status}")
        self.status = status
        self.reason = reason
        self.headers = headers or {}
        self.body = body


class LinkExpiredError(LastcallError):
    """The link aged before or during the download. The bytes are still there: get a new link and go on.

    `certain` is False for a refusal that may mean something else: when a fresh link meets it too, a person is asked.
    """

    def __init__(self, message: str, *, certain: bool = True) -> None:
        super().__init__(message)
        self.certain = certain


# --- the bytes are gone ----------------------------------------------------------------------------------------------


class OutputGoneError(LastcallError):
    """The vendor says in so many words that the bytes are gone (never: that a URL aged, or that a list is shorter).

    An output is lost after `answers` such errors, the first and the last at least `over` apart. `reason` is one word for
    the metric `lastcall_lost_total{reason}`: ``gone``, ``expired``, ``deleted``, ``superseded``, ``invalid-result``.
    `lost_at_deadline`: the first such answer after the deadline is enough.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "gone",
        answers: int = 2,
        over: timedelta = timedelta(seconds=10),
        lost_at_deadline: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.answers = answers
        self.over = over
        self.lost_at_deadline = lost_at_deadline


# --- a person is needed ----------------------------------------------------------------------------------------------


class HeldError(LastcallError):
    """This output needs a person; the message says why and what to do. `lastcall retry` puts it back to owed."""


class BlockedAddressError(HeldError):
    """The vendor pointed to a host or an address that is not allowed, or downgraded to http, or redirected too often."""


class OverusedError(HeldError):
    """The vendor says that the file was downloaded too often, or the next download would eat into the reserve."""


class TooLargeError(HeldError):
    """The output is larger than `max_output_bytes`."""


class KeyConflictError(HeldError):
    """An object with other bytes stands where this output belongs. Nothing is ever overwritten."""


class LogInRefusedError(LastcallError):
    """The vendor refuses the source's credentials (or the rights they carry). The whole source is paused."""


class ArchiveRefusedError(LastcallError):
    """The bucket refuses our credentials or does not exist. Everything is paused."""


# --- this process ----------------------------------------------------------------------------------------------------


class LeaseLostError(LastcallError):
    """The lease on this output ended and another worker may hold it."""


class StoppedError(LastcallError):
    """The process is stopping; what it holds is given back."""
