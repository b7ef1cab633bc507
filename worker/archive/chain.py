"""A record that shows tampering: numbered create-only documents, each with the SHA-256 of the one before it.

What it shows: a document that was changed, removed from the middle, renamed, or slipped in. What it cannot show by itself is
that its newest documents were removed: whoever appends remembers number and hash of the last one elsewhere, too.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.archive.s3 import Bucket
from worker.errors import ArchiveUnavailableError
from worker.model import JsonObject

_NAME = re.compile(r"(\d{8,12})\.json")
_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One document of a chain. `number` is its name's; `document` is None when it cannot be read."""

    number: int
    sha256: str
    document: JsonObject | None

    @property
    def at(self) -> datetime | None:
        """When it says that it was written, None when it does not."""
        try:
            return datetime.fromisoformat(str((self.document or {}).get("at"))).astimezone(UTC)
        except ValueError:
            return None


class Chain:
    """The documents under one prefix. `create` writes a key once: False when something stands there already.

    Two writers never fork it: they would need the same name, and the bucket gives that to one of them.
    """

    def __init__(self, bucket: Bucket, prefix: str, create: Callable[[str, bytes], bool]) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._create = create

    def append(self, document: JsonObject) -> Entry:
        """Write `document` as the next one, with its ``number`` and the hash of the one before as ``previous``."""
        nonce = secrets.token_hex(8)  # tells our own, written by a PUT whose answer was lost, from another writer's
        numbers = self._numbers()
        last = self.entry(numbers[-1]) if numbers else None
        while True:
            number = last.number + 1 if last else 1
            whole = {**document, "number": number, "previous": last.sha256 if last else None, "nonce": nonce}
            body = json.dumps(whole).encode() + b"\n"
            if self._create(self._key(number), body):
                return _entry(number, body)
            standing = self.entry(number)
            if standing is None:
                raise ArchiveUnavailableError(f"record {number}: what stood in the way is gone again")
            if standing.sha256 == hashlib.sha256(body).hexdigest():
                return standing
            last = standing

    def entry(self, number: int) -> Entry | None:
        """Read one document, None when it does not stand."""
        body = self._bucket.get(self._key(number))
        return None if body is None else _entry(number, body)

    def entries(self) -> list[Entry]:
        """Read all that stand, in the order of their numbers."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="s3-reader") as pool:
            return [entry for entry in pool.map(self.entry, self._numbers()) if entry]

    def newest(self) -> Iterator[Entry]:
        """Read from the last one backwards, each when it is asked for."""
        yield from (entry for number in reversed(self._numbers()) if (entry := self.entry(number)))

    def _numbers(self) -> list[int]:
        names = (_NAME.fullmatch(entry["Key"].removeprefix(self._prefix)) for entry in self._bucket.keys(self._prefix))
        return sorted(int(name[1]) for name in names if name)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:08d}.json"


def breaks(entries: Sequence[Entry]) -> list[tuple[int, str]]:
    """Say where a chain is broken, as (number, what is wrong). Nothing is wrong with an empty one."""
    found: list[tuple[int, str]] = []
    before: Entry | None = None
    for entry in entries:
        expected = before.number + 1 if before else 1
        found += [(number, "it is missing") for number in range(expected, entry.number)]
        if entry.document is None:
            found.append((entry.number, "it cannot be read, so it was changed"))
        elif entry.document.get("number") != entry.number:
            found.append((entry.number, f"it says that it is number {entry.document.get('number')}, so it was moved here"))
        elif entry.number == expected and entry.document.get("previous") != (before.sha256 if before else None):
            changed = before.number if before else entry.number
            found.append((changed, f"it is not what record {entry.number} was written after, so it was changed or replaced"))
        before = entry
    return found


def _entry(number: int, body: bytes) -> Entry:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    return Entry(
        number=number, sha256=hashlib.sha256(body).hexdigest(), document=document if isinstance(document, dict) else None
    )
