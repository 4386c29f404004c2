"""A pack converted again, and a part of a table built again: the work of one worker process, which loads no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.records.conversion import convert_pack, converted_packs
from backfill_dagster.records.filter_lists import FILTERS_FOLDER
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.parts import write_part
from backfill_dagster.verification.mirror import differences, mirror
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.records.conversion import PackFiles
    from backfill_dagster.records.filter_lists import StoredFilter
    from backfill_dagster.records.settings import RecordSettings
    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.stores.location import Location
    from backfill_dagster.tables.parts import Part


@dataclass(frozen=True, slots=True)
class Conversion:
    """A pack's conversion as it is stored, and what it is made with."""

    files: PackFiles
    stored: tuple[str, ...]
    settings: RecordSettings
    filters: Mapping[str, StoredFilter]
    granularity: Granularity
    fingerprint: str


def check_conversion(root: Location, conversion: Conversion) -> list[Found]:
    """Convert a pack again, and compare; the work of one worker process."""
    storage, files = StudyStorage(root), conversion.files
    if not converted_packs(storage, [(files.pds_host, files.pack)], conversion.fingerprint):
        return [Found(FileProblem.NOT_UP_TO_DATE, files.key, "it is not converted with the settings of now")]
    with storage.scratch() as folder:
        lists = storage.keys(FILTERS_FOLDER)
        again = mirror(storage, folder, [files.key, *(key for key, _ in files.blocks), *lists])
        convert_pack(
            folder,
            files,
            conversion.settings,
            conversion.filters,
            conversion.granularity,
            conversion.fingerprint,
        )
        found = differences(storage, again, conversion.stored, again.keys("records"))
    return [Found(FileProblem.RECORDS_DIFFER, *seen) for seen in found]


def check_part(root: Location, part: Part) -> list[Found]:
    """Build a part of a table again, and compare; the work of one worker process."""
    storage = StudyStorage(root)
    sources = list(storage.sizes_of(key for key, _ in part.sources))
    with storage.scratch() as folder:
        again = mirror(storage, folder, sources)
        write_part(folder, part)
        keys = [file.key for file in part.files]
        found = differences(storage, again, keys, keys)
    return [Found(FileProblem.ROWS_DIFFER, *seen) for seen in found]
