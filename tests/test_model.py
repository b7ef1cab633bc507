"""The nouns: identities and receipts survive being written and read, secrets stay out of sight."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model import Link, OutputId, Receipt, encode_id, parse_timestamp, timestamp

ANY_ID = st.text(st.characters(codec=None, categories=None), min_size=1, max_size=30)  # halves of characters as well

RECEIPT = Receipt(
    id=OutputId("acme-exports", "28142", "out/1"),
    vendor="sellercloud",
    filename="CustomExport.csv",
    key="archive/acme-exports/2026/03/26/28142/out%2F1/CustomExport.csv",
    bucket="exports",
    version_id=None,
    etag='"abc"',
    content_type="text/csv",
    size=1234,
    sha256="00" * 32,
    wrapping="base64",
    vendor_size=None,
    vendor_checksum={"algorithm": "md5", "value": "00" * 16, "matched": True},
    proof=("content-length", "base64-end"),
    completed_at=datetime(2026, 3, 26, 12, 55, 2, tzinfo=UTC),
    deadline=datetime(2026, 4, 4, 12, 53, 17, tzinfo=UTC),
    archived_at=datetime(2026, 3, 26, 12, 55, 40, tzinfo=UTC),
    downloads=1,
    job={"Id": 28142},
)


@given(ANY_ID)
def test_an_encoded_id_is_one_plain_path_segment(part: str) -> None:
    encoded = encode_id(part)
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", encoded)
    assert encoded.strip(".")


@given(ANY_ID, ANY_ID)
def test_different_ids_are_encoded_differently(one: str, other: str) -> None:
    assert (encode_id(one) == encode_id(other)) == (one == other)


@given(ANY_ID, ANY_ID)
def test_an_output_id_survives_being_written_and_read(job_id: str, output_id: str) -> None:
    written = OutputId("acme-exports", job_id, output_id)
    assert OutputId.parse(str(written)) == written


def test_an_output_id_is_written_as_the_contract_shows_it() -> None:
    assert str(OutputId("acme", "a/b", "..")) == "acme/a%2Fb/%2E%2E"


@pytest.mark.parametrize("text", ["", "acme", "acme/1", "acme//1", "acme/1/", "acme/1/2/3", "/1/2"])
def test_what_has_not_three_parts_is_no_output_id(text: str) -> None:
    with pytest.raises(ValueError, match="expected SOURCE/JOB_ID/OUTPUT_ID"):
        OutputId.parse(text)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_timestamp_survives_to_the_second_in_any_year(at: datetime) -> None:
    assert parse_timestamp(timestamp(at)) == at.replace(microsecond=0)


def test_a_timestamp_is_written_in_utc() -> None:
    assert timestamp(datetime(2026, 3, 26, 14, 55, 2, 999, timezone(timedelta(hours=2)))) == "2026-03-26T12:55:02Z"


def test_a_receipt_survives_being_written_and_read_as_json() -> None:
    assert Receipt.from_json(json.loads(json.dumps(RECEIPT.to_json()))) == RECEIPT


def test_a_receipt_has_the_fields_of_the_contract_in_its_order() -> None:
    assert (
        list(RECEIPT.to_json())
        == (
            "schema source vendor job_id output_id filename key bucket version_id etag content_type size sha256 wrapping"
            " vendor_size vendor_checksum proof completed_at deadline archived_at downloads job"
        ).split()
    )


@pytest.mark.parametrize("key", RECEIPT.to_json())
def test_a_receipt_that_lacks_a_field_is_none(key: str) -> None:
    document = RECEIPT.to_json()
    del document[key]
    with pytest.raises(ValueError, match="not a receipt"):
        Receipt.from_json(document)


@pytest.mark.parametrize(
    "document", [None, [], "text", 3, {"schema": 2}, {**RECEIPT.to_json(), "size": "big"}, {**RECEIPT.to_json(), "deadline": 5}]
)
def test_what_is_no_receipt_of_this_version_is_refused_as_such(document: Any) -> None:
    with pytest.raises(ValueError, match=r"receipt|invalid literal"):
        Receipt.from_json(document)


def test_a_link_is_a_secret_and_its_repr_shows_neither_url_nor_headers() -> None:
    link = Link(url="https://files.example.com/f?signature=hunter2", headers={"Authorization": "Bearer hunter2"})
    assert "hunter2" not in repr(link)
    assert "example.com" not in str(link)


@pytest.mark.parametrize("noun", [RECEIPT, RECEIPT.id, Link(url="https://example.com")])
def test_the_nouns_are_frozen(noun: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(noun, dataclasses.fields(noun)[0].name, "other")
