"""What can be said of an account's stored snapshot, and of files that are not what they were: closed sets."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.manifest.files import told_name
from backfill_dagster.repos.outcomes import Obtained

_FETCH_AGAIN = (
    "Take the files from a copy; or delete the pack, with the files below `records/` that have its name, and run "
    "`<name>` again: its accounts are fetched anew."
)
_BY_HAND = (
    "Find out who changed it; then take the files from a copy, or delete the pack, with the files below `records/` "
    "that have its name, and run `<name>` again."
)


class SnapshotVerdict(ClosedSet):
    """What of an account's stored snapshot is proven by the stored files alone."""

    PROVEN = (
        "proven",
        "A key of the account has signed the commit, and the tree that this names is made of exactly the stored "
        "records, each with the bytes that its CID names: all that the repository held, and nothing else.",
    )
    PROVEN_MASKED = (
        "proven_masked",
        "As `proven`, but that the study has masked purged accounts in some of the records: these have the CIDs of "
        "the tree, and not the bytes.",
    )
    PROVEN_BEFORE_PURGE = (
        "proven_before_purge",
        "The study has purged some of the records, so that the tree cannot be made again. A key of the account has "
        "signed the commit, and each record that is left has the bytes that its CID names; that the tree held it was "
        "proven when it was fetched, and cannot be any more.",
    )
    PROVEN_WHEN_FETCHED = (
        "proven_when_fetched",
        "Single records, each of which came with its own proof, which is not kept: each has the bytes that its CID "
        "names, and the commit is signed by a key of the account.",
    )
    SIGNATURE_UNCHECKED = (
        "signature_unchecked",
        "The study does not check signatures (`verify: structure`), and no stored document has the key. The tree is "
        "made of exactly the stored records, and who has signed it is not known.",
    )
    LISTED = (
        "listed",
        "From a listing, which nobody signs: each record has the bytes that its CID names, and no more is known.",
    )
    NOTHING_STORED = (
        "nothing_stored",
        "The account has no snapshot; accounts.parquet says why.",
    )
    DAMAGED_FILE = (
        "damaged_file",
        "The pack, or a blocks file that it names, is missing, cannot be read, or has other bytes than it was "
        "written with.",
        _FETCH_AGAIN,
    )
    ROWS_DIFFER = (
        "rows_differ",
        "There are more or fewer records than the pack tells of, or one of them twice.",
        _BY_HAND,
    )
    BLOCK_DIFFERS = ("block_differs", "A record does not have the bytes that its CID names.", _BY_HAND)
    COMMIT_DIFFERS = (
        "commit_differs",
        "The commit is none, does not have its CID, or is another account's or another revision.",
        _BY_HAND,
    )
    TREE_DIFFERS = (
        "tree_differs",
        "The keys and CIDs of the stored records make another tree than the one that the commit names.",
        _BY_HAND,
    )
    SIGNATURE_DIFFERS = (
        "signature_differs",
        "The signature is by none of the account's keys that a stored document tells of, or not by the one that the "
        "pack names.",
        _BY_HAND,
    )
    KEY_UNKNOWN = (
        "key_unknown",
        "No stored document tells of the account's keys, so that whose signature it is cannot be said.",
        "If the study was fetched by a version that kept no documents, run `<name>_refresh` when they are older than "
        "`network.directory_max_age_hours`: it looks accounts up again.",
    )
    UNEXPLAINED = (
        "unexplained",
        "The pack says that records were purged or masked, and the study has purged nothing that would explain it; "
        "or that they were obtained in a way that proves less than the one that the study asks for.",
        _BY_HAND,
    )

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong, even if not all is proven."""
        return self not in _FAILED


_FAILED = frozenset(
    {
        SnapshotVerdict.DAMAGED_FILE,
        SnapshotVerdict.ROWS_DIFFER,
        SnapshotVerdict.BLOCK_DIFFERS,
        SnapshotVerdict.COMMIT_DIFFERS,
        SnapshotVerdict.TREE_DIFFERS,
        SnapshotVerdict.SIGNATURE_DIFFERS,
        SnapshotVerdict.KEY_UNKNOWN,
        SnapshotVerdict.UNEXPLAINED,
    }
)


class KeySource(ClosedSet):
    """What tells that the key which made a signature is one of the account's."""

    DID_DOCUMENT = "did_document", "A DID document as it was received."
    PLC_AUDIT_LOG = (
        "plc_audit_log",
        "The PLC directory's log of the account's operations, as it was received.",
    )
    PLC_OPERATION = "plc_operation", "What the PLC directory's export said, by our copy of it."
    PACK = "pack", "Nothing but the pack, which names the key that fitted when it was fetched."


