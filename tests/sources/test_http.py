"""The JSON session against a server that misbehaves, and the reading of strangers' JSON."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.demo.server import Fault, Raw, Reply, Request, Vendor
from worker.errors import (
    BlockedAddressError,
    ConfigurationError,
    LogInRefusedError,
    ThrottledError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.ledger import Ledger
from worker.model import OutputId
from worker.settings import SellercloudSettings
from worker.sources.http import JsonSession, KeyAuth, Token, TokenAuth, retry_after
from worker.sources.reading import Fields, parse_json, parse_moment, receipt_copy

NEW_YORK = ZoneInfo("America/New_York")


class Service(Vendor):
    """Answers GET /thing with `body`, to those who carry a token of POST /token."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = {"ok": True}
        self.headers: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.log_in_status = 200
        self.log_in_seconds = 0.0
        self.open = False
        self.route("thing", "GET", "/thing", self._thing)
        self.route("token", "POST", "/token", self._token)

    def _thing(self, request: Request) -> Reply:
        if not self.open and request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return Reply.text("no", 401)
        raw = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return Reply(headers=self.headers, body=Raw(raw))

    def _token(self, request: Request) -> Reply:
        token = f"token-{len(self.requests('token'))}"
        if self.log_in_status != 200:
            return Reply.text("no", self.log_in_status)
        self.tokens.add(token)
        return Reply.json({"token": token})


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        yield service
        assert service.crashes == []


def settings_for(url: str, **more: Any) -> SellercloudSettings:
    table = {"vendor": "sellercloud", "base_url": url, "username": "u", "password": "p", "allow_private_hosts": True, **more}
    return SellercloudSettings.model_validate(table)


def open_with_token(service: Service, shared: Any, **more: Any) -> tuple[JsonSession, TokenAuth]:
    holder: list[JsonSession] = []

    def log_in() -> Token:
        reply = holder[0].post_log_in("log-in", "/token", body=b"{}", content_type="application/json")
        if not reply.ok:
            raise LogInRefusedError("log-in: refused")
        return Token(reply.json()["token"], 3600)

    auth = TokenAuth(shared, log_in)
    holder.append(JsonSession(settings_for(service.base_url), shared, auth, patience=timedelta(seconds=1.5), **more))
    return holder[0], auth


@pytest.fixture
def session(service: Service, shared: Any) -> JsonSession:
    return open_with_token(service, shared)[0]


# --- one call --------------------------------------------------------------------------------------------------------


def test_a_call_is_paced_and_authorised_and_asks_for_plain_bytes(service: Service, session: JsonSession, shared: Any) -> None:
    assert session.get("thing", "/thing", [("a b", "c&d")]).json() == {"ok": True}
    (entry,) = service.requests("thing")
    assert entry.headers["accept-encoding"] == "identity"
    assert entry.query == {"a b": ["c&d"]}
    assert shared.calls == 2  # the log-in and the call


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_passing_5xx_is_tried_again(service: Service, session: JsonSession, status: int) -> None:
    service.fail("thing", Fault.answer(status, "<html>"))
    assert session.get("thing", "/thing").ok
    assert len(service.requests("thing")) == 2


def test_a_lasting_5xx_is_given_as_it_is_after_some_seconds(service: Service, session: JsonSession) -> None:
    service.standing["thing"] = Fault.answer(503, "<html>")
    reply = session.get("thing", "/thing")
    assert reply.status == 503
    assert isinstance(reply.unexpected(), VendorUnavailableError)
    assert 2 <= len(service.requests("thing")) <= 4


def test_a_500_is_not_repeated_unless_the_vendor_says_so(service: Service, session: JsonSession, shared: Any) -> None:
    service.fail("thing", Fault.answer(500), times=2)
    assert session.get("thing", "/thing").status == 500
    insistent, _ = open_with_token(service, shared, passing_statuses=frozenset({500}))
    assert insistent.get("thing", "/thing").ok


def test_a_cut_answer_is_tried_again_and_never_taken_for_whole(service: Service, session: JsonSession) -> None:
    service.fail("thing", Fault(cut_after=3), Fault(cut_after=3, framing="chunked"), Fault(cut_after=0, reset=True))
    assert session.get("thing", "/thing").json() == {"ok": True}
    service.fail("thing", Fault(cut_after=5, framing="close"))
    with pytest.raises(VendorReplyError, match="thing: the answer is not the JSON"):
        session.get("thing", "/thing").json()


