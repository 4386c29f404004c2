"""The study that crash tests run: small, and such that undisturbed runs pass every place that writes.

`collect` is the second run of a study whose first had other settings: half of the accounts, other types, an earlier
period. So it fetches what is new, converts again what is stored, adds and removes months and tables. What a run
killed earlier can have left lies about: dead scratch, blocks files that no pack names, an unfinished directory. Two
downloads break off once, and one account has no key, so that it fails for good. Each of the two runs has a filter with
a list, and not the same, and derived tables, of which the second has others than the first. Accounts are looked up in a
copy of the directory's export, as far as that goes. What the second has built is frozen.
`purge` takes an account and a record out of what `collect` made.
`parts` collects posts anew in the ways that ask for less than repositories: from listings, and then single ones.
"""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from backfill_dagster import pipeline, study_files
from backfill_dagster.config.derived import Derived
from backfill_dagster.config.filters import RecordFilter
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.sources import InlineSource
from backfill_dagster.config.study import Study
from backfill_dagster.derived.feed_use import SHOWN_FOLDER, SHOWN_SCHEMA
from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA
from backfill_dagster.frozen.places import frozen_folder, unfinished_key
from backfill_dagster.repos.packs import blocks_file_name, pack_keys
from backfill_dagster.sandbox.faults import ResetMidBody, Truncate
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.truth import AccountTruth
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster_tests.crash.command import STUDY
from backfill_dagster_tests.crash.handed_over import CONSUMERS, leave_staged, take_over
from backfill_dagster_tests.crash.watched import LOG_KEY, leave_dead_runs
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=11, accounts=36, hosts=2, records=6)
# One worker, so that the same failpoints are passed in every run.
PROCESSING = {"requests_per_second": 500, "workers": 1, "batch_size": 6}
PERIOD = {"start_date": "2024-10-01", "end_date": "2024-11-30", "outside": "drop"}
EARLIER_PERIOD = {"start_date": "2024-09-01", "end_date": "2024-10-31", "outside": "drop"}
TYPES = ["app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.graph.follow"]
EARLIER_TYPES = ["app.bsky.feed.post", "app.bsky.feed.repost"]


def crash_study(folder: Path) -> Study:
    """Write the study's YAML into a folder, for data beside it."""
    dids = list(sandbox(SETTINGS).dids)
    filters = {"app.bsky.graph.follow": {"subjects": {"type": "inline", "dids": dids}}}
    derived = {
        "posts_used_in_feeds": {"feeds": _feeds(folder)},
        "study_user_activity": True,
        "engagement": True,
    }
    return _study(
        folder,
        PERIOD,
        TYPES,
        filters=filters,
        network={"plc_export": {"use": "always"}},
        discovery={},
        derived=derived,
        monitoring={"log_file": str(folder / "data" / STUDY / LOG_KEY)},
        integrations={"consumers": CONSUMERS},
        snapshot="paper",
    )


