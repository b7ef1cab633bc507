"""Compares the bucket with what the vendors know to be true, over plain HTTP and without any of lastcall's own code for S3."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET

from worker.demo.server import MIB, Truth
from worker.model import JsonObject, OutputId, parse_timestamp

_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
# The embedded S3 asks that somebody is named, and believes it.
_SIGNED = "Credential=demo/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=0"


@dataclass(kw_only=True)
class Comparison:
    """What was found. `problems`: one line for each thing that is not as it should be."""

    files: int = 0
    same: int = 0
    read_bytes: int = 0
    receipts: int = 0
    objects: int = 0
    least_left: timedelta | None = None
    problems: list[str] = field(default_factory=list)


def compare(s3: str, bucket: str, prefix: str, truths: Mapping[OutputId, Truth], check: Callable[[], None]) -> Comparison:
    """Read every receipt and every object back and compare it with the vendor's truth. `check` is called now and then."""
    found = Comparison(files=len(truths))
    with closing(_Bucket(s3, bucket)) as kept:
        keys = set(kept.keys(prefix + "/"))
        receipts = {key for key in keys if key.startswith(f"{prefix}/_receipts/")}
        objects = {key for key in keys - receipts if not key.startswith(f"{prefix}/_state/")}
        found.receipts, found.objects = len(receipts), len(objects)
        for output, truth in truths.items():
            check()
            name = f"{prefix}/_receipts/{output}.json"
            if name not in receipts:
                found.problems.append(f"{output}: no receipt")
                continue
            receipts.discard(name)
            receipt = json.loads(b"".join(kept.read(name)))
            if receipt["key"] not in objects:
                found.problems.append(f"{output}: no object where its receipt says")
                continue
            objects.discard(receipt["key"])
            _compare_one(kept, output, truth, receipt, found)
    found.problems += [f"a receipt that belongs to nothing: {key}" for key in sorted(receipts)]
    found.problems += [f"an object without a receipt: {key}" for key in sorted(objects)]
    return found


def _compare_one(kept: _Bucket, output: OutputId, truth: Truth, receipt: JsonObject, found: Comparison) -> None:
    digest, size = hashlib.sha256(), 0
    for chunk in kept.read(receipt["key"]):
        digest.update(chunk)
        size += len(chunk)
    found.read_bytes += size
    if (size, digest.hexdigest()) != (truth.size, truth.sha256):
        found.problems.append(f"{output}: {size:,} bytes in the bucket are not the vendor's {truth.size:,}")
    elif (receipt["size"], receipt["sha256"]) != (truth.size, truth.sha256):
        found.problems.append(f"{output}: its receipt says something else than its object")
    else:
        found.same += 1
    left = parse_timestamp(receipt["deadline"]) - parse_timestamp(receipt["archived_at"])
    found.least_left = left if found.least_left is None else min(found.least_left, left)


class _Bucket:
    """The embedded S3's bucket, read by plain HTTP."""

    def __init__(self, s3: str, bucket: str) -> None:
        self._connection = http.client.HTTPConnection(s3.removeprefix("http://"), timeout=60)
        self._bucket = bucket

    def close(self) -> None:
        self._connection.close()

    def keys(self, prefix: str) -> Iterator[str]:
        """List every key."""
        token = ""
        while True:
            query = {"list-type": "2", "prefix": prefix, **({"continuation-token": token} if token else {})}
            page = ET.fromstring(b"".join(self._get(f"/{self._bucket}?{urlencode(query)}")))  # noqa: S314 - our own server's
            yield from (entry.findtext(f"{_NAMESPACE}Key", "") for entry in page.findall(f"{_NAMESPACE}Contents"))
            token = page.findtext(f"{_NAMESPACE}NextContinuationToken", "")
            if not token:
                return

    def read(self, key: str) -> Iterator[bytes]:
        """Yield an object's bytes; none when it is not there."""
        return self._get(f"/{self._bucket}/{quote(key)}")

    def _get(self, path: str) -> Iterator[bytes]:
        self._connection.request("GET", path, headers={"Authorization": f"AWS4-HMAC-SHA256 {_SIGNED}"})
        answer = self._connection.getresponse()
        while chunk := answer.read(MIB):
            if answer.status == 200:
                yield chunk
