"""OpenStack Swift with its S3 interface, without root: four processes, one device, everything in one folder.

    python -m venv /somewhere && /somewhere/bin/pip install swift==2.38.3
    SWIFT_BIN=/somewhere/bin make test

It verifies what the embedded S3 lets pass: signatures, SHA-256 of bodies, CRC32 of parts. Like the embedded S3 it looks first
and writes then, so create-only needs one request at a time.
"""

from __future__ import annotations

import http.client
import shlex
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.demo.embedded import Child, free_port, wait_until

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


class SwiftServer:
    """A Swift of one's own: `url`, `access`, `secret`. A context manager; ready inside the block, gone after it."""

    access, secret = "test:tester", "testing"

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.ports = {kind: free_port() for kind in ("proxy", "account", "container", "object")}
        self.url = f"http://127.0.0.1:{self.ports['proxy']}"
        self._children = ExitStack()

    def __enter__(self) -> Self:
        (self.folder / "devices" / "d1").mkdir(parents=True)
        (self.folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n")
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        for kind, port in self.ports.items():
            template = _PROXY if kind == "proxy" else _STORAGE
            (self.folder / f"{kind}.conf").write_text(template.format(kind=kind, port=port, folder=self.folder, user=user))
            if kind != "proxy":
                for arguments in ("create 4 1 1", f"add r1z1-127.0.0.1:{port}/d1 1", "rebalance"):
                    program, *rest = shlex.split(arguments)
                    ring = [self.programs / "swift-ring-builder", self.folder / f"{kind}.builder", program, *rest]
                    subprocess.run(ring, capture_output=True, check=True, cwd=self.folder)
        for kind in ("account", "container", "object", "proxy"):
            command = [str(self.programs / f"swift-{kind}-server"), str(self.folder / f"{kind}.conf")]
            self._children.enter_context(Child(f"swift-{kind}", command, self.folder))
        wait_until(self._answers, 30, "Swift is ready")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._children.close()

    def _answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.ports["proxy"], timeout=5)
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
