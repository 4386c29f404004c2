"""Changes of a study's files by somebody: blind ones, and such with all digests mended and the manifest written anew.

A mutation is made of a seed and its number alone. The blind ones stand for what disks and people do by accident; the
others for somebody who can write to every file, and rebuild whatever this program builds, but has no account's key.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from backfill_dagster.config.study import Study
from backfill_dagster.frozen.places import FROZEN_FOLDER
from backfill_dagster.manifest.files import NOT_COVERED
from backfill_dagster.manifest.keys import MANIFEST_FOLDER, MANIFEST_KEY, PROOF_FOLDER
from backfill_dagster.manifest.written import write_manifest
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.build import table_keys
from backfill_dagster.verification.verify import verify
from backfill_dagster_tests.verification.studies import copy_of, kept, wrong_files

# Of so many mutations, one is of a file that is mended, with everything that tells of it.
MENDED_EVERY = 8
_ALSO_CHECKED = (MANIFEST_KEY, MANIFEST_FOLDER, PROOF_FOLDER, FROZEN_FOLDER)


def checked_files(study: Study) -> list[Path]:
    """Return all files of a study that a verification answers for, sorted."""
    unchecked = set(NOT_COVERED) - set(_ALSO_CHECKED)
    return sorted(
        path
        for path in study.root.rglob("*")
        if path.is_file() and path.relative_to(study.root).parts[0] not in unchecked
    )


@dataclass
class Tally:
    """How many mutations were made and found, by kind; and those that were not found."""

    made: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)


def run(study: Study, folder: Path, seed: int, numbers: Iterator[int]) -> Tally:
    """Mutate a study, which has a manifest and a certificate, in so many ways, one at a time; it stays as it was."""
    tally = Tally()
    for number in numbers:
        chance = random.Random(f"{seed} {number}")
        if number % MENDED_EVERY:
            kind, told = _blind(study, chance)
        else:
            kind, told = _mended(study, folder / f"mended-{number}", chance)
        tally.made[kind] += 1
        if told is not None:
            tally.missed.append(f"{number}: {kind}: {told}")
    return tally


def _blind(study: Study, chance: random.Random) -> tuple[str, str | None]:
    """Change one file, and return what kind of change it was; and which, if it was not found."""
    kind, change = chance.choice(list(_BLIND.items()))
    path = chance.choice(checked_files(study))
    with change(path, chance):
        found = wrong_files(study)
    return kind, None if found else path.relative_to(study.root).as_posix()


@contextmanager
def _flipped(path: Path, chance: random.Random) -> Iterator[None]:
    with kept(path) as data:
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        yield


@contextmanager
def _cut(path: Path, chance: random.Random) -> Iterator[None]:
    with kept(path) as data:
        path.write_bytes(data[: chance.randrange(len(data))])
        yield


@contextmanager
def _lengthened(path: Path, chance: random.Random) -> Iterator[None]:
    with kept(path) as data:
        path.write_bytes(data + chance.randbytes(chance.randint(1, 9)))
        yield


@contextmanager
def _gone(path: Path, chance: random.Random) -> Iterator[None]:
    with kept(path):
        path.unlink()
        yield


@contextmanager
def _added(path: Path, chance: random.Random) -> Iterator[None]:
    other = path.with_name(f"{chance.randbytes(4).hex()}-{path.name}")
    other.write_bytes(path.read_bytes())
    yield
    other.unlink()


@contextmanager
def _swapped(path: Path, chance: random.Random) -> Iterator[None]:
    """Put another file in its place, of the same kind if there is one."""
    others = [
        other
        for other in path.parent.iterdir()
        if other.is_file() and other.read_bytes() != path.read_bytes()
    ]
    with kept(path):
        path.write_bytes(chance.choice(others).read_bytes() if others else b"")
        yield


_BLIND: dict[str, Callable[[Path, random.Random], AbstractContextManager[None]]] = {
    "a byte flipped": _flipped,
    "a byte flipped, again": _flipped,
    "a file cut": _cut,
    "a file lengthened": _lengthened,
    "a file gone": _gone,
    "a file added": _added,
    "a file swapped": _swapped,
}


def _mended(study: Study, folder: Path, chance: random.Random) -> tuple[str, str | None]:
    """Change a row of a table or of converted records, and write the manifest anew."""
    folder.mkdir()
    copy = copy_of(study, folder)
    storage = StudyStorage(copy.root)
    keys = [key for table in ("posts", "replies", "follows") for key in table_keys(storage, table)]
    keys += [key for key in storage.keys("records") if "/windows/" not in key]
    key = chance.choice([key for key in keys if storage.read(key).height])
    kind, change = chance.choice(list(_OF_ROWS.items()))
    rows = storage.read(key)
    changed = change(rows, chance)
    assert not changed.equals(rows)
    metadata = pl.read_parquet_metadata(storage.path(key))
    storage.write(
        key, changed, metadata={name: text for name, text in metadata.items() if name != "ARROW:schema"}
    )
    write_manifest(copy)
    return f"{kind}, mended", key if verify(copy).holds else None


def _row_dropped(rows: pl.DataFrame, chance: random.Random) -> pl.DataFrame:
    place = chance.randrange(rows.height)
    return pl.concat([rows.head(place), rows.slice(place + 1)])


def _row_added(rows: pl.DataFrame, chance: random.Random) -> pl.DataFrame:
    place = chance.randrange(rows.height)
    return pl.concat([rows.head(place), rows.slice(place)[:1], rows.slice(place)])


def _value_changed(rows: pl.DataFrame, chance: random.Random) -> pl.DataFrame:
    place = chance.randrange(rows.height)
    texts = [name for name, kind in rows.schema.items() if kind == pl.String]
    column = chance.choice(texts)
    value = rows[column][place]
    told = f"{value or ''}{chance.randbytes(1).hex()}"
    return rows.with_columns(
        pl.when(pl.int_range(pl.len()) == place).then(pl.lit(told)).otherwise(pl.col(column)).alias(column)
    )


_OF_ROWS: dict[str, Callable[[pl.DataFrame, random.Random], pl.DataFrame]] = {
    "a row dropped": _row_dropped,
    "a row added": _row_added,
    "a value changed": _value_changed,
}
