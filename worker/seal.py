"""Seals what must lie in Redis for a while: who reads Redis (a dump, a replica, MONITOR) must not get at a vendor with it.

The key is made of the source's own secrets, so there is none to keep, and a token that was got with other secrets than the
present ones cannot be opened: it counts as none. Vendors' passwords may be weak, and what is sealed with them could be tried
against a list of passwords; so the key is stretched (scrypt, as OWASP sets it for passwords: 16 MiB and a tenth of a second
of CPU, once per process).
"""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
import threading
import time
from base64 import b64decode, b64encode
from datetime import datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from worker.errors import ConfigurationError
from worker.model import Shared
from worker.settings import SourceSettings

_NONCE_BYTES = 12
_READ_EVERY_SECONDS = 0.5


def digest(source: SourceSettings, salt: str) -> bytes:
    """Give 32 bytes that are the same for the same secrets of `source` and `salt`, and tell nothing of them.

    A secret that cannot be read now counts as one of its own kind.
    """
    return _stretched(json.dumps([source.name, _revealed(source)]).encode(), salt.encode())


def _revealed(source: SourceSettings) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for key, secret in sorted(source.secrets().items()):
        try:
            found[key] = secret.reveal()
        except ConfigurationError:
            found[key] = None
    return found


@functools.lru_cache(maxsize=256)
def _stretched(material: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(material, salt=salt, n=2**14, r=8, p=5, maxmem=2**26, dklen=32)


class SealedShared:
    """`model.Shared` of one source, whose token is sealed before it is shared, and opened where it is used."""

    def __init__(self, source: SourceSettings, shared: Shared) -> None:
        self._source = source
        self._shared = shared
        self._reading = threading.Lock()
        self._read: tuple[str | None, float] = (None, 0.0)  # the token as it was read last, and until when that will do
        self._making = threading.Lock()  # threads that need the key at once would each take the memory and the time for it
        self.pace = shared.pace
        self.log_in_turn = shared.log_in_turn
        self.end_log_in_turn = shared.end_log_in_turn

    def hush(self, until: datetime) -> None:
        """Let no worker call this source before `until`."""
        self._shared.hush(until)

    def token(self) -> str | None:
        """Give the shared token while it lives, None as well for one that was got with other secrets.

        Read once in `_READ_EVERY_SECONDS`: a token is used until some time before its end, and one that the vendor refuses is
        dropped here at once.
        """
        token, until = self._read
        if token is None or time.monotonic() > until:
            with self._reading:
                sealed = self._shared.token()
                token = None if sealed is None else self._open(sealed)
                self._read = (token, time.monotonic() + _READ_EVERY_SECONDS)
        return token

    def store_token(self, token: str, life_seconds: float) -> None:
        """Share a new token; the turn to log in ends."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._cipher().encrypt(nonce, token.encode(), self._source.name.encode())
        with self._reading:
            self._read = (None, 0.0)
            self._shared.store_token(b64encode(sealed).decode(), life_seconds)

    def drop_token(self, token: str) -> None:
        """Forget `token` if it is still the shared one."""
        with self._reading:
            self._read = (None, 0.0)
            sealed = self._shared.token()
            if sealed is not None and self._open(sealed) == token:
                self._shared.drop_token(sealed)

    def _open(self, sealed: str) -> str | None:
        try:
            data = b64decode(sealed, validate=True)
            opened = self._cipher().decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], self._source.name.encode())
        except (InvalidTag, ValueError):  # other secrets, or not ours at all
            return None
        return opened.decode()

    def _cipher(self) -> ChaCha20Poly1305:
        with self._making:
            return ChaCha20Poly1305(digest(self._source, "lastcall shared token"))
