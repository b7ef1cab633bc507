"""A stream transformer per wrapping: the body as received in, the file out.

The first 1 MiB decides the form; a later violation raises `DecodeError` and nothing of the body is kept.
"""

from __future__ import annotations

from collections.abc import Buffer

from worker.model import Wrapping


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
        raise NotImplementedError

    def feed(self, piece: Buffer) -> bytes:
        """Take the next piece of the body, give what can be given of the file (perhaps nothing)."""
        raise NotImplementedError

    def finish(self) -> bytes:
        """The body has ended: give the rest of the file. Raises `DecodeError` (cut or broken wrapping), `RefusedError` (an
        error page or error object that came under 200).
        """
        raise NotImplementedError

    def proof(self) -> tuple[str, ...]:
        """After `finish`: the decoder's own proof of the end: ``base64-end`` (padding seen), ``json-end``; or ()."""
        raise NotImplementedError
