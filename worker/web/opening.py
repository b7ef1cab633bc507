"""A kept file, opened from the board: its receipt says where it stands, and a link that ends soon is made at the click."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from worker.model import OutputId
from worker.settings import ArchiveSettings

if TYPE_CHECKING:
    from worker.archive import Archive

_LIFE = timedelta(minutes=5)  # to begin the download; clocks need not agree better than that


class Opening:
    """Makes links. Thread-safe. The bucket and its credentials are not touched before the first one is asked for."""

    def __init__(self, settings: ArchiveSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._archive: Archive | None = None

    def link(self, output: OutputId) -> str | None:
        """Give a URL that saves the file of `output`, None where it has no receipt. A secret for as long as it lives.

        Raises `ArchiveUnavailableError`, `ArchiveRefusedError`, and `HeldError` for a receipt that cannot be read.
        """
        archive = self._opened()
        receipt = archive.receipt(output)
        return archive.presign(receipt.key, _LIFE) if receipt else None

    def _opened(self) -> Archive:
        with self._lock:
            if self._archive is None:
                from worker.archive import Archive  # noqa: PLC0415 - boto3 is large, and most boards never need it

                self._archive = Archive(self._settings, spool_bytes=0)
            return self._archive
