"""What a person at a terminal meets: help without a README, messages that say what to do, a first configuration, completion."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tests.web.story import open_ledger, tell_story
from worker import printing
from worker import settings as configuration
from worker.cli import main
from worker.demo.sellercloud import Sellercloud
from worker.model import OutputState
from worker.settings import VENDORS, ArchiveSettings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, with a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="lastcall")


CONTEXT = click.Context(main)
COMMANDS = main.list_commands(CONTEXT)


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_help_fits_80_columns_and_needs_no_configuration(command: tuple[str, ...]) -> None:
    shown = run(*command, "--help")
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    assert "..." not in shown.output.replace("]...", "")  # nothing is cut short


def test_the_help_lists_every_command_once_and_says_exit_codes_and_environment() -> None:
    shown = run("--help").output
    assert sorted(re.findall(r"^  ([a-z]+)  +[A-Z]", shown, re.MULTILINE)) == sorted(COMMANDS)
    for word in ("LASTCALL_CONFIG", "LASTCALL_REDIS_URL", "Exit codes", "Examples", "lastcall init"):
        assert word in shown


def test_every_option_is_explained() -> None:
    for name in COMMANDS:
        command = main.get_command(CONTEXT, name)
        assert command is not None
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, f"{name} {option.opts}"


# --- messages --------------------------------------------------------------------------------------------------------

GOOD = """
redis_url = "redis://127.0.0.1:1/0"
[archive]
bucket = "exports"
endpoint_url = "http://127.0.0.1:1"
access_key_id = "a"
secret_access_key = "b"
[sources.acme]
vendor = "sellercloud"
base_url = "http://127.0.0.1:1/rest"
username = "u"
password = "p"
"""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--config", "none.toml", "status"], 2, "none.toml: no such file; `lastcall init` writes one"),
        (["--config", "bad.toml", "status"], 2, "bad.toml: not TOML: "),
        (["status", "--config", "good.toml"], 1, "lastcall: Redis: no answer (ConnectionError); does it run, and is redis_url"),
        (["outputs", "--config", "good.toml", "--source", "x"], 2, "no source 'x'; there are: acme"),
        (["audit", "--config", "good.toml", "--source", "x"], 2, "no source 'x'; there are: acme"),
        (["verify", "--config", "good.toml", "--source", "x"], 2, "no source 'x'; there are: acme"),
        (["poll", "--config", "good.toml", "x"], 2, "no source 'x'; there are: acme"),
        (["outputs", "--config", "good.toml", "--state", "gone"], 2, "'gone' is not one of 'owed', 'claimed'"),
        (["show", "--config", "good.toml", "acme"], 2, "expected SOURCE/JOB_ID/OUTPUT_ID"),
        (["retry", "--config", "good.toml"], 2, "name outputs, or --held, or --lost"),
        (["audit", "--config", "good.toml", "--since", "today"], 2, "write 2026-03-26 or 2026-03-26T12:00:00Z"),
        (["audit", "--config", "good.toml", "--last", "7"], 2, 'such as "90s", "15m"'),
        (["status", "--config", "unset.toml"], 2, "redis_url: environment variable UNSET is not set; set it for this process"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)
def test_a_message_says_what_to_do(arguments: list[str], code: int, says: str) -> None:
    Path("good.toml").write_text(GOOD)
    Path("bad.toml").write_text("[archive")
    Path("unset.toml").write_text(GOOD.replace('"redis://127.0.0.1:1/0"', '{ env = "UNSET" }'))
    done = run(*arguments)
    assert done.exit_code == code
    assert says in done.output
    assert "Traceback" not in done.output


def test_check_asks_the_sources_though_redis_and_the_bucket_are_away() -> None:
    with Sellercloud() as vendor:
        source = f'vendor = "sellercloud"\nbase_url = "{vendor.base_url}"\nusername = "{vendor.username}"\n'
        source += "allow_private_hosts = true\n"
        right = f'[sources.right]\n{source}password = "{vendor.password}"\n'
        wrong = f'[sources.wrong]\n{source}password = "wrong"\n'
        Path("two.toml").write_text(GOOD.partition("[sources")[0] + right + wrong)
        done = run("check", "--config", "two.toml")
    assert done.exit_code == 1
    shown = re.sub(r"\s+", " ", done.stdout)
    assert "redis FAILED Redis: no answer (ConnectionError)" in shown
    assert "bucket FAILED S3 did not answer list_objects_v2" in shown
    assert "are archive.endpoint_url and archive.region right?" in shown
    assert "sources.right ok sellercloud: logged in, its list is empty" in shown
    assert "sources.wrong FAILED log-in: Sellercloud gives no token" in shown


def test_status_says_which_process_is_missing_and_once_why_everything_is_paused(redis_url: str, tmp_path: Path) -> None:
    """Nobody has to know what a silent beat means, nor to read the same refusal at each source."""
    config = tmp_path / "lastcall.toml"
    second = GOOD.partition("[sources.acme]")[2]
    config.write_text(GOOD.replace("redis://127.0.0.1:1/0", redis_url) + "[sources.other]" + second)
    ledger = open_ledger(redis_url)
    why = "allow s3:PutObject on bucket exports"
    ledger.pause(None, ledger.now() + timedelta(hours=1), why, times=1, fingerprint="")
    shown = run("status", "--config", str(config)).output
    assert "no beat has ticked yet; start `lastcall beat`" in shown
    assert "no worker is alive; start `lastcall worker`" in shown
    assert "everything is paused until " in shown
    assert shown.count("s3:PutObject") == 1
    ledger.resume(None)
    ledger.stamp_worker(1)
    ledger.stamp_beat()
    shown = run("status", "--config", str(config)).output
    assert "start" not in shown
    assert "paused" not in shown


def test_status_says_a_refused_log_in_once(redis_url: str, tmp_path: Path) -> None:
    config = tmp_path / "lastcall.toml"
    config.write_text(GOOD.replace("redis://127.0.0.1:1/0", redis_url))
    ledger = open_ledger(redis_url)
    turn = ledger.take_poll_turn("acme", timedelta(seconds=60))
    assert turn is not None
    ledger.end_poll_turn(turn, "refused", {"error": "log-in: refused"})
    ledger.pause("acme", ledger.now() + timedelta(hours=1), "log-in: refused", times=1, fingerprint="")
    shown = run("status", "--config", str(config)).output
    assert "ago, refused\n  paused until " in shown
    assert shown.count("log-in: refused") == 1


def test_outputs_lists_first_what_can_still_be_late(redis_url: str, tmp_path: Path) -> None:
    """A loss gets no worse, and an explained one needs nobody: neither stands above what is owed."""
    config = tmp_path / "lastcall.toml"
    config.write_text(GOOD.replace("redis://127.0.0.1:1/0", redis_url).replace("sources.acme]", "sources.acme-exports]"))
    tell_story(open_ledger(redis_url))
    rows = json.loads(run("outputs", "--json", "--source", "acme-exports", "--config", str(config)).output)
    kinds = [f"{row['state']}*" if row["acknowledged"] else row["state"] for row in rows]
    last = kinds.index("lost")
    assert {"owed", "claimed", "held"} == set(kinds[:last])
    assert set(kinds[last + 1 :]) == {"lost*", "archived", "empty"}


def test_an_explained_loss_asks_for_no_second_explanation(
    redis_url: str, tmp_path: Path, archive_settings: ArchiveSettings
) -> None:
    config = tmp_path / "lastcall.toml"
    text = GOOD.replace("redis://127.0.0.1:1/0", redis_url).replace("sources.acme]", "sources.acme-exports]")
    text = text.replace('"exports"', f'"{archive_settings.bucket}"').replace(
        'http://127.0.0.1:1"', f'{archive_settings.endpoint_url}"'
    )
    config.write_text(text)
    ledger = open_ledger(redis_url)
    tell_story(ledger)
    for lost in ledger.records("acme-exports", OutputState.LOST):
        happens = json.loads(run("show", str(lost.output.id), "--json", "--config", str(config)).output)["next"]
        assert ("lastcall acknowledge" in happens) == (lost.acknowledged is None)
        assert "lastcall retry" in happens


def test_the_history_says_what_a_record_found(capsys: pytest.CaptureFixture[str]) -> None:
    sources = {"acme": {"missing": 1, "damaged": 0, "held": "?"}, "other": {"damaged": 2, "error": "the vendor is away"}}
    row = {"number": 1, "at": "2026-03-26T12:00:00Z", "proof": "audit", "by": "hand", "sources": sources, "ok": False}
    printing.print_history({"records": [row], "broken": [], "ok": True})
    assert "1 missing, 2 damaged, 1 without proof" in " ".join(capsys.readouterr().out.split())


# --- a first configuration -------------------------------------------------------------------------------------------

BASE_URLS = {"sellercloud": "https://tt.api.sellercloud.com/rest", "spaaza": "https://services.example.com"}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("more", [(), ("--endpoint-url", "http://127.0.0.1:9000", "--secrets", "secrets", "--region", "x")])
def test_init_writes_what_the_settings_take_and_nobody_else_can_read(
    vendor: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base_url = ("--base-url", BASE_URLS[vendor]) if vendor in BASE_URLS else ()
    monkeypatch.setenv("LASTCALL_CONFIG", "new/lastcall.toml")
    done = run("init", "--vendor", vendor, "--bucket", "my-exports", *base_url, *more)
    assert done.exit_code == 0, done.output
    path = Path("new/lastcall.toml")
    assert path.stat().st_mode & 0o777 == 0o600
    settings = configuration.load(path)
    assert settings.sources[f"{vendor}-exports"].vendor == vendor
    assert settings.archive.bucket == "my-exports"
    assert done.output.strip().endswith("Then: lastcall check")
    named = [str(secret.file or secret.env) for secret in settings.secrets().values() if secret.literal is None]
    assert named
    assert all(name in done.output.replace("\n", "") for name in named)
    before = path.read_bytes()
    again = run("init", "--vendor", vendor, "--bucket", "other")
    assert again.exit_code == 2
    assert "is not overwritten" in again.output
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --vendor and --bucket"),
        (["--vendor", "crayon"], "give --bucket"),
        (["--vendor", "spaaza", "--bucket", "exports"], "base_url: spaaza has no default"),
        (["--vendor", "crayon", "--bucket", "a/b"], "archive.bucket: not the name of a bucket"),
        (["--vendor", "crayon", "--bucket", "exports", "--name", "My Exports"], "not the name of a source"),
        (["--vendor", "crayon", "--bucket", "exports", "--name", "UPPER"], "part of every key, so: lower-case letters"),
        (["--vendor", "crayon", "--bucket", "exports", "--redis-url", "http://x"], "redis_url: expected redis://"),
        (["--vendor", "fax", "--bucket", "exports"], "'fax' is not one of"),
    ],
)
def test_init_writes_nothing_that_would_not_work(arguments: list[str], says: str) -> None:
    done = run("init", *arguments)
    assert done.exit_code == 2
    assert says in done.output
    assert not Path("config").exists()


def test_init_asks_at_a_terminal() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "init", "--config", "mine.toml", "--region", "eu-west-1"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    os.close(theirs)
    shown = ""
    for question, answer in (
        ("Vendor", "spaaza"),
        ("Name of the source", "loyalty"),
        ("Base URL", "https://services.example.com"),
        ("Bucket", "my-exports"),
        ("Prefix", ""),
        ("S3 endpoint", ""),
        ("Redis", ""),
        ("Secrets", ""),
    ):
        while not re.search(rf"{question}[^\n]*: $", shown):
            assert select.select([ours], [], [], 30)[0], f"no {question}: {shown}"
            shown += os.read(ours, 1000).decode()
        os.write(ours, f"{answer}\n".encode())
        shown = ""
    assert process.wait(30) == 0
    os.close(ours)
    written = tomllib.loads(Path("mine.toml").read_text())
    assert written["sources"]["loyalty"]["base_url"] == "https://services.example.com"
    assert written["sources"]["loyalty"]["access_token_secret"] == {"env": "LOYALTY_ACCESS_TOKEN_SECRET"}
    assert written["archive"] == {"bucket": "my-exports", "prefix": "archive", "region": "eu-west-1"}


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert f"_LASTCALL_COMPLETE={shell}_complete" in done.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("lastcall ack", ["acknowledge"]),
        ("lastcall poll ac", ["acme"]),
        ("lastcall audit --source ", ["acme"]),
        ("lastcall outputs --state he", ["held"]),
        ("lastcall audit --hi", ["--history"]),
    ],
)
def test_commands_options_states_and_sources_are_completed(
    words: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("good.toml").write_text(GOOD)
    monkeypatch.setenv("LASTCALL_CONFIG", "good.toml")
    env = {"_LASTCALL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = CliRunner().invoke(main, [], env=env, prog_name="lastcall")
    assert [line.partition(",")[2] for line in done.output.splitlines()] == found


def test_a_configuration_that_cannot_be_read_completes_nothing() -> None:
    env = {"_LASTCALL_COMPLETE": "bash_complete", "COMP_WORDS": "lastcall poll a", "COMP_CWORD": "2"}
    assert CliRunner().invoke(main, [], env=env, prog_name="lastcall").output.strip() == ""
