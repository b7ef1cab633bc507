"""S3, the only truth about what is kept: create-only objects, proved before they are visible; receipts; events.

Reading order: `keys` (what stands where), `s3` (one exchange, and what each answer means), `stored` (how an object is marked
and read back), `upload` (how it gets there), with `spool`, `digest` and `threads` beneath; `chain` (the record of audits).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog
from isal.isal_zlib import crc32

from worker.archive.chain import Chain, Entry, breaks
from worker.archive.keys import Layout, stamp
from worker.archive.s3 import Bucket, StandsError, VanishedError
from worker.archive.spool import Spool
from worker.archive.stored import StoredObject, crc32_header, keeping, output_of, read_back, stored_object
from worker.archive.upload import Means, Upload
from worker.errors import ArchiveRefusedError, ArchiveUnavailableError, HeldError
from worker.model import JsonObject, Lease, Output, OutputId, Receipt
from worker.settings import ArchiveSettings

__all__ = ["Archive", "Chain", "Entry", "Event", "StoredObject", "Upload", "breaks"]

log = structlog.get_logger(__name__)
T = TypeVar("T")

_WORTH_A_LISTING = 12  # receipts; a list request is the price of so many GETs
_READERS = 8  # many small objects are read at once
_LONGEST_PRESIGN = timedelta(days=7)  # S3's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A create-only event under ``_state/{kind}/``: what Redis must not be the only one to know."""

    kind: str
    identity: tuple[str, ...]  # (source, job id) or (source, job id, output id); () for epoch
    at: datetime
    document: JsonObject


