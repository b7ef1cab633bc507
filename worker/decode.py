"""A stream transformer per wrapping: the body as received in, the file out.

The first 1 MiB (the head; the whole body when it is shorter) decides the form, by trying: the first form of the vendor's list
that reads the head without a violation is taken. A later violation raises `DecodeError` and nothing of the body is kept.

=================  =====================================================================  ==============================
form               the body is                                                            tried for
=================  =====================================================================  ==============================
``json-content``   an object with a member of base64: ``Content``; ``FileContent, Data``  Sellercloud; Crayon
``json-bytes``     an object with ``FileContent`` as an array of byte numbers             Crayon
``json-string``    one JSON string of base64                                              Sellercloud
``base64``         base64, line breaks allowed                                            Sellercloud
``none``           the file                                                               all
=================  =====================================================================  ==============================

Base64 is strict: the alphabet, whole groups of four, padding only at the end and nothing but white space after it. Short plain
text can be base64 by accident; the vendor's rule is to decode it, and the receipt names the form. A file with a magic number
(``PK``, ``%PDF``) is never taken for base64: each has bytes outside the alphabet.

An error page under 200 is recognised under every wrapping, by the body alone: HTML, unless the file is meant to be HTML by
its name or declared type; a storage's ``<Error><Code>``, unless the file is meant to be XML; a small JSON object of nothing
but an error's members. Under a name or type of JSON the last needs to be stricter, since any object could be the file: only
the members that these vendors' errors have, and none that a document might have as well.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pybase64

from worker.errors import DecodeError, RefusedError
from worker.model import Wrapping

Piece: TypeAlias = bytes | bytearray | memoryview

_HEAD_BYTES = 1024 * 1024
_TAIL_BYTES = 1024 * 1024  # of an envelope, after its content
_ERROR_BYTES = 64 * 1024
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_BREAKS = b"\r\n"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BASE64_LINE = 60  # a first line as long as this with no other character in it is hardly anything but base64

_CONTENT_KEYS = {Wrapping.SELLERCLOUD: {"content"}, Wrapping.CRAYON: {"filecontent", "data"}, Wrapping.NONE: set[str]()}
_ENVELOPE_KEYS = {
    Wrapping.SELLERCLOUD: {"filename", "content"},
    Wrapping.CRAYON: {"filename", "filecontent", "filecontenttype", "data"},
    Wrapping.NONE: set[str](),
}

_ERROR_MARKS = {"error", "errors", "errorcode", "message", "exceptionmessage", "error_description"}
_ERROR_KEYS = _ERROR_MARKS | {"code", "objecterrors", "parameters", "ratelimitresettime", "success", "result"}
_LOOSE_ERROR_KEYS = _ERROR_KEYS | {
    "description", "detail", "details", "exceptiontype", "instance", "messagedetail", "name", "path", "requestid", "stacktrace",
    "status", "statuscode", "timestamp", "title", "traceid", "type",
}  # fmt: skip
# A comment once read stays read (``?>``): else a page of nothing but comments could be divided in 2^n ways, all tried.
_HTML = re.compile(rb"(<\?xml[^>]*>\s*)?(?>(<!--.*?-->\s*)*)<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_XML_ERROR = re.compile(rb"(<\?xml[^>]*>\s*)?<Error\b[^>]*>\s*<Code>")
_OFFICE = b"urn:schemas-microsoft-com:office"  # an .xls or .doc that is HTML, as many exports are

_KEY = re.compile(r'[ \t\r\n]*"((?:[^"\\]|\\.)*)"[ \t\r\n]*:[ \t\r\n]*')
_BLANKS = re.compile(r"[ \t\r\n]*")
_ESCAPE = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_UNFINISHED_ESCAPE = re.compile(rb"\\(u[0-9A-Fa-f]{0,3})?\Z")


class Decoder:
    """Feed it the body in pieces of any size.

    `form`: how the body turned out to be wrapped, None until it is decided: ``none``, ``base64``, ``json-string``,
    ``json-content``, ``json-bytes``; it becomes the receipt's `wrapping`.
    `filename`: a name found inside the wrapping, or None.
    `named`: whether `filename` can still change (False) or not (True): an envelope may tell the name after the content.
    """

    form: str | None
    filename: str | None
    named: bool

    def __init__(self, wrapping: Wrapping, *, filename: str | None, content_type: str = "") -> None:
        """`filename` and `content_type` are what the vendor says of the file, not what the download's headers say."""
        self.form = None
        self.filename = None
        self.named = False
        self._wrapping = wrapping
        self._meant = _meant(filename, content_type)
        self._head = bytearray()
        self._reader: _Reader = _Raw()
        self._body_sha256: str | None = None
        self._finished = False

    def feed(self, piece: Piece) -> bytes:
        """Take the next piece of the body, give what can be given of the file (perhaps nothing). Raises as `finish` does."""
        if self.form is not None:
            return self._read(piece)
        view = memoryview(piece).cast("B")
        missing = _HEAD_BYTES - len(self._head)
        self._head += view[:missing]
        if len(view) <= missing:
            return b""
        return self._decide(ended=False, whole=False) + self._read(view[missing:])

    def finish(self, *, whole: bool = False) -> bytes:
        """The body has ended: give the rest of the file. Raises `DecodeError` (cut or broken wrapping), `RefusedError` (an
        error page or error object that came under 200).

        `whole`: the transfer itself proved that the body is whole (`Download.proof`). It decides about a text that would be
        base64 but for its length: whole, it is a text; else it was probably cut.
        """
        if self.form is None:
            rest = self._decide(ended=True, whole=whole)
        else:
            try:
                rest = self._reader.finish()
            except _ViolationError as exc:
                raise DecodeError(exc.message, late=not exc.cut or (whole and self.form == "base64")) from exc
        self.filename = self._reader.filename
        self.named = self._finished = True
        return rest

    def proof(self) -> tuple[str, ...]:
        """After `finish`: the decoder's own proof of the end: ``base64-end`` (padding seen), ``json-end``; or ()."""
        return self._reader.proof if self._finished else ()

    @property
    def body_sha256(self) -> str | None:
        """After `finish`: the SHA-256 of the body as received, hex, for a wrapped body of at most 1 MiB: a short text can be
        base64 by accident. None for a longer one (hashing it would cost a third of the speed), and where the form is none.
        """
        return self._body_sha256

    def _read(self, piece: Piece) -> bytes:
        try:
            out = self._reader.feed(piece)
        except _ViolationError as exc:
            raise DecodeError(exc.message, late=not exc.cut) from exc
        self.filename = self._reader.filename
        return out

    def _decide(self, *, ended: bool, whole: bool) -> bytes:
        head = bytes(self._head)
        self._head.clear()
        start = len(_BOM) if head.startswith(_BOM) else 0
        start += len(head) - start - len(head[start:].lstrip(_SPACE))
        self._refuse_error_page(head, start)
        for reader in self._candidates(head, start, ended=ended):
            try:
                out = reader.feed(head[start:])
                if ended:
                    out += reader.finish()
            except _ViolationError as exc:
                # A body that began as a wrapping and never ended is cut; it is not the file. Bare base64 looks the same as a
                # text when it ends within a group of four, so there it takes more to say so.
                if ended and exc.cut and (reader.form != "base64" or (not whole and _looks_like_base64(head[start:]))):
                    raise DecodeError(exc.message) from exc
                continue
            self._reader, self.form = reader, reader.form
            self._body_sha256 = hashlib.sha256(head).hexdigest() if ended else None
            self.filename = reader.filename
            self.named = reader.form not in {"json-content", "json-bytes"} or reader.filename is not None
            return out
        self.form, self.named = "none", True
        return head

    def _candidates(self, head: bytes, start: int, *, ended: bool) -> list[_Reader]:
        """List the forms to try, the vendor's order."""
        first = head[start : start + 1]
        if first == b"{":
            return self._envelope(head, start, ended=ended)
        if self._wrapping is Wrapping.SELLERCLOUD and len(head) > start:
            return [_JsonString()] if first == b'"' else [_Base64()]
        return []

    # --- objects -----------------------------------------------------------------------------------------------------

    def _envelope(self, head: bytes, start: int, *, ended: bool) -> list[_Reader]:
        found = _scan(head, start, _CONTENT_KEYS[self._wrapping], numbers=self._wrapping is Wrapping.CRAYON)
        if found.content_at is not None:
            return [_Envelope(found.content_at - start, found.filename, numbers=head[found.content_at :][:1] == b"[")]
        names = _ENVELOPE_KEYS[self._wrapping]
        if ended and found.document is None and found.cut and any(name.startswith(found.first_key) for name in names):
            raise DecodeError("the body began as a JSON envelope and never ended")
        if ended and found.document is not None and len(head) <= _ERROR_BYTES and self._is_error(found.document):
            raise _refused(head)
        return []

    def _is_error(self, document: dict[str, Any]) -> bool:
        """Whether an object is nothing but an error, or an envelope with nothing in it."""
        keys = {key.lower() for key in document}
        known = _ERROR_KEYS if self._meant == "json" else _LOOSE_ERROR_KEYS
        content = [value for key, value in document.items() if key.lower() in _CONTENT_KEYS[self._wrapping]]
        empty = content == [None] and keys <= _ENVELOPE_KEYS[self._wrapping]
        return empty or bool(keys & _ERROR_MARKS and keys <= known)

    def _refuse_error_page(self, head: bytes, start: int) -> None:
        beginning = head[start : start + 4096]
        office = self._meant == "office" and _OFFICE in beginning
        if self._meant != "html" and not office and _HTML.match(beginning):
            raise _refused(head)
        if self._meant != "xml" and len(head) <= _ERROR_BYTES and _XML_ERROR.match(beginning):
            raise _refused(head)


