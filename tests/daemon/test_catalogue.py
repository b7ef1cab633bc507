"""docs/catalogue.md: its queries read what lastcall wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import pytest

from worker import proving
from worker.audit import audit
from worker.collect import collect
from worker.demo.server import Content
from worker.discover import discover

PAGE = Path("docs/catalogue.md").read_text(encoding="utf-8")
SQL = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
LAST_MONTH = "(date_trunc('month', current_date) - INTERVAL 1 MONTH + INTERVAL {} HOUR)"


def query(beginning: str) -> str:
    (found,) = (sql for sql in SQL if sql.startswith(beginning))
    return found


@pytest.fixture
def copied(world, tmp_path, monkeypatch):
    """Give what archives and audits a world, copies receipts and the record of audits into folders, and stands there."""

    def copy() -> None:
        daemon = world.daemon()
        for source in daemon.sources:
            discover(daemon, source, by_hand=True)
        while collect(daemon):
            pass
        for _ in range(3):
            proving.record_audit(daemon, {"sellercloud": audit(daemon, "sellercloud")}, proving.ALL, by="hand")
        for key, body in world.objects().items():
            for prefix, folder in (("archive/_receipts/", "receipts/"), ("archive/_state/audit/", "audit/")):
                if key.startswith(prefix):
                    path = tmp_path / "copy" / key.replace(prefix, folder)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(body)
        monkeypatch.chdir(tmp_path / "copy")

    return copy


def test_the_catalogue_answers_in_sql(world, fill, copied):
    fill(world)
    copied()
    receipts = world.receipts()
    moved = 0
    with duckdb.connect() as database:
        for path in Path("receipts/spaaza").rglob("*.json"):  # as if they had been archived last month
            receipt = json.loads(path.read_text())
            (at,) = database.execute(f"SELECT strftime({LAST_MONTH.format(moved)}, '%Y-%m-%dT%H:%M:%SZ')").fetchone()
            path.write_text(json.dumps({**receipt, "archived_at": at}) + "\n")
            moved += 1
        database.execute(query("CREATE OR REPLACE VIEW"))
        columns = [row[0] for row in database.execute("DESCRIBE receipts").fetchall()]
        assert columns == list(next(iter(receipts.values())))
        assert database.execute(query("SELECT vendor, count(*)")).fetchall() == [("spaaza", 3, 15_000)]
        totals = database.execute("SELECT vendor, count(*), sum(size) FROM receipts GROUP BY vendor ORDER BY vendor").fetchall()
        for vendor, files, size in totals:
            theirs = [receipt["size"] for receipt in receipts.values() if receipt["vendor"] == vendor]
            assert (files, size) == (len(theirs), sum(theirs))
        assert len(totals) == 4
        assert len(database.execute(query("SELECT source, job_id, filename, deadline")).fetchall()) == 10
        unproven = database.execute(query("SELECT source, count(*) AS files FROM receipts WHERE len(proof) = 0")).fetchall()
        assert sum(files for _, files in unproven) == sum(not receipt["proof"] for receipt in receipts.values())
        ((_, times, outputs),) = database.execute(query("SELECT sha256, count(*)")).fetchall()  # the empty files
        assert times == len(outputs) == sum(receipt["size"] == 0 for receipt in receipts.values())
        jobs = database.execute(query("SELECT job_id, job->>")).fetchall()
        assert len(jobs) == 3, jobs
        assert all(name for _, name in jobs), jobs
        # Receipts are read whole: the vendor's document as well, whatever it looks like.
        documents = dict(database.execute("SELECT source || '/' || job_id || '/' || output_id, job FROM receipts").fetchall())
        assert {name: json.loads(job) for name, job in documents.items()} == {
            name: receipt["job"] for name, receipt in receipts.items()
        }


def test_the_record_of_audits_is_checked_in_sql(world, copied):
    world.only("sellercloud")
    copied()
    with duckdb.connect() as database:
        check = query("SELECT number FROM")
        assert database.execute(check).fetchall() == []
        path = Path("audit/00000002.json")
        path.write_text(path.read_text().replace('"ok": true', '"ok": false', 1))
        assert database.execute(check).fetchall() == [(3,)]
        path.unlink()
        assert (3,) in database.execute(check).fetchall()


def test_a_receipt_is_one_line_and_athenas_table_has_its_columns(world, copied):
    world.only("sellercloud")
    world.sellercloud.add_job(Content("a", 1))
    copied()
    bodies = [body for key, body in world.objects().items() if key.startswith("archive/_receipts/")]
    assert all(body.count(b"\n") == 1 and body.endswith(b"}\n") for body in bodies)
    (table,) = re.findall(r"CREATE EXTERNAL TABLE receipts \((.*?)\)\nPARTITIONED BY \((\w+)", PAGE, re.DOTALL)
    flat = re.sub(r"<.*?>", "", table[0])
    assert {line.split()[0].strip("`") for line in flat.split(",")} | {table[1]} == set(json.loads(bodies[0]))
