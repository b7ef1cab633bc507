"""A world for the whole daemon: the four simulated vendors, a real Redis, an S3 server, and one configuration file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
import s3proxy

from tests import config_file
from worker import settings as configuration
from worker.daemon import Daemon, open_daemon
from worker.demo.api2convert import Api2convert, OutputFile
from worker.demo.crayon import Crayon
from worker.demo.embedded import RedisServer, S3Server, free_port, wait_until
from worker.demo.sellercloud import Sellercloud
from worker.demo.server import FAULTLESS, Content, Fault, Truth, Vendor
from worker.demo.spaaza import Spaaza
from worker.ledger import Ledger
from worker.model import OutputId
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
        self.sources = {
            name: {
                "vendor": name,
                "base_url": self.vendors[name].base_url,
                "poll_every": "1s",
                "requests_per_second": 500,
                "allow_private_hosts": True,
                **self.vendors[name].credentials,
            }
            for name in VENDORS
        }
        self.sources["api2convert"]["download_hosts"] = ["127.0.0.1"]
        self._settings: Settings | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._daemons: list[Daemon] = []

    # --- configuration

    @property
    def written_redis_url(self) -> str | dict[str, str]:
        """What the configuration file says of Redis."""
        return self.redis_url

    @property
    def config(self) -> Path:
        """Write the configuration file."""
        path = self.folder / "lastcall.toml"
        path.write_text(config_file.text_of(self.written_redis_url, self.tables, self.sources))
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

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End it as a power cut would: kill -9."""
        process.kill()
        process.wait()

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Run one reading command and give its document."""
        done = self.run(*arguments, "--json")
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
            self.kill(process)
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


# --- bad weather -----------------------------------------------------------------------------------------------------


class Stage(World):
    """A world of its own: a Redis that may be killed, and an S3 behind a proxy that may misbehave.

    Nobody but one worker and one beat runs at first; `more` starts further workers.
    """

    def __init__(self, folder: Path, server: RedisServer, s3_url: str, bucket: str, proxy: s3proxy.Proxy) -> None:
        super().__init__(folder, server.url, s3_url, bucket)
        self.redis, self.proxy = server, proxy
        self.tables["archive"]["endpoint_url"] = proxy.url
        self.tables["worker"] = {"lease": f"{LEASE_SECONDS}s", "concurrency": 12}

    @property
    def ledger(self) -> Ledger:
        """Look into the ledger, without being a worker."""
        return Ledger(self.redis_url, lease=self.settings.worker.lease, worker="test")

    def workers(self, number: int) -> list[subprocess.Popen[bytes]]:
        """Start so many workers, and return when all that run are alive."""
        alive = len(self.ledger.workers())
        started = [self.start("worker") for _ in range(number)]
        wait_until(lambda: len(self.ledger.workers()) >= alive + number, 30, "workers to be alive")
        return started

    def unfinished(self) -> list[str]:
        """List the multipart uploads that nobody finished."""
        return [upload["Key"] for upload in self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])]

    def spent(self, job_id: str) -> int:
        """Count the ``spent`` events of a conversion job."""
        listing = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=f"archive/_state/spent/api2convert/{job_id}/")
        return len(listing.get("Contents", ()))

    def requested(self) -> dict[str, int]:
        """Give how often each output was asked for, whole or in part."""
        return {output: truth.full_downloads + truth.partial_downloads for output, truth in self.truth().items()}

    def assert_counts(self) -> None:
        """Assert that the ledger, its count of receipts, the audit and the bucket say the same, and that nobody crashed."""

        def settled() -> bool:
            rows = [self.ledger.status(name, timedelta()) for name in self.sources]
            return sum(row.archived for row in rows) == len(self.truth()) and not any(row.owed + row.claimed for row in rows)

        wait_until(settled, 15, "the ledger to know of every receipt")
        for name, row in self.json("status")["sources"].items():
            receipts = [output for output in self.receipts() if output.startswith(f"{name}/")]
            assert row["archived"] == len(receipts), name
            assert row["owed"] == row["claimed"] == row["held"] == row["lost"] == 0, name
        assert self.json("audit")["ok"]
        assert "Traceback" not in self.logs()


LEASE_SECONDS = 2


@contextmanager
def _stage(folder: Path, s3: S3Server, *, durable: bool) -> Iterator[Stage]:
    bucket = f"stage-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(bucket)
    with RedisServer(folder / "redis", durable=durable) as server, s3proxy.running(s3.url) as proxy:
        made = Stage(folder, server, s3.url, bucket, proxy)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, _redis_here: None, _shared_s3: S3Server) -> Iterator[Stage]:
    """Give a stage of this test's own; `durable` as an indirect parameter makes its Redis keep what it was told."""
    with _stage(tmp_path, _shared_s3, durable=getattr(request, "param", None) == "durable") as made:
        yield made


@pytest.fixture(scope="module")
def running_stage(tmp_path_factory: pytest.TempPathFactory, _redis_here: None, _shared_s3: S3Server) -> Iterator[Stage]:
    """Give one stage for the tests of a module, with a beat and one worker that runs all the while."""
    with _stage(tmp_path_factory.mktemp("stage"), _shared_s3, durable=False) as made:
        made.start("beat")
        made.workers(1)
        yield made


# What stands in the bucket when the worker dies is never downloaded again; what was not asked for yet is asked for once.
STANDING = {"is stored, without a receipt", "has a receipt, unknown to the ledger"}
NOT_ASKED_FOR = {"asks for its link", "has spent a download, not made yet"}


