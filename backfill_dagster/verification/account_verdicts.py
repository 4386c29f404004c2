"""The verdicts on all accounts: proven pack by pack, told range by range of DIDs, and what they come to.

All that is known of accounts is dealt out to ranges, then to some packs at a time for the proofs, and what these come
to is dealt out to the ranges again, so that no more is held than there is of one range, or of some packs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import fetch_modes
from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import dealt_by_range
from backfill_dagster.repos.asked import with_asked
from backfill_dagster.repos.ledger_lots import account_ranges
from backfill_dagster.repos.outcomes import Obtained, Outcome
from backfill_dagster.repos.packs import LEDGER_ORDER, LEDGER_SCHEMA, pack_keys
from backfill_dagster.repos.snapshots import snapshots
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.study_files import DIRECTORY_KEY, SOURCE_KEY, rows_in
from backfill_dagster.verification.attempts import all_attempts
from backfill_dagster.verification.keys import KEYS_SCHEMA, stored_keys
from backfill_dagster.verification.manifest_check import listed_snapshots
from backfill_dagster.verification.packs import PackToProve, ToldKey
from backfill_dagster.verification.verdicts import VERDICTS_SCHEMA, Found, SnapshotVerdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from backfill_dagster.config.study import Study
    from backfill_dagster.dids.did_ranges import DidRange

# Ways to obtain records, each of which proves less than the one before.
_PROVING_LESS = (Obtained.REPO, Obtained.RECORD_PROOF, Obtained.LIST_RECORDS)
# Verdicts that fail, and say nothing against the records.
_CONVERTED_YET = frozenset({SnapshotVerdict.KEY_UNKNOWN})
_FAILED = frozenset(word.value for word in SnapshotVerdict if not word.holds)
_WRONG = frozenset(word.value for word in SnapshotVerdict if not (word.holds or word in _CONVERTED_YET))
_PLACE = ("did", "pds_host", "pack")
_PLACES_SCHEMA = pl.Schema(dict.fromkeys(_PLACE, pl.String()))
_SIGNED = "must_be_signed"
# An account of a pack with a key of its own, or with none.
_TO_PROVE_SCHEMA = pl.Schema({**_PLACES_SCHEMA, **KEYS_SCHEMA, _SIGNED: pl.Boolean()})
_PACKS_AT_ONCE = 64
# Verdicts that are dealt out at once: of each range there are then some.
_VERDICTS_AT_ONCE = 20_000


@dataclass(slots=True)
class VerdictTotals:
    """What verdicts come to that are told in the order of the table.

    Accounts by verdict and by what tells of their key, earlier snapshots by verdict; and the packs (PDS host, pack)
    that hold snapshots, with those of which something is known to be wrong but for a missing key.
    """

    accounts: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    earlier: Counter[str] = field(default_factory=Counter)
    key_sources: Counter[str] = field(default_factory=Counter)
    snapshot_packs: set[tuple[str, str]] = field(default_factory=set)
    wrong_packs: set[tuple[str, str]] = field(default_factory=set)
    _told: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, verdicts: pl.DataFrame) -> None:
        """Add the next verdicts (VERDICTS_SCHEMA)."""
        earlier = ~pl.col("is_snapshot") & pl.col("pack").is_not_null()
        of_accounts = verdicts.filter(~earlier)
        self.accounts += of_accounts.height
        self.counts.update(_by(of_accounts, "verdict"))
        self.earlier.update(_by(verdicts.filter(earlier), "verdict"))
        self.key_sources.update(_by(of_accounts.drop_nulls("key_source"), "key_source"))
        self.snapshot_packs |= _packs_of(verdicts.filter("is_snapshot"))
        self.wrong_packs |= _packs_of(verdicts.filter(pl.col("verdict").is_in(sorted(_WRONG))))
        for row in verdicts.iter_rows():
            self._told.update(repr(row).encode())

    @property
    def failed(self) -> int:
        """How many verdicts say that something is wrong."""
        return sum(number for word, number in (self.counts + self.earlier).items() if word in _FAILED)

    @property
    def damaged(self) -> int:
        """How many say that a file is damaged."""
        return (self.counts + self.earlier)[SnapshotVerdict.DAMAGED_FILE.value]

    @property
    def digest(self) -> str:
        """The identity of all rows, whatever library writes them."""
        return self._told.hexdigest()


class AccountVerdicts:
    """The making of the verdicts on all accounts of a study, in a folder that is scratch; a context manager.

        deal, then packs_to_prove and add for each of them, then settle; then lots and totals

    `found` is what is wrong with the files that were read for it.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.found: list[Found] = []
        self.totals = VerdictTotals()
        self._study = study
        self._storage = StudyStorage(study.location)
        self._ranges = account_ranges(self._storage.rows(DIRECTORY_KEY))
        self._groups = self._grouped()
        self._waiting: list[pl.DataFrame] = []
        with ExitStack() as opened:

            def dealt(name: str, schema: pl.Schema) -> DealtRows:
                return opened.enter_context(DealtRows(folder / f"{name}.arrow", schema))

            self._attempts = dealt("attempts", LEDGER_SCHEMA)
            self._keys = dealt("keys", KEYS_SCHEMA)
            self._current = dealt("current", _PLACES_SCHEMA)
            self._to_prove = dealt("to_prove", _TO_PROVE_SCHEMA)
            self._proven = dealt("proven", VERDICTS_SCHEMA)
            self._settled = dealt("settled", VERDICTS_SCHEMA)
            self._opened = opened.pop_all()

    def __enter__(self) -> AccountVerdicts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()

    def deal(self, damaged: Collection[str]) -> None:
        """Read what packs and documents tell of accounts; of packs that are `damaged` nothing."""
        self._deal(self._attempts, all_attempts(self._storage, damaged))
        self._deal(self._keys, stored_keys(self._storage))
        asks = fetch_modes.stored_asks(self._study)
        # Of earlier snapshots nothing has to be checked that was not when they were fetched.
        all_signed = self._study.processing.verify == "full"
        for dids in self._ranges:
            attempts = self._attempts.of(dids).sort(LEDGER_ORDER)
            directory = with_asked(rows_in(self._storage, DIRECTORY_KEY, dids), asks)
            current = snapshots(directory, attempts).select(_PLACE)
            self._current.add(dids, current)
            complete = attempts.filter(pl.col("outcome") == Outcome.COMPLETE.value).select(_PLACE)
            keys = self._keys.of(dids).unique(maintain_order=True)
            signed = (current if all_signed else current.clear()).with_columns(
                pl.lit(value=True).alias(_SIGNED)
            )
            told = (
                complete.join(keys, on="did", how="left", maintain_order="left_right")
                .join(signed, on=_PLACE, how="left", maintain_order="left")
                .join(self._groups, on=["pds_host", "pack"], how="left", maintain_order="left")
                .with_columns(pl.col(_SIGNED).fill_null(value=False))
            )
            for (group,), some in told.partition_by("group", as_dict=True, include_key=False).items():
                self._to_prove.add(group, some)

    def _deal(self, dealt: DealtRows, told: Iterable[pl.DataFrame | Found]) -> None:
        for some in told:
            if isinstance(some, Found):
                self.found.append(some)
                continue
            for dids, rows in dealt_by_range(some, self._ranges):
                dealt.add(dids, rows)

    def _grouped(self) -> pl.DataFrame:
        """Return `pds_host, pack, group`: packs that are proven one after the other are in one group."""
        packs = [pack[:2] for pack in pack_keys(self._storage)]
        schema = {"pds_host": pl.String, "pack": pl.String}
        numbered = pl.DataFrame(packs, schema=schema, orient="row").with_row_index("group")
        return numbered.with_columns(pl.col("group") // _PACKS_AT_ONCE)

    def packs_to_prove(self) -> Iterator[PackToProve]:
        """Yield the packs with complete accounts, each with what is known of its accounts' keys."""
        packs = ("pds_host", "pack")
        for group in self._groups["group"].unique().sort():
            told = self._to_prove.of(group).sort(packs, maintain_order=True)
            for (host, pack), rows in told.partition_by(packs, as_dict=True, maintain_order=True).items():
                keys = rows.drop_nulls("source").select(KEYS_SCHEMA.names())
                yield PackToProve(
                    host,
                    pack,
                    f"repos/{partition_folder(host)}/{pack}.parquet",
                    tuple(map(ToldKey._make, keys.iter_rows())),
                    frozenset(rows.filter(_SIGNED)["did"]),
                )

    def add(self, verdicts: pl.DataFrame) -> None:
        """Add the verdicts (VERDICTS_SCHEMA, `is_snapshot` yet to be set) on the accounts of one pack."""
        self._waiting.append(verdicts)
        if sum(rows.height for rows in self._waiting) >= _VERDICTS_AT_ONCE:
            self._deal_waiting()

    def _deal_waiting(self) -> None:
        self._deal(self._proven, [pl.concat([VERDICTS_SCHEMA.to_frame(), *self._waiting])])
        self._waiting = []

    def current(self) -> Iterator[pl.DataFrame]:
        """Yield the snapshots (`did, pds_host, pack`) of some accounts after the others'."""
        yield from map(self._current.of, self._ranges)

    def settle(self, lost: Collection[str]) -> None:
        """Make the verdicts on all accounts of those on what packs hold.

        Those with snapshots that the manifest lists in packs that are `lost`, of which nothing could be read, have one
        too. None are, if the manifest is none.
        """
        self._deal_waiting()
        for dids in self._ranges:
            current = self._current.of(dids)
            proven = [self._proven.of(dids)]
            if lost:
                proven.append(_lost(self._storage, dids, lost, current))
            whole = _whole(pl.concat(proven), current, self._everybody(dids))
            verdicts = _as_asked(whole, fetch_modes.OBTAINED[self._study.fetch])
            self.totals.add(verdicts)
            self._settled.add(dids, verdicts)

    def _everybody(self, dids: DidRange) -> pl.Series:
        keys = (DIRECTORY_KEY, SOURCE_KEY)
        lists = [self._storage.scan_as_it_is(key).select("did").filter(dids.holds("did")) for key in keys]
        return pl.concat(self._storage.collect(lists, keys))["did"]

    def lots(self) -> Iterator[pl.DataFrame]:
        """Yield the verdicts (VERDICTS_SCHEMA) on some accounts after the others', sorted; after they are settled."""
        yield from map(self._settled.of, self._ranges)


def _lost(
    storage: StudyStorage, dids: DidRange, lost: Collection[str], current: pl.DataFrame
) -> pl.DataFrame:
    """Return verdicts on the snapshots that the manifest has and that are in packs which cannot be read."""
    [listed] = storage.collect([listed_snapshots(storage).filter(dids.holds("did"))], [])
    rows = listed.join(current, on="did", how="anti")
    packs = [
        (host, pack)
        for host, pack in rows.select("pds_host", "pack").unique().iter_rows()
        if f"repos/{partition_folder(host)}/{pack}.parquet" in lost
    ]
    gone = pl.DataFrame(packs, schema={"pds_host": pl.String, "pack": pl.String}, orient="row")
    told = rows.join(gone, on=["pds_host", "pack"], how="semi").with_columns(
        is_snapshot=pl.lit(value=True),
        verdict=pl.lit(SnapshotVerdict.DAMAGED_FILE.value),
        records=pl.lit(0, pl.Int64),
        detail=pl.lit("its pack was not read"),
    )
    present = [name for name in VERDICTS_SCHEMA if name in told.columns]
    return pl.concat([VERDICTS_SCHEMA.to_frame(), told.select(present)], how="diagonal")


def _whole(verdicts: pl.DataFrame, current: pl.DataFrame, dids: pl.Series) -> pl.DataFrame:
    """Mark the verdicts on snapshots, and add those on accounts that have none."""
    is_current = current.with_columns(is_current=pl.lit(value=True))
    marked = verdicts.join(is_current, on=["did", "pds_host", "pack"], how="left").with_columns(
        is_snapshot=pl.col("is_snapshot") | pl.col("is_current").fill_null(value=False)
    )
    with_snapshot = marked.filter("is_snapshot").select("did")
    others = dids.unique().to_frame("did").join(with_snapshot, on="did", how="anti")
    # Whose pack was begun with, and could not be read to its end.
    unread = pl.col("pack").is_not_null()
    without = others.join(current, on="did", how="left").with_columns(
        is_snapshot=unread,
        verdict=pl.when(unread)
        .then(pl.lit(SnapshotVerdict.DAMAGED_FILE.value))
        .otherwise(pl.lit(SnapshotVerdict.NOTHING_STORED.value)),
        **dict.fromkeys(("records", "purged", "masked"), pl.lit(0, pl.Int64)),
    )
    both = pl.concat([marked.select(VERDICTS_SCHEMA.names()), without], how="diagonal")
    return both.sort("did", "pds_host", "pack", nulls_last=True)


def _as_asked(verdicts: pl.DataFrame, asked: Obtained) -> pl.DataFrame:
    """Let no snapshot pass that was obtained in a way that proves less than the one that the study asks for.

    One that proves more may be of before the study asked for less, or all that is left of an account.
    """
    enough = [way.value for way in _PROVING_LESS[: _PROVING_LESS.index(asked) + 1]]
    holding = [word.value for word in SnapshotVerdict if word.holds]
    other = (
        pl.col("is_snapshot")
        & (~pl.col("obtained").is_in(enough)).fill_null(value=False)
        & pl.col("verdict").is_in(holding)
    )
    detail = pl.format("obtained as {}, and not as " + asked.value, pl.col("obtained"))
    return verdicts.with_columns(
        verdict=pl.when(other).then(pl.lit(SnapshotVerdict.UNEXPLAINED.value)).otherwise("verdict"),
        detail=pl.when(other).then(detail).otherwise("detail"),
    )


def _by(rows: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(rows.group_by(column).len().iter_rows())


def _packs_of(verdicts: pl.DataFrame) -> set[tuple[str, str]]:
    return set(verdicts.select("pds_host", "pack").drop_nulls().unique().iter_rows())
