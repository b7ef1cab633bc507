"""What stands in the bucket: how an object is marked when it is made, and how it is read back."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from worker.archive.s3 import Bucket
from worker.errors import HeldError
from worker.model import JsonObject, Lease, Output, OutputId, parse_timestamp, timestamp
from worker.settings import ArchiveSettings

_CONTENT_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")
_FILENAME_METADATA_BYTES = 800  # all metadata together may have 2 KiB, and the ids in a key of 1,024 bytes need theirs
_COLD = {"GLACIER", "DEEP_ARCHIVE"}  # a receipt must be readable at once


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


def stored_object(key: str, answer: JsonObject, output: OutputId) -> StoredObject:
    """Read the answer to a HEAD of `key`."""
    metadata = answer.get("Metadata", {})
    return StoredObject(
        key=key,
        size=answer["ContentLength"],
        etag=answer["ETag"].strip('"'),
        version_id=answer.get("VersionId"),
        filename=unquote(metadata.get("lastcall-filename", "")) or key.rpartition("/")[2],
        wrapping=metadata.get("lastcall-wrapping", "none"),
        content_type=answer.get("ContentType", "application/octet-stream"),
        marked=metadata.get("lastcall-output") == str(output),
    )


def attributes(
    settings: ArchiveSettings, output: Output, key: str, *, filename: str, wrapping: str, content_type: str
) -> JsonObject:
    """Give the parameters of the request that makes the object of `output` (a PUT, or the begin of a multipart upload).

    Its metadata are what a receipt needs that neither the object's key nor its bytes tell: `output_of` reads them.
    """
    return {
        "Key": key,
        # What a vendor sends is hostile: a type that cannot be a header is none.
        "ContentType": content_type if _CONTENT_TYPE.fullmatch(content_type) else "application/octet-stream",
        "Metadata": {
            "lastcall-output": str(output.id),
            "lastcall-wrapping": wrapping,
            "lastcall-filename": _quoted(filename),
            "lastcall-completed-at": timestamp(output.completed_at),
            "lastcall-deadline": timestamp(output.deadline),
        },
        **keeping(settings),
    }


def output_of(answer: JsonObject, output: OutputId) -> Output | None:
    """Read the output that `attributes` wrote into the metadata of its object. None where nobody marked it as this one."""
    metadata = answer.get("Metadata", {})
    if metadata.get("lastcall-output") != str(output):
        return None
    try:
        completed_at = parse_timestamp(metadata["lastcall-completed-at"])
        deadline = parse_timestamp(metadata["lastcall-deadline"])
    except (KeyError, ValueError):
        return None
    return Output(id=output, completed_at=completed_at, deadline=deadline)


def keeping(settings: ArchiveSettings, *, document: bool = False) -> JsonObject:
    """Give what the settings say on how objects are kept. `document`: one that we read again, so never in cold storage."""
    params: JsonObject = {
        "StorageClass": None if document and settings.storage_class in _COLD else settings.storage_class,
        "ServerSideEncryption": settings.sse,
        "SSEKMSKeyId": settings.kms_key_id,
    }
    if settings.object_lock_mode is not None and settings.object_lock_days is not None:
        params["ObjectLockMode"] = settings.object_lock_mode
        params["ObjectLockRetainUntilDate"] = datetime.now(UTC) + timedelta(days=settings.object_lock_days)
    return {name: value for name, value in params.items() if value is not None}


def crc32_header(crc: int) -> str:
    """Write a CRC32 as ``x-amz-checksum-crc32`` wants it.

    CRC32, since zlib has it (2.2 GB/s; CRC64NVME would need awscrt, 4 MB of wheel) and every S3 service that knows
    checksums at all knows it. Composite, the default type, since older services know no other for it.
    """
    return b64encode(crc.to_bytes(4, "big")).decode()


def read_back(bucket: Bucket, key: str, algorithms: tuple[str, ...], lease: Lease) -> tuple[int, dict[str, str]]:
    """Read `key` whole: its size and its hex digests. A cut connection goes on where it was cut. Raises `HeldError` when
    the object does not exist.
    """
    head = bucket.head(key, lease)
    if head is None:
        raise HeldError("the object is not in the bucket; it was removed, or the bucket is another one")
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    size = 0

    def take(piece: bytes) -> None:
        nonlocal size
        lease.check()
        for digest in hashes.values():
            digest.update(piece)
        size += len(piece)

    def attempt() -> None:
        if size < head["ContentLength"]:
            bucket.stream(key, size, head["ETag"], take)

    bucket.patiently(lease, attempt)
    return size, {name: digest.hexdigest() for name, digest in hashes.items()}


def _quoted(filename: str) -> str:
    """Percent-encode a file name for the metadata, cut where it would not fit (never within a character)."""
    while len(quoted := quote(filename, safe="", errors="replace")) > _FILENAME_METADATA_BYTES:
        filename = filename[:-1]
    return quoted