def _meant(filename: str | None, content_type: str) -> str:
    """Say which kind of error page this file could be mistaken for, as it is meant to be such a document."""
    extension = (filename or "").rpartition(".")[2].strip().lower() if filename and "." in filename else ""
    declared = content_type.partition(";")[0].strip().lower()
    if extension in {"html", "htm", "xhtml", "xht", "shtml", "mht", "mhtml"} or declared in {
        "text/html",
        "application/xhtml+xml",
    }:
        return "html"
    if extension in {"xml", "svg"} or declared in {"text/xml", "application/xml"} or declared.endswith("+xml"):
        return "xml"
    if extension == "json" or declared == "application/json" or declared.endswith("+json"):
        return "json"
    return "office" if extension in {"xls", "doc"} else ""


def _refused(head: bytes) -> RefusedError:
    return RefusedError(200, body=head[:_ERROR_BYTES])


def _looks_like_base64(text: bytes) -> bool:
    """Whether a text of the right characters is more like base64 than like lines of words: one word, or a long first line."""
    line, _, rest = text.rstrip(_SPACE).partition(b"\n")
    return not rest or len(line.rstrip(b"\r")) >= _BASE64_LINE


@dataclass
class _Scan:
    """What a head that starts with ``{`` holds. `document` is set when the object ends in the head with nothing after it."""

    first_key: str = ""
    filename: str | None = None
    content_at: int | None = None
    cut: bool = False
    document: dict[str, Any] | None = None


