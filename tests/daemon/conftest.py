"""A world for the whole daemon: the four simulated vendors, a real Redis, an S3 server, and one configuration file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis

from worker import settings as configuration
from worker.daemon import Daemon, open_daemon
from worker.demo.api2convert import Api2convert, OutputFile
from worker.demo.crayon import Crayon
from worker.demo.embedded import free_port, wait_until
from worker.demo.sellercloud import Sellercloud
from worker.demo.server import Content, Truth, Vendor
from worker.demo.spaaza import Spaaza
from worker.recovery import open_epoch
from worker.settings import Settings

VENDORS = ("sellercloud", "api2convert", "spaaza", "crayon")


class World:
    """Vendors, bucket, Redis and the configuration that ties them together.

    `tables` may be changed before the first use of `settings`; `env` is what processes get.
    """

    def __init__(self, folder: Path, redis_url: str, s3_url: str, bucket: str) -> None:
        self.folder, self.redis_url, self.s3_url, self.bucket = folder, redis_url, s3_url, bucket
        self.sellercloud, self.api2convert = Sellercloud(), Api2convert()
        self.spaaza, self.crayon = Spaaza(), Crayon()
        self.vendors: dict[str, Vendor] = {name: getattr(self, name) for name in VENDORS}
        for vendor in self.vendors.values():
            vendor.start()
        self.s3 = boto3.client(
            "s3", endpoint_url=s3_url, region_name="eu-west-1", aws_access_key_id="dummy", aws_secret_access_key="dummy"
        )
        self.tables: dict[str, dict[str, Any]] = {
            "archive": {
                "bucket": bucket,
                "prefix": "archive",
                "endpoint_url": s3_url,
                "region": "eu-west-1",
                "access_key_id": "dummy",
                "secret_access_key": "dummy",
            },
            "worker": {"lease": "3s", "concurrency": 8},
            "web": {"listen": f"127.0.0.1:{free_port()}"},
            "flower": {"listen": f"127.0.0.1:{free_port()}"},
        }
        credentials: dict[str, dict[str, Any]] = {
            "sellercloud": {"username": self.sellercloud.username, "password": self.sellercloud.password},
            "api2convert": {"api_key": self.api2convert.api_key, "download_hosts": ["127.0.0.1"]},
            "spaaza": {"access_token_id": self.spaaza.token_id, "access_token_secret": self.spaaza.token_secret},
            "crayon": {
                "client_id": self.crayon.client_id,
                "client_secret": self.crayon.client_secret,
                "username": self.crayon.username,
                "password": self.crayon.password,
            },
        }
        self.sources = {
            name: {
                "vendor": name,
                "base_url": self.vendors[name].base_url,
                "poll_every": "1s",
                "requests_per_second": 500,
                "allow_private_hosts": True,
                **credentials[name],
            }
            for name in VENDORS
        }
        self._settings: Settings | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._daemons: list[Daemon] = []

    # --- configuration

    @property
    def config(self) -> Path:
        """Write the configuration file."""
        lines = [f"redis_url = {json.dumps(self.redis_url)}"]
        for name, table in {**self.tables, **{f"sources.{name}": table for name, table in self.sources.items()}}.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        path = self.folder / "lastcall.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = configuration.load(self.config)
        return self._settings

    def only(self, *names: str) -> None:
        """Configure these sources alone."""
        self.sources = {name: self.sources[name] for name in names}

    # --- the daemon in this process

    def daemon(self) -> Daemon:
        """Open the rooms as a worker would, with its heartbeat."""
        daemon = open_daemon(self.settings)
        daemon.keeper.start()
        open_epoch(daemon)
        self._daemons.append(daemon)
        return daemon

    # --- the daemon as processes

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "worker", *arguments],
            env=self._env(env),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one process of the Procfile; its log is in the folder."""
        with (self.folder / f"{arguments[0]}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", *arguments], env=self._env({}), stdout=log, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        return process

    def _env(self, more: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "LASTCALL_CONFIG": str(self.config), "COLUMNS": "80", **more}

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Run one reading command and give its document."""
        done = self.run(*arguments, "--json")
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for daemon in self._daemons:
            daemon.keeper.end()
        for vendor in self.vendors.values():
            vendor.stop()

    # --- what is true

    def truth(self) -> dict[str, Truth]:
        """Give what the vendors of the configured sources really produced, by output id as lastcall writes it."""
        return {
            f"{name}/{truth.job_id}/{truth.output_id}": truth for name in self.sources for truth in self.vendors[name].truth()
        }

    def objects(self) -> dict[str, bytes]:
        """Give every object of the bucket, by key."""
        found: dict[str, bytes] = {}
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for entry in page.get("Contents", ()):
                found[entry["Key"]] = self.s3.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"].read()
        return found

    def receipts(self) -> dict[str, Any]:
        """Give every receipt, by output id."""
        found = {}
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="archive/_receipts/"):
            for entry in page.get("Contents", ()):
                receipt = json.loads(self.s3.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"].read())
                found[f"{receipt['source']}/{receipt['job_id']}/{receipt['output_id']}"] = receipt
        return found

    def wait_archived(self, within_seconds: float = 30) -> None:
        """Wait until every output that the vendors produced has a receipt."""

        def all_there() -> bool:
            prefix = "archive/_receipts/"
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return sum(len(page.get("Contents", ())) for page in pages) >= len(self.truth())

        wait_until(all_there, within_seconds, "every output to be archived")

    def assert_archived_once(self, *, downloads: int = 1) -> None:
        """Assert that the bucket holds every output byte for byte, once, and nothing else; each downloaded so often."""
        truth, receipts, objects = self.truth(), self.receipts(), self.objects()
        assert set(receipts) == set(truth)
        for output, expected in truth.items():
            receipt = receipts[output]
            assert receipt["sha256"] == expected.sha256, output
            assert receipt["size"] == expected.size, output
            body = objects.pop(receipt["key"])
            assert len(body) == expected.size, output
            assert expected.full_downloads <= downloads, f"{output} was downloaded {expected.full_downloads} times"
        rest = [key for key in objects if not key.startswith(("archive/_receipts/", "archive/_state/"))]
        assert rest == []
        uploads = self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        assert uploads == []
        assert [crash for vendor in self.vendors.values() for crash in vendor.crashes] == []


@pytest.fixture
def world(tmp_path: Path, redis_url: str, s3_url: str, bucket: str) -> Iterator[World]:
    made = World(tmp_path, redis_url, s3_url, bucket)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def fill() -> Callable[[World], None]:
    """Put a few jobs of every kind into each vendor."""

    def fill(world: World) -> None:
        for number in range(3):
            world.sellercloud.add_job(Content(f"s{number}", 1000 * number + 1))
            world.spaaza.add_task(Content(f"p{number}", 5000 * number))
            world.crayon.add_job(Content(f"c{number}", 3000 + number, "xlsx"))
            world.api2convert.add_job(
                OutputFile(f"a{number}.csv", Content(f"a{number}", 700)), OutputFile("b.csv", Content(f"b{number}", 0))
            )

    return fill
