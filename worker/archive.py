"""S3, the only truth about what is kept: create-only objects, proved before they are visible; receipts; events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.model import JsonObject, Lease, Output, OutputId, Receipt
from worker.settings import ArchiveSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object in the bucket. `marked`: its metadata says that it was completed, whole, for the output it stands at."""

    key: str
    size: int
    etag: str
    version_id: str | None
    filename: str
    wrapping: str
    content_type: str
    marked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A create-only event under ``_state/{kind}/``: what Redis must not be the only one to know."""

    kind: str
    identity: tuple[str, ...]  # (source, job id) or (source, job id, output id); () for audit, check, epoch
    at: datetime
    document: JsonObject


class Upload:
    """One object on its way: nothing is visible before `complete`. Bytes wait in memory while S3 keeps up, on disk when not."""

    def write(self, data: bytes) -> None:
        """Take the next bytes of the file. Hashes them (sha256, and the vendor's algorithm) beside the upload."""
        raise NotImplementedError

    def start(self, key: str, *, filename: str, wrapping: str, content_type: str) -> None:
        """Say where it goes; may come after the first bytes (a name can be told last). Once."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Bytes written so far."""
        raise NotImplementedError

    def digest(self, algorithm: str) -> str:
        """Hex digest of all bytes written: sha256, or the algorithm asked for when the upload was opened."""
        raise NotImplementedError

    def complete(self) -> StoredObject:
        """Make the object visible, create-only. An object that stands there already is read back: equal bytes are adopted,
        others raise `KeyConflictError`.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """Leave nothing behind. Never raises; safe to call at any time, and after `complete` it does nothing."""
        raise NotImplementedError


class Archive:
    """The bucket, seen through one `[archive]` table. Thread-safe."""

    def __init__(self, settings: ArchiveSettings, *, spool_bytes: int) -> None:
        raise NotImplementedError

    def key(self, output: Output, filename: str) -> str:
        """Give the object's key; `filename` is safe already."""
        raise NotImplementedError

    def receipt(self, output: OutputId) -> Receipt | None:
        """Read the receipt of `output`, or None."""
        raise NotImplementedError

    def write_receipt(self, receipt: Receipt) -> Receipt:
        """Write `receipt`, create-only, and give the one that stands (an earlier one wins)."""
        raise NotImplementedError

    def receipts(self, source: str) -> Iterator[OutputId]:
        """List the outputs of `source` that have a receipt."""
        raise NotImplementedError

    def objects(self, output: Output) -> list[StoredObject]:
        """List what stands at ``…/{job_id}/{output_id}/``."""
        raise NotImplementedError

    def inventory(self, source: str) -> Iterator[tuple[str, int, str]]:
        """List (key, size, etag) of every object of `source`."""
        raise NotImplementedError

    def read_back(self, key: str, algorithms: tuple[str, ...], lease: Lease) -> tuple[int, dict[str, str]]:
        """Read an object whole: its size and its hex digests by algorithm."""
        raise NotImplementedError

    def open_upload(self, output: OutputId, lease: Lease, *, keep: bool, algorithm: str | None) -> Upload:
        """Begin an upload for `output`. `keep`: the bytes must not be fetched twice, so a copy of all of them stays on disk
        until the object is complete. `algorithm`: the vendor's digest to compute beside sha256.
        """
        raise NotImplementedError

    def write_event(self, kind: str, identity: tuple[str, ...], document: JsonObject, at: datetime) -> None:
        """Write one event, create-only."""
        raise NotImplementedError

    def events(self, kind: str, source: str) -> list[Event]:
        """Give the newest event of each identity of `kind` for `source`."""
        raise NotImplementedError

    def spend(self, output: OutputId, used: int, at: datetime) -> int:
        """Write the ``spent`` event of the next counted download, numbered past `used` and past every event that stands.
        Gives its number. Two callers never get the same one.
        """
        raise NotImplementedError

    def spent(self, output: OutputId) -> int:
        """The highest number of a ``spent`` event of `output`, 0 when there is none."""
        raise NotImplementedError

    def begin_epoch(self, epoch: str, at: datetime) -> bool:
        """Record that a ledger named `epoch` began. True when it is the first that this bucket ever saw."""
        raise NotImplementedError

    def sweep_uploads(self, older_than: timedelta) -> int:
        """Abort our own unfinished multipart uploads (under our prefix only) begun longer ago than that; gives how many."""
        raise NotImplementedError

    def check(self) -> None:
        """Prove that the bucket can be used: conditional write and read of one fixed object, a multipart upload begun and aborted.

        Raises `ArchiveUnavailableError` or `ArchiveRefusedError` saying what failed and what to do.
        """
        raise NotImplementedError

    def presign(self, key: str, life: timedelta) -> str:
        """A URL for one GET of `key`."""
        raise NotImplementedError
