"""File names from strangers: Content-Disposition → a raw name, a raw name → one that is safe, faithful and stable."""

from __future__ import annotations


def from_content_disposition(header: str | None) -> str | None:
    """Give the file name of a Content-Disposition header in any of its forms (quoted, unquoted, RFC 5987, mojibake), or None."""
    raise NotImplementedError


def safe_name(raw: str | None, fallback: str) -> str:
    """Make `raw` one path segment of a key that is stable for the same input and keeps what it can; `fallback` if nothing is left."""
    raise NotImplementedError
