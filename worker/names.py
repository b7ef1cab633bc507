"""File names from strangers: Content-Disposition → a raw name, a raw name → one that is safe, faithful and stable."""

from __future__ import annotations

import binascii
import hashlib
import mimetypes
import re
import unicodedata
from email.header import decode_header
from email.message import Message
from typing import Any

_MAX_BYTES = 255
_MAX_EXTENSION_BYTES = 32
_MOST_CHARACTERS = 4096  # to put a million accents on one letter in order takes many minutes, in which nothing else runs
_HAS_EXTENSION = re.compile(r"[^.]\.(?=[0-9_]*[A-Za-z])[A-Za-z0-9_]{1,16}\Z")
# An .xlsx is a zip whose first member is usually its table of contents; the name stands at byte 30.
_MAGIC = tuple(
    (extension, re.compile(magic, re.DOTALL))
    for extension, magic in (
        ("docx", rb"PK\x03\x04.{26}word/"),
        ("xlsx", rb"PK\x03\x04.{26}(\[Content_Types\]\.xml|xl/|_rels/|docProps/)"),
        ("zip", rb"PK(\x03\x04|\x05\x06)"),
        ("pdf", rb"%PDF"),
        ("gz", rb"\x1f\x8b"),
        ("xls", rb"\xd0\xcf\x11\xe0"),
        ("png", rb"\x89PNG"),
        ("jpg", rb"\xff\xd8\xff"),
        ("gif", rb"GIF8"),
        ("json", rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\[{\"\]}]"),
        ("xml", rb"(\xef\xbb\xbf)?\s*<\?xml"),
    )
)
_TYPES = mimetypes.MimeTypes()  # Python's own table; the module's functions would read the machine's as well
_TYPES.add_type("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", ".xlsx")
_TYPES.add_type("application/vnd.openxmlformats-officedocument.wordprocessingml.document", ".docx")
_TYPES.add_type("application/gzip", ".gz")
_COMPRESSED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?=(\s*=\?[^?\s]+\?[bBqQ]\?[^?]*\?=)*")
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])[ ]*(\..*)?", re.IGNORECASE)
# Control, format (bidirectional overrides, zero width), lone surrogates, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def from_content_disposition(header: str | None) -> str | None:
    """Give the file name of a Content-Disposition header in any of its forms (quoted, unquoted, RFC 5987, mojibake), or None.

    `header` is as http.client gives it: bytes read as latin-1. ``filename*`` wins over ``filename`` when it can be decoded.
    Unquoted names keep their spaces, unescaped backslashes survive, UTF-8 bytes become what they were meant to be, and an
    RFC 2047 word is read. The name is raw: it may hold path parts and control characters; see `safe_name`.
    """
    if not header:
        return None
    message = Message()
    message["Content-Disposition"] = re.sub(r"[\r\n]+[ \t]*", " ", header)
    try:
        found: list[tuple[str, Any]] = message.get_params([], "Content-Disposition") or []  # typeshed forgets RFC 2231's tuples
    except (ValueError, TypeError, LookupError):
        return None  # continuations that no parser could put together; another source of the name decides
    names = [value for name, value in found if name.strip().lower() == "filename"]
    extended = [_extended(value) for value in names if isinstance(value, tuple)]
    plain = [_plain(value) for value in names if isinstance(value, str)]
    return next(filter(None, [*extended, *plain]), None)


def safe_name(raw: str | None, fallback: str) -> str:
    """Make `raw` one path segment of a key, stable for the same input, keeping what it can; `fallback` if nothing is left.

    NFC; the last path part (either separator); without control, bidirectional and other invisible characters; without
    spaces around it and dots after it; a Windows device name gets a ``_`` in front; at most 255 bytes of UTF-8, the
    extension kept and the rest shortened with a hash of the whole. Giving the result in again gives it back.
    """
    return _clean(raw or "") or _clean(fallback) or "file"


def with_extension(name: str, head: bytes) -> str:
    """Give `name` the extension that the file's first bytes (64 are enough) call for, ``.bin`` where they say nothing; a name
    that has one keeps it.
    """
    if _HAS_EXTENSION.search(name):
        return name
    found = next((extension for extension, magic in _MAGIC if magic.match(head)), "bin")
    return f"{name.rstrip('.')}.{found}"


def content_type(filename: str) -> str:
    """Give the media type that `filename` calls for; the same on every machine."""
    kind, encoding = _TYPES.guess_type(f"_{filename}" if filename.startswith(".") else filename)
    return "application/octet-stream" if kind is None else _COMPRESSED.get(encoding or "", kind)


def _extended(value: tuple[str | None, str | None, str]) -> str | None:
    """Decode RFC 5987 and 2231: email has read the percent signs as latin-1 bytes of the charset that is named."""
    charset, _, text = value
    try:
        return text.encode("latin-1").decode(charset or "utf-8")
    except (ValueError, LookupError):  # bytes that are not of the charset, a charset that is none
        return None


def _plain(value: str) -> str:
    value = value.removeprefix('"') if value.count('"') == 1 else value
    if _ENCODED_WORD.fullmatch(value):
        try:
            words = decode_header(value)
            return "".join(part if isinstance(part, str) else part.decode(charset or "ascii") for part, charset in words)
        except (ValueError, LookupError, binascii.Error):
            return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _clean(raw: str) -> str:
    visible = "".join(char for char in raw if unicodedata.category(char) not in _INVISIBLE)
    parts = [stripped for part in re.split(r"[/\\]", visible) if (stripped := part.strip())]
    name = parts[-1] if parts else ""
    if len(name) > _MOST_CHARACTERS:
        name = f"{name[: _MOST_CHARACTERS // 2]}~{_digest(name)}{name[-_MAX_EXTENSION_BYTES:]}"
    name = unicodedata.normalize("NFC", name).strip()
    end = len(name)
    while end and (name[end - 1] == "." or name[end - 1].isspace()):  # a pattern would take hours over a megabyte of dots
        end -= 1
    name = name[:end]
    if _DEVICES.fullmatch(name):
        name = "_" + name
    return _shorten(name)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _shorten(name: str) -> str:
    if len(name.encode()) <= _MAX_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > _MAX_EXTENSION_BYTES:
        stem, dot, extension = name, "", ""
    tail = f"~{_digest(name)}{dot}{extension}"
    return stem.encode()[: _MAX_BYTES - len(tail.encode())].decode(errors="ignore") + tail