def test_a_redirect_is_given_as_it_is_and_nobody_goes_there(service: Service, session: JsonSession) -> None:
    service.fail("thing", Fault.answer(302, Location=f"{service.base_url}/elsewhere"))
    reply = session.get("thing", "/thing")
    assert reply.status == 302
    assert isinstance(reply.unexpected(), VendorReplyError)
    assert [entry.path for entry in service.log] == ["/token", "/thing"]


def test_nobody_listening_is_unavailable_and_a_private_address_is_blocked(service: Service, shared: Any) -> None:
    service.open = True
    auth = KeyAuth(dict)
    blocked = JsonSession(settings_for(service.base_url, allow_private_hosts=False), shared, auth)
    with pytest.raises(BlockedAddressError):
        blocked.get("thing", "/thing")
    assert service.log == []
    away = JsonSession(settings_for(service.base_url), shared, auth, patience=timedelta(seconds=0.3))
    service.stop()
    with pytest.raises(VendorUnavailableError, match="thing: "):
        away.get("thing", "/thing")
    service.start()
    assert away.get("thing", "/thing").ok


def test_a_slow_answer_ends_in_time_even_when_it_trickles(service: Service, shared: Any) -> None:
    service.open = True
    service.body = b" " * 100_000
    settings = settings_for(service.base_url, connect_timeout="500ms", read_timeout="1s")
    hasty = JsonSession(settings, shared, KeyAuth(dict), patience=timedelta(seconds=0.5))
    for fault in (Fault(delay_seconds=20), Fault(bytes_per_second=50)):
        service.fail("thing", fault)
        began = time.monotonic()
        with pytest.raises(VendorUnavailableError):
            hasty.get("thing", "/thing")
        assert time.monotonic() - began < 6


def test_an_answer_is_bounded_also_when_it_comes_compressed(service: Service, shared: Any) -> None:
    small, _ = open_with_token(service, shared, max_reply_bytes=10_000)
    service.body = b" " * 10_001
    with pytest.raises(VendorReplyError, match="larger than 10000 bytes"):
        small.get("thing", "/thing")
    service.headers = {"Content-Encoding": "gzip"}
    service.body = gzip.compress(b" " * 10_000_000)
    with pytest.raises(VendorReplyError, match="larger than"):
        small.get("thing", "/thing")
    service.body = gzip.compress(b'{"a": 1}')
    assert small.get("thing", "/thing").json() == {"a": 1}
    service.body = gzip.compress(b'{"a": 1}')[:-4]
    with pytest.raises(VendorUnavailableError, match="ended early"):
        small.get("thing", "/thing")
    service.body = b"not gzip"
    with pytest.raises(VendorReplyError, match="broken"):
        small.get("thing", "/thing")
    service.headers = {"Content-Encoding": "br"}
    with pytest.raises(VendorReplyError, match="nobody asked for"):
        small.get("thing", "/thing")


def test_only_the_head_of_a_large_answer_can_be_asked_for(service: Service, shared: Any) -> None:
    small, _ = open_with_token(service, shared, max_reply_bytes=100)
    service.body = b"x" * 1000
    assert small.get("thing", "/thing", only_head=True).ok


# --- slowing down ----------------------------------------------------------------------------------------------------


def test_retry_after_hushes_the_whole_source_until_then(service: Service, session: JsonSession, shared: Any) -> None:
    service.fail("thing", Fault.answer(429, Retry_After="120"))
    with pytest.raises(ThrottledError) as caught:
        session.get("thing", "/thing")
    until = shared.hushes[-1]
    assert caught.value.not_before == until
    assert timedelta(seconds=118) < until - datetime.now(UTC) < timedelta(seconds=121)
    with pytest.raises(ThrottledError):
        session.get("thing", "/thing")
    assert len(service.requests("thing")) == 1
    shared.forgive()
    assert session.get("thing", "/thing").ok


def test_retry_after_is_read_as_a_date_and_also_under_503(service: Service, session: JsonSession, shared: Any) -> None:
    at = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)
    for status in (429, 503):
        shared.forgive()
        service.fail("thing", Fault.answer(status, Retry_After=format_datetime(at, usegmt=True)))
        with pytest.raises(ThrottledError):
            session.get("thing", "/thing")
        assert shared.hushes == [at]