def _scan(head: bytes, start: int, content_keys: set[str], *, numbers: bool) -> _Scan:
    """Go over the members of the object at `start` up to the content, wherever among them it is."""
    found = _Scan()
    document: dict[str, Any] = {}
    text = head.decode("latin-1")  # one character per byte; JSON's own characters are ASCII
    found.cut = not text.rstrip().endswith("}")
    found.first_key = re.match(r'[ \t\r\n]*"?([^"]*)', text[start + 1 : start + 100])[1].lower()  # type: ignore[index]
    at = start + 1
    parser = json.JSONDecoder(strict=False)
    while match := _KEY.match(text, at):
        key, at = match[1], match.end()
        wanted = key.lower() in content_keys
        if wanted and (text.startswith('"', at) or (numbers and key.lower() == "filecontent" and text.startswith("[", at))):
            found.content_at = at
            return found
        try:
            value, end = parser.raw_decode(text, at)
        except (ValueError, RecursionError):
            return found
        if key.lower() == "filename" and isinstance(value, str):
            found.filename = json.loads(head[at:end].decode(errors="replace"), strict=False) or None
        document[key] = value
        at = _BLANKS.match(text, end).end() + 1  # type: ignore[union-attr]  # it matches nothing as well
        if not text.startswith(",", at - 1):
            if text.startswith("}", at - 1) and not text[at:].strip(" \t\r\n"):
                found.document = document
            return found
    return found


