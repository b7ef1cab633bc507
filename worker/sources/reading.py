"""Tolerant, typed reading of vendor JSON: numbers as text, any number of fraction digits, zones or none; never a surprise.

What cannot be read raises `VendorReplyError` naming the record and the field, never the value.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from worker.connect import MOST_URL_CHARACTERS
from worker.errors import VendorReplyError
from worker.model import JsonObject

T = TypeVar("T")

MAX_DEPTH = 64
_MAX_VALUES = 1_000_000  # in 16 MiB there is room for five million empty ones, which would take 800 MB of memory
_MAX_KEPT_BYTES = 256 * 1024  # of a job's document in each of its outputs' records and receipts
_MAX_KEPT_TOGETHER_BYTES = 4 * 2**20  # in those of all its outputs
_MAX_DIGITS = 400  # more digits than any number needs, fewer than Python refuses to convert (4,300)
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)
_INTEGER = re.compile(r"[+-]?\d{1,400}", re.ASCII)
_MOST_ID_CHARACTERS = 4096  # no key can be made of a quarter of that, which a person is told; more only fills the log
_LINK = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WORD = re.compile(r"\S+")
# What no document may bring into a receipt, whichever vendor's it is; compared without regard to case, _ and -.
_SECRET_NAMES = frozenset(
    {
        *("token", "accesstoken", "refreshtoken", "idtoken", "tokensecret", "bearer", "authorization", "cookie", "session"),
        *("password", "passwd", "passphrase", "secret", "clientsecret", "credential", "credentials", "signature"),
        *("apikey", "accesskey", "secretkey", "privatekey", "secretaccesskey", "sastoken"),
    }
)


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant as a vendor wrote it: `at` in UTC, and whether the text itself carried a zone."""

    at: datetime
    zoned: bool


