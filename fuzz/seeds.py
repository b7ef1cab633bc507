"""Writes what each target begins with: answers of the simulated vendors, headers, a receipt, the example configuration."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from worker.demo.api2convert import Api2convert, OutputFile
from worker.demo.crayon import Crayon
from worker.demo.sellercloud import Sellercloud
from worker.demo.server import Content
from worker.demo.spaaza import Spaaza


def _get(url: str, **headers: str) -> bytes:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
        return bytes(answer.read())


def _answers() -> Iterator[tuple[str, bytes]]:
    with Api2convert() as vendor:
        job = vendor.add_job(OutputFile("a.csv", Content("a", 10)))
        for path in ("/jobs", f"/jobs/{job.id}"):
            yield "api2convert", _get(vendor.base_url + path, X_Api2convert_Api_Key=vendor.api_key)
    with Spaaza() as spaaza:
        task = spaaza.add_task(Content("a", 10))
        log_in = f"Bearer {spaaza.token_id}:{spaaza.token_secret}"
        for path in ("/tasks?action=export", f"/tasks/{task.id}", f"/tasks/{task.id}/download_url"):
            yield "spaaza", _get(spaaza.base_url + path, Authorization=log_in)
    with Sellercloud() as sellercloud, Crayon() as crayon:
        sellercloud.add_job(Content("a", 10))
        crayon.add_job(Content("a", 10, "xlsx"))
        sellercloud.screen = lambda *_: None  # type: ignore[method-assign]  # anybody may ask
        crayon.screen = lambda *_: None  # type: ignore[method-assign]
        for name, vendor_, path in (("sellercloud", sellercloud, "/api/QueuedJobs"), ("crayon", crayon, "/api/v1/exports/")):
            try:
                yield name, _get(vendor_.base_url + path)
            except OSError:  # it asks for a token in its handler
                row = {"Id": 1, "ID": 1, "Status": 2, "QueuedJobStatus": 3, "OutputFile": "a.csv", "Downloadable": True}
                times = dict.fromkeys(("SubmittedOn", "CompletedOn", "CreatedDate"), "2026-05-26T12:00:00")
                yield name, json.dumps({"Items": [{**row, **times}], "TotalResults": 1}).encode()


def _others() -> Iterator[tuple[str, bytes]]:
    for body in (
        b"QUJDRA==",
        b'"QUJDRA=="',
        b'{"FileName":"a.csv","Content":"QUJDRA=="}',
        b'{"FileContent":[1,2,255]}',
        b"<html>",
        b"<Error><Code>x</Code>",
    ):
        yield "decode", b"\0\0\1" + body
    for header in (
        'attachment; filename="a.csv"',
        "attachment; filename*=UTF-8''a%20b.csv",
        "attachment; filename*0=a; filename*1*=b",
    ):
        yield "disposition", header.encode()
    yield "reading", b'{"a": [1, 2.5e3, "x", null, true, {"b": "\\ud800"}]}'
    texts = "job_id output_id source vendor filename key bucket version_id etag content_type sha256 wrapping".split()
    others = "vendor_size vendor_checksum proof completed_at deadline archived_at job".split()
    receipt = {**dict.fromkeys([*texts, *others], "2026-05-26T12:00:00Z"), "schema": 1, "size": 1, "downloads": 1}
    yield "receipt", json.dumps(receipt).encode()
    yield "configuration", Path("config/example.toml").read_bytes()


if __name__ == "__main__":
    answers = [(name, b"\0" + body) for name, body in _answers()]
    for number, (target, data) in enumerate([*answers, *_others()]):
        folder = Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{number}").write_bytes(data)
