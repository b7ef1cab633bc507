"""S3 servers of somebody else's to write to, which need no root: rclone's, and OpenStack Swift. `make peers` installs both.

Each is a context manager that is ready inside the block and gone after it, and keeps its objects in a folder; where there is
room, a folder in memory, since no disk should be what is measured.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import boto3.session
from botocore.config import Config

from bench.house import BUCKET, Store
from bench.peers import tool
from worker.demo.embedded import Child, free_port, wait_until

_MEMORY, _ROOM_BYTES = Path("/dev/shm"), 4 * 2**30  # noqa: S108 - a folder of its own is made there


class Server(Protocol):
    """An S3 with an empty bucket, `BUCKET`."""

    store: Store

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None: ...

    def empty(self) -> None:
        """Throw away the objects' bytes, so that disks and memory need not be large; nobody may ask for them again."""


def installed() -> Mapping[str, Callable[[Path], Server]]:
    """Give what makes each server that can be run here, by the name that tables give it."""
    makers: dict[str, Callable[[Path], Server]] = {}
    if tool("rclone"):
        makers["rclone's S3"] = RcloneS3
    if swift := tool("swift-proxy-server"):
        makers["Swift"] = lambda folder: SwiftS3(Path(swift).parent, folder)
    return makers


def skipped() -> str:
    """Name the servers that are not installed, or nothing."""
    absent = [name for name in ("rclone's S3", "Swift") if name not in installed()]
    return f"\nNot here, so not written to: {', '.join(absent)}. `make peers` installs them.\n" if absent else ""


def _room(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder for objects: in memory where there is room, else in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES and _has_attributes(_MEMORY)
    return tempfile.TemporaryDirectory(prefix="lastcall-s3-", dir=_MEMORY if roomy else folder)


def _has_attributes(folder: Path) -> bool:
    """Whether files may carry attributes of ours, which Swift needs; memory has them since Linux 6.6."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.name, "user.lastcall", b"1")
        except OSError:
            return False
    return True


class RcloneS3(Child):
    """rclone's own S3 server: Go, checks signatures, keeps objects as files. It knows no conditional writes."""

    def __init__(self, folder: Path) -> None:
        """Prepare a server that logs into `folder`."""
        self.port = free_port()
        self.store = Store(name="rclone's S3 server", url=f"http://127.0.0.1:{self.port}")
        self._holds = _room(folder)
        self.files = Path(self._holds.name)
        (self.files / BUCKET).mkdir()
        key = f"{self.store.access_key},{self.store.secret_key}"
        command = [str(tool("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", key, str(self.files)]
        super().__init__("rclone-s3", command, folder)

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self, within_seconds: float = 10.0) -> None:
        """End it, and throw away what it holds."""
        super().stop(within_seconds)
        self._holds.cleanup()

    def empty(self) -> None:
        for path in (self.files / BUCKET).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = ERROR
"""
_STORAGE = (
    _COMMON
    + """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
)
_PROXY = (
    _COMMON
    + """
[pipeline:main]
pipeline = catch_errors healthcheck s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
check_bucket_owner = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin .reseller_admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
)


class SwiftS3:
    """OpenStack Swift with its S3 interface: Python, four processes, one device.

    It refuses what has a wrong signature, SHA-256, CRC32 or Content-MD5, as S3 does, and honours `If-None-Match`: it looks
    first and writes then, so create-only needs one request at a time. It tells no CRC32 back. It needs file attributes.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        """`programs`: where ``swift-proxy-server`` and the others are; it logs into `folder`."""
        self._programs, self._logs = programs.absolute(), folder
        self._ports = {kind: free_port() for kind in ("proxy", "account", "container", "object")}
        url = f"http://127.0.0.1:{self._ports['proxy']}"
        self.store = Store(name="OpenStack Swift", url=url, access_key="test:tester", secret_key="testing")  # noqa: S106 - a user of `_PROXY`
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._files = Path(stack.enter_context(_room(self._logs)))
            self._configure()
            for kind in ("account", "container", "object", "proxy"):
                command = [str(self._programs / f"swift-{kind}-server"), str(self._files / f"{kind}.conf")]
                stack.enter_context(Child(f"swift-{kind}", command, self._logs))
            wait_until(self._healthy, 30, "Swift is ready")
            self.create_bucket(BUCKET)
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket. Raises botocore's errors when Swift refuses."""
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.store.url,
            region_name=self.store.region,
            aws_access_key_id=self.store.access_key,
            aws_secret_access_key=self.store.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )
        try:
            client.create_bucket(Bucket=name)
        finally:
            client.close()

    def empty(self) -> None:
        for path in (self._files / "devices" / "d1" / "objects").iterdir():
            shutil.rmtree(path)

    def _configure(self) -> None:
        (self._files / "devices" / "d1").mkdir(parents=True)
        (self._files / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n")
        user = subprocess.run([str(tool("id")), "-un"], capture_output=True, text=True, check=True).stdout.strip()
        for kind, port in self._ports.items():
            template = _PROXY if kind == "proxy" else _STORAGE
            text = template.format(kind=kind, port=port, folder=self._files, user=user)
            (self._files / f"{kind}.conf").write_text(text, encoding="utf-8")
            if kind != "proxy":
                for arguments in (["create", "4", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
                    ring = [str(self._programs / "swift-ring-builder"), f"{kind}.builder", *arguments]
                    subprocess.run(ring, capture_output=True, check=True, cwd=self._files)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._ports["proxy"], timeout=10)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()
