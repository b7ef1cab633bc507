"""How the ledger keeps what a listing says of an output in few bytes: each document compressed with words of its source."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b

from worker.errors import LedgerUnavailableError
from worker.keyspace import PREFIX, Keyspace, epoch_seconds
from worker.model import Checksum, Output, OutputId

_WORDS_ID_BYTES = 6
_MOST_WORDS = 4096


class Documents:
    """Writes outputs for ``ledger.lua`` and reads them again. Thread-safe; may raise `LedgerUnavailableError`."""

    def __init__(self, keys: Keyspace) -> None:
        self._keys = keys
        self._words: dict[str, bytes] = {}  # of each source, to write documents with
        self._words_read: dict[tuple[str, bytes], bytes] = {}

    def facts(self, output: Output) -> tuple[str, str, bytes, bytes, str, str | int]:
        """Give what the script is told of an output: id, deadline, document, its words, when it was ready, size."""
        document, source = _document(output), output.id.source
        words = self._words.get(source)
        if words is None:  # those of another process, else this very document: the next ones will be much like it
            with self._keys.calls() as redis:
                found = redis.hvals(f"{PREFIX}words:{source}")
            words = self._words[source] = found[0] if found else document[:_MOST_WORDS]
        size = "" if output.size is None else output.size
        return (
            str(output.id),
            epoch_seconds(output.deadline),
            _pack(document, words),
            words,
            epoch_seconds(output.completed_at),
            size,
        )

    def read(self, identity: str, fields: Mapping[bytes, bytes], packed: bytes, *, words: bytes | None = None) -> Output:
        """Give the output of a record's `fields` and its document. `words`: those of the document, where they are at hand."""
        output = OutputId.parse(identity)
        words = self._words_of(output.source, packed) if words is None else words
        document = json.loads(zlib.decompressobj(wbits=-zlib.MAX_WBITS, zdict=words).decompress(packed[_WORDS_ID_BYTES:]))
        checksum = document["k"]
        return Output(
            id=output,
            completed_at=datetime.fromtimestamp(float(fields[b"rd"]), UTC),
            deadline=datetime.fromtimestamp(float(fields[b"dl"]), UTC),
            filename=document["f"],
            size=document["s"],
            checksum=Checksum(algorithm=checksum[0], value=checksum[1]) if checksum else None,
            content_type=document["t"],
            downloads=document["d"],
            job=document["j"],
        )

    def _words_of(self, source: str, packed: bytes) -> bytes:
        """Give the words that a document was packed with."""
        identity = (source, packed[:_WORDS_ID_BYTES])
        if identity not in self._words_read:
            with self._keys.calls() as redis:
                found = redis.hget(f"{PREFIX}words:{source}", identity[1])
            if found is None:
                raise LedgerUnavailableError("Redis: emptied while it was read")
            self._words_read[identity] = found
        return self._words_read[identity]


def _document(output: Output) -> bytes:
    """Write what `Output` holds beside its id and its times; most of it is the vendor's document."""
    document = {
        "f": output.filename,
        "s": output.size,
        "k": [output.checksum.algorithm, output.checksum.value] if output.checksum else None,
        "t": output.content_type,
        "d": output.downloads,
        "j": output.job,
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _pack(document: bytes, words: bytes) -> bytes:
    """Compress a document with `words` that the reader has too: one document of a source says most of what the next one says.

    It begins with an id of the words, as ledger.lua knows.
    """
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS, zdict=words)
    return blake2b(words, digest_size=_WORDS_ID_BYTES).digest() + packer.compress(document) + packer.flush()
