"""One export against many pages: `getRepo`, proven, against the way of the system that this one replaces.

    python -m backfill_dagster_tests.benchmarks --only list_records

That system asked `com.atproto.repo.listRecords` for each collection, 100 records a page and newest first, took each
record apart into a row, and made a table of the rows. It proved nothing, but could stop at the first page that is older
than the period of its study, which an export cannot. Both ways go over HTTP to a server that sends what lies ready.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias
from unittest import mock

import cbrrr
import httpx
import polars as pl

from backfill_dagster.config.network import Network
from backfill_dagster.config.study import RECORD_TYPES
from backfill_dagster.connections import rare_collections
from backfill_dagster.network.http import HttpClient
from backfill_dagster.network.limits import HostGates
from backfill_dagster.network.patience import Patience
from backfill_dagster.network.turns import Turns
from backfill_dagster.records.tables import USUAL_TABLES
from backfill_dagster.repos.cid import cid_text
from backfill_dagster.repos.client import DownloadBounds, get_repo
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.sandbox import ordinary_records
from backfill_dagster.sandbox.repo import record_block
from backfill_dagster.sandbox.written import microseconds
from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo, large_account, large_repo
from backfill_dagster_tests.benchmarks.measure import (
    Goal,
    Measured,
    Options,
    Report,
    Subject,
    interleave,
    ratio,
    run_fresh,
    without_collector,
)
from backfill_dagster_tests.benchmarks.prepared_server import prepared_server
from backfill_dagster_tests.benchmarks.stages import HOST, Stages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from backfill_dagster_tests.benchmarks.measure import Cell

RECORDS = 50_000
LEAST_CPU_RATIO = 15.0
LEAST_REQUEST_RATIO = 40.0

_PAGE = 100
_GET_REPO = "/xrpc/com.atproto.sync.getRepo"
_LIST_RECORDS = "/xrpc/com.atproto.repo.listRecords"
# The stages behind the download take the repository for one that was fetched then.
_NEWEST = datetime(2025, 1, 1, tzinfo=UTC)
_LAST = microseconds(_NEWEST)
# As many records in each month, up to the newest.
_EVEN_MONTHS: dict[str, Any] = {
    "_LAST": _LAST,
    "_IN_WINDOW": (ordinary_records.WINDOW_END - ordinary_records.WINDOW_START)
    / (_LAST - ordinary_records._FIRST),
}

_CROWD = 50

Page: TypeAlias = dict[str, Any]
_Rows: TypeAlias = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Period:
    """What a study wants of an account: all of it if it has no ends."""

    name: str
    start: datetime | None = None
    end: datetime | None = None

    def holds(self, created: datetime) -> bool:
        """Tell whether a record of this time is wanted; both ends are inside."""
        return self.start is None or self.end is None or self.start <= created <= self.end

    def time_range(self) -> dict[str, str]:
        """Return the same as a study's YAML has it."""
        if self.start is None or self.end is None:
            return {"outside": "normalize"}
        return {
            "start_date": f"{self.start:%Y-%m-%d-%H:%M:%S}",
            "end_date": f"{self.end:%Y-%m-%d-%H:%M:%S}",
            "outside": "drop",
        }


_MIDDLE = _NEWEST - timedelta(days=441)
WHOLE = Period("the whole history")
PERIODS = (
    WHOLE,
    Period("the last month", _NEWEST - timedelta(days=30), _NEWEST),
    Period("the last year", _NEWEST - timedelta(days=365), _NEWEST),
    Period("a month in the middle", _MIDDLE - timedelta(days=30), _MIDDLE),
)


@dataclass(slots=True)
class Traffic:
    """What a client asked for in one round."""

    requests: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True)
class _Compared:
    """Both ways to the same rows."""

    name: str
    ours: Measured
    pages: Measured
    ours_traffic: Traffic
    pages_traffic: Traffic