def test_without_a_time_the_pauses_grow_and_a_good_answer_ends_that(
    service: Service, session: JsonSession, shared: Any
) -> None:
    def pause() -> int:
        shared.forgive()
        session._paused_until = datetime.now(UTC)  # as if the last pause had passed
        service.fail("thing", Fault.answer(429))
        with pytest.raises(ThrottledError):
            session.get("thing", "/thing")
        return round((shared.hushes[0] - datetime.now(UTC)).total_seconds())

    lengths = [pause() for _ in range(7)]
    assert lengths == [2, 4, 8, 16, 32, 60, 60]
    shared.forgive()
    assert session.get("thing", "/thing").ok
    assert pause() == 2


@given(st.integers(0, 10**9))
def test_any_number_of_seconds_is_a_time(seconds: int) -> None:
    now = datetime(2026, 3, 26, tzinfo=UTC)
    assert retry_after({"retry-after": str(seconds)}, now) == now + min(timedelta(seconds=seconds), timedelta(days=7))


@given(st.text())
def test_a_strange_retry_after_is_none_or_a_time_never_an_error(value: str) -> None:
    at = retry_after({"retry-after": value}, datetime(2026, 3, 26, tzinfo=UTC))
    assert at is None or at.tzinfo is not None


# --- the log-in ------------------------------------------------------------------------------------------------------


def test_a_401_costs_one_log_in_for_all_threads(service: Service, session: JsonSession) -> None:
    session.get("thing", "/thing")
    service.tokens.clear()
    results: list[bool] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        results.append(session.get("thing", "/thing").ok)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
    assert len(service.requests("token")) == 2


def test_two_workers_of_one_redis_share_pace_pause_and_token(service: Service, redis_url: str) -> None:
    workers = [
        open_with_token(
            service, Ledger(redis_url, lease=timedelta(seconds=5), worker=name).shared("acme", 1000, threading.Event())
        )
        for name in ("one", "two")
    ]
    (one, auth), (two, _) = workers
    assert one.get("thing", "/thing").ok
    assert two.get("thing", "/thing").ok
    assert len(service.requests("token")) == 1
    output = OutputId("acme", "1", "1")
    auth.link_headers(output)
    service.tokens.clear()
    assert two.get("thing", "/thing").ok
    assert auth.link_refused(output, list)
    assert one.get("thing", "/thing").ok
    assert len(service.requests("token")) == 2
    service.fail("thing", Fault.answer(429, Retry_After="60"))
    with pytest.raises(ThrottledError):
        one.get("thing", "/thing")
    with pytest.raises(ThrottledError):
        two.get("thing", "/thing")
    assert len(service.requests("thing")) == 6


def test_a_second_401_is_a_refused_log_in(service: Service, session: JsonSession) -> None:
    service.standing["thing"] = Fault.answer(401)
    with pytest.raises(LogInRefusedError, match="check credentials"):
        session.get("thing", "/thing")
    assert len(service.requests("token")) == 2
    service.standing.clear()
    assert session.get("thing", "/thing").ok


def test_a_refused_log_in_is_not_repeated_by_those_who_waited_for_it(service: Service, session: JsonSession) -> None:
    service.log_in_status = 400
    service.standing["token"] = Fault(delay_seconds=0.5)
    errors: list[Exception] = []

    def work() -> None:
        try:
            session.get("thing", "/thing")
        except (LogInRefusedError, VendorUnavailableError) as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 5
    assert sum(isinstance(error, LogInRefusedError) for error in errors) == 1
    assert len(service.requests("token")) == 1


@pytest.mark.parametrize(("promised", "used"), [(3600, 3420), (1800, 1620), (600, 420), (100, 70), (0, 0), (-5, 0)])
def test_a_token_is_renewed_early(shared: Any, promised: float, used: float) -> None:
    assert TokenAuth(shared, lambda: Token("t", promised)).headers() == {"Authorization": "Bearer t"}
    assert shared.token_life_seconds == pytest.approx(used)


def test_a_token_that_no_header_can_carry_is_a_wrong_reply_and_frees_the_turn(shared: Any) -> None:
    for token in ("", "a\r\nX-Evil: 1", "ü", "two words"):
        with pytest.raises(VendorReplyError):
            TokenAuth(shared, lambda token=token: Token(token, 60)).headers()
    assert TokenAuth(shared, lambda: Token("good", 60)).headers()


def test_a_secret_that_cannot_be_read_is_a_refused_log_in_with_its_reason(service: Service, shared: Any) -> None:
    def headers() -> dict[str, str]:
        raise ConfigurationError(["environment variable SC_KEY is not set"])

    session = JsonSession(settings_for(service.base_url), shared, KeyAuth(headers))
    with pytest.raises(LogInRefusedError, match="SC_KEY is not set"):
        session.get("thing", "/thing")


