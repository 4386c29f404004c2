"""Every kind of table that stands in a study's folder: where its files lie, what a row is, and its columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.attrition.steps import ATTRITION_COLUMNS, ATTRITION_KEY, ATTRITION_KEY_COLUMNS
from backfill_dagster.derivation import DERIVED, derived_names
from backfill_dagster.derived.engaged import (
    ENGAGED_ACCOUNTS,
    ENGAGED_ACCOUNTS_KEY,
    ENGAGED_POSTS,
    ENGAGED_POSTS_KEY,
)
from backfill_dagster.derived.feed_use import SHOWN_COLUMNS, SHOWN_FOLDER, PostsUsedInFeeds
from backfill_dagster.dids.collect import DID_COLUMNS, REJECT_COLUMNS
from backfill_dagster.directory.evidence import DOCUMENTS_FOLDER, EVIDENCE_COLUMNS
from backfill_dagster.directory.history import ANSWER_COLUMNS, STATE_SINCE
from backfill_dagster.directory.resolve import DIRECTORY_COLUMNS
from backfill_dagster.handoff.hand_over import LOOKED_AT_COLUMNS
from backfill_dagster.handoff.ledger import HANDED_OVER_COLUMNS
from backfill_dagster.handoff.places import HANDOFF_FOLDER
from backfill_dagster.legacy.tables import LEGACY_FOLDER, LEGACY_TABLES, REJECTS_FOLDER, legacy_columns
from backfill_dagster.legacy.tables import REJECT_COLUMNS as LEGACY_REJECT_COLUMNS
from backfill_dagster.manifest.accounts import SNAPSHOT_COLUMNS
from backfill_dagster.manifest.files import FILE_COLUMNS
from backfill_dagster.manifest.keys import FILES_KEY, PROBLEMS_KEY, SNAPSHOTS_KEY, VERDICTS_KEY
from backfill_dagster.metadata_stores.tables import (
    RUN_COLUMNS,
    RUN_METADATA_KEY,
    USER_COLUMNS,
    USER_METADATA_KEY,
)
from backfill_dagster.monitoring.audit_log import AUDIT_COLUMNS, AUDIT_LOG_KEY
from backfill_dagster.purge.tombstones import TOMBSTONE_COLUMNS, TOMBSTONES_KEY
from backfill_dagster.records.filter_lists import FILTERS_FOLDER, LIST_COLUMNS
from backfill_dagster.records.tables import COUNTS, REJECTS, TABLE_BY_NAME, TABLES
from backfill_dagster.records.window_index import INDEX_COLUMNS
from backfill_dagster.records.windows import GRANULARITIES, UNDATED, Granularity, granularity_of
from backfill_dagster.repos.blocks_file import BLOCK_COLUMNS
from backfill_dagster.repos.packs import PACK_COLUMNS
from backfill_dagster.sharing.rehydration import REHYDRATION_COLUMNS, REHYDRATION_KEY, is_rebuilt
from backfill_dagster.study_files import (
    ACCOUNTS_KEY,
    DIRECTORY_HISTORY_KEY,
    DIRECTORY_KEY,
    SOURCE_KEY,
    SOURCE_REJECTS_KEY,
    UNFINISHED_DIRECTORY_FOLDER,
    study_tables,
)
from backfill_dagster.survivorship import comparison, inventory
from backfill_dagster.survivorship.account_history import (
    ACCOUNT_HISTORY_COLUMNS,
    ACCOUNT_HISTORY_KEY_COLUMNS,
)
from backfill_dagster.survivorship.rates import RATE_COLUMNS
from backfill_dagster.survivorship.record_changes import RECORD_CHANGE_COLUMNS, RECORD_CHANGES_KEY
from backfill_dagster.survivorship.stored import (
    ACCOUNT_HISTORY_KEY,
    DELETION_RATES_KEY,
    RECORD_CHANGES_FOLDER,
)
from backfill_dagster.survivorship.stored import FOLDER as SURVIVORSHIP_FOLDER
from backfill_dagster.tables.accounts import account_columns
from backfill_dagster.tables.ledger import LEDGER_COLUMNS, LEDGER_FOLDER
from backfill_dagster.verification.verdicts import PROBLEM_COLUMNS, VERDICT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.columns import Column
    from backfill_dagster.config.study import Study


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of table: the globs of its files below the study's folder, and what a row of it stands for.

    `key` are the columns that tell a row from all others, of a file where the files are `apart`, else of all of them.
    What is `inner` is the pipeline's own, and may change with any version.
    """

    name: str
    files: tuple[str, ...]
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    apart: bool = False
    inner: bool = False


