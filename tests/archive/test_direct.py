"""Small PUTs past the client: the same object, and the client's own way wherever the client knows better."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from worker.archive.s3 import Bucket, StandsError
from worker.settings import ArchiveSettings


def attributes(world, key: str) -> dict[str, object]:
    answer = world.client.head_object(Bucket=world.settings.bucket, Key=key)
    return {name: answer[name] for name in ("ContentType", "Metadata", "ETag", "StorageClass") if name in answer}


def test_the_object_is_the_one_that_the_client_makes(world) -> None:
    params = {
        "Body": b"x" * 2000,
        "ContentType": "text/csv; charset=utf-8",
        "Metadata": {"lastcall-filename": "%C3%BC%20%2B.csv", "lastcall-output": "acme/1%2F2/3"},
        "StorageClass": "STANDARD_IA",
    }
    bucket = Bucket(world.settings)
    key = "archive/acme/2026/1%2F2 (ü)+~/a=b&c.csv"
    direct = bucket.ask("put_object", Key=key, IfNoneMatch="*", **params)
    world.put(key + ".2", params.pop("Body"), **params)
    assert attributes(world, key) == attributes(world, key + ".2")
    assert direct["ETag"] == attributes(world, key)["ETag"]
    with pytest.raises(StandsError):
        bucket.ask("put_object", Key=key, Body=b"y", IfNoneMatch="*")
    assert world.read(key) == b"x" * 2000


class Elsewhere(BaseHTTPRequestHandler):
    """An S3 that takes a PUT for region ``eu-north-1`` alone, and says so to others as AWS does."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        region = self.headers["Authorization"].split("/")[2]
        self.asked.append(region)
        right = region == "eu-north-1"
        code = "AuthorizationHeaderMalformed"
        body = b"" if right else f"<Error><Code>{code}</Code><Region>eu-north-1</Region></Error>".encode()
        self.send_response(200 if right else 400)
        self.send_header("x-amz-bucket-region", "eu-north-1")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("x-amz-bucket-region", "eu-north-1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Elsewhere,), {"asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


def test_where_the_client_alone_succeeds_it_is_asked_at_once_from_then_on(elsewhere) -> None:
    url, asked = elsewhere
    keys = {"access_key_id": "a", "secret_access_key": "b"}
    bucket = Bucket(ArchiveSettings.model_validate({"bucket": "exports", "endpoint_url": url, "region": "us-east-1", **keys}))
    assert bucket.ask("put_object", Key="k", Body=b"x")["ETag"] == '"1"'
    first = list(asked)
    assert first[0] == "us-east-1"
    assert first[-1] == "eu-north-1"
    bucket.ask("put_object", Key="k", Body=b"x")
    assert asked[len(first) :] == ["eu-north-1"]
