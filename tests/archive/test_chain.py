"""The record of audits: two writers never fork it, and whatever is done to it shows, save that its end was removed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from worker.archive import Chain, breaks

PREFIX = "archive/_state/audit/"
NOW = datetime(2026, 3, 26, tzinfo=UTC)


@pytest.fixture
def chain(world):
    archive = world.archive()
    for _ in range(5):
        archive.record_proof({"ok": True}, NOW)
    return archive.proofs


def put(world, number, body):
    world.client.put_object(Bucket=world.settings.bucket, Key=f"{PREFIX}{number:08d}.json", Body=body)


def get(world, number):
    return world.client.get_object(Bucket=world.settings.bucket, Key=f"{PREFIX}{number:08d}.json")["Body"].read()


def delete(world, number):
    world.client.delete_object(Bucket=world.settings.bucket, Key=f"{PREFIX}{number:08d}.json")


def test_writers_at_the_same_time_make_one_unbroken_record(world):
    archives = [world.archive() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for archive in archives:
            pool.submit(lambda archive=archive: [archive.record_proof({"ok": True}, NOW) for _ in range(4)])
    entries = archives[0].proofs.entries()
    assert [entry.number for entry in entries] == list(range(1, 17))
    assert breaks(entries) == []
    assert [entry.number for entry in archives[0].proofs.newest()] == list(range(16, 0, -1))


def test_a_record_whose_answer_was_lost_is_written_once(world):
    archive = world.archive()

    def forgetful(key: str, body: bytes) -> bool:
        archive.proofs._create(key, body)
        return False

    chain = Chain(archive.proofs._bucket, PREFIX, forgetful)
    assert [chain.append({"ok": True}).number for _ in range(3)] == [1, 2, 3]
    assert breaks(chain.entries()) == []


def test_a_changed_record_is_found(world, chain):
    put(world, 3, get(world, 3).replace(b"true", b"false"))
    assert breaks(chain.entries()) == [(3, "it is not what record 4 was written after, so it was changed or replaced")]


def test_a_removed_record_is_found(world, chain):
    delete(world, 1)
    delete(world, 3)
    assert breaks(chain.entries()) == [(1, "it is missing"), (3, "it is missing")]


def test_records_that_changed_their_places_are_found(world, chain):
    second, third = get(world, 2), get(world, 3)
    put(world, 2, third)
    put(world, 3, second)
    assert [number for number, _ in breaks(chain.entries())] == [2, 3, 3]


def test_a_record_that_is_slipped_in_and_renumbered_is_found(world, chain):
    document = json.loads(get(world, 4))
    put(world, 4, json.dumps({**document, "number": 4, "ok": False}).encode())
    assert [number for number, _ in breaks(chain.entries())] == [4]


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff"])
def test_what_is_no_record_is_found(world, chain, body):
    put(world, 2, body)
    assert (2, "it cannot be read, so it was changed") in breaks(chain.entries())


def test_the_record_goes_on_after_a_break_and_what_follows_is_sound(world, chain):
    delete(world, 2)
    assert world.archive().record_proof({"ok": True}, NOW).number == 6
    assert breaks(chain.entries()) == [(2, "it is missing")]


def test_a_removed_end_shows_no_break(world, chain):
    """What the record cannot show: whoever wrote the last one must remember it elsewhere."""
    delete(world, 5)
    assert breaks(chain.entries()) == []