def parse_json(body: bytes, where: str) -> Any:
    """Read a JSON document that a stranger wrote. Raises `VendorReplyError` naming `where`.

    Refused: NaN and infinities, nesting deeper than `MAX_DEPTH`, more than a million values. Of a repeated key the last value
    counts. An integer of more digits than any counter has stays text. Lone surrogates become ``?``, so that every text can be
    written again.
    """
    if sum(map(body.count, (b",", b"{", b"["))) > _MAX_VALUES:
        raise VendorReplyError(f"{where}: the answer holds more values than any answer should")
    try:
        return _clean(json.loads(body, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded), 0)
    except (ValueError, RecursionError) as exc:
        raise VendorReplyError(f"{where}: the answer is not the JSON that was expected") from exc


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _bounded(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _clean(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_clean(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_clean(key, depth): _clean(item, depth + 1) for key, item in value.items()}
    return value


def parse_moment(text: str, zone: tzinfo) -> Moment:
    """Read an ISO 8601 time: any number of fraction digits; ``Z``, an offset, or no zone (then `zone`). Raises `ValueError`.

    Of the two readings of an hour that a clock change repeats, the earlier one is taken: a deadline must not come out late.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a time")
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    if not 1970 <= year < 9000:
        raise ValueError("a year out of range")
    micros = int((match[7] or "0")[:6].ljust(6, "0"))
    offset = match[8]
    naive = datetime(year, month, day, hour, minute, min(second, 59), micros)  # noqa: DTZ001 (its zone follows)
    return Moment(naive.replace(tzinfo=_offset(offset) if offset else zone).astimezone(UTC), offset is not None)


def _offset(text: str) -> tzinfo:
    if text in "zZ":
        return UTC
    span = timedelta(hours=int(text[1:3]), minutes=int(text[3:].lstrip(":") or 0))
    return timezone(-span if text[0] == "-" else span)


def receipt_copy(document: JsonObject, drop: Collection[str] = (), *, together: int = 1) -> JsonObject:
    """Give `document` without the fields of `drop` (any case, any depth), without those that are called like secrets, and
    without links: a value that is one is left out, one within a text becomes ``(link)``.

    A document that is still larger than 256 KiB, or than its share of 4 MiB where `together` outputs keep it, is replaced by a
    word on its size.
    """
    names = {_folded(name) for name in drop} | _SECRET_NAMES

    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: copy(item)
                for key, item in value.items()
                if _folded(key) not in names and not (isinstance(item, str) and _LINK.match(item))
            }
        if isinstance(value, list):
            return [copy(item) for item in value if not (isinstance(item, str) and _LINK.match(item))]
        if isinstance(value, str) and "://" in value:
            return _WORD.sub(lambda word: "(link)" if "://" in word[0] else word[0], value)
        return value

    result: JsonObject = copy(document)
    size = len(json.dumps(result))
    return (
        result
        if size <= min(_MAX_KEPT_BYTES, _MAX_KEPT_TOGETHER_BYTES // max(together, 1))
        else {"omitted": f"the vendor's document, {size} bytes"}
    )


def parse_link(text: str, where: str) -> SplitResult:
    """Read a link that a vendor gave: absolute, http or https. Raises `VendorReplyError` naming `where`."""
    parts = None
    if len(text) <= MOST_URL_CHARACTERS:
        with contextlib.suppress(ValueError):
            parts = urlsplit(text)
    if parts is None or parts.scheme not in {"http", "https"} or not parts.netloc:
        raise VendorReplyError(f"{where} is not a link")
    return parts


class Fields:
    """One JSON object, read field by field. `where` names it in messages (``job 2206923``).

    Each getter takes one name or several (the first that is there and not null counts), gives None when the field is
    absent or null, and raises `VendorReplyError` when it is of another kind. `loose`: names match without regard to case
    and underscores (``AccessToken``, ``accessToken``, ``access_token``).
    """

    def __init__(self, document: Any, where: str, *, loose: bool = False) -> None:
        if not isinstance(document, dict):
            raise VendorReplyError(f"{where}: expected a JSON object")
        self.document: JsonObject = document
        self.where = where
        self._fold = _loosely if loose else _exactly
        self._loose = loose
        self._values = {self._fold(key): value for key, value in document.items()} if loose else document

    def get(self, *names: str) -> Any:
        """Give the raw value."""
        return next((value for name in names if (value := self._values.get(self._fold(name))) is not None), None)

    def text(self, *names: str) -> str | None:
        """Give a text; a number becomes its digits."""
        value = self.get(*names)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise self.wrong(names[0], "is not text")

    def identity(self, *names: str) -> str:
        """Give an id, which must be there; as `text`, of at most 4,096 characters."""
        value = self.need(names[0], self.text(*names))
        if len(value) > _MOST_ID_CHARACTERS:
            raise self.wrong(names[0], "is longer than any id")
        return value

    def integer(self, *names: str) -> int | None:
        """Give an integer, also where it came as ``3.0`` or ``"3"``."""
        value = self.get(*names)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
            return int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self.wrong(names[0], "is not an integer")

    def number(self, *names: str) -> float | None:
        """Give a finite number, also where it came as text."""
        value = self.get(*names)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError) as exc:
            raise self.wrong(names[0], "is not a number") from exc
        if not math.isfinite(number):
            raise self.wrong(names[0], "is not a number")
        return number

    def flag(self, *names: str) -> bool | None:
        """Give a truth value, also where it came as ``"true"``, ``1`` or ``"0"``."""
        value = self.get(*names)
        if value is None or isinstance(value, bool):
            return value
        known = {"true": True, "1": True, "false": False, "0": False}
        try:
            return known[str(value).strip().casefold()]
        except KeyError as exc:
            raise self.wrong(names[0], "is neither true nor false") from exc

    def moment(self, *names: str, zone: tzinfo) -> Moment | None:
        """Give a time (see `parse_moment`). Empty text and the year 1 (an unset time of .NET) are None."""
        value = self.get(*names)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(names[0], "is not a time")
        if not value.strip() or value.lstrip().startswith(("0001-", "0000-")):
            return None
        try:
            return parse_moment(value, zone)
        except ValueError as exc:
            raise self.wrong(names[0], "is not a time") from exc

    def rows(self, *names: str) -> list[Any]:
        """Give an array; absent and null are an empty one."""
        value = self.get(*names)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(names[0], "is not an array")
        return value

    def child(self, *names: str) -> Fields | None:
        """Give a nested object."""
        value = self.get(*names)
        return None if value is None else Fields(value, f"{self.where}, {names[0]}", loose=self._loose)

    def need(self, name: str, value: T | None) -> T:
        """Give `value`, which was read from `name`. Raises `VendorReplyError` when it is None or an empty text."""
        if value is None or value == "":
            raise self.wrong(name, "is missing")
        return value

    def wrong(self, name: str, what: str) -> VendorReplyError:
        """Give the error that says what is wrong with a field."""
        return VendorReplyError(f"{self.where}: {name} {what}")


def id_of(row: Any) -> str | None:
    """Give the ``id`` of a job, a task or an output, None where it cannot be read."""
    try:
        return Fields(row, "row").identity("id")
    except VendorReplyError:
        return None


def _loosely(name: str) -> str:
    return name.replace("_", "").casefold()


def _folded(name: str) -> str:
    return _loosely(name).replace("-", "")


def _exactly(name: str) -> str:
    return name
