"""What the tests of the bucket share: an S3 behind a proxy that can be told to misbehave, and a lease that can be ended.

All of them run against the embedded S3. It verifies no checksums and no signatures, so with ``SWIFT_BIN=…/bin`` in the
environment (``SWIFT_BIN=$PWD/.peers/bin`` once `make peers` has run) they run against OpenStack Swift as well, which does.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3.session
import pytest
import s3proxy
from botocore.config import Config

from bench.servers import SwiftS3
from worker.archive import Archive
from worker.model import Output, OutputId
from worker.settings import ArchiveSettings

MIB = 2**20
_buckets = itertools.count(1)


class Lease:
    """A lease that lasts until `end` is called."""

    def __init__(self) -> None:
        self.ended: Exception | None = None
        self.checks = 0

    def end(self, why: Exception) -> None:
        self.ended = why

    def check(self) -> None:
        self.checks += 1
        if self.ended:
            raise self.ended


@dataclass
class World:
    """A bucket behind a proxy, and what a test asks of it."""

    settings: ArchiveSettings
    proxy: s3proxy.Proxy
    client: Any = field(repr=False)
    verifies: bool

    def archive(self, *, spool_bytes: int = 64 * MIB, **changes: Any) -> Archive:
        return Archive(self.settings.model_copy(update=changes), spool_bytes=spool_bytes)

    def keys(self) -> list[str]:
        listing = self.client.list_objects_v2(Bucket=self.settings.bucket)
        return [entry["Key"] for entry in listing.get("Contents", ())]

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.settings.bucket, Key=key)["Body"].read()

    def put(self, key: str, body: bytes, **params: Any) -> None:
        self.client.put_object(Bucket=self.settings.bucket, Key=key, Body=body, **params)

    def unfinished(self) -> list[str]:
        listing = self.client.list_multipart_uploads(Bucket=self.settings.bucket)
        return [upload["Key"] for upload in listing.get("Uploads", ())]


@pytest.fixture(scope="session")
def _swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftS3]:
    """Start Swift, where there is one."""
    with SwiftS3(Path(os.environ["SWIFT_BIN"]), tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(params=["moto", "swift"] if "SWIFT_BIN" in os.environ else ["moto"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """An empty bucket, under the prefix ``archive``."""
    if request.param == "swift":
        server, bucket = request.getfixturevalue("_swift"), f"bucket-{next(_buckets)}"
        server.create_bucket(bucket)
        url, access, secret = server.store.url, server.store.access_key, server.store.secret_key
    else:
        url, access, secret = request.getfixturevalue("s3_url"), "dummy", "dummy"
        bucket = request.getfixturevalue("bucket")
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )
    with s3proxy.running(url) as proxy:
        settings = ArchiveSettings.model_validate(
            {
                "bucket": bucket,
                "prefix": "archive",
                "endpoint_url": proxy.url,
                "region": "us-east-1",
                "access_key_id": access,
                "secret_access_key": secret,
            }
        )
        yield World(settings=settings, proxy=proxy, client=client, verifies=request.param == "swift")
    client.close()


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def faults() -> Any:
    """The ways to misbehave, by name."""
    return s3proxy


@pytest.fixture
def output() -> Output:
    return Output(
        id=OutputId("acme-exports", "28142", "out/1"),
        completed_at=datetime(2026, 3, 26, 12, 55, 2, tzinfo=UTC),
        deadline=datetime(2026, 4, 4, tzinfo=UTC),
        filename="CustomExport.csv",
    )