# --- readers, one per form -------------------------------------------------------------------------------------------


class _ViolationError(Exception):
    """The body is not of this form. `cut`: all was right until it ended too early. Never leaves this module."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.cut = cut


class _Reader(Protocol):
    """Reads one form. `feed` and `finish` raise `_ViolationError`."""

    form: str
    filename: str | None
    proof: tuple[str, ...]

    def feed(self, piece: Piece) -> bytes: ...
    def finish(self) -> bytes: ...


class _Raw:
    form = "none"
    filename: str | None = None
    proof: tuple[str, ...] = ()

    def feed(self, piece: Piece) -> bytes:
        return bytes(piece)  # no copy of what is bytes already

    def finish(self) -> bytes:
        return b""


class _Base64:
    """Strict base64 in pieces of any size: what does not fill a group of four is carried to the next piece."""

    form = "base64"
    filename: str | None = None

    def __init__(self) -> None:
        self.proof: tuple[str, ...] = ()
        self._carry = b""
        self._ended = False

    def feed(self, piece: Piece) -> bytes:
        data = b"".join((self._carry, piece))
        if b"\n" in data or b"\r" in data:
            data = data.translate(None, _BREAKS)
        if self._ended:
            if data[len(self._carry) :].strip(_SPACE):
                raise _ViolationError("there is more after the end of the base64 text")
            return b""
        padding = data.find(b"=")
        if padding < 0:
            trimmed = data.rstrip(b" \t")
            self._ended = len(trimmed) != len(data)
            data, usable = trimmed, len(trimmed) - len(trimmed) % 4
        else:
            usable = padding - padding % 4 + 4
            if len(data) >= usable:
                if data[usable:].strip(_SPACE):
                    raise _ViolationError("there is more after the end of the base64 text")
                self._ended, self.proof = True, ("base64-end",)
                data = data[:usable]
            else:
                usable -= 4
        self._carry = data[usable:]
        try:
            out = pybase64.b64decode(memoryview(data)[:usable], validate=True)
        except (binascii.Error, ValueError) as exc:
            raise _ViolationError("the text is not base64") from exc
        if self.proof and pybase64.b64encode(out[-(len(out) % 3) :]) != data[-4:]:
            raise _ViolationError("the last group of the base64 text is not one that an encoder writes")
        return out

    @property
    def plausible(self) -> bool:
        """Whether what fills no group of four yet could still become one."""
        return not self._carry.rstrip(b"=").translate(None, _ALPHABET)

    def finish(self) -> bytes:
        if self._carry:
            raise _ViolationError("the base64 text ended within a group of four", cut=self.plausible and not self._ended)
        return b""


class _Inside:
    """The inside of a JSON string of base64, up to its closing quote."""

    def __init__(self) -> None:
        self.base64 = _Base64()
        self.closed = False
        self._held = b""

    @property
    def plausible(self) -> bool:
        """Whether more of the same could make it whole."""
        return self.base64.plausible

    def feed(self, piece: Piece) -> tuple[bytes, bytes]:
        """Give (what was decoded, what follows the closing quote)."""
        data = b"".join((self._held, piece))
        self._held = b""
        quote = data.find(b'"')
        text, rest = (data, b"") if quote < 0 else (data[:quote], data[quote + 1 :])
        self.closed = quote >= 0
        if b"\\" in text:
            if not self.closed and (unfinished := _UNFINISHED_ESCAPE.search(text, max(len(text) - 5, 0))):
                text, self._held = text[: unfinished.start()], unfinished[0]
            text = _unescape(text)
        out = self.base64.feed(text)
        if self.closed:
            try:
                self.base64.finish()
            except _ViolationError as exc:
                raise _ViolationError(exc.message) from exc  # the quote is its end, so nothing was cut
        return out, rest


def _unescape(text: bytes) -> bytes:
    """Undo the escapes that JSON writers put into base64: of line breaks, of the slash, and of ``+ / =`` as code points."""
    text = text.replace(rb"\/", b"/").replace(rb"\r", b"").replace(rb"\n", b"")
    if rb"\u" in text:
        for code, char in ((rb"\u002b", b"+"), (rb"\u002B", b"+"), (rb"\u002f", b"/"), (rb"\u002F", b"/")):
            text = text.replace(code, char)
    if rb"\u" in text:
        text = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text)
    return text  # a backslash that is left is no base64, which the next step says


class _JsonString:
    """One JSON string of base64, and nothing after it."""

    form = "json-string"
    filename: str | None = None

    def __init__(self) -> None:
        self.proof: tuple[str, ...] = ()
        self._inside = _Inside()
        self._opened = False

    def feed(self, piece: Piece) -> bytes:
        data = bytes(piece)
        if not self._opened and data:
            self._opened, data = True, data[1:]
        out = b""
        if not self._inside.closed:
            out, data = self._inside.feed(data)
        if data.strip(_SPACE):
            raise _ViolationError("there is more after the end of the JSON string")
        return out

    def finish(self) -> bytes:
        if not self._inside.closed:
            raise _ViolationError("the JSON string of base64 never ended", cut=self._inside.plausible)
        self.proof = (*self._inside.base64.proof, "json-end")
        return b""


class _Numbers:
    """The inside of an array of byte numbers, up to its closing bracket."""

    plausible = True

    def __init__(self) -> None:
        self.closed = False
        self._held = b""
        self._begun = False

    def feed(self, piece: Piece) -> tuple[bytes, bytes]:
        """Give (what was decoded, what follows the closing bracket)."""
        data = b"".join((self._held, piece))
        bracket = data.find(b"]")
        self.closed = bracket >= 0
        # Up to the last comma the numbers are whole; the one after it may go on in the next piece.
        end = bracket if self.closed else data.rfind(b",")
        if end < 0:
            if data.translate(None, b"0123456789" + _SPACE) or len(data) > 1024:
                raise _ViolationError("the array does not hold byte numbers")
            self._held = data
            return b"", b""
        numbers, self._held = data[:end], b"" if self.closed else data[end + 1 :]
        if numbers.translate(None, b"0123456789," + _SPACE):
            raise _ViolationError("the array does not hold byte numbers")
        try:
            out = bytes(json.loads(b"[" + numbers + b"]"))
        except ValueError as exc:
            raise _ViolationError("the array does not hold byte numbers") from exc
        if not out and (self._begun or not self.closed):
            raise _ViolationError("the array does not hold byte numbers")
        self._begun = True
        return out, data[bracket + 1 :] if self.closed else b""


class _Envelope:
    """An object with the file in one of its members. What comes before that is known; what comes after it is read last."""

    def __init__(self, content_at: int, filename: str | None, *, numbers: bool) -> None:
        self.form = "json-bytes" if numbers else "json-content"
        self.filename = filename
        self.proof: tuple[str, ...] = ()
        self._inside = _Numbers() if numbers else _Inside()
        self._skip = content_at + 1
        self._tail = bytearray()

    def feed(self, piece: Piece) -> bytes:
        data = bytes(piece)[self._skip :]
        self._skip = 0
        out = b""
        if not self._inside.closed:
            out, data = self._inside.feed(data)
        self._tail += data
        if len(self._tail) > _TAIL_BYTES:
            raise _ViolationError("there is more after the content of the JSON envelope than an envelope has")
        return out

    def finish(self) -> bytes:
        if not self._inside.closed:
            raise _ViolationError("the content of the JSON envelope never ended", cut=self._inside.plausible)
        text = ('{"":0' + self._tail.decode(errors="replace")).rstrip()
        try:
            rest, end = json.JSONDecoder(strict=False).raw_decode(text)
        except RecursionError as exc:
            raise _ViolationError("the JSON envelope is too deep") from exc
        except json.JSONDecodeError as exc:
            cut = exc.pos >= len(text) or not text.endswith("}")
            raise _ViolationError("the JSON envelope is broken or never ended", cut=cut) from exc
        if end != len(text):
            raise _ViolationError("there is more after the end of the JSON envelope")
        name = next((value for key, value in rest.items() if key.lower() == "filename"), None)
        if self.filename is None and isinstance(name, str):
            self.filename = name or None
        self.proof = (*(self._inside.base64.proof if isinstance(self._inside, _Inside) else ()), "json-end")
        return b""
