"""An allow-list of 50,000 posts of 17,000 authors: exactly those are kept, and little else is even decoded."""

import random
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.dids.entries import as_entries
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.blocks import decode_blocks
from backfill_dagster.records.conversion import PackFiles, convert_pack, records_key
from backfill_dagster.records.filter_lists import StoredFilter, list_key, store_list
from backfill_dagster.records.list_entries import judge_entries
from backfill_dagster.records.outcomes import FilterReason
from backfill_dagster.records.tables import POST
from backfill_dagster.records.windows import GRANULARITIES
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.records.batches import CREATED, accounts, cbor, cid_of, settings

AUTHORS, POSTS_EACH, LISTED, PACKS = 17_000, 6, 50_000, 4
HOST = "pds.example.com"


def store_packs(storage: StudyStorage) -> tuple[list[PackFiles], list[str]]:
    """Store packs of authors with a few posts each; returns them and the URIs of all posts."""
    block = cbor({"$type": POST, "text": "one of many", "createdAt": CREATED})
    dids = [f"did:plc:{number:024}" for number in range(AUTHORS)]
    # The packs are of no order, as those of a crawl.
    random.Random(1).shuffle(dids)
    packs, uris = [], []
    for number in range(PACKS):
        own = sorted(dids[number::PACKS])
        rows = pl.DataFrame({"did": own}).join(
            pl.DataFrame({"rkey": [f"post{each}" for each in range(POSTS_EACH)]}), how="cross"
        )
        uris += rows.select(pl.format("at://{}/{}/{}", "did", pl.lit(POST), "rkey")).to_series().to_list()
        blocks = rows.select(
            "did",
            pl.lit(POST).alias("collection"),
            "rkey",
            pl.lit(cid_of(block)).alias("cid"),
            pl.lit(block).alias("block"),
        )
        name = f"{number:020x}"
        stored = storage.write(f"repos/pds={HOST}/{name}.blocks-0.parquet", blocks)
        attempts = accounts(*own).with_columns(outcome=pl.lit("complete"), purged=pl.lit(0, pl.Int64))
        key = storage.write(f"repos/pds={HOST}/{name}.parquet", attempts).key
        packs.append(PackFiles(HOST, name, key, ((stored.key, stored.sha256),)))
    return packs, uris


def test_those_on_the_list_are_kept_and_no_others_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = StudyStorage(tmp_path)
    packs, uris = store_packs(storage)
    listed = random.Random(2).sample(uris, LISTED)
    # And some of which nothing is known.
    entries = as_entries(pl.Series([*listed, *(uri.replace("000", "999", 1) for uri in listed[:100])]))
    key = list_key(POST, "uris")
    stored = store_list(storage, key, [judge_entries(entries, POST, "uris")], Tombstones())
    assert (stored.given, stored.kept) == (LISTED + 100, LISTED + 100)

    decoded = 0

    def count(blocks: list[bytes], may_link: list[bool]) -> object:
        nonlocal decoded
        decoded += len(blocks)
        return decode_blocks(blocks, may_link)

    monkeypatch.setattr("backfill_dagster.records.runs.decode_blocks", count)
    filters = {POST: StoredFilter(uris=stored)}
    reports = [
        convert_pack(tmp_path, pack, settings(), filters, GRANULARITIES["monthly"], "fingerprint")
        for pack in packs
    ]
    kept = pl.concat(storage.read(records_key(HOST, "posts", pack.pack, 0)).select("uri") for pack in packs)
    assert set(kept["uri"]) == set(listed)
    assert kept.height == decoded == LISTED
    left_out = {
        reason: sum(number for report in reports for *_, why, number in report.counts if why == reason)
        for reason in (None, FilterReason.NOT_IN_URIS)
    }
    assert left_out == {None: LISTED, FilterReason.NOT_IN_URIS: len(uris) - LISTED}
