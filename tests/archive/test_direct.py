"""Small PUTs past the client: the same object, and the client's own way wherever the client knows better."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.auth import S3SigV4Auth, _host_from_url
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.serialize import create_serializer

from worker.archive.direct import DirectPut, headers_of, sign
from worker.archive.s3 import Bucket, StandsError
from worker.settings import ArchiveSettings


def attributes(world, key: str) -> dict[str, object]:
    answer = world.client.head_object(Bucket=world.settings.bucket, Key=key)
    return {name: answer[name] for name in ("ContentType", "Metadata", "ETag")}


def test_the_object_is_the_one_that_the_client_makes(world) -> None:
    params = {
        "Body": b"x" * 2000,
        "ContentType": "text/csv; charset=utf-8",
        "Metadata": {"lastcall-filename": "%C3%BC%20%2B.csv", "lastcall-output": "acme/1%2F2/3"},
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


PARAMS = {
    "ContentType": "text/csv;  charset=utf-8",
    "IfNoneMatch": "*",
    "ChecksumCRC32": "AAAAAA==",
    "StorageClass": "STANDARD_IA",
    "ServerSideEncryption": "aws:kms",
    "SSEKMSKeyId": "alias/exports",
    "ObjectLockMode": "GOVERNANCE",
    "ObjectLockRetainUntilDate": datetime(2027, 1, 2, 4, 4, 5, tzinfo=timezone(timedelta(hours=1))),
    "Metadata": {"lastcall-filename": "%C3%BC.csv", "lastcall-output": "acme/1%2F2/3"},
}


def test_headers_are_those_of_the_client() -> None:
    client = boto3.session.Session(region_name="us-east-1").client("s3")
    operation = client.meta.service_model.operation_model("PutObject")
    expected = create_serializer("rest-xml").serialize_to_request({"Bucket": "b", "Key": "k", **PARAMS}, operation)["headers"]
    assert headers_of(PARAMS) == {name.lower(): value for name, value in expected.items()}
    assert headers_of({"Key": "k", "Body": b"", "Tagging": "a=b"}) is None


@pytest.mark.parametrize("token", [None, "a/token+of=STS"])
@pytest.mark.parametrize("sign_body", [True, False])
@pytest.mark.parametrize(
    "url", ["https://b.s3.eu-west-1.amazonaws.com/a%2Fb/c%20%28~%29.csv", "http://127.0.0.1:9000/b//x/../y"]
)
def test_the_signature_is_that_of_the_client(token, sign_body, url, monkeypatch) -> None:
    now, body = datetime(2026, 11, 22, 8, 30, tzinfo=UTC), b"some bytes"
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now.replace(tzinfo=None))
    credentials = Credentials("AKIA", "a secret", token)
    ours = headers_of(PARAMS)
    theirs = AWSRequest("PUT", url, headers=dict(ours), data=body)
    theirs.context["client_config"] = Config(s3={"payload_signing_enabled": sign_body})
    S3SigV4Auth(credentials, "s3", "eu-west-1").add_auth(theirs)
    sign(ours, url=url, body=body, credentials=credentials, region="eu-west-1", sign_body=sign_body, now=now)
    assert ours == {name.lower(): value for name, value in theirs.headers.items()}


@pytest.mark.parametrize(
    ("bucket", "region", "endpoint"),
    [
        ("exports", "eu-west-1", None),
        ("dotted.exports", "eu-west-1", None),
        ("exports", "us-east-1", None),
        ("exports", "eu-west-1", "https://MinIO.example:443/base"),
        ("exports", "eu-west-1", "http://[::1]:9000"),
    ],
)
def test_it_goes_where_the_client_goes_and_signs_the_host_that_is_sent(bucket, region, endpoint) -> None:
    """Not to the endpoint of all regions, which a private network may not reach. Nothing leaves here."""
    keys = {"access_key_id": "a", "secret_access_key": "b"}
    settings = {"bucket": bucket, "region": region, **keys, **({"endpoint_url": endpoint} if endpoint else {})}
    client = Bucket(ArchiveSettings.model_validate(settings)).client()
    sent: list[str] = []

    class Session:
        def send(self, request: AWSPreparedRequest) -> AWSResponse:
            sent.append(request.url)
            answer = AWSResponse(request.url, 200, {}, None)
            answer._content = b""
            return answer

    client._endpoint.http_session = Session()
    client.put_object(Bucket=bucket, Key="a ü/b", Body=b"")
    DirectPut(client, bucket).put({"Key": "a ü/b", "Body": b""}, 60)
    theirs, ours = map(urlsplit, sent)
    assert (ours.scheme, ours.path) == (theirs.scheme, theirs.path)
    assert ours.netloc == _host_from_url(sent[0])


class Elsewhere(BaseHTTPRequestHandler):
    """An S3 that takes a PUT for region ``eu-north-1`` alone, and says so to others as AWS does."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    refusal = 400

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        region = self.headers["Authorization"].split("/")[2]
        self.asked.append(region)
        right = region == "eu-north-1"
        code = "AuthorizationHeaderMalformed"
        body = b"" if right else f"<Error><Code>{code}</Code><Region>eu-north-1</Region></Error>".encode()
        self.send_response(200 if right else self.refusal)
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


@pytest.fixture(params=[400, 403])
def elsewhere(request) -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Elsewhere,), {"asked": [], "refusal": request.param})
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
