"""People are told in one message, by a real HTTP receiver's account; no address appears in a log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from structlog.testing import capture_logs

from worker.alerts import digest, send
from worker.ledger import Change
from worker.model import OutputId
from worker.settings import AlertSettings


class Receiver(ThreadingHTTPServer):
    """Takes what Apprise's ``json://`` sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.messages: list[dict[str, str]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server_port}/marker-in-the-address"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        server.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def change(number: int, trouble: str, before: str = "") -> Change:
    return Change(output=OutputId("acme", str(number), str(number)), trouble=trouble, before=before, record=None)


def test_many_changes_are_one_text_for_each_trouble_the_worst_first():
    changes = [*(change(n, "at risk") for n in range(25)), change(90, "lost"), change(91, "", before="overdue")]
    lost, at_risk, well = digest(changes)
    assert lost.startswith("1 output lost: ")
    assert "acme/90/90" in lost
    assert at_risk.startswith("25 outputs at risk: ")
    assert at_risk.endswith("… and 15 more")
    assert "acme/91/91: was overdue, is no longer listed" in well


def test_all_texts_reach_every_address_as_one_message(receiver):
    with capture_logs() as logs:
        assert send(AlertSettings.model_validate({"urls": [receiver.url, receiver.url]}), ["one", "two"])
    assert [message["message"] for message in receiver.messages] == ["one\ntwo", "one\ntwo"]
    assert "marker" not in str(logs)


def test_what_nobody_took_is_to_be_tried_again(receiver):
    receiver.status = 500
    with capture_logs() as logs:
        assert not send(AlertSettings.model_validate({"urls": [receiver.url]}), ["one"])
    assert "marker" not in str(logs)
    receiver.status = 200
    assert send(AlertSettings.model_validate({"urls": [receiver.url]}), ["one"])


def test_an_unusable_address_is_named_by_its_number_and_stops_no_other(receiver):
    with capture_logs() as logs:
        assert send(AlertSettings.model_validate({"urls": ["no-such-thing://marker", receiver.url]}), ["one"])
    assert {"event": "alert address is not one that Apprise knows", "address": 0, "log_level": "warning"} in logs
    assert "marker" not in str(logs)
    assert len(receiver.messages) == 1


def test_an_address_that_is_away_is_named_by_its_number_and_the_others_are_told_once(receiver):
    with capture_logs() as logs:
        assert send(AlertSettings.model_validate({"urls": ["json://127.0.0.1:1/marker", receiver.url]}), ["one"])
    assert {"event": "alert address did not take the message", "address": 0, "log_level": "warning"} in logs
    assert "marker" not in str(logs)
    assert len(receiver.messages) == 1


def test_without_addresses_alerts_are_logged_alone():
    with capture_logs() as logs:
        assert send(AlertSettings(), ["one"])
    assert [log["text"] for log in logs if log["event"] == "alert"] == ["one"]