def run(options: Options) -> list[Report]:
    """Compare for the whole history and for periods of it."""
    folder = options.folder / "list_records"
    compared = run_fresh(compare, folder, options.rounds).result
    whole = compared[0]
    rows: list[list[Cell]] = [
        [
            one.name,
            1000 * one.pages.median,
            1000 * one.ours.median,
            ratio(one.pages, one.ours),
            one.pages_traffic.requests,
            one.ours_traffic.requests,
            one.pages_traffic.received / 1e6,
            one.ours_traffic.received / 1e6,
        ]
        for one in compared
    ]
    columns = (
        f"client CPU for {RECORDS:,} records",
        "listRecords ms",
        "getRepo ms",
        "ratio",
        "requests, listRecords",
        "getRepo",
        "MB, listRecords",
        "getRepo",
    )
    requests = whole.pages_traffic.requests / whole.ours_traffic.requests
    goals = [
        Goal("client CPU of listRecords / getRepo", LEAST_CPU_RATIO, True, ratio(whole.pages, whole.ours)),
        Goal("requests of listRecords / getRepo", LEAST_REQUEST_RATIO, True, requests),
    ]
    return [Report("listRecords against getRepo", columns, rows, goals, _break_even(compared))]


def _break_even(compared: Sequence[_Compared]) -> list[str]:
    """Say how little of an account's history a study must want for pages to cost less."""
    whole = compared[0]
    windows = statistics.median(one.ours.median for one in compared[1 : len(PERIODS)])
    share = windows / whole.pages.median
    traffic = whole.ours_traffic.received / whole.pages_traffic.received
    return [
        "Pages of a period come with early stop: from the newest record back to the period's start. A first cursor "
        "made up from the period's end would make those of any month cost what those of the last one do. Pages prove "
        "nothing, neither that they are whole nor whose they are.",
        f"Break-even in CPU: pages cost less where the records from the period's start to the present are fewer than "
        f"{share:.1%} of the account's ({share * RECORDS:,.0f} of {RECORDS:,}); in bytes, fewer than {traffic:.0%}; in "
        f"requests, at {len(RECORD_TYPES)} collections, never.",
    ]


