"""Whatever a vendor puts around a file, the file comes out byte for byte, or an error does; never something shorter."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import decode
from worker.decode import Decoder
from worker.errors import DecodeError, RefusedError
from worker.model import Wrapping

SC, CR, NONE = Wrapping.SELLERCLOUD, Wrapping.CRAYON, Wrapping.NONE
XLSX = b"PK\x03\x04\x14\x00\x06\x00" + bytes(range(256)) * 3


def run(body, wrapping=SC, *, name="file.csv", kind="", sizes=(), whole=True):
    """Decode `body` in pieces of `sizes` (over and over), or in one piece."""
    decoder = Decoder(wrapping, filename=name, content_type=kind)
    out, at, turn = [], 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)] if sizes else len(body)
        out.append(decoder.feed(memoryview(body)[at : at + size]))
        at, turn = at + size, turn + 1
    out.append(decoder.finish(whole=whole))
    assert decoder.named
    return b"".join(out), decoder


def encoded(data):
    return base64.b64encode(data)


def wrapped_lines(data, width=76):
    text = encoded(data)
    return b"\r\n".join(text[at : at + width] for at in range(0, len(text), width))


def envelope(data, **more):
    return json.dumps({"FileName": "export.xlsx", "Content": encoded(data).decode(), **more}).encode()


FORMS = {
    "base64": (SC, encoded, "base64"),
    "base64 with line breaks": (SC, wrapped_lines, "base64"),
    "BOM in front, white space around": (SC, lambda data: b"\xef\xbb\xbf \r\n" + encoded(data) + b" \r\n\r\n", "base64"),
    "JSON string": (SC, lambda data: b'"' + encoded(data) + b'"\n', "json-string"),
    "JSON string, .NET escapes": (
        SC,
        lambda data: b'"' + encoded(data).replace(b"+", b"\\u002B").replace(b"/", b"\\/") + b'"',
        "json-string",
    ),
    "JSON string, every escape": (
        SC,
        lambda data: (
            b'"' + wrapped_lines(data).replace(b"\r\n", b"\\r\\n").replace(b"=", b"\\u003d").replace(b"Q", b"\\u0051") + b'"'
        ),
        "json-string",
    ),
    "object": (SC, envelope, "json-content"),
    "object, content first": (
        SC,
        lambda data: b'{"Content":"' + encoded(data) + b'","FileName":"export.xlsx"}',
        "json-content",
    ),
    "object, camelCase, BOM, other members": (
        SC,
        lambda data: (
            b'\xef\xbb\xbf{ "id" : [1, {"content": "no"}], "fileName":"export.xlsx",\n"content" : "'
            + wrapped_lines(data).replace(b"\r\n", b"\\r\\n")
            + b'", "x": {"y": "}"} }\n'
        ),
        "json-content",
    ),
    "Crayon raw": (CR, lambda data: XLSX + data, "none"),
    "Crayon FileContent": (
        CR,
        lambda data: b'{"FileContent": "' + encoded(data) + b'", "FileName": "export.xlsx", "FileContentType": "x/y"}',
        "json-content",
    ),
    "Crayon bytes": (
        CR,
        lambda data: json.dumps({"fileName": "export.xlsx", "fileContent": list(data), "n": None}).encode(),
        "json-bytes",
    ),
    "Crayon bytes, spread": (
        CR,
        lambda data: json.dumps({"FileContent": list(data), "FileName": "export.xlsx"}, indent=1).encode(),
        "json-bytes",
    ),
    "Crayon Data": (CR, lambda data: b'{"FileName":"export.xlsx","Data":"' + encoded(data) + b'"}', "json-content"),
    "nothing around it": (NONE, lambda data: b"\x00" + data, "none"),
}


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary(min_size=1, max_size=300), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_every_form_comes_back_byte_for_byte_in_any_pieces(form, data, sizes):
    wrapping, wrap, name = FORMS[form]
    body = wrap(data)
    out, decoder = run(body, wrapping, sizes=sizes)
    assert out == (body if name == "none" else data)
    assert decoder.form == name
    assert decoder.filename == ("export.xlsx" if name in {"json-content", "json-bytes"} else None)
    assert decoder.body_sha256 == (None if name == "none" else hashlib.sha256(body).hexdigest())
    assert ("json-end" in decoder.proof()) == name.startswith("json")
    assert ("base64-end" in decoder.proof()) == (len(data) % 3 != 0 and name in {"base64", "json-string", "json-content"})


@pytest.mark.parametrize("form", [form for form, (_, _, name) in FORMS.items() if name != "none"])
def test_every_form_longer_than_the_head_in_any_pieces(form):
    data = bytes(range(256)) * 5000
    wrapping, wrap, name = FORMS[form]
    body = wrap(data)
    for sizes in ((), (65_536,), (1_048_575, 1, 7)):
        out, decoder = run(body, wrapping, sizes=sizes)
        assert (out == data, decoder.form) == (True, name)


@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.text('{}[]":, \\ABab12=+/\r\nContent', max_size=120).map(str.encode),
        st.sampled_from([wrap(b"some bytes here") for _, wrap, _ in FORMS.values()]).flatmap(
            lambda body: st.tuples(st.integers(0, len(body)), st.binary(max_size=3)).map(
                lambda change: body[: change[0]] + change[1] + body[change[0] :]
            )
        ),
    ),
    wrapping=st.sampled_from(Wrapping),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    whole=st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_any_body_gives_the_same_in_any_pieces(body, wrapping, sizes, whole):
    def outcome(**options):
        try:
            out, decoder = run(body, wrapping, whole=whole, **options)
        except (DecodeError, RefusedError) as exc:
            return type(exc)
        return out, decoder.form, decoder.filename, decoder.proof()

    assert outcome() == outcome(sizes=sizes)


@pytest.mark.parametrize("form", [form for form, (_, _, name) in FORMS.items() if name.startswith("json")])
@pytest.mark.parametrize("length", [1, 2, 3, 200])
def test_a_json_wrapping_cut_anywhere_is_never_a_file(form, length):
    wrapping, wrap, _ = FORMS[form]
    body = wrap(XLSX[:length]).rstrip()
    beginning = 4 if body.startswith(b"\xef\xbb\xbf") else 1
    for cut in range(beginning, len(body)):
        if b"id" in body[: beginning + 6]:  # before its first member of ours, an object could be any
            continue
        with pytest.raises(DecodeError) as error:
            run(body[:cut], wrapping, whole=False)
        assert not error.value.late


@pytest.mark.parametrize("data", [XLSX, b"SKU\tQty\nSKU1\t3\n"])
def test_bare_base64_cut_anywhere_is_an_error_or_has_no_proof(data):
    for body in (encoded(data), wrapped_lines(data)):
        for cut in range(1, len(body)):
            if len(body[:cut].translate(None, b"\r\n")) % 4:
                with pytest.raises(DecodeError) as error:
                    run(body[:cut], whole=False)
                assert not error.value.late
            else:
                out, decoder = run(body[:cut], whole=False)
                assert (decoder.proof(), decoder.form) == ((), "base64")
                assert data.startswith(out)


RAW = {
    "a CSV": b"SKU,Qty\nA1,3\n",
    "a CSV that starts with a quote": b'"SKU","Qty"\n"A1","3"\n',
    "a CSV of one quoted column": b'"QUJD"\n"QUJD"\n',
    "a JSON string that is not base64": b'"QUJD-"',
    "a JSON string of the wrong length": b'"QUJDQ"',
    "a JSON list": b'[{"Content": "QUJD"}]',
    "a JSON export": b'{"Items": [{"Content": "QUJD"}], "TotalResults": 1}',
    "a JSON export whose Content is text": b'{"FileName": "a", "Content": "Hello, world"}',
    "lines of JSON": b'{"Content": "QUJD"}\n{"Content": "QUJD"}\n',
    "a JSON list of numbers": b'{"FileContent": [1, 2, 256], "Data": 5}',
    "floats": b'{"FileContent": [1.5]}',
    "a hole in the numbers": b'{"FileContent": [1,,2]}',
    "text": b"hello world",
    "text of base64's letters": b"hello\nworld\nagain",
    "padding in the middle": b"QQ==QUJD",
    "padding that is wrong": b"Q===",
    "more after the padding": b"QQ==,",
    "spaces inside": b"QUJD QUJD",
    "bits that no encoder leaves": b"QR==",
    "a zip": XLSX,
    "a PDF": b"%PDF-1.7\n",
    "a BOM alone": b"\xef\xbb\xbf",
    "white space alone": b" \n",
    "deep JSON": b'{"a":' + b"[" * 100_000,
    "some XML": b"<?xml version='1.0'?><Orders><Order/></Orders>",
    "a JSON document with a message": b'{"Message": "hi", "Customer": "Jane"}',
}


@pytest.mark.parametrize("wrapping", Wrapping)
@pytest.mark.parametrize("what", RAW)
def test_what_is_no_wrapping_stays_as_it_came(what, wrapping):
    out, decoder = run(RAW[what], wrapping)
    assert (out, decoder.form, decoder.proof()) == (RAW[what], "none", ())


def test_an_empty_body_is_an_empty_file():
    assert run(b"")[0] == b""


def test_an_empty_content_is_an_empty_file():
    assert run(b'{"FileName": "a.csv", "Content": ""}')[0] == b""
    assert run(b'{"FileContent": []}', CR)[0] == b""
    assert run(b'""')[0] == b""


def test_base64_is_left_alone_where_the_vendor_does_not_use_it():
    assert run(b"QUJD", CR)[0] == b"QUJD"
    assert run(b'"QUJD"', CR)[0] == b'"QUJD"'
    assert run(envelope(b"x"), NONE)[0] == envelope(b"x")


def test_a_text_that_is_base64_but_for_its_length_is_a_text_only_when_it_is_whole():
    text = b"A" * 79
    assert run(text, whole=True)[0] == text
    with pytest.raises(DecodeError):
        run(text, whole=False)


@pytest.mark.parametrize(
    "tail", [b"!", b" x", b"\n>seq2\n", b"=A"]
)  # more than a megabyte of one sequence is all letters of base64's alphabet
def test_a_text_that_stops_looking_like_base64_says_so_late(tail):
    body = b"ACGT" * 300_000 + tail
    with pytest.raises(DecodeError) as error:
        run(body)
    assert error.value.late
    assert run(body, NONE)[0] == body


def test_a_long_text_of_an_odd_length_is_late_when_whole_and_cut_when_not():
    body = b"ACGT" * 300_000 + b"A"
    for whole in (True, False):
        with pytest.raises(DecodeError) as error:
            run(body, whole=whole)
        assert error.value.late is whole


@pytest.mark.parametrize("tail", [b'"', b'"}', b'", "FileName": "x.csv"}'])
def test_a_long_wrapping_that_breaks_is_late(tail):
    for start, wrapping in ((b'"', SC), (b'{"Content":"', SC), (b'{"Data":"', CR)):
        with pytest.raises(DecodeError) as error:
            run(start + b"ACGT" * 300_000 + b"-" + tail, wrapping)
        assert error.value.late


def test_an_envelope_with_a_library_after_its_content_is_none():
    body = b'{"Content":"QUJD","Rows":["' + b"x" * 3_000_000 + b'"]}'
    with pytest.raises(DecodeError) as error:
        run(body)
    assert error.value.late


ERRORS = {
    "HTML": b"<!DOCTYPE html><html><body>Sorry</body></html>",
    "HTML after a BOM": b"\xef\xbb\xbf\r\n  <html>",
    "HTML in capitals": b"<HTML><BODY>",
    "XHTML": b'<?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE html PUBLIC "-//W3C//DTD">',
    "a storage's error": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code>'
    b"<Message>Request has expired</Message></Error>",
    "Sellercloud's throttle": b'{ "Error": "Too many requests.", "RateLimitResetTime": "2022-01-14T09:38:49.9856571Z" }',
    "Sellercloud's message": b'{"Message": "An error has occurred."}',
    "Crayon's error": b'{"ErrorCode": "500 InternalServerError", "Message": "Ops. Something broke", '
    b'"Parameters": {}, "ObjectErrors": []}',
    "Crayon's error in camelCase": b'\xef\xbb\xbf{"errorCode": "404", "message": "cannot be found"}',
    "API2Convert's error": b'{"code":8,"message":"The JSON body is empty","errors":{}}',
    "Spaaza's error": b'{"result":{"code":2,"status":"error"},"error":{"code":5,"name":"x","description":"y"}}',
}


@pytest.mark.parametrize("wrapping", Wrapping)
@pytest.mark.parametrize("what", ERRORS)
def test_an_error_page_under_200_is_not_the_file(what, wrapping):
    for name in ("file.csv", "file.xlsx", None, *(["file.json"] if what[0] != "H" else [])):
        with pytest.raises(RefusedError) as error:
            run(ERRORS[what], wrapping, name=name, sizes=(7,))
        assert (error.value.status, error.value.body) == (200, ERRORS[what])


def test_a_large_html_page_is_refused_with_its_first_64_kib():
    with pytest.raises(RefusedError) as error:
        run(b"<html>" + b"x" * 3_000_000)
    assert len(error.value.body) == 65_536


@pytest.mark.parametrize(
    ("body", "name", "kind"),
    [
        (ERRORS["HTML"], "page.html", ""),
        (ERRORS["HTML"], "page.HTM", ""),
        (ERRORS["HTML"], "page", "text/html; charset=utf-8"),
        (b'<html xmlns:x="urn:schemas-microsoft-com:office:excel">', "report.xls", ""),
        (ERRORS["a storage's error"], "errors.xml", ""),
        (ERRORS["a storage's error"], None, "application/atom+xml"),
        (b'{"message": "hi", "name": "Jane"}', "document.json", ""),
    ],
)
def test_a_file_that_is_meant_to_look_like_that_is_kept(body, name, kind):
    for wrapping in Wrapping:
        assert run(body, wrapping, name=name, kind=kind)[0] == body


def test_an_envelope_with_nothing_in_it_is_refused():
    with pytest.raises(RefusedError):
        run(b'{"FileContent": null, "FileName": "a.xlsx"}', CR)


def test_the_name_of_an_envelope_is_known_at_the_latest_at_the_end():
    decoder = Decoder(SC, filename=None)
    decoder.feed(b'{"Content":"' + b"A" * decode._HEAD_BYTES)
    assert (decoder.form, decoder.named) == ("json-content", False)
    decoder.feed(b'","FileName":"\\u00e9t\xc3\xa9.csv"}')
    decoder.finish()
    assert (decoder.filename, decoder.named) == ("été.csv", True)


def test_a_name_that_comes_first_is_known_at_once():
    decoder = Decoder(SC, filename=None)
    decoder.feed('{"FileName":"été.csv","Content":"'.encode() + b"A" * decode._HEAD_BYTES)
    assert (decoder.filename, decoder.named) == ("été.csv", True)


@pytest.mark.parametrize(
    "body",
    [
        b"<!---->" * 500 + b"x",
        b"<!--" * 1000,
        b'{"a":0,' + b'"a":0,' * 170_000,
        b"{" + b'"' * 1_000_000,
        b'{"Content":"' + b"\\" * 1_000_000,
    ],
    ids=["comments", "comment in comment", "members", "quotes", "backslashes"],
)
def test_no_body_takes_long_to_tell_what_it_is(body):
    began = time.process_time()
    for wrapping in Wrapping:
        decoder = Decoder(wrapping, filename=None)
        with contextlib.suppress(DecodeError, RefusedError):
            decoder.feed(body)
            decoder.finish()
    assert time.process_time() - began < 5, "a stranger must not stop a worker with a megabyte"