def study_resources(study: Study) -> list[Resource]:
    """Return the kinds of tables that a study has or, as with what is rejected or purged, can have."""
    return _resources(
        study_tables(study),
        derived_names(study),
        granularity_of(study.time_range),
        has_discovery=study.discovery is not None,
        is_rebuilt=is_rebuilt(study),
    )


def every_resource() -> list[Resource]:
    """Return the kinds of tables that any study can have; of time windows, those of months."""
    return _resources(TABLES, list(DERIVED), GRANULARITIES["monthly"], has_discovery=True, is_rebuilt=True)


def _resources(
    tables: Sequence[str],
    derived: Sequence[str],
    granularity: Granularity,
    *,
    has_discovery: bool,
    is_rebuilt: bool,
) -> list[Resource]:
    windows = f"{granularity.word}=*/*.parquet"
    return [
        *(_record_table(name, windows) for name in tables),
        Resource(
            "accounts",
            (ACCOUNTS_KEY,),
            "An account: its one final state, and what became of each of its records; "
            "records_fetched = records_kept + records_filtered + records_rejected.",
            account_columns(tables),
            ("did",),
        ),
        *(_derived_table(name, windows) for name in derived),
        *(_ENGAGED if has_discovery else ()),
        *([_REHYDRATION] if is_rebuilt else []),
        *_OF_ALL_STUDIES,
        *(_converted_table(name) for name in tables),
        *([_SHOWN] if PostsUsedInFeeds.name in derived else []),
    ]


def _record_table(name: str, windows: str) -> Resource:
    table = TABLE_BY_NAME[name]
    places = (f"tables/{name}/{windows}", f"undated/{name}/*.parquet")
    return Resource(name, places, table.description, table.columns, ("uri",))


def _derived_table(name: str, windows: str) -> Resource:
    made = DERIVED[name]
    return Resource(name, (f"derived/{name}/{windows}",), made.description, made.columns, made.key)


def _converted_table(name: str) -> Resource:
    return Resource(
        f"records_{name}",
        (f"records/pds=*/{name}/*.parquet",),
        f"A record as a pack was converted, from which `{name}` is built; also of accounts that are not shown.",
        TABLE_BY_NAME[name].columns,
        ("uri",),
        apart=True,
        inner=True,
    )


