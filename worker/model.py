"""The nouns of lastcall: frozen dataclasses, and the protocols between rooms. No I/O.

Every ``*_at`` and every `deadline` is an aware UTC `datetime`. Every size is in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol, Self, TypeAlias
from urllib.parse import quote, unquote

JsonObject: TypeAlias = dict[str, Any]


def encode_id(part: str) -> str:
    """Percent-encode one id so that it is one path segment: only ``A-Z a-z 0-9 - _ . ~`` stay; ``.`` and ``..`` do not."""
    encoded = quote(part, safe="", errors="surrogatepass")  # a stranger's JSON may hold half a character
    return encoded.replace(".", "%2E") if encoded.strip(".") == "" else encoded


def timestamp(at: datetime) -> str:
    """Write an instant as receipts, events and commands show it: UTC, whole seconds, ``2026-03-26T12:55:02Z``."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def parse_timestamp(text: str) -> datetime:
    """Read what `timestamp` wrote. Raises `ValueError`."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, order=True)
class OutputId:
    """The identity of an output: (source, job id, output id), written ``SOURCE/JOB_ID/OUTPUT_ID``, each percent-encoded."""

    source: str
    job_id: str
    output_id: str

    def __str__(self) -> str:
        return "/".join(encode_id(part) for part in (self.source, self.job_id, self.output_id))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the written form. Raises `ValueError` when it does not have three parts."""
        parts = [unquote(part, errors="surrogatepass") for part in text.split("/")]
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{text!r} is not an output; expected SOURCE/JOB_ID/OUTPUT_ID")
        return cls(*parts)