def compare(folder: Path, rounds: int) -> list[_Compared]:
    """Time both ways for each period, in one process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with mock.patch.multiple(ordinary_records, **_EVEN_MONTHS):
        repo = large_repo(folder, RECORDS, in_window=False)
        pages = _render_pages(repo)
    with prepared_server({f"{_GET_REPO}?did={repo.did}": repo.car.read_bytes(), **pages}) as server:
        exports = [_Export(server.address, repo, folder / str(n), period) for n, period in enumerate(PERIODS)]
        listings = [
            _Listing(server.address, repo.did, folder / f"{n}-pages", period)
            for n, period in enumerate(PERIODS)
        ]
        subjects = [Subject("getRepo", without_collector(export.run)) for export in exports]
        subjects += [Subject("listRecords", listing.run) for listing in listings]
        crowd = _Listing(server.address, repo.did, folder / "crowd", WHOLE, list(pages))
        exports.append(exports[0])
        listings.append(crowd)
        subjects.append(Subject("listRecords in a crowd", crowd.run_in_a_crowd))
        measured = interleave(subjects, rounds)
    for export, listing in zip(exports, listings, strict=True):
        if export.rows() != listing.rows():
            raise RuntimeError(f"{export.period.name}: {export.rows()} are not {listing.rows()}")
    ours, paged = measured[: len(PERIODS)], measured[len(PERIODS) :]
    names = [*(period.name for period in PERIODS), f"{WHOLE.name}, {_CROWD} pages in flight"]
    return [
        _Compared(*compared)
        for compared in zip(
            names,
            [*ours, ours[0]],
            paged,
            [export.traffic for export in exports],
            [listing.traffic for listing in listings],
            strict=True,
        )
    ]


# --- our way ---


@dataclass(slots=True)
class _Export:
    """One export, proven, stored, and made into tables."""

    address: str
    repo: SignedRepo
    folder: Path
    period: Period
    traffic: Traffic = field(default_factory=Traffic)

    def run(self) -> None:
        """Do all of it anew."""
        self.folder.mkdir(exist_ok=True)
        car = self.folder / "download.car"
        with rare_collections():
            self.traffic = asyncio.run(self._fetch(car))
        repo = SignedRepo(self.repo.did, self.repo.key, car, self.repo.records)
        self._stages(repo, keep=False).all()

    def rows(self) -> Counter[str]:
        """Count the rows of each table."""
        stages = self._stages(self.repo, keep=True)
        root = stages.study.root
        return Counter(
            {
                table: pl.scan_parquet(files).select(pl.len()).collect().item()
                for table in USUAL_TABLES
                if (files := sorted((root / "tables" / table).rglob("*.parquet")))
            }
        )

    def _stages(self, repo: SignedRepo, *, keep: bool) -> Stages:
        return Stages.of(self.folder, [repo], keep=keep, time_range=self.period.time_range())

    async def _fetch(self, to: Path) -> Traffic:
        network = Network(connect_to={f"{HOST}:80": self.address})
        async with HttpClient.from_settings(network) as http:
            gates = HostGates(rate=1e9, burst=1e9, in_flight=4)
            turns = Turns(http, gates, None, rate=1e9, in_flight=4)
            answer = await get_repo(
                turns,
                gates.gate(HOST),
                f"http://{HOST}",
                self.repo.did,
                to,
                DownloadBounds(2**30, 600),
                Patience(),
            )
        if answer.outcome is not Outcome.COMPLETE:
            raise RuntimeError(str(answer))
        return Traffic(gates.gate(HOST).requests, answer.bytes_received)


# --- the replaced system's way ---


@dataclass(slots=True)
class _Listing:
    """Pages of each collection, made into rows and a file of each table."""

    address: str
    did: str
    folder: Path
    period: Period
    all_pages: Sequence[str] = ()
    traffic: Traffic = field(default_factory=Traffic)

    def run(self) -> None:
        """Do all of it anew."""
        self._begin()
        rows: _Rows = {}
        with httpx.Client(timeout=60) as client:
            for collection in RECORD_TYPES:
                for page in self._pages(client, collection):
                    self._add_rows(page, rows)
        self._write(rows)

    def run_in_a_crowd(self) -> None:
        """Do the same with 50 requests in flight, as if so many accounts were collected at once: each page costs more.

        Of the one account, each of the 50 goes through a part of its own of the pages.
        """
        self._begin()
        rows: _Rows = {}
        waiting = list(self.all_pages)

        async def ask_until_empty(client: httpx.AsyncClient) -> None:
            while waiting:
                page = self._note(await client.get(f"http://{self.address}{waiting.pop()}"))
                self._add_rows(page, rows)

        async def ask_all() -> None:
            async with httpx.AsyncClient(timeout=60) as client, asyncio.TaskGroup() as tasks:
                for _ in range(_CROWD):
                    tasks.create_task(ask_until_empty(client))

        asyncio.run(ask_all())
        self._write(rows)

    def _begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.traffic = Traffic()

    def _add_rows(self, page: Page, rows: _Rows) -> None:
        for record in page["records"]:
            table, row = _row(record)
            if self.period.holds(row["created_at"]):
                rows.setdefault(table, []).append(row)

    def _write(self, rows: _Rows) -> None:
        for table, made in rows.items():
            frame = pl.DataFrame(made, infer_schema_length=None)
            frame.write_parquet(self.folder / f"{table}.parquet", compression="zstd")

    def _note(self, response: httpx.Response) -> Page:
        response.raise_for_status()
        self.traffic.requests += 1
        self.traffic.received += len(response.content)
        page: Page = response.json()
        return page

    def rows(self) -> Counter[str]:
        """Count the rows of each table."""
        files = self.folder.glob("*.parquet")
        return Counter({file.stem: pl.scan_parquet(file).select(pl.len()).collect().item() for file in files})

    def _pages(self, client: httpx.Client, collection: str) -> Iterator[Page]:
        cursor: str | None = None
        while True:
            page = self._note(client.get(f"http://{self.address}{_page_path(self.did, collection, cursor)}"))
            yield page
            cursor = page.get("cursor")
            if cursor is None or self._is_older(page["records"][-1]):
                return

    def _is_older(self, record: dict[str, Any]) -> bool:
        created = datetime.fromisoformat(record["value"]["createdAt"])
        return self.period.start is not None and created < self.period.start


def _row(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Take a record of a page apart into a row of our tables, as far as a page tells; and name the table."""
    value = record["value"]
    did, collection, rkey = record["uri"].removeprefix("at://").split("/")
    row = {
        "did": did,
        "collection": collection,
        "rkey": rkey,
        "uri": record["uri"],
        "cid": record["cid"],
        "created_at_raw": value["createdAt"],
        "created_at": datetime.fromisoformat(value["createdAt"]),
        "record": json.dumps(value),
    }
    subject = value.get("subject")
    if isinstance(subject, dict):
        uri = subject["uri"]
        subject_did, subject_collection, _ = uri.removeprefix("at://").split("/")
        row |= {
            "subject_uri": uri,
            "subject_cid": subject["cid"],
            "subject_did": subject_did,
            "subject_collection": subject_collection,
        }
        return ("likes" if collection.endswith("like") else "reposts"), row
    if subject is not None:
        row["subject_did"] = subject
        return ("follows" if collection.endswith("follow") else "blocks"), row
    return ("replies" if "reply" in value else "posts"), row | _post_columns(value)