# A pack is named by twenty digits, the files beside it by these and more.
_PACKS = f"repos/pds=*/{'?' * 20}.parquet"
_ENGAGED = (
    Resource(
        "engaged_accounts",
        (ENGAGED_ACCOUNTS_KEY,),
        "An account that the study does not collect and that its accounts engaged with.",
        ENGAGED_ACCOUNTS,
        ("did",),
    ),
    Resource(
        "engaged_posts",
        (ENGAGED_POSTS_KEY,),
        "A post that the study's accounts engaged with.",
        ENGAGED_POSTS,
        ("uri",),
    ),
)
_OF_ALL_STUDIES = (
    Resource(
        "source_dids",
        (SOURCE_KEY,),
        "An account that the source lists, in the order of the source.",
        DID_COLUMNS,
        ("did",),
    ),
    Resource(
        "source_rejects",
        (SOURCE_REJECTS_KEY,),
        "An entry of the source that is no account to collect.",
        REJECT_COLUMNS,
        ("position",),
    ),
    Resource(
        "directory",
        (DIRECTORY_KEY,),
        "What looking up an account came to, also of accounts that have left the source.",
        (*DIRECTORY_COLUMNS, STATE_SINCE),
        ("did",),
    ),
    Resource(
        "documents",
        (f"{DOCUMENTS_FOLDER}/*.parquet",),
        "What the directory has said of an account's keys, byte for byte; each of its documents once.",
        EVIDENCE_COLUMNS,
        ("did", "kind", "sha256"),
    ),
    Resource(
        "directory_history",
        (DIRECTORY_HISTORY_KEY,),
        "An answer that looking up an account gave, and that differs from the one before.",
        ANSWER_COLUMNS,
        ("did", "first_seen"),
    ),
    Resource(
        "record_changes",
        (f"{RECORD_CHANGES_FOLDER}/*.parquet",),
        "A version of a record that appeared, changed or went between two collections of its account; those that stand "
        "in all of them have no row.",
        RECORD_CHANGE_COLUMNS,
        RECORD_CHANGES_KEY,
    ),
    Resource(
        "account_history",
        (ACCOUNT_HISTORY_KEY,),
        "A state, host or handle of an account, and from when to when it was seen to hold.",
        ACCOUNT_HISTORY_COLUMNS,
        ACCOUNT_HISTORY_KEY_COLUMNS,
    ),
    Resource(
        "deletion_rates",
        (DELETION_RATES_KEY,),
        "How fast records of a collection and an age, or accounts, go; no row as long as nothing was collected twice.",
        RATE_COLUMNS,
        ("watched", "collection", "age"),
    ),
    Resource(
        "attrition",
        (ATTRITION_KEY,),
        "What a step from the source to the tables lost, of all or of a class: entered = lost + left.",
        ATTRITION_COLUMNS,
        ATTRITION_KEY_COLUMNS,
    ),
    Resource(
        "packs",
        (_PACKS,),
        "An attempt to fetch an account. An account can stand in several packs: the latest attempt is its state, the "
        "newest complete one its snapshot.",
        PACK_COLUMNS,
        ("did",),
        apart=True,
    ),
    Resource(
        "pack_blocks",
        ("repos/pds=*/*.blocks-*.parquet",),
        "A record's exact bytes, of whatever collection, beside the pack that names the file.",
        BLOCK_COLUMNS,
        ("did", "collection", "rkey"),
        apart=True,
    ),
    Resource(
        "rejects",
        ("records/pds=*/rejects/*.parquet",),
        "A record that no row could be made of, or what was asked for or listed and is no record.",
        REJECTS,
    ),
    Resource(
        "filter_lists",
        (f"{FILTERS_FOLDER}/*.parquet",),
        "An entry of a list that a filter names, and that can keep records.",
        LIST_COLUMNS,
        ("entry",),
        apart=True,
    ),
    Resource(
        "purged",
        (TOMBSTONES_KEY,),
        "What must not be collected again, without naming it.",
        TOMBSTONE_COLUMNS,
        ("hash",),
    ),
    Resource(
        "audit_log",
        (AUDIT_LOG_KEY,),
        "A run of the study: who or what started it, what it did, and how it ended.",
        AUDIT_COLUMNS,
        ("run_id",),
    ),
    Resource(
        "user_metadata",
        (USER_METADATA_KEY,),
        "A collected account, in the form that the study's metadata store has it.",
        USER_COLUMNS,
        ("did",),
    ),
    Resource(
        "run_metadata",
        (RUN_METADATA_KEY,),
        "A run of the study, in the form that the study's metadata store has it.",
        RUN_COLUMNS,
        ("run_id",),
    ),
    *(
        Resource(
            f"{LEGACY_FOLDER}_{name}",
            (
                f"{LEGACY_FOLDER}/{name}/month=*/*.parquet",
                f"{LEGACY_FOLDER}/{UNDATED}/{name}/*.parquet",
            ),
            "A record that was taken over from the previous system, in the columns of ours; proven by nothing.",
            legacy_columns(name),
            ("uri",),
        )
        for name in LEGACY_TABLES
    ),
    Resource(
        "legacy_rejects",
        (f"{REJECTS_FOLDER}/*.parquet",),
        "A row of the previous system that is in none of these tables, with all that it held.",
        LEGACY_REJECT_COLUMNS,
        ("file", "row"),
    ),
    Resource(
        "handed_over",
        (f"{HANDOFF_FOLDER}/*/ledger/*/*.parquet",),
        "A record that a consumer was handed, or is owed: by it none is handed over twice.",
        HANDED_OVER_COLUMNS,
        ("uri",),
        apart=True,
        inner=True,
    ),
    Resource(
        "handed_over_files",
        (f"{HANDOFF_FOLDER}/*/looked_at/*.parquet",),
        "A file of a table all of whose records a consumer was handed: by it only what has changed is looked at again.",
        LOOKED_AT_COLUMNS,
        ("file",),
        apart=True,
        inner=True,
    ),
    Resource(
        "manifest_files",
        (FILES_KEY,),
        "A file of the study's folder, when its tables were built last; `manifest.json` has this list's digest.",
        FILE_COLUMNS,
        ("key",),
    ),
    Resource(
        "manifest_accounts",
        (SNAPSHOTS_KEY,),
        "The snapshot of an account, with its commit and the key that signed it.",
        SNAPSHOT_COLUMNS,
        ("did",),
    ),
    Resource(
        "verdicts",
        (VERDICTS_KEY,),
        "What was proven again of an account's stored snapshot, or of an earlier one, by `<name>_verify`.",
        VERDICT_COLUMNS,
        ("did", "pds_host", "pack"),
    ),
    Resource(
        "problems",
        (PROBLEMS_KEY,),
        "What `<name>_verify` has found wrong with a file.",
        PROBLEM_COLUMNS,
        ("problem", "file", "detail"),
    ),
    Resource(
        "counts",
        ("records/pds=*/counts/*.parquet",),
        "What became of an account's records of one collection in one pack.",
        COUNTS,
        ("did", "collection", "table", "fate", "reason"),
        apart=True,
        inner=True,
    ),
    Resource(
        "windows",
        ("records/pds=*/windows/*.parquet",),
        "How many rows an account has in a time window of a table, in one converted file.",
        INDEX_COLUMNS,
        ("did", "number", "table", "window"),
        apart=True,
        inner=True,
    ),
    Resource(
        "built",
        (f"{LEDGER_FOLDER}/*.parquet",),
        "A file of a table, and what it was made of: by it only what has changed is built again.",
        LEDGER_COLUMNS,
        ("folder", "part"),
        apart=True,
        inner=True,
    ),
    Resource(
        "inventories",
        (f"{SURVIVORSHIP_FOLDER}/{inventory.KIND}/pds=*/*.parquet",),
        "How many records of one age an account has in one pack.",
        inventory.INVENTORY_COLUMNS,
        ("did", "collection", "age"),
        apart=True,
        inner=True,
    ),
    Resource(
        "comparisons",
        (f"{SURVIVORSHIP_FOLDER}/{comparison.KIND}/pds=*/*.parquet",),
        "A version of a record that stands in one of two snapshots alone.",
        comparison.EVENT_COLUMNS,
        ("did", "collection", "rkey", "stood_before"),
        apart=True,
        inner=True,
    ),
    Resource(
        "directory_unfinished",
        (f"{UNFINISHED_DIRECTORY_FOLDER}/*.parquet",),
        "What an interrupted lookup has come to so far; there only until the next one is finished.",
        DIRECTORY_COLUMNS,
        inner=True,
    ),
)
_REHYDRATION = Resource(
    "rehydration",
    (REHYDRATION_KEY,),
    "A record that was shared, and what became of it, of a study that is rebuilt from shared ids.",
    REHYDRATION_COLUMNS,
    ("uri",),
)
_SHOWN = Resource(
    "feeds",
    (f"{SHOWN_FOLDER}/*.parquet",),
    "A post and a day on which a feed showed it, as the study's table of feeds says.",
    SHOWN_COLUMNS,
    ("uri", "day"),
    inner=True,
)