def test_a_key_has_nothing_to_renew_unless_the_secret_has_changed(service: Service, shared: Any) -> None:
    keys = ["old"]
    session = JsonSession(settings_for(service.base_url), shared, KeyAuth(lambda: {"Authorization": f"Bearer {keys[-1]}"}))
    with pytest.raises(LogInRefusedError):
        session.get("thing", "/thing")
    assert len(service.requests("thing")) == 1
    service.tokens.add("new")
    keys.append("new")
    assert session.get("thing", "/thing").ok


def test_a_refused_file_costs_one_log_in_and_then_it_is_the_file(service: Service, shared: Any) -> None:
    _, auth = open_with_token(service, shared)
    output = OutputId("acme", "1", "1")
    first = auth.link_headers(output)
    assert auth.link_refused(output, list)
    second = auth.link_headers(output)
    assert first != second
    assert not auth.link_refused(output, list)
    assert auth.link_headers(output) == second
    assert len(service.requests("token")) == 2


def test_a_token_made_for_a_file_can_die_as_well(service: Service, shared: Any) -> None:
    session, auth = open_with_token(service, shared)
    output = OutputId("acme", "1", "1")
    for _ in range(3):
        auth.link_headers(output)
        service.tokens.clear()
        assert auth.link_refused(output, lambda: session.get("thing", "/thing"))
    assert len(service.requests("token")) == 4


def test_many_refused_files_cost_one_log_in(service: Service, shared: Any) -> None:
    _, auth = open_with_token(service, shared)
    outputs = [OutputId("acme", str(number), "1") for number in range(9)]
    for output in outputs:
        auth.link_headers(output)
    assert all(auth.link_refused(output, list) for output in outputs)
    assert len(service.requests("token")) == 2


def test_no_message_and_no_repr_carries_a_token_a_url_or_a_body(service: Service, session: JsonSession, shared: Any) -> None:
    service.body = b"body-secret"
    reply = session.get("thing", "/thing")
    service.standing["thing"] = Fault.answer(401)
    texts = [repr(reply), repr(Token("token-secret", 1)), str(reply.unexpected())]
    for call in (reply.json, lambda: session.get("thing", "/thing", [("q", "query-secret")])):
        with pytest.raises((VendorReplyError, LogInRefusedError)) as caught:
            call()
        texts.append(str(caught.value))
    for text in texts:
        assert "secret" not in text
        assert "token-" not in text
        assert "http://" not in text


# --- reading ---------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_good_json_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value).encode(), "call") == value


@given(st.binary())
def test_any_bytes_are_json_or_a_wrong_reply(body: bytes) -> None:
    with contextlib.suppress(VendorReplyError):
        parse_json(body, "call")


@pytest.mark.parametrize("body", [b"NaN", b"[Infinity]", b"1e999", b"[" * 100_000, b"[" * 66 + b"]" * 66, b"", b"{", b"\xff"])
def test_json_that_would_hurt_is_a_wrong_reply(body: bytes) -> None:
    with pytest.raises(VendorReplyError):
        parse_json(body, "call")


def test_huge_integers_repeated_keys_and_lone_surrogates_are_tolerated() -> None:
    assert parse_json(b'{"a": 1, "a": 2}', "call") == {"a": 2}
    assert parse_json(b"1" * 5000, "call") == "1" * 5000
    assert parse_json(b'"\\ud800"', "call").encode()
    assert parse_json(b"\xef\xbb\xbf[1]", "call") == [1]


@given(
    st.datetimes(datetime(1970, 1, 3), datetime(2200, 1, 1)),  # noqa: DTZ001 - hypothesis wants them naive
    st.integers(0, 9),
    st.sampled_from(["Z", "z", "", "+00:00", "+0530", "-07", "-11:45"]),
)
def test_a_time_survives_any_number_of_fraction_digits_and_any_zone(at: datetime, digits: int, zone: str) -> None:
    fraction = f"{at.microsecond:06}123"[:digits]
    text = at.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + (f".{fraction}" if fraction else "") + zone
    moment = parse_moment(text, UTC)
    offsets = {"+0530": timedelta(hours=5.5), "-07": timedelta(hours=-7), "-11:45": -timedelta(hours=11, minutes=45)}
    expected = at.replace(microsecond=int(fraction[:6].ljust(6, "0")), tzinfo=timezone(offsets.get(zone, timedelta())))
    assert moment.at == expected
    assert moment.zoned == bool(zone)