def _post_columns(value: dict[str, Any]) -> dict[str, Any]:
    embed, facets, reply = value.get("embed"), value.get("facets"), value.get("reply", {})
    media = _media(embed or {})
    features = [feature for facet in facets or () for feature in facet["features"]]
    quoted = (embed or {}).get("record", {})
    quoted = quoted.get("record", quoted)
    parent, root = reply.get("parent", {}), reply.get("root", {})
    return {
        "text": value["text"],
        "langs": value.get("langs"),
        "tags": value.get("tags"),
        "labels": [label["val"] for label in value.get("labels", {}).get("values", ())],
        "embed_type": embed["$type"] if embed else None,
        "embed": json.dumps(embed) if embed else None,
        "external_uri": (embed or {}).get("external", {}).get("uri"),
        "media_types": [blob["mimeType"] for blob, _ in media] if embed else None,
        "alt_texts": [alt for _, alt in media] if embed else None,
        "blob_cids": [blob["ref"]["$link"] for blob, _ in media] if embed else None,
        "facets": json.dumps(facets) if facets else None,
        "facet_links": [one["uri"] for one in features if "uri" in one] if facets else None,
        "facet_mentions": [one["did"] for one in features if "did" in one] if facets else None,
        "facet_tags": [one["tag"] for one in features if "tag" in one] if facets else None,
        "reply_parent_uri": parent.get("uri"),
        "reply_parent_cid": parent.get("cid"),
        "reply_root_uri": root.get("uri"),
        "reply_root_cid": root.get("cid"),
        "quoted_uri": quoted.get("uri"),
        "quoted_cid": quoted.get("cid"),
    }


def _media(embed: dict[str, Any]) -> list[tuple[dict[str, Any], str | None]]:
    embed = embed.get("media", embed)
    if "video" in embed:
        return [(embed["video"], embed.get("alt"))]
    return [(image["image"], image.get("alt")) for image in embed.get("images", ())]


# --- the pages ---


def _render_pages(repo: SignedRepo) -> Mapping[str, bytes]:
    """Render every page of the account's collections, newest key first, as the reference PDS does."""
    _, written = large_account(RECORDS, in_window=False)
    records: dict[str, list[tuple[str, Page]]] = {collection: [] for collection in RECORD_TYPES}
    for record in written:
        if record.collection in records:
            block = record_block(record)
            listed = {
                "uri": f"at://{repo.did}/{record.collection}/{record.rkey}",
                "cid": cid_text(bytes(block.cid)),
                "value": cbrrr.decode_dag_cbor(block.data, atjson_mode=True),
            }
            records[record.collection].append((record.rkey, listed))
    pages = {}
    for collection, found in records.items():
        found.sort(key=lambda item: item[0], reverse=True)
        cursor = None
        for first in range(0, max(len(found), 1), _PAGE):
            some = found[first : first + _PAGE]
            page: Page = {"records": [listed for _, listed in some]}
            path = _page_path(repo.did, collection, cursor)
            if first + _PAGE < len(found):
                page["cursor"] = cursor = some[-1][0]
            pages[path] = json.dumps(page, ensure_ascii=False, separators=(",", ":")).encode()
    return pages


def _page_path(did: str, collection: str, cursor: str | None) -> str:
    after = "" if cursor is None else f"&cursor={cursor}"
    return f"{_LIST_RECORDS}?repo={did}&collection={collection}&limit={_PAGE}{after}"
