"""The page in a real browser: what a person sees, hears and clicks."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.browser import Page
from tests.web.kept import Kept
from tests.web.story import Web, output, tell_story
from worker import web
from worker.ledger import Ledger

LIVE = "document.getElementById('health').textContent.startsWith('live')"


@pytest.fixture
def board(page: Page, start_web: Callable[..., Web]) -> Callable[..., Web]:
    """Give ``board(…)``: it starts a web process with these options and opens its page."""

    def show(**options: str) -> Web:
        web = start_web(**options)
        page.open(web.url)
        return web

    return show


def test_the_page_shows_what_is_owed_lost_and_held(board: Callable[..., Web], page: Page, ledger: Ledger) -> None:
    """No script and no style but ours runs, and what a vendor names a file stays text."""
    tell_story(ledger)
    board()
    page.until(LIVE)
    said = page.text()
    assert "You are needed: 1 output lost and 1 output held. 3 outputs overdue. 1 output at risk. Paused: conversions." in said
    assert "<script>alert(1)</script>.csv · acme-exports" in said
    assert "lastcall retry acme-exports/3/3" in said
    assert "9 downloads are used and the rest is kept in reserve" in said
    assert "3 overdue, 1 at risk" in page.text("#sources")
    assert [page.text(f"#totals [data-key={name}] dd") for name in ("overdue", "at_risk", "owed")] == ["3", "1", "4"]
    assert "live · 1 worker alive, beat ticks" in said
    assert "paused for 59m" in said
    assert "Forecast: not known yet" in said
    assert "export-5.csv" in said
    assert said.index("Lost") < said.index("Held") < said.index("export-5.csv") < said.index("export-9.csv")
    for word in ("overdue", "at risk", "in time", "being collected"):
        assert word in page.text("#outputs"), word
    assert page.see("document.title") == "1 lost · lastcall"
    assert page.see("document.getElementById('icon').href").endswith("alarm.svg")
    assert page.complaints == [], "neither an error nor a violation of the content security policy"


def test_the_page_lives_without_being_loaded_again(board: Callable[..., Web], page: Page, ledger: Ledger) -> None:
    """Owed, archived, lost: each shows within seconds; while nothing changes, nothing is sent."""
    ledger.stamp_worker(16)
    ledger.stamp_beat()
    board()
    page.until_text("All is well. Nothing is owed.")
    page.see("window.here = true")
    one, other = (output("conversions", number, ready=timedelta(hours=1), left=timedelta(hours=5)) for number in (1, 2))
    for owed in (one, other):
        ledger.owe(owed, recheck=False)
    page.until_text("export-1.csv", "#outputs")
    assert "All is well. 2 owed, nearest deadline in 4h 59m." in page.text(".verdict")

    ledger.archived(one.id, "archive/conversions/export-1.csv", 3 * 2**30, unproven=False)
    page.until_text("export-1.csv", "#archived")
    assert "export-1.csv" not in page.text("#outputs")
    assert "1 archived, 3.0 GiB" in page.text("#sources")
    assert page.see("document.querySelectorAll('.spark path[d^=M143]').length") == 1, "the last slot of the day"

    claim = ledger.claim({"conversions": 1})
    assert claim is not None
    ledger.lose(claim.output.id, claim.fence, "gone", "the vendor does not know it any more")
    page.until_text("You are needed: 1 output lost.", "[role=status]")
    assert "lastcall acknowledge conversions/2/2" in page.text("#lost")
    assert page.see("window.here"), "the page was never loaded again"

    page.see("fetch('api/board').then(reply => window.tag = reply.headers.get('ETag'))")
    again = "fetch('api/board', {headers: {'If-None-Match': window.tag}}).then(reply => reply.status)"
    assert page.see(again) == 304
    assert page.complaints == []


def test_the_page_says_who_is_silent(board: Callable[..., Web], page: Page, ledger: Ledger) -> None:
    """No beat, no worker, no Redis, no server: each in words, and well again without a hand."""
    process = board()
    page.until_text("no beat has ticked yet; start lastcall beat; no worker is alive; start lastcall worker", "#silence")
    assert "No source was listed yet." in page.text()
    assert "All is well" not in page.text()
    ledger.stamp_worker(2)
    ledger.stamp_beat()
    page.until(f"{LIVE} && document.getElementById('silence').hidden")
    process.kill()
    page.until_text("The board's server does not answer", "#trouble[role=alert]")
    assert "What stands below is of" in page.text("#trouble")
    assert page.text("#health") == "not live"
    process.start()
    page.until(f"{LIVE} && document.getElementById('trouble').hidden")


def test_the_page_says_that_redis_is_away(board: Callable[..., Web], page: Page) -> None:
    board(redis_url="redis://127.0.0.1:1/0")
    page.until_text("The ledger cannot be read: Redis:", "#trouble")
    assert page.text("#trouble").endswith("is redis_url right?")


def test_the_page_says_once_that_everything_is_paused(board: Callable[..., Web], page: Page, ledger: Ledger) -> None:
    """Why the bucket refuses us stands in the red frame, not at each source; nothing there claims that all is archived."""
    ledger.stamp_worker(2)
    ledger.stamp_beat()
    turn = ledger.take_poll_turn("acme-exports", timedelta(seconds=60))
    assert turn is not None
    ledger.end_poll_turn(turn, "ok", {})
    why = "allow s3:PutObject on bucket exports"
    ledger.pause(None, ledger.now() + timedelta(hours=1), why, times=1, fingerprint="")
    board()
    page.until_text("Everything is paused: allow s3:PutObject on bucket exports. Deadlines go on.", "#silence")
    assert page.text().count("allow s3:PutObject") == 1
    assert "Paused: everything." in page.text()
    assert "Nothing is owed, as far as the vendors were listed." in page.text()
    ledger.resume(None)
    page.until("document.getElementById('silence').hidden")


def test_the_page_does_not_say_that_all_is_well_while_a_vendor_cannot_be_listed(
    board: Callable[..., Web], page: Page, ledger: Ledger
) -> None:
    ledger.stamp_worker(2)
    ledger.stamp_beat()
    turn = ledger.take_poll_turn("conversions", timedelta(0))
    assert turn is not None
    ledger.end_poll_turn(turn, "unavailable", {"error": "the vendor cannot be reached"})
    board()
    page.until_text("Last listing failed: conversions.", "#verdict")
    assert "All is well" not in page.text()
    turn = ledger.take_poll_turn("conversions", timedelta(0), by_hand=True)
    assert turn is not None
    ledger.end_poll_turn(turn, "ok", {})
    page.until_text("All is well.", "#verdict")


def test_5000_owed_are_a_page_that_can_be_read(board: Callable[..., Web], page: Page, ledger: Ledger) -> None:
    """Twenty-five rows at first, two hundred on demand, the rest is a number and a command; one source can be looked at."""
    for number in range(5_000):
        left = timedelta(hours=1, seconds=(number * 7919) % 5_000)
        ledger.owe(output("conversions", number, ready=timedelta(hours=1), left=left), recheck=False)
    ledger.owe(output("acme-exports", 1, ready=timedelta(0), left=timedelta(days=9), filename="other.csv"), recheck=False)
    board()
    page.until_text("and 4,801 more, less urgent: lastcall outputs")
    assert page.see("document.querySelectorAll('#outputs > li').length") == 25
    page.click("#outputs-further")
    assert page.see("document.querySelectorAll('#outputs > li').length") == 200
    assert page.see("[...document.querySelectorAll('#outputs > li')].indexOf(document.activeElement)") == 25, "reading goes on"
    page.see(
        "(select => { select.value = 'acme-exports'; select.dispatchEvent(new Event('change')) })"
        "(document.getElementById('source'))"
    )
    page.until("document.querySelectorAll('#outputs > li').length === 1")
    assert "other.csv" in page.text("#outputs")
    assert page.see("location.search") == "?source=acme-exports"
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_written_can_be_read(scheme: str) -> None:
    """Every colour of text has a contrast of 4.5 (WCAG AA) on everything that it stands on."""
    light, dark = re.findall(r":root \{(.*?)\}", (Path(web.__file__).parent / "static/board.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
    for ink in ("ink", "soft", "overdue", "at-risk", "fine", "claimed"):
        for paper in ("paper", "card"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, f"{ink} on {paper}"
    for paper in ("lost-card", "held-card"):
        assert contrast(colours["soft"], colours[paper]) >= 4.5, f"soft on {paper}"


def contrast(one: str, other: str) -> float:
    """Give the ratio that WCAG defines."""

    def luminance(colour: str) -> float:
        parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


HOSTILE = (
    "invoice\u202efdp.exe",
    "<img src=x onerror=alert(1)>.csv",
    "'\"><script>alert(1)</script>",
    "x" * 240 + ".csv",
    "line\nfeed\u0000\u200b.csv",
    "שלום.csv",
)


def test_hostile_names_stay_names_and_fit_a_phone(board: Callable[..., Web], page: Page, ledger: Ledger) -> None:
    """Nothing runs, nothing turns the reading direction unseen, nothing makes the page wider than the phone."""
    for number, name in enumerate(HOSTILE):
        for state in range(3):
            owed = output(
                "acme-exports", number * 3 + state, ready=timedelta(hours=1), left=-timedelta(hours=state), filename=name
            )
            ledger.owe(owed, recheck=False)
            if state == 2:
                claim = ledger.claim({"acme-exports": 99})
                assert claim is not None
                ledger.hold(claim.output.id, claim.fence, f"refused: {name}")
            if state == 1:
                ledger.archived(owed.id, f"archive/{name}", 5, unproven=False)
    page.size(390, 844)
    board()
    page.until("document.querySelectorAll('#outputs > li').length === 6")
    for part in ("#outputs", "#archived", "#held"):
        said = page.text(part)
        assert "invoice[U+202E]fdp.exe" in said
        assert "<img src=x onerror=alert(1)>.csv" in said
        assert "line[U+000A]feed[U+0000][U+200B].csv" in said or part == "#archived", "a key has no such characters"
        assert "שלום.csv" in said
    assert page.see("document.querySelectorAll('main img, main script').length") == 0
    assert page.see("document.documentElement.scrollWidth") == 390
    assert page.complaints == []


def test_a_kept_file_is_given_on_click_and_its_link_is_on_no_page(
    board: Callable[..., Web], page: Page, ledger: Ledger, kept: Kept, eventually: Callable[..., None]
) -> None:
    """The browser saves the file itself; what was signed stands neither in the page nor in what the page reads."""
    one = kept.put("a b/ü%2F.csv", b"sku,price\n1,2\n")
    ledger.owe(one, recheck=False)
    ledger.archived(one.id, kept.key, 14, unproven=False)
    process = board(archive=kept.table)
    page.until_text("ü%2F.csv", "#archived")
    page.click("#archived a")
    eventually(lambda: any(page.downloads.glob("*.csv")), 20, "the file is saved")
    assert next(page.downloads.glob("*.csv")).read_bytes() == b"sku,price\n1,2\n"
    assert "amz" not in page.see("document.documentElement.outerHTML").lower()
    assert "amz" not in process.get("/api/board").text.lower()
    assert "amz" not in process.log.read_text().lower()


def test_the_page_can_be_used_by_keyboard_and_by_ear(board: Callable[..., Web], page: Page, ledger: Ledger) -> None:
    """Landmarks, a table with its headings, names for bars and buttons; the focus can be seen; nothing moves that need not."""
    tell_story(ledger)
    page.prefer(prefers_reduced_motion="reduce")
    board()
    page.until(LIVE)
    heard = page.spoken()
    roles = {role for role, _ in heard}
    assert {"banner", "main", "navigation", "region", "table", "columnheader", "rowheader", "status"} <= roles
    assert ("button", "Copy: lastcall retry acme-exports/3/3") in heard
    assert any(role == "image" and "% of its time is over; deadline " in name for role, name in heard)
    for _ in range(12):
        page.press("Tab")
        if page.see("document.activeElement.className") == "copy":
            break
    assert page.see("document.activeElement.getAttribute('aria-label')") == "Copy: lastcall retry acme-exports/3/3"
    assert page.see("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.press("Enter")
    page.until("/^(Copied|Selected): lastcall retry acme-exports.3.3$/.test(document.getElementById('said').textContent)")
    assert page.see("getComputedStyle(document.querySelector('.claimed .used')).animationName") == "none"
    page.size(390, 844)
    assert {"table", "rowheader"} <= {role for role, _ in page.spoken()}, "also where each source is a card"
