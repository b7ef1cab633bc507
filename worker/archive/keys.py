"""The layout of the bucket (CONTRACT section 5): what stands where, and that no key is longer than S3 allows."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import PurePosixPath
from urllib.parse import unquote

from worker.errors import HeldError
from worker.model import Output, OutputId, encode_id

KEY_BYTES = 1_024
_NAME_BYTES = 255  # one segment; file systems take no more, and neither do some services
_LEAST_NAME_BYTES = 16
_STAMP = "%Y%m%dT%H%M%S.%fZ"  # sorts by time
_OBJECT = re.compile(r"([a-z0-9][a-z0-9-]{0,62})/\d{4}/\d\d/\d\d/([^/]+)/([^/]+)/[^/]+")


class Layout:
    """The keys under one prefix, which may be empty."""

    def __init__(self, prefix: str) -> None:
        self.root = f"{prefix}/" if prefix else ""

    def source(self, source: str) -> str:
        """Prefix of every object of `source`."""
        return f"{self.root}{source}/"

    def days(self, source: str, since: datetime | None, until: datetime | None) -> tuple[str | None, str | None]:
        """Bounds of the keys of `source` whose day is in between: all of them come behind the first, none behind the last."""
        first, last = (f"{self.source(source)}{at.astimezone(UTC):%Y/%m/%d}" if at else None for at in (since, until))
        return first, f"{last}/\U0010ffff" if last else None

    def folder(self, output: Output) -> str:
        """Prefix of what stands for `output`. Raises `HeldError` where its ids leave no room for a name."""
        day = output.completed_at.astimezone(UTC).strftime("%Y/%m/%d")
        source, *ids = (encode_id(part) for part in (output.id.source, output.id.job_id, output.id.output_id))
        folder = f"{self.root}{'/'.join([source, day, *ids])}/"
        if KEY_BYTES - len(folder) < _LEAST_NAME_BYTES:
            raise _too_long(output.id)
        return folder

    def object(self, output: Output, filename: str) -> str:
        """Key of `output`'s file; a name that does not fit is shortened, always in the same way."""
        folder = self.folder(output)  # ids are percent-encoded and prefixes are ASCII: one byte each
        return folder + _shortened(filename, min(KEY_BYTES - len(folder), _NAME_BYTES))

    def receipts(self, source: str) -> str:
        """Prefix of every receipt of `source`."""
        return f"{self.root}_receipts/{source}/"

    def receipt(self, output: OutputId) -> str:
        """Key of the receipt of `output`."""
        return _bounded(f"{self.root}_receipts/{output}.json", output)

    def receipt_of(self, key: str, source: str) -> OutputId | None:
        """The output whose receipt stands at `key`, None where none of ours can stand there."""
        parts = key.removeprefix(self.receipts(source)).removesuffix(".json").split("/")
        if len(parts) != 2 or not all(parts) or not key.endswith(".json"):
            return None
        return OutputId(source, unquote(parts[0]), unquote(parts[1]))

    def events(self, kind: str, identity: tuple[str, ...] = ()) -> str:
        """Prefix of the events of `kind`, or of those of one identity (or of the identities that begin so)."""
        return "".join([f"{self.root}_state/{kind}/", *(f"{encode_id(part)}/" for part in identity)])

    def event(self, kind: str, identity: tuple[str, ...], name: str) -> str:
        """Key of one event."""
        return _bounded(f"{self.events(kind, identity)}{name}.json", identity)

    def event_of(self, key: str, kind: str) -> tuple[tuple[str, ...], datetime] | None:
        """Identity and time of the event at `key`, None where none of ours can stand there."""
        *identity, name = key.removeprefix(self.events(kind)).split("/")
        try:
            at = datetime.strptime(name.partition("-")[0], _STAMP).replace(tzinfo=UTC)
        except ValueError:
            return None
        return tuple(unquote(part) for part in identity), at

    def output_of(self, key: str) -> OutputId | None:
        """Give the output whose object would stand at `key`, None where none of ours can stand there."""
        match = _OBJECT.fullmatch(key.removeprefix(self.root)) if key.startswith(self.root) else None
        return OutputId(*(unquote(part) for part in match.groups())) if match else None


def stamp(at: datetime) -> str:
    """Write an instant so that names sort by time."""
    return at.astimezone(UTC).strftime(_STAMP)


def _bounded(key: str, identity: OutputId | tuple[str, ...]) -> str:
    if len(key.encode()) > KEY_BYTES:
        raise _too_long(identity)
    return key


def _too_long(identity: OutputId | tuple[str, ...]) -> HeldError:
    name = str(identity)
    return HeldError(
        f"{name[:100]}…: the ids make a key of more than {KEY_BYTES} bytes, which S3 does not take; "
        "a shorter archive.prefix may help"
    )


def _shortened(filename: str, room: int) -> str:
    """Fit `filename` into `room` bytes: as much of its stem as there is room for, a hash of all of it, its extension."""
    if len(filename.encode()) <= room:
        return filename
    extension = PurePosixPath(filename).suffix
    if len(extension.encode()) > 8:
        extension = ""
    end = "~" + hashlib.sha256(filename.encode()).hexdigest()[:7] + extension
    stem = filename.encode()[: room - len(end.encode())].decode(errors="ignore")
    return stem + end