class InFlight:
    """Outputs that are all in the hands of one worker, each at another point of its way. `jobs`: point → job id.

    `once`: the points whose outputs no disaster may cost a further download.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.once = STANDING | NOT_ASKED_FOR
        self.gate = threading.Event()
        self.jobs: dict[str, str] = {}

    def begin(self, listed: Callable[[], object] = lambda: None) -> None:
        """Let beat and a worker run until every point is reached. `listed` is called before, when the first five exist."""
        stage = self.stage
        self.jobs["uploads a part"] = str(stage.crayon.add_job(Content("part", 20 << 20, "xlsx")).id)
        self.jobs["completes its upload"] = str(stage.sellercloud.add_job(Content("complete", 9 << 20)).id)
        self.jobs["is stored, without a receipt"] = str(stage.spaaza.add_task(Content("stored", 5_000)).id)
        self.jobs["has a receipt, unknown to the ledger"] = str(stage.crayon.add_job(Content("receipt", 4_000, "xlsx")).id)
        self.jobs["has spent a download, not made yet"] = self._conversion("spent", 6_000)
        reached = [
            self._at("PUT", f"/crayon/.*/{self.jobs['uploads a part']}/.*partNumber=2", s3proxy.keep_request),
            self._at("POST", f"/sellercloud/.*/{self.jobs['completes its upload']}/.*uploadId=", s3proxy.keep_request),
            self._at("PUT", f"_receipts/spaaza/{self.jobs['is stored, without a receipt']}/", s3proxy.keep_request),
            self._at("PUT", f"_receipts/crayon/{self.jobs['has a receipt, unknown to the ledger']}/", s3proxy.keep_answer),
            self._at(
                "PUT", f"_state/spent/api2convert/{self.jobs['has spent a download, not made yet']}/", s3proxy.keep_answer
            ),
        ]
        listed()
        stage.start("beat")
        self.worker = stage.workers(1)[0]
        for point in reached:
            assert point.wait(30), stage.logs()
        # Only now, so that the faults meet the outputs that they are meant for, and last until disaster strikes.
        slow = Fault(bytes_per_second=20_000)
        self._slow = stage.sellercloud.add_job(Content("download", 180_000), fault=slow)
        stage.api2convert.fail("download", slow)
        stage.spaaza.fail("storage", slow)
        self.jobs["downloads"] = str(self._slow.id)
        self.jobs["downloads, counted"] = self._conversion("counted", 240_000)
        self.jobs["downloads, then asks if it is the last run"] = str(stage.spaaza.add_task(Content("confirm", 180_000)).id)
        asked = ((stage.sellercloud, "download", 2), (stage.api2convert, "download", 1), (stage.spaaza, "storage", 2))
        for vendor, route, times in asked:
            wait_until(lambda v=vendor, r=route, t=times: len(v.requests(r)) == t, 20, f"the slow {route}")
        stage.spaaza.fail("mint", Fault(delay_seconds=7))
        self.jobs["asks for its link"] = str(stage.spaaza.add_task(Content("link", 3_000)).id)
        wait_until(lambda: len(stage.spaaza.requests("mint")) == 3, 20, "the mint that is answered late")
        assert len(self.outputs()) == len(self.jobs) == 9

    def _conversion(self, seed: str, size: int) -> str:
        return self.stage.api2convert.add_job(OutputFile(f"{seed}.csv", Content(seed, size))).id

    def _at(self, method: str, path: str, act: Any) -> threading.Event:
        reached = threading.Event()
        self.stage.proxy.fault(method, path, act(self.gate, reached))
        return reached

    def go_on(self) -> None:
        """Let nothing stand in the way any more."""
        self._slow.fault = FAULTLESS
        self.gate.set()

    def outputs(self) -> dict[str, str]:
        """Give the output at each point."""
        by_job = {truth.job_id: output for output, truth in self.stage.truth().items()}
        return {point: by_job[job] for point, job in self.jobs.items()}

    def requested(self) -> dict[str, int]:
        """Give how often the output at each point was asked for."""
        requested = self.stage.requested()
        return {point: requested[output] for point, output in self.outputs().items()}

    def seconds_to_takeover(self) -> float:
        """Wait until nothing is in the first worker's hands; give how long that took."""
        began, ledger = time.monotonic(), self.stage.ledger
        outputs = [OutputId.parse(output) for output in self.outputs().values()]
        first = f"-{self.worker.pid}-"

        def taken_over() -> bool:
            records = [ledger.record(output) for output in outputs]
            return all(
                record and (record.state == "archived" or (record.worker and first not in record.worker)) for record in records
            )

        wait_until(taken_over, 30, "another worker to take over")
        return time.monotonic() - began

    def assert_whole(self, *, further: int) -> None:
        """Assert that all is archived once, each at the cost of so many further downloads at most, and counted alike."""
        stage = self.stage
        stage.wait_archived(40)
        requested = self.requested()
        stage.assert_archived_once(downloads=1 + further)
        for point, times in requested.items():
            most = 1 if point in self.once else 1 + further
            assert 1 <= times <= most, f"{point}: downloaded {times} times"
        for truth in stage.api2convert.truth():
            assert truth.full_downloads + truth.partial_downloads <= stage.spent(truth.job_id) <= 1 + further
        stage.assert_counts()


@pytest.fixture
def make_in_flight(stage: Stage) -> Callable[..., InFlight]:
    """Bring an output to each point of its way, when it is called."""

    def make(**options: Any) -> InFlight:
        made = InFlight(stage)
        made.begin(**options)
        return made

    return make


@pytest.fixture
def in_flight(make_in_flight: Callable[..., InFlight]) -> InFlight:
    """Bring an output to each point of its way."""
    return make_in_flight()
