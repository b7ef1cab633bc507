"""A bucket with a kept file in it, for the board to open."""

from __future__ import annotations

from datetime import timedelta

import boto3

from tests.web.story import output
from worker.archive import Archive
from worker.model import Output, OutputId, Receipt
from worker.settings import ArchiveSettings


class Kept:
    """What `settings` name. `table`: the same for a configuration file. `key`: where the last file stands."""

    def __init__(self, settings: ArchiveSettings) -> None:
        self._settings = settings
        self._archive = Archive(settings, spool_bytes=0)
        self.key = ""
        self.table = (
            f'bucket = "{settings.bucket}"\nprefix = "archive"\nendpoint_url = "{settings.endpoint_url}"\n'
            'region = "eu-west-1"\naccess_key_id = "dummy"\nsecret_access_key = "dummy"'
        )

    def put(self, filename: str, body: bytes) -> Output:
        """Keep one file with its receipt, under an id that needs care."""
        facts = output("acme-exports", 1, ready=timedelta(hours=1), left=timedelta(hours=1), filename=filename)
        one = Output(
            id=OutputId("acme-exports", "a/b c", "ü?&#"),
            completed_at=facts.completed_at,
            deadline=facts.deadline,
            filename=filename,
        )
        self.key = self._archive.key(one, filename.rpartition("/")[2])
        client = boto3.client(
            "s3", endpoint_url=self._settings.endpoint_url, region_name="eu-west-1",
            aws_access_key_id="dummy", aws_secret_access_key="dummy",
        )  # fmt: skip
        client.put_object(Bucket=self._settings.bucket, Key=self.key, Body=body, ContentType="text/html")
        self._archive.write_receipt(
            Receipt(
                id=one.id,
                vendor="sellercloud",
                filename=filename,
                key=self.key,
                bucket=self._settings.bucket,
                version_id=None,
                etag="",
                content_type="text/html",
                size=len(body),
                sha256="",
                wrapping="none",
                vendor_size=None,
                vendor_checksum=None,
                proof=(),
                completed_at=one.completed_at,
                deadline=one.deadline,
                archived_at=one.completed_at,
                downloads=1,
                job={},
            )
        )
        return one