class JobState(StrEnum):
    """The state of a vendor's job. A status that the sheet does not know is RUNNING, with a warning in `Job.warnings`."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class OutputState(StrEnum):
    """The state of an output in the ledger (CONTRACT section 4)."""

    OWED = "owed"
    CLAIMED = "claimed"
    ARCHIVED = "archived"
    EMPTY = "empty"
    LOST = "lost"
    HELD = "held"


class Wrapping(StrEnum):
    """What the vendor may have put around the file for the journey; `decode` finds out which form a body has."""

    NONE = "none"  # the body is the file
    SELLERCLOUD = "sellercloud"  # bare base64, a JSON string of it, {"FileName","Content"}, or the file itself
    CRAYON = "crayon"  # the file itself, {"FileContent"} as base64 or byte array, or {"FileName","Data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    """A digest that the vendor gives. `algorithm` is a `hashlib` name (``md5 sha1 sha256``); `value` is lower-case hex."""

    algorithm: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file that a completed job produced.

    `deadline`: when the vendor may delete the bytes (never the expiry of a link).
    `completed_at`: the vendor's own time, from which the key's date is made; never our clock.
    `size`, `checksum`: as the vendor states them, of the file itself (not of its wrapping); None when it does not.
    `downloads`: the vendor's own download counter, 0 where there is none.
    `filename`: what the listing calls the file, or None when only the download tells.
    `job`: the vendor's own document of the job, with secrets and links removed; it goes into the receipt.
    `gone`: the reason when the listing itself says that the bytes are gone (``expired``, ``deleted``); else None.
    """

    id: OutputId
    completed_at: datetime
    deadline: datetime
    filename: str | None = None
    size: int | None = None
    checksum: Checksum | None = None
    content_type: str | None = None
    downloads: int = 0
    job: JsonObject = field(default_factory=dict)
    gone: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The vendor's asynchronous run.

    COMPLETED with no outputs means that nothing was produced. A FAILED job has no outputs; `named_file` is True when it
    names one all the same (logged and counted). `completed_at` and `deadline` are set when the job is COMPLETED, even
    where nothing was produced. `warnings`: one line each, ids and words of the vendor's status only.
    """

    id: str
    state: JobState
    outputs: tuple[Output, ...] = ()
    status: str = ""
    partial: bool = False
    named_file: bool = False
    completed_at: datetime | None = None
    deadline: datetime | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way to fetch an output, obtained now. A secret: never stored, queued, logged, or in a repr.

    `headers` are bound to the origin of `url`: fetch never sends them to another one.
    `expires_at`: when the link itself ages, None when it does not.
    `counted`: the vendor counts downloads of it, so the ledger reserves one before each GET, and bytes are not fetched twice.
    `resumable`: a ranged GET may be tried after a cut (not for a counted link: each GET counts).
    `filename`: the name, where the source knows it better than the download's headers do.
    `fallback_filename`: the name where neither headers nor wrapping tell one; without an extension, magic bytes give one.
    `downloads`: the vendor's own counter as read with the link, None where there is none.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    expires_at: datetime | None = None
    wrapping: Wrapping = Wrapping.NONE
    counted: bool = False
    resumable: bool = True
    filename: str | None = None
    fallback_filename: str | None = None
    downloads: int | None = None


_TEXTS = ("source", "job_id", "output_id", "vendor", "filename", "key", "bucket", "etag", "content_type", "sha256", "wrapping")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The object written last; its presence *is* "archived". `to_json` and `from_json` are its one written form."""

    id: OutputId
    vendor: str
    filename: str
    key: str
    bucket: str
    version_id: str | None
    etag: str
    content_type: str
    size: int
    sha256: str
    wrapping: str
    vendor_size: int | None
    vendor_checksum: JsonObject | None
    proof: tuple[str, ...]
    completed_at: datetime
    deadline: datetime
    archived_at: datetime
    downloads: int
    job: JsonObject

    def to_json(self) -> JsonObject:
        """Give the document of CONTRACT section 5."""
        return {
            "schema": 1,
            "source": self.id.source,
            "vendor": self.vendor,
            "job_id": self.id.job_id,
            "output_id": self.id.output_id,
            "filename": self.filename,
            "key": self.key,
            "bucket": self.bucket,
            "version_id": self.version_id,
            "etag": self.etag,
            "content_type": self.content_type,
            "size": self.size,
            "sha256": self.sha256,
            "wrapping": self.wrapping,
            "vendor_size": self.vendor_size,
            "vendor_checksum": self.vendor_checksum,
            "proof": list(self.proof),
            "completed_at": timestamp(self.completed_at),
            "deadline": timestamp(self.deadline),
            "archived_at": timestamp(self.archived_at),
            "downloads": self.downloads,
            "job": self.job,
        }

    @classmethod
    def from_json(cls, document: JsonObject) -> Self:
        """Read the document of CONTRACT section 5. Raises `ValueError` for anything else."""
        try:
            if document["schema"] != 1:
                raise ValueError(f"receipt schema {document['schema']!r} is newer than this version of lastcall")
            if wrong := [name for name in _TEXTS if not isinstance(document[name], str)]:
                raise ValueError(f"not a receipt: {', '.join(wrong)} should be text")
            return cls(
                id=OutputId(document["source"], document["job_id"], document["output_id"]),
                vendor=document["vendor"],
                filename=document["filename"],
                key=document["key"],
                bucket=document["bucket"],
                version_id=document["version_id"],
                etag=document["etag"],
                content_type=document["content_type"],
                size=int(document["size"]),
                sha256=document["sha256"],
                wrapping=document["wrapping"],
                vendor_size=document["vendor_size"],
                vendor_checksum=document["vendor_checksum"],
                proof=tuple(document["proof"]),
                completed_at=parse_timestamp(document["completed_at"]),
                deadline=parse_timestamp(document["deadline"]),
                archived_at=parse_timestamp(document["archived_at"]),
                downloads=int(document["downloads"]),
                job=document["job"],
            )
        except (KeyError, TypeError, OverflowError) as exc:
            raise ValueError(f"not a receipt: {exc!r}") from exc


class Shared(Protocol):
    """What the workers of one source share: its pace, its pause after a throttle, its log-in token.

    The ledger implements it over Redis, so it holds for all workers of all hosts. Every method may raise
    `LedgerUnavailableError`.
    """

    def pace(self) -> None:
        """Wait for this source's turn to make one call (`requests_per_second`).

        Raises `ThrottledError` when the source is hushed, or when the turn is further off than one call may wait.
        """

    def hush(self, until: datetime) -> None:
        """Let no worker call this source before `until` (Retry-After, RateLimitResetTime)."""

    def token(self) -> str | None:
        """Give the shared log-in token while it lives, else None."""

    def store_token(self, token: str, life_seconds: float) -> None:
        """Share a new token for `life_seconds`."""

    def drop_token(self, token: str) -> None:
        """Forget `token` if it is still the shared one (a 401 was answered to it)."""

    def log_in_turn(self) -> bool:
        """Take the turn to log in: True for one worker, False for the others, who wait and read `token` again.

        The turn ends with `store_token`, `end_log_in_turn`, or by itself after 60 s, or when its worker is dead.
        """

    def end_log_in_turn(self) -> None:
        """Give the turn back after a log-in that failed."""


class Lease(Protocol):
    """What a transfer asks while it works, so that a zombie or a stopping process changes nothing."""

    def check(self) -> None:
        """Return while the transfer may go on. Raises `LeaseLostError` or `StoppedError`. Cheap: call it per chunk."""
