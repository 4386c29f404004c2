"""The derived tables of a frozen build made again of its record tables, after something was purged from these."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import ValidationError

from backfill_dagster.config.derived import Discovery
from backfill_dagster.config.time_range import TimeRange
from backfill_dagster.derived.activity import StudyUserActivity
from backfill_dagster.derived.build import FOLDER, WINDOW, schema_of
from backfill_dagster.derived.engaged import ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY, find_engaged
from backfill_dagster.derived.engagement import Engagement
from backfill_dagster.derived.stored_tables import StoredTables
from backfill_dagster.derived.threads import Threads
from backfill_dagster.records.windows import GRANULARITIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backfill_dagster.derived.build import Derivation
    from backfill_dagster.storage import StudyStorage

# Those that tell of other rows than their own, so that rows cannot be taken out of them.
MADE_AGAIN = (StudyUserActivity.name, Engagement.name, Threads.name)


class FrozenTables(StoredTables):
    """The record tables of a frozen build, of which no ledger tells; `rows` are those of each file by key.

    `windows` are the time windows in which it has any.
    """

    def __init__(self, storage: StudyStorage, rows: Mapping[str, int]) -> None:
        built: dict[str, dict[str, list[tuple[str | None, int, int]]]] = defaultdict(dict)
        for key, number in rows.items():
            folder, _, name = key.rpartition("/")
            built[key.split("/")[1]].setdefault(folder, []).append((name, 0, number))
        folders = {folder.rpartition("/")[2] for of_table in built.values() for folder in of_table}
        words = {name.partition("=")[0] for name in folders if "=" in name}
        cut = [one for one in GRANULARITIES.values() if one.word in words]
        super().__init__(storage, cut[0] if cut else GRANULARITIES["monthly"], sorted(built))
        self._built = dict(built)
        self.windows = sorted(name.partition("=")[2] for name in folders if "=" in name)


def derived_again(
    storage: StudyStorage, rows: Mapping[str, int], names: Sequence[str]
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the files of these derived tables (path, rows) as the record tables of a frozen build give them now.

    `storage` is the frozen folder, and `rows` are those of each file of its record tables. A file that it has and that
    is not among them has no rows any more.
    """
    tables = FrozenTables(storage, rows)
    windows = tables.windows
    made: dict[str, Derivation] = {}
    for name in names:
        if name == StudyUserActivity.name:
            made[name] = StudyUserActivity(tables, windows)
        else:
            made[name] = Engagement(tables) if name == Engagement.name else Threads(tables)
    for name, derivation in made.items():
        schema = schema_of(derivation)
        for lot, found in derivation.lots(windows):
            for (window,), part in found.partition_by(WINDOW, as_dict=True, include_key=False).items():
                folder = f"{FOLDER}/{name}/{tables.granularity.folder(str(window))}"
                yield f"{folder}/part-{lot:05d}.parquet", part.match_to_schema(schema)


def engaged_again(
    storage: StudyStorage, config: Mapping[str, Any], rows: Mapping[str, int], own: pl.Series
) -> dict[str, pl.DataFrame]:
    """Return the lists of whom and what the accounts of a frozen build (`own`) engaged with, by path.

    `config` are the settings that it was built with; nothing is returned if the manifest does not tell them, since the
    environment had filled them in.
    """
    try:
        time_range = TimeRange.model_validate(config["time_range"])
        discovery = Discovery.model_validate(config["discovery"])
    except ValidationError:
        return {}
    start = discovery.start_date or time_range.start_date
    end = discovery.end_date or time_range.end_date
    tables = FrozenTables(storage, rows)
    lots = list(find_engaged(tables, own, discovery.interactions, start, end))
    return {
        ENGAGED_ACCOUNTS_KEY: pl.concat(lot.accounts for lot in lots),
        ENGAGED_POSTS_KEY: pl.concat(lot.posts for lot in lots),
    }