def earlier_run(folder: Path) -> Path:
    """Do the first run of the study in a folder, and leave what killed runs leave; returns its data."""
    dids = sandbox(SETTINGS).dids
    records = [record for did in dids for record in sandbox(SETTINGS).truth.records(did)]
    reposts = [record.uri for record in records if record.table == "reposts"]
    study = _study(
        folder,
        EARLIER_PERIOD,
        EARLIER_TYPES,
        source={"type": "inline", "dids": dids[: len(dids) // 2]},
        filters={"app.bsky.feed.repost": {"uris": {"type": "inline", "uris": reposts[::2]}}},
        derived={"study_user_activity": True, "threads": True},
    )
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    pipeline.build_tables(study)
    take_over(folder, study, to_purge(sandbox(SETTINGS))[0][0], "follow")
    _leave_what_is_left(study)
    leave_staged(StudyStorage(study.root))
    return study.root.parent


def to_purge(network: SandboxNetwork) -> tuple[list[str], list[str]]:
    """Return the DIDs and URIs that are purged: an account, and a record of another one."""
    uris = [
        record.uri
        for account in network.truth.accounts()
        if account.is_complete
        for record in network.truth.records(account.did)
        if record.table == "posts" and record.created_at is not None and record.created_at.month == 10
    ]
    return [uris[0].split("/")[2]], [uris[-1]]


def in_parts(study: Study) -> list[Study]:
    """Return the study as one that lists posts, and as one that asks for some of them by name.

    The first proof of one account breaks off, once.
    """
    network = sandbox(SETTINGS)
    posts = [
        record.uri for did in network.dids for record in network.truth.records(did) if record.table == "posts"
    ]
    # One that there is not, so that something is told beside the blocks.
    absent = f"{posts[0].rpartition('/')[0]}/3kaaaaaaaaa22"
    network.faults.set_account(
        posts[0].split("/")[2], Truncate(-40), times=1, paths=["/xrpc/com.atproto.sync.getRecord"]
    )
    plain: dict[str, Any] = {"derived": Derived(), "discovery": None, "record_types": ("app.bsky.feed.post",)}
    listed = InlineSource(type="inline", uris=(*posts[::3], absent))
    return [
        study.model_copy(update={**plain, "fetch": "list_records", "filters": {}}),
        study.model_copy(
            update={**plain, "fetch": "records", "filters": {"app.bsky.feed.post": RecordFilter(uris=listed)}}
        ),
    ]


def set_faults(network: SandboxNetwork) -> None:
    """Give two accounts that the second run fetches a body that breaks off, once, in either way."""
    first, second = [account.did for account in _new_accounts(network)[:2]]
    network.faults.set_account(first, Truncate(-40), times=1)
    network.faults.set_account(second, ResetMidBody(100), times=1)


def _study(folder: Path, period: dict[str, str], types: list[str], **parts: Any) -> Study:
    return sandbox_study(
        folder,
        STUDY,
        SETTINGS,
        processing=PROCESSING,
        time_range=period,
        record_types=types,
        **parts,
    )


def _feeds(folder: Path) -> dict[str, str]:
    """Write a table of feeds that showed every post on one day, and return it as a source."""
    network = sandbox(SETTINGS)
    posts = [
        record for did in network.dids for record in network.truth.records(did) if record.table == "posts"
    ]
    path = folder / "feeds.csv"
    path.write_text("".join(["date,uri\n", *(f"2024-10-20,{post.uri}\n" for post in posts)]))
    return {"type": "csv", "path": str(path)}


def leave_scratch(root: Path) -> None:
    """Leave the scratch of a run that was killed in a study's folder."""
    scratch = root / ".scratch" / "tmp_of_a_dead_run"
    scratch.mkdir(parents=True)
    (scratch / "1.car").write_bytes(b"half a repository")


def _leave_what_is_left(study: Study) -> None:
    storage = StudyStorage(study.root)
    leave_scratch(study.root)
    host, pack = next(
        (host, pack)
        for host, pack, _ in pack_keys(storage)
        if storage.exists(f"repos/{partition_folder(host)}/{blocks_file_name(pack, 0)}")
    )
    blocks = storage.path(f"repos/{partition_folder(host)}/{blocks_file_name(pack, 0)}")
    shutil.copy(blocks, blocks.with_name(blocks_file_name("f" * 20, 0)))
    storage.write(f"{study_files.UNFINISHED_DIRECTORY_FOLDER}/part-00000.parquet", _unfinished_directory())
    part = storage.path("tables/posts/month=2024-10/part-00000.parquet")
    shutil.copy(part, part.with_name("part-00001.parquet"))
    part = storage.path("derived/study_user_activity/month=2024-10/part-00000.parquet")
    shutil.copy(part, part.with_name("part-00001.parquet"))
    shown = pl.DataFrame(schema=SHOWN_SCHEMA)
    storage.write(f"{SHOWN_FOLDER}/part-00009.parquet", shown)
    # A build that was begun to be frozen.
    storage.write(f"{frozen_folder('begun')}/tables/posts/part-00000.parquet", shown)
    storage.write_bytes(unfinished_key("begun"), b"")
    leave_dead_runs(study.root)


def _unfinished_directory() -> pl.DataFrame:
    """Return the row of an account of the second run, by a document without a key that can be used."""
    account = _new_accounts(sandbox(SETTINGS))[2]
    assert account.pds is not None
    row = {
        "did": account.did,
        "handle": account.handle,
        "pds": account.pds,
        "pds_host": account.pds.partition("://")[2],
        "state": "resolved",
        "resolved_at": datetime.now(UTC),
    }
    return pl.DataFrame([row], schema=DIRECTORY_SCHEMA)


def _new_accounts(network: SandboxNetwork) -> list[AccountTruth]:
    """Return the accounts that the second run is the first to fetch whole."""
    truth = network.truth.accounts()
    return [account for account in truth[len(truth) // 2 :] if account.is_complete]
