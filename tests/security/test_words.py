"""What is said about trouble: no exception's own words, no password of a sentinel, nothing that commands a terminal."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import redis
import structlog
from rich.text import Text

from worker import app as processes
from worker import logs
from worker import settings as configuration
from worker.errors import ConfigurationError, HeldError, LedgerUnavailableError, VendorReplyError
from worker.printing import plain

MARK = "s3cr3t-marker"


def _fail(kind: type[Exception], words: str) -> None:
    raise kind(words)


def _chained() -> None:
    try:
        try:
            _fail(ValueError, f"GET https://x/?sig={MARK}")
        except ValueError as exc:
            raise LedgerUnavailableError("Redis: ConnectionError") from exc
    except LedgerUnavailableError:
        _fail(KeyError, MARK)


def test_a_trace_tells_frames_types_and_our_own_words_and_nobody_elses():
    with pytest.raises(KeyError) as found:
        _chained()
    text = logs.trace(found.value)
    assert MARK not in text
    assert text.count("in _chained") == 3
    assert "KeyError" in text
    assert "ValueError" in text
    assert "LedgerUnavailableError: Redis: ConnectionError" in text


def test_a_trace_keeps_what_the_system_says():
    with pytest.raises(FileNotFoundError) as found:
        Path("/nonexistent/" + MARK).read_text()
    assert "No such file" in logs.trace(found.value)
    assert MARK not in logs.trace(found.value)


@pytest.mark.parametrize(
    "what",
    [
        "log.exception('defect')",
        "raise",
        "logging.getLogger('celery.app.trace').error('Task', exc_info=True)",
        "threading.Thread(target=fail).start()",
    ],
)
def test_whatever_fails_wherever_the_log_has_no_words_of_strangers(what):
    program = f"""
import logging, threading, structlog
from worker import logs
logs.configure()
log = structlog.get_logger()
def fail():
    value = "{MARK}"
    raise ValueError(value)
try:
    fail()
except ValueError:
    {what}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "ValueError" in done.stderr, done.stderr
    assert "in fail" in done.stderr
    assert f'"{MARK}"' not in done.stderr.replace(f'value = "{MARK}"', "")
    assert f"ValueError: {MARK}" not in done.stderr


class Task(processes._Discreet):
    name = "task"

    def run(self, *, cause: Exception, raised: Exception) -> None:
        try:
            raise cause  # noqa: TRY301
        except Exception as exc:
            raise raised from exc


def test_a_task_fails_without_telling_celery_what_it_was_about():
    with pytest.raises(processes.DefectError) as found:
        Task()(cause=KeyError(MARK), raised=ValueError(MARK))
    assert str(found.value) == "ValueError; the log of this worker says where"
    assert found.value.__suppress_context__


def test_an_expected_failure_goes_to_celery_without_what_led_to_it():
    with pytest.raises(LedgerUnavailableError) as found:
        Task()(cause=redis.ConnectionError(MARK), raised=LedgerUnavailableError("Redis: ConnectionError"))
    assert found.value.__cause__ is None
    assert found.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        f"redis://u:{MARK}@a/0",
        f"rediss://:{MARK}@a:1/0",
        f"sentinel://u:{MARK}@a:1/master",
        f"sentinel://u:{MARK}@a:1,b:2/master/3",
    ],
)
def test_celery_shows_nobody_the_password_of_redis(url):
    settings = configuration.parse({"archive": {"bucket": "exports"}, "redis_url": url})
    given = processes.celery_settings(settings)
    app = processes.Celery("shown", amqp=processes._Amqp, set_as_current=False)
    app.conf.update(given)
    connection = app.connection_for_read()
    assert MARK in str(connection.password), "or nothing is proved"
    shown = connection.info()
    shown.pop("password")  # as Celery does before it shows the rest; Flower needs it to log in
    assert MARK not in str(shown)
    assert MARK not in connection.as_uri()
    assert MARK not in repr(connection)
    assert MARK not in str(app.conf.table(with_defaults=True, censored=True))
    assert MARK not in app.bugreport()


ESCAPES = "\x1b]0;owned\x07 \x9b31m \u202egnp.exe \x00 \r\u2028"


def test_what_a_stranger_wrote_is_one_line_without_markup_in_a_table():
    shown = plain(f"a.csv\n{ESCAPES}[red]x[/red]")
    assert shown.isprintable()
    assert Text.from_markup(shown).plain.endswith("[red]x[/red]")


def test_no_message_of_ours_commands_a_terminal():
    for kind in (VendorReplyError, HeldError):
        assert str(kind(f"job {ESCAPES}: wrong")).isprintable()
    assert str(ConfigurationError(["one", "two"])) == "one\ntwo"


def test_no_line_of_the_log_commands_a_terminal(capsys):
    logs.configure(logging.INFO)
    structlog.get_logger().warning("oddity", job=ESCAPES)
    logging.getLogger("someone").warning("said %s", ESCAPES)
    for line in capsys.readouterr().err.splitlines():
        assert line.isprintable()
        json.loads(line)


def test_apprise_does_not_log_addresses_that_it_cannot_use(capsys):
    from worker import alerts

    logs.configure(logging.INFO)
    for url in (f"nosuch://{MARK}", f"slack://{MARK}", f"json://127.0.0.1:99999/{MARK}", f"mailto://{MARK}:{MARK}@"):
        settings = configuration.AlertSettings.model_validate({"urls": [url]})
        assert not alerts.send(settings, ["text"])
    assert MARK not in capsys.readouterr().err