VERDICT_COLUMNS: tuple[Column, ...] = (
    Column("did", pl.String(), "The account's DID.", required=True),
    Column("pds_host", pl.String(), "Host that the snapshot came from; null if nothing is stored."),
    Column("pack", pl.String(), "Name of the pack that holds it; null if nothing is stored."),
    Column(
        "is_snapshot",
        pl.Boolean(),
        "Whether the tables are made of it; else it is an earlier one, which is stored too.",
        required=True,
    ),
    Column("verdict", pl.String(), "What of it is proven.", required=True, words=(SnapshotVerdict,)),
    Column(
        "key_source", pl.String(), "What tells of the key; null if nothing is signed.", words=(KeySource,)
    ),
    Column("obtained", pl.String(), "How it was obtained.", words=(Obtained,)),
    Column("repo_rev", pl.String(), "Revision (TID) of the repository."),
    Column("commit_cid", pl.String(), "CID of the signed commit."),
    Column("records", pl.Int64(), "Records that are stored of it.", required=True),
    Column("purged", pl.Int64(), "Records of its tree that the study has purged.", required=True),
    Column("masked", pl.Int64(), "Records in which the study has masked purged accounts.", required=True),
    Column("detail", pl.String(), "What is wrong, in words; null if nothing is."),
)
VERDICTS_SCHEMA = schema_of(VERDICT_COLUMNS)


class FileProblem(ClosedSet):
    """What is wrong with a stored file, or with what it holds."""

    NO_MANIFEST = (
        "no_manifest",
        "There is no manifest, or it is not what was written: nothing tells what files there should be.",
        "Materialize `manifest`, or run `<name>`.",
    )
    MISSING = (
        "missing",
        "A file of the manifest is not there.",
        "Take it from a copy, or run `<name>_rebuild`.",
    )
    ADDED = (
        "added",
        "A file is there that the manifest does not have, or no pack explains.",
        "If a stage was run by itself since the tables were built, run `<name>`; else remove it.",
    )
    CHANGED = (
        "changed",
        "A file has other bytes than the manifest tells.",
        "If a stage was run by itself since the tables were built, run `<name>`; else take it from a copy.",
    )
    UNREADABLE = "unreadable", "A file cannot be read, and what is made of it was not looked at."
    OTHER_CONTENT = (
        "other_content",
        "The manifest says something else of snapshots, rows or counts than is stored.",
        "If a stage was run by itself since the tables were built, run `<name>`, which writes the manifest anew.",
    )
    EVIDENCE = "evidence", "A document about an account's key does not have the digest that is told of it."
    STRAY_RECORDS = "stray_records", "A blocks file has records of accounts of which its pack does not tell."
    LIST_DIFFERS = (
        "list_differs",
        "A list that a filter names does not have its digest or its counts, or is not the one in the YAML.",
        "Run `<name>`, if the YAML was changed since; else take it from a copy, and run `<name>_rebuild`.",
    )
    RECORDS_DIFFER = (
        "records_differ",
        "Records that were converted are not those that the packs give.",
        "Run `<name>_rebuild`.",
    )
    ROWS_DIFFER = (
        "table_differs",
        "A file of a table does not have the rows that the packs give.",
        "Run `<name>_rebuild`.",
    )
    DERIVED_DIFFERS = (
        "derived_differs",
        "What is made of the tables, such as the table of accounts, is not what they give.",
        "Run `<name>_rebuild`.",
    )
    NOT_UP_TO_DATE = (
        "not_up_to_date",
        "Something is not built of what is stored and of the settings of now.",
        "Run `<name>`.",
    )
    FROZEN_DIFFERS = (
        "frozen_differs",
        "A frozen build is not what its own manifest tells: a file is missing, was changed or added, or the manifest "
        "itself was.",
        "Nothing makes it anew: take the file from a copy, or remove what was added. If the build is not needed any "
        "more, delete its whole folder; if it was only begun with, run `<name>`.",
    )
    CERTIFICATE = (
        "certificate",
        "The certificate or the verdicts of the last verification were changed since.",
    )


PROBLEM_COLUMNS: tuple[Column, ...] = (
    Column("problem", pl.String(), "What is wrong.", required=True, words=(FileProblem,)),
    Column("file", pl.String(), "Path of the file below the study's folder; null if it is none alone."),
    Column("detail", pl.String(), "What was seen, in words."),
)
PROBLEMS_SCHEMA = schema_of(PROBLEM_COLUMNS)


class Found(NamedTuple):
    """One row of PROBLEMS_SCHEMA."""

    problem: FileProblem
    file: str | None
    detail: str | None = None

    def printable(self) -> Found:
        """Return the same with names as they can be stored: one of a file can be bytes that are no text."""
        return Found(self.problem, *(None if text is None else told_name(text) for text in self[1:]))
