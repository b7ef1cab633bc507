"""Runs one fuzz target: ``python fuzz/target.py NAME [libFuzzer's options]``. See fuzz/README.md."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["worker", "email", "tomllib"]):
    from worker import names, settings
    from worker.archive.keys import Layout
    from worker.decode import Decoder
    from worker.errors import ConfigurationError, DecodeError, HeldError, LastcallError, RefusedError, VendorReplyError
    from worker.model import Output, OutputId, Receipt, Wrapping
    from worker.sources import open_source
    from worker.sources.http import Reply, retry_after
    from worker.sources.reading import parse_json

_NOW = datetime(2026, 5, 26, tzinfo=UTC)
_SECRET = {"env": "HOME"}
_BASE = {"base_url": "http://127.0.0.1:1/", "retention": "1d", "allow_private_hosts": True}
_SOURCES = {
    "sellercloud": {"username": _SECRET, "password": _SECRET},
    "api2convert": {"api_key": _SECRET},
    "spaaza": {"access_token_id": _SECRET, "access_token_secret": _SECRET},
    "crayon": dict.fromkeys(("client_id", "client_secret", "username", "password"), _SECRET),
}
_SETTINGS = settings.parse(
    {
        "archive": {"bucket": "exports"},
        "sources": {name: {"vendor": name, **_BASE, **secrets} for name, secrets in _SOURCES.items()},
    }
)


def decode(data: bytes) -> None:
    """Any body in any pieces is a file, a refusal or a broken wrapping; and the pieces change nothing."""
    first, second, third = [*data[:3], 0, 0, 0][:3]
    wrapping = list(Wrapping)[first % len(Wrapping)]
    name = [None, "x.csv", "x.json", "x.html", "x.xml", "x.xls"][second % 6]
    size, body = third % 64 + 1, data[3:]

    def run(step: int) -> tuple[str, bytes]:
        decoder = Decoder(wrapping, filename=name)
        try:
            out = b"".join(decoder.feed(body[at : at + step]) for at in range(0, len(body), step))
            out += decoder.finish(whole=True)
        except DecodeError:
            return "broken", b""
        except RefusedError:
            return "refused", b""
        return decoder.form or "", out

    assert run(size) == run(len(body) + 1)


def disposition(data: bytes) -> None:
    """Any header and any name become one safe, stable segment of a key, and a key that S3 takes."""
    header = data.decode("latin-1")
    job_id, output_id = header[:40] or "1", data[-40:].decode("utf-8", "replace") or "1"
    raw = names.from_content_disposition(header)
    safe = names.safe_name(raw, "file")
    assert safe == names.safe_name(safe, "file")
    assert safe.strip(".")
    assert "/" not in safe
    assert len(safe.encode()) <= 255
    identity = OutputId("a", job_id, output_id)
    assert OutputId.parse(str(identity)) == identity
    with contextlib.suppress(HeldError):
        key = Layout("archive").object(Output(id=identity, completed_at=_NOW, deadline=_NOW), safe)
        assert len(key.encode()) <= 1024
        assert not {".", ".."} & set(key.split("/"))


class _Shared:
    """A source that is never throttled and always logged in."""

    def pace(self) -> None: ...
    def hush(self, until: datetime) -> None: ...
    def token(self) -> str:
        return "token"

    def store_token(self, token: str, life_seconds: float) -> None: ...
    def drop_token(self, token: str) -> None: ...
    def log_in_turn(self) -> bool:
        return True

    def end_log_in_turn(self) -> None: ...


def _vendor(name: str) -> Callable[[bytes], None]:
    source: Any = open_source(_SETTINGS.sources[name], _Shared())
    session = source._api if hasattr(source, "_api") else source._session  # noqa: SLF001 - the one place where its answers come in

    def listing(data: bytes) -> None:
        """Whatever a list, a single job or a refused download says is jobs, links or one of our errors."""
        status = [200, 200, 200, 200, 204, 400, 401, 403, 404, 409, 500][(data[:1] or b"\0")[0] % 11]
        body = data[1:]
        answers = [body]
        session._exchange = lambda call: Reply(  # noqa: SLF001
            call=call.name, status=status, headers={"retry-after": "soon"}, body=answers.pop() if answers else b"[]"
        )
        outputs = [Output(id=OutputId(name, "1", "1"), completed_at=_NOW, deadline=_NOW)]
        with contextlib.suppress(LastcallError):
            for job in source.jobs(_NOW - timedelta(days=1)):
                outputs += job.outputs
                json.dumps([output.job for output in job.outputs])
        for output in outputs[:3]:
            for call in (source.link, source.confirm, lambda one: source.job(one.id.job_id)):
                answers[:] = [body, body]
                with contextlib.suppress(LastcallError):
                    call(output)
            with contextlib.suppress(LastcallError):
                refused = source.refused(output, RefusedError(status, "", {}, body[:65536]))
                assert isinstance(refused, LastcallError)

    return listing


def receipt(data: bytes) -> None:
    """What stands in the bucket is a receipt or a `ValueError`."""
    try:
        document = parse_json(data, "receipt")
    except VendorReplyError:
        return
    if isinstance(document, dict):
        with contextlib.suppress(ValueError):
            Receipt.from_json(document)


def configuration(data: bytes) -> None:
    """Any file is a configuration or a list of its problems."""
    path = Path(tempfile.gettempdir()) / "lastcall-fuzz.toml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigurationError):
        settings.load(path)


def reading(data: bytes) -> None:
    """Any bytes are JSON that can be written again, or a wrong reply; any Retry-After is a time or nothing."""
    with contextlib.suppress(VendorReplyError):
        json.dumps(parse_json(data, "list")).encode()
    retry_after({"retry-after": data.decode("latin-1")}, _NOW)


TARGETS = {"decode": decode, "disposition": disposition, "receipt": receipt, "configuration": configuration, "reading": reading}

if __name__ == "__main__":
    chosen = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS.get(chosen) or _vendor(chosen))
    atheris.Fuzz()
