"""People are told in one message, by a real HTTP receiver's account; no address appears in a log."""

from __future__ import annotations

import threading

import pytest
from structlog.testing import capture_logs

from tests.receiver import Receiver
from worker.alerts import Heartbeat, digest, send
from worker.demo.embedded import wait_until
from worker.ledger import Change
from worker.model import OutputId
from worker.settings import AlertSettings


def alerts_to(receiver: Receiver) -> str:
    return f"json://{receiver.origin}/marker-in-the-address"


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
        assert send(AlertSettings.model_validate({"urls": [alerts_to(receiver), alerts_to(receiver)]}), ["one", "two"])
    assert [message["message"] for message in receiver.messages] == ["one\ntwo", "one\ntwo"]
    assert "marker" not in str(logs)


def test_what_a_vendor_wrote_is_no_markup_where_messages_are_pages(receiver):
    text = 'job <a href="http://x/">1</a>: unknown status [click](http://x/)\nsecond line'
    assert send(AlertSettings.model_validate({"urls": [alerts_to(receiver) + "?format=html"]}), [text])
    (message,) = receiver.messages
    assert "<a" not in message["message"]
    assert "&lt;a" in message["message"]
    assert "<br" in message["message"]


def test_what_nobody_took_is_to_be_tried_again(receiver):
    receiver.status = 500
    with capture_logs() as logs:
        assert not send(AlertSettings.model_validate({"urls": [alerts_to(receiver)]}), ["one"])
    assert "marker" not in str(logs)
    receiver.status = 200
    assert send(AlertSettings.model_validate({"urls": [alerts_to(receiver)]}), ["one"])


def test_an_unusable_address_is_named_by_its_number_and_stops_no_other(receiver):
    with capture_logs() as logs:
        assert send(AlertSettings.model_validate({"urls": ["no-such-thing://marker", alerts_to(receiver)]}), ["one"])
    assert {"event": "alert address is not one that Apprise knows", "address": 0, "log_level": "warning"} in logs
    assert "marker" not in str(logs)
    assert len(receiver.messages) == 1


def test_an_address_that_is_away_is_named_by_its_number_and_the_others_are_told_once(receiver):
    with capture_logs() as logs:
        assert send(AlertSettings.model_validate({"urls": ["json://127.0.0.1:1/marker", alerts_to(receiver)]}), ["one"])
    assert {"event": "alert address did not take the message", "address": 0, "log_level": "warning"} in logs
    assert "marker" not in str(logs)
    assert len(receiver.messages) == 1


def test_without_addresses_alerts_are_logged_alone():
    with capture_logs() as logs:
        assert send(AlertSettings(), ["one"])
    assert [log["text"] for log in logs if log["event"] == "alert"] == ["one"]


# --- the dead man's switch -------------------------------------------------------------------------------------------


def beat(heartbeat: Heartbeat) -> None:
    """Beat, and wait for the end of it."""
    heartbeat.beat()
    for thread in threading.enumerate():
        if thread.name == "heartbeat":
            thread.join(15)


def switch(url: str) -> Heartbeat:
    return Heartbeat(AlertSettings.model_validate({"heartbeat_url": url}))


def test_the_heartbeat_url_is_asked_for_as_it_is(receiver):
    with capture_logs() as logs:
        beat(switch(f"http://{receiver.origin}/ping/marker?status=up&msg=OK"))
    assert receiver.asked == ["/ping/marker?status=up&msg=OK"]
    assert logs == []


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_heartbeat_that_nobody_takes_is_logged_once_and_once_that_it_is_taken_again(receiver, status):
    """A redirect is not followed: the address is a secret."""
    heartbeat = switch(f"http://{receiver.origin}/marker")
    receiver.heartbeat_status = status
    with capture_logs() as logs:
        beat(heartbeat)
        beat(heartbeat)
        receiver.heartbeat_status = 200
        beat(heartbeat)
        beat(heartbeat)
    assert receiver.asked == ["/marker"] * 4
    assert [(log["event"], log.get("error")) for log in logs] == [
        ("heartbeat not taken; it is sent again every minute", f"answered {status}"),
        ("heartbeat taken again", None),
    ]


def test_a_heartbeat_never_blocks_and_is_under_way_once_at_most(receiver):
    heartbeat = switch(f"http://{receiver.origin}/marker")
    receiver.go.clear()
    heartbeat.beat()
    wait_until(lambda: len(receiver.asked) == 1, 5, "the first to be under way")
    heartbeat.beat()
    receiver.go.set()
    beat(heartbeat)
    assert len(receiver.asked) <= 2


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:1/marker", "ConnectionError"),
        ({"env": "NOT_SET_MARKER"}, "environment variable NOT_SET_MARKER is not set"),
        ({"file": "/none"}, "secret file /none cannot be read (FileNotFoundError)"),
    ],
)
def test_a_heartbeat_that_cannot_be_sent_is_logged_without_its_address(url, error):
    with capture_logs() as logs:
        beat(switch(url))
    (only,) = logs
    assert only["error"] == error


def test_without_a_heartbeat_url_nothing_is_asked_for():
    before = threading.active_count()
    Heartbeat(AlertSettings()).beat()
    assert threading.active_count() == before