def test_a_time_without_a_zone_has_the_sources_own_and_the_earlier_one_of_two() -> None:
    assert parse_moment("2026-07-01T12:00:00", NEW_YORK).at == datetime(2026, 7, 1, 16, tzinfo=UTC)
    assert parse_moment("2026-11-01T01:30:00", NEW_YORK).at == datetime(2026, 11, 1, 5, 30, tzinfo=UTC)  # 05:30, not 06:30
    assert parse_moment("2022-01-14T09:38:49.9856571Z", UTC).at == datetime(2022, 1, 14, 9, 38, 49, 985657, tzinfo=UTC)
    assert parse_moment("2026-07-01", UTC).at == datetime(2026, 7, 1, tzinfo=UTC)


@given(st.text())
def test_a_strange_time_is_a_value_error_and_nothing_else(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_moment(text, UTC).at.utcoffset() == timedelta(0)


@given(JSON)
def test_every_getter_gives_its_kind_or_a_wrong_reply_that_names_the_field(value: Any) -> None:
    fields = Fields({"Field": value}, "job 7")
    getters: dict[str, tuple[Callable[[], Any], tuple[type, ...]]] = {
        "text": (lambda: fields.text("Field"), (str,)),
        "integer": (lambda: fields.integer("Field"), (int,)),
        "number": (lambda: fields.number("Field"), (float,)),
        "flag": (lambda: fields.flag("Field"), (bool,)),
        "rows": (lambda: fields.rows("Field"), (list,)),
        "moment": (lambda: fields.moment("Field", zone=UTC), (object,)),
    }
    for getter, kinds in getters.values():
        try:
            got = getter()
        except VendorReplyError as exc:
            got, message = None, str(exc)
        else:
            message = "job 7: Field "
        assert "job 7: Field " in message
        assert got is None or isinstance(got, kinds)


def test_numbers_come_as_integers_floats_and_text() -> None:
    fields = Fields({"a": 3.0, "b": " 3 ", "c": True, "d": "1_000", "e": "3599.0", "f": "0001-01-01T00:00:00"}, "job 7")
    assert fields.integer("a") == fields.integer("b") == 3
    assert fields.number("e") == 3599.0
    assert fields.moment("f", zone=UTC) is None
    for name in ("c", "d"):
        with pytest.raises(VendorReplyError, match=f"job 7: {name} is not an integer"):
            fields.integer(name)
    with pytest.raises(VendorReplyError, match="missing"):
        fields.need("z", fields.text("z"))


def test_loose_names_match_in_any_case_and_with_underscores() -> None:
    for name in ("AccessToken", "accessToken", "access_token"):
        assert Fields({name: "t"}, "log-in", loose=True).text("AccessToken") == "t"


def test_a_receipts_copy_has_no_named_fields_and_no_links() -> None:
    document = {"Token": 1, "a": [{"token": 2, "b": "https://x"}, "s3://y"], "c": "see https://x", "Keep": None}
    assert receipt_copy(document, drop={"token"}) == {"a": [{}], "c": "see (link)", "Keep": None}


def test_a_receipts_copy_has_nothing_that_is_called_like_a_secret_whichever_vendor_it_is() -> None:
    names = ("Access_Token", "clientSecret", "API-Key", "password", "Authorization", "signature", "credentials")
    document = {"deep": [dict.fromkeys(names, "secret"), {"passwordProtected": True, "tokens_used": 3}]}
    assert receipt_copy(document) == {"deep": [{}, {"passwordProtected": True, "tokens_used": 3}]}


def test_a_document_that_is_too_large_to_keep_with_each_output_is_only_mentioned() -> None:
    assert list(receipt_copy({"note": "x" * 300_000})) == ["omitted"]
    text = "a" * 5_000_000
    assert receipt_copy({"note": text[:200_000]}) == {"note": text[:200_000]}
    began = time.process_time()
    receipt_copy({"note": f"{text} s3://x {text}"})
    assert time.process_time() - began < 2


@pytest.mark.parametrize("unit", [b"{},", b"[],", b"0,", b'"",', b'{"a":0},'])
def test_an_answer_that_would_fill_the_memory_is_refused_before_it_is_read(unit: bytes) -> None:
    body = b"[" + unit * ((16 * 2**20) // len(unit)) + b"0]"
    began = time.process_time()
    with pytest.raises(VendorReplyError, match="more values"):
        parse_json(body, "list")
    assert time.process_time() - began < 1