class Archive:
    """The bucket, seen through one `[archive]` table. Thread-safe.

    Every method that talks to S3 may raise `ArchiveUnavailableError` (after some tries) and `ArchiveRefusedError`. A key that
    S3 would not take, since its ids are too long, raises `HeldError`.
    """

    def __init__(self, settings: ArchiveSettings, *, spool_bytes: int) -> None:
        self._bucket = Bucket(settings)
        self._layout = Layout(settings.prefix)
        self._means = Means(self._bucket, Spool(spool_bytes))
        self.proofs = Chain(self._bucket, self._layout.events("audit"), self._put)  # what audits and verifications found

    # --- objects -----------------------------------------------------------------------------------------------------

    def key(self, output: Output, filename: str) -> str:
        """Give the object's key; `filename` is safe already, and is shortened when the key would be too long."""
        return self._layout.object(output, filename)

    def objects(self, output: Output) -> list[StoredObject]:
        """List what stands at ``…/{job_id}/{output_id}/``."""
        keys = [entry["Key"] for entry in self._bucket.keys(self._layout.folder(output))]
        answers = ((key, self._bucket.head(key)) for key in keys)
        return [stored_object(key, answer, output.id) for key, answer in answers if answer is not None]

    def inventory(
        self, source: str, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[tuple[str, int, str]]:
        """List (key, size, etag) of every object of `source`, or of those completed on the days from `since` to `until`."""
        first, last = self._layout.days(source, since, until)
        for entry in self._bucket.keys(self._layout.source(source), after=first):
            if last and entry["Key"] > last:
                return
            yield entry["Key"], entry["Size"], entry["ETag"].strip('"')

    def stored(self, source: str, since: datetime | None = None) -> Iterator[tuple[OutputId, str]]:
        """List (output, key) of what stands where an output of `source`, completed on that day or later, would stand."""
        for key, _, _ in self.inventory(source, since):
            if output := self._layout.output_of(key):
                yield output, key

    def marked(self, key: str) -> Output | None:
        """Read from the object at `key` which output it is of. None where it names none, or one that could not stand there."""
        output = self._layout.output_of(key)
        answer = self._bucket.head(key) if output else None
        marked = output_of(answer, output) if output and answer else None
        with suppress(HeldError):  # ids of which we would make no key
            if marked and key.startswith(self._layout.folder(marked)):
                return marked
        return None

    def stands(self, key: str) -> tuple[int, str] | None:
        """Give (size, etag) of the object at `key`, None when there is none."""
        answer = self._bucket.head(key)
        return None if answer is None else (answer["ContentLength"], answer["ETag"].strip('"'))

    def read_back(self, key: str, algorithms: tuple[str, ...], lease: Lease) -> tuple[int, dict[str, str]]:
        """Read an object whole: its size and its hex digests by algorithm. Raises `HeldError` when it does not exist."""
        return read_back(self._bucket, key, algorithms, lease)

    def open_upload(
        self,
        output: Output,
        lease: Lease,
        *,
        keep: bool,
        algorithm: str | None,
        refused: Callable[[ArchiveRefusedError], None] | None = None,
    ) -> Upload:
        """Begin an upload for `output`. `keep`: the bytes must not be fetched twice, so a copy of all of them stays on disk
        until the object is complete. `algorithm`: the vendor's digest to compute beside sha256. `refused` is told once when S3
        refuses us; with it, the upload waits until that was put right (as long as its lease allows where `keep` is set, else
        for some minutes) instead of dropping the bytes in hand.
        """
        return Upload(self._means, output, lease, keep=keep, algorithm=algorithm, refused=refused)

    def abort_uploads(self, output: Output) -> int:
        """Abort every unfinished multipart upload of `output`; gives how many. For the holder of its lease alone: whoever
        began them is dead, or no longer holds it.
        """
        return self._abort_uploads(self._layout.folder(output), lambda _, __: True)

    def sweep_uploads(self, older_than: timedelta, in_use: Callable[[OutputId], bool]) -> int:
        """Abort our own unfinished multipart uploads begun longer ago than that, unless somebody holds their output (some
        services say of every upload that it began long ago). Gives how many. Nothing that is not ours is touched.
        """
        before = datetime.now(UTC) - older_than
        return self._abort_uploads(self._layout.root, lambda output, began: began < before and not in_use(output))

    def _abort_uploads(self, prefix: str, condemned: Callable[[OutputId, datetime], bool]) -> int:
        aborted = 0
        for page in self._bucket.pages("list_multipart_uploads", Prefix=prefix):
            for upload in page.get("Uploads", ()):
                output = self._layout.output_of(upload["Key"])
                if output is not None and condemned(output, upload["Initiated"]):
                    with suppress(VanishedError):
                        self._bucket.call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
                        aborted += 1
        if aborted:
            log.info("unfinished uploads aborted", count=aborted)
        return aborted

    def presign(self, key: str, life: timedelta) -> str:
        """A URL for GETs of `key`, which a browser saves and never shows: what a vendor made must not run as a page."""
        seconds = int(min(life, _LONGEST_PRESIGN).total_seconds())
        return str(self._bucket.presign(key, seconds))

    # --- receipts ----------------------------------------------------------------------------------------------------

    def receipt(self, output: OutputId) -> Receipt | None:
        """Read the receipt of `output`, or None. Raises `HeldError` for one that cannot be read."""
        body = self._bucket.get(self._layout.receipt(output))
        if body is None:
            return None
        try:
            return Receipt.from_json(json.loads(body))
        except (ValueError, RecursionError) as exc:
            raise HeldError(f"{output}: its receipt cannot be read ({exc}); look at it before anything else") from exc

    def may_have_receipts(self, outputs: Sequence[OutputId]) -> set[OutputId]:
        """Those of `outputs`, all of one source, that may have a receipt; the others have none.

        One page of a listing tells, where so many are asked for that it is cheaper than a GET for each. Those that it does
        not reach may have one, and so may one with ids that make no key.
        """
        if len(outputs) < _WORTH_A_LISTING:
            return set(outputs)
        keys: dict[str, OutputId] = {}
        unsure: set[OutputId] = set()
        for output in outputs:
            try:
                keys[self._layout.receipt(output)] = output
            except HeldError:
                unsure.add(output)
        if not keys:
            return unsure
        prefix = self._layout.receipts(outputs[0].source)
        page = next(self._bucket.pages("list_objects_v2", Prefix=prefix, StartAfter=min(keys)[:-1]))
        names = [entry["Key"] for entry in page.get("Contents", ())]
        reached = max(names, default="") if page.get("IsTruncated") else max(keys)
        standing = set(names)
        return unsure | {output for key, output in keys.items() if key in standing or key > reached}

    def write_receipt(self, receipt: Receipt) -> Receipt:
        """Write `receipt`, create-only, and give the one that stands (an earlier one wins)."""
        if self._create(self._layout.receipt(receipt.id), receipt.to_json()):
            return receipt
        standing = self.receipt(receipt.id)
        if standing is None:
            raise ArchiveUnavailableError(f"{receipt.id}: a receipt that stood in the way is gone again")
        return standing

    def receipts(self, source: str, written_since: datetime | None = None) -> Iterator[OutputId]:
        """List the outputs of `source` that have a receipt; only those that the bucket says were written since then."""
        for entry in self._bucket.keys(self._layout.receipts(source)):
            if written_since and entry["LastModified"] < written_since:
                continue
            if output := self._layout.receipt_of(entry["Key"], source):
                yield output

    # --- events ------------------------------------------------------------------------------------------------------

    def write_event(self, kind: str, identity: tuple[str, ...], document: JsonObject, at: datetime) -> None:
        """Write one event, create-only."""
        whole = _event_document(kind, identity, document, at)
        while not self._create(self._layout.event(kind, identity, f"{stamp(at)}-{secrets.token_hex(4)}"), whole):
            log.warning("event-name-taken", kind=kind)

    def events(self, kind: str, source: str) -> list[Event]:
        """Give the newest event of each identity of `kind` for `source` (all of `kind` when `source` is ``""``).

        One that cannot be read is left out, and logged: it must not keep the others from being known.
        """
        newest: dict[tuple[str, ...], tuple[str, datetime]] = {}
        for entry in self._bucket.keys(self._layout.events(kind, (source,) if source else ())):
            if found := self._layout.event_of(entry["Key"], kind):
                identity, at = found
                newest[identity] = (entry["Key"], at)  # keys come sorted, and within an identity that is by time

        def read(item: tuple[tuple[str, ...], tuple[str, datetime]]) -> Event | None:
            identity, (key, at) = item
            body = self._bucket.get(key)
            if body is None:
                return None
            try:
                return Event(kind=kind, identity=identity, at=at, document=dict(json.loads(body)))
            except (ValueError, TypeError, RecursionError):
                log.warning("event cannot be read; look at it", kind=kind, key=key)
                return None

        return [event for event in _at_once(read, newest.items()) if event is not None]

    def record_proof(self, document: JsonObject, at: datetime) -> Entry:
        """Append what an audit or a verification found to the chain under ``_state/audit/``."""
        return self.proofs.append(_event_document("audit", (), document, at))

    def spend(self, output: OutputId, used: int, at: datetime) -> int:
        """Write the ``spent`` event of the next counted download, numbered past `used` and past every event that stands.
        Gives its number. Two callers never get the same one.
        """
        identity = (output.source, output.job_id, output.output_id)
        number = max(used, self.spent(output)) + 1
        # The nonce tells our own event, written by a PUT whose answer was lost, from another worker's.
        document = _event_document("spent", identity, {"used": used, "nonce": secrets.token_hex(8)}, at)
        while not self._create(self._layout.event("spent", identity, f"{number:04d}"), {**document, "number": number}):
            number += 1
        return number

    def spent(self, output: OutputId) -> int:
        """The highest number of a ``spent`` event of `output`, 0 when there is none."""
        prefix = self._layout.events("spent", (output.source, output.job_id, output.output_id))
        names = (re.fullmatch(r"(\d+)\.json", entry["Key"].removeprefix(prefix)) for entry in self._bucket.keys(prefix))
        return max((int(name[1]) for name in names if name), default=0)

    def begin_epoch(self, epoch: str, at: datetime) -> bool:
        """Record that a ledger named `epoch` began. True when it is the first that this bucket ever saw.

        Ours is written before the others are looked for, so that of two ledgers that begin together neither is the first.
        """
        prefix = self._layout.events("epoch")
        ours = f"-{epoch}.json"

        def seen() -> list[str]:
            return [entry["Key"] for entry in self._bucket.keys(prefix)]

        if not any(key.endswith(ours) for key in seen()):
            document = _event_document("epoch", (), {"epoch": epoch}, at)
            self._create(self._layout.event("epoch", (), f"{stamp(at)}-{epoch}"), document)
        return all(key.endswith(ours) for key in seen())

    # --- the whole bucket --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Prove that the bucket can be used: conditional write (which must be refused the second time) and read of one fixed
        object, a multipart upload begun and aborted.

        Raises `ArchiveUnavailableError` or `ArchiveRefusedError` saying what failed and what to do.
        """
        next(iter(self._bucket.pages("list_objects_v2", Prefix=self._layout.root, MaxKeys=1)))
        key = self._layout.event("check", (), "check")
        self._put(key, b'{"schema": 1, "kind": "check"}')
        if self._put(key, b'{"schema": 1, "kind": "check"}'):
            raise ArchiveRefusedError(
                f"bucket {self._bucket.name} ignores If-None-Match, so nothing would keep an object from being overwritten; "
                "use a service that knows conditional writes"
            )
        if self._bucket.get(key) is None:
            raise ArchiveRefusedError(f"bucket {self._bucket.name} does not give back what was just written")
        key = self._layout.event("check", (), "multipart")
        answer = self._bucket.call(
            "create_multipart_upload", Key=key, ChecksumAlgorithm="CRC32", **keeping(self._bucket.settings)
        )
        self._bucket.call("abort_multipart_upload", Key=key, UploadId=answer["UploadId"])

    # --- small documents ---------------------------------------------------------------------------------------------

    def _create(self, key: str, document: JsonObject) -> bool:
        """Write one JSON document, create-only. False when another one stands there; our own, from a lost answer, is ours."""
        body = json.dumps(document).encode() + b"\n"  # one line, since Athena's and Hive's readers know no other JSON
        return self._put(key, body) or self._bucket.get(key) == body

    def _put(self, key: str, body: bytes) -> bool:
        """PUT, create-only. False when something stands there."""
        try:
            self._bucket.call(
                "put_object",
                Key=key,
                Body=body,
                ContentType="application/json",
                ChecksumCRC32=crc32_header(crc32(body)),
                IfNoneMatch="*",
                **keeping(self._bucket.settings, document=True),
            )
        except StandsError:
            return False
        return True


def _event_document(kind: str, identity: tuple[str, ...], document: JsonObject, at: datetime) -> JsonObject:
    names = dict(zip(("source", "job_id", "output_id"), identity, strict=False))
    return {**document, "schema": 1, "kind": kind, **names, "at": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}


def _at_once(read: Callable[[Any], T], items: Any) -> list[T]:
    """Read many small objects, a few at a time."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="s3-reader") as pool:
        return list(pool.map(read, items))
